//! A file tree in memory: everything but the contents of files, which stay where they are until they are copied.
//!
//! A directory's entries are sorted by their bytes. A hard link is a second entry for the same node. A tree has its limits, for
//! it may be made of layers that somebody else made: at most about 2 GiB of memory.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};

/// The longest name of a file, in bytes.
const NAME_MAX: usize = 255;

/// The most files of all kinds: as many as a layer may have.
const FILES_MAX: usize = 4_000_000;

/// The most bytes of names, link targets and extended attributes together.
const TEXT_BYTES_MAX: usize = 512 << 20;

/// What all kinds of files have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970, negative before.
    pub mtime_seconds: i64,
    /// Nanoseconds within the second.
    pub mtime_nanos: u32,
    /// Names with their prefix (`user.`, `security.` …) and values, in any order.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// What a file is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file with contents.
    File(Content),
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice {
        /// Its driver.
        major: u32,
        /// Its number there.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Its driver.
        major: u32,
        /// Its number there.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// Where a file's contents are.
#[derive(Clone, Debug)]
pub enum Content {
    /// Here.
    Bytes(Vec<u8>),
    /// In a file of this length beneath a directory; opened when it is copied, following no symbolic link.
    Beneath {
        /// The directory.
        root: Arc<OwnedFd>,
        /// The file's path in it.
        path: PathBuf,
        /// Its length.
        size_bytes: u64,
    },
}

impl Content {
    /// How many bytes.
    pub fn size_bytes(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Beneath { size_bytes, .. } => *size_bytes,
        }
    }
}

/// A node of one tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(crate) u32);

impl NodeId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub attributes: Attributes,
    pub kind: Kind,
    /// Of a directory.
    pub entries: BTreeMap<Box<[u8]>, NodeId>,
    /// Entries that lead here; of a directory, 2 and its subdirectories.
    pub links: u32,
    /// The directory a directory is in; the root's is itself.
    pub parent: NodeId,
}

/// A file tree. See the module's text.
#[derive(Clone, Debug)]
pub struct Tree {
    pub(crate) nodes: Vec<Node>,
    text_bytes: usize,
}

impl Tree {
    /// An empty directory.
    pub fn new(root: Attributes) -> Tree {
        Tree {
            nodes: vec![Node {
                attributes: root,
                kind: Kind::Directory,
                entries: BTreeMap::new(),
                links: 2,
                parent: NodeId(0),
            }],
            text_bytes: 0,
        }
    }

    /// The top directory.
    pub fn root(&self) -> NodeId {
        NodeId(0)
    }

    /// Adds a file to a directory.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a name that is empty, `.`, `..`, longer than 255 bytes, already there or has a `/` or NUL
    /// in it; for a parent that is no directory; for more than the tree may hold.
    pub fn add(
        &mut self,
        parent: NodeId,
        name: &OsStr,
        attributes: Attributes,
        kind: Kind,
    ) -> Result<NodeId> {
        if self.nodes.len() >= FILES_MAX {
            return Err(unsupported(name, "there are more than 4000000 files"));
        }
        let xattrs = attributes.xattrs.iter();
        self.text_bytes += xattrs.map(|(k, v)| k.len() + v.len()).sum::<usize>();
        self.text_bytes += match &kind {
            Kind::Symlink(target) => target.len(),
            Kind::File(Content::Beneath { path, .. }) => path.as_os_str().len(),
            _ => 0,
        };
        let id = NodeId(self.nodes.len() as u32);
        let directory = matches!(kind, Kind::Directory);
        self.enter(parent, name, id)?;
        if directory {
            self.nodes[parent.index()].links += 1;
        }
        self.nodes.push(Node {
            attributes,
            kind,
            entries: BTreeMap::new(),
            links: if directory { 2 } else { 1 },
            parent,
        });
        Ok(id)
    }

    /// Adds a hard link to what is no directory.
    ///
    /// # Errors
    /// As [`Tree::add`]; [`Error::Unsupported`] when the target is a directory.
    pub fn link(&mut self, parent: NodeId, name: &OsStr, target: NodeId) -> Result<()> {
        if matches!(self.nodes[target.index()].kind, Kind::Directory) {
            return Err(unsupported(name, "it would be a hard link to a directory"));
        }
        self.enter(parent, name, target)?;
        self.nodes[target.index()].links += 1;
        Ok(())
    }

    /// Gives everything to root and dates it 1970-01-01, so that equal contents make equal images.
    pub fn normalise(&mut self) {
        for node in &mut self.nodes {
            let attributes = &mut node.attributes;
            (attributes.uid, attributes.gid) = (0, 0);
            (attributes.mtime_seconds, attributes.mtime_nanos) = (0, 0);
        }
    }

    fn enter(&mut self, parent: NodeId, name: &OsStr, id: NodeId) -> Result<()> {
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes == b"." || bytes == b".." {
            return Err(unsupported(name, "it is no file name"));
        }
        if bytes.len() > NAME_MAX {
            return Err(unsupported(name, "its name is longer than 255 bytes"));
        }
        if bytes.contains(&b'/') || bytes.contains(&0) {
            return Err(unsupported(name, "its name has a slash or a NUL in it"));
        }
        let parent = &mut self.nodes[parent.index()];
        if !matches!(parent.kind, Kind::Directory) {
            return Err(unsupported(name, "its parent is no directory"));
        }
        if parent.entries.contains_key(bytes) {
            return Err(unsupported(name, "it is in the directory already"));
        }
        self.text_bytes += bytes.len();
        if self.text_bytes > TEXT_BYTES_MAX {
            let reason = "names, link targets and extended attributes have more than 512 MiB";
            return Err(unsupported(name, reason));
        }
        parent.entries.insert(bytes.into(), id);
        Ok(())
    }
}

fn unsupported(name: &OsStr, reason: &str) -> Error {
    Error::Unsupported {
        path: Path::new(name).to_owned(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_in_memory_is_bounded() {
        let mut tree = Tree::new(Attributes::default());
        let root = tree.root();
        let mut add = |i: u32| {
            let name = i.to_string();
            let target = Kind::Symlink(vec![b'x'; 1 << 20]);
            tree.add(root, OsStr::new(&name), Attributes::default(), target)
        };
        for i in 0..511 {
            add(i).unwrap();
        }
        assert!(add(511).is_err());
    }
}
