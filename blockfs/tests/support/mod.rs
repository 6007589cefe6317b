//! What a file tree looks like: listed from a directory (mounted or plain) and, by erofs-rs, from an image.

#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use erofs_rs::backend::SliceImage;
use sha2::{Digest as _, Sha256};

/// Everything about one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub kind: char,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, u32),
    pub links: u64,
    pub device: (u32, u32),
    pub size: u64,
    /// A file's digest or a link's target.
    pub contents: Vec<u8>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// The first path of the same inode.
    pub same_as: PathBuf,
}

pub type Listing = BTreeMap<PathBuf, Facts>;

/// Lists a directory; directories' sizes are left out, for they are the file system's own affair.
pub fn directory(root: &Path) -> Listing {
    let mut found = Listing::new();
    let mut inodes = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(at) = todo.pop() {
        let path = root.join(&at);
        let meta = match std::fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            // overlayfs lists whiteouts in directories that only one layer has, and then does not find them.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => panic!("{path:?}: {e}"),
        };
        let kind = meta.file_type();
        let (kind, contents) = if kind.is_dir() {
            let mut names: Vec<_> = std::fs::read_dir(&path)
                .unwrap()
                .map(|e| e.unwrap().file_name())
                .collect();
            names.sort();
            todo.extend(names.into_iter().rev().map(|name| at.join(name)));
            ('d', Vec::new())
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&path).unwrap();
            ('l', target.as_os_str().as_bytes().to_vec())
        } else if kind.is_file() {
            ('f', digest(std::fs::File::open(&path).unwrap()))
        } else if kind.is_char_device() {
            ('c', Vec::new())
        } else if kind.is_block_device() {
            ('b', Vec::new())
        } else if kind.is_fifo() {
            ('p', Vec::new())
        } else {
            ('s', Vec::new())
        };
        let parent = std::fs::File::open(path.parent().unwrap()).unwrap();
        let name = path.file_name().unwrap();
        let xattrs = caisson_archive::xattrs_at(parent.as_fd(), Path::new(name)).unwrap();
        let special = kind == 'c' || kind == 'b';
        let same_as = match kind {
            'd' => at.clone(),
            _ => inodes
                .entry((meta.dev(), meta.ino()))
                .or_insert_with(|| at.clone())
                .clone(),
        };
        let facts = Facts {
            kind,
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            mtime: (meta.mtime(), meta.mtime_nsec() as u32),
            links: if kind == 'd' { 0 } else { meta.nlink() },
            device: if special {
                (
                    rustix::fs::major(meta.rdev()),
                    rustix::fs::minor(meta.rdev()),
                )
            } else {
                (0, 0)
            },
            size: if kind == 'd' { 0 } else { meta.size() },
            contents,
            xattrs: xattrs.into_iter().collect(),
            same_as,
        };
        found.insert(at, facts);
    }
    found
}

/// Lists an image with erofs-rs.
pub fn image(bytes: &[u8]) -> Listing {
    let fs = erofs_rs::EroFS::new(SliceImage::new(bytes)).unwrap();
    let mut found = Listing::new();
    let mut inodes = BTreeMap::new();
    let root = fs.get_inode(fs.super_block().root_inode_id()).unwrap();
    let mut todo = vec![(PathBuf::new(), root)];
    while let Some((at, inode)) = todo.pop() {
        let kind = match inode.file_type() {
            rustix::fs::FileType::Directory => 'd',
            rustix::fs::FileType::Symlink => 'l',
            rustix::fs::FileType::RegularFile => 'f',
            rustix::fs::FileType::CharacterDevice => 'c',
            rustix::fs::FileType::BlockDevice => 'b',
            rustix::fs::FileType::Fifo => 'p',
            _ => 's',
        };
        let unix = typed(&at);
        let contents = match kind {
            'd' => {
                let mut below = Vec::new();
                for entry in fs.read_dir(&unix).unwrap().max_depth(1) {
                    let entry = entry.unwrap();
                    let name = OsStr::from_bytes(entry.dir_entry.file_name());
                    // Looking a path up is what a binary search over badly sorted names fails at.
                    let looked_up = fs.xattrs(typed(&at.join(name))).unwrap();
                    assert_eq!(looked_up, fs.xattrs_inode(entry.inode).unwrap(), "{name:?}");
                    below.push((at.join(name), entry.inode));
                }
                below.sort_by(|a, b| b.0.cmp(&a.0));
                todo.extend(below);
                Vec::new()
            }
            'l' => fs.read_link_inode(inode).unwrap().as_bytes().to_vec(),
            'f' => digest(fs.open_inode_file(inode).unwrap()),
            _ => Vec::new(),
        };
        let same_as = match kind {
            'd' => at.clone(),
            _ => inodes
                .entry(inode.id())
                .or_insert_with(|| at.clone())
                .clone(),
        };
        let xattrs = fs.xattrs_inode(inode).unwrap();
        let facts = Facts {
            kind,
            mode: raw_mode(&inode),
            owner: (inode.uid(), inode.gid()),
            mtime: inode.modified_unix(),
            links: if kind == 'd' { 0 } else { inode.nlink().into() },
            device: inode.device().unwrap_or((0, 0)),
            size: if kind == 'd' { 0 } else { inode.data_size() },
            contents,
            xattrs: xattrs
                .iter()
                .map(|(name, value)| (String::from_utf8(name.to_vec()).unwrap(), value.to_vec()))
                .collect(),
            same_as,
        };
        found.insert(at, facts);
    }
    found
}

fn raw_mode(inode: &erofs_rs::types::Inode) -> u32 {
    std::os::unix::fs::PermissionsExt::mode(&inode.permissions()) & 0o7777
}

fn typed(path: &Path) -> String {
    format!("/{}", path.to_str().expect("tests use names in UTF-8"))
}

fn digest(mut from: impl Read) -> Vec<u8> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = from.read(&mut buffer).unwrap();
        if n == 0 {
            return hash.finalize().to_vec();
        }
        hash.update(&buffer[..n]);
    }
}

/// Fails with the first difference instead of two long listings.
pub fn assert_same(expected: &Listing, actual: &Listing) {
    for (path, facts) in expected {
        match actual.get(path) {
            Some(found) => assert_eq!(facts, found, "{path:?}"),
            None => panic!("{path:?} is missing"),
        }
    }
    for path in actual.keys() {
        assert!(expected.contains_key(path), "{path:?} is too much");
    }
}

/// Runs a tool that may not be installed; says so when it is not.
pub fn tool(command: &mut Command) -> Option<String> {
    let output = match command.output() {
        Ok(output) => output,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: {command:?} is not installed");
            return None;
        }
        Err(e) => panic!("{command:?}: {e}"),
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
    Some(text)
}

/// Whether this test may make devices and mount; says so when it may not.
pub fn privileged() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// Something mounted for as long as this lives.
pub struct Mounted(pub tempfile::TempDir);

impl Mounted {
    /// Mounts with these arguments, without the mount point; `None` when this host cannot.
    pub fn new(kind: &str, options: &str, what: &Path) -> Option<Mounted> {
        let known = std::fs::read_to_string("/proc/filesystems").unwrap();
        if !known.split_whitespace().any(|name| name == kind) {
            eprintln!("skipped: this kernel has no {kind}");
            return None;
        }
        let at = tempfile::tempdir().unwrap();
        let output = Command::new("mount")
            .args(["-t", kind, "-o", options])
            .args([what, at.path()])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "mount {what:?}: {text}");
        Some(Mounted(at))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(self.0.path()).status();
        assert!(done.is_ok_and(|status| status.success()), "umount");
    }
}
