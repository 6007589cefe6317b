//! The guest's memory: one region below the device gap, one above it when it is larger.
//!
//! ```text
//! 0 ────────── 3 GiB │ 3 GiB ── 4 GiB: devices, APICs, KVM's own pages │ 4 GiB ───────── …
//! ```

use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::error::{Error, Result};

/// Where the gap for devices begins.
pub const MMIO_GAP_START: u64 = 3 << 30;
/// Where it ends.
pub const MMIO_GAP_END: u64 = 4 << 30;

/// Where `bytes` of memory lie: address and length of each region.
pub fn layout(bytes: u64) -> Vec<(u64, usize)> {
    let low = bytes.min(MMIO_GAP_START);
    let mut regions = vec![(0, low as usize)];
    if bytes > low {
        regions.push((MMIO_GAP_END, (bytes - low) as usize));
    }
    regions
}

/// Reserves `bytes` of memory; pages are touched when the guest touches them.
pub fn reserve(bytes: u64) -> Result<GuestMemoryMmap> {
    let ranges: Vec<_> = layout(bytes)
        .into_iter()
        .map(|(address, len)| (GuestAddress(address), len))
        .collect();
    GuestMemoryMmap::from_ranges(&ranges).map_err(|e| Error::Memory {
        bytes,
        reason: e.to_string(),
    })
}
