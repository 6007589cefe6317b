//! Giving several buffers back at once. A frame in several buffers must appear to the driver whole: the used ring's index moves
//! once, behind the last of them. `Queue::add_used` moves it for each; a queue that is used through here is not used through
//! that.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::{Error, Result};

const NO_INTERRUPT: u16 = 1;

fn outside<E>(_: E) -> Error {
    Error::Queue("it is outside of the guest's memory".into())
}

/// Gives chains back: their heads, and how much was written into each.
pub fn publish(queue: &mut Queue, memory: &GuestMemoryMmap, used: &[(u16, u32)]) -> Result<()> {
    let ring = queue.used_ring();
    let mut next = queue.next_used();
    for (head, len) in used {
        let slot = u64::from(next % queue.size());
        let mut element = [0; 8];
        element[..4].copy_from_slice(&u32::from(*head).to_le_bytes());
        element[4..].copy_from_slice(&len.to_le_bytes());
        memory
            .write_slice(&element, GuestAddress(ring + 4 + 8 * slot))
            .map_err(outside)?;
        next = next.wrapping_add(1);
    }
    queue.set_next_used(next);
    memory
        .store(next.to_le(), GuestAddress(ring + 2), Ordering::Release)
        .map_err(outside)
}

/// Whether the driver wants to be told of what was published since the used index was `before`.
pub fn wants_interrupt(queue: &Queue, memory: &GuestMemoryMmap, before: u16) -> Result<bool> {
    let now = queue.next_used();
    if now == before {
        return Ok(false);
    }
    // the index must be visible before it is looked whether somebody waits for it
    fence(Ordering::SeqCst);
    let ring = queue.avail_ring();
    let read = |offset| {
        memory
            .load::<u16>(GuestAddress(ring + offset), Ordering::Relaxed)
            .map(u16::from_le)
            .map_err(outside)
    };
    if !queue.event_idx_enabled() {
        return Ok(read(0)? & NO_INTERRUPT == 0);
    }
    let awaited = read(4 + 2 * u64::from(queue.size()))?;
    Ok(now.wrapping_sub(awaited).wrapping_sub(1) < now.wrapping_sub(before))
}
