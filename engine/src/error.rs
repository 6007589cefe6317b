//! What can go wrong in the engine, as its callers need to know it: a [`ErrorKind`] to decide by and a message for the user.
//!
//! Must not know: HTTP status codes (`caisson` maps kinds to them in one place).

use std::fmt;

/// What went wrong, for the caller's decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// No such container, image, exec or path (Docker: 404).
    NotFound,
    /// The request makes no sense (Docker: 400).
    Invalid,
    /// The object is not in the state that the request needs, or the name is taken (Docker: 409).
    Conflict,
    /// Policy forbids it, for instance `--require-isolation` (Docker: 403).
    Forbidden,
    /// Credentials were refused by a registry (Docker: 401).
    Unauthorized,
    /// Known, but not available here: isolation `vm` on this build (Docker: 501).
    NotImplemented,
    /// A peer (registry) or a part of this host cannot be reached or lacks something (Docker: 500 or 503).
    Unavailable,
    /// The user's program does not exist: exit code 127 (Docker: 400).
    CommandNotFound,
    /// The user's program cannot be executed: exit code 126 (Docker: 400).
    CommandNotExecutable,
    /// Anything else (Docker: 500).
    Internal,
}

/// An error of the engine: the kind decides, the message explains.
#[derive(Clone, Debug)]
pub struct Error {
    /// For the caller's decision.
    pub kind: ErrorKind,
    /// For the user: what failed, why and what to do next.
    pub message: String,
}

impl Error {
    /// An error of any kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error {
            kind,
            message: message.into(),
        }
    }
    /// No such object.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }
    /// A request that makes no sense.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }
    /// The object is in the wrong state.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }
    /// Not available on this host or build.
    pub fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotImplemented, message)
    }
    /// A failure of ours or of the host.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }
    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
    /// The same error, its message prefixed by what was being done.
    pub fn context(self, doing: impl fmt::Display) -> Self {
        Error {
            kind: self.kind,
            message: format!("{doing}: {}", self.message),
        }
    }
    /// An I/O failure while doing something.
    pub fn io(doing: impl fmt::Display, source: &std::io::Error) -> Self {
        let hint = match source.raw_os_error() {
            Some(nix::libc::ENOSPC) => {
                " (free some space, for instance with `caisson system prune`)"
            }
            Some(nix::libc::EDQUOT) => " (the disk quota is used up)",
            Some(nix::libc::EROFS) => " (the file system is read-only)",
            _ => "",
        };
        Self::internal(format!("{doing}: {source}{hint}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<caisson_runtime::Error> for Error {
    fn from(e: caisson_runtime::Error) -> Self {
        use caisson_runtime::ErrorKind as R;
        let kind = match e.kind {
            R::NotFound => ErrorKind::NotFound,
            R::Invalid => ErrorKind::Invalid,
            R::Conflict => ErrorKind::Conflict,
            R::CommandNotFound => ErrorKind::CommandNotFound,
            R::CommandNotExecutable => ErrorKind::CommandNotExecutable,
            R::HostUnfit => ErrorKind::Unavailable,
            R::Lost | R::Internal => ErrorKind::Internal,
        };
        Error {
            kind,
            message: e.message,
        }
    }
}

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
