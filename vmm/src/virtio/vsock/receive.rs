//! The guest's receive buffers.
//!
//! ```text
//! rx queue ─ pop ─▶ offered: header │ payload, … ─ all payloads at once ─▶ Muxer::give: one readv
//!                                                                               │
//!           ◀─ published: a header in each buffer that holds a part of it ◀─────┘   the rest waits for the next packet
//! ```
//!
//! Linux offers 4 KiB at a time: with one read for each of them the reads would be most of the work.

use std::collections::VecDeque;
use std::time::Instant;

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use super::muxer::Muxer;
use super::packet::{HEADER_LEN, Header};
use crate::error::Result;
use crate::virtio::chain::{self, Popped};
use crate::virtio::slices::Slices;
use crate::virtio::used;

/// Descriptors of a buffer: Linux uses one or two.
const CHAIN_MAX: usize = 64;
/// Buffers for one read.
const OFFERED_MAX: usize = 16;

/// Buffers that wait for packets.
pub struct Receiver<'m> {
    memory: &'m GuestMemoryMmap,
    offered: VecDeque<Offered<'m>>,
    /// The memory behind their headers, in order.
    payload: Slices<'m>,
}

struct Offered<'m> {
    head: u16,
    header: Slices<'m>,
    len: usize,
    slices: usize,
}

impl<'m> Receiver<'m> {
    /// None yet.
    pub fn new(memory: &'m GuestMemoryMmap) -> Self {
        Receiver {
            memory,
            offered: VecDeque::new(),
            payload: Slices::default(),
        }
    }

    /// Gives the guest packets until there is none or no buffer, or `max` buffers are used; says how many are.
    pub fn turn(&mut self, queue: &mut Queue, muxer: &mut Muxer, max: usize) -> Result<usize> {
        let now = Instant::now();
        let mut used = 0;
        while used < max && muxer.has_packet() && self.offers(queue)? {
            let Some(packet) = muxer.give(&self.payload, now) else {
                break;
            };
            used += self.hand_over(queue, packet)?;
        }
        Ok(used)
    }

    /// Puts unused buffers back into the queue.
    pub fn finish(&mut self, queue: &mut Queue) {
        for _ in self.offered.drain(..) {
            chain::unpop(queue);
        }
    }

    /// Takes buffers out of the queue; false when there is none.
    fn offers(&mut self, queue: &mut Queue) -> Result<bool> {
        while self.offered.len() < OFFERED_MAX {
            match chain::pop(queue, self.memory, CHAIN_MAX)? {
                // one that has no room for data could be offered for ever
                Some(Popped::Chain(chain)) if chain.writable.len() > HEADER_LEN as u64 => {
                    let mut header = Slices::new(&chain.writable, self.memory)?;
                    let payload = header.split_off(HEADER_LEN);
                    self.offered.push_back(Offered {
                        head: chain.head,
                        header,
                        len: payload.len(),
                        slices: payload.count(),
                    });
                    self.payload.extend(payload);
                }
                Some(Popped::Chain(chain)) => self.give_back(queue, chain.head)?,
                Some(Popped::Malformed(head)) => self.give_back(queue, head)?,
                None if !self.offered.is_empty() => return Ok(true),
                None if queue
                    .enable_notification(self.memory)
                    .map_err(chain::broken)? => {}
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Out of order with those that wait, which the ring allows.
    fn give_back(&self, queue: &mut Queue, head: u16) -> Result<()> {
        used::publish(queue, self.memory, &[(head, 0)])
    }

    /// Publishes a packet, as several if its data is in several buffers; says in how many.
    fn hand_over(&mut self, queue: &mut Queue, mut packet: Header) -> Result<usize> {
        let mut left = packet.len as usize;
        let mut slices = 0;
        let mut used = Vec::new();
        while let Some(buffer) = self.offered.pop_front() {
            packet.len = left.min(buffer.len) as u32;
            buffer.header.copy_from(&packet.bytes());
            used.push((buffer.head, HEADER_LEN as u32 + packet.len));
            left -= packet.len as usize;
            slices += buffer.slices;
            if left == 0 {
                break;
            }
        }
        let rest = self.payload.split_off_slices(slices);
        self.payload = rest;
        used::publish(queue, self.memory, &used)?;
        Ok(used.len())
    }
}
