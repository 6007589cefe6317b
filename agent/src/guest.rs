//! The supervisor's surroundings in a guest.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use caisson_jail::IdMappings;
use caisson_protocol::{CreateRequest, Error, ErrorKind, ExitStatus, LogFile, Rootfs};
use caisson_supervisor::{Host, Life, Log, Mounted, jail_error};
use nix::sys::socket::{VsockAddr, getpeername};
use oci_spec::runtime::{LinuxResources, Process, Spec};
use vsock::VMADDR_CID_HOST;

use crate::translate::CharDevice;
use crate::{disks, network, resources, surroundings, translate};

/// A host that has got what the agent wrote hangs up at once.
const FAREWELL: Duration = Duration::from_secs(2);

/// One guest.
pub struct Guest {
    /// What could not be done at boot, for people.
    failures: Vec<String>,
    /// Of the network, taken out of the spec.
    sysctls: BTreeMap<String, String>,
    shares: Vec<PathBuf>,
}

impl Guest {
    /// A booted guest without a sandbox.
    pub fn new(failures: Vec<String>) -> Self {
        Guest {
            failures,
            sysctls: BTreeMap::new(),
            shares: Vec::new(),
        }
    }
}

impl Host for Guest {
    fn life(&self) -> Life {
        Life {
            // The VM's owner ends what nobody uses; a template waits for as long as it is kept.
            unused: None,
            farewell: FAREWELL,
            // The reset does.
            releases_all: true,
        }
    }

    /// The host alone: a process of the guest that gets hold of a vsock has the guest's own address, or the local one.
    fn admits(&self, connection: BorrowedFd<'_>) -> bool {
        match getpeername::<VsockAddr>(connection.as_raw_fd()) {
            Ok(peer) if peer.cid() == VMADDR_CID_HOST => true,
            Ok(peer) => {
                tracing::warn!(
                    cid = peer.cid(),
                    port = peer.port(),
                    "a stranger is refused"
                );
                false
            }
            Err(errno) => {
                tracing::warn!(%errno, "a client without an address is refused");
                false
            }
        }
    }

    fn adapt(&mut self, _: &CreateRequest, spec: &mut Spec) -> Result<(), Error> {
        if !self.failures.is_empty() {
            let what = self.failures.join("; ");
            return Err(Error::new(
                ErrorKind::HostUnfit,
                format!("the guest did not boot properly: {what}"),
            ));
        }
        self.sysctls = translate::adapt(spec, |CharDevice { major, minor }| {
            Path::new(&format!("/sys/dev/char/{major}:{minor}")).exists()
        })?;
        Ok(())
    }

    fn adapt_process(&self, process: &mut Process) {
        translate::adapt_process(process);
    }

    fn adapt_resources(&self, given: &mut LinuxResources) {
        resources::adapt(given);
    }

    fn mount(&mut self, request: &CreateRequest, spec: &mut Spec) -> Result<Mounted, Error> {
        let Some(setup) = &request.guest else {
            return Err(Error::invalid("a guest is not told its surroundings"));
        };
        let Rootfs::Block { lower, upper } = &request.rootfs else {
            return Err(Error::invalid(
                "a microVM's root file system comes on two disks",
            ));
        };
        surroundings::set_clock(setup.now)?;
        surroundings::add_entropy(&setup.entropy)?;
        for share in &setup.shares {
            surroundings::mount_share(share)?;
            self.shares.push(share.target.clone());
        }
        setup.files.iter().try_for_each(surroundings::write_file)?;
        network::configure(&setup.interfaces)?;
        for (name, value) in &self.sysctls {
            caisson_jail::set_sysctl(name, value).map_err(jail_error)?;
        }
        disks::mount_root(lower, upper, IdMappings::of_spec(spec).as_ref())
    }

    fn unmount(&mut self) -> Result<(), Error> {
        disks::unmount_root()?;
        while let Some(share) = self.shares.last() {
            disks::unmount(share)?;
            self.shares.pop();
        }
        Ok(())
    }

    fn created(&mut self, _: &Path) -> Result<(), Error> {
        // Nothing of a guest outlives its agent.
        Ok(())
    }

    fn open_log(&mut self, _: &LogFile) -> Result<Box<dyn Log>, Error> {
        Err(Error::invalid("a guest keeps no logs: attach a journal"))
    }

    fn exited(&mut self, _: &str, _: &ExitStatus) {}

    fn forget(&mut self, _: &str) {}
}
