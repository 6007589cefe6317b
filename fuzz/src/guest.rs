//! A guest that does as an input says: it writes its memory and a device's registers, offers descriptor chains of any kind,
//! and lets the device work.
//!
//! ```text
//! 0x0_0000 + q × 0x1000   queue q: 16 descriptors, 0x400 available, 0x800 used        0x0_8000 … 0x2_0000  buffers
//! 0x8_0000 … 0x9_0000     a second region: what lies between is no memory
//! ```
//!
//! A step is a byte that says which, and its operands; [`Steps`] writes them for seeds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use caisson_vmm::bus::MmioDevice;
use caisson_vmm::virtio::{
    Device, F_EVENT_IDX, Interrupt, QUEUE_NOTIFY, Transport, TransportState,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::input::Input;

const REGIONS: [(GuestAddress, usize); 2] = [
    (GuestAddress(0), 0x2_0000),
    (GuestAddress(0x8_0000), 0x1_0000),
];
const QUEUE: u64 = 0x1000;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
const BUFFERS: u64 = 0x8000;
const BUFFERS_END: u64 = 0x2_0000;
const SIZE: u16 = 16;

const NEXT: u16 = 1;
const WRITABLE: u16 = 2;
const INDIRECT: u16 = 4;

/// How long a device gets that has nothing to say.
const PATIENCE: Duration = Duration::from_micros(300);
/// Steps that are done of one input.
const STEPS_MAX: usize = 64;

/// A guest with one device.
pub struct Guest {
    memory: GuestMemoryMmap,
    transport: Transport,
    line: EventFd,
    queues: usize,
    next_descriptor: u16,
    next_buffer: u64,
}

/// What a step of an input is for.
pub enum Step {
    /// The guest has done it.
    Done,
    /// It is the target's own, with this operand.
    Own(u8),
}

impl Guest {
    /// A guest whose driver has set the device up, with EVENT_IDX or without.
    pub fn new(device: Box<dyn Device>, event_idx: bool) -> Self {
        let event = || EventFd::new(EFD_NONBLOCK).expect("eventfd");
        let memory = GuestMemoryMmap::from_ranges(&REGIONS).expect("memory");
        let queues = device.queue_sizes().len();
        let line = event();
        let interrupt = Interrupt::new(line.try_clone().expect("eventfd"));
        let kicks = Arc::new((0..queues).map(|_| event()).collect());
        let mut features = device.features() | 1 << 32;
        if !event_idx {
            features &= !F_EVENT_IDX;
        }
        let guest = Guest {
            transport: Transport::new(device, memory.clone(), kicks, interrupt),
            memory,
            line,
            queues,
            next_descriptor: 0,
            next_buffer: BUFFERS,
        };
        guest.initialise(features);
        guest
    }

    fn initialise(&self, features: u64) {
        for status in [1, 3] {
            self.register(0x70, status);
        }
        for (page, word) in [features as u32, (features >> 32) as u32]
            .into_iter()
            .enumerate()
        {
            self.register(0x24, page as u32);
            self.register(0x20, word);
        }
        self.register(0x70, 11);
        for queue in 0..self.queues {
            let base = queue as u32 * QUEUE as u32;
            let addresses = [
                (0x80, base),
                (0x90, base + AVAILABLE as u32),
                (0xa0, base + USED as u32),
            ];
            self.register(0x30, queue as u32);
            self.register(0x38, SIZE.into());
            for (at, address) in addresses {
                self.register(at, address);
                self.register(at + 4, 0);
            }
            self.register(0x44, 1);
        }
        self.register(0x70, 15);
    }

    /// Does all steps of an input; `own` does the target's.
    pub fn run(&mut self, input: &mut Input, mut own: impl FnMut(&mut Guest, u8, &mut Input)) {
        for _ in 0..STEPS_MAX {
            if input.is_empty() {
                break;
            }
            if let Step::Own(operand) = self.step(input) {
                own(self, operand, input);
            }
        }
        self.work();
        self.register(0x70, 0);
    }

    fn step(&mut self, input: &mut Input) -> Step {
        match input.u8() {
            0..=99 => self.offer(input),
            100..=149 => self.work(),
            150..=169 => {
                let (at, len) = (input.u32() & 0xf_ffff, input.u8());
                // where there is no memory nothing is written
                let _ = self
                    .memory
                    .write_slice(input.bytes(len.into()), GuestAddress(at.into()));
            }
            170..=184 => {
                let (at, value) = (input.u8(), input.u32());
                self.register(u64::from(at) & !3, value);
            }
            185..=194 => {
                let (at, len) = (input.u16(), input.u8() % 9);
                self.transport
                    .write(0x100 + u64::from(at), input.bytes(len.into()));
                self.transport.read(u64::from(at), &mut vec![0; len.into()]);
            }
            195..=199 => self.restore(self.save()),
            200..=204 => self.initialise(input.u64()),
            operand @ 205.. => return Step::Own(operand),
        }
        Step::Done
    }

    fn register(&self, at: u64, value: u32) {
        self.transport.write(at, &value.to_le_bytes());
    }

    /// Puts a chain into a queue: how many descriptors, and for each of them what it is.
    fn offer(&mut self, input: &mut Input) {
        let queue = u64::from(input.u8()) % self.queues.max(1) as u64;
        let count = u16::from(input.u8() % 8) + 1;
        let mut chain = Vec::new();
        for _ in 0..count {
            let kind = input.u8();
            chain.push(match kind % 8 {
                0..=2 => self.buffer(input, 0),
                3..=5 => {
                    let len = u32::from(input.u16());
                    (self.room(len.into()), len, WRITABLE)
                }
                6 => {
                    let table: Vec<_> =
                        (0..input.u8() % 8).map(|_| self.buffer(input, 0)).collect();
                    (self.table(&table), table.len() as u32 * 16, INDIRECT)
                }
                _ => (input.u64(), input.u32(), input.u16()),
            });
        }
        let (base, head) = (queue * QUEUE, self.next_descriptor % SIZE);
        self.next_descriptor = (head + count) % SIZE;
        for (number, (at, len, flags)) in chain.iter().enumerate() {
            let slot = (head + number as u16) % SIZE;
            let last = number + 1 == chain.len();
            let (flags, next) = if last {
                (*flags, 0)
            } else {
                (flags | NEXT, (slot + 1) % SIZE)
            };
            self.describe(base + u64::from(slot) * 16, (*at, *len, flags), next);
        }
        self.publish(base + AVAILABLE, head);
    }

    fn publish(&self, ring: u64, head: u16) {
        let index: u16 = self
            .memory
            .read_obj(GuestAddress(ring + 2))
            .expect("a ring");
        let slot = ring + 4 + u64::from(index % SIZE) * 2;
        self.memory
            .write_obj(head, GuestAddress(slot))
            .expect("a ring");
        let next = index.wrapping_add(1);
        self.memory
            .write_obj(next, GuestAddress(ring + 2))
            .expect("a ring");
    }

    fn describe(&self, at: u64, (address, len, flags): (u64, u32, u16), next: u16) {
        let bytes = [
            &address.to_le_bytes()[..],
            &len.to_le_bytes(),
            &flags.to_le_bytes(),
            &next.to_le_bytes(),
        ];
        self.memory
            .write_slice(&bytes.concat(), GuestAddress(at))
            .expect("a table");
    }

    fn buffer(&mut self, input: &mut Input, flags: u16) -> (u64, u32, u16) {
        let len = input.u8();
        let bytes = input.bytes(len.into());
        let at = self.room(bytes.len() as u64);
        self.memory
            .write_slice(bytes, GuestAddress(at))
            .expect("a buffer");
        (at, bytes.len() as u32, flags)
    }

    fn table(&mut self, descriptors: &[(u64, u32, u16)]) -> u64 {
        let at = self.room(descriptors.len() as u64 * 16);
        for (number, (address, len, flags)) in descriptors.iter().enumerate() {
            let more = if number + 1 == descriptors.len() {
                0
            } else {
                NEXT
            };
            self.describe(
                at + number as u64 * 16,
                (*address, *len, flags | more),
                number as u16 + 1,
            );
        }
        at
    }

    /// Buffers begin anew when the room is used up.
    fn room(&mut self, len: u64) -> u64 {
        let len = len.next_multiple_of(16);
        if self.next_buffer + len > BUFFERS_END {
            self.next_buffer = BUFFERS;
        }
        let at = self.next_buffer;
        self.next_buffer += len;
        at
    }

    /// Tells the device that every queue has work, and gives it time.
    pub fn work(&self) {
        for queue in 0..self.queues {
            self.register(QUEUE_NOTIFY, queue as u32);
        }
        let end = Instant::now() + PATIENCE;
        while self.line.read().is_err() && Instant::now() < end {
            std::thread::yield_now();
        }
        self.transport.pause();
        self.transport.resume();
    }

    /// The device's state, at a pause.
    pub fn save(&self) -> TransportState {
        self.transport.pause();
        let saved = self.transport.save();
        self.transport.resume();
        saved
    }

    /// Has the device go on from a state. It may refuse.
    pub fn restore(&self, state: TransportState) {
        self.transport.pause();
        let _ = self.transport.restore(state);
        self.transport.resume();
    }
}

/// Steps of a seed.
#[derive(Default)]
pub struct Steps(Vec<u8>);

impl Steps {
    /// None yet, behind what the target reads first.
    pub fn behind(start: &[u8]) -> Self {
        Steps(start.to_vec())
    }

    /// Offers a chain: what the device reads, and how many bytes it may write behind that.
    pub fn offer(mut self, queue: u8, readable: &[&[u8]], writable: &[u16]) -> Self {
        self.0
            .extend([0, queue, (readable.len() + writable.len() - 1) as u8]);
        for bytes in readable {
            self.0.extend([0, bytes.len() as u8]);
            self.0.extend(*bytes);
        }
        for len in writable {
            self.0.push(3);
            self.0.extend(len.to_le_bytes());
        }
        self
    }

    /// Lets the device work.
    pub fn work(mut self) -> Self {
        self.0.push(100);
        self
    }

    /// A step of the target, with its operands.
    pub fn own(mut self, operand: u8, operands: &[u8]) -> Self {
        self.0.push(operand);
        self.0.extend(operands);
        self
    }

    /// A pause, a snapshot, and back.
    pub fn save_and_restore(mut self) -> Self {
        self.0.push(195);
        self
    }

    /// The seed.
    pub fn end(self) -> Vec<u8> {
        self.0
    }
}
