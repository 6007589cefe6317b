//! The memory's file, and which pages are worth writing.

use std::fs::File;
use std::os::unix::fs::FileExt;

use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MemoryRegionAddress, MmapRegion,
};

use super::unfit;
use crate::error::{Error, Result};
use crate::memory;

const PAGE: usize = 4096;
/// Pages looked at in one go.
const BATCH: usize = 512;
const PRESENT_OR_SWAPPED: u64 = 3 << 62;
const PRESENT: u64 = 1 << 63;

/// `/proc/self/pagemap`, opened while there is a `/proc`: which pages this process has.
pub struct Pagemap(File);

impl Pagemap {
    /// Opens it.
    pub fn open() -> Result<Self> {
        File::open("/proc/self/pagemap")
            .map(Pagemap)
            .map_err(Error::io("/proc/self/pagemap"))
    }

    /// What the guest's memory takes of the host's.
    pub fn resident_bytes(&self, memory: &GuestMemoryMmap) -> u64 {
        let mut pages = 0;
        for region in memory.iter() {
            // what cannot be read counts as nothing: a statistic
            let _ = self.batches(region, |_, entries| {
                pages += entries.iter().filter(|e| **e & PRESENT != 0).count();
                Ok(())
            });
        }
        (pages * PAGE) as u64
    }

    fn batches(
        &self,
        region: &GuestRegionMmap,
        mut each: impl FnMut(usize, &[u64]) -> Result<()>,
    ) -> Result<()> {
        let first = region.as_ptr() as usize / PAGE;
        let pages = region.len() as usize / PAGE;
        let mut bytes = [0; BATCH * 8];
        for start in (0..pages).step_by(BATCH) {
            let count = BATCH.min(pages - start);
            let bytes = &mut bytes[..count * 8];
            self.0
                .read_exact_at(bytes, (first + start) as u64 * 8)
                .map_err(Error::io("/proc/self/pagemap"))?;
            let entries: Vec<u64> = bytes
                .as_chunks::<8>()
                .0
                .iter()
                .map(|b| u64::from_le_bytes(*b))
                .collect();
            each(start, &entries)?;
        }
        Ok(())
    }

    /// Writes the memory of a paused machine: regions one after the other, holes where a page is zero.
    pub fn write(&self, memory: &GuestMemoryMmap, file: &File) -> Result<()> {
        let failed = || Error::io("the memory's file");
        let total: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
        file.set_len(0)
            .and_then(|()| file.set_len(total))
            .map_err(failed())?;
        let mut offset = 0;
        for region in memory.iter() {
            // behind a page that is not here lies a zero, or the snapshot that this machine was restored from
            let restored = region.file_offset().is_some();
            self.batches(region, |start, entries| {
                let worth = |at: usize| restored || entries[at] & PRESENT_OR_SWAPPED != 0;
                let mut buffer = [0; PAGE];
                for at in (0..entries.len()).filter(|at| worth(*at)) {
                    let address = ((start + at) * PAGE) as u64;
                    region
                        .read_slice(&mut buffer, MemoryRegionAddress(address))
                        .map_err(unfit)?;
                    if buffer.iter().any(|b| *b != 0) {
                        file.write_all_at(&buffer, offset + address)
                            .map_err(failed())?;
                    }
                }
                Ok(())
            })?;
            offset += region.len();
        }
        Ok(())
    }
}

/// Maps a snapshot's memory private: what the guest writes stays with this process.
pub fn map(file: &File, bytes: u64) -> Result<GuestMemoryMmap> {
    let has = file
        .metadata()
        .map_err(Error::io("the memory's file"))?
        .len();
    if has != bytes {
        return Err(unfit(format!(
            "its memory's file has {has} bytes, its memory {bytes}"
        )));
    }
    let failed = |reason: String| Error::Memory { bytes, reason };
    let mut offset = 0;
    let mut regions = Vec::new();
    for (address, len) in memory::layout(bytes) {
        let file = file.try_clone().map_err(Error::io("the memory's file"))?;
        let mapping = MmapRegion::build(
            Some(FileOffset::new(file, offset)),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_NORESERVE,
        )
        .map_err(|e| failed(e.to_string()))?;
        let region: GuestRegionMmap = GuestRegionMmap::new(mapping, GuestAddress(address))
            .ok_or_else(|| failed("it does not fit into the address space".into()))?;
        regions.push(region);
        offset += len as u64;
    }
    GuestMemoryMmap::from_regions(regions).map_err(|e| failed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn memory_comes_back_and_what_was_zero_takes_no_room() {
        let pagemap = Pagemap::open().expect("/proc");
        let bytes = 32 << 20;
        let memory = memory::reserve(bytes).expect("memory");
        let at = |page: u64| GuestAddress(page * PAGE as u64);
        memory.write_slice(&[7; PAGE], at(3)).expect("memory");
        memory.write_slice(&[0; PAGE], at(5)).expect("memory");
        memory.write_slice(&[9; 100], at(8191)).expect("memory");
        let resident = pagemap.resident_bytes(&memory);
        assert!(resident >= 3 * PAGE as u64);
        let file = tempfile::tempfile().expect("a file");
        pagemap.write(&memory, &file).expect("it is written");
        let meta = file.metadata().expect("a file");
        assert_eq!(meta.len(), bytes);
        assert!(meta.blocks() * 512 <= 16 * PAGE as u64, "{}", meta.blocks());

        let back = map(&file, bytes).expect("it fits");
        let page = |memory: &GuestMemoryMmap, page| {
            let mut bytes = [1; PAGE];
            memory.read_slice(&mut bytes, at(page)).expect("memory");
            bytes
        };
        assert_eq!(page(&back, 3), [7; PAGE]);
        assert_eq!(page(&back, 5), [0; PAGE]);
        assert_eq!(page(&back, 8191)[..100], [9; 100]);
        // what one machine writes, the other does not see
        back.write_slice(&[1; PAGE], at(3)).expect("memory");
        let other = map(&file, bytes).expect("it fits");
        assert_eq!(page(&other, 3), [7; PAGE]);
        // pages that were never touched are in the next snapshot too
        let again = tempfile::tempfile().expect("a file");
        pagemap.write(&other, &again).expect("it is written");
        let third = map(&again, bytes).expect("it fits");
        assert_eq!(page(&third, 3), [7; PAGE]);

        assert!(map(&file, bytes - PAGE as u64).is_err());
    }
}
