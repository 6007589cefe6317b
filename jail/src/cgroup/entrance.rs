//! The cheap way in: a process moves itself through descriptors that were opened before.
//!
//! On v1 `0` written to `tasks` moves the writing thread only, which needs no `cgroup_threadgroup_rwsem` and so no RCU grace
//! period (kernel/cgroup/cgroup.c, `cgroup_procs_write_start`). For a single-threaded process, such as a fresh child, that
//! is the whole process. v2 refuses single threads across domains: `cgroup.procs`, unless the child was cloned into it.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;

use super::error::{Error, hint};

/// Open doors to every hierarchy of a cgroup. Close-on-exec.
#[derive(Debug)]
pub struct Entrance {
    v1: Vec<File>,
    unified: Option<File>,
}

/// Whether the process was already cloned into the v2 cgroup (`CLONE_INTO_CGROUP`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unified {
    /// It is still to be entered.
    Outside,
    /// Nothing to do there.
    AlreadyInside,
}

impl Entrance {
    pub(super) fn open<'a>(
        v1: impl Iterator<Item = &'a Path>,
        unified: Option<&Path>,
    ) -> Result<Entrance, Error> {
        let open = |path: &Path| {
            OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
                .open(path)
                .map_err(|source| Error::Write {
                    path: path.to_owned(),
                    value: "0".into(),
                    hint: hint(&source),
                    source,
                })
        };
        Ok(Entrance {
            v1: v1
                .map(|dir| open(&dir.join("tasks")))
                .collect::<Result<_, _>>()?,
            unified: unified
                .map(|dir| open(&dir.join("cgroup.procs")))
                .transpose()?,
        })
    }

    /// Moves the calling process, which must have one thread. Allocates nothing and takes no lock: callable after fork.
    pub fn enter(&self, unified: Unified) -> Result<(), Errno> {
        let enter = |file: BorrowedFd<'_>| nix::unistd::write(file, b"0").map(drop);
        if let (Some(file), Unified::Outside) = (&self.unified, unified) {
            enter(file.as_fd())?;
        }
        self.v1.iter().try_for_each(|file| enter(file.as_fd()))
    }

    /// Its descriptors, for who closes all others.
    pub fn raw_fds(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.v1
            .iter()
            .chain(&self.unified)
            .map(|file| file.as_raw_fd())
    }
}
