//! Where everything goes, decided before anything is written.
//!
//! An inode, its extended attributes and the contents' last part block (the *tail*) go into one block when they fit, so
//! that a small file costs a guest one read. Blocks that are not full yet stay open for a while for what comes next. A file's
//! long tail goes into a block of its own: it would spread the inodes of its directory over more blocks than it saves.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;

use super::disk::{
    BLOCK_BYTES, INODE_BYTES, NO_BLOCK, SHARED_MAX, SLOT_BYTES, XATTR_BODY_MAX, directory_bytes,
    xattr, xattr_body,
};
use crate::error::{Error, Result};
use crate::tree::{Kind, NodeId, Tree};

/// How many blocks of inodes stay open.
const OPEN_BLOCKS: usize = 16;

/// The longest tail of a file that goes with its inode. Of 51,834 files of /usr/share (461 MiB), read through a loop device
/// with a cold cache, with 4096, 2048, 1024 and 0: `ls -lR` of 5,713 of them costs 2168, 827, 360 and 141 reads, 300
/// small files 618, 601, 676 and 787, 300 files of any size 656, 689, 745 and 756; the image has 461, 468, 507 and 570 MiB.
const FILE_TAIL_MAX: u64 = 2048;

/// Where a node is.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    /// Its inode, from the image's beginning.
    pub at: u64,
    pub size_bytes: u64,
    /// The tail follows the inode.
    pub inline: bool,
    /// The first whole block; [`NO_BLOCK`] without.
    pub first_block: u32,
    /// Its turn in the walk, from 1.
    pub number: u32,
    pub xattrs: Vec<u8>,
}

impl Place {
    pub(super) fn nid(&self) -> u64 {
        self.at / SLOT_BYTES
    }

    /// Bytes of the contents that are in whole blocks of their own.
    pub(super) fn body_bytes(&self) -> u64 {
        if self.inline {
            self.size_bytes - self.size_bytes % BLOCK_BYTES
        } else {
            self.size_bytes
        }
    }
}

#[derive(Debug)]
pub(super) struct Plan {
    /// By node.
    pub places: Vec<Place>,
    /// Nodes by the place of their inode.
    pub order: Vec<NodeId>,
    /// Extended attributes that several inodes have.
    pub shared_xattrs: Vec<u8>,
    pub xattr_block: u32,
    pub blocks: u32,
}

impl Plan {
    pub(super) fn new(tree: &Tree) -> Result<Plan> {
        let mut order = walk(tree);
        let shared = Shared::new(tree, &order)?;
        let mut places = vec![Place::default(); tree.nodes.len()];
        let mut packer = Packer {
            next_block: 1,
            open: VecDeque::new(),
        };
        for (turn, id) in order.iter().enumerate() {
            let node = &tree.nodes[id.index()];
            let xattrs = shared.body(&node.attributes.xattrs)?;
            let size_bytes = match &node.kind {
                Kind::Directory => directory_bytes(node),
                Kind::File(content) => content.size_bytes(),
                Kind::Symlink(target) => target.len() as u64,
                _ => 0,
            };
            let head = INODE_BYTES + xattrs.len() as u64;
            let tail = match size_bytes % BLOCK_BYTES {
                long if long > FILE_TAIL_MAX && matches!(node.kind, Kind::File(_)) => 0,
                tail => tail,
            };
            let (at, inline) = packer.place(head, tail);
            places[id.index()] = Place {
                at,
                size_bytes,
                inline,
                first_block: NO_BLOCK,
                number: turn as u32 + 1,
                xattrs,
            };
        }
        let xattr_block = packer.next_block;
        let mut next = xattr_block + (shared.bytes.len() as u64).div_ceil(BLOCK_BYTES);
        for directories in [true, false] {
            for id in &order {
                let place = &mut places[id.index()];
                let blocks = place.body_bytes().div_ceil(BLOCK_BYTES);
                let directory = matches!(tree.nodes[id.index()].kind, Kind::Directory);
                if directory == directories && blocks > 0 {
                    place.first_block = block_number(next)?;
                    next += blocks;
                }
            }
        }
        order.sort_by_key(|id| places[id.index()].at);
        Ok(Plan {
            places,
            order,
            xattr_block: if shared.bytes.is_empty() {
                0
            } else {
                block_number(xattr_block)?
            },
            shared_xattrs: shared.bytes,
            blocks: block_number(next)?,
        })
    }
}

fn block_number(block: u64) -> Result<u32> {
    u32::try_from(block)
        .ok()
        .filter(|n| *n != NO_BLOCK)
        .ok_or_else(|| Error::Unsupported {
            path: PathBuf::from("/"),
            reason: "the image would be larger than 16 TiB".to_owned(),
        })
}

/// Every node once: the root, what is in it, what is in its first directory, and so on.
fn walk(tree: &Tree) -> Vec<NodeId> {
    let mut order = vec![tree.root()];
    let mut seen = vec![false; tree.nodes.len()];
    seen[tree.root().index()] = true;
    let mut at = 0;
    while let Some(id) = order.get(at) {
        at += 1;
        for child in tree.nodes[id.index()].entries.values() {
            if !std::mem::replace(&mut seen[child.index()], true) {
                order.push(*child);
            }
        }
    }
    order
}

struct Packer {
    next_block: u64,
    /// Blocks with their used bytes.
    open: VecDeque<(u64, u64)>,
}

impl Packer {
    /// A place for an inode with its attributes, and whether the tail is with it.
    fn place(&mut self, head: u64, tail: u64) -> (u64, bool) {
        if head + tail <= BLOCK_BYTES {
            let fits = |(_, used): &&mut (u64, u64)| *used + head + tail <= BLOCK_BYTES;
            if let Some((block, used)) = self.open.iter_mut().find(fits) {
                let at = *block * BLOCK_BYTES + *used;
                *used = (*used + head + tail).next_multiple_of(SLOT_BYTES);
                return (at, tail > 0);
            }
        }
        let at = self.next_block * BLOCK_BYTES;
        let inline = tail > 0 && head % BLOCK_BYTES + tail <= BLOCK_BYTES;
        let total = head + if inline { tail } else { 0 };
        self.next_block += total.div_ceil(BLOCK_BYTES);
        let used = (total % BLOCK_BYTES).next_multiple_of(SLOT_BYTES);
        if used > 0 && used + INODE_BYTES <= BLOCK_BYTES {
            self.open.push_back((self.next_block - 1, used));
            if self.open.len() > OPEN_BLOCKS {
                self.open.pop_front();
            }
        }
        (at, inline)
    }
}

/// Attributes that more than one inode has, written once.
struct Shared {
    /// Encoded attributes, and where each is in units of 4 bytes.
    places: HashMap<Vec<u8>, u32>,
    bytes: Vec<u8>,
}

impl Shared {
    fn new(tree: &Tree, order: &[NodeId]) -> Result<Shared> {
        let mut counts: HashMap<Vec<u8>, u32> = HashMap::new();
        let mut first_seen = Vec::new();
        for id in order {
            for (name, value) in &tree.nodes[id.index()].attributes.xattrs {
                let entry = encode(name, value)?;
                let count = counts.entry(entry.clone()).or_default();
                *count += 1;
                if *count == 2 {
                    first_seen.push(entry);
                }
            }
        }
        let mut shared = Shared {
            places: HashMap::new(),
            bytes: Vec::new(),
        };
        for entry in first_seen {
            let Ok(place) = u32::try_from(shared.bytes.len() / 4) else {
                break;
            };
            shared.bytes.extend(&entry);
            shared.places.insert(entry, place);
        }
        Ok(shared)
    }

    fn body(&self, xattrs: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
        let mut places = Vec::new();
        let mut own = Vec::new();
        let mut sorted: Vec<_> = xattrs.iter().collect();
        sorted.sort();
        for (name, value) in sorted {
            let entry = encode(name, value)?;
            match self.places.get(&entry) {
                Some(place) if places.len() < SHARED_MAX => places.push(*place),
                _ => own.push(entry),
            }
        }
        let own: Vec<&[u8]> = own.iter().map(Vec::as_slice).collect();
        let body = xattr_body(&places, &own);
        if body.len() > XATTR_BODY_MAX {
            return Err(Error::Unsupported {
                path: PathBuf::from(&xattrs[0].0),
                reason: "a file has more than 256 KiB of extended attributes".to_owned(),
            });
        }
        Ok(body)
    }
}

fn encode(name: &str, value: &[u8]) -> Result<Vec<u8>> {
    xattr(name, value).ok_or_else(|| Error::Unsupported {
        path: PathBuf::from(name),
        reason: "an extended attribute of this name or of more than 65535 bytes has no place in it"
            .to_owned(),
    })
}
