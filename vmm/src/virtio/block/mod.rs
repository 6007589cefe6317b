//! Disks (virtio 1.2, section 5.2): a file of the host as a block device of the guest.
//!
//! ```text
//! Block ─▶ lane (a thread for each queue) ─▶ request: one chain ─▶ disk: the file
//!    └─▶ Shared: which file, the limits, counters: changed from the control socket while the lanes run
//! ```
//!
//! Read-only is enforced here, whatever the guest does: `Disk` refuses.

mod disk;
mod lane;
mod request;
mod sys;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use caisson_protocol::vmm::{self, DeviceStats, VmStats};
use serde_json::{Value, json};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_queue::QueueT;

use self::disk::{Disk, SECTOR};
use self::lane::Lane;
use self::request::{
    DISCARD_SECTORS_MAX, DISCARD_SEGMENTS_MAX, SEGMENT_BYTES_MAX, SEGMENTS_MAX, SERIAL_LEN,
    ZERO_SECTORS_MAX,
};
use super::chain::F_INDIRECT_DESC;
use super::rate::RateLimiter;
use super::{Activation, Changed, Command, Device, F_EVENT_IDX};
use crate::error::{Error, Result};
use crate::resource::{self, Access};
use crate::worker::Worker;

const KIND: u32 = 2;
const QUEUE_SIZE: u16 = 256;
const QUEUES_MAX: u16 = 16;
/// Blocks of 4 KiB: what the file system below is best at.
const SECTORS_OF_BLOCK_EXPONENT: u8 = 3;

/// The device.
pub struct Block {
    shared: Arc<Shared>,
    queue_sizes: Vec<u16>,
    active: Option<Active>,
}

struct Active {
    lanes: Vec<Slot>,
    features: u64,
}

/// A queue that the driver set up, or left out.
enum Slot {
    Served(Worker<Lane>),
    Idle(Lane),
}

/// What the lanes share with the control socket.
pub struct Shared {
    disk: Mutex<Arc<Disk>>,
    limiter: Mutex<RateLimiter>,
    counters: Counters,
    serial: [u8; SERIAL_LEN],
}

impl Shared {
    fn disk(&self) -> Arc<Disk> {
        self.disk_slot().clone()
    }

    fn disk_slot(&self) -> MutexGuard<'_, Arc<Disk>> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limiter(&self) -> MutexGuard<'_, RateLimiter> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a disk has done.
#[derive(Debug, Default)]
pub struct Counters {
    read_ops: AtomicU64,
    read_bytes: AtomicU64,
    write_ops: AtomicU64,
    write_bytes: AtomicU64,
    errors: AtomicU64,
    throttled: AtomicU64,
}

impl Counters {
    fn read(&self, bytes: u64) {
        self.read_ops.fetch_add(1, Relaxed);
        self.read_bytes.fetch_add(bytes, Relaxed);
    }

    fn written(&self, bytes: u64) {
        self.write_ops.fetch_add(1, Relaxed);
        self.write_bytes.fetch_add(bytes, Relaxed);
    }

    fn error(&self) {
        self.errors.fetch_add(1, Relaxed);
    }

    fn throttle(&self) {
        self.throttled.fetch_add(1, Relaxed);
    }
}

impl Block {
    /// Opens the file of a disk.
    pub fn open(spec: &vmm::Disk) -> Result<Self> {
        let access = match spec.read_only {
            true => Access::Read,
            false => Access::ReadWrite,
        };
        let file = resource::open("the disk", &spec.file, access)?;
        let refuse = |what: String| Err(Error::Spec(format!("disk {:?}: {what}", spec.serial)));
        let mut serial = [0; SERIAL_LEN];
        let Some(start) = serial.get_mut(..spec.serial.len()) else {
            return refuse(format!("a serial number has at most {SERIAL_LEN} bytes"));
        };
        start.copy_from_slice(spec.serial.as_bytes());
        let queues = spec.queues.unwrap_or(1);
        if !(1..=QUEUES_MAX).contains(&queues) {
            return refuse(format!("{queues} queues; it has 1 to {QUEUES_MAX}"));
        }
        let disk = Disk::new(file, spec.read_only)?;
        Ok(Block {
            shared: Arc::new(Shared {
                disk: Mutex::new(Arc::new(disk)),
                limiter: Mutex::new(RateLimiter::new(spec.rate, Instant::now())),
                counters: Counters::default(),
                serial,
            }),
            queue_sizes: vec![QUEUE_SIZE; usize::from(queues)],
            active: None,
        })
    }

    /// `struct virtio_blk_config` (virtio 1.2, section 5.2.4).
    fn config(&self) -> [u8; 60] {
        let mut config = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.shared.disk().sectors().to_le_bytes());
        put(8, &SEGMENT_BYTES_MAX.to_le_bytes());
        put(12, &SEGMENTS_MAX.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(24, &[SECTORS_OF_BLOCK_EXPONENT]);
        put(26, &1u16.to_le_bytes());
        put(34, &(self.queue_sizes.len() as u16).to_le_bytes());
        put(36, &DISCARD_SECTORS_MAX.to_le_bytes());
        put(40, &DISCARD_SEGMENTS_MAX.to_le_bytes());
        put(44, &(1u32 << SECTORS_OF_BLOCK_EXPONENT).to_le_bytes());
        put(48, &ZERO_SECTORS_MAX.to_le_bytes());
        put(52, &1u32.to_le_bytes());
        put(56, &[1]);
        config
    }
}

impl Device for Block {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        let mut bits = vec![
            VIRTIO_BLK_F_SIZE_MAX,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_TOPOLOGY,
        ];
        if self.queue_sizes.len() > 1 {
            bits.push(VIRTIO_BLK_F_MQ);
        }
        bits.extend(match self.shared.disk().read_only() {
            true => &[VIRTIO_BLK_F_RO][..],
            false => &[
                VIRTIO_BLK_F_FLUSH,
                VIRTIO_BLK_F_DISCARD,
                VIRTIO_BLK_F_WRITE_ZEROES,
            ],
        });
        let features = bits.iter().fold(0, |bits, bit| bits | 1 << bit);
        features | F_EVENT_IDX | F_INDIRECT_DESC
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn workers(&self) -> usize {
        self.queue_sizes.len()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_config_bytes(&self.config(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<()> {
        let mut lanes = Vec::new();
        let queues = activation.queues.into_iter().zip(activation.kicks);
        for (number, (queue, kick)) in queues.enumerate() {
            let ready = queue.ready();
            let lane = Lane {
                queue,
                kick,
                memory: activation.memory.clone(),
                interrupt: activation.interrupt.clone(),
                shared: self.shared.clone(),
            };
            lanes.push(match ready {
                true => Slot::Served(lane.spawn(&format!("disk-q{number}"))?),
                false => Slot::Idle(lane),
            });
        }
        self.active = Some(Active {
            lanes,
            features: activation.features,
        });
        Ok(())
    }

    fn stop(&mut self) -> Option<Activation> {
        let active = self.active.take()?;
        let mut lanes = Vec::new();
        for slot in active.lanes {
            lanes.push(match slot {
                Slot::Served(worker) => worker.stop()?,
                Slot::Idle(lane) => lane,
            });
        }
        let first = lanes.first()?;
        let (memory, interrupt) = (first.memory.clone(), first.interrupt.clone());
        let (queues, kicks) = lanes.into_iter().map(|l| (l.queue, l.kick)).unzip();
        Some(Activation {
            memory,
            queues,
            kicks,
            interrupt,
            features: active.features,
        })
    }

    fn save(&self) -> Value {
        json!({ "sectors": self.shared.disk().sectors() })
    }

    fn restore(&mut self, state: Value) -> Result<()> {
        let sectors = self.shared.disk().sectors();
        match state["sectors"].as_u64() {
            Some(saved) if saved == sectors => Ok(()),
            Some(saved) => Err(Error::Snapshot(format!(
                "a disk of it has {saved} sectors, the file that was given has {sectors}"
            ))),
            None => Err(Error::Snapshot(
                "it does not say how large its disks are".into(),
            )),
        }
    }

    fn command(&mut self, command: &Command) -> Result<Changed> {
        match command {
            Command::UpdateDisk { file, read_only } => {
                let file = file.try_clone().map_err(Error::io("a disk's new file"))?;
                let disk = Disk::new(file, *read_only)?;
                *self.shared.disk_slot() = Arc::new(disk);
                Ok(Changed::Config)
            }
            Command::LimitDisk(rate) => {
                *self.shared.limiter() = RateLimiter::new(Some(*rate), Instant::now());
                Ok(Changed::Nothing)
            }
            _ => Err(Error::NotThisDevice),
        }
    }

    fn count(&self, stats: &mut VmStats) {
        let counters = &self.shared.counters;
        stats.disks.push(DeviceStats {
            read_ops: counters.read_ops.load(Relaxed),
            read_bytes: counters.read_bytes.load(Relaxed),
            write_ops: counters.write_ops.load(Relaxed),
            write_bytes: counters.write_bytes.load(Relaxed),
            errors: counters.errors.load(Relaxed),
            throttled: counters.throttled.load(Relaxed),
        });
    }
}
