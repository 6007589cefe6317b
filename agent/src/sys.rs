//! The system calls that no crate wraps: feeding the kernel's random number generator.

use std::os::fd::{AsRawFd, BorrowedFd};

/// The kernel takes at most this much in one call here; more is of no use.
const POOL_BYTES: usize = 512;

/// `struct rand_pool_info` (linux/random.h).
#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    buffer_bytes: libc::c_int,
    buffer: [u8; POOL_BYTES],
}

mod request {
    nix::ioctl_write_ptr_bad!(
        add_entropy,
        nix::request_code_write!(b'R', 0x03, 2 * std::mem::size_of::<libc::c_int>()),
        super::PoolInfo
    );
    nix::ioctl_none!(reseed, b'R', 0x07);
}

/// Mixes bytes into the generator behind `/dev/urandom`, counted as entropy, and makes it use them at once.
pub fn credit_entropy(random: BorrowedFd<'_>, bytes: &[u8]) -> nix::Result<()> {
    for part in bytes.chunks(POOL_BYTES) {
        let mut info = PoolInfo {
            entropy_bits: (part.len() * 8) as libc::c_int,
            buffer_bytes: part.len() as libc::c_int,
            buffer: [0; POOL_BYTES],
        };
        info.buffer[..part.len()].copy_from_slice(part);
        // SAFETY: RNDADDENTROPY reads the two numbers and `buffer_bytes` bytes behind them, all of them inside `info`, which
        // lives through the call.
        unsafe { request::add_entropy(random.as_raw_fd(), &info) }?;
    }
    // SAFETY: RNDRESEEDCRNG takes no argument and touches no memory of ours.
    unsafe { request::reseed(random.as_raw_fd()) }?;
    Ok(())
}
