//! What can go wrong in a VMM, said so that its user can act on it.

/// An error of the VMM.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("/dev/kvm: {0} (load the kvm module, or run as a user of the kvm group)")]
    NoKvm(kvm_ioctls::Error),
    #[error("this host cannot run VMs: {cause}; {fix}")]
    NoVms { cause: String, fix: String },
    #[error("{call} failed: {source}")]
    Kvm {
        call: &'static str,
        source: kvm_ioctls::Error,
    },
    #[error("the guest kernel cannot be used: {0}")]
    Kernel(String),
    #[error("cannot reserve {bytes} bytes of guest memory: {reason}")]
    Memory { bytes: u64, reason: String },
    #[error("{what}: {source}")]
    Io {
        what: &'static str,
        source: std::io::Error,
    },
    #[error(
        "the guest ran an instruction that this host's KVM refuses and the assist does not know: {0}"
    )]
    Unassisted(String),
    #[error("the guest crashed: triple fault at {rip:#x}")]
    TripleFault { rip: u64 },
    #[error("{what}: {source}")]
    Resource {
        what: String,
        source: std::io::Error,
    },
    #[error("{0}")]
    Refused(String),
    #[error("the VMM cannot confine itself: {what}: {source}")]
    Confinement {
        what: &'static str,
        source: std::io::Error,
    },
    #[error("the snapshot cannot be used: {0}")]
    Snapshot(String),
    #[error("the spec of the machine cannot be used: {0}")]
    Spec(String),
    #[error("this device cannot do that")]
    NotThisDevice,
    #[error("KVM stopped the guest: {0}")]
    Stopped(String),
    #[error("the guest's driver has broken a queue: {0}")]
    Queue(String),
    #[error("{0}")]
    Internal(String),
}

impl Error {
    pub(crate) fn kvm(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
        move |source| Error::Kvm { call, source }
    }

    pub(crate) fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Io { what, source }
    }
}

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
