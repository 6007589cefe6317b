//! EROFS images: uncompressed, read-only, for Linux 5.16 and later.
//!
//! ```text
//! block 0            1 KiB of nothing, the superblock, zeros                  (disk.rs)
//! block 1 …          inodes: 64 bytes, extended attributes, the contents' last
//!                    part block where it is short and fits                    (plan.rs)
//!       …            extended attributes that several inodes have
//!       …            whole blocks of directories
//!       …            whole blocks of files; what has no place behind its inode
//! ```
//!
//! All numbers are little-endian. A node number is an offset in the image divided by 32. Inodes are in the order of a walk
//! that finishes one directory before it enters the next, so that what is listed together lies together.
//! The source of the facts is Linux' `fs/erofs/erofs_fs.h` and `Documentation/filesystems/erofs.rst`.
//!
//! The same tree makes the same bytes. The volume's UUID comes from the SHA-256 of everything but whole blocks of files:
//! names, attributes, sizes, small contents.
//!
//! Holes of a sparse file stay holes of the image file, and read as zeros.

mod disk;
mod plan;
mod write;

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::output::Output;
use crate::tree::Tree;

pub use write::write;

/// What an image became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Length of the image.
    pub size_bytes: u64,
    /// Files of all kinds in it.
    pub inodes: u64,
    /// The volume's UUID.
    pub uuid: [u8; 16],
}

/// Writes an image that appears at `path` complete and on the disk, or not at all. Blocks.
///
/// # Errors
/// As [`write`].
pub fn create(tree: &Tree, path: &Path) -> Result<Written> {
    let output = Output::create(path)?;
    let written = write(tree, &output.file)?;
    output.publish()?;
    Ok(written)
}

/// Writes what is in `directory` to an image at `path`; everything belongs to root there and is of 1970-01-01, so that the
/// same contents make the same image whoever builds it. Blocks.
///
/// # Errors
/// As [`write`].
pub fn from_directory(directory: &Path, path: &Path) -> Result<Written> {
    let mut tree = Tree::from_layers(&[PathBuf::from(directory)])?;
    tree.normalise();
    create(&tree, path)
}
