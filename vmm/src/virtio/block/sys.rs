//! Vectored I/O between a file and the guest's memory, and holes in files.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::AsRawFd;

use vm_memory::VolatileSlice;

/// `IOV_MAX` (limits.h).
const VECTORS_MAX: usize = 1024;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the file into the guest's memory.
    Read,
    /// From the guest's memory into the file.
    Write,
}

/// One `preadv` or `pwritev`; says how many bytes went.
pub fn transfer(
    file: &File,
    direction: Direction,
    slices: &[VolatileSlice],
    offset: i64,
) -> Result<usize> {
    // without the Xen backend a guard is the pointer and nothing else: the memory stays mapped as long as the slice lives
    let vectors: Vec<libc::iovec> = slices
        .iter()
        .take(VECTORS_MAX)
        .map(|slice| libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        })
        .collect();
    let (fd, count) = (file.as_raw_fd(), vectors.len() as libc::c_int);
    // SAFETY: each vector is a live range of the guest's memory, mapped for as long as `slices` is borrowed, into which
    // others may write at any time; the kernel copies and keeps no reference.
    let done = unsafe {
        match direction {
            Direction::Read => libc::preadv(fd, vectors.as_ptr(), count, offset),
            Direction::Write => libc::pwritev(fd, vectors.as_ptr(), count, offset),
        }
    };
    usize::try_from(done).map_err(|_| Error::last_os_error())
}

/// `fallocate`.
pub fn allocate(file: &File, mode: libc::c_int, offset: i64, len: i64) -> Result<()> {
    // SAFETY: a system call on numbers and an open descriptor.
    match unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}
