//! What this host's KVM makes of guest kernels: asked of `caisson-vmm probe` once a boot, then read from a file.
//!
//! ```text
//! EXEC_ROOT/kvm-probe.json   {"key": "boot id, the program's and /dev/kvm's identity", "probe": {…}}
//! ```
//!
//! Only a verdict that says VMs run is kept: what is in the way of the others is for people to remove.

use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use caisson_protocol::vmm::{Probe, Ring0};
use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

const NAME: &str = "kvm-probe.json";
/// Enough for every instruction that the program tries.
const BUDGET_MS: &str = "200";

#[derive(Serialize, Deserialize)]
struct Kept {
    key: String,
    probe: Probe,
}

/// The verdict, from the file below `exec_root` or from the program `vmm`. Blocks for some 10 ms when it has to be found
/// out. A file that cannot be written is no error: it is found out again next time.
pub fn probe(exec_root: &Path, vmm: &Path) -> Result<Probe> {
    let file = exec_root.join(NAME);
    let key = key(vmm);
    if let Some(probe) = key.as_deref().and_then(|key| kept(&file, key)) {
        return Ok(probe);
    }
    let probe = ask(vmm)?;
    if let (Some(key), false) = (key, matches!(probe.ring0, Ring0::Unusable(_))) {
        let kept = Kept { key, probe };
        if let Err(error) = keep(&file, &kept) {
            tracing::debug!(%error, file = %file.display(), "the verdict on KVM is not kept");
        }
        return Ok(kept.probe);
    }
    Ok(probe)
}

/// What the verdict depends on. `None`: there is no telling.
fn key(vmm: &Path) -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let identity = |m: Metadata| {
        let changed = (m.mtime(), m.mtime_nsec());
        format!("{}:{}:{}:{changed:?}", m.dev(), m.ino(), m.size())
    };
    let program = identity(std::fs::metadata(vmm).ok()?);
    // made anew when the module is loaded anew
    let device = std::fs::metadata("/dev/kvm").ok()?;
    Some(format!(
        "{} {program} {}:{}",
        boot.trim(),
        device.ino(),
        device.rdev()
    ))
}

fn kept(file: &Path, key: &str) -> Option<Probe> {
    let kept: Kept = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    (kept.key == key).then_some(kept.probe)
}

fn keep(file: &Path, kept: &Kept) -> io::Result<()> {
    let new = file.with_extension(format!("{}.new", std::process::id()));
    let write = || -> io::Result<()> {
        let mut out = File::options()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&new)?;
        out.write_all(&serde_json::to_vec(kept)?)?;
        std::fs::rename(&new, file)
    };
    write().inspect_err(|_| drop(std::fs::remove_file(&new)))
}

fn ask(vmm: &Path) -> Result<Probe> {
    let unfit = |why: String| {
        Error::new(
            ErrorKind::HostUnfit,
            format!("what this host's KVM can do is not known: {why}"),
        )
    };
    let output = Command::new(vmm)
        .args(["probe", "--budget-ms", BUDGET_MS])
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|e| unfit(format!("{} cannot be run: {e}", vmm.display())))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().last().unwrap_or("it says nothing").to_owned();
        return Err(unfit(format!(
            "{} probe: {}: {said}",
            vmm.display(),
            output.status
        )));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| {
        unfit(format!(
            "{} probe: {e}; is it of another version?",
            vmm.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that counts how often it ran and answers `ring0`.
    fn program(dir: &Path, ring0: &str) -> std::path::PathBuf {
        let path = dir.join("vmm");
        let counter = dir.join("runs");
        let text = format!(
            "#!/bin/sh\necho x >> {}\necho '{{\"ring0\":{ring0},\"took_us\":1}}'\n",
            counter.display()
        );
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o755)
            .open(&path)
            .expect("a program");
        file.write_all(text.as_bytes()).expect("written");
        path
    }

    fn runs(dir: &Path) -> usize {
        std::fs::read_to_string(dir.join("runs")).map_or(0, |text| text.lines().count())
    }

    const NATIVE: &str = r#"{"native":{"instructions_per_second":1}}"#;

    #[test]
    fn found_out_once_until_the_program_changes() {
        if !Path::new("/dev/kvm").exists() {
            eprintln!("skipped: there is no /dev/kvm, so no verdict is kept");
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let vmm = program(dir.path(), NATIVE);
        for _ in 0..3 {
            let probe = probe(dir.path(), &vmm).expect("a verdict");
            assert!(matches!(probe.ring0, Ring0::Native(_)));
        }
        assert_eq!(runs(dir.path()), 1);
        let vmm = program(dir.path(), &format!("{NATIVE} "));
        probe(dir.path(), &vmm).expect("a verdict");
        assert_eq!(runs(dir.path()), 2);
        std::fs::write(dir.path().join(NAME), b"{ half a file").expect("written");
        probe(dir.path(), &vmm).expect("a verdict");
        assert_eq!(runs(dir.path()), 3);
    }

    #[test]
    fn an_obstacle_is_looked_for_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let vmm = program(dir.path(), r#"{"unusable":{"cause":"c","fix":"f"}}"#);
        for _ in 0..2 {
            let probe = probe(dir.path(), &vmm).expect("a verdict");
            assert!(matches!(probe.ring0, Ring0::Unusable(_)));
        }
        assert_eq!(runs(dir.path()), 2);
    }

    #[test]
    fn a_program_that_cannot_answer_is_told_by_name() {
        let error = probe(Path::new("/nowhere"), Path::new("/bin/false")).expect_err("no answer");
        assert_eq!(error.kind, ErrorKind::HostUnfit);
        assert!(error.message.contains("/bin/false"), "{}", error.message);
    }
}
