//! The release programs, collected in `target/dist`.
//!
//! `caisson` is linked dynamically. `caisson-shim` and `caisson-oci` start once per container or command, so they are linked
//! statically: that saves the dynamic loader's work, and lets the shim run when its mount namespace has another `/lib`;
//! likewise what runs confined (`caisson-vmm`, `caisson-share`). The guest's agent goes into an image of its own (`agent.rs`).
//!
//! ```text
//! target/dist/caisson, caisson-shim, …     the programs
//! target/dist/guest/vmlinux, agent.erofs   what every microVM boots
//! ```

use std::path::PathBuf;

use anyhow::Result;

use crate::shell::{self, cargo, target};

/// All programs.
pub const PROGRAMS: [&str; 5] = [
    "caisson",
    "caisson-shim",
    "caisson-oci",
    "caisson-vmm",
    "caisson-share",
];

/// What every microVM boots: the kernel, and the file system with the agent in it.
pub const GUEST_FILES: [&str; 2] = ["vmlinux", "agent.erofs"];

/// Builds them; returns the directory they are in.
pub fn run() -> Result<PathBuf> {
    crate::setup::run(crate::setup::Scope::Build)?;
    println!("build: caisson");
    shell::run(cargo().args(["build", "--release", "--package", "caisson"]))?;
    println!("build: the programs that are linked statically");
    let mut small = cargo();
    // with --target the flag does not reach procedural macros, which cannot be static
    small.args(["build", "--release", "--target", shell::TRIPLE]);
    for program in &PROGRAMS[1..] {
        small.args(["--package", program]);
    }
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
    guest()?;
    println!("build: done, in {}", dist.display());
    Ok(dist)
}

/// Where programs look for what every microVM boots: the shipped ones, and those of a debug build.
pub fn guest_directories() -> Result<[PathBuf; 2]> {
    let directories = ["dist/guest", "debug/guest"].map(|d| target().join(d));
    for directory in &directories {
        std::fs::create_dir_all(directory)?;
    }
    Ok(directories)
}

/// Builds what every microVM boots; returns the directory it is in.
pub fn guest() -> Result<PathBuf> {
    let directories = guest_directories()?;
    let kernel = kernel()?;
    for directory in &directories {
        shell::install(&kernel, &directory.join("vmlinux"))?;
    }
    crate::agent::run()?;
    let [shipped, _] = directories;
    Ok(shipped)
}

/// Builds the guest's kernel (3–5 minutes on two cores, then cached); returns the image. `CAISSON_GUEST_KERNEL` names one that
/// was built elsewhere.
pub fn kernel() -> Result<PathBuf> {
    if let Some(image) = std::env::var_os("CAISSON_GUEST_KERNEL") {
        return Ok(image.into());
    }
    crate::setup::run(crate::setup::Scope::Kernel)?;
    let jobs = std::thread::available_parallelism()?.get();
    let source = caisson_guest_kernel::Source::locate(&target().join("guest-kernel"))?;
    let kernel = match caisson_guest_kernel::find(&source, &target())? {
        Some(kernel) => kernel,
        None => {
            println!("build: the guest's kernel (3-5 minutes on two cores, once)");
            caisson_guest_kernel::build(&source, &target(), jobs)?
        }
    };
    Ok(kernel.image())
}
