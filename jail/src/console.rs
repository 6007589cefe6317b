//! A container's terminal: a pty of its own devpts, shown at /dev/console, controlling its session.
//!
//! The master is opened on the devpts mount itself and the slave from the master (TIOCGPTPEER), so neither a path nor a
//! symlink in the container's /dev plays a part (CVE-2025-52565).
//! Must not know: who reads the master.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, makedev};

use crate::beneath::{RootDir, Want};
use crate::error::{Context, Error, Result};
use crate::{mounts, sys};

/// devpts' file system type (linux/magic.h).
const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;

/// Both ends of a pty.
pub(crate) struct Pty {
    pub master: OwnedFd,
    pub slave: OwnedFd,
}

/// Opens a pty of a devpts: the one just mounted, or what the root has at /dev/pts.
pub(crate) fn open(root: &RootDir, devpts: Option<BorrowedFd<'_>>) -> Result<Pty> {
    let what = "open a terminal in the container's /dev/pts";
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = match devpts {
        Some(devpts) => rustix::fs::openat(devpts, "ptmx", flags, Mode::empty()).step(what)?,
        None => root
            .open(Path::new("/dev/pts/ptmx"), flags)
            .map_err(|e| Error::HostUnfit {
                need: "give the process a terminal".into(),
                why: format!(
                    "/dev/pts/ptmx of the container: {}; the spec needs a devpts mount at /dev/pts",
                    e
                ),
            })?,
    };
    let stat = rustix::fs::fstat(&master).step(what)?;
    let on = rustix::fs::fstatfs(&master).step(what)?;
    if on.f_type as u64 != DEVPTS_SUPER_MAGIC || stat.st_rdev != makedev(5, 2) {
        return Err(Error::invalid(
            "/dev/pts/ptmx of the container is not a pty multiplexer",
        ));
    }
    sys::pty_unlock(master.as_fd()).step(what)?;
    let slave = sys::pty_peer(master.as_fd()).step(what)?;
    Ok(Pty { master, slave })
}

impl Pty {
    /// Sets its size, in characters.
    pub(crate) fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        sys::set_window_size(self.master.as_fd(), rows, columns).step("set the terminal's size")
    }

    /// Shows the slave at /dev/console.
    pub(crate) fn bind_at_console(&self, root: &RootDir) -> Result<()> {
        let path = Path::new("/dev/console");
        let tree = mounts::open_tree_fd(self.slave.as_fd(), false)
            .step_at("bind the terminal at", path)?;
        let target = root.mount_point(path, Want::File)?;
        mounts::move_onto(tree.as_fd(), target.as_fd()).step_at("bind the terminal at", path)
    }

    /// Makes the slave the standard streams and the controlling terminal of this session; hands the master back.
    pub(crate) fn take_over(self) -> Result<OwnedFd> {
        for fd in 0..=2 {
            sys::put_at(self.slave.as_fd(), fd).step("attach the terminal")?;
        }
        sys::set_controlling_tty(self.slave.as_fd())
            .step("make the terminal the controlling one")?;
        Ok(self.master)
    }
}

/// Gives one terminal the size of another.
pub fn copy_window_size(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let size = rustix::termios::tcgetwinsize(from).step("read the terminal's size")?;
    rustix::termios::tcsetwinsize(to, size).step("set the terminal's size")
}
