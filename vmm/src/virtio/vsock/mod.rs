//! Sockets between guest and host (virtio 1.2, section 5.10), in user space: the host's side are unix sockets.
//!
//! ```text
//! guest's process ─ AF_VSOCK ─ driver ═ queues ═▶ queues ─▶ muxer ─▶ connection ─ unix stream ─ host's process
//!                                                              └────▶ host: the listening socket and who waits there
//! ```
//!
//! One thread does it all. How a host's process asks for a connection stands at [`caisson_protocol::vmm::Vsock`].

mod connection;
mod host;
mod muxer;
mod packet;
mod queues;
mod receive;
#[cfg(test)]
mod tests;

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use caisson_protocol::vmm::{self, Resource, VmStats};
use serde_json::Value;

use super::{Activation, Device};
use crate::error::{Error, Result};
use crate::resource;
use crate::worker::Worker;
use muxer::{Counters, Muxer};
use queues::{Restored, Work};

const KIND: u32 = 19;
/// Receive, transmit, events. Linux fills the receive queue with buffers of 4 KiB when it starts, so a long one costs each
/// guest memory and time.
const QUEUE_SIZES: [u16; 3] = [64, 256, 8];

/// The device.
pub struct Vsock {
    guest_cid: u32,
    counters: Arc<Counters>,
    /// Here while the device is stopped, otherwise with the worker.
    muxer: Option<Muxer>,
    restored: Restored,
    worker: Option<Worker<Work>>,
}

impl Vsock {
    /// Opens the listening socket of a spec; a path is bound.
    pub fn open(spec: &vmm::Vsock) -> Result<Self> {
        const WHAT: &str = "the vsock device's listening socket";
        let listener = match &spec.listener {
            Resource::Fd(number) => UnixListener::from(resource::adopt(WHAT, *number)?),
            Resource::Path(path) => UnixListener::bind(path).map_err(|source| Error::Resource {
                what: format!("{WHAT} {}", path.display()),
                source,
            })?,
        };
        Self::new(spec.guest_cid, listener)
    }

    /// A device on a listening socket.
    pub fn new(guest_cid: u32, listener: UnixListener) -> Result<Self> {
        if guest_cid < 3 {
            let reason = format!("context id {guest_cid}: a guest's are 3 and above");
            return Err(Error::Spec(reason));
        }
        let counters = Arc::<Counters>::default();
        let muxer = Muxer::new(guest_cid, listener, counters.clone())
            .map_err(Error::io("the vsock device"))?;
        Ok(Vsock {
            guest_cid,
            counters,
            muxer: Some(muxer),
            restored: Restored::Done,
            worker: None,
        })
    }
}

impl Device for Vsock {
    fn kind(&self) -> u32 {
        KIND
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_config_bytes(&u64::from(self.guest_cid).to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<()> {
        let Some(mut muxer) = self.muxer.take() else {
            return Err(Error::Internal("the vsock device's thread died".into()));
        };
        muxer.resume(Instant::now());
        let work = Work {
            muxer,
            activation,
            restored: self.restored,
        };
        self.worker = Some(Worker::spawn_loop("vsock", work, Work::run)?);
        Ok(())
    }

    fn stop(&mut self) -> Option<Activation> {
        let work = self.worker.take()?.stop()?;
        self.muxer = Some(work.muxer);
        self.restored = work.restored;
        Some(work.activation)
    }

    fn reset(&mut self) {
        drop(self.stop());
        self.restored = Restored::Done;
        if let Some(muxer) = &mut self.muxer {
            muxer.disconnect();
        }
    }

    fn restore(&mut self, _state: Value) -> Result<()> {
        self.restored = Restored::Untold;
        if let Some(muxer) = &mut self.muxer {
            muxer.close();
        }
        Ok(())
    }

    fn count(&self, stats: &mut VmStats) {
        let counters = &self.counters;
        stats.vsock_connections += counters.connections.load(Ordering::Relaxed);
        stats.vsock_received_bytes += counters.received_bytes.load(Ordering::Relaxed);
        stats.vsock_sent_bytes += counters.sent_bytes.load(Ordering::Relaxed);
    }
}
