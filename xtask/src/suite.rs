//! `cargo xtask test`: every suite, one summary line.
//!
//! Parses libtest's `test result:` lines, which the end-to-end suite prints as well. The last line printed is always
//! `N passed, N failed, N skipped`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::shell::{OWN_PROGRAM, cargo, is_root, on_path, target};
use crate::{images, lab, setup};

/// What to run.
#[derive(clap::Args)]
pub struct Options {
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Only the end-to-end cases
    #[arg(long)]
    e2e: bool,
    /// Only units and contract suites
    #[arg(long, conflicts_with = "e2e")]
    units: bool,
    /// Only the cases that run in the lab
    #[arg(long, conflicts_with_all = ["e2e", "units"])]
    lab: bool,
    /// Do not install packages or make images: skip what misses them
    #[arg(long)]
    offline: bool,
    /// Run the end-to-end cases against the programs of `cargo xtask build` rather than a debug build
    #[arg(long)]
    release: bool,
}

#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
    reasons: BTreeMap<String, u64>,
    failures: Vec<String>,
    broken: Vec<String>,
}

/// Runs them. Fails when a test failed.
pub fn run(options: &Options) -> Result<()> {
    let began = Instant::now();
    if !options.offline {
        setup::run(setup::Scope::Test)?;
        // one of the units goes through its instructions
        crate::build::kernel()?;
    }
    let mut tally = Tally::default();
    let filter: Vec<&str> = options.filter.as_deref().into_iter().collect();
    if !options.e2e && !options.lab {
        let mut units = cargo();
        units
            .arg("test")
            .args(UNITS)
            .args(["--no-fail-fast", "--", "--skip", CONTRACT_IN_VMS])
            .args(&filter);
        suite("units and contracts", &mut [units], &mut tally)?;
    }
    if !options.units {
        if !options.offline
            && !options.lab
            && is_root()
            && let Err(error) = images::run()
        {
            println!("images: {error:#}; the cases that need them will be skipped");
        }
        let binaries = if options.release {
            crate::build::run()?
        } else {
            // the selection that the units are built with: another one has other features, and builds most crates again
            crate::shell::run(cargo().arg("build").args(UNITS).arg("--all-targets"))?;
            target().join("debug")
        };
        let guest = crate::build::guest()?;
        if is_root() {
            if !options.lab {
                let mut cases = cargo();
                cases
                    .args(["test", "-p", "caisson-tests", "--no-fail-fast", "--"])
                    .args(&filter);
                cases
                    .env("CAISSON_BIN_DIR", &binaries)
                    .env("CAISSON_GUEST_DIR", &guest)
                    .env("CAISSON_TEST_IMAGES", images::directory())
                    .env("CAISSON_TEST_VM", vm_half_here(&mut tally))
                    .env("CAISSON_TEST_PATIENCE", SLOW_PATIENCE.to_string());
                suite("end to end", &mut [cases], &mut tally)?;
            }
            if options.filter.is_none() {
                in_the_lab(&binaries, &guest, &mut tally)?;
            }
        } else {
            tally.skipped += 1;
            *tally
                .reasons
                .entry("the end-to-end cases start daemons and containers: run as root".into())
                .or_default() += 1;
        }
    }
    report(&tally, began);
    if tally.failed > 0 || !tally.broken.is_empty() {
        std::process::exit(1);
    }
    Ok(())
}

/// The packages whose tests are units and contracts.
const UNITS: [&str; 3] = ["--workspace", "--exclude", "caisson-tests"];

/// The vm half of the runtime's contract: a boot each, in the lab.
const CONTRACT_IN_VMS: &str = "::microvm::";

/// Modules of the contract, for each of the lab's machines.
const LAB_CONTRACT: [&str; LABS] = ["life:: load:: files::", "loss:: mounts:: streams::"];

/// Which cases are repeated behind a microVM on this machine itself.
fn vm_half_here(tally: &mut Tally) -> &'static str {
    if Path::new("/dev/kvm").exists() {
        return "core";
    }
    tally.skipped += 1;
    let reason = "microVMs on this machine itself: it has no /dev/kvm (all cases run in the lab)";
    *tally.reasons.entry(reason.into()).or_default() += 1;
    "off"
}

/// Cases that depend on the host's cgroups, mounts and kernel, once more on cgroup v2 and an older kernel.
const LAB_CONTAINER_CASES: [&str; 4] = [
    "limits::",
    "wall::user_namespace",
    "wall::device",
    "mounts::bind_propagation",
];

/// What takes a second elsewhere takes several in the lab, which is a processor in software, and in microVMs on hosts that emulate
/// their kernels.
const SLOW_PATIENCE: u32 = 6;

/// Cases that want several processors. QEMU delivers interrupts of one emulated processor to another where AMD-V holds them back,
/// which in a few minutes of microVMs ends the lab's kernel: so these have a machine to themselves, and all others have one processor.
const LAB_SMP_CASES: [&str; 2] = ["vm::vcpus_follow", "vm::two_machines"];

/// The older of two docker command lines, where cases look for it.
const DEBIANS_DOCKER: &str = "/usr/bin/docker";

/// Machines that share the other cases: one for each processor that CI has.
const LABS: usize = 2;

/// The vm half of every case, and the container half of some, on a machine with a hardware-like /dev/kvm and cgroup v2.
fn in_the_lab(binaries: &Path, guest: &Path, tally: &mut Tally) -> Result<()> {
    if let Some(reason) = lab::missing() {
        tally.skipped += 1;
        *tally.reasons.entry(reason).or_default() += 1;
        return Ok(());
    }
    let payload = target().join("lab/payload");
    let bin = payload.join("bin");
    if payload.exists() {
        std::fs::remove_dir_all(&payload)?;
    }
    std::fs::create_dir_all(bin.join("guest"))?;
    let strip = |from: &Path, to: &Path| {
        crate::shell::run(Command::new("strip").arg("-o").arg(to).arg(from))
    };
    for program in crate::build::PROGRAMS {
        strip(&binaries.join(program), &bin.join(program))?;
    }
    strip(
        &test_program(&["-p", "caisson-tests"], "e2e")?,
        &payload.join("e2e"),
    )?;
    strip(
        &test_program(&UNITS, "contract")?,
        &payload.join("contract"),
    )?;
    if let Some(docker) = on_path("docker") {
        std::fs::copy(docker, bin.join("docker"))?;
    }
    if Path::new(DEBIANS_DOCKER).exists() {
        std::fs::copy(DEBIANS_DOCKER, payload.join("debians-docker"))?;
    }
    for file in crate::build::GUEST_FILES {
        std::fs::copy(guest.join(file), bin.join("guest").join(file))?;
    }
    let images = payload.join("images");
    std::fs::create_dir(&images)?;
    for archive in images::archives() {
        std::fs::copy(
            &archive,
            images.join(archive.file_name().unwrap_or_default()),
        )?;
    }
    lab::prepare_all(&target())?;
    let lab = |cpus: &str, script: String| -> Result<Command> {
        let mut machine = Command::new(OWN_PROGRAM);
        machine
            .args(["lab", "--cpus", cpus, "--memory-mib", "6000"])
            .args(["--spare-mib", "6000", "--timeout-s", "3000", "--payload"])
            .arg(&payload)
            .arg("--")
            .arg(format!(
                "export PATH=/payload/bin:$PATH CAISSON_BIN_DIR=/payload/bin CAISSON_TEST_IMAGES=/payload/images \
                 CAISSON_TEST_PATIENCE={SLOW_PATIENCE} CAISSON_TEST_VM=each; \
                 [ ! -e debians-docker ] || cp debians-docker {DEBIANS_DOCKER}; code=0; {script} exit $code"
            ));
        Ok(machine)
    };
    let each = |cases: &[&str], prefix: &str| -> String {
        cases
            .iter()
            .map(|filter| format!("{prefix} ./e2e --color never {filter} || code=1; "))
            .collect()
    };
    let containers = each(&LAB_CONTAINER_CASES, "CAISSON_TEST_VM=off");
    let but: String = LAB_SMP_CASES.map(|case| format!(" --skip {case}")).concat();
    let mut machines = Vec::new();
    for (part, modules) in (1..).zip(LAB_CONTRACT) {
        let modules = modules.replace("::", CONTRACT_IN_VMS);
        machines.push(lab(
            "1",
            format!(
                "export CAISSON_TEST_SHARD={part}/{LABS}; {containers} \
                 CAISSON_SHIM=/payload/bin/caisson-shim CAISSON_VMM=/payload/bin/caisson-vmm \
                 CAISSON_SHARE=/payload/bin/caisson-share CAISSON_GUEST_DIR=/payload/bin/guest \
                 ./contract --color never --ignored --test-threads 2 {modules} || code=1; \
                 ./e2e --color never --test-threads 2{but} || code=1;"
            ),
        )?);
    }
    suite(
        "end to end in the lab: microVMs on hardware-like KVM, cgroup v2, Linux 6.1",
        &mut machines,
        tally,
    )?;
    suite(
        "end to end in the lab: microVMs of several processors",
        &mut [lab("4", each(&LAB_SMP_CASES, ""))?],
        tally,
    )
}

/// The test program that cargo built under this name.
fn test_program(packages: &[&str], name: &str) -> Result<PathBuf> {
    let listed = crate::shell::output(cargo().arg("test").args(packages).args([
        "--test",
        name,
        "--no-run",
        "--message-format=json",
    ]))?;
    listed
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
        .with_context(|| format!("cargo built no test program {name}"))
}

/// Runs commands side by side and counts what their tests say.
fn suite(name: &str, commands: &mut [Command], tally: &mut Tally) -> Result<()> {
    println!("\n── {name} ─────────────────────────────────────────");
    let before = (tally.passed, tally.failed);
    let (said, lines) = mpsc::channel();
    let mut children = Vec::new();
    for command in commands {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {name}"))?;
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let said = said.clone();
        std::thread::spawn(move || {
            // the end of this thread's sender ends the loop below; a line that cannot be read ends the output
            for line in output.split(b'\n').map_while(|line| line.ok()) {
                let _ = said.send(line);
            }
        });
        children.push(child);
    }
    drop(said);
    for line in lines {
        let line = String::from_utf8_lossy(&line);
        note(&line, tally);
        if !line.contains("ignored (vm isolation") && !line.is_empty() {
            println!("{line}");
        }
        std::io::stdout().flush()?;
    }
    for mut child in children {
        let status = child.wait()?;
        if before == (tally.passed, tally.failed) && !status.success() {
            bail!("{name}: no test ran ({status})");
        }
        if !status.success() {
            tally.broken.push(name.to_string());
        }
    }
    Ok(())
}

fn note(line: &str, tally: &mut Tally) {
    if let Some(counts) = line.strip_prefix("test result: ") {
        let count = |what: &str| {
            let field = counts
                .split(['.', ';'])
                .map(str::trim)
                .find(|field| field.ends_with(what));
            field
                .and_then(|field| field.split(' ').next()?.parse::<u64>().ok())
                .unwrap_or(0)
        };
        tally.passed += count("passed");
        tally.failed += count("failed");
        tally.skipped += count("ignored");
    } else if let Some(rest) = line.strip_prefix("skipped ") {
        if let Some((count, reason)) = rest.split_once(" × ") {
            *tally.reasons.entry(reason.to_string()).or_default() +=
                count.parse::<u64>().unwrap_or(1);
        }
    } else if let Some(rest) = line.strip_prefix("test ") {
        if let Some(name) = rest.strip_suffix("... FAILED") {
            tally.failures.push(name.trim().to_string());
        } else if let Some((name, reason)) = rest.split_once("... ignored, ") {
            *tally
                .reasons
                .entry(format!("{reason} ({})", name.trim()))
                .or_default() += 1;
        } else if let Some(name) = rest.strip_suffix("... ignored") {
            *tally
                .reasons
                .entry(format!("documentation only ({})", name.trim()))
                .or_default() += 1;
        }
    }
}

fn report(tally: &Tally, began: Instant) {
    println!(
        "\n── summary ({} s) ─────────────────────────────────────────",
        began.elapsed().as_secs()
    );
    for (reason, count) in &tally.reasons {
        println!("skipped {count} × {reason}");
    }
    for name in &tally.failures {
        println!("failed {name}");
    }
    for name in &tally.broken {
        println!("suite with failures: {name}");
    }
    let failed = if tally.failed == 0 && !tally.broken.is_empty() {
        1
    } else {
        tally.failed
    };
    println!(
        "{} passed, {failed} failed, {} skipped",
        tally.passed, tally.skipped
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_summed() {
        let mut tally = Tally::default();
        note(
            "test result: ok. 12 passed; 1 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.1s",
            &mut tally,
        );
        note(
            "test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 9 filtered out",
            &mut tally,
        );
        assert_eq!((tally.passed, tally.failed, tally.skipped), (14, 5, 3));
    }

    #[test]
    fn reasons_and_failures_are_kept() {
        let mut tally = Tally::default();
        note("skipped 7 × no registry", &mut tally);
        note("test a::b ... FAILED", &mut tally);
        note("test c ... ignored, needs root", &mut tally);
        assert_eq!(tally.reasons["no registry"], 7);
        assert_eq!(tally.reasons["needs root (c)"], 1);
        assert_eq!(tally.failures, ["a::b"]);
    }
}
