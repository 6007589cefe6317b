//! From the tap to the guest.
//!
//! ```text
//! rx queue ─ pop ─▶ offered buffers, enough for the largest frame ─ one readv ─▶ frame in the first n of them ─▶ published
//!                   the rest waits for the next frame                               │
//!                                                                                   └ beyond the rate: held until its time
//! ```
//!
//! Without buffers the tap is not read: what its queue does not hold is dropped by the host's kernel.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::time::Instant;

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use super::queues::{Next, TURN};
use super::tap::Tap;
use super::{Counters, ETHERNET_LEN, FRAME_MAX, HEADER_LEN, features};
use crate::error::Result;
use crate::virtio::chain::{self, Popped};
use crate::virtio::rate::RateLimiter;
use crate::virtio::slices::Slices;
use crate::virtio::used;

/// Descriptors of one buffer.
const CHAIN_MAX: usize = 64;
/// Vectors of one readv.
const VECTORS_MAX: usize = 1024;
/// Where the header says in how many buffers the frame is.
const NUM_BUFFERS: usize = 10;

/// Buffers of the guest that wait for frames.
pub struct Receiver<'m> {
    memory: &'m GuestMemoryMmap,
    /// Frames may be in several buffers.
    merges: bool,
    /// What the largest frame needs.
    frame_len: usize,
    offered: VecDeque<Offered>,
    /// The memory of all of them, in order.
    slices: Slices<'m>,
    capacity: usize,
    /// A frame that is in them already, but may not be published yet.
    held: Option<usize>,
    /// The tap may have a frame.
    pub readable: bool,
}

struct Offered {
    head: u16,
    len: usize,
    slices: usize,
}

impl<'m> Receiver<'m> {
    /// For a driver that accepted these features.
    pub fn new(memory: &'m GuestMemoryMmap, driver: u64, mtu: u16) -> Self {
        let large = features::GUEST_TSO4 | features::GUEST_TSO6 | features::GUEST_UFO;
        Receiver {
            memory,
            merges: driver & features::MRG_RXBUF != 0,
            frame_len: if driver & large != 0 {
                FRAME_MAX
            } else {
                HEADER_LEN + ETHERNET_LEN + usize::from(mtu)
            },
            offered: VecDeque::new(),
            slices: Slices::default(),
            capacity: 0,
            held: None,
            readable: true,
        }
    }

    /// Moves frames until there is none, no buffer, or no permission.
    pub fn turn(
        &mut self,
        queue: &mut Queue,
        tap: &Tap,
        rate: &mut RateLimiter,
        counters: &Counters,
    ) -> Result<Next> {
        for _ in 0..TURN {
            let held = self.held.take();
            if held.is_none() && (!self.readable || !self.offers(queue)?) {
                return Ok(Next::Event);
            }
            let read = held.map_or_else(|| tap.read(&self.slices), Ok);
            let len = match read {
                Ok(len) => len,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(_) => {
                    // nothing there, or the interface is down: the tap says when that changes
                    self.readable = false;
                    return Ok(Next::Event);
                }
            };
            let bytes = len.saturating_sub(HEADER_LEN) as u64;
            let now = Instant::now();
            if let Err(wait) = rate.take(bytes, now) {
                self.held = Some(len);
                return Ok(Next::At(now + wait));
            }
            counters.received(bytes);
            self.hand_over(queue, len)?;
        }
        Ok(Next::Now)
    }

    /// Puts buffers that hold no frame back into the queue.
    pub fn finish(&mut self, queue: &mut Queue) -> Result<()> {
        if let Some(len) = self.held.take() {
            self.hand_over(queue, len)?;
        }
        for _ in self.offered.drain(..) {
            chain::unpop(queue);
        }
        Ok(())
    }

    /// Takes buffers until they hold any frame; false when there are not enough.
    fn offers(&mut self, queue: &mut Queue) -> Result<bool> {
        loop {
            let enough = match self.merges {
                true => self.capacity >= self.frame_len || self.slices.count() >= VECTORS_MAX,
                false => !self.offered.is_empty(),
            };
            if enough {
                return Ok(true);
            }
            match chain::pop(queue, self.memory, CHAIN_MAX)? {
                Some(Popped::Chain(chain)) if chain.writable.len() >= HEADER_LEN as u64 => {
                    let slices = Slices::new(&chain.writable, self.memory)?;
                    let len = slices.len();
                    self.offered.push_back(Offered {
                        head: chain.head,
                        len,
                        slices: slices.count(),
                    });
                    self.capacity = self.capacity.saturating_add(len);
                    self.slices.extend(slices);
                }
                Some(Popped::Chain(chain)) => self.give_back(queue, chain.head)?,
                Some(Popped::Malformed(head)) => self.give_back(queue, head)?,
                None if queue
                    .enable_notification(self.memory)
                    .map_err(chain::broken)? => {}
                None => return Ok(false),
            }
        }
    }

    fn give_back(&self, queue: &mut Queue, head: u16) -> Result<()> {
        used::publish(queue, self.memory, &[(head, 0)])
    }

    /// Publishes the frame that is in the first `len` bytes.
    fn hand_over(&mut self, queue: &mut Queue, len: usize) -> Result<()> {
        let mut left = len;
        let mut slices = 0;
        let mut used = Vec::new();
        while let Some(buffer) = self.offered.front().filter(|_| left > 0) {
            let here = left.min(buffer.len);
            left -= here;
            slices += buffer.slices;
            self.capacity -= buffer.len;
            used.push((buffer.head, here as u32));
            self.offered.pop_front();
        }
        let rest = self.slices.split_off_slices(slices);
        let frame = std::mem::replace(&mut self.slices, rest);
        let count = used.len() as u16;
        frame.write_at(NUM_BUFFERS, &count.to_le_bytes());
        used::publish(queue, self.memory, &used)
    }
}
