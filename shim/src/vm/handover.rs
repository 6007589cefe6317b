//! What a VMM is handed when it starts: its spec, and the descriptors that the spec names.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use caisson_protocol::Error;
use caisson_protocol::layout::{CONSOLE, VM_ROOT, VM_SOCKET};
use caisson_protocol::vmm::{AssistMode, Confinement, Disk, RateLimits, Resource, VmSpec, Vsock};

use super::machine::Parts;
use super::plan::{COMMAND_LINE, DISKS, Plan};
use super::short;

/// Only the guest sees it.
const GUEST_CID: u32 = 3;

/// Users that no system hands out: every VMM is one of its own.
const FIRST_UID: u32 = 0x7000_0000;
const UIDS: u32 = 0x0fff_ffff;

/// Opens what the machine is made of and describes it, without shares.
pub fn spec(parts: &Parts<'_>, plan: &Plan, inherited: &mut Inherited) -> Result<VmSpec, Error> {
    let Parts {
        id,
        dir,
        setup,
        image,
        scratch,
        ..
    } = *parts;
    let console = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(dir.join(CONSOLE))
        .map_err(|e| Error::failed("cannot open the console's file", e))?;
    let listener = short::listen(&dir.join(VM_SOCKET))
        .map_err(|e| Error::failed("cannot listen for the socket device", e))?;
    let files: [(&Path, bool, Option<RateLimits>); 3] = [
        (&setup.agent, true, None),
        (image, true, plan.image_rate),
        (scratch, false, plan.scratch_rate),
    ];
    let mut disks = Vec::new();
    for ((path, read_only, rate), (serial, _)) in files.into_iter().zip(DISKS) {
        disks.push(Disk {
            file: inherited.open(path, read_only)?,
            serial: serial.into(),
            read_only,
            rate,
            queues: None,
        });
    }
    Ok(VmSpec {
        id: id.into(),
        vcpus: plan.vcpus,
        memory_bytes: plan.memory_bytes,
        kernel: inherited.open(&setup.kernel, true)?,
        initramfs: None,
        command_line: COMMAND_LINE.into(),
        disks,
        nets: Vec::new(),
        shares: Vec::new(),
        vsock: Some(Vsock {
            guest_cid: GUEST_CID,
            listener: inherited.add(listener.into()),
        }),
        console: Some(inherited.add(console.into())),
        console_limit_bytes: None,
        console_device: false,
        // the runtime has asked KVM, once for all machines: it costs a machine of its own
        assist: if setup.emulated {
            AssistMode::On
        } else {
            AssistMode::Off
        },
        restore: None,
        confinement: Some(confinement(id, dir)),
        boot_timing: false,
    })
}

fn confinement(id: &str, dir: &Path) -> Confinement {
    // Ids are random; the same user for two VMMs would only weaken a wall behind the wall.
    let number = u32::from_str_radix(id.get(..7).unwrap_or_default(), 16).unwrap_or(0);
    let user = FIRST_UID + number % UIDS;
    Confinement {
        uid: user,
        gid: user,
        root: dir.join(VM_ROOT),
    }
}

/// Descriptors that a child gets, open until it has them.
#[derive(Default)]
pub struct Inherited {
    fds: Vec<OwnedFd>,
}

impl Inherited {
    /// Keeps a descriptor; its number.
    pub fn keep(&mut self, fd: OwnedFd) -> RawFd {
        let number = fd.as_raw_fd();
        self.fds.push(fd);
        number
    }

    /// Keeps a descriptor, as a spec names it.
    pub fn add(&mut self, fd: OwnedFd) -> Resource {
        Resource::Fd(self.keep(fd))
    }

    fn open(&mut self, path: &Path, read_only: bool) -> Result<Resource, Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(|e| Error::failed(format!("cannot open {}", path.display()), e))?;
        Ok(self.add(file.into()))
    }

    /// All of them.
    pub fn numbers(&self) -> Vec<RawFd> {
        self.fds.iter().map(AsRawFd::as_raw_fd).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vmm_is_a_user_of_its_own() {
        let uid = |id: &str| confinement(id, Path::new("/d")).uid;
        assert_ne!(uid("0000001aaaa"), uid("0000002aaaa"));
        assert!(uid("fffffff") >= FIRST_UID && uid("nonsense") == FIRST_UID);
    }
}
