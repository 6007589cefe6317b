//! What a container changed: `docker diff`, from an overlay's upper directory, or the same as a layer, and the layers below.
//!
//! As in Docker, a file in the upper directory counts as changed even when it was only copied up, a directory only when its
//! own attributes differ or something directly in it was added or removed.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs::Metadata;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use caisson_archive::{EntryKind, OPAQUE_MARKER, Stream, WHITEOUT_PREFIX};

use crate::error::{Context, Error, Result};
use crate::store::Limits;

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
/// [`Error::Io`].
pub fn changes(upper: &Path, lowers: &[PathBuf]) -> Result<Vec<Change>> {
    let mut entries = Entries::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(at) = todo.pop() {
        let dir = upper.join(&at);
        for entry in std::fs::read_dir(&dir).context("list", &dir)? {
            let path = at.join(entry.context("list", &dir)?.file_name());
            let full = upper.join(&path);
            let meta = match std::fs::symlink_metadata(&full) {
                Ok(meta) => meta,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e).context("stat", full),
            };
            let entry = if is_whiteout(&meta) {
                Entry::Whiteout
            } else if meta.is_dir() {
                todo.push(path.clone());
                Entry::Directory {
                    facts: Some(Facts::of(&meta)),
                    opaque: is_opaque(&full),
                }
            } else {
                Entry::Other
            };
            entries.insert(path, entry);
        }
    }
    Ok(compare(&entries, lowers))
}

/// Compares a layer's archive with the layers under it, topmost first. Sorted by path. Blocks.
///
/// # Errors
/// [`Error::Archive`], [`Error::LimitExceeded`].
pub fn changes_in_archive(archive: impl Read, lowers: &[PathBuf]) -> Result<Vec<Change>> {
    let limit = Limits::default().layer_entries;
    let mut entries = Entries::new();
    let mut stream = Stream::new(archive);
    while let Some(found) = stream.next_entry()? {
        let (path, entry) = read_entry(&found)?;
        if path.as_os_str().is_empty() {
            continue;
        }
        // A directory and its mark come in either order.
        match (entries.get_mut(&path), entry) {
            (
                Some(Entry::Directory { facts, opaque }),
                Entry::Directory {
                    facts: more,
                    opaque: marked,
                },
            ) => {
                *facts = facts.take().or(more);
                *opaque |= marked;
            }
            (_, entry) => {
                entries.insert(path, entry);
            }
        }
        if entries.len() as u64 > limit {
            return Err(Error::LimitExceeded {
                unit: "files",
                limit,
            });
        }
    }
    Ok(compare(&entries, lowers))
}

fn read_entry(found: &caisson_archive::Entry) -> Result<(PathBuf, Entry)> {
    let name = Path::new(OsStr::from_bytes(&found.name));
    if found.name.len() > PATH_MAX {
        return Err(Error::InvalidImage(
            "a file's name is longer than 4096 bytes".into(),
        ));
    }
    let normal = |c: Component<'_>| match c {
        Component::Normal(part) => Some(part.to_owned()),
        _ => None,
    };
    let path: PathBuf = name.components().filter_map(normal).collect();
    let last = path.file_name().unwrap_or_default().as_bytes();
    if last == OPAQUE_MARKER.as_bytes() {
        let dir = path.parent().unwrap_or(Path::new("")).to_owned();
        let opaque = Entry::Directory {
            facts: None,
            opaque: true,
        };
        return Ok((dir, opaque));
    }
    if let Some(gone) = last.strip_prefix(WHITEOUT_PREFIX.as_bytes()) {
        return Ok((
            path.with_file_name(OsStr::from_bytes(gone)),
            Entry::Whiteout,
        ));
    }
    let entry = match found.kind {
        EntryKind::Directory => Entry::Directory {
            facts: Some(Facts {
                mode: found.mode & 0o7777,
                owner: (found.uid, found.gid),
                mtime: (found.mtime_seconds, i64::from(found.mtime_nanos)),
            }),
            opaque: false,
        },
        _ => Entry::Other,
    };
    Ok((path, entry))
}

/// The kernel's own limit.
const PATH_MAX: usize = 4096;

/// What an upper directory or a layer has, parents before what is in them.
type Entries = BTreeMap<PathBuf, Entry>;

enum Entry {
    Whiteout,
    Directory {
        /// Not known when an archive has no entry for it.
        facts: Option<Facts>,
        opaque: bool,
    },
    Other,
}

/// What makes a directory a changed one.
struct Facts {
    mode: u32,
    owner: (i64, i64),
    mtime: (i64, i64),
}

impl Facts {
    fn of(meta: &Metadata) -> Facts {
        Facts {
            mode: meta.mode() & 0o7777,
            owner: (meta.uid().into(), meta.gid().into()),
            mtime: (meta.mtime(), meta.mtime_nsec()),
        }
    }

    fn same(&self, other: &Facts) -> bool {
        self.mode == other.mode
            && self.owner == other.owner
            && self.mtime.0 == other.mtime.0
            && same_nanos(self.mtime.1, other.mtime.1)
    }
}

fn compare(entries: &Entries, lowers: &[PathBuf]) -> Vec<Change> {
    let mut found: BTreeMap<PathBuf, ChangeKind> = BTreeMap::new();
    // Directories of the upper one below which no lower layer shows.
    let mut hiding: HashSet<&Path> = HashSet::new();
    let mut changed_parents: HashSet<&Path> = HashSet::new();
    for (path, entry) in entries {
        let parent = path.parent().unwrap_or(Path::new(""));
        let hidden = hiding.contains(parent);
        let lower = if hidden { None } else { lookup(lowers, path) };
        let kind = match (entry, &lower) {
            (Entry::Whiteout, Some(_)) => Some(ChangeKind::Deleted),
            (Entry::Whiteout, None) => None,
            (_, None) => Some(ChangeKind::Added),
            (Entry::Directory { facts, opaque }, Some(old)) if old.is_dir() => {
                let same = facts.as_ref().is_none_or(|f| f.same(&Facts::of(old)));
                (*opaque || !same).then_some(ChangeKind::Modified)
            }
            (_, Some(_)) => Some(ChangeKind::Modified),
        };
        if let Some(kind) = kind {
            if kind != ChangeKind::Modified {
                changed_parents.insert(parent);
            }
            found.insert(path.clone(), kind);
        }
        if let Entry::Directory { opaque, .. } = entry {
            if lower.as_ref().is_none_or(|old| !old.is_dir()) {
                hiding.insert(path);
            } else if *opaque {
                for name in lower_names(lowers, path) {
                    let path = path.join(name);
                    if !entries.contains_key(&path) {
                        found.insert(path, ChangeKind::Deleted);
                    }
                }
            }
        }
    }
    // A directory something was added to or removed from has changed, even when its time was set back.
    for parent in changed_parents {
        if !parent.as_os_str().is_empty() {
            found
                .entry(parent.to_owned())
                .or_insert(ChangeKind::Modified);
        }
    }
    let change = |(path, kind)| Change {
        path: Path::new("/").join(path),
        kind,
    };
    found.into_iter().map(change).collect()
}

fn is_whiteout(meta: &Metadata) -> bool {
    meta.file_type().is_char_device() && meta.rdev() == 0
}

fn is_opaque(dir: &Path) -> bool {
    let mut value = [0_u8; 4];
    matches!(rustix::fs::lgetxattr(dir, "trusted.overlay.opaque", &mut value), Ok(1) if value[0] == b'y')
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
