//! virtio devices (virtio 1.2) behind the MMIO transport.
//!
//! ```text
//! VmSpec ─▶ rng/ net/ block/ vsock/ …: a device: what it is, its features, its configuration space
//!              │  activate(queues, interrupt, memory)  at DRIVER_OK, at resume
//!              ▼                                    ▲
//!           a worker of its own: pops chains,       │  stop(): gives it all back, at pause and reset
//!           does the work, signals ─────────────────┘
//! ```
//!
//! Adding a device touches its own folder, its spec and one list (`devices::open`). Everything a guest writes is checked
//! once and copied before it is used; queue registers are frozen from DRIVER_OK on (CVE-2026-5747).

pub mod balloon;
pub mod block;
mod chain;
pub mod console;
pub mod fs;
pub mod net;
pub mod rate;
pub mod rng;
mod slices;
mod sys;
#[cfg(test)]
pub mod testing;
mod transport;
mod used;
pub mod vsock;

pub use transport::{MMIO_LEN, QUEUE_NOTIFY, Transport, TransportState};

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use caisson_protocol::vmm::{RateLimits, VmStats};
use serde_json::Value;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::error::{Error, Result};

/// Offered by every device: the only version this VMM speaks.
pub const F_VERSION_1: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
/// Notifications only when the other side asked for them.
pub const F_EVENT_IDX: u64 = 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

/// The type of a disk (virtio 1.2, section 5).
pub const BLOCK: u32 = 2;

/// A device, as the transport sees it.
///
/// `activate` and `stop` alternate. A pause is a stop, a resume activates it again with what `stop` gave back.
pub trait Device: Send {
    /// Device type (virtio 1.2, section 5).
    fn kind(&self) -> u32;
    /// The feature bits it offers, beside VERSION_1.
    fn features(&self) -> u64 {
        F_EVENT_IDX
    }
    /// The largest size of each of its queues, a power of two.
    fn queue_sizes(&self) -> &[u16];
    /// The threads that it has while it is active: the [`Worker`](crate::worker::Worker)s that `activate` spawns.
    fn workers(&self) -> usize {
        1
    }
    /// The guest reads the configuration space; bytes beyond its end read as zero, which they are.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}
    /// The guest writes it.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// Begin to work: the driver is ready, or the machine resumes. Requests may be waiting in the queues without a kick.
    fn activate(&mut self, activation: Activation) -> Result<()>;
    /// Stop working before returning; requests in flight are completed or left in the queue. Gives back what `activate`
    /// was given, queues as they stand; `None` when it was not active.
    fn stop(&mut self) -> Option<Activation>;
    /// The driver begins anew: stop, and forget what belonged to it.
    fn reset(&mut self) {
        drop(self.stop());
    }
    /// What it must remember across a snapshot, beside queues and features. Called while it is stopped.
    fn save(&self) -> Value {
        Value::Null
    }
    /// Takes what `save` returned, in a new process, before it is activated. The value comes from a file: check it.
    fn restore(&mut self, _state: Value) -> Result<()> {
        Ok(())
    }
    /// The control socket asks for something, at any time; a device that was not meant fails with
    /// [`Error::NotThisDevice`].
    fn command(&mut self, _command: &Command) -> Result<Changed> {
        Err(Error::NotThisDevice)
    }
    /// Adds what it counted; disks and network devices push an element each, in the order of the devices.
    fn count(&self, _stats: &mut VmStats) {}
}

/// What the control socket may ask of a device.
#[derive(Debug)]
pub enum Command {
    /// The balloon: hold so many bytes.
    SetBalloon(u64),
    /// A disk: go on with this file.
    UpdateDisk {
        /// Opened for reading, and for writing unless `read_only`.
        file: File,
        #[allow(missing_docs)]
        read_only: bool,
    },
    /// A disk: new limits.
    LimitDisk(RateLimits),
}

/// What a command changed that the driver is to be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Nothing.
    Nothing,
    /// The configuration space: the transport raises the interrupt and counts the generation.
    Config,
}

/// Reads a configuration space that is these bytes.
pub fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let from = usize::try_from(offset)
        .unwrap_or(usize::MAX)
        .min(config.len());
    let len = data.len().min(config.len() - from);
    data[..len].copy_from_slice(&config[from..from + len]);
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
    /// The features that the driver accepted.
    pub features: u64,
}

impl Activation {
    /// Kicks every queue, for what was offered before has no kick any more; returns the kicks, for a
    /// [`Worker`](crate::worker::Worker).
    pub fn kick_all(&self) -> Result<Vec<EventFd>> {
        let kicks = self.kicks.iter();
        kicks
            .map(|kick| kick.write(1).and_then(|()| kick.try_clone()))
            .collect::<std::io::Result<_>>()
            .map_err(Error::io("a device's kick"))
    }

    /// Adds the kicks to an epoll that outlives this, or takes them out of it, with whatever stops the thread. The kicks'
    /// tokens are their queues' numbers.
    pub fn watch(
        &self,
        epoll: &Epoll,
        stop: (&EventFd, u64),
        operation: fn() -> ControlOperation,
    ) -> Result<()> {
        for (event, token) in self.kicks.iter().zip(0..).chain([stop]) {
            epoll
                .ctl(
                    operation(),
                    event.as_raw_fd(),
                    EpollEvent::new(EventSet::IN, token),
                )
                .map_err(Error::io("a device's epoll"))?;
        }
        Ok(())
    }
}

/// A device's interrupt line with its status register.
#[derive(Clone)]
pub struct Interrupt {
    status: Arc<AtomicU32>,
    generation: Arc<AtomicU32>,
    line: Arc<EventFd>,
}

const USED_BUFFER: u32 = 1;
const CONFIG_CHANGED: u32 = 2;

impl Interrupt {
    /// An interrupt on `line`.
    pub fn new(line: EventFd) -> Self {
        Interrupt {
            status: Arc::default(),
            generation: Arc::default(),
            line: Arc::new(line),
        }
    }

    /// Buffers were used.
    pub fn used(&self) -> Result<()> {
        self.raise(USED_BUFFER)
    }

    /// The configuration space reads differently from now on.
    pub fn config_changed(&self) -> Result<()> {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(CONFIG_CHANGED)
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

    fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    /// The registers as they were; whoever had not acknowledged is interrupted again.
    fn restore(&self, status: u32, generation: u32) -> Result<()> {
        self.generation.store(generation, Ordering::SeqCst);
        match status {
            0 => Ok(()),
            why => self.raise(why),
        }
    }

    fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }
}
