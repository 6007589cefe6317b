//! `start`, `kill`, `delete`, `pause`, `resume`.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use caisson_jail::{HookKind, release_fifo, run_hooks};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::send_signal;
use crate::store::{DOES_NOT_EXIST, Entry, Record, Status, Store};

/// How long `delete` waits for killed processes to be gone.
const KILL_WAIT: Duration = Duration::from_secs(10);

/// `start`.
pub fn start(store: &Store, id: &str) -> Result<()> {
    let entry = store.find(id)?;
    let record = entry.record()?;
    match (entry.status(record.as_ref())?, record) {
        (Status::Created, Some(record)) => {
            let pidfd = record
                .open_init()
                .ok_or_else(|| anyhow!("cannot start a container that has stopped"))?;
            release_fifo(&entry.fifo(), &pidfd)?;
            let spec = entry.spec()?;
            Ok(run_hooks(
                &spec,
                HookKind::Poststart,
                id,
                Some(Pid::from_raw(record.pid)),
                &record.bundle,
            )?)
        }
        (Status::Stopped, _) => bail!("cannot start a container that has stopped"),
        (Status::Creating, _) | (_, None) => {
            bail!("cannot start a container that is being created")
        }
        (Status::Running | Status::Paused, _) => bail!("cannot start an already running container"),
    }
}

/// `kill`.
pub fn kill(store: &Store, id: &str, signal: &str, all: bool) -> Result<()> {
    let number = parse_signal(signal)?;
    let entry = store.find(id)?;
    let record = entry.record()?;
    let cgroup = entry.cgroup(record.as_ref())?;
    if all {
        if number == libc_kill() {
            return Ok(cgroup.kill()?);
        }
        for pid in cgroup.pids()? {
            ignore_gone(send_signal(pid, number))?;
        }
        return Ok(());
    }
    let status = entry.status(record.as_ref())?;
    let Some(record) = record.filter(|_| status != Status::Stopped) else {
        bail!("container not running")
    };
    // Without a pid namespace of its own nothing else ends the rest of it.
    if number == libc_kill() && !owns_pid_namespace(&entry.spec()?) {
        return Ok(cgroup.kill()?);
    }
    match send_signal(Pid::from_raw(record.pid), number) {
        Err(Errno::ESRCH) => bail!("container not running"),
        other => other.map_err(|e| anyhow!("unable to signal init: {}", e.desc()))?,
    }
    if number == libc_kill() && status == Status::Paused {
        // A frozen process does not die.
        let _ = cgroup.thaw();
    }
    Ok(())
}

fn ignore_gone(sent: Result<(), Errno>) -> Result<()> {
    match sent {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(e) => Err(anyhow!(
            "unable to signal a process of the container: {}",
            e.desc()
        )),
    }
}

fn libc_kill() -> i32 {
    Signal::SIGKILL as i32
}

fn owns_pid_namespace(spec: &Spec) -> bool {
    let list = spec
        .linux()
        .as_ref()
        .and_then(|l| l.namespaces().as_deref())
        .unwrap_or_default();
    list.iter().any(|n| {
        n.typ() == LinuxNamespaceType::Pid
            && n.path().as_ref().is_none_or(|p| p.as_os_str().is_empty())
    })
}

/// `SIGTERM`, `TERM`, `term` or `15`.
fn parse_signal(text: &str) -> Result<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) {
            Ok(number)
        } else {
            Err(anyhow!("unknown signal {text:?}"))
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") {
        upper
    } else {
        format!("SIG{upper}")
    };
    if let Some(offset) = name.strip_prefix("SIGRTMIN") {
        let offset = if offset.is_empty() {
            Some(0)
        } else {
            offset.strip_prefix('+').and_then(|n| n.parse::<i32>().ok())
        };
        return offset
            .map(|n| 34 + n)
            .filter(|n| *n <= 64)
            .ok_or_else(|| anyhow!("unknown signal {text:?}"));
    }
    name.parse::<Signal>()
        .map(|s| s as i32)
        .map_err(|_| anyhow!("unknown signal {text:?}"))
}

/// `delete`.
pub fn delete(store: &Store, id: &str, force: bool) -> Result<()> {
    let entry = match store.find(id) {
        Err(e) if force && e.to_string() == DOES_NOT_EXIST => return Ok(()),
        other => other?,
    };
    let record = entry.record()?;
    match entry.status(record.as_ref())? {
        Status::Stopped => {}
        Status::Created => end(&entry, record.as_ref())?,
        _ if force => end(&entry, record.as_ref())?,
        status => bail!(
            "cannot delete container {id} that is not stopped: {}",
            status.name()
        ),
    }
    let spec = entry.spec();
    match entry.cgroup(record.as_ref()) {
        Ok(cgroup) => {
            // Processes init left behind, where it had no pid namespace.
            if !cgroup.pids().unwrap_or_default().is_empty() {
                let _ = cgroup.kill();
            }
            cgroup.remove()?;
        }
        // Claimed, and nothing made yet.
        Err(_) if record.is_none() => {}
        Err(e) => return Err(e),
    }
    entry.remove()?;
    match (spec, record) {
        (Ok(spec), Some(record)) => Ok(run_hooks(
            &spec,
            HookKind::Poststop,
            id,
            None,
            &record.bundle,
        )?),
        _ => Ok(()),
    }
}

/// Kills everything and waits until init is gone.
fn end(entry: &Entry, record: Option<&Record>) -> Result<()> {
    // A killed create leaves a directory without a spec: nothing can be running.
    let Ok(cgroup) = entry.cgroup(record) else {
        return Ok(());
    };
    let _ = cgroup.kill();
    let Some(record) = record else { return Ok(()) };
    if let Some(pidfd) = record.open_init() {
        let _ = send_signal(Pid::from_raw(record.pid), libc_kill());
        let _ = cgroup.thaw();
        wait_gone(record, &pidfd)?;
    }
    Ok(())
}

fn wait_gone(record: &Record, pidfd: &std::os::fd::OwnedFd) -> Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let deadline = Instant::now() + KILL_WAIT;
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        if let Ok(1..) = poll(&mut fds, timeout) {
            return Ok(());
        }
    }
    bail!(
        "container init (process {}) is still there {}s after being killed",
        record.pid,
        KILL_WAIT.as_secs()
    )
}

/// `pause`.
pub fn pause(store: &Store, id: &str) -> Result<()> {
    let entry = store.find(id)?;
    let record = entry.record()?;
    match entry.status(record.as_ref())? {
        Status::Running | Status::Created => Ok(entry.cgroup(record.as_ref())?.freeze()?),
        status => bail!("container not running or created: {}", status.name()),
    }
}

/// `resume`.
pub fn resume(store: &Store, id: &str) -> Result<()> {
    let entry = store.find(id)?;
    let record = entry.record()?;
    let cgroup = entry.cgroup(record.as_ref())?;
    // A created container can be frozen too, and says so only here.
    match entry.status(record.as_ref())? {
        Status::Paused => Ok(cgroup.thaw()?),
        Status::Created if cgroup.is_frozen()? => Ok(cgroup.thaw()?),
        _ => bail!("container not paused"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_many_names() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("KILL", 9),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("64", 64),
        ] {
            assert_eq!(parse_signal(text).expect(text), number);
        }
        for bad in ["0", "65", "SIGNOPE", "", "-9", "RTMIN+99"] {
            assert!(parse_signal(bad).is_err(), "{bad}");
        }
    }
}
