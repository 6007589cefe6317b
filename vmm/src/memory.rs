//! The guest's memory: one region below the device gap, one above it when it is larger.
//!
//! ```text
//! 0 ────────── 3 GiB │ 3 GiB ── 4 GiB: devices, APICs, KVM's own pages │ 4 GiB ───────── …
//! ```

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::error::{Error, Result};
use crate::sys;

/// Where the gap for devices begins.
pub const MMIO_GAP_START: u64 = 3 << 30;
/// Where it ends.
pub const MMIO_GAP_END: u64 = 4 << 30;

/// Reserves `bytes` of memory; pages are touched when the guest touches them.
pub fn reserve(bytes: u64) -> Result<GuestMemoryMmap> {
    let low = bytes.min(MMIO_GAP_START);
    let mut ranges = vec![(GuestAddress(0), low as usize)];
    if bytes > low {
        ranges.push((GuestAddress(MMIO_GAP_END), (bytes - low) as usize));
    }
    GuestMemoryMmap::from_ranges(&ranges).map_err(|e| Error::Memory {
        bytes,
        reason: e.to_string(),
    })
}

/// How much of it has pages of the host.
pub fn resident_bytes(memory: &GuestMemoryMmap) -> u64 {
    memory.iter().map(sys::resident_bytes).sum()
}
