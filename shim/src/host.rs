//! The supervisor's surroundings on the host.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use caisson_protocol::{CreateRequest, Error, ExitStatus, LogFile, Rootfs};
use caisson_supervisor::{Host, Log, Mounted};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use oci_spec::runtime::Spec;

use crate::json_log::JsonLog;
use crate::{mounts, records};

/// One sandbox' directory and what is done in it.
pub struct SandboxDir {
    /// The directory; see `protocol::layout`.
    pub dir: PathBuf,
}

impl Host for SandboxDir {
    /// Root and the shim's own user, nobody else, even should the directory's mode be loosened.
    fn admits(&self, connection: BorrowedFd<'_>) -> bool {
        match getsockopt(&connection, PeerCredentials) {
            Ok(peer) if peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw() => true,
            Ok(peer) => {
                tracing::warn!(uid = peer.uid(), pid = peer.pid(), "a stranger is refused");
                false
            }
            Err(errno) => {
                tracing::warn!(%errno, "a client without credentials is refused");
                false
            }
        }
    }

    fn mount(&mut self, request: &CreateRequest, spec: &mut Spec) -> Result<Mounted, Error> {
        let changes = match &request.rootfs {
            Rootfs::Overlay { upper, .. } => Some(upper.clone()),
            Rootfs::Directory(_) | Rootfs::Block { .. } => None,
        };
        let root = mounts::mount(&self.dir, &request.rootfs, spec)?;
        Ok(Mounted { root, changes })
    }

    fn unmount(&mut self) -> Result<(), Error> {
        mounts::unmount_all(&self.dir)
    }

    fn created(&mut self, cgroups_path: &Path) -> Result<(), Error> {
        records::write_shim_record(&self.dir, cgroups_path)
            .map_err(|e| Error::failed(format!("cannot write to {}", self.dir.display()), e))
    }

    fn open_log(&mut self, file: &LogFile) -> Result<Box<dyn Log>, Error> {
        match JsonLog::open(file) {
            Ok(log) => Ok(Box::new(log)),
            Err(e) => Err(Error::failed(
                format!("cannot open the log {}", file.path.display()),
                e,
            )),
        }
    }

    fn exited(&mut self, process: &str, status: &ExitStatus) {
        if let Err(error) = records::write_exit(&self.dir, process, status) {
            tracing::error!(process, code = status.code, %error, "an exit record cannot be written");
        }
    }

    fn forget(&mut self, process: &str) {
        if let Err(error) = records::remove_exit(&self.dir, process) {
            tracing::warn!(process, %error, "an exit record cannot be removed");
        }
    }
}
