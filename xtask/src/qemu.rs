//! Which QEMU the lab runs on.
//!
//! QEMU 7.2, which Debian 12 has, corrupts the memory of the lab's kernel when several virtual machines run in it; 10.0, which
//! its backports have, does not. A backport is unpacked below `target/lab`, nothing is installed:
//!
//! ```text
//! target/lab/qemu/
//!   backports.list, lists/   apt's view of the backports alone
//!   root/                    the packages, unpacked; their libraries are those of the installed QEMU
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::shell::{on_path, output, run};

const PROGRAM: &str = "qemu-system-x86_64";
/// The oldest that several virtual machines were seen to run in.
const MAJOR_MIN: u32 = 10;
const PACKAGES: [&str; 4] = [
    "qemu-system-x86",
    "qemu-system-common",
    "qemu-system-data",
    "seabios",
];

/// A command that runs QEMU for x86-64, with its firmware found.
pub fn command(home: &Path) -> Result<Command> {
    let installed = on_path(PROGRAM).context("qemu-system-x86_64: install qemu-system-x86")?;
    let version = major(&installed)?;
    if version >= MAJOR_MIN {
        return Ok(Command::new(installed));
    }
    let root = home.join("qemu/root");
    if !root.exists()
        && let Err(error) = backport(&home.join("qemu"))
    {
        eprintln!(
            "lab: QEMU {version} it is, which may crash with several microVMs: no newer one: {error:#}"
        );
        return Ok(Command::new(installed));
    }
    let mut command = Command::new(root.join("usr/bin").join(PROGRAM));
    for firmware in ["qemu", "seabios"] {
        command.arg("-L").arg(root.join("usr/share").join(firmware));
    }
    command.env(
        "QEMU_MODULE_DIR",
        root.join("usr/lib/x86_64-linux-gnu/qemu"),
    );
    Ok(command)
}

fn major(program: &Path) -> Result<u32> {
    let said = output(Command::new(program).arg("--version"))?;
    parse_major(&said).with_context(|| format!("{} --version says {said}", program.display()))
}

fn parse_major(said: &str) -> Option<u32> {
    let number = said.split("version ").nth(1)?;
    number.split('.').next()?.parse().ok()
}

/// Unpacks the QEMU of this Debian's backports into `home/root`, which appears only when it runs.
fn backport(home: &Path) -> Result<()> {
    eprintln!("lab: fetching a newer QEMU from Debian's backports");
    let _ = fs::remove_dir_all(home);
    for directory in ["lists/partial", "debs", "unpacked"] {
        fs::create_dir_all(home.join(directory))?;
    }
    let codename = fs::read_to_string("/etc/os-release")?
        .lines()
        .find_map(|l| l.strip_prefix("VERSION_CODENAME=").map(str::to_owned))
        .context("/etc/os-release names no VERSION_CODENAME")?;
    let mirrors = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
        "Label: Debian",
        &format!("Codename: {codename}"),
    ]))?;
    let mirror = mirrors
        .lines()
        .next()
        .with_context(|| format!("apt knows no mirror of Debian {codename}"))?;
    let list = home.join("backports.list");
    fs::write(&list, format!("deb {mirror} {codename}-backports main\n"))?;
    let apt = || {
        let mut apt = Command::new("apt-get");
        apt.arg("-qq")
            .args(["-o", &format!("Dir::Etc::SourceList={}", list.display())])
            .args(["-o", "Dir::Etc::SourceParts=/dev/null"])
            .args([
                "-o",
                &format!("Dir::State::Lists={}", home.join("lists").display()),
            ])
            .args(["-t", &format!("{codename}-backports")])
            .current_dir(home.join("debs"))
            .stderr(Stdio::null());
        apt
    };
    run(apt().arg("update"))?;
    run(apt().arg("download").args(PACKAGES))?;
    let unpacked = home.join("unpacked");
    let debs: Vec<PathBuf> = fs::read_dir(home.join("debs"))?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    ensure!(!debs.is_empty(), "apt-get download left no package");
    for deb in debs {
        run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&unpacked))?;
    }
    major(&unpacked.join("usr/bin").join(PROGRAM))?;
    fs::rename(unpacked, home.join("root"))?;
    fs::remove_dir_all(home.join("debs"))?;
    fs::remove_dir_all(home.join("lists"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_debian_and_ubuntu_print_them() {
        let debian =
            "QEMU emulator version 7.2.19 (Debian 1:7.2+dfsg-7+deb12u15)\nCopyright (c) 2003-2022";
        assert_eq!(parse_major(debian), Some(7));
        assert_eq!(
            parse_major("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)"),
            Some(10)
        );
        assert_eq!(parse_major("qemu: not found"), None);
    }
}
