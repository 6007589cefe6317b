//! What can go wrong while an image file is written.

use std::io;
use std::path::PathBuf;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an image file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tree holds something the format cannot.
    #[error("{path:?} cannot be stored in an image: {reason}")]
    Unsupported {
        /// What.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file became shorter between being listed and being read.
    #[error("{0:?} changed while it was read: try again when nothing writes to it")]
    Changed(PathBuf),
    /// No disk of this size can be formatted.
    #[error("cannot format a disk of {size_bytes} bytes: {reason}")]
    Size {
        /// What was asked for.
        size_bytes: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The label is too long.
    #[error("the label {0:?} is longer than 16 bytes")]
    Label(String),
    /// A layer could not be read.
    #[error(transparent)]
    Archive(#[from] caisson_archive::Error),
    /// A system call failed.
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
    /// The tree or the request is at fault.
    InvalidInput,
    /// The disk is full or a quota is used up.
    NoSpace,
    /// Anything else.
    Other,
}

impl Error {
    /// The class of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Unsupported { .. } | Error::Size { .. } | Error::Label(_) => {
                ErrorKind::InvalidInput
            }
            Error::Archive(e) if e.kind() == caisson_archive::ErrorKind::NoSpace => {
                ErrorKind::NoSpace
            }
            Error::Io { source, .. }
                if matches!(
                    source.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                ) =>
            {
                ErrorKind::NoSpace
            }
            Error::Changed(_) | Error::Archive(_) | Error::Io { .. } => ErrorKind::Other,
        }
    }
}

/// Attaches what was being done, and to what, to a failure.
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
