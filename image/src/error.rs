//! What can go wrong with images.

use std::io;
use std::path::PathBuf;

use crate::digest::Digest;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Why something with an image failed. Messages are Docker's where Docker has one, for clients match on them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is no image name.
    #[error("{reason}")]
    InvalidReference {
        /// What was given.
        reference: String,
        /// Why it is none.
        reason: String,
    },
    /// The text is no digest.
    #[error("invalid digest {0:?}: expected sha256: and 64 hexadecimal digits")]
    InvalidDigest(String),
    /// There is no such image here.
    #[error("No such image: {0}")]
    NoSuchImage(String),
    /// An id prefix fits several images.
    #[error("multiple IDs found with provided prefix: {0}")]
    Ambiguous(String),
    /// The archive or manifest is malformed, inconsistent or ambiguous.
    #[error("invalid image: {0}")]
    InvalidImage(String),
    /// Bytes are not what their digest says.
    #[error("{what} does not match its digest: expected {expected}, got {actual}")]
    DigestMismatch {
        /// What was checked.
        what: String,
        /// The digest asked for.
        expected: Digest,
        /// The digest of the bytes.
        actual: Digest,
    },
    /// A layer's contents are not what the image's configuration says.
    #[error("invalid diffID for layer {index}: expected {expected:?}, got {actual:?}")]
    DiffIdMismatch {
        /// Which layer, from the lowest.
        index: usize,
        /// What the configuration says.
        expected: Digest,
        /// What was unpacked.
        actual: Digest,
    },
    /// The image would use more than allowed.
    #[error("the image exceeds the limit of {limit} {unit} per layer")]
    LimitExceeded {
        /// What is counted.
        unit: &'static str,
        /// How many are allowed.
        limit: u64,
    },
    /// No image in an index fits the platform.
    #[error("no matching manifest for {platform} in the manifest list entries: {reference}")]
    NoMatchingPlatform {
        /// What was looked for.
        platform: String,
        /// In what.
        reference: String,
    },
    /// Removing or replacing is not possible now.
    #[error("conflict: {0}")]
    Conflict(String),
    /// Another process uses the store.
    #[error(
        "the image store {0:?} is in use by another process: stop the other daemon or choose another data root"
    )]
    Locked(PathBuf),
    /// The registry refused the credentials or there are none.
    #[error("{0}")]
    Unauthorized(String),
    /// The registry does not have it.
    #[error("{0}")]
    NotInRegistry(String),
    /// The registry cannot be reached or misbehaves.
    #[error("{0}")]
    Registry(String),
    /// The store's database failed.
    #[error("the image database failed: {0}")]
    Database(#[from] rusqlite::Error),
    /// An image's block form could not be built.
    #[error("cannot build the block form of image {image}: {source}")]
    BlockForm {
        /// The image's short id.
        image: String,
        /// Why.
        source: caisson_blockfs::Error,
    },
    /// An archive inside could not be read or written.
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
    /// The caller's reader or writer failed.
    #[error("the stream failed: {0}")]
    Stream(#[source] io::Error),
    /// The operation was cancelled because the daemon is stopping.
    #[error("the operation was cancelled")]
    Cancelled,
}

/// How callers tell errors apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request or the image is at fault (400).
    InvalidInput,
    /// It is not here or not in the registry (404).
    NotFound,
    /// It cannot be done now (409).
    Conflict,
    /// The registry wants other credentials (401 from a registry).
    Unauthorized,
    /// The disk is full.
    NoSpace,
    /// The registry cannot be reached or misbehaves (500).
    Unavailable,
    /// Anything else (500).
    Internal,
}

impl Error {
    /// The class of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::InvalidReference { .. }
            | Error::InvalidDigest(_)
            | Error::Ambiguous(_)
            | Error::InvalidImage(_)
            | Error::DigestMismatch { .. }
            | Error::DiffIdMismatch { .. }
            | Error::LimitExceeded { .. } => ErrorKind::InvalidInput,
            Error::NoSuchImage(_) | Error::NoMatchingPlatform { .. } | Error::NotInRegistry(_) => {
                ErrorKind::NotFound
            }
            Error::Conflict(_) => ErrorKind::Conflict,
            Error::Unauthorized(_) => ErrorKind::Unauthorized,
            Error::Registry(_) => ErrorKind::Unavailable,
            Error::Archive(e) => match e.kind() {
                caisson_archive::ErrorKind::InvalidInput | caisson_archive::ErrorKind::TooLarge => {
                    ErrorKind::InvalidInput
                }
                caisson_archive::ErrorKind::NoSpace => ErrorKind::NoSpace,
                caisson_archive::ErrorKind::NotFound | caisson_archive::ErrorKind::Other => {
                    ErrorKind::Internal
                }
            },
            Error::BlockForm { source, .. } => match source.kind() {
                caisson_blockfs::ErrorKind::InvalidInput => ErrorKind::InvalidInput,
                caisson_blockfs::ErrorKind::NoSpace => ErrorKind::NoSpace,
                caisson_blockfs::ErrorKind::Other => ErrorKind::Internal,
            },
            Error::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
                _ => ErrorKind::Internal,
            },
            Error::Stream(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ) =>
            {
                ErrorKind::InvalidInput
            }
            Error::Database(e) if e.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull) => {
                ErrorKind::NoSpace
            }
            Error::Database(_) | Error::Locked(_) | Error::Stream(_) | Error::Cancelled => {
                ErrorKind::Internal
            }
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
