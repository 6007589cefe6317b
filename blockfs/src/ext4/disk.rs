//! What an empty ext4 disk has in its blocks.

use super::Options;
use super::geometry::{
    BLOCK_BYTES, DESCRIPTOR_BYTES, GROUP_BLOCKS, Geometry, INODE_BYTES, USED_INODES,
};

const HAS_JOURNAL: u32 = 0x4;
const EXT_ATTR: u32 = 0x8;
const DIR_INDEX: u32 = 0x20;
const SPARSE_SUPER2: u32 = 0x200;
const COMPATIBLE: u32 = HAS_JOURNAL | EXT_ATTR | DIR_INDEX | SPARSE_SUPER2;

const FILETYPE: u32 = 0x2;
const EXTENTS: u32 = 0x40;
const BITS_64: u32 = 0x80;
const INCOMPATIBLE: u32 = FILETYPE | EXTENTS | BITS_64;

const SPARSE_SUPER: u32 = 0x1;
const LARGE_FILE: u32 = 0x2;
const HUGE_FILE: u32 = 0x8;
const DIR_NLINK: u32 = 0x20;
const EXTRA_ISIZE: u32 = 0x40;
const METADATA_CSUM: u32 = 0x400;
const READ_ONLY_COMPATIBLE: u32 =
    SPARSE_SUPER | LARGE_FILE | HUGE_FILE | DIR_NLINK | EXTRA_ISIZE | METADATA_CSUM;

const INODES_UNUSED: u16 = 0x1;
const BLOCKS_UNUSED: u16 = 0x2;
const INODES_ZEROED: u16 = 0x4;

const ROOT_INODE: u32 = 2;
const JOURNAL_INODE: u32 = 8;
const LOST_AND_FOUND_INODE: u32 = 11;

const SUPERBLOCK_AT: usize = 1024;
const SUPERBLOCK_BYTES: usize = 1024;
const EXTENTS_FLAG: u32 = 0x80000;
const EXTRA_INODE_BYTES: u16 = 32;
const DIRECTORY: u8 = 2;
const TAIL_BYTES: usize = 12;

/// The kernel's `crc32c(seed, bytes)`: without the inversions of the standard one.
fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn low16(value: u64) -> [u8; 2] {
    (value as u16).to_le_bytes()
}

fn high16(value: u64) -> [u8; 2] {
    ((value >> 16) as u16).to_le_bytes()
}

fn low32(value: u64) -> [u8; 4] {
    (value as u32).to_le_bytes()
}

fn high32(value: u64) -> [u8; 4] {
    ((value >> 32) as u32).to_le_bytes()
}

pub(super) struct Disk<'a> {
    geometry: &'a Geometry,
    options: &'a Options,
    /// Of all metadata: the checksum of the volume's UUID.
    seed: u32,
}

impl<'a> Disk<'a> {
    pub(super) fn new(geometry: &'a Geometry, options: &'a Options) -> Self {
        Disk {
            geometry,
            options,
            seed: checksum(!0, &options.uuid),
        }
    }

    /// Everything that is not a hole: block numbers and what begins there.
    pub(super) fn blocks(&self) -> Vec<(u64, Vec<u8>)> {
        let g = self.geometry;
        let mut blocks = vec![
            (0, self.superblock()),
            (1, self.descriptors()),
            (g.inode_table(0), self.inodes()),
            (
                g.root_directory(),
                self.directory(
                    ROOT_INODE,
                    &[
                        (".", ROOT_INODE),
                        ("..", ROOT_INODE),
                        ("lost+found", LOST_AND_FOUND_INODE),
                    ],
                ),
            ),
            (
                g.lost_and_found(),
                self.directory(
                    LOST_AND_FOUND_INODE,
                    &[(".", LOST_AND_FOUND_INODE), ("..", ROOT_INODE)],
                ),
            ),
            (g.journal(), self.journal()),
        ];
        for group in 0..g.groups {
            if self.has_block_bitmap(group) {
                blocks.push((g.block_bitmap(group), self.block_bitmap(group)));
            }
        }
        blocks.push((g.inode_bitmap(0), self.inode_bitmap()));
        blocks
    }

    fn superblock(&self) -> Vec<u8> {
        let g = self.geometry;
        let mut block = vec![0; BLOCK_BYTES as usize];
        let sb = &mut block[SUPERBLOCK_AT..SUPERBLOCK_AT + SUPERBLOCK_BYTES];
        let now = self.options.created_seconds.to_le_bytes();
        put(sb, 0x00, &low32(g.inodes()));
        put(sb, 0x04, &low32(g.blocks));
        put(sb, 0x0c, &low32(g.free_blocks()));
        put(sb, 0x10, &low32(g.inodes() - USED_INODES));
        put(sb, 0x18, &2_u32.to_le_bytes()); // log2 of KiB per block
        put(sb, 0x1c, &2_u32.to_le_bytes()); // and per cluster
        put(sb, 0x20, &low32(GROUP_BLOCKS));
        put(sb, 0x24, &low32(GROUP_BLOCKS));
        put(sb, 0x28, &low32(g.inodes_per_group));
        put(sb, 0x30, &now); // written
        put(sb, 0x36, &u16::MAX.to_le_bytes()); // mounts until a check: any number
        put(sb, 0x38, &0xef53_u16.to_le_bytes());
        put(sb, 0x3a, &1_u16.to_le_bytes()); // clean
        put(sb, 0x3c, &2_u16.to_le_bytes()); // errors=remount-ro
        put(sb, 0x40, &now); // checked
        put(sb, 0x4c, &1_u32.to_le_bytes()); // revision
        put(sb, 0x54, &low32(USED_INODES)); // the first inode that is not reserved
        put(sb, 0x58, &low16(INODE_BYTES));
        put(sb, 0x5c, &COMPATIBLE.to_le_bytes());
        put(sb, 0x60, &INCOMPATIBLE.to_le_bytes());
        put(sb, 0x64, &READ_ONLY_COMPATIBLE.to_le_bytes());
        put(sb, 0x68, &self.options.uuid);
        put(sb, 0x78, self.options.label.as_bytes());
        put(sb, 0xe0, &JOURNAL_INODE.to_le_bytes());
        // The directory hash's seed: any value.
        put(sb, 0xec, &self.options.uuid);
        put(sb, 0xfc, &[1, 1]); // half MD4; a copy of the journal's inode follows
        put(sb, 0xfe, &low16(DESCRIPTOR_BYTES));
        put(sb, 0x100, &0xc_u32.to_le_bytes()); // mounted with user_xattr and acl
        put(sb, 0x108, &now); // made
        let journal_bytes = g.journal_blocks * BLOCK_BYTES;
        put(sb, 0x10c, &extent(g.journal(), g.journal_blocks));
        put(sb, 0x10c + 60, &high32(journal_bytes));
        put(sb, 0x10c + 64, &low32(journal_bytes));
        put(sb, 0x150, &high32(g.blocks));
        put(sb, 0x158, &high32(g.free_blocks()));
        put(sb, 0x15c, &EXTRA_INODE_BYTES.to_le_bytes());
        put(sb, 0x15e, &EXTRA_INODE_BYTES.to_le_bytes());
        put(sb, 0x160, &1_u32.to_le_bytes()); // hashes of signed characters
        put(sb, 0x175, &[1]); // checksums are CRC-32C
        put(sb, 0x248, &low32(g.overhead_blocks()));
        put(sb, 0x268, &LOST_AND_FOUND_INODE.to_le_bytes());
        let sum = checksum(!0, &sb[..SUPERBLOCK_BYTES - 4]);
        put(sb, SUPERBLOCK_BYTES - 4, &sum.to_le_bytes());
        block
    }

    fn descriptors(&self) -> Vec<u8> {
        let g = self.geometry;
        let mut out = Vec::with_capacity((g.groups * DESCRIPTOR_BYTES) as usize);
        for group in 0..g.groups {
            let mut d = [0_u8; DESCRIPTOR_BYTES as usize];
            let mut split = |at: usize, high: usize, value: u64| {
                put(&mut d, at, &low32(value));
                put(&mut d, high, &high32(value));
            };
            split(0x00, 0x20, g.block_bitmap(group));
            split(0x04, 0x24, g.inode_bitmap(group));
            split(0x08, 0x28, g.inode_table(group));
            let used_inodes = if group == 0 { USED_INODES } else { 0 };
            let free_inodes = g.inodes_per_group - used_inodes;
            let mut flags = INODES_ZEROED;
            let mut split = |at: usize, high: usize, value: u64| {
                put(&mut d, at, &low16(value));
                put(&mut d, high, &high16(value));
            };
            split(0x0c, 0x2c, g.group_blocks(group) - g.used_blocks(group));
            split(0x0e, 0x2e, free_inodes);
            split(0x1c, 0x32, free_inodes); // at the table's end, never used
            if self.has_block_bitmap(group) {
                let sum = checksum(self.seed, &self.block_bitmap(group));
                split(0x18, 0x38, sum.into());
            } else {
                flags |= BLOCKS_UNUSED;
            }
            if group == 0 {
                split(0x10, 0x30, 2); // directories
                let counted = (g.inodes_per_group / 8) as usize;
                let sum = checksum(self.seed, &self.inode_bitmap()[..counted]);
                split(0x1a, 0x3a, sum.into());
            } else {
                flags |= INODES_UNUSED;
            }
            put(&mut d, 0x12, &flags.to_le_bytes());
            let sum = checksum(self.seed, &(group as u32).to_le_bytes());
            let sum = checksum(sum, &d);
            put(&mut d, 0x1e, &low16(sum.into()));
            out.extend(d);
        }
        out
    }

    /// The kernel makes the others when it needs them: it knows only whole groups.
    fn has_block_bitmap(&self, group: u64) -> bool {
        group == 0 || group + 1 == self.geometry.groups
    }

    fn block_bitmap(&self, group: u64) -> Vec<u8> {
        let used = self.geometry.used_blocks(group);
        let end = self.geometry.group_blocks(group);
        // What is beyond the disk's end counts as used.
        bitmap(|block| block < used || block >= end)
    }

    fn inode_bitmap(&self) -> Vec<u8> {
        let end = self.geometry.inodes_per_group;
        bitmap(|inode| inode < USED_INODES || inode >= end)
    }

    /// The inodes in use, from number 1.
    fn inodes(&self) -> Vec<u8> {
        let g = self.geometry;
        let mut table = vec![0; (USED_INODES * INODE_BYTES) as usize];
        for (number, mode, links, first, blocks) in [
            (ROOT_INODE, 0o040_755_u16, 3_u16, g.root_directory(), 1),
            (JOURNAL_INODE, 0o100_600, 1, g.journal(), g.journal_blocks),
            (LOST_AND_FOUND_INODE, 0o040_700, 2, g.lost_and_found(), 1),
        ] {
            let at = (number as usize - 1) * INODE_BYTES as usize;
            let inode = &mut table[at..at + INODE_BYTES as usize];
            let bytes = blocks * BLOCK_BYTES;
            put(inode, 0x00, &mode.to_le_bytes());
            put(inode, 0x04, &low32(bytes));
            for time in [0x08, 0x0c, 0x10, 0x90] {
                put(inode, time, &self.options.created_seconds.to_le_bytes());
            }
            put(inode, 0x1a, &links.to_le_bytes());
            put(inode, 0x1c, &low32(bytes / 512));
            put(inode, 0x20, &EXTENTS_FLAG.to_le_bytes());
            put(inode, 0x28, &extent(first, blocks));
            put(inode, 0x6c, &high32(bytes));
            put(inode, 0x80, &EXTRA_INODE_BYTES.to_le_bytes());
            let sum = u64::from(checksum(self.inode_seed(number), inode));
            put(inode, 0x7c, &low16(sum));
            put(inode, 0x82, &high16(sum));
        }
        table
    }

    /// What checksums of an inode and its blocks begin with.
    fn inode_seed(&self, number: u32) -> u32 {
        let generation = [0; 4];
        checksum(checksum(self.seed, &number.to_le_bytes()), &generation)
    }

    fn directory(&self, inode: u32, entries: &[(&str, u32)]) -> Vec<u8> {
        let mut block = vec![0; BLOCK_BYTES as usize];
        let end = block.len() - TAIL_BYTES;
        let mut at = 0;
        for (index, (name, target)) in entries.iter().enumerate() {
            let length = match index + 1 == entries.len() {
                true => end - at,
                false => (8 + name.len()).next_multiple_of(4),
            };
            put(&mut block, at, &target.to_le_bytes());
            put(&mut block, at + 4, &low16(length as u64));
            put(&mut block, at + 6, &[name.len() as u8, DIRECTORY]);
            put(&mut block, at + 8, name.as_bytes());
            at += length;
        }
        let sum = checksum(self.inode_seed(inode), &block[..end]);
        put(&mut block, end + 4, &[TAIL_BYTES as u8, 0, 0, 0xde]);
        put(&mut block, end + 8, &sum.to_le_bytes());
        block
    }

    /// The journal's superblock, big-endian: an empty log.
    fn journal(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK_BYTES as usize];
        put(&mut block, 0x00, &0xc03b_3998_u32.to_be_bytes());
        put(&mut block, 0x04, &4_u32.to_be_bytes()); // a superblock of version 2
        put(&mut block, 0x0c, &(BLOCK_BYTES as u32).to_be_bytes());
        let blocks = self.geometry.journal_blocks as u32;
        put(&mut block, 0x10, &blocks.to_be_bytes());
        put(&mut block, 0x14, &1_u32.to_be_bytes()); // the first block of the log
        put(&mut block, 0x18, &1_u32.to_be_bytes()); // the first transaction
        put(&mut block, 0x40, &1_u32.to_be_bytes()); // file systems that use it
        block
    }
}

fn bitmap(set: impl Fn(u64) -> bool) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_BYTES as usize];
    for bit in 0..BLOCK_BYTES * 8 {
        if set(bit) {
            bytes[(bit / 8) as usize] |= 1 << (bit % 8);
        }
    }
    bytes
}

/// An inode's 60 bytes for an extent tree of one leaf: so many blocks from this one.
fn extent(first: u64, blocks: u64) -> [u8; 60] {
    let mut out = [0; 60];
    put(&mut out, 0, &0xf30a_u16.to_le_bytes());
    put(&mut out, 2, &1_u16.to_le_bytes()); // extents
    put(&mut out, 4, &4_u16.to_le_bytes()); // there is room for
    put(&mut out, 16, &low16(blocks));
    put(&mut out, 18, &low16(first >> 32));
    put(&mut out, 20, &low32(first));
    out
}
