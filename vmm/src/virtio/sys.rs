//! System calls on guest memory, which the guest may change meanwhile: no Rust reference to it may exist.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::slices::Slice;

/// What the kernel takes at once.
const IOV_MAX: usize = 1024;

fn vectors(slices: &[Slice]) -> Vec<libc::iovec> {
    let vector = |slice: &Slice| libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    };
    slices.iter().take(IOV_MAX).map(vector).collect()
}

fn count(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// `readv(2)` into guest memory.
pub fn readv(file: BorrowedFd, slices: &[Slice]) -> io::Result<usize> {
    let vectors = vectors(slices);
    // SAFETY: each vector is a slice of mapped memory that `slices` borrows; the kernel writes no further.
    count(unsafe { libc::readv(file.as_raw_fd(), vectors.as_ptr(), vectors.len() as i32) })
}

/// `writev(2)` from guest memory.
pub fn writev(file: BorrowedFd, slices: &[Slice]) -> io::Result<usize> {
    let vectors = vectors(slices);
    // SAFETY: each vector is a slice of mapped memory that `slices` borrows; the kernel only reads it.
    count(unsafe { libc::writev(file.as_raw_fd(), vectors.as_ptr(), vectors.len() as i32) })
}

/// `recv(2)` with `MSG_PEEK`: what has come stays to be read.
pub fn peek(socket: BorrowedFd, buffer: &mut [u8]) -> io::Result<usize> {
    let (start, len) = (buffer.as_mut_ptr().cast(), buffer.len());
    // SAFETY: `start` and `len` are those of `buffer`, which nobody else sees meanwhile.
    count(unsafe { libc::recv(socket.as_raw_fd(), start, len, libc::MSG_PEEK) })
}
