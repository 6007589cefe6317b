//! Deleted files in layers: the two spellings and their names.
//!
//! ```text
//! in an OCI layer (AUFS)          in an overlayfs directory
//! dir/.wh.name        (empty)     dir/name            character device 0:0
//! dir/.wh..wh..opq    (empty)     dir                 xattr trusted.overlay.opaque=y
//! ```

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Stat, statat};

/// Begins the name of a whiteout in a layer.
pub const WHITEOUT_PREFIX: &str = ".wh.";
/// Begins names of AUFS' own bookkeeping, which are skipped.
pub(crate) const WHITEOUT_META_PREFIX: &str = ".wh..wh.";
/// Marks a directory as opaque.
pub const OPAQUE_MARKER: &str = ".wh..wh..opq";
/// overlayfs' mark of an opaque directory.
pub(crate) const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// What becomes of whiteout entries while unpacking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnpackWhiteouts {
    /// They are ordinary files (`docker cp`).
    Literal,
    /// They become overlayfs whiteouts: the directory is one layer of an overlay.
    Overlay,
    /// They delete what they name: the layer is applied onto a complete tree.
    Remove,
}

/// What becomes of overlayfs whiteouts while packing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackWhiteouts {
    /// They are packed as the devices they are.
    Literal,
    /// They become `.wh.` entries: the tree is an overlay's upper directory.
    ToOci,
}

/// Whether this is an overlayfs whiteout: a character device 0:0.
pub fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Whether the directory `fd` is opaque in the sense of overlayfs.
pub fn is_opaque(fd: impl AsFd) -> bool {
    let mut value = [0_u8; 4];
    matches!(rustix::fs::fgetxattr(fd, OPAQUE_XATTR, &mut value), Ok(1) if value[0] == b'y')
}

/// Whether `name` beneath the directory `parent` is an overlayfs whiteout.
pub(crate) fn whiteout_at(parent: impl AsFd, name: &Path) -> bool {
    statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| is_whiteout(&stat))
}
