//! The MMIO transport (virtio 1.2, section 4.2): registers in front of a device.
//!
//! ```text
//! reset ─▶ ACKNOWLEDGE ─▶ DRIVER ─▶ FEATURES_OK ─▶ DRIVER_OK: activate, queue registers frozen ─▶ write 0: reset
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use caisson_protocol::vmm::VmStats;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::{Activation, Changed, Command, Device, F_EVENT_IDX, F_VERSION_1, Interrupt};
use crate::bus::MmioDevice;
use crate::error::{Error, Result};
use crate::timing::{self, Phase};

/// Bytes of guest-physical space that a device takes.
pub const MMIO_LEN: u64 = 0x1000;
/// Writing here says which queue has work: the offset that KVM's ioeventfd listens to.
pub const QUEUE_NOTIFY: u64 = 0x50;
const CONFIG: u64 = 0x100;

const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
const VENDOR: u32 = 0x4e53_4943;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;

/// One device behind its registers.
pub struct Transport {
    state: Mutex<State>,
    interrupt: Interrupt,
}

/// A device and its registers, in a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TransportState {
    kind: u32,
    status: u32,
    device_features_page: u32,
    driver_features_page: u32,
    driver_features: u64,
    queue_selected: usize,
    interrupt_status: u32,
    generation: u32,
    queues: Vec<QueueRegisters>,
    /// What [`Device::save`] said.
    device: Value,
}

/// A queue, in a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct QueueRegisters {
    max_size: u16,
    size: u16,
    ready: bool,
    event_idx: bool,
    next_avail: u16,
    next_used: u16,
    descriptors: u64,
    available: u64,
    used: u64,
}

impl From<&QueueState> for QueueRegisters {
    fn from(state: &QueueState) -> Self {
        QueueRegisters {
            max_size: state.max_size,
            size: state.size,
            ready: state.ready,
            event_idx: state.event_idx_enabled,
            next_avail: state.next_avail,
            next_used: state.next_used,
            descriptors: state.desc_table,
            available: state.avail_ring,
            used: state.used_ring,
        }
    }
}

impl From<&QueueRegisters> for QueueState {
    fn from(saved: &QueueRegisters) -> Self {
        QueueState {
            max_size: saved.max_size,
            size: saved.size,
            ready: saved.ready,
            event_idx_enabled: saved.event_idx,
            next_avail: saved.next_avail,
            next_used: saved.next_used,
            desc_table: saved.descriptors,
            avail_ring: saved.available,
            used_ring: saved.used,
        }
    }
}

struct State {
    device: Box<dyn Device>,
    memory: GuestMemoryMmap,
    queues: Vec<Queue>,
    kicks: Arc<Vec<EventFd>>,
    status: u32,
    device_features_page: u32,
    driver_features_page: u32,
    driver_features: u64,
    queue_selected: usize,
    /// What the device was given, while the machine is paused.
    parked: Option<Activation>,
}

impl Transport {
    /// Puts registers before `device`. `kicks`, one for each queue, are signalled when the guest writes QUEUE_NOTIFY.
    pub fn new(
        device: Box<dyn Device>,
        memory: GuestMemoryMmap,
        kicks: Arc<Vec<EventFd>>,
        interrupt: Interrupt,
    ) -> Self {
        let queues = fresh_queues(device.as_ref());
        let state = State {
            device,
            memory,
            queues,
            kicks,
            status: 0,
            device_features_page: 0,
            driver_features_page: 0,
            driver_features: 0,
            queue_selected: 0,
            parked: None,
        };
        Transport {
            state: Mutex::new(state),
            interrupt,
        }
    }

    /// The device's type.
    pub fn kind(&self) -> u32 {
        self.state().device.kind()
    }

    /// Threads that the device may have.
    pub fn workers(&self) -> usize {
        self.state().device.workers()
    }

    /// Stops the device, if it works; nothing reaches its registers meanwhile.
    pub fn pause(&self) {
        let mut state = self.state();
        if let Some(activation) = state.device.stop() {
            state.parked = Some(activation);
        }
    }

    /// Lets a device go on that [`Transport::pause`] stopped.
    pub fn resume(&self) {
        let mut state = self.state();
        if let Some(activation) = state.parked.take()
            && let Err(error) = state.device.activate(activation)
        {
            eprintln!("caisson-vmm: a device cannot go on: {error}");
            state.status |= NEEDS_RESET;
            let _ = self.interrupt.config_changed();
        }
    }

    /// Its state; the machine is paused.
    pub fn save(&self) -> TransportState {
        let state = self.state();
        let queues = match &state.parked {
            Some(activation) => &activation.queues,
            None => &state.queues,
        };
        TransportState {
            kind: state.device.kind(),
            status: state.status,
            device_features_page: state.device_features_page,
            driver_features_page: state.driver_features_page,
            driver_features: state.driver_features,
            queue_selected: state.queue_selected,
            interrupt_status: self.interrupt.status(),
            generation: self.interrupt.generation(),
            queues: queues
                .iter()
                .map(|q| QueueRegisters::from(&q.state()))
                .collect(),
            device: state.device.save(),
        }
    }

    /// Takes a state over, which comes from a file; the device begins to work at the next [`Transport::resume`].
    pub fn restore(&self, saved: TransportState) -> Result<()> {
        let mut state = self.state();
        let unfit =
            |why: &str| Error::Snapshot(format!("a device of type {}: {why}", state.device.kind()));
        if saved.kind != state.device.kind() {
            return Err(unfit("another is in its place"));
        }
        let active = saved.status & DRIVER_OK != 0;
        let fresh = fresh_queues(state.device.as_ref());
        if saved.queues.len() != fresh.len() {
            return Err(unfit("it has another number of queues"));
        }
        let mut queues = Vec::new();
        for (saved, fresh) in saved.queues.iter().zip(&fresh) {
            let queue = Queue::try_from(QueueState::from(saved))
                .ok()
                .filter(|q| q.max_size() == fresh.max_size())
                .filter(|q| !(active && q.ready()) || q.is_valid(&state.memory))
                .ok_or_else(|| unfit("one of its queues is none"))?;
            queues.push(queue);
        }
        let offered = state.device.features() | F_VERSION_1;
        if active && saved.driver_features & !offered != 0 {
            return Err(unfit("its driver uses features that it does not have"));
        }
        state.device.restore(saved.device)?;
        state.status = saved.status;
        state.device_features_page = saved.device_features_page;
        state.driver_features_page = saved.driver_features_page;
        state.driver_features = saved.driver_features;
        state.queue_selected = saved.queue_selected;
        self.interrupt
            .restore(saved.interrupt_status, saved.generation)?;
        let stands = saved.status & NEEDS_RESET != 0;
        if active && !stands {
            let kicks: std::io::Result<Vec<EventFd>> =
                state.kicks.iter().map(EventFd::try_clone).collect();
            state.parked = Some(Activation {
                memory: state.memory.clone(),
                queues,
                kicks: kicks.map_err(Error::io("eventfd"))?,
                interrupt: self.interrupt.clone(),
                features: saved.driver_features,
            });
        } else {
            state.queues = queues;
        }
        Ok(())
    }

    /// Passes a command to the device; tells the driver of what it changed.
    pub fn command(&self, command: &Command) -> Result<()> {
        let mut state = self.state();
        if state.device.command(command)? == Changed::Config && state.status & DRIVER_OK != 0 {
            self.interrupt.config_changed()?;
        }
        Ok(())
    }

    /// Adds what the device counted.
    pub fn count(&self, stats: &mut VmStats) {
        self.state().device.count(stats);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fresh_queues(device: &dyn Device) -> Vec<Queue> {
    device
        .queue_sizes()
        .iter()
        .map(|size| Queue::new(*size).expect("a device's queue sizes are powers of two"))
        .collect()
}

impl MmioDevice for Transport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let state = self.state();
        if offset >= CONFIG {
            return state.device.read_config(offset - CONFIG, data);
        }
        if data.len() == 4 {
            let value = match offset {
                0x60 => self.interrupt.status(),
                0xfc => self.interrupt.generation(),
                _ => state.register(offset),
            };
            data.copy_from_slice(&value.to_le_bytes());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.state();
        if offset >= CONFIG {
            return state.device.write_config(offset - CONFIG, data);
        }
        let Ok(bytes) = <[u8; 4]>::try_from(data) else {
            return;
        };
        let value = u32::from_le_bytes(bytes);
        match offset {
            0x64 => self.interrupt.acknowledge(value),
            0x70 => state.set_status(value, &self.interrupt),
            QUEUE_NOTIFY => state.notify(value),
            _ => state.set_register(offset, value),
        }
    }
}

impl State {
    fn register(&self, offset: u64) -> u32 {
        let features = self.device.features() | F_VERSION_1;
        match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => self.device.kind(),
            0x0c => VENDOR,
            0x10 => page(features, self.device_features_page),
            0x34 => self
                .queues
                .get(self.queue_selected)
                .map_or(0, |q| u32::from(q.max_size())),
            0x44 => self
                .queues
                .get(self.queue_selected)
                .map_or(0, |q| u32::from(q.ready())),
            0x70 => self.status,
            // shared memory regions: none, whose length reads as all ones
            0xb0..=0xbc => u32::MAX,
            _ => 0,
        }
    }

    fn set_register(&mut self, offset: u64, value: u32) {
        match offset {
            0x14 => self.device_features_page = value,
            0x24 => self.driver_features_page = value,
            0x20 if self.negotiating() => {
                set_page(&mut self.driver_features, self.driver_features_page, value)
            }
            0x30 => self.queue_selected = value as usize,
            _ if self.configuring() => self.set_queue_register(offset, value),
            _ => {}
        }
    }

    fn set_queue_register(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.queues.get_mut(self.queue_selected) else {
            return;
        };
        match offset {
            0x38 => queue.set_size(u16::try_from(value).unwrap_or(0)),
            0x44 => queue.set_ready(value == 1),
            0x80 => queue.set_desc_table_address(Some(value), None),
            0x84 => queue.set_desc_table_address(None, Some(value)),
            0x90 => queue.set_avail_ring_address(Some(value), None),
            0x94 => queue.set_avail_ring_address(None, Some(value)),
            0xa0 => queue.set_used_ring_address(Some(value), None),
            0xa4 => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    /// Features may be chosen between DRIVER and FEATURES_OK.
    fn negotiating(&self) -> bool {
        self.status & (DRIVER | FEATURES_OK | DRIVER_OK) == DRIVER
    }

    /// Queues may be set up between FEATURES_OK and DRIVER_OK.
    fn configuring(&self) -> bool {
        self.status & (FEATURES_OK | DRIVER_OK) == FEATURES_OK
    }

    fn set_status(&mut self, value: u32, interrupt: &Interrupt) {
        if value == 0 {
            return self.reset(interrupt);
        }
        let new = value & !self.status;
        let allowed = match new {
            ACKNOWLEDGE => true,
            DRIVER => self.status & ACKNOWLEDGE != 0,
            FEATURES_OK => self.status & DRIVER != 0 && self.features_fit(),
            DRIVER_OK => self.status & FEATURES_OK != 0,
            FAILED => true,
            _ => false,
        };
        if !allowed {
            return;
        }
        self.status |= new;
        if new == DRIVER_OK {
            timing::reached(Phase::Drivers);
        }
        if new == DRIVER_OK && !self.activate(interrupt) {
            self.status |= NEEDS_RESET;
        }
    }

    fn features_fit(&self) -> bool {
        let offered = self.device.features() | F_VERSION_1;
        self.driver_features & !offered == 0 && self.driver_features & F_VERSION_1 != 0
    }

    fn activate(&mut self, interrupt: &Interrupt) -> bool {
        let event_idx = self.driver_features & F_EVENT_IDX != 0;
        for queue in self.queues.iter_mut().filter(|q| q.ready()) {
            if !queue.is_valid(&self.memory) {
                return false;
            }
            queue.set_event_idx(event_idx);
        }
        let kicks: std::io::Result<Vec<EventFd>> =
            self.kicks.iter().map(EventFd::try_clone).collect();
        let Ok(kicks) = kicks else { return false };
        let queues = std::mem::replace(&mut self.queues, fresh_queues(self.device.as_ref()));
        let activation = Activation {
            memory: self.memory.clone(),
            queues,
            kicks,
            interrupt: interrupt.clone(),
            features: self.driver_features,
        };
        self.device.activate(activation).is_ok()
    }

    /// Where KVM has no ioeventfd for it, the notification comes as a plain write.
    fn notify(&self, queue: u32) {
        if let Some(kick) = self.kicks.get(queue as usize) {
            // a full counter means that the device has been told already
            let _ = kick.write(1);
        }
    }

    fn reset(&mut self, interrupt: &Interrupt) {
        self.device.reset();
        self.queues = fresh_queues(self.device.as_ref());
        interrupt.acknowledge(u32::MAX);
        self.status = 0;
        self.driver_features = 0;
        self.queue_selected = 0;
    }
}

fn page(features: u64, page: u32) -> u32 {
    match page {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

fn set_page(features: &mut u64, page: u32, value: u32) {
    match page {
        0 => *features = (*features & !0xffff_ffff) | u64::from(value),
        1 => *features = (*features & 0xffff_ffff) | u64::from(value) << 32,
        _ => {}
    }
}

#[cfg(test)]
mod tests;
