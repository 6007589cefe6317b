//! `cargo xtask fuzz`: what reads bytes of guests, images and peers, under libFuzzer (docs/testing.md).
//!
//! The targets are a workspace of their own, `fuzz/`, built by cargo-fuzz with the versions of the product's Cargo.lock.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::shell::{on_path, output, root, run, target};

/// Which targets, and for how long.
#[derive(Args)]
pub struct Options {
    /// Only these; all of them when none is named
    targets: Vec<String>,
    /// How long each of them runs
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// Runs each target; fails when one of them found something.
pub fn run_targets(options: &Options) -> Result<()> {
    for (program, package) in [
        ("cargo-fuzz", "cargo install cargo-fuzz"),
        ("c++", "apt-get install g++"),
    ] {
        if on_path(program).is_none() {
            bail!("fuzzing needs {program}: {package}");
        }
    }
    keep_versions()?;
    let all = output(&mut cargo_fuzz("list"))?;
    let all: Vec<&str> = all.lines().collect();
    let chosen: Vec<&str> = match &options.targets[..] {
        [] => all.clone(),
        some => some.iter().map(String::as_str).collect(),
    };
    if let Some(unknown) = chosen.iter().find(|name| !all.contains(name)) {
        bail!("no fuzz target {unknown}; there are {}", all.join(", "));
    }
    let mut found = Vec::new();
    for name in chosen {
        println!("== {name}, {} s", options.seconds);
        let mut command = cargo_fuzz("run");
        command
            .arg("--target-dir")
            .arg(target().join("fuzz"))
            .arg(name)
            .args([
                "--",
                &format!("-max_total_time={}", options.seconds),
                // a length that is believed, a loop that does not end
                "-malloc_limit_mb=64",
                "-timeout=10",
                "-max_len=16384",
                "-verbosity=0",
                "-print_final_stats=1",
                // devices of a guest that breaks the rules complain there
                "-close_fd_mask=2",
            ]);
        if run(&mut command).is_err() {
            found.push(name);
        }
    }
    if !found.is_empty() {
        bail!(
            "{}: something was found; `RUSTC_BOOTSTRAP=1 cargo fuzz run TARGET fuzz/artifacts/TARGET/INPUT` shows it again",
            found.join(", ")
        );
    }
    Ok(())
}

fn cargo_fuzz(task: &str) -> Command {
    let mut command = Command::new("cargo");
    // instrumentation is an unstable option; the compiler is the product's
    command
        .current_dir(root())
        .env("RUSTC_BOOTSTRAP", "1")
        .args(["fuzz", task]);
    command
}

/// Begins with the product's lock file, to which cargo adds what only the targets need.
fn keep_versions() -> Result<()> {
    let (ours, theirs) = (root().join("Cargo.lock"), root().join("fuzz/Cargo.lock"));
    let changed = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified());
    if !theirs.exists() || changed(&ours)? > changed(&theirs)? {
        fs::copy(&ours, &theirs).context("cannot write fuzz/Cargo.lock")?;
    }
    Ok(())
}
