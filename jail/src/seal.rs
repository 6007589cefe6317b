//! Keeps the calling program's file out of a container's reach (CVE-2019-5736).
//!
//! A process that enters a container can be found there as /proc/PID/exe, and the file behind it be written by the
//! container's root. So the program re-executes itself from a detached, read-only mount of its own file, or, on kernels that
//! cannot, from a sealed copy in memory.
//!
//! `std::env::current_exe` is of no use afterwards: the mount has no path.
//! Must not know: containers.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mount::OpenTreeFlags;

use crate::error::{Context, Error, Result};
use crate::mount_options::attr;
use crate::sys::{self, MountAttr};

const SELF: &str = "/proc/self/exe";

/// Re-executes the calling program from a place nobody can write to, unless that is already so. Call it first thing in
/// `main`, single-threaded.
pub fn seal_self() -> Result<()> {
    if is_sealed()? {
        return Ok(());
    }
    let args: Vec<CString> = std::env::args_os()
        .filter_map(|arg| CString::new(arg.into_vec()).ok())
        .collect();
    let env: Vec<CString> = std::env::vars_os()
        .filter_map(|(name, value)| {
            CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok()
        })
        .collect();
    if let Ok(mount) = read_only_mount() {
        sys::execveat_fd(mount.as_fd(), &args, &env);
    }
    let copy = sealed_copy()?;
    Err(Error::sys(
        "execute a sealed copy of this program",
        sys::execveat_fd(copy.as_fd(), &args, &env),
    ))
}

fn is_sealed() -> Result<bool> {
    // On a read-only mount: ours, or a host's; there, too, nobody without rights over mounts can write.
    let mount = rustix::fs::statvfs(SELF).step_at("stat", SELF)?;
    if mount.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return Ok(true);
    }
    let sealed = File::open(SELF)
        .ok()
        .and_then(|file| rustix::fs::fcntl_get_seals(&file).ok());
    Ok(sealed.is_some_and(|seals| seals.contains(SealFlags::WRITE)))
}

fn read_only_mount() -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, SELF, flags)
        .step_at("clone the mount of", SELF)?;
    let closed = MountAttr {
        set: attr::RDONLY | attr::NOSUID | attr::NODEV,
        ..MountAttr::default()
    };
    sys::mount_setattr(tree.as_fd(), false, &closed).step("make a mount read-only")?;
    Ok(tree)
}

fn sealed_copy() -> Result<OwnedFd> {
    let step = "copy this program into a sealed memory file";
    let create = |flags| rustix::fs::memfd_create("caisson", flags);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // MFD_EXEC exists since Linux 6.3; without it newer hosts may refuse execution.
    let memory = create(flags | MemfdFlags::EXEC)
        .or_else(|_| create(flags))
        .step(step)?;
    let mut from = File::open(SELF).step_at("open", SELF)?;
    let mut to = File::from(memory.try_clone().step(step)?);
    std::io::copy(&mut from, &mut to).step(step)?;
    drop(to);
    rustix::fs::fcntl_add_seals(
        &memory,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )
    .step(step)?;
    Ok(memory)
}
