//! What EROFS has on the disk: superblock, inodes, directory blocks, extended attributes.

use crate::tree::{Kind, Node};

pub(super) const BLOCK_BYTES: u64 = 4096;
pub(super) const INODE_BYTES: u64 = 64;
/// Node numbers count these.
pub(super) const SLOT_BYTES: u64 = 32;
/// Says that no block belongs to an inode.
pub(super) const NO_BLOCK: u32 = u32::MAX;

const SUPERBLOCK_AT: usize = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;
const BLOCK_BITS: u8 = 12;
/// The superblock has a checksum; times are of the last change of contents.
const COMPATIBLE: u32 = 0x1 | 0x2;

const LAYOUT_PLAIN: u16 = 0;
const LAYOUT_INLINE: u16 = 2;
const EXTENDED: u16 = 1;

const DIRENT_BYTES: usize = 12;
const XATTR_HEADER_BYTES: usize = 12;

/// What the superblock says of a whole image.
pub(super) struct Superblock {
    pub root_nid: u16,
    pub inodes: u64,
    pub blocks: u32,
    /// Where shared extended attributes begin.
    pub xattr_block: u32,
    pub uuid: [u8; 16],
}

impl Superblock {
    /// Block 0.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut block = vec![0_u8; BLOCK_BYTES as usize];
        {
            let mut put = |at: usize, bytes: &[u8]| {
                block[SUPERBLOCK_AT + at..SUPERBLOCK_AT + at + bytes.len()].copy_from_slice(bytes);
            };
            put(0, &MAGIC.to_le_bytes());
            put(8, &COMPATIBLE.to_le_bytes());
            put(12, &[BLOCK_BITS]);
            put(14, &self.root_nid.to_le_bytes());
            put(16, &self.inodes.to_le_bytes());
            put(36, &self.blocks.to_le_bytes());
            put(44, &self.xattr_block.to_le_bytes());
            put(48, &self.uuid);
        }
        // Of the rest of the block, as the kernel computes it: without the final inversion.
        let checksum = !crc32c::crc32c(&block[SUPERBLOCK_AT..]);
        block[SUPERBLOCK_AT + 4..SUPERBLOCK_AT + 8].copy_from_slice(&checksum.to_le_bytes());
        block
    }
}

/// What an inode says besides a node's attributes.
pub(super) struct Inode<'a> {
    pub node: &'a Node,
    pub size_bytes: u64,
    /// The contents' last part block follows the inode.
    pub inline: bool,
    /// The first whole block of the contents.
    pub first_block: u32,
    pub number: u32,
    pub xattrs: &'a [u8],
}

impl Inode<'_> {
    /// The inode with its extended attributes.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let attributes = &self.node.attributes;
        let layout = if self.inline {
            LAYOUT_INLINE
        } else {
            LAYOUT_PLAIN
        };
        let xattr_count = match self.xattrs.len() {
            0 => 0,
            len => ((len - XATTR_HEADER_BYTES) / 4 + 1) as u16,
        };
        let place = match self.node.kind {
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                encode_device(major, minor)
            }
            Kind::Fifo | Kind::Socket => 0,
            Kind::Directory | Kind::File(_) | Kind::Symlink(_) => self.first_block,
        };
        out.extend((EXTENDED | layout << 1).to_le_bytes());
        out.extend(xattr_count.to_le_bytes());
        out.extend((format_bits(&self.node.kind) | attributes.mode & 0o7777).to_le_bytes());
        out.extend([0; 2]);
        out.extend(self.size_bytes.to_le_bytes());
        out.extend(place.to_le_bytes());
        out.extend(self.number.to_le_bytes());
        out.extend(attributes.uid.to_le_bytes());
        out.extend(attributes.gid.to_le_bytes());
        out.extend(attributes.mtime_seconds.to_le_bytes());
        out.extend(attributes.mtime_nanos.to_le_bytes());
        out.extend(self.node.links.to_le_bytes());
        out.extend([0; 16]);
        out.extend(self.xattrs);
    }
}

/// The kernel's `new_encode_dev`.
fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

fn format_bits(kind: &Kind) -> u16 {
    match kind {
        Kind::Directory => 0o040_000,
        Kind::File(_) => 0o100_000,
        Kind::Symlink(_) => 0o120_000,
        Kind::CharDevice { .. } => 0o020_000,
        Kind::BlockDevice { .. } => 0o060_000,
        Kind::Fifo => 0o010_000,
        Kind::Socket => 0o140_000,
    }
}

fn dirent_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File(_) => 1,
        Kind::Directory => 2,
        Kind::CharDevice { .. } => 3,
        Kind::BlockDevice { .. } => 4,
        Kind::Fifo => 5,
        Kind::Socket => 6,
        Kind::Symlink(_) => 7,
    }
}

/// Where directories' blocks end: names (`.` and `..` too, sorted) to the number of whole blocks before the last, and the
/// bytes used of the last.
fn fill<'a>(names: impl Iterator<Item = &'a [u8]>, mut block_ends: impl FnMut(usize)) -> u64 {
    let (mut blocks, mut used) = (0, 0);
    for (index, name) in names.enumerate() {
        let needs = DIRENT_BYTES + name.len();
        if used + needs > BLOCK_BYTES as usize {
            block_ends(index);
            blocks += 1;
            used = 0;
        }
        used += needs;
    }
    blocks * BLOCK_BYTES + used as u64
}

/// How long a directory's contents are.
pub(super) fn directory_bytes(node: &Node) -> u64 {
    fill(with_dots(node).into_iter(), |_| {})
}

fn with_dots(node: &Node) -> Vec<&[u8]> {
    let mut names: Vec<&[u8]> = vec![b".", b".."];
    names.extend(node.entries.keys().map(|name| &**name));
    names.sort_unstable();
    names
}

/// A directory's contents. `lookup` answers a name's node number and kind.
pub(super) fn directory<'a>(node: &Node, lookup: impl Fn(&[u8]) -> (u64, &'a Kind)) -> Vec<u8> {
    let names = with_dots(node);
    let mut ends = Vec::new();
    let size = fill(names.iter().copied(), |index| ends.push(index));
    ends.push(names.len());
    let mut out = Vec::with_capacity(size as usize);
    let mut start = 0;
    for end in ends {
        out.resize(out.len().next_multiple_of(BLOCK_BYTES as usize), 0);
        let names = &names[start..end];
        let mut name_at = names.len() * DIRENT_BYTES;
        for name in names {
            let (nid, kind) = lookup(name);
            out.extend(nid.to_le_bytes());
            out.extend((name_at as u16).to_le_bytes());
            out.extend([dirent_type(kind), 0]);
            name_at += name.len();
        }
        for name in names {
            out.extend(*name);
        }
        start = end;
    }
    out
}

/// The prefixes of names that are numbers on the disk.
const PREFIXES: [(&str, u8); 5] = [
    ("user.", 1),
    ("system.posix_acl_access", 2),
    ("system.posix_acl_default", 3),
    ("trusted.", 4),
    ("security.", 6),
];

/// One attribute as it is on the disk, padded to 4 bytes. `None`: the format has no place for it.
pub(super) fn xattr(name: &str, value: &[u8]) -> Option<Vec<u8>> {
    let (rest, index) = PREFIXES.iter().find_map(|(prefix, index)| {
        let rest = name.strip_prefix(prefix)?;
        (prefix.ends_with('.') || rest.is_empty()).then_some((rest, *index))
    })?;
    let mut out = vec![u8::try_from(rest.len()).ok()?, index];
    out.extend(u16::try_from(value.len()).ok()?.to_le_bytes());
    out.extend(rest.as_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    Some(out)
}

/// What follows an inode: the places of attributes it shares, then its own. Empty when it has none.
pub(super) fn xattr_body(shared: &[u32], own: &[&[u8]]) -> Vec<u8> {
    if shared.is_empty() && own.is_empty() {
        return Vec::new();
    }
    let mut out = vec![0; XATTR_HEADER_BYTES];
    out[4] = shared.len() as u8;
    for place in shared {
        out.extend(place.to_le_bytes());
    }
    for entry in own {
        out.extend(*entry);
    }
    out
}

/// The longest [`xattr_body`] whose length fits the inode.
pub(super) const XATTR_BODY_MAX: usize = (u16::MAX as usize - 1) * 4 + XATTR_HEADER_BYTES;

/// How many attributes an inode can share.
pub(super) const SHARED_MAX: usize = u8::MAX as usize;
