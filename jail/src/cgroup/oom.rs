//! Telling promptly that the kernel killed for want of memory: a descriptor that becomes readable then.
//!
//! v1 gives an eventfd registered in `cgroup.event_control`, v2 an inotify watch on `memory.events`. Both are non-blocking;
//! after a wake-up read up to 4 KiB to silence it and ask `oom_kills()`: a wake-up may also mean that the limit was hit
//! without a kill, that the kill is still to come, or that the cgroup is going away.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::sys::eventfd::{EfdFlags, EventFd};
use rustix::fs::inotify;

use super::error::Error;
use super::files;

/// v1: `cgroup.event_control` takes "EVENTFD OOM_CONTROL_FD"
/// (kernel: Documentation/admin-guide/cgroup-v1/memory.rst, section 10).
pub fn watch_v1(dir: &Path) -> Result<OwnedFd, Error> {
    let path = dir.join("memory.oom_control");
    let failed = |source| Error::Watch {
        path: path.clone(),
        source,
    };
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(|e| failed(e.into()))?;
    let control = File::open(&path).map_err(failed)?;
    files::write(
        &dir.join("cgroup.event_control"),
        &format!("{} {}", event.as_raw_fd(), control.as_raw_fd()),
    )?;
    Ok(event.into())
}

/// v2: `memory.events` is modified at each event.
pub fn watch_v2(dir: &Path) -> Result<OwnedFd, Error> {
    let path = dir.join("memory.events");
    let failed = |e: rustix::io::Errno| Error::Watch {
        path: path.clone(),
        source: e.into(),
    };
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
        .map_err(failed)?;
    inotify::add_watch(&fd, &path, inotify::WatchFlags::MODIFY).map_err(failed)?;
    Ok(fd)
}
