//! Directories of the host (virtio 1.2, section 5.11): FUSE between the guest's kernel and a server process.
//!
//! ```text
//! guest: mount -t virtiofs TAG ─▶ queues: 0 urgent (FORGET), 1 requests ─▶ relay (a thread) ─▶ socket ─▶ caisson-share
//! ```
//!
//! The server is another process, confined to its directory: this one never sees a path. A machine with such a device is
//! not restored from a snapshot: what the guest has open there is in the memory of a process that is gone.

mod message;
mod relay;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use caisson_protocol::vmm::FsShare;
use serde_json::Value;

use self::relay::{Relay, Server};
use super::chain::F_INDIRECT_DESC;
use super::{Activation, Device, F_EVENT_IDX};
use crate::error::{Error, Result};
use crate::resource::{self, Access};
use crate::worker::Worker;

const KIND: u32 = 26;
/// A driver puts no more pages into a request than its queue has descriptors.
const QUEUE_SIZES: [u16; 2] = [128, 128];
const TAG_LEN: usize = 36;

/// The device.
pub struct Fs {
    tag: [u8; TAG_LEN],
    /// While it is not active.
    server: Option<Server>,
    worker: Option<Worker<Relay>>,
}

impl Fs {
    /// Takes the connection with the server.
    pub fn open(spec: &FsShare) -> Result<Self> {
        let socket = resource::open("a share's server", &spec.server, Access::ReadWrite)?;
        Self::new(&spec.tag, UnixStream::from(OwnedFd::from(socket)))
    }

    /// A device whose server is at the other end of `socket`, which keeps messages apart.
    pub fn new(tag: &str, socket: UnixStream) -> Result<Self> {
        let mut padded = [0; TAG_LEN];
        let named = !tag.is_empty() && !tag.contains('\0');
        match padded.get_mut(..tag.len()) {
            Some(start) if named => start.copy_from_slice(tag.as_bytes()),
            _ => {
                return Err(Error::Spec(format!(
                    "the share {tag:?}: a tag has 1 to {TAG_LEN} bytes"
                )));
            }
        }
        Ok(Fs {
            tag: padded,
            server: Some(Server::new(socket)?),
            worker: None,
        })
    }
}

impl Device for Fs {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        F_EVENT_IDX | F_INDIRECT_DESC
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// `struct virtio_fs_config`: the tag, the number of request queues.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; TAG_LEN + 4];
        config[..TAG_LEN].copy_from_slice(&self.tag);
        config[TAG_LEN..].copy_from_slice(&1u32.to_le_bytes());
        super::read_config_bytes(&config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<()> {
        let dead = || Error::Internal("a share's connection is lost".into());
        let relay = Relay {
            activation,
            server: self.server.take().ok_or_else(dead)?,
        };
        self.worker = Some(relay.spawn("share")?);
        Ok(())
    }

    fn stop(&mut self) -> Option<Activation> {
        let relay = self.worker.take()?.stop()?;
        self.server = Some(relay.server);
        Some(relay.activation)
    }

    fn restore(&mut self, _state: Value) -> Result<()> {
        Err(Error::Snapshot(
            "a machine with shared directories cannot go on from one: their servers have forgotten what was open".into(),
        ))
    }
}
