//! The walls around the server: what it can see, and what it may do there.
//!
//! ```text
//! /               a tmpfs, read-only
//! /share          the source, or, when that is no directory, a directory with the source as `file`
//! /proc/self/fd   this process' descriptors and nothing else of /proc: fuse-backend-rs goes through it
//! ```
//!
//! The source is a mount of its own on which symbolic links are not followed (NOSYMFOLLOW): a link is the guest's to
//! resolve. There is no way up from a mount's root, nor from a directory that was moved out of it on the host.
//!
//! Capabilities: files belong to whoever the guest says, whatever their mode: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETUID,
//! SETGID, SETFCAP. DAC_READ_SEARCH is for links to what is open (linkat, AT_EMPTY_PATH); what else it allows, opening by
//! handle, the filter refuses. No MKNOD: a guest makes no device nodes on the host.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use caps::{CapSet, Capability};
use nix::sched::CloneFlags;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};
use rustix::thread::CapabilitiesSecureBits;

use crate::sys::{self, MountAttributes};

/// Where the source is served from.
pub const SHARE: &str = "/share";
/// The entry that a source has which is no directory.
const FILE: &str = "file";

/// Open files: each file that the guest's kernel remembers is one.
const FILES_MAX: u64 = 1 << 20;
/// Address space; a guest that makes the server remember too much loses it.
const MEMORY_MAX: u64 = 4 << 30;

const RDONLY: u64 = 0x1;
const NOSUID: u64 = 0x2;
const NODEV: u64 = 0x4;
const NOEXEC: u64 = 0x8;
const NOSYMFOLLOW: u64 = 0x20_0000;

const CAPABILITIES: [Capability; 8] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_SETFCAP,
];

/// Limits of the process.
pub fn rlimits() -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit")?;
    let files = FILES_MAX.min(hard);
    setrlimit(Resource::RLIMIT_NOFILE, files, files).context("cannot limit open files")?;
    setrlimit(Resource::RLIMIT_AS, MEMORY_MAX, MEMORY_MAX).context("cannot limit memory")?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).context("cannot forbid core dumps")
}

/// A root that nobody has entered yet.
pub struct Root {
    root: OwnedFd,
}

impl Root {
    /// Makes the mount namespace and the root in it.
    pub fn prepare(source: &OwnedFd, read_only: bool, recursive: bool) -> anyhow::Result<Self> {
        let kind = rustix::fs::fstat(source).context("the source")?.st_mode;
        let is_directory = FileType::from_raw_mode(kind) == FileType::Directory;
        let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        // a tree is taken in the namespace that its mount belongs to, before this process leaves it
        let mut flags = clone | OpenTreeFlags::AT_EMPTY_PATH;
        if recursive && is_directory {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let tree = rustix::mount::open_tree(source, c"", flags).context(
            "cannot mount the source (it must be opened in the mount namespace of this process)",
        )?;
        let mut set = NOSUID | NODEV | NOEXEC | NOSYMFOLLOW;
        if read_only {
            set |= RDONLY;
        }
        let attributes = MountAttributes {
            set,
            propagation: libc::MS_PRIVATE,
            ..MountAttributes::default()
        };
        sys::mount_setattr(tree.as_fd(), &attributes).context("mount_setattr of the source")?;
        let descriptors = rustix::mount::open_tree(CWD, c"/proc/self/fd", clone)
            .context("cannot mount /proc/self/fd")?;

        nix::sched::unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC)
            .context("cannot make a mount namespace (it must be started as root)")?;
        let private = rustix::mount::MountPropagationFlags::PRIVATE;
        let all = private | rustix::mount::MountPropagationFlags::REC;
        rustix::mount::mount_change(c"/", all).context("cannot make mounts private")?;

        let root = tmpfs().context("cannot make a root")?;
        let below = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&root, c"", CWD, c"/", below).context("cannot mount a root")?;
        let mode = Mode::from_raw_mode(0o755);
        for directory in ["share", "proc", "proc/self", "proc/self/fd"] {
            rustix::fs::mkdirat(&root, directory, mode).context("a directory of the root")?;
        }
        rustix::mount::move_mount(&descriptors, c"", &root, c"proc/self/fd", below)
            .context("cannot mount /proc/self/fd")?;
        let target = if is_directory {
            "share".to_owned()
        } else {
            let target = format!("share/{FILE}");
            let create = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            rustix::fs::openat(&root, target.as_str(), create, mode).context("a file's place")?;
            target
        };
        rustix::mount::move_mount(&tree, c"", &root, target.as_str(), below)
            .context("cannot mount the source")?;
        Ok(Root { root })
    }

    /// Leaves everything else behind.
    pub fn enter(self) -> anyhow::Result<()> {
        rustix::process::fchdir(&self.root).context("the root")?;
        rustix::process::pivot_root(c".", c".").context("pivot_root")?;
        rustix::mount::unmount(c".", UnmountFlags::DETACH).context("the old root")?;
        rustix::process::chdir(c"/").context("the root")?;
        let remount = rustix::mount::MountFlags::RDONLY
            | rustix::mount::MountFlags::NOSUID
            | rustix::mount::MountFlags::NODEV
            | rustix::mount::MountFlags::NOEXEC
            | rustix::mount::MountFlags::BIND;
        rustix::mount::mount_remount(c"/", remount, c"").context("a read-only root")
    }
}

fn tmpfs() -> rustix::io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(context.as_fd(), c"size", c"64k")?;
    rustix::mount::fsconfig_set_string(context.as_fd(), c"mode", c"755")?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    rustix::mount::fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
    )
}

/// Keeps the few capabilities, also while a thread acts as another user: the guest's kernel has checked the permissions
/// already, and knows of supplementary groups, which do not come with a request.
pub fn capabilities() -> anyhow::Result<()> {
    rustix::thread::set_no_new_privs(true).context("no_new_privs")?;
    let bits = CapabilitiesSecureBits::NO_SETUID_FIXUP;
    rustix::thread::set_capabilities_secure_bits(bits).context("cannot set the secure bits")?;
    let wanted = CAPABILITIES.into_iter().collect();
    caps::clear(None, CapSet::Ambient).context("ambient capabilities")?;
    for capability in caps::read(None, CapSet::Bounding).context("the bounding set")? {
        caps::drop(None, CapSet::Bounding, capability).context("the bounding set")?;
    }
    caps::clear(None, CapSet::Inheritable).context("inheritable capabilities")?;
    caps::set(None, CapSet::Effective, &wanted).context("effective capabilities")?;
    caps::set(None, CapSet::Permitted, &wanted)
        .context("cannot keep the capabilities that files need (it must be started as root)")
}
