//! The end-to-end cases: one test program, one shared daemon, every case under every isolation and through every client.

use std::process::ExitCode;

mod run;

fn main() -> ExitCode {
    caisson_tests::main(&[run::CASES])
}
