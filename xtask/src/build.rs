//! The release programs, collected in `target/dist`.
//!
//! `caisson` is linked dynamically. `caisson-shim` and `caisson-oci` start once per container or command, so they are linked
//! statically: that saves the dynamic loader's work, and lets the shim run when its mount namespace has another `/lib`.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::shell::{self, cargo, target};

/// All programs.
pub const PROGRAMS: [&str; 3] = ["caisson", "caisson-shim", "caisson-oci"];

#[cfg(target_arch = "aarch64")]
const TRIPLE: &str = "aarch64-unknown-linux-gnu";
#[cfg(not(target_arch = "aarch64"))]
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Builds them; returns the directory they are in.
pub fn run() -> Result<PathBuf> {
    crate::setup::run(crate::setup::Scope::Build)?;
    println!("build: caisson");
    shell::run(cargo().args(["build", "--release", "--package", "caisson"]))?;
    println!("build: caisson-shim, caisson-oci (static)");
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    let mut small = cargo();
    // with --target the flag does not reach procedural macros, which cannot be static
    small.args([
        "build",
        "--release",
        "--target",
        TRIPLE,
        "--package",
        "caisson-shim",
        "--package",
        "caisson-oci",
    ]);
    small.env(
        "RUSTFLAGS",
        format!("{flags} -C target-feature=+crt-static"),
    );
    shell::run(&mut small)?;

    let dist = target().join("dist");
    std::fs::create_dir_all(&dist)?;
    for program in PROGRAMS {
        let from = if program == "caisson" {
            target().join("release")
        } else {
            target().join(TRIPLE).join("release")
        };
        let (from, to) = (from.join(program), dist.join(program));
        let partial = dist.join(format!(".{program}.partial"));
        std::fs::copy(&from, &partial)
            .with_context(|| format!("cannot copy {}", from.display()))?;
        std::fs::rename(&partial, &to).with_context(|| format!("cannot write {}", to.display()))?;
    }
    println!("build: done, in {}", dist.display());
    Ok(dist)
}
