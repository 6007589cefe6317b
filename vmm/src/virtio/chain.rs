//! Descriptor chains, read from the guest's memory once: what comes out is checked and does not change any more.
//!
//! ```text
//! readable ranges … │ writable ranges …        both inside the guest's memory, none empty, lengths summed
//! ```

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use super::Activation;
use crate::error::{Error, Result};

/// Offered by devices whose requests may sit in tables of their own.
pub const F_INDIRECT_DESC: u64 = 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

/// A part of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Where it begins.
    pub address: GuestAddress,
    /// Bytes; not 0.
    pub len: u32,
}

/// One side of a chain: ranges that follow each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Buffers {
    ranges: Vec<Range>,
}

/// What the guest offered in one chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Names the chain when it is given back.
    pub head: u16,
    /// What the device may read.
    pub readable: Buffers,
    /// What it may write.
    pub writable: Buffers,
}

/// What was next in a queue.
#[derive(Debug)]
pub enum Popped {
    /// A chain whose ranges are all inside the guest's memory.
    Chain(Chain),
    /// One that breaks the rules: to be given back with nothing written.
    Malformed(u16),
}

/// Takes the next chain of at most `max_descriptors` out of `queue`. An error means that the queue itself is broken.
pub fn pop(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    max_descriptors: usize,
) -> Result<Option<Popped>> {
    // `Queue::pop_descriptor_chain` hides a broken ring, which would then look as if it had work for ever
    let mut heads = queue.iter(memory).map_err(broken)?;
    let Some(chain) = heads.next() else {
        return Ok(None);
    };
    let head = chain.head_index();
    let mut popped = Chain {
        head,
        readable: Buffers::default(),
        writable: Buffers::default(),
    };
    let mut more = true;
    for (count, descriptor) in chain.enumerate() {
        let range = Range {
            address: descriptor.addr(),
            len: descriptor.len(),
        };
        let inside = memory.check_range(range.address, range.len as usize);
        let misplaced = !descriptor.is_write_only() && !popped.writable.ranges.is_empty();
        if count == max_descriptors || range.len == 0 || !inside || misplaced {
            return Ok(Some(Popped::Malformed(head)));
        }
        let side = if descriptor.is_write_only() {
            &mut popped.writable
        } else {
            &mut popped.readable
        };
        side.ranges.push(range);
        more = descriptor.has_next();
    }
    // the walk ends early at a loop, at an index beyond the table and at a table outside of the memory
    Ok(Some(if more {
        Popped::Malformed(head)
    } else {
        Popped::Chain(popped)
    }))
}

/// Puts the chain that was popped last back into its queue.
pub fn unpop(queue: &mut Queue) {
    queue.go_to_previous_position();
}

/// Gives a chain back with `written` bytes in it; says whether the guest wants to be told.
pub fn give_back(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    head: u16,
    written: u32,
) -> Result<bool> {
    queue.add_used(memory, head, written).map_err(broken)?;
    queue.needs_notification(memory).map_err(broken)
}

/// Chains of one turn.
const TURN: usize = 64;

/// Calls `take` with what waits in a queue, and gives it back with nothing written. After so many chains the queue is kicked
/// again, so that its thread looks first whether it is to stop.
pub fn turn(
    activation: &mut Activation,
    index: usize,
    max_descriptors: usize,
    mut take: impl FnMut(Chain, &GuestMemoryMmap) -> Result<()>,
) -> Result<()> {
    let memory = &activation.memory;
    let queue = activation.queues.get_mut(index).filter(|q| q.ready());
    let (Some(queue), Some(kick)) = (queue, activation.kicks.get(index)) else {
        return Ok(());
    };
    let mut interrupt = false;
    let mut taken = 0;
    while taken < TURN {
        let Some(popped) = pop(queue, memory, max_descriptors)? else {
            if queue.enable_notification(memory).map_err(broken)? {
                continue;
            }
            break;
        };
        taken += 1;
        let head = match popped {
            Popped::Chain(chain) => {
                let head = chain.head;
                take(chain, memory)?;
                head
            }
            Popped::Malformed(head) => head,
        };
        interrupt |= give_back(queue, memory, head, 0)?;
    }
    if interrupt {
        activation.interrupt.used()?;
    }
    match taken {
        TURN => kick.write(1).map_err(Error::io("a device's kick")),
        _ => Ok(()),
    }
}

/// What a queue's error says.
pub fn broken(error: virtio_queue::Error) -> Error {
    Error::Queue(error.to_string())
}

impl Buffers {
    /// Bytes in all ranges; no more than 2^32 by the chain's walk.
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|range| u64::from(range.len)).sum()
    }

    /// Takes the first `bytes` away; `None`, and nothing happens, when there are fewer.
    pub fn take_front(&mut self, bytes: u64) -> Option<Buffers> {
        let left = self.len().checked_sub(bytes)?;
        let back = self.take_back(left)?;
        Some(std::mem::replace(self, back))
    }

    /// Takes the last `bytes` away; `None`, and nothing happens, when there are fewer.
    pub fn take_back(&mut self, bytes: u64) -> Option<Buffers> {
        let mut keep = self.len().checked_sub(bytes)?;
        let mut taken = Buffers::default();
        let mut kept = Buffers::default();
        for range in self.ranges.drain(..) {
            // at most `range.len`
            let here = keep.min(u64::from(range.len)) as u32;
            keep -= u64::from(here);
            if here > 0 {
                kept.ranges.push(Range { len: here, ..range });
            }
            if here < range.len {
                taken.ranges.push(Range {
                    // inside the guest's memory, like the whole range
                    address: range.address.unchecked_add(u64::from(here)),
                    len: range.len - here,
                });
            }
        }
        *self = kept;
        Some(taken)
    }

    /// The memory behind the ranges.
    pub fn slices<'a>(&self, memory: &'a GuestMemoryMmap) -> Result<Vec<VolatileSlice<'a>>> {
        let mut slices = Vec::with_capacity(self.ranges.len());
        for range in &self.ranges {
            for slice in memory.get_slices(range.address, range.len as usize) {
                slices.push(slice.map_err(|e| Error::Queue(e.to_string()))?);
            }
        }
        Ok(slices)
    }

    /// Copies the first `bytes.len()` bytes out; false when there are fewer.
    pub fn read(&self, memory: &GuestMemoryMmap, mut bytes: &mut [u8]) -> bool {
        for range in &self.ranges {
            let count = bytes.len().min(range.len as usize);
            let (now, later) = bytes.split_at_mut(count);
            if memory.read_slice(now, range.address).is_err() {
                return false;
            }
            bytes = later;
        }
        bytes.is_empty()
    }

    /// Copies `bytes` in, from the beginning on; says how many fitted.
    pub fn write(&self, memory: &GuestMemoryMmap, mut bytes: &[u8]) -> usize {
        let all = bytes.len();
        for range in &self.ranges {
            let (now, later) = bytes.split_at(bytes.len().min(range.len as usize));
            if memory.write_slice(now, range.address).is_err() {
                break;
            }
            bytes = later;
        }
        all - bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffers(ranges: &[(u64, u32)]) -> Buffers {
        let ranges = ranges.iter().map(|(address, len)| Range {
            address: GuestAddress(*address),
            len: *len,
        });
        Buffers {
            ranges: ranges.collect(),
        }
    }

    #[test]
    fn buffers_are_cut_anywhere() {
        let all = buffers(&[(0x1000, 16), (0x3000, 4), (0x2000, 1)]);
        for cut in 0..=21u64 {
            let mut back = all.clone();
            let front = back.take_front(cut).unwrap();
            assert_eq!((front.len(), back.len()), (cut, 21 - cut));
            let mut whole = all.clone();
            assert_eq!(whole.take_back(21 - cut).unwrap(), back);
            assert_eq!(whole, front);
            assert!(front.ranges.iter().chain(&back.ranges).all(|r| r.len > 0));
        }
        let mut back = all.clone();
        assert_eq!(
            back.take_front(17).unwrap(),
            buffers(&[(0x1000, 16), (0x3000, 1)])
        );
        assert_eq!(back, buffers(&[(0x3001, 3), (0x2000, 1)]));
        assert_eq!(back.take_front(5), None);
        assert_eq!(back.take_back(5), None);
        assert_eq!(back.len(), 4);
    }

    #[test]
    fn bytes_go_in_and_out_across_ranges() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let buffers = buffers(&[(0x10, 3), (0x100, 1), (0x20, 4)]);
        assert_eq!(buffers.write(&memory, b"abcdefghij"), 8);
        let mut back = [0; 8];
        assert!(buffers.read(&memory, &mut back));
        assert_eq!(&back, b"abcdefgh");
        assert!(!buffers.read(&memory, &mut [0; 9]));
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x100)).unwrap(), b'd');
    }
}
