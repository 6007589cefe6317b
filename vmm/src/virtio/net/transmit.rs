//! From the guest to the tap: each chain is a header and a frame, and is written as it is. The kernel checks the header.

use std::io::ErrorKind;
use std::time::Instant;

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use super::queues::{Next, TURN};
use super::tap::Tap;
use super::{Counters, FRAME_MAX, HEADER_LEN};
use crate::error::Result;
use crate::virtio::chain::{self, Popped};
use crate::virtio::rate::RateLimiter;
use crate::virtio::slices::Slices;

/// Descriptors of a frame: Linux uses at most 19.
const CHAIN_MAX: usize = 256;
/// An Ethernet header.
const FRAME_MIN: usize = HEADER_LEN + 14;

/// Moves frames until there is none, the tap is full, or the rate is reached.
pub fn turn(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    tap: &Tap,
    writable: &mut bool,
    rate: &mut RateLimiter,
    counters: &Counters,
) -> Result<Next> {
    for _ in 0..TURN {
        if !*writable {
            return Ok(Next::Event);
        }
        let (head, frame) = match chain::pop(queue, memory, CHAIN_MAX)? {
            Some(Popped::Chain(chain)) => {
                let fits = (FRAME_MIN as u64..=FRAME_MAX as u64).contains(&chain.readable.len());
                (chain.head, fits.then_some(chain.readable))
            }
            Some(Popped::Malformed(head)) => (head, None),
            None if queue.enable_notification(memory).map_err(chain::broken)? => continue,
            None => return Ok(Next::Event),
        };
        let Some(frame) = frame else {
            counters.transmit_dropped();
            queue.add_used(memory, head, 0).map_err(chain::broken)?;
            continue;
        };
        let bytes = frame.len() - HEADER_LEN as u64;
        let now = Instant::now();
        if let Err(wait) = rate.take(bytes, now) {
            chain::unpop(queue);
            return Ok(Next::At(now + wait));
        }
        match tap.write(&Slices::new(&frame, memory)?) {
            Ok(_) => counters.transmitted(bytes),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                chain::unpop(queue);
                *writable = false;
                return Ok(Next::Event);
            }
            // what the kernel refuses: a header without sense, an interface that is down
            Err(_) => counters.transmit_dropped(),
        }
        queue.add_used(memory, head, 0).map_err(chain::broken)?;
    }
    Ok(Next::Now)
}
