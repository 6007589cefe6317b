//! tar in and out of a directory descriptor, never escaping it.
//!
//! Owns: the tar format as container tools write it (PAX, GNU long names, sparse files, extended attributes), and every
//! path lookup beneath a root that may be hostile. Must not know: images, containers, compression, async runtimes.
//!
//! ```text
//! caller's Read ──▶ stream (headers, PAX, sparse maps) ──▶ unpack ──▶ beneath (openat2 RESOLVE_IN_ROOT) ──▶ directory fd
//! directory fd ──▶ pack (sorted walk, openat2 NO_SYMLINKS) ──▶ header (ustar + PAX) ──▶ caller's Write
//! ```
//!
//! Three properties hold for any input:
//!
//! * No name in an archive, and no symbolic link in the tree or made by the archive, leads outside the root: parents are
//!   resolved by the kernel with `RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS`, and the last component is never followed.
//! * Memory is bounded: headers of unbounded size are refused, file contents are streamed.
//! * Disk is bounded by [`UnpackOptions::max_bytes`] and [`UnpackOptions::max_entries`].

mod beneath;
mod error;
mod header;
mod pack;
mod pax;
mod remove;
mod stat;
mod stream;
mod unpack;
mod whiteout;
mod xattr;

pub use beneath::{create_dir_all, open_beneath};
pub use error::{Error, ErrorKind, Result};
pub use pack::{PackOptions, Packed, pack};
pub use remove::remove_all;
pub use stat::{FileKind, PathStat, resolve, shown_name, stat};
pub use stream::{Entry, EntryKind, Stream};
pub use unpack::{Ownership, UnpackOptions, Unpacked, unpack};
pub use whiteout::{
    OPAQUE_MARKER, PackWhiteouts, UnpackWhiteouts, WHITEOUT_PREFIX, is_opaque, is_whiteout,
};
pub use xattr::{Xattr, xattrs_at};
