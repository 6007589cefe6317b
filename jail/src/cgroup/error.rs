//! What can go wrong with a cgroup.

use std::io;
use std::path::PathBuf;

use crate::ErrorKind;

/// An error of the cgroup tree.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum Error {
    #[error(
        "no cgroup file system is mounted: mount one, for example with `mount -t cgroup2 none /sys/fs/cgroup`"
    )]
    NotMounted,
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot understand {path}: {content:?}")]
    Parse { path: PathBuf, content: String },
    #[error("cgroup path {path:?} {why}")]
    BadPath { path: PathBuf, why: &'static str },
    #[error("cgroup {path:?} does not exist")]
    NotFound { path: PathBuf },
    #[error("{limit}: {why}")]
    BadLimit { limit: String, why: String },
    #[error(
        "{limit} needs the cgroup controller \"{controller}\", which is not usable here: {why}"
    )]
    MissingController {
        controller: String,
        limit: String,
        why: String,
    },
    #[error("{limit} cannot be applied here: {why}")]
    Unsupported { limit: String, why: String },
    #[error("cannot create cgroup {path}: {source}{hint}")]
    Create {
        path: PathBuf,
        source: io::Error,
        hint: &'static str,
    },
    #[error("cannot write {value:?} to {path}: {source}{hint}")]
    Write {
        path: PathBuf,
        value: String,
        source: io::Error,
        hint: &'static str,
    },
    #[error(
        "cgroup {path} is in use by processes {pids:?}: another container has the same cgroup path, or an earlier one was not removed"
    )]
    InUse { path: PathBuf, pids: Vec<i32> },
    #[error("cgroup {path} cannot be used: {why}")]
    WrongType { path: PathBuf, why: String },
    #[error("cgroup {path} is still not {state} after {seconds} s")]
    FreezeTimeout {
        path: PathBuf,
        state: &'static str,
        seconds: u64,
    },
    #[error(
        "no freezer: neither the v1 freezer controller nor cgroup v2 (Linux 5.2) is mounted here"
    )]
    NoFreezer,
    #[error("processes {pids:?} of cgroup {path} survive SIGKILL")]
    Unkillable { path: PathBuf, pids: Vec<i32> },
    #[error("cannot remove cgroup {path}: {source}; processes in it: {pids:?}")]
    Remove {
        path: PathBuf,
        source: io::Error,
        pids: Vec<i32>,
    },
    #[error(
        "device access cannot be limited here: there is neither the v1 devices controller nor cgroup v2 with eBPF (CONFIG_CGROUP_BPF)"
    )]
    NoDeviceControl,
    #[error("cannot {action} the device filter of cgroup {path}: {source}{log}")]
    DeviceFilter {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
        log: String,
    },
    #[error("cannot watch {path} for out-of-memory events: {source}")]
    Watch { path: PathBuf, source: io::Error },
}

impl Error {
    /// The class of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::BadPath { .. } | Error::BadLimit { .. } => ErrorKind::Invalid,
            Error::NotFound { .. } => ErrorKind::NotFound,
            Error::NotMounted
            | Error::MissingController { .. }
            | Error::Unsupported { .. }
            | Error::NoFreezer
            | Error::NoDeviceControl => ErrorKind::HostUnfit,
            Error::InUse { .. }
            | Error::FreezeTimeout { .. }
            | Error::Unkillable { .. }
            | Error::WrongType { .. } => ErrorKind::Conflict,
            Error::Create { source, .. } | Error::Write { source, .. } => {
                match source.raw_os_error() {
                    Some(libc::EROFS | libc::EACCES | libc::EPERM) => ErrorKind::HostUnfit,
                    Some(libc::EINVAL | libc::ERANGE | libc::ENODEV) => ErrorKind::Invalid,
                    _ => ErrorKind::Internal,
                }
            }
            Error::Read { .. }
            | Error::Parse { .. }
            | Error::Remove { .. }
            | Error::DeviceFilter { .. }
            | Error::Watch { .. } => ErrorKind::Internal,
        }
    }
}

impl From<Error> for crate::Error {
    fn from(e: Error) -> crate::Error {
        crate::Error::Cgroup {
            kind: e.kind(),
            message: e.to_string(),
        }
    }
}

/// Says what usually helps against this errno on a cgroup file.
pub(super) fn hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EROFS) => {
            " (the cgroup file system is mounted read-only: run where it is writable, or remount it read-write)"
        }
        Some(libc::EACCES | libc::EPERM) => {
            " (run as root, or where this cgroup is delegated to you)"
        }
        Some(libc::ENOENT) => " (this kernel does not offer that file)",
        Some(libc::EOPNOTSUPP) => " (the cgroup is threaded or its parent is)",
        _ => "",
    }
}
