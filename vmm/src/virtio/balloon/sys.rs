//! Giving the guest's memory back to the host.
#![allow(unsafe_code)]

use std::io;

use crate::virtio::slices::Slice;

/// Drops the pages of `slice`, whose ends are pages' ends. What is read there next is zero, or the snapshot's if the memory
/// came from one.
pub fn discard(slice: &Slice) -> io::Result<()> {
    let start = slice.ptr_guard_mut().as_ptr().cast();
    // SAFETY: the range is a part of the guest's memory, a private mapping that lives as long as `slice`; only the guest
    // has use for what is in it, and it is the guest that gives it up.
    match unsafe { libc::madvise(start, slice.len(), libc::MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
