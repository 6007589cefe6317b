//! virtio devices (virtio 1.2) behind the MMIO transport.
//!
//! ```text
//! VmSpec ─▶ rng/ net/ block/ vsock/ …: a device: what it is, its features, its configuration space
//!              │  activate(queues, interrupt, memory)      once, at DRIVER_OK
//!              ▼
//!           a worker thread of its own: pops chains, does the work, signals
//! ```
//!
//! Adding a device touches its own folder, its spec and one list (`machine::devices`). Everything a guest writes is checked
//! once and copied before it is used; queue registers are frozen from DRIVER_OK on (CVE-2026-5747).

pub mod rng;
mod transport;

pub use transport::{MMIO_LEN, QUEUE_NOTIFY, Transport};

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::error::{Error, Result};

/// Offered by every device: the only version this VMM speaks.
pub const F_VERSION_1: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
/// Notifications only when the other side asked for them.
pub const F_EVENT_IDX: u64 = 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

/// A device, as the transport sees it.
pub trait Device: Send {
    /// Device type (virtio 1.2, section 5).
    fn kind(&self) -> u32;
    /// The feature bits it offers.
    fn features(&self) -> u64;
    /// The largest size of each of its queues, a power of two.
    fn queue_sizes(&self) -> &[u16];
    /// The guest reads the configuration space; bytes beyond its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// The guest writes it.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// The driver is ready: begin to work.
    fn activate(&mut self, activation: Activation) -> Result<()>;
    /// The driver resets the device: stop working before returning.
    fn reset(&mut self);
}

/// What a device is given when its driver is ready.
pub struct Activation {
    /// The guest's memory.
    pub memory: GuestMemoryMmap,
    /// Its queues, valid and ready, in their order; a queue that the driver left out is not ready.
    pub queues: Vec<Queue>,
    /// Signalled by the guest, one for each queue.
    pub kicks: Vec<EventFd>,
    /// How the guest is told.
    pub interrupt: Interrupt,
}

/// A device's interrupt line with its status register.
#[derive(Clone)]
pub struct Interrupt {
    status: Arc<AtomicU32>,
    line: Arc<EventFd>,
}

const USED_BUFFER: u32 = 1;

impl Interrupt {
    /// An interrupt on `line`.
    pub fn new(line: EventFd) -> Self {
        Interrupt {
            status: Arc::default(),
            line: Arc::new(line),
        }
    }

    /// Buffers were used.
    pub fn used(&self) -> Result<()> {
        self.raise(USED_BUFFER)
    }

    fn raise(&self, why: u32) -> Result<()> {
        self.status.fetch_or(why, Ordering::SeqCst);
        self.line
            .write(1)
            .map_err(Error::io("a device's interrupt"))
    }

    fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }
}
