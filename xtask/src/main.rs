//! `cargo xtask`: set up, build, show, test, check, measure, install.
//!
//! Tasks may use system tools freely; the product may not. Must not know: the engine's insides. It drives the programs.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod agent;
mod bench;
mod bench_vm;
mod build;
mod coverage;
mod demo;
mod fuzz;
mod images;
mod install;
mod lab;
mod qemu;
mod setup;
mod shell;
mod statistics;
mod suite;
mod tidy;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tasks of the caisson project")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install the Debian packages that building (and testing) needs
    Setup {
        /// Also what the tests compare with and talk to: docker, podman, skopeo, a registry, debootstrap, …
        #[arg(long)]
        tests: bool,
    },
    /// Build the release programs into target/dist
    Build,
    /// Build the guest's agent alone, and the disk image that it is started from
    Agent,
    /// Set up, build, and show what works, on this machine, now
    Demo(demo::Options),
    /// Run every test: units, contract suites, end to end
    Test(suite::Options),
    /// Check the rules of ARCHITECTURE.md and the conventions
    Tidy,
    /// Feed what guests, images and peers send with whatever finds a way into it (needs cargo-fuzz)
    Fuzz(fuzz::Options),
    /// Make the real images that the tests run: Debian, Python, Redis
    Images,
    /// Measure against crun, runc and dockerd on this machine
    Bench(bench::Options),
    /// Measure our VMM against QEMU's microvm with the same kernel, in the lab
    BenchVm(bench_vm::Options),
    /// Run a command in a software machine with cgroup v2 and /dev/kvm, whatever this one has
    Lab(lab::Lab),
    /// Build the guest's kernel (3–5 minutes on two cores, then cached)
    Kernel,
    /// Check that every instruction of the guest's kernel is executed by someone on hosts that emulate ring 0
    KernelCoverage(coverage::Coverage),
    /// Install programs, systemd unit, completions and man pages
    Install(install::Options),
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    match Arguments::parse().task {
        Task::Setup { tests } => setup::run(if tests {
            setup::Scope::Test
        } else {
            setup::Scope::Build
        }),
        Task::Build => build::run().map(drop),
        Task::Agent => agent::run(),
        Task::Demo(options) => demo::run(&options),
        Task::Test(options) => suite::run(&options),
        Task::Tidy => tidy::run(),
        Task::Fuzz(options) => fuzz::run_targets(&options),
        Task::Images => images::run().map(drop),
        Task::Bench(options) => bench::run(&options),
        Task::BenchVm(options) => bench_vm::run(&options),
        Task::Lab(options) => std::process::exit(lab::run(&shell::target(), &options)?),
        Task::Kernel => {
            println!("{}", build::kernel()?.display());
            Ok(())
        }
        Task::KernelCoverage(options) => coverage::run(&options),
        Task::Install(options) => install::run(&options),
    }
}
