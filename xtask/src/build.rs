//! The release programs, collected in `target/dist`.
//!
//! `caisson` is linked dynamically. `caisson-shim` and `caisson-oci` start once per container or command, so they are linked
//! statically: that saves the dynamic loader's work, and lets the shim run when its mount namespace has another `/lib`. The
//! guest's agent has no dynamic loader at all, and goes into an image of its own (`agent.rs`).

use std::path::PathBuf;

use anyhow::Result;

use crate::shell::{self, cargo, target};

/// All programs.
pub const PROGRAMS: [&str; 3] = ["caisson", "caisson-shim", "caisson-oci"];

/// Builds them; returns the directory they are in.
pub fn run() -> Result<PathBuf> {
    crate::setup::run(crate::setup::Scope::Build)?;
    println!("build: caisson");
    shell::run(cargo().args(["build", "--release", "--package", "caisson"]))?;
    println!("build: caisson-shim, caisson-oci (static)");
    let mut small = cargo();
    // with --target the flag does not reach procedural macros, which cannot be static
    small.args([
        "build",
        "--release",
        "--target",
        shell::TRIPLE,
        "--package",
        "caisson-shim",
        "--package",
        "caisson-oci",
    ]);
    small.env("RUSTFLAGS", shell::static_flags());
    shell::run(&mut small)?;

    let dist = target().join("dist");
    std::fs::create_dir_all(&dist)?;
    for program in PROGRAMS {
        let from = if program == "caisson" {
            target().join("release")
        } else {
            target().join(shell::TRIPLE).join("release")
        };
        shell::install(&from.join(program), &dist.join(program))?;
    }
    crate::agent::run(crate::agent::Build::Shipped)?;
    println!("build: done, in {}", dist.display());
    Ok(dist)
}
