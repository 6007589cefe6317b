//! The processes in a cgroup: who they are, freezing, thawing and killing them, and moving one in.
//!
//! ```text
//! v2      cgroup.freeze 0|1, done when cgroup.events says "frozen"; cgroup.kill (Linux 5.14) also kills the frozen
//! v1      freezer.state FROZEN|THAWED, FREEZING until done; a frozen process does not die before it is thawed
//! hybrid  both may be there: v2's is used, a v1 freeze by somebody else is seen and undone
//! ```

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::error::Error;
use super::files;

const FREEZE_LIMIT: Duration = Duration::from_secs(10);
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Every process of the cgroup `dir` and of those below it.
pub fn pids(dir: &Path) -> Result<Vec<Pid>, Error> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        found.extend(direct_pids(&dir)?);
        todo.extend(files::children(&dir)?);
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn direct_pids(dir: &Path) -> Result<Vec<Pid>, Error> {
    let path = dir.join("cgroup.procs");
    let text = match files::read_if_there(&path) {
        Ok(text) => text.unwrap_or_default(),
        // cgroup.procs of a threaded cgroup cannot be read; its domain's lists the same processes.
        Err(Error::Read { source, .. }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            String::new()
        }
        Err(e) => return Err(e),
    };
    text.lines()
        .map(|line| {
            line.parse().map(Pid::from_raw).map_err(|_| Error::Parse {
                path: path.clone(),
                content: line.to_owned(),
            })
        })
        // 0: a process of a pid namespace that we do not see into.
        .filter(|pid| !matches!(pid, Ok(pid) if pid.as_raw() == 0))
        .collect()
}

/// Freezes or thaws a v2 cgroup and waits until that is so.
pub fn set_frozen_v2(dir: &Path, frozen: bool) -> Result<(), Error> {
    files::write(&dir.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
    let path = dir.join("cgroup.events");
    let deadline = Instant::now() + FREEZE_LIMIT;
    loop {
        // Opened before it is read: a change after the read wakes the poll.
        let file = std::fs::File::open(&path).map_err(|source| Error::Read {
            path: path.clone(),
            source,
        })?;
        let text = std::io::read_to_string(&file).map_err(|source| Error::Read {
            path: path.clone(),
            source,
        })?;
        if text
            .lines()
            .any(|l| l == if frozen { "frozen 1" } else { "frozen 0" })
        {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(freeze_timeout(dir, frozen));
        }
        let mut wait = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
        let timeout = PollTimeout::try_from(left.min(Duration::from_millis(500)))
            .unwrap_or(PollTimeout::ZERO);
        match poll(&mut wait, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => {
                return Err(Error::Read {
                    path,
                    source: e.into(),
                });
            }
        }
    }
}

/// Freezes or thaws a cgroup of the v1 freezer. A freeze that hangs (a process between vfork and exec, for one) is taken
/// back and tried again.
pub fn set_frozen_v1(dir: &Path, frozen: bool) -> Result<(), Error> {
    let path = dir.join("freezer.state");
    let wanted = if frozen { "FROZEN" } else { "THAWED" };
    let deadline = Instant::now() + FREEZE_LIMIT;
    for round in 0u32.. {
        if frozen && round % 50 == 49 {
            files::write(&path, "THAWED")?;
            std::thread::sleep(Duration::from_millis(10));
        }
        files::write(&path, wanted)?;
        for _ in 0..10 {
            if files::read(&path)?.trim() == wanted {
                return Ok(());
            }
            std::thread::sleep(Duration::from_micros(100 * u64::from(round.min(10))));
        }
        if Instant::now() > deadline {
            break;
        }
    }
    if frozen {
        // Half frozen is worse than running.
        files::write(&path, "THAWED")?;
    }
    Err(freeze_timeout(dir, frozen))
}

fn freeze_timeout(dir: &Path, frozen: bool) -> Error {
    Error::FreezeTimeout {
        path: dir.to_owned(),
        state: if frozen { "frozen" } else { "thawed" },
        seconds: FREEZE_LIMIT.as_secs(),
    }
}

/// Whether a v2 cgroup is frozen, by itself or with an ancestor. `false` when it is gone.
pub fn is_frozen_v2(dir: &Path) -> Result<bool, Error> {
    Ok(files::read_key(&dir.join("cgroup.events"), "frozen")? == Some(1))
}

/// Whether a v1 freezer cgroup is frozen or freezing. `false` when it is gone.
pub fn is_frozen_v1(dir: &Path) -> Result<bool, Error> {
    Ok(files::read_if_there(&dir.join("freezer.state"))?.is_some_and(|s| s.trim() != "THAWED"))
}

/// `cgroup.kill` of v2: everything below `dir`, at once, the frozen and those being forked included. `false` when this
/// kernel has no such file.
pub fn kill_v2(dir: &Path) -> Result<bool, Error> {
    match files::write(&dir.join("cgroup.kill"), "1") {
        Ok(()) => Ok(true),
        Err(Error::Write { source, .. })
            if matches!(
                source.raw_os_error(),
                // EOPNOTSUPP: a threaded cgroup
                Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP)
            ) =>
        {
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

/// Sends SIGKILL until nobody is left: what forks between the listing and the signal is met in the next round.
pub fn kill_one_by_one(dir: &Path) -> Result<(), Error> {
    let deadline = Instant::now() + KILL_LIMIT;
    let mut pause = Duration::from_micros(200);
    loop {
        let left = pids(dir)?;
        if left.is_empty() {
            return Ok(());
        }
        signal_all(&left);
        if Instant::now() > deadline {
            return Err(Error::Unkillable {
                path: dir.to_owned(),
                pids: left.iter().map(|p| p.as_raw()).collect(),
            });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// SIGKILL to each; who is already gone is fine.
pub fn signal_all(pids: &[Pid]) {
    for &pid in pids {
        if let Err(errno) = kill(pid, Signal::SIGKILL)
            && errno != Errno::ESRCH
        {
            tracing::warn!(pid = pid.as_raw(), %errno, "cannot kill");
        }
    }
}

/// Moves the process `pid` with all its threads.
pub fn join(dir: &Path, pid: Pid) -> Result<(), Error> {
    files::write(&dir.join("cgroup.procs"), &pid.to_string())
}
