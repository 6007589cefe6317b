//! What can go wrong with an archive or the tree it meets.

use std::io;
use std::path::PathBuf;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an archive could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are not a well-formed tar archive.
    #[error("invalid tar archive: {0}")]
    Invalid(String),
    /// The archive ends in the middle of an entry.
    #[error("the archive is truncated in {0:?}")]
    Truncated(PathBuf),
    /// A name in the archive leads out of the directory.
    #[error("{0:?} leads outside of the extraction directory")]
    Escapes(PathBuf),
    /// A cap was reached.
    #[error("the archive exceeds the limit of {limit} {unit}")]
    LimitExceeded {
        /// What is counted.
        unit: &'static str,
        /// How many were allowed.
        limit: u64,
    },
    /// A directory would replace something else, or the reverse, and the caller forbade it.
    #[error("cannot overwrite {existing} {path:?} with {new}")]
    KindConflict {
        /// Where.
        path: PathBuf,
        /// What is there.
        existing: &'static str,
        /// What was to come.
        new: &'static str,
    },
    /// The tree cannot be expressed in a layer.
    #[error("{path:?} cannot be packed: {reason}")]
    Unsupported {
        /// Where.
        path: PathBuf,
        /// Why.
        reason: &'static str,
    },
    /// The caller's reader failed.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// The caller's writer failed.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    /// A system call on the tree failed.
    #[error("cannot {action} {path:?}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// How callers tell errors apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The archive or the request is at fault.
    InvalidInput,
    /// The path does not exist.
    NotFound,
    /// The archive is larger than allowed.
    TooLarge,
    /// The disk is full or a quota is used up.
    NoSpace,
    /// Anything else.
    Other,
}

impl Error {
    /// The class of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Invalid(_)
            | Error::Truncated(_)
            | Error::Escapes(_)
            | Error::KindConflict { .. }
            | Error::Unsupported { .. } => ErrorKind::InvalidInput,
            Error::LimitExceeded { .. } => ErrorKind::TooLarge,
            Error::Read(e) | Error::Write(e) => kind_of(e),
            Error::Io { source, .. } => kind_of(source),
        }
    }

    /// The raw error number, when the system gave one.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Error::Io { source, .. } | Error::Read(source) | Error::Write(source) => {
                source.raw_os_error()
            }
            _ => None,
        }
    }
}

fn kind_of(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => ErrorKind::InvalidInput,
        _ => ErrorKind::Other,
    }
}

/// Attaches what was being done, and to what, to a system call's failure.
pub(crate) trait Context<T> {
    fn context(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|source| Error::Io {
            action,
            path: path.into(),
            source: source.into(),
        })
    }
}
