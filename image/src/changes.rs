//! What a container changed: `docker diff`, from an overlay's upper directory and the layers below.
//!
//! As in Docker, a file in the upper directory counts as changed even when it was only copied up, a directory only when its
//! own attributes differ or something directly in it was added or removed.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{Context, Result};

/// What happened to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is different (`C`).
    Modified,
    /// It is new (`A`).
    Added,
    /// It is gone (`D`).
    Deleted,
}

/// One changed path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// From the container's root.
    pub path: PathBuf,
    /// What happened to it.
    pub kind: ChangeKind,
}

/// Compares `upper` with the layers under it, topmost first. Sorted by path. Blocks.
///
/// # Errors
/// [`crate::Error::Io`].
pub fn changes(upper: &Path, lowers: &[PathBuf]) -> Result<Vec<Change>> {
    let mut found = Vec::new();
    walk(upper, lowers, Path::new(""), false, &mut found)?;
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found.dedup();
    Ok(found)
}

/// `hidden`: an opaque directory above hides the lower layers.
fn walk(
    upper: &Path,
    lowers: &[PathBuf],
    at: &Path,
    hidden: bool,
    found: &mut Vec<Change>,
) -> Result<()> {
    let dir = upper.join(at);
    let opaque = !at.as_os_str().is_empty() && !hidden && is_opaque(&dir);
    if opaque {
        for name in lower_names(lowers, at) {
            if std::fs::symlink_metadata(dir.join(&name)).is_err() {
                push(found, at.join(name), ChangeKind::Deleted);
            }
        }
    }
    let mut parent_changed = false;
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(&dir).context("list", &dir)? {
        entries.push(entry.context("list", &dir)?.file_name());
    }
    entries.sort();
    for name in entries {
        let path = at.join(&name);
        let meta = match std::fs::symlink_metadata(upper.join(&path)) {
            Ok(meta) => meta,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e).context("stat", upper.join(&path)),
        };
        let lower = if hidden { None } else { lookup(lowers, &path) };
        let kind = match (is_whiteout(&meta), &lower) {
            (true, Some(_)) => Some(ChangeKind::Deleted),
            (true, None) => None,
            (false, None) => Some(ChangeKind::Added),
            (false, Some(old)) if meta.is_dir() && old.is_dir() => {
                let opaque = is_opaque(&upper.join(&path));
                (opaque || !same_directory(&meta, old)).then_some(ChangeKind::Modified)
            }
            (false, Some(_)) => Some(ChangeKind::Modified),
        };
        if let Some(kind) = kind {
            parent_changed |= kind != ChangeKind::Modified;
            push(found, path.clone(), kind);
        }
        if meta.is_dir() {
            let below_hidden = hidden || lower.as_ref().is_none_or(|old| !old.is_dir());
            walk(upper, lowers, &path, below_hidden, found)?;
        }
    }
    // A directory something was added to or removed from has changed, even when its time was set back.
    let itself = Path::new("/").join(at);
    if parent_changed && !at.as_os_str().is_empty() && !found.iter().any(|c| c.path == itself) {
        found.push(Change {
            path: itself,
            kind: ChangeKind::Modified,
        });
    }
    Ok(())
}

fn push(found: &mut Vec<Change>, path: PathBuf, kind: ChangeKind) {
    found.push(Change {
        path: Path::new("/").join(path),
        kind,
    });
}

fn is_whiteout(meta: &Metadata) -> bool {
    meta.file_type().is_char_device() && meta.rdev() == 0
}

fn is_opaque(dir: &Path) -> bool {
    let mut value = [0_u8; 4];
    matches!(rustix::fs::lgetxattr(dir, "trusted.overlay.opaque", &mut value), Ok(1) if value[0] == b'y')
}

fn same_directory(a: &Metadata, b: &Metadata) -> bool {
    a.mode() == b.mode()
        && a.uid() == b.uid()
        && a.gid() == b.gid()
        && a.mtime() == b.mtime()
        && same_nanos(a.mtime_nsec(), b.mtime_nsec())
}

/// An archive's time has no nanoseconds, a copy's has: as in Docker, a zero fits any.
fn same_nanos(a: i64, b: i64) -> bool {
    a == b || a == 0 || b == 0
}

/// What the stacked layers show at a path, following no link and seeing whiteouts and opaque directories.
fn lookup(lowers: &[PathBuf], path: &Path) -> Option<Metadata> {
    'layers: for layer in lowers {
        let mut here = layer.clone();
        let mut below_opaque = false;
        let parts: Vec<_> = path.components().collect();
        for (i, part) in parts.iter().enumerate() {
            here.push(part);
            let Ok(meta) = std::fs::symlink_metadata(&here) else {
                if below_opaque {
                    return None;
                }
                continue 'layers;
            };
            if is_whiteout(&meta) {
                return None;
            }
            if i + 1 == parts.len() {
                return Some(meta);
            }
            if !meta.is_dir() {
                return None;
            }
            below_opaque |= is_opaque(&here);
        }
    }
    None
}

fn lower_names(lowers: &[PathBuf], at: &Path) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> = lowers
        .iter()
        .filter_map(|layer| std::fs::read_dir(layer.join(at)).ok())
        .flat_map(|entries| entries.flatten().map(|e| e.file_name()))
        .filter(|name| lookup(lowers, &at.join(name)).is_some())
        .collect();
    names.sort();
    names.dedup();
    names
}
