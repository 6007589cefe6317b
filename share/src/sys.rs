//! Descriptors by number, and a system call that rustix does not have.
#![allow(unsafe_code)]

use std::io::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Takes an inherited descriptor over; it will not be inherited further.
pub fn adopt(number: i32) -> Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: fcntl on a number; it fails when nothing is open there.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: it is open, and the caller, who names each descriptor once at the start of the process, gives it away.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// `struct mount_attr` (linux/mount.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct MountAttributes {
    pub set: u64,
    pub clear: u64,
    pub propagation: u64,
    pub userns_fd: u64,
}

/// mount_setattr(2) on a mount and all that is mounted below it.
pub fn mount_setattr(mount: BorrowedFd<'_>, attributes: &MountAttributes) -> Result<()> {
    // SAFETY: the path is an empty C string, the attributes a live structure of the size given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            std::ptr::from_ref(attributes),
            size_of::<MountAttributes>(),
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}
