//! What the supervisor's surroundings provide. On the host `shim` does, in a guest the agent does.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use caisson_protocol::{CreateRequest, Error, ExitStatus, LogFile};
use oci_spec::runtime::{LinuxResources, Process, Spec};

/// Which of a process' output streams a log line belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum LogStream {
    Stdout,
    Stderr,
}

/// Keeps the output of one process. Failing to keep it must not disturb the process, so nothing here returns an error.
pub trait Log {
    /// Takes output in the order in which it was read.
    fn write(&mut self, stream: LogStream, bytes: &[u8]);
    /// The stream has ended: a last line without its newline is complete now.
    fn end(&mut self, stream: LogStream);
    /// The process has ended; what is buffered must be where a reader finds it.
    fn flush(&mut self);
}

/// A root file system that is in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Where it is mounted.
    pub root: PathBuf,
    /// An overlay's upper directory: what differs from the image.
    pub changes: Option<PathBuf>,
}

/// What the supervisor's own beginning and end mean for its surroundings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// Without a sandbox, and asked for none, it ends by itself after so long; never when absent.
    pub unused: Option<Duration>,
    /// When everything has been written, clients get so long to hang up before it ends: where its end ends the transport as
    /// well, only their hanging up says that they have got it.
    pub farewell: Duration,
    /// Its end releases all there is, so that a destruction which gets stuck is as good as done.
    pub releases_all: bool,
}

impl Default for Life {
    fn default() -> Self {
        Life {
            unused: Some(Duration::from_secs(30)),
            farewell: Duration::ZERO,
            releases_all: false,
        }
    }
}

/// The supervisor's surroundings.
pub trait Host {
    /// Asked once, at the beginning.
    fn life(&self) -> Life {
        Life::default()
    }
    /// Whether a new connection may speak at all.
    fn admits(&self, connection: BorrowedFd<'_>) -> bool;
    /// Makes a spec that was written elsewhere fit this kernel. Comes before everything else of a sandbox.
    fn adapt(&mut self, _request: &CreateRequest, _spec: &mut Spec) -> Result<(), Error> {
        Ok(())
    }
    /// The same for a process that is to be started,
    fn adapt_process(&self, _process: &mut Process) {}
    /// and for limits that are to be changed.
    fn adapt_resources(&self, _resources: &mut LinuxResources) {}
    /// Prepares the root file system and whatever else the request names, and says where it is. May change the spec to where
    /// things are now.
    fn mount(&mut self, request: &CreateRequest, spec: &mut Spec) -> Result<Mounted, Error>;
    /// Undoes `mount`; idempotent.
    fn unmount(&mut self) -> Result<(), Error>;
    /// Remembers what a successor needs to clean up after a killed supervisor.
    fn created(&mut self, cgroups_path: &Path) -> Result<(), Error>;
    /// Opens a log.
    fn open_log(&mut self, file: &LogFile) -> Result<Box<dyn Log>, Error>;
    /// A process has ended. Called before anyone who waits for it is answered.
    fn exited(&mut self, process: &str, status: &ExitStatus);
    /// An ended process will not be asked for any more.
    fn forget(&mut self, process: &str);
}
