//! Where the parts of an ext4 disk are: arithmetic on its size alone.

use crate::error::{Error, Result};

pub(super) const BLOCK_BYTES: u64 = 4096;
/// As many as one block of bitmap counts.
pub(super) const GROUP_BLOCKS: u64 = BLOCK_BYTES * 8;
pub(super) const INODE_BYTES: u64 = 256;
pub(super) const DESCRIPTOR_BYTES: u64 = 64;
/// Inodes 1 to 10 are reserved, 11 is lost+found.
pub(super) const USED_INODES: u64 = 11;

const BYTES_PER_INODE: u64 = 16384;
const MIN_BYTES: u64 = 16 << 20;
const MAX_BYTES: u64 = 16 << 40;
/// A last group with fewer blocks than this beyond its own metadata is left out.
const MIN_GROUP_BLOCKS: u64 = 50;
/// The least that the kernel takes.
const MIN_JOURNAL_BLOCKS: u64 = 1024;
/// 32 MiB: a guest goes round in it, so it is what a busy disk takes on the host beyond its files.
const MAX_JOURNAL_BLOCKS: u64 = 8192;

/// The parts of a disk, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub blocks: u64,
    pub groups: u64,
    pub inodes_per_group: u64,
    pub journal_blocks: u64,
}

impl Geometry {
    pub(super) fn new(size_bytes: u64) -> Result<Geometry> {
        let refuse = |reason| Err(Error::Size { size_bytes, reason });
        if !size_bytes.is_multiple_of(BLOCK_BYTES) {
            return refuse("it must be a multiple of 4096");
        }
        if size_bytes < MIN_BYTES {
            return refuse("it must be 16 MiB at least");
        }
        if size_bytes > MAX_BYTES - BLOCK_BYTES {
            return refuse("it must be less than 16 TiB");
        }
        let mut blocks = size_bytes / BLOCK_BYTES;
        let groups = blocks.div_ceil(GROUP_BLOCKS);
        // One block of inodes holds 16.
        let inodes_per_group = (size_bytes / BYTES_PER_INODE)
            .div_ceil(groups)
            .next_multiple_of(BLOCK_BYTES / INODE_BYTES)
            .min(GROUP_BLOCKS);
        let mut geometry = Geometry {
            blocks,
            groups,
            inodes_per_group,
            journal_blocks: (blocks / 64).clamp(MIN_JOURNAL_BLOCKS, MAX_JOURNAL_BLOCKS),
        };
        let last = blocks % GROUP_BLOCKS;
        if groups > 1 && last > 0 && last < geometry.overhead(groups - 1) + MIN_GROUP_BLOCKS {
            blocks -= last;
            geometry.blocks = blocks;
            geometry.groups -= 1;
        }
        Ok(geometry)
    }

    pub(super) fn inodes(&self) -> u64 {
        self.groups * self.inodes_per_group
    }

    pub(super) fn descriptor_blocks(&self) -> u64 {
        (self.groups * DESCRIPTOR_BYTES).div_ceil(BLOCK_BYTES)
    }

    pub(super) fn inode_table_blocks(&self) -> u64 {
        self.inodes_per_group * INODE_BYTES / BLOCK_BYTES
    }

    pub(super) fn first_block(&self, group: u64) -> u64 {
        group * GROUP_BLOCKS
    }

    /// Blocks in a group.
    pub(super) fn group_blocks(&self, group: u64) -> u64 {
        (self.blocks - self.first_block(group)).min(GROUP_BLOCKS)
    }

    pub(super) fn block_bitmap(&self, group: u64) -> u64 {
        let before = if group == 0 {
            1 + self.descriptor_blocks()
        } else {
            0
        };
        self.first_block(group) + before
    }

    pub(super) fn inode_bitmap(&self, group: u64) -> u64 {
        self.block_bitmap(group) + 1
    }

    pub(super) fn inode_table(&self, group: u64) -> u64 {
        self.block_bitmap(group) + 2
    }

    /// Blocks of a group's own metadata, at its beginning.
    fn overhead(&self, group: u64) -> u64 {
        self.inode_table(group) + self.inode_table_blocks() - self.first_block(group)
    }

    pub(super) fn root_directory(&self) -> u64 {
        self.overhead(0)
    }

    pub(super) fn lost_and_found(&self) -> u64 {
        self.root_directory() + 1
    }

    pub(super) fn journal(&self) -> u64 {
        self.root_directory() + 2
    }

    /// Blocks in use at the beginning of a group.
    pub(super) fn used_blocks(&self, group: u64) -> u64 {
        if group == 0 {
            self.journal() + self.journal_blocks
        } else {
            self.overhead(group)
        }
    }

    pub(super) fn free_blocks(&self) -> u64 {
        let used: u64 = (0..self.groups).map(|group| self.used_blocks(group)).sum();
        self.blocks - used
    }

    /// What the kernel counts as overhead: all metadata of groups, and the journal.
    pub(super) fn overhead_blocks(&self) -> u64 {
        let groups: u64 = (0..self.groups).map(|group| self.overhead(group)).sum();
        groups + self.journal_blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_room_for_what_it_needs() {
        let mut size = MIN_BYTES;
        while size < MAX_BYTES - BLOCK_BYTES {
            for extra in [0, 4096, 5 << 20, GROUP_BLOCKS * BLOCK_BYTES / 2] {
                let Ok(g) = Geometry::new(size + extra) else {
                    continue;
                };
                assert!(g.used_blocks(0) < g.group_blocks(0), "{g:?}");
                let last = g.groups - 1;
                assert!(g.used_blocks(last) < g.group_blocks(last), "{g:?}");
                assert!(g.inodes() > USED_INODES);
                assert!(g.blocks <= (size + extra) / BLOCK_BYTES);
                assert!(g.inodes() <= u64::from(u32::MAX));
                // The journal is one extent of the inode.
                assert!(g.journal_blocks <= 32768);
            }
            size = size / 2 * 3 / BLOCK_BYTES * BLOCK_BYTES;
        }
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        for size in [
            0,
            4096,
            MIN_BYTES - 4096,
            MIN_BYTES + 1,
            MAX_BYTES,
            u64::MAX,
        ] {
            assert!(Geometry::new(size).is_err(), "{size}");
        }
    }
}
