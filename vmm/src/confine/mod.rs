//! What this process may still do when guest code runs: next to nothing.
//!
//! ```text
//! close what was inherited and not named ─▶ open everything, build the machine (launch)
//!   ─▶ confine: own mount, network, IPC and UTS namespaces, an empty read-only root, no capabilities, another user
//!   ─▶ every thread that will ever be: its role's system call filter first (filters), then its work
//!   ─▶ this thread: its filter
//! ```
//!
//! It needs root to begin with. There is no process namespace: the process has no children and its filters let it make
//! none. There is no limit of file sizes: it writes only files that it was handed, and disks may be replaced by larger ones.

mod filters;

pub use filters::{Role, install};

use std::collections::BTreeSet;
use std::path::Path;

use caisson_protocol::vmm::{Confinement, Resource, VmSpec};
use rustix::fs::{CWD, Mode, OFlags, fstat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, unmount,
};
use rustix::process::{DumpableBehavior, Gid, Resource as Limit, Rlimit, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

use crate::error::{Error, Result};
use crate::sys;

/// vsock connections, taps, disks, queues: with room.
const DESCRIPTORS_MAX: u64 = 4096;

/// Closes every inherited descriptor but the standard ones, `control` and those that the spec names.
pub fn close_others(control: i32, spec: &VmSpec) -> Result<()> {
    let mut keep: BTreeSet<i32> = named(spec).collect();
    keep.extend([0, 1, 2, control]);
    let mut first = 0;
    for number in keep {
        if number > first {
            sys::close_range(first, number - 1).map_err(Error::io("close_range"))?;
        }
        first = first.max(number.saturating_add(1));
    }
    sys::close_range(first, i32::MAX).map_err(Error::io("close_range"))
}

fn named(spec: &VmSpec) -> impl Iterator<Item = i32> {
    let files = spec.restore.iter().flat_map(|r| [&r.state, &r.memory]);
    [Some(&spec.kernel), spec.initramfs.as_ref()]
        .into_iter()
        .flatten()
        .chain(spec.console.as_ref())
        .chain(spec.vsock.iter().map(|vsock| &vsock.listener))
        .chain(spec.disks.iter().map(|disk| &disk.file))
        .chain(spec.nets.iter().map(|net| &net.tap))
        .chain(spec.shares.iter().map(|share| &share.server))
        .chain(files)
        .filter_map(|resource| match resource {
            Resource::Fd(number) => Some(*number),
            Resource::Path(_) => None,
        })
}

/// Gives up what this thread, and so every thread that it makes, could do to the host.
pub fn confine(confinement: &Confinement) -> Result<()> {
    let failed = |what: &'static str| {
        move |e: rustix::io::Errno| Error::Confinement {
            what,
            source: e.into(),
        }
    };
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(failed("PR_SET_DUMPABLE"))?;
    let limit = |resource, value| {
        let limit = Rlimit {
            current: Some(value),
            maximum: Some(value),
        };
        rustix::process::setrlimit(resource, limit)
    };
    limit(Limit::Core, 0).map_err(failed("RLIMIT_CORE"))?;
    limit(Limit::Nofile, DESCRIPTORS_MAX).map_err(failed("RLIMIT_NOFILE"))?;
    sys::unshare(
        UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS,
    )
    .map_err(failed("new namespaces (this needs root)"))?;
    empty_root(&confinement.root)?;
    drop_privileges(confinement).map_err(failed("dropping privileges"))
}

/// An empty read-only file system becomes the root of a mount namespace of our own; it lies on `root`, a directory that must
/// be no symbolic link.
fn empty_root(root: &Path) -> Result<()> {
    let failed = |what: &'static str| {
        move |e: rustix::io::Errno| Error::Confinement {
            what,
            source: e.into(),
        }
    };
    let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", downstream).map_err(failed("the mount namespace"))?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, root, flags, Mode::empty())
        .map_err(failed("the directory for its root"))?;
    let owner = fstat(&directory).map_err(failed("the directory for its root"))?;
    if owner.st_uid != rustix::process::geteuid().as_raw() {
        return Err(
            failed("the directory for its root belongs to another user")(rustix::io::Errno::PERM),
        );
    }
    let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("an empty root"))?;
    for (key, value) in [("mode", "0555"), ("nr_inodes", "1"), ("size", "4096")] {
        fsconfig_set_string(&tmpfs, key, value).map_err(failed("an empty root"))?;
    }
    fsconfig_create(&tmpfs).map_err(failed("an empty root"))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = fsmount(&tmpfs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(failed("an empty root"))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&mount, "", &directory, "", flags).map_err(failed("mounting its root"))?;
    rustix::process::fchdir(&mount).map_err(failed("its root"))?;
    rustix::process::pivot_root(".", ".").map_err(failed("pivot_root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(failed("leaving the host's root"))?;
    rustix::process::chdir("/").map_err(failed("its root"))
}

fn drop_privileges(confinement: &Confinement) -> rustix::io::Result<()> {
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // the kernel knows no more than these
            Err(rustix::io::Errno::INVAL) => break,
            Err(e) => return Err(e),
        }
    }
    let (user, group) = (
        Uid::from_raw(confinement.uid),
        Gid::from_raw(confinement.gid),
    );
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(group, group, group)?;
    rustix::thread::set_thread_res_uid(user, user, user)?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none)?;
    rustix::thread::set_no_new_privs(true)?;
    // a change of user makes a process undumpable or dumpable by the host's settings
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
}
