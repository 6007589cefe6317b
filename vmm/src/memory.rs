//! The guest's memory: one region below the device gap, one above it when it is larger.
//!
//! ```text
//! 0 ────────── 3 GiB │ 3 GiB ── 4 GiB: devices, APICs, KVM's own pages │ 4 GiB ───────── …
//! ```

use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::error::{Error, Result};
use crate::sys;

/// Where the gap for devices begins.
pub const MMIO_GAP_START: u64 = 3 << 30;
/// Where it ends.
pub const MMIO_GAP_END: u64 = 4 << 30;
/// What one entry of the processor's second-level tables can map at once.
const HUGE_PAGE: usize = 2 << 20;

/// Where `bytes` of memory lie: address and length of each region.
pub fn layout(bytes: u64) -> Vec<(u64, usize)> {
    let low = bytes.min(MMIO_GAP_START);
    let mut regions = vec![(0, low as usize)];
    if bytes > low {
        regions.push((MMIO_GAP_END, (bytes - low) as usize));
    }
    regions
}

/// Reserves `bytes` of memory; pages are touched when the guest touches them, huge ones where the host has them: a boot
/// that takes them one by one leaves the guest thousands of times more.
pub fn reserve(bytes: u64) -> Result<GuestMemoryMmap> {
    let failed = |reason: String| Error::Memory { bytes, reason };
    let mut regions = Vec::new();
    for (address, len) in layout(bytes) {
        let mapping = aligned(len).map_err(|e| failed(e.to_string()))?;
        // a host without huge pages says so: then it has none
        let _ = sys::prefer_huge_pages(&mapping);
        let region: GuestRegionMmap = GuestRegionMmap::new(mapping, GuestAddress(address))
            .ok_or_else(|| failed("it does not fit into the address space".into()))?;
        regions.push(region);
    }
    GuestMemoryMmap::from_regions(regions).map_err(|e| failed(e.to_string()))
}

/// A mapping that begins at a multiple of a huge page, as the guest's addresses do: KVM maps a huge page to the guest only then.
/// Linux does this by itself since 6.7; before, it puts a mapping right below the last, so one in between moves it.
fn aligned(len: usize) -> std::result::Result<MmapRegion, vm_memory::mmap::MmapRegionError> {
    let first = MmapRegion::new(len)?;
    let beyond = first.as_ptr() as usize % HUGE_PAGE;
    if beyond == 0 {
        return Ok(first);
    }
    drop(first);
    let _filler = MmapRegion::<()>::new(beyond)?;
    MmapRegion::new(len)
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

    use super::*;

    #[test]
    fn memory_lies_around_the_gap_and_on_huge_pages() {
        let memory = reserve(MMIO_GAP_START + (256 << 20)).expect("address space");
        let regions: Vec<_> = memory
            .iter()
            .map(|region| (region.start_addr().0, region.len()))
            .collect();
        assert_eq!(regions, [(0, 3 << 30), (MMIO_GAP_END, 256 << 20)]);
        for region in memory.iter() {
            assert_eq!(region.as_ptr() as usize % HUGE_PAGE, 0);
        }
    }
}
