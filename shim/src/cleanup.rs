//! `caisson-shim --cleanup`: what a killed shim could not do itself.
//!
//! Its mounts went with it and so did the first process; what may be left is the cgroup and, without a PID namespace,
//! processes in it. Idempotent. The caller makes sure that the shim is gone.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use caisson_jail::cgroup::Cgroup;
use caisson_protocol::layout::{VM, exit_record};
use caisson_protocol::{ExitStatus, INIT};

use crate::records;

const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Kills what lives, removes the cgroup, and writes the exit record that is missing.
pub fn clean_up(dir: &Path) -> anyhow::Result<()> {
    let record = records::read_shim_record(dir)
        .with_context(|| format!("cannot read what {} was", dir.display()))?;
    let Some(record) = record else { return Ok(()) };
    let cgroup = Cgroup::new(&record.cgroups_path)?;
    let give_up_at = Instant::now() + KILL_TIMEOUT;
    loop {
        // A cgroup that is not there has no processes.
        let living = cgroup.pids().unwrap_or_default();
        if living.is_empty() {
            break;
        }
        if Instant::now() > give_up_at {
            bail!("processes {living:?} do not end although they were killed");
        }
        cgroup.kill()?;
        sleep(Duration::from_millis(5));
    }
    // Of a virtual machine: the kernel's killer took its VMM, and the shim went with it or before it.
    let oom_killed = dir.join(VM).exists() && cgroup.oom_kills().is_ok_and(|kills| kills > 0);
    cgroup.remove()?;
    if !exit_record(dir, INIT).exists() {
        let killed = ExitStatus {
            code: 137,
            oom_killed,
            at: SystemTime::now(),
        };
        records::write_exit(dir, INIT, &killed)?;
    }
    Ok(())
}
