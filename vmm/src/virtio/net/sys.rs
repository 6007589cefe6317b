//! The ioctls of a tap device (linux/if_tun.h).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `struct ifreq`, of which TUNGETIFF fills the name and the flags.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// A tap device that is up, `tap0`, in a network namespace of the calling thread's own.
#[cfg(test)]
pub fn tap_in_own_namespace() -> io::Result<File> {
    // SAFETY: it changes the calling thread's namespace and nothing in memory.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    let tap = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let mut request = Request {
        name: [0; libc::IFNAMSIZ],
        flags: (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short,
        rest: [0; 22],
    };
    request.name[..4].copy_from_slice(b"tap0");
    let argument: *mut Request = &mut request;
    // SAFETY: TUNSETIFF reads and writes a `struct ifreq`.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF as _, argument) })?;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    request.flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    let argument: *const Request = &request;
    // SAFETY: SIOCSIFFLAGS reads a `struct ifreq`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, argument) })?;
    Ok(tap)
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The device's `IFF_` flags.
pub fn flags(tap: &File) -> io::Result<libc::c_int> {
    let mut request = Request {
        name: [0; libc::IFNAMSIZ],
        flags: 0,
        rest: [0; 22],
    };
    let argument: *mut Request = &mut request;
    // SAFETY: TUNGETIFF writes a `struct ifreq`, which `request` has the size of.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETIFF as _, argument) })?;
    Ok(libc::c_int::from(request.flags))
}

/// So many bytes are before each frame.
pub fn set_header_len(tap: &File, len: libc::c_int) -> io::Result<()> {
    let argument: *const libc::c_int = &len;
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, argument) })
}

/// What the reader of the tap does itself: `TUN_F_` flags.
pub fn set_offload(tap: &File, flags: libc::c_uint) -> io::Result<()> {
    let flags = libc::c_ulong::from(flags);
    // SAFETY: TUNSETOFFLOAD takes its flags by value.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD as _, flags) })
}
