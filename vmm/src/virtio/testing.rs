//! A driver for tests of devices, from the guest's side: memory, queues, descriptor chains, kicks, used buffers.
//!
//! ```text
//! 0x0000_1000 + q × 0x8000   queue q: descriptors, available, used        0x0010_0000 …  buffers, never reused
//! ```

use std::time::{Duration, Instant};

use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
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

struct DriverQueue<'a> {
    ring: MockSplitQueue<'a, GuestMemoryMmap>,
    size: u16,
    next_descriptor: u16,
    seen: u16,
    writable: Vec<(u16, Vec<(GuestAddress, usize)>)>,
}

/// The driver of one device.
pub struct Driver<'a> {
    memory: &'a GuestMemoryMmap,
    queues: Vec<DriverQueue<'a>>,
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
            ring: MockSplitQueue::create(
                memory,
                GuestAddress(QUEUES + i as u64 * QUEUE_STRIDE),
                *size,
            ),
            size: *size,
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
            let mut queue: Queue = q.ring.create_queue().expect("a queue");
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
            q.ring
                .desc_table()
                .store(index, descriptor)
                .expect("a descriptor");
        }
        q.next_descriptor = (head + raw.len() as u16) % q.size;
        q.writable.retain(|(of, _)| *of != head);
        q.writable.push((head, writable));
        let index = q.ring.avail().idx().load();
        q.ring
            .avail()
            .ring()
            .ref_at(usize::from(index % q.size))
            .expect("a slot")
            .store(head);
        q.ring.avail().idx().store(index.wrapping_add(1));
        head
    }

    /// Tells the device that a queue has work.
    pub fn kick(&self, queue: usize) {
        self.kicks[queue].write(1).expect("eventfd");
    }

    /// The next buffer that the device has used, if there is one.
    pub fn try_used(&mut self, queue: usize) -> Option<Used> {
        let q = &mut self.queues[queue];
        if q.ring.used().idx().load() == q.seen {
            return None;
        }
        let slot = usize::from(q.seen % q.size);
        let element = q.ring.used().ring().ref_at(slot).expect("a slot").load();
        q.seen = q.seen.wrapping_add(1);
        let (head, len) = (element.id() as u16, element.len());
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

    fn buffer(&mut self, len: usize) -> GuestAddress {
        let at = self.next_buffer;
        self.next_buffer += (len as u64).next_multiple_of(16);
        GuestAddress(at)
    }
}
