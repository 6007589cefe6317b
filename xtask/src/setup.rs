//! Installs what is missing, and says so.

use std::process::Command;

use anyhow::{Result, bail};

use crate::shell::{as_root, is_root, on_path};

/// What for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Building and running.
    Build,
    /// Also building the guest's kernel.
    Kernel,
    /// Also what the tests compare with and talk to.
    Test,
}

/// A package and the file that shows it is there.
struct Need {
    package: &'static str,
    sign: &'static str,
    why: &'static str,
}

const fn need(package: &'static str, sign: &'static str, why: &'static str) -> Need {
    Need { package, sign, why }
}

const BUILD: &[Need] = &[
    need(
        "gcc",
        "gcc",
        "links the programs, compiles SQLite and the guest's kernel",
    ),
    need(
        "libc6-dev",
        "/usr/include/stdlib.h",
        "headers for the above",
    ),
    need(
        "busybox-static",
        "/bin/busybox",
        "the default image is made from it",
    ),
];

const KERNEL: &[Need] = &[
    need("make", "make", "builds the guest's kernel"),
    need("flex", "flex", "the kernel's configuration"),
    need("bison", "bison", "the kernel's configuration"),
    need("bc", "bc", "the kernel's timer constants"),
    need("perl", "perl", "the kernel's tables"),
    need("patch", "patch", "guest-kernel/patches"),
    need(
        "libelf-dev",
        "/usr/include/libelf.h",
        "objtool, which checks the kernel's code",
    ),
    need("xz-utils", "xz", "unpacks the kernel's source"),
];

const KERNEL_SOURCE: &[Need] = &[need(
    "linux-source-6.1",
    "/usr/src/linux-source-6.1.tar.xz",
    "the kernel's source",
)];

const TEST: &[Need] = &[
    need(
        "docker.io",
        "docker",
        "the stock command line, and dockerd as reference",
    ),
    need(
        "python3-docker",
        "/usr/lib/python3/dist-packages/docker/__init__.py",
        "Docker's Python SDK as a client",
    ),
    need("docker-registry", "docker-registry", "pull and push"),
    need("skopeo", "skopeo", "exchange of images"),
    need("podman", "podman", "runs containers through caisson-oci"),
    need(
        "containerd",
        "containerd",
        "runs containers through caisson-oci",
    ),
    need("runc", "runc", "comparison"),
    need("crun", "crun", "comparison"),
    need("debootstrap", "debootstrap", "real images"),
    need("e2fsprogs", "mkfs.ext4", "a small disk that fills up"),
    need("util-linux", "setpriv", "terminals and other users"),
    need("procps", "ps", "top"),
    need("qemu-system-x86", "qemu-system-x86_64", "the lab"),
    need("cpio", "cpio", "the lab"),
    need("kmod", "modprobe", "the lab"),
    need("uidmap", "newuidmap", "subordinate ids for user namespaces"),
];

/// Installs missing packages.
fn install(needs: &[Need], optional: bool) -> Result<()> {
    let missing: Vec<&Need> = needs
        .iter()
        .filter(|need| {
            let present = if need.sign.starts_with('/') {
                std::path::Path::new(need.sign).exists()
            } else {
                on_path(need.sign).is_some()
            };
            !present
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("setup: these Debian packages are missing:");
    for need in &missing {
        println!("    {:<18} {}", need.package, need.why);
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    if on_path("apt-get").is_none() || (!is_root() && on_path("sudo").is_none()) {
        bail!(
            "they cannot be installed from here: install the equivalents of {} by hand",
            packages.join(" ")
        );
    }
    let attempt = |packages: &[&str]| {
        let mut command = as_root("apt-get");
        command
            .args(["install", "-y", "-q", "--no-install-recommends"])
            .args(packages);
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("RUNLEVEL", "1");
        println!("setup: {}", crate::shell::show(&command));
        crate::shell::run(&mut command)
    };
    if attempt(&packages).is_ok() {
        return Ok(());
    }
    crate::shell::run(as_root("apt-get").args(["update", "-q"]))?;
    if attempt(&packages).is_ok() {
        return Ok(());
    }
    for package in packages {
        match attempt(&[package]) {
            Err(error) if !optional => return Err(error),
            Err(_) => println!(
                "setup: {package} is not available here; the tests that need it will be skipped"
            ),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Installs what `scope` needs.
pub fn run(scope: Scope) -> Result<()> {
    if on_path("cargo").is_none() && std::env::var_os("CARGO").is_none() {
        bail!("no cargo: install Rust first");
    }
    install(BUILD, false)?;
    if scope == Scope::Kernel {
        install(KERNEL, false)?;
        if std::env::var_os("CAISSON_KERNEL_SOURCE").is_none() {
            install(KERNEL_SOURCE, false)?;
        }
        return Ok(());
    }
    if scope == Scope::Test {
        // apt would start dockerd and the registry as services; the tests start their own
        let keep_quiet = is_root() && !std::path::Path::new("/usr/sbin/policy-rc.d").exists();
        if keep_quiet {
            std::fs::write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n")?;
            let _ = Command::new("chmod")
                .args(["755", "/usr/sbin/policy-rc.d"])
                .status();
        }
        let result = install(TEST, true);
        if keep_quiet {
            let _ = std::fs::remove_file("/usr/sbin/policy-rc.d");
        }
        result?;
    }
    println!("setup: everything is there");
    Ok(())
}
