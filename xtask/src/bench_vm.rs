//! `cargo xtask bench-vm`: our VMM and QEMU's microvm with the same kernel, root file system and machine size, interleaved in
//! one run of the lab.
//!
//! The lab is a processor in software: absolute times mean little there, ratios and counts a lot. What is measured: from the
//! start of the VMM's process through the guest's first program to the process' end, and to the agent's hello; KVM exits on
//! these ways; reading and writing a disk in the guest; 64 MiB through a vsock, each way; private memory of the process beside
//! the guest's. QEMU's vsock is the lab kernel's (vhost-vsock), ours is the VMM's own.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::lab;
use crate::shell::{OWN_PROGRAM, on_path, output, run as run_command, target};
use crate::statistics::{interval, median};

const SCRIPT: &str = include_str!("bench_vm.sh");

/// The guest's first program. `bench` is the kernel's parameter of that name.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox echo reached
now() { /bin/busybox awk '{print int($1 * 1000000)}' /proc/uptime; }
measure() {
    /bin/busybox sh -c 'echo 3 > /proc/sys/vm/drop_caches'
    began=$(now); what=$1; shift
    "$@" 2>/dev/null >/dev/null && /bin/busybox sync && /bin/busybox echo "$what $(($(now) - began))"
}
four_readers() {
    for part in 0 1 2 3; do
        /bin/busybox dd if=/dev/vdb of=/dev/null bs=4k iflag=direct skip=$((part * 8192)) count=1024 &
    done
    wait
}
case $bench in
block | vsock)
    /bin/busybox mount -t proc proc /proc
    /bin/busybox mount -t devtmpfs dev /dev
    ;;
esac
case $bench in
block)
    measure sequential_read /bin/busybox dd if=/dev/vdb of=/dev/null bs=1M count=192
    measure sequential_write /bin/busybox dd if=/dev/zero of=/dev/vdb bs=1M count=64
    measure single_4k_reads /bin/busybox dd if=/dev/vdb of=/dev/null bs=4k iflag=direct count=3000
    measure single_4k_writes /bin/busybox dd if=/dev/zero of=/dev/vdb bs=4k oflag=direct count=3000
    measure four_4k_readers four_readers
    ;;
vsock)
    measure vsock_64_mib_to_host /bin/socat -u -b 65536 OPEN:/dev/zero,readbytes=67108864 VSOCK-CONNECT:2:5000
    measure vsock_64_mib_to_guest /bin/socat -u -b 65536 VSOCK-CONNECT:2:5001 OPEN:/dev/null
    ;;
idle) /bin/busybox sleep 1000 ;;
esac
exec /bin/busybox reboot -f
"#;

/// What to measure, and how often.
#[derive(clap::Args)]
pub struct Options {
    /// Rounds; each measures both VMMs once
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Use these programs rather than building
    #[arg(long)]
    programs: Option<PathBuf>,
}

/// Runs the measurements in the lab and prints a table.
pub fn run(options: &Options) -> Result<()> {
    if let Some(reason) = lab::missing() {
        bail!("{reason}");
    }
    let programs = match &options.programs {
        Some(directory) => directory.canonicalize()?,
        None => crate::build::run()?,
    };
    let payload = target().join("lab/bench-payload");
    if payload.exists() {
        fs::remove_dir_all(&payload)?;
    }
    fs::create_dir_all(payload.join("qemu/lib"))?;
    for (from, to) in [
        (programs.join("caisson-vmm"), "caisson-vmm"),
        (programs.join("guest/vmlinux"), "vmlinux"),
        (programs.join("guest/agent.erofs"), "agent.erofs"),
    ] {
        fs::copy(&from, payload.join(to))
            .with_context(|| format!("cannot copy {}", from.display()))?;
    }
    carry_qemu(&payload.join("qemu"))?;
    guest_root(&payload)?;
    fs::write(payload.join("bench.sh"), SCRIPT)?;
    let mut machine = Command::new(OWN_PROGRAM);
    machine
        // of several processors QEMU delivers interrupts between one another where AMD-V holds them back
        .args(["lab", "--cpus", "1", "--memory-mib", "3000", "--payload"])
        .arg(&payload)
        .args(["--", &format!("sh ./bench.sh {}", options.rounds)]);
    let mut machine = machine
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the lab")?;
    let mut lines = String::new();
    for line in BufReader::new(machine.stdout.take().expect("piped")).lines() {
        let line = line.context("the lab's output")?;
        println!("{line}");
        lines.push_str(&line);
        lines.push('\n');
    }
    let status = machine.wait()?;
    if !status.success() {
        bail!("the measurements ended early: {status}");
    }
    print!("{}", table(&lines, options.rounds)?);
    Ok(())
}

/// QEMU as this machine has it, with the libraries that it is linked with.
fn carry_qemu(into: &Path) -> Result<()> {
    let program =
        on_path("qemu-system-x86_64").context("qemu-system-x86_64: install qemu-system-x86")?;
    fs::copy(&program, into.join("qemu-system-x86_64"))?;
    // the lab's own C library goes with its own dynamic loader
    carry_libraries(&program, &into.join("lib"), |name| {
        !name.starts_with("libc.so")
    })?;
    let share = into.join("share");
    fs::create_dir_all(&share)?;
    for firmware in [
        "qboot.rom",
        "bios-microvm.bin",
        "pvh.bin",
        "linuxboot_dma.bin",
    ] {
        fs::copy(
            Path::new("/usr/share/qemu").join(firmware),
            share.join(firmware),
        )
        .with_context(|| format!("QEMU's {firmware}"))?;
    }
    Ok(())
}

/// Copies the libraries that a program is linked with, of those that are wanted.
fn carry_libraries(program: &Path, into: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let linked = output(Command::new("ldd").arg(program))?;
    let paths = linked
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    for path in paths.map(Path::new) {
        let name = path.file_name().context("ldd named no file")?;
        if wanted(&name.to_string_lossy()) {
            fs::copy(path, into.join(name))?;
        }
    }
    Ok(())
}

/// A root file system of busybox, socat and the program above.
fn guest_root(payload: &Path) -> Result<()> {
    let root = payload.join("root");
    for directory in ["bin", "dev", "lib", "proc", "run", "sys", "tmp"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))
        .context("/bin/busybox: install busybox-static")?;
    let socat = on_path("socat").context("socat: install socat")?;
    fs::copy(&socat, root.join("bin/socat"))?;
    carry_libraries(&socat, &root.join("lib"), |_| true)?;
    std::os::unix::fs::symlink("lib", root.join("lib64"))?;
    fs::write(root.join("init"), INIT)?;
    run_command(Command::new("chmod").arg("755").arg(root.join("init")))?;
    run_command(
        Command::new("mknod")
            .arg(root.join("dev/console"))
            .args(["c", "5", "1"]),
    )?;
    run_command(
        Command::new("mknod")
            .arg(root.join("dev/null"))
            .args(["c", "1", "3"]),
    )?;
    caisson_blockfs::erofs::from_directory(&root, &payload.join("bench.erofs"))?;
    fs::remove_dir_all(root)?;
    Ok(())
}

/// `NAME VMM VALUE UNIT` lines as a table of medians and ratios.
fn table(lines: &str, rounds: usize) -> Result<String> {
    let mut values: BTreeMap<(String, String), BTreeMap<String, Vec<f64>>> = BTreeMap::new();
    for line in lines.lines() {
        let [name, vmm, value, unit] = line.split(' ').collect::<Vec<_>>()[..] else {
            continue;
        };
        let Ok(value) = value.parse() else { continue };
        let of_vmm = values.entry((name.into(), unit.into())).or_default();
        of_vmm.entry(vmm.into()).or_default().push(value);
    }
    if values.is_empty() {
        bail!("the lab printed no figures:\n{lines}");
    }
    let mut text = format!(
        "\n| {rounds} rounds | caisson-vmm | QEMU microvm | ratio (95 %) |\n|---|---|---|---|\n"
    );
    for ((name, unit), of) in &values {
        let what = name.replace('_', " ");
        let (ours, qemu) = match (of.get("caisson"), of.get("qemu")) {
            (Some(ours), Some(qemu)) => (ours, qemu),
            // QEMU does not know when its guest reaches what
            (Some(ours), None) if name.starts_with("phase_") => {
                text.push_str(&format!("| {what}, {unit} | {:.0} | | |\n", median(ours)));
                continue;
            }
            _ => bail!("{name} was measured for one VMM only:\n{lines}"),
        };
        let ratios: Vec<f64> = ours.iter().zip(qemu).map(|(a, b)| a / b).collect();
        let (low, high) = interval(&ratios);
        text.push_str(&format!(
            "| {what}, {unit} | {:.0} | {:.0} | {:.2} ({low:.2}–{high:.2}) |\n",
            median(ours),
            median(qemu),
            median(&ratios),
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_become_ratios_of_the_same_round() {
        let lines =
            "noise\nboot caisson 10 us\nboot qemu 20 us\nboot qemu 40 us\nboot caisson 20 us\n";
        let table = table(lines, 2).expect("two figures of each");
        assert!(table.contains("| boot, us | 15 | 30 | 0.50"), "{table}");
        assert!(super::table("boot caisson 1 us\n", 1).is_err());
        assert!(super::table("phase_built caisson 1 us\n", 1).is_ok());
        assert!(super::table("", 1).is_err());
    }
}
