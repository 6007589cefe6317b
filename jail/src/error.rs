//! What can go wrong while executing a spec: one enum, serialisable, because most failures happen in a child process and
//! travel to the caller over a socket.
//!
//! Must not know: how an error is shown; callers map [`Error::kind`] to exit codes and HTTP statuses.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The spec asks for something that makes no sense; nothing was started.
    Invalid,
    /// Something the spec names is not there (a bundle, a bind mount's source, a container).
    NotFound,
    /// The command is not in the container: exit code 127.
    CommandNotFound,
    /// The command is there and cannot be executed: exit code 126.
    CommandNotExecutable,
    /// This host's kernel or configuration lacks what the spec needs.
    HostUnfit,
    /// Already there, or in a state that forbids it.
    Conflict,
    /// A system call failed that should not have.
    Internal,
}

/// A failure of the jail.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Error {
    /// The spec cannot be executed as written.
    #[error("invalid spec: {what}")]
    Invalid {
        /// The field and what is wrong with it.
        what: String,
    },
    /// A named thing does not exist.
    #[error("{what} does not exist: {}", path.display())]
    NotFound {
        /// What it is: `bundle`, `bind mount source`...
        what: String,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The command was not found in the container; the text is Docker's and runc's.
    #[error("exec: {0}")]
    CommandNotFound(String),
    /// The command cannot be executed; the text is Docker's and runc's.
    #[error("exec: {0}")]
    CommandNotExecutable(String),
    /// The host cannot do what the spec needs.
    #[error("this host cannot {need}: {why}")]
    HostUnfit {
        /// What the spec needs.
        need: String,
        /// What is missing, and what to do.
        why: String,
    },
    /// The object is in a state that forbids the operation.
    #[error("{what}")]
    Conflict {
        /// Which object, which state.
        what: String,
    },
    /// A system call failed.
    #[error("{step}{}: {}", .path.as_ref().map(|p| format!(" {:?}", p)).unwrap_or_default(), errno_text(*.errno))]
    Sys {
        /// What was being done, as a verb phrase: `mount tmpfs at`.
        step: String,
        /// On which path.
        path: Option<PathBuf>,
        /// The kernel's answer.
        errno: i32,
    },
    /// The container's cgroup; made from a [`crate::cgroup::Error`].
    #[error("{message}")]
    Cgroup {
        /// What a caller can do about it.
        kind: ErrorKind,
        /// What failed, why, what to do.
        message: String,
    },
    /// The seccomp profile; made from a [`crate::seccomp::Error`].
    #[error("{message}")]
    Seccomp {
        /// What a caller can do about it.
        kind: ErrorKind,
        /// What failed, why, what to do.
        message: String,
    },
    /// A hook failed.
    #[error("error running {kind} hook #{index}: {why}")]
    Hook {
        /// `prestart`, `createRuntime`...
        kind: String,
        /// Its place in the list, from 0.
        index: usize,
        /// Exit status and what it wrote to stderr, or why it could not be run.
        why: String,
    },
    /// The process ended before it said how it fared.
    #[error("container process ended during {during}: {why}")]
    Died {
        /// The step the caller was waiting for.
        during: String,
        /// Its wait status.
        why: String,
    },
}

impl Error {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Invalid { .. } => ErrorKind::Invalid,
            Error::NotFound { .. } => ErrorKind::NotFound,
            Error::CommandNotFound(_) => ErrorKind::CommandNotFound,
            Error::CommandNotExecutable(_) => ErrorKind::CommandNotExecutable,
            Error::HostUnfit { .. } => ErrorKind::HostUnfit,
            Error::Conflict { .. } => ErrorKind::Conflict,
            Error::Cgroup { kind, .. } | Error::Seccomp { kind, .. } => *kind,
            Error::Sys { .. } | Error::Hook { .. } | Error::Died { .. } => ErrorKind::Internal,
        }
    }

    /// An [`Error::Invalid`].
    pub fn invalid(what: impl Into<String>) -> Error {
        Error::Invalid { what: what.into() }
    }

    /// A failed system call without a path; `errno` may be an `Errno` or an `std::io::Error`.
    pub fn sys(step: impl Into<String>, errno: impl Into<OsCode>) -> Error {
        Error::Sys {
            step: step.into(),
            path: None,
            errno: errno.into().0,
        }
    }

    /// A failed system call on a path.
    pub fn sys_at(
        step: impl Into<String>,
        path: impl AsRef<Path>,
        errno: impl Into<OsCode>,
    ) -> Error {
        Error::Sys {
            step: step.into(),
            path: Some(path.as_ref().to_path_buf()),
            errno: errno.into().0,
        }
    }

    /// The kernel's error number, where there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::Sys { errno, .. } => Some(Errno::from_raw(*errno)),
            _ => None,
        }
    }
}

/// An errno from any of the crates that report one.
#[derive(Clone, Copy, Debug)]
pub struct OsCode(i32);

impl From<Errno> for OsCode {
    fn from(e: Errno) -> Self {
        OsCode(e as i32)
    }
}

impl From<std::io::Error> for OsCode {
    fn from(e: std::io::Error) -> Self {
        OsCode(e.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<rustix::io::Errno> for OsCode {
    fn from(e: rustix::io::Errno) -> Self {
        OsCode(e.raw_os_error())
    }
}

impl From<i32> for OsCode {
    fn from(e: i32) -> Self {
        OsCode(e)
    }
}

/// The kernel's error in the words Go programs use, which is what Docker's users know: lower case, no number.
pub fn errno_text(errno: i32) -> String {
    let text = Errno::from_raw(errno).desc();
    let mut chars = text.chars();
    match (chars.next(), chars.next()) {
        // Keep acronyms ("I/O error") as they are.
        (Some(first), Some(second)) if second.is_lowercase() || second == ' ' => {
            format!("{}{}", first.to_lowercase(), &text[first.len_utf8()..])
        }
        _ => text.to_string(),
    }
}

/// Adds the failed step to a system call's result.
pub trait Context<T> {
    /// Names the step.
    fn step(self, step: &str) -> Result<T>;
    /// Names the step and its path.
    fn step_at(self, step: &str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<OsCode>> Context<T> for std::result::Result<T, E> {
    fn step(self, step: &str) -> Result<T> {
        self.map_err(|e| Error::sys(step, e))
    }
    fn step_at(self, step: &str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| Error::sys_at(step, path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_go_programs_write_them() {
        assert_eq!(errno_text(libc::ENOENT), "no such file or directory");
        assert_eq!(errno_text(libc::EPERM), "operation not permitted");
        assert_eq!(errno_text(libc::EIO), "I/O error");
        let e = Error::sys_at("open", "/x", Errno::EACCES);
        assert_eq!(e.to_string(), "open \"/x\": permission denied");
    }

    #[test]
    fn errors_survive_the_way_from_the_child() {
        for e in [
            Error::sys_at("mount proc at", "/proc", Errno::EPERM),
            Error::CommandNotFound("\"foo\": executable file not found in $PATH".into()),
            Error::Hook {
                kind: "prestart".into(),
                index: 1,
                why: "exit status 3".into(),
            },
        ] {
            let json = serde_json::to_vec(&e).expect("errors are serialisable");
            assert_eq!(
                serde_json::from_slice::<Error>(&json).expect("and readable"),
                e
            );
        }
    }
}
