//! Which pages a guest gives up.

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::sys;
use crate::virtio::chain::Buffers;
use crate::virtio::slices::Slices;

/// The unit of the balloon, whatever the guest's page size.
pub const PAGE: u64 = 4096;

/// Page frame numbers, little-endian, as runs of pages that follow each other: `(first, count)`. Linux takes them from the
/// top down or from the bottom up.
pub fn runs(numbers: &[u8]) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    let (numbers, _) = numbers.as_chunks::<4>();
    for number in numbers.iter().map(|bytes| u32::from_le_bytes(*bytes)) {
        match runs.last_mut() {
            Some((first, count)) if first.checked_add(*count) == Some(number) => *count += 1,
            Some((first, count)) if first.checked_sub(1) == Some(number) => {
                *first = number;
                *count += 1;
            }
            _ => runs.push((number, 1)),
        }
    }
    runs
}

/// Discards so many pages; those outside of the memory are ignored.
pub fn discard_run(memory: &GuestMemoryMmap, (first, count): (u32, u32)) {
    // below 2^45
    let start = GuestAddress(u64::from(first) * PAGE);
    let len = u64::from(count) * PAGE;
    let Ok(len) = usize::try_from(len) else {
        return;
    };
    for slice in memory.get_slices(start, len) {
        let Ok(slice) = slice else { return };
        // it would be the guest's loss of memory, not of data
        let _ = sys::discard(&slice);
    }
}

/// Discards the whole pages in ranges that the guest reports as free.
pub fn discard_ranges(ranges: Slices) {
    for slice in ranges {
        let page = PAGE as usize;
        let address = slice.ptr_guard().as_ptr() as usize;
        let before = address.next_multiple_of(page) - address;
        let Some(len) = slice.len().checked_sub(before) else {
            continue;
        };
        if let Ok(whole) = slice.subslice(before, len - len % page)
            && !whole.is_empty()
        {
            let _ = sys::discard(&whole);
        }
    }
}

/// The first bytes of a list of page frame numbers.
pub fn list(memory: &GuestMemoryMmap, mut numbers: Buffers, max: u64) -> Vec<u8> {
    let len = numbers.len().min(max);
    let mut bytes = vec![0; len as usize];
    match numbers.take_front(len) {
        Some(front) if front.read(memory, &mut bytes) => bytes,
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_follow_each_other_are_one_run() {
        let numbers: Vec<u8> = [5u32, 6, 7, 20, 19, 18, u32::MAX, 0, 1, 3]
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .collect();
        let expected = [(5, 3), (18, 3), (u32::MAX, 1), (0, 2), (3, 1)];
        assert_eq!(runs(&numbers), expected);
        assert_eq!(runs(&numbers[..6]), [(5, 1)]);
        assert_eq!(runs(&[]), []);
    }
}
