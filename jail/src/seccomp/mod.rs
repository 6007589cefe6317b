//! Compiles an OCI seccomp profile to classic BPF and installs it.
//!
//! [`compile`] before the fork, [`Filter::install`] in the child, as late as possible: after `no_new_privs` was set, or while
//! `CAP_SYS_ADMIN` is still effective.

use oci_spec::runtime::LinuxSeccomp;

use crate::Result;

/// An error of a seccomp profile.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum Error {
    #[error("seccomp: {what} {why}")]
    Unsupported { what: String, why: String },
}

impl Error {
    /// The class of this error.
    pub fn kind(&self) -> crate::ErrorKind {
        crate::ErrorKind::Invalid
    }
}

impl From<Error> for crate::Error {
    fn from(e: Error) -> crate::Error {
        crate::Error::Seccomp {
            kind: e.kind(),
            message: e.to_string(),
        }
    }
}

/// A compiled profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {}

/// Compiles a profile.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter> {
    let _ = profile;
    Err(Error::Unsupported {
        what: "profile".into(),
        why: "cannot be compiled yet".into(),
    }
    .into())
}

impl Filter {
    /// Installs it for the calling thread (for all threads with the TSYNC flag). Allocates nothing: callable after fork.
    pub fn install(&self) -> std::result::Result<(), nix::errno::Errno> {
        Err(nix::errno::Errno::ENOSYS)
    }
}
