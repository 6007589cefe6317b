//! Layers to one tree, as overlayfs would show them.
//!
//! A layer is an unpacked overlay directory: a whiteout is a character device 0:0, an opaque directory has the attribute
//! `trusted.overlay.opaque`. A directory is gone through once for all layers that have it:
//!
//! ```text
//! for each layer, topmost first:   name not seen yet ──▶ it is what the union shows
//!                                  seen, both directories, nothing opaque between ──▶ also looked into below
//!                                  else ──▶ hidden
//! ```
//!
//! Only names and attributes are read. Contents are opened later, beneath the layer's directory, following no link.

use std::collections::hash_map::{Entry, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use caisson_archive::{is_opaque, is_whiteout, xattrs_at};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, open, openat2, readlinkat, statat,
};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};
use crate::tree::{Attributes, Content, Kind, NodeId, Tree};

/// openat2 answers EAGAIN when a rename elsewhere came between; it asks to be called again.
const AGAIN_ATTEMPTS: u32 = 128;

impl Tree {
    /// The union of unpacked layers, topmost first. Blocks.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Unsupported`] without layers.
    pub fn from_layers(layers: &[PathBuf]) -> Result<Tree> {
        let mut roots = Vec::new();
        for path in layers {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let fd = open(path, flags, Mode::empty()).context("open", path)?;
            roots.push(Arc::new(fd));
        }
        let Some(top) = roots.first() else {
            return Err(Error::Unsupported {
                path: PathBuf::new(),
                reason: "an image needs a layer at least".to_owned(),
            });
        };
        let stat = rustix::fs::fstat(top).context("stat", &layers[0])?;
        let attributes = attributes(top.as_fd(), Path::new("."), &stat)?;
        let mut union = Union {
            tree: Tree::new(attributes),
            links: HashMap::new(),
            roots,
            todo: Vec::new(),
        };
        union.todo.push(Directory {
            node: union.tree.root(),
            path: PathBuf::new(),
            layers: (0..layers.len()).collect(),
        });
        while let Some(directory) = union.todo.pop() {
            union.merge(&directory)?;
        }
        Ok(union.tree)
    }
}

struct Union {
    tree: Tree,
    roots: Vec<Arc<OwnedFd>>,
    /// Files with several links that are in the tree: by layer, device and inode.
    links: HashMap<(usize, u64, u64), NodeId>,
    todo: Vec<Directory>,
}

/// A directory of the union that is still to be looked into.
struct Directory {
    node: NodeId,
    path: PathBuf,
    /// The layers that have it and are visible there, topmost first.
    layers: Vec<usize>,
}

/// What a name turned out to be.
enum Seen {
    /// Nothing in lower layers of this name shows.
    Final,
    /// A directory of these layers; lower ones add to it until it is closed.
    Directory {
        node: NodeId,
        layers: Vec<usize>,
        closed: bool,
    },
}

impl Union {
    fn merge(&mut self, directory: &Directory) -> Result<()> {
        let mut seen: HashMap<OsString, Seen> = HashMap::new();
        for (depth, &layer) in directory.layers.iter().enumerate() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let here = open_in_layer(&self.roots[layer], &directory.path, flags)
                .context("open", &directory.path)?;
            // The last one needs no look at what is below it.
            let last = depth + 1 == directory.layers.len();
            for name in names(&here, &directory.path)? {
                let stat = match statat(&here, &name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => stat,
                    Err(errno) => return Err(errno).context("stat", directory.path.join(&name)),
                };
                let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                let opaque = |name: &OsStr| {
                    !last && is_directory && opaque_at(here.as_fd(), Path::new(name))
                };
                match seen.entry(name) {
                    Entry::Occupied(mut known) => {
                        let opaque = opaque(known.key());
                        if let Seen::Directory { layers, closed, .. } = known.get_mut()
                            && !*closed
                        {
                            if is_directory {
                                layers.push(layer);
                            }
                            *closed = opaque || !is_directory;
                        }
                    }
                    Entry::Vacant(free) => {
                        let name = free.key().clone();
                        if is_whiteout(&stat) {
                            free.insert(Seen::Final);
                            continue;
                        }
                        let closed = opaque(&name);
                        let node = add(
                            &mut self.tree,
                            &mut self.links,
                            directory,
                            (layer, &self.roots[layer]),
                            here.as_fd(),
                            &name,
                            &stat,
                        )?;
                        free.insert(match is_directory {
                            false => Seen::Final,
                            true => Seen::Directory {
                                node,
                                layers: vec![layer],
                                closed,
                            },
                        });
                    }
                }
            }
        }
        for (name, seen) in seen {
            if let Seen::Directory { node, layers, .. } = seen {
                self.todo.push(Directory {
                    node,
                    path: directory.path.join(name),
                    layers,
                });
            }
        }
        Ok(())
    }
}

fn add(
    tree: &mut Tree,
    links: &mut HashMap<(usize, u64, u64), NodeId>,
    directory: &Directory,
    (layer, root): (usize, &Arc<OwnedFd>),
    here: BorrowedFd<'_>,
    name: &OsStr,
    stat: &Stat,
) -> Result<NodeId> {
    let path = directory.path.join(name);
    let key = (layer, stat.st_dev, stat.st_ino);
    let file_type = FileType::from_raw_mode(stat.st_mode);
    let linked = stat.st_nlink > 1 && file_type != FileType::Directory;
    if linked && let Some(&target) = links.get(&key) {
        tree.link(directory.node, name, target)?;
        return Ok(target);
    }
    let (major, minor) = (
        rustix::fs::major(stat.st_rdev),
        rustix::fs::minor(stat.st_rdev),
    );
    let kind = match file_type {
        FileType::Directory => Kind::Directory,
        FileType::RegularFile => Kind::File(Content::Beneath {
            root: root.clone(),
            path: path.clone(),
            size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
        }),
        FileType::Symlink => Kind::Symlink(
            readlinkat(here, name, Vec::new())
                .context("read the link", &path)?
                .into_bytes(),
        ),
        FileType::CharacterDevice => Kind::CharDevice { major, minor },
        FileType::BlockDevice => Kind::BlockDevice { major, minor },
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::Unknown => {
            return Err(Error::Unsupported {
                path,
                reason: "it is of an unknown kind".to_owned(),
            });
        }
    };
    let attributes = attributes(here, Path::new(name), stat)?;
    let node = tree.add(directory.node, name, attributes, kind)?;
    if linked {
        links.insert(key, node);
    }
    Ok(node)
}

fn attributes(parent: BorrowedFd<'_>, name: &Path, stat: &Stat) -> Result<Attributes> {
    Ok(Attributes {
        mode: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime_seconds: stat.st_mtime,
        mtime_nanos: stat.st_mtime_nsec as u32,
        xattrs: xattrs_at(parent, name)?,
    })
}

fn names(fd: &OwnedFd, path: &Path) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(fd).context("list", path)? {
        let entry = entry.context("list", path)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name.to_vec()));
        }
    }
    Ok(names)
}

fn opaque_at(parent: BorrowedFd<'_>, name: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty()).is_ok_and(is_opaque)
}

/// Opens what is at `path` in a layer, following no symbolic link and never leaving the layer.
pub(crate) fn open_in_layer(
    root: &OwnedFd,
    path: &Path,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mut attempts = 0;
    loop {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) if attempts < AGAIN_ATTEMPTS => attempts += 1,
            other => return other,
        }
    }
}
