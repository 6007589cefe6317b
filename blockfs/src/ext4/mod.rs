//! Empty ext4 disks: a sparse file, formatted in milliseconds because nearly all of it stays a hole.
//!
//! ```text
//! group 0     superblock │ group descriptors │ block bitmap │ inode bitmap │ inodes │ / │ lost+found │ journal │ free
//! group 1 …   block bitmap │ inode bitmap │ inodes │ free
//! ```
//!
//! 4 KiB blocks, 128 MiB groups, 256-byte inodes. Only group 0 and the last group have written bitmaps: the others are marked
//! as not initialised, which the kernel does when it first uses one. Inode tables are holes, which read as zeros, and are
//! marked as zeroed, so that no guest begins to zero them. There are no copies of the superblock (`sparse_super2`): a disk
//! that a container owns is thrown away, not repaired. Metadata has checksums, errors make the disk read-only, no blocks are
//! reserved for root.
//!
//! The source of the facts is Linux' `Documentation/filesystems/ext4/` and `fs/ext4/ext4.h`.

mod disk;
mod geometry;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{Context, Error, Result};
use crate::output::Output;
use disk::Disk;
use geometry::{BLOCK_BYTES, Geometry};

/// What to format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Length of the disk: a multiple of 4096, 16 MiB to 16 TiB.
    pub size_bytes: u64,
    /// The volume's label, at most 16 bytes.
    pub label: String,
    /// The volume's UUID.
    pub uuid: [u8; 16],
    /// When it was made, in seconds since 1970.
    pub created_seconds: u32,
}

impl Options {
    /// A disk of this size made now, with a random UUID and no label.
    pub fn new(size_bytes: u64) -> Options {
        let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs());
        let mut uuid: [u8; 16] = rand::random();
        uuid[6] = uuid[6] & 0x0f | 0x40;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        Options {
            size_bytes,
            label: String::new(),
            uuid,
            created_seconds: u32::try_from(now).unwrap_or(u32::MAX),
        }
    }
}

/// What an empty disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Formatted {
    /// Files it has room for.
    pub inodes: u64,
    /// Bytes for files' contents.
    pub free_bytes: u64,
}

/// How many bytes a freshly formatted disk of this length stores; the rest are holes.
///
/// # Errors
/// [`Error::Size`] when it cannot be formatted.
pub fn stored_bytes(size_bytes: u64) -> Result<u64> {
    let geometry = Geometry::new(size_bytes)?;
    let options = Options::new(size_bytes);
    let disk = Disk::new(&geometry, &options);
    let blocks = |(_, bytes): (u64, Vec<u8>)| (bytes.len() as u64).next_multiple_of(BLOCK_BYTES);
    Ok(disk.blocks().into_iter().map(blocks).sum())
}

/// Formats a disk that appears at `path` complete, or not at all. Blocks.
///
/// # Errors
/// As [`format`].
pub fn create(path: &Path, options: &Options) -> Result<Formatted> {
    let output = Output::create(path)?;
    let formatted = format(&output.file, options)?;
    output.publish()?;
    Ok(formatted)
}

/// Formats an empty file; does not sync it. Blocks.
///
/// # Errors
/// [`Error::Size`], [`Error::Label`]; [`Error::Io`], of kind no-space when the disk is full.
pub fn format(file: &File, options: &Options) -> Result<Formatted> {
    const DISK: &str = "the disk's file";
    if options.label.len() > 16 {
        return Err(Error::Label(options.label.clone()));
    }
    let geometry = Geometry::new(options.size_bytes)?;
    file.set_len(options.size_bytes).context("extend", DISK)?;
    let disk = Disk::new(&geometry, options);
    for (block, bytes) in disk.blocks() {
        file.write_all_at(&bytes, block * BLOCK_BYTES)
            .context("write", DISK)?;
    }
    Ok(Formatted {
        inodes: geometry.inodes(),
        free_bytes: geometry.free_blocks() * BLOCK_BYTES,
    })
}
