//! What can go wrong.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error(
        "no kernel source: run `apt-get install linux-source-6.1`, or point CAISSON_KERNEL_SOURCE at a linux-6.1.y tarball"
    )]
    NoSource,
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "cannot run {tool}: {source} (on Debian: apt-get install build-essential flex bison bc libelf-dev xz-utils)"
    )]
    Tool {
        tool: &'static str,
        source: std::io::Error,
    },
    #[error("{step} failed: see {log}")]
    Step { step: &'static str, log: PathBuf },
    #[error("the configuration lacks what the fragments ask for:\n{0}")]
    Config(String),
}

impl Error {
    /// Attaches a path to an I/O error.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, source }
    }
}

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
