//! The host's side: a tap device, each of whose reads and writes is a frame behind a `virtio_net_hdr_v1`.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use caisson_protocol::vmm::Resource;

use super::{HEADER_LEN, features, sys};
use crate::error::{Error, Result};
use crate::resource;
use crate::virtio::slices::Slices;

/// A tap device, or for tests and fuzzing a socket that keeps messages apart.
pub struct Tap {
    file: File,
    is_tap: bool,
}

impl Tap {
    /// Takes an inherited descriptor over.
    pub fn open(resource: &Resource) -> Result<Self> {
        let Resource::Fd(number) = resource else {
            let reason = "a tap device is inherited as an open descriptor, it has no path";
            return Err(Error::Spec(reason.into()));
        };
        let file = File::from(resource::adopt("a network device's tap", *number)?);
        let needed = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let flags = sys::flags(&file).map_err(Error::io("a network device's descriptor"))?;
        if flags & needed != needed {
            let reason = format!(
                "a network device's descriptor has the flags {flags:#x}: it must be opened with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR"
            );
            return Err(Error::Spec(reason));
        }
        sys::set_header_len(&file, HEADER_LEN as i32).map_err(Error::io("TUNSETVNETHDRSZ"))?;
        crate::sys::set_nonblocking(&file).map_err(Error::io("a tap device"))?;
        Ok(Tap { file, is_tap: true })
    }

    /// Plays a tap with a message socket.
    pub fn played_by(socket: OwnedFd) -> Result<Self> {
        let file = File::from(socket);
        crate::sys::set_nonblocking(&file).map_err(Error::io("a tap's socket"))?;
        let is_tap = false;
        Ok(Tap { file, is_tap })
    }

    /// For epoll.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The host leaves to the guest what its driver has said that it can do.
    pub fn set_offload(&self, driver: u64) -> io::Result<()> {
        let pairs = [
            (features::GUEST_CSUM, libc::TUN_F_CSUM),
            (features::GUEST_TSO4, libc::TUN_F_TSO4),
            (features::GUEST_TSO6, libc::TUN_F_TSO6),
            (features::GUEST_UFO, libc::TUN_F_UFO),
        ];
        let chosen = pairs.iter().filter(|(feature, _)| driver & feature != 0);
        let mut flags = chosen.fold(0, |flags, (_, flag)| flags | flag);
        // the others mean nothing without it, and the kernel refuses them
        if flags & libc::TUN_F_CSUM == 0 {
            flags = 0;
        }
        match self.is_tap {
            true => sys::set_offload(&self.file, flags),
            false => Ok(()),
        }
    }

    /// The next frame, with its header.
    pub fn read(&self, into: &Slices) -> io::Result<usize> {
        into.read_from(&self.file)
    }

    /// Sends a frame with its header.
    pub fn write(&self, from: &Slices) -> io::Result<usize> {
        from.write_to(&self.file)
    }
}
