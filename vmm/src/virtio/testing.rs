//! A driver for tests of devices, from the guest's side: memory, queues, descriptor chains, kicks, used buffers.
//!
//! ```text
//! 0x0000_1000 + q × 0x8000   queue q: descriptors, 0x4000 on available, 0x5000 on used     0x0010_0000 …  buffers, never reused
//! ```
//!
//! The rings are laid out here: in virtio-queue's `MockSplitQueue` they overlap once half of them is in use.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::{Activation, Device, F_EVENT_IDX, F_VERSION_1, Interrupt};

const QUEUES: u64 = 0x1000;
const QUEUE_STRIDE: u64 = 0x8000;
const BUFFERS: u64 = 0x10_0000;
const MEMORY_BYTES: usize = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

const NEXT: u16 = 1;
const WRITABLE: u16 = 2;

/// Guest memory for a test.
pub fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).expect("64 MiB of memory")
}

/// One piece of a descriptor chain.
pub enum Part<'a> {
    /// The device reads these bytes.
    Readable(&'a [u8]),
    /// The device may write so many bytes.
    Writable(usize),
    /// A descriptor as it stands, but for its chaining: to be hostile with.
    Raw(GuestAddress, u32, u16),
}

/// A buffer that the device has used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    /// The chain, as [`Driver::offer`] named it.
    pub head: u16,
    /// How many bytes the device says it wrote.
    pub len: u32,
    /// What the chain's writable parts hold now, one after the other, cut to `len`.
    pub written: Vec<u8>,
}

const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x5000;
/// What fits before `AVAILABLE`.
const SIZE_MAX: u16 = 1024;

struct DriverQueue {
    base: u64,
    size: u16,
    next_descriptor: u16,
    seen: u16,
    writable: Vec<(u16, Vec<(GuestAddress, usize)>)>,
}

/// The driver of one device.
pub struct Driver<'a> {
    memory: &'a GuestMemoryMmap,
    queues: Vec<DriverQueue>,
    kicks: Vec<EventFd>,
    /// Signalled when the device interrupts the guest.
    pub line: EventFd,
    /// The device's interrupt, as it was given.
    pub interrupt: Interrupt,
    features: u64,
    next_buffer: u64,
}

impl<'a> Driver<'a> {
    /// Accepts every feature but EVENT_IDX (each used buffer interrupts) and activates the device.
    pub fn new(memory: &'a GuestMemoryMmap, device: &mut dyn Device) -> Self {
        let features = device.features() & !F_EVENT_IDX;
        Self::with_features(memory, device, features)
    }

    /// Accepts these features, and VERSION_1, and activates the device.
    pub fn with_features(
        memory: &'a GuestMemoryMmap,
        device: &mut dyn Device,
        features: u64,
    ) -> Self {
        let driver = Self::inactive(memory, device, features);
        device
            .activate(driver.activation())
            .expect("the device activates");
        driver
    }

    /// Sets everything up, but leaves the activation to the test.
    pub fn inactive(memory: &'a GuestMemoryMmap, device: &dyn Device, features: u64) -> Self {
        let event = || EventFd::new(libc::EFD_NONBLOCK).expect("eventfd");
        let line = event();
        let queue = |(i, size): (usize, &u16)| DriverQueue {
            base: QUEUES + i as u64 * QUEUE_STRIDE,
            size: (*size).min(SIZE_MAX),
            next_descriptor: 0,
            seen: 0,
            writable: Vec::new(),
        };
        Driver {
            memory,
            queues: device.queue_sizes().iter().enumerate().map(queue).collect(),
            kicks: device.queue_sizes().iter().map(|_| event()).collect(),
            interrupt: Interrupt::new(line.try_clone().expect("eventfd")),
            line,
            features: features | F_VERSION_1,
            next_buffer: BUFFERS,
        }
    }

    /// What the transport would give the device.
    pub fn activation(&self) -> Activation {
        let queue = |q: &DriverQueue| {
            let mut queue = Queue::new(q.size).expect("a power of two");
            queue.set_size(q.size);
            queue.set_desc_table_address(Some(q.base as u32), Some(0));
            queue.set_avail_ring_address(Some((q.base + AVAILABLE) as u32), Some(0));
            queue.set_used_ring_address(Some((q.base + USED) as u32), Some(0));
            queue.set_ready(true);
            queue.set_event_idx(self.features & F_EVENT_IDX != 0);
            queue
        };
        Activation {
            memory: self.memory.clone(),
            queues: self.queues.iter().map(queue).collect(),
            kicks: self
                .kicks
                .iter()
                .map(|k| k.try_clone().expect("eventfd"))
                .collect(),
            interrupt: self.interrupt.clone(),
            features: self.features,
        }
    }

    /// Puts a chain into a queue without telling the device; returns its head.
    pub fn offer(&mut self, queue: usize, parts: &[Part]) -> u16 {
        let mut writable = Vec::new();
        let mut raw = Vec::new();
        for part in parts {
            raw.push(match part {
                Part::Readable(bytes) => {
                    let at = self.buffer(bytes.len());
                    self.memory
                        .write_slice(bytes, at)
                        .expect("memory for a buffer");
                    (at, bytes.len() as u32, 0)
                }
                Part::Writable(len) => {
                    let at = self.buffer(*len);
                    writable.push((at, *len));
                    (at, *len as u32, WRITABLE)
                }
                Part::Raw(at, len, flags) => (*at, *len, *flags),
            });
        }
        let q = &mut self.queues[queue];
        let head = q.next_descriptor;
        for (i, (at, len, flags)) in raw.iter().enumerate() {
            let index = (head + i as u16) % q.size;
            let last = i + 1 == raw.len();
            let (flags, next) = if last {
                (*flags, 0)
            } else {
                (flags | NEXT, (index + 1) % q.size)
            };
            let descriptor = RawDescriptor::from(Descriptor::new(at.0, *len, flags, next));
            let slot = GuestAddress(q.base + u64::from(index) * 16);
            self.memory
                .write_obj(descriptor, slot)
                .expect("a descriptor");
        }
        q.next_descriptor = (head + raw.len() as u16) % q.size;
        q.writable.retain(|(of, _)| *of != head);
        q.writable.push((head, writable));
        let (available, size) = (q.base + AVAILABLE, q.size);
        let index: u16 = self.load(available + 2);
        let slot = available + 4 + u64::from(index % size) * 2;
        self.store(slot, head);
        self.store(available + 2, index.wrapping_add(1));
        head
    }

    /// Tells the device that a queue has work.
    pub fn kick(&self, queue: usize) {
        self.kicks[queue].write(1).expect("eventfd");
    }

    /// The next buffer that the device has used, if there is one.
    pub fn try_used(&mut self, queue: usize) -> Option<Used> {
        let q = &self.queues[queue];
        let used = q.base + USED;
        if self.load(used + 2) == q.seen {
            return None;
        }
        let slot = used + 4 + u64::from(q.seen % q.size) * 8;
        let (head, len): (u32, u32) = (self.load_word(slot), self.load_word(slot + 4));
        let head = head as u16;
        let q = &mut self.queues[queue];
        q.seen = q.seen.wrapping_add(1);
        let mut written = Vec::new();
        if let Some(at) = q.writable.iter().position(|(of, _)| *of == head) {
            for (address, size) in q.writable.swap_remove(at).1 {
                let mut bytes = vec![0; size.min(len as usize - written.len())];
                self.memory
                    .read_slice(&mut bytes, address)
                    .expect("its own buffer");
                written.extend(bytes);
            }
        }
        Some(Used { head, len, written })
    }

    /// Waits for the next buffer that the device uses; panics after ten seconds.
    pub fn used(&mut self, queue: usize) -> Used {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(used) = self.try_used(queue) {
                return used;
            }
            assert!(Instant::now() < end, "the device has used nothing");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Offers a chain, kicks, waits for it.
    pub fn request(&mut self, queue: usize, parts: &[Part]) -> Used {
        let head = self.offer(queue, parts);
        self.kick(queue);
        let used = self.used(queue);
        assert_eq!(used.head, head);
        used
    }

    /// Whether the device has interrupted since this was last asked.
    pub fn interrupted(&self) -> bool {
        self.line.read().is_ok()
    }

    fn load(&self, at: u64) -> u16 {
        self.memory
            .load(GuestAddress(at), Ordering::Acquire)
            .expect("a ring")
    }

    fn load_word(&self, at: u64) -> u32 {
        self.memory
            .load(GuestAddress(at), Ordering::Acquire)
            .expect("a ring")
    }

    fn store(&self, at: u64, value: u16) {
        self.memory
            .store(value, GuestAddress(at), Ordering::Release)
            .expect("a ring");
    }

    fn buffer(&mut self, len: usize) -> GuestAddress {
        let at = self.next_buffer;
        self.next_buffer += (len as u64).next_multiple_of(16);
        GuestAddress(at)
    }
}
