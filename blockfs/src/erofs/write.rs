//! Writing a planned image: inodes in one stream, contents straight to their blocks.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{OFlags, SeekFrom, copy_file_range, fstat, seek};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::Written;
use super::disk::{BLOCK_BYTES, Inode, Superblock, directory};
use super::plan::{Place, Plan};
use crate::error::{Context, Error, Result};
use crate::layers::open_in_layer;
use crate::tree::{Content, Kind, NodeId, Tree};

/// How errors call the image, whose path only the caller knows.
const IMAGE: &str = "the image file";
const CHUNK_BYTES: usize = 1 << 20;

/// Writes an image to an empty file; does not sync it. Blocks.
///
/// # Errors
/// [`Error::Io`], of kind no-space when the disk is full; [`Error::Changed`] when a file has become shorter;
/// [`Error::Unsupported`] for what EROFS cannot store: extended attributes of unknown prefixes or 64 KiB, more than 16 TiB.
pub fn write(tree: &Tree, image: &File) -> Result<Written> {
    let plan = Plan::new(tree)?;
    let size_bytes = u64::from(plan.blocks) * BLOCK_BYTES;
    image.set_len(size_bytes).context("extend", IMAGE)?;
    let mut metadata = Metadata {
        image,
        buffer: Vec::with_capacity(CHUNK_BYTES + BLOCK_BYTES as usize),
        at: BLOCK_BYTES,
        hash: Sha256::new(),
    };
    let mut inode = Vec::new();
    for id in &plan.order {
        let node = &tree.nodes[id.index()];
        let place = &plan.places[id.index()];
        inode.clear();
        Inode {
            node,
            size_bytes: place.size_bytes,
            inline: place.inline,
            first_block: place.first_block,
            number: place.number,
            xattrs: &place.xattrs,
        }
        .encode(&mut inode);
        match &node.kind {
            Kind::Directory => {
                let contents = directory_contents(tree, &plan, *id);
                metadata.hash.update(&contents);
                put_bytes(image, place, &contents, &mut inode)?;
            }
            Kind::Symlink(target) => put_bytes(image, place, target, &mut inode)?,
            Kind::File(Content::Bytes(bytes)) => put_bytes(image, place, bytes, &mut inode)?,
            Kind::File(Content::Beneath { root, path, .. }) => {
                if place.size_bytes > 0 {
                    put_file(image, place, (root, path), &mut inode)?;
                }
            }
            Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo | Kind::Socket => {}
        }
        metadata.put(place.at, &inode)?;
    }
    if !plan.shared_xattrs.is_empty() {
        metadata.put(
            u64::from(plan.xattr_block) * BLOCK_BYTES,
            &plan.shared_xattrs,
        )?;
    }
    metadata.flush()?;
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&metadata.hash.finalize()[..16]);
    // RFC 9562: version 8, one's own way of making it.
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    let superblock = Superblock {
        root_nid: (plan.places[tree.root().index()].nid()) as u16,
        inodes: plan.order.len() as u64,
        blocks: plan.blocks,
        xattr_block: plan.xattr_block,
        uuid,
    };
    image
        .write_all_at(&superblock.encode(), 0)
        .context("write", IMAGE)?;
    Ok(Written {
        size_bytes,
        inodes: superblock.inodes,
        uuid,
    })
}

fn directory_contents(tree: &Tree, plan: &Plan, id: NodeId) -> Vec<u8> {
    let node = &tree.nodes[id.index()];
    directory(node, |name| {
        let target = match name {
            b"." => id,
            b".." => node.parent,
            name => node.entries[name],
        };
        (
            plan.places[target.index()].nid(),
            &tree.nodes[target.index()].kind,
        )
    })
}

/// Whole blocks to their place, the tail behind the inode.
fn put_bytes(image: &File, place: &Place, bytes: &[u8], inode: &mut Vec<u8>) -> Result<()> {
    let (body, tail) = bytes.split_at(place.body_bytes() as usize);
    if !body.is_empty() {
        let at = u64::from(place.first_block) * BLOCK_BYTES;
        image.write_all_at(body, at).context("write", IMAGE)?;
    }
    inode.extend(tail);
    Ok(())
}

fn put_file(
    image: &File,
    place: &Place,
    (root, path): (&OwnedFd, &Path),
    inode: &mut Vec<u8>,
) -> Result<()> {
    let source = File::from(open_in_layer(root, path, OFlags::RDONLY).context("open", path)?);
    let body = place.body_bytes();
    if body > 0 {
        let to = u64::from(place.first_block) * BLOCK_BYTES;
        copy(&source, path, image, to, body)?;
    }
    let tail = (place.size_bytes - body) as usize;
    let start = inode.len();
    inode.resize(start + tail, 0);
    source
        .read_exact_at(&mut inode[start..], body)
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::Changed(path.to_owned()),
            _ => Error::Io {
                action: "read",
                path: path.to_owned(),
                source: error,
            },
        })
}

/// Copies the first bytes of a file, leaving out its holes.
fn copy(source: &File, path: &Path, image: &File, to: u64, bytes: u64) -> Result<()> {
    let stat = fstat(source).context("stat", path)?;
    let stored = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
    if u64::try_from(stat.st_size).unwrap_or(0) < bytes {
        return Err(Error::Changed(path.to_owned()));
    }
    if stored >= bytes {
        return copy_range(source, path, image, (0, bytes), to);
    }
    let mut at = 0;
    while at < bytes {
        let data = match seek(source, SeekFrom::Data(at)) {
            Ok(data) => data.min(bytes),
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno).context("look for data in", path),
        };
        let hole = seek(source, SeekFrom::Hole(data))
            .context("look for holes in", path)?
            .min(bytes);
        if data < hole {
            copy_range(source, path, image, (data, hole), to)?;
        }
        at = hole.max(data);
    }
    Ok(())
}

/// Copies `from..end` of a file; byte 0 of it is at `to` in the image. In the kernel where it can.
fn copy_range(
    source: &File,
    path: &Path,
    image: &File,
    (from, end): (u64, u64),
    to: u64,
) -> Result<()> {
    let mut read_at = from;
    let mut write_at = to + from;
    while read_at < end {
        let want = usize::try_from(end - read_at).unwrap_or(usize::MAX);
        match copy_file_range(
            source.as_fd(),
            Some(&mut read_at),
            image.as_fd(),
            Some(&mut write_at),
            want.min(1 << 30),
        ) {
            Ok(0) => return Err(Error::Changed(path.to_owned())),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                return copy_by_hand(source, path, image, (read_at, end), to);
            }
            Err(errno) => return Err(errno).context("copy into the image", path),
        }
    }
    Ok(())
}

fn copy_by_hand(
    source: &File,
    path: &Path,
    image: &File,
    (from, end): (u64, u64),
    to: u64,
) -> Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut at = from;
    while at < end {
        let want = buffer.len().min((end - at) as usize);
        let n = source
            .read_at(&mut buffer[..want], at)
            .context("read", path)?;
        if n == 0 {
            return Err(Error::Changed(path.to_owned()));
        }
        image
            .write_all_at(&buffer[..n], to + at)
            .context("write", IMAGE)?;
        at += n as u64;
    }
    Ok(())
}

/// What is written from the second block on in ascending order, hashed on its way.
struct Metadata<'a> {
    image: &'a File,
    buffer: Vec<u8>,
    /// Where the buffer begins.
    at: u64,
    hash: Sha256,
}

impl Metadata<'_> {
    fn put(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let gap = at - (self.at + self.buffer.len() as u64);
        self.buffer.resize(self.buffer.len() + gap as usize, 0);
        self.buffer.extend(bytes);
        if self.buffer.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.hash.update(&self.buffer);
        self.image
            .write_all_at(&self.buffer, self.at)
            .context("write", IMAGE)?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}
