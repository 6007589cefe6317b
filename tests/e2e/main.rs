//! The end-to-end cases: one test program, one shared daemon, every case under every isolation and through every client.

use std::process::ExitCode;

mod clients;
mod copy;
mod daemon;
mod exec;
mod images;
mod lifecycle;
mod limits;
mod logs;
mod mounts;
mod observe;
mod oci;
mod real;
mod registry;
mod run;
mod streams;
mod vm;
mod wall;

fn main() -> ExitCode {
    caisson_tests::main(&[
        run::CASES,
        streams::CASES,
        lifecycle::CASES,
        exec::CASES,
        logs::CASES,
        observe::CASES,
        copy::CASES,
        mounts::CASES,
        images::CASES,
        registry::CASES,
        limits::CASES,
        wall::CASES,
        daemon::CASES,
        clients::CASES,
        oci::CASES,
        real::CASES,
        vm::CASES,
    ])
}
