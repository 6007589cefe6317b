//! A tree into a tar stream: deterministic order, no link followed, at most one file open beside the directories above it.
//!
//! The same tree gives the same bytes: names are sorted, times are whole seconds, no user names are written. A file that
//! grows while it is packed is cut at the length its header says; one that shrinks is filled with zeros.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, OFlags, ResolveFlags, Stat, fstat, major, minor, readlinkat, statat,
};
use rustix::io::Errno;

use crate::beneath::open_raw;
use crate::error::{Context, Error, Result};
use crate::header::{self, Fields};
use crate::stat::split;
use crate::stream::EntryKind;
use crate::whiteout::{OPAQUE_MARKER, PackWhiteouts, WHITEOUT_PREFIX, is_opaque, is_whiteout};
use crate::xattr::{Target, Xattr};

/// Directories are held open from the top down; the kernel's usual limit is 1024 descriptors.
const MAX_DEPTH: usize = 512;
const BUFFER_BYTES: usize = 256 * 1024;

/// How a tree is packed.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// What becomes of overlayfs whiteouts.
    pub whiteouts: PackWhiteouts,
    /// Whether the tree's own directory gets an entry when the name is empty (`./` is then its name).
    pub root_entry: bool,
    /// Stay out of other mounts: a mounted directory is packed empty, a mounted file is left out.
    pub one_file_system: bool,
    /// Paths, relative to the tree, left out with all beneath them.
    pub exclude: Vec<PathBuf>,
}

impl PackOptions {
    /// For `docker cp` and `docker export`.
    pub fn copy() -> Self {
        PackOptions {
            whiteouts: PackWhiteouts::Literal,
            root_entry: false,
            one_file_system: false,
            exclude: Vec::new(),
        }
    }

    /// For an overlay's upper directory becoming a layer.
    pub fn layer() -> Self {
        PackOptions {
            whiteouts: PackWhiteouts::ToOci,
            ..Self::copy()
        }
    }
}

/// What was packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Entries written.
    pub entries: u64,
    /// Bytes of file contents.
    pub bytes: u64,
}

/// Writes `path` beneath `root` as a complete tar archive to `out`.
///
/// The last component of `path` is not followed when it is a symbolic link, unless `path` ends in `/` or `/.`. `name` is
/// what the first entry is called: `docker cp c:/etc -` passes `etc` and gets `etc/`, `etc/passwd`, …; with an empty
/// name entries are relative to the directory (`passwd`, …); with `/` they are absolute. Sockets are left out, as Docker
/// does.
///
/// # Errors
/// [`Error::Io`] for the tree (kind not-found when `path` is absent), [`Error::Write`] for `out`.
pub fn pack(
    root: BorrowedFd<'_>,
    path: &Path,
    name: &Path,
    out: &mut impl Write,
    options: &PackOptions,
) -> Result<Packed> {
    let (dir, last, _) = split(path);
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let parent = open_raw(root, &dir, flags, ResolveFlags::IN_ROOT).context("open", path)?;
    let name = name.as_os_str().as_bytes();
    let mut packer = Packer {
        out,
        options,
        shown: path,
        links: HashMap::new(),
        buffer: vec![0; BUFFER_BYTES],
        packed: Packed::default(),
    };
    let last = last.as_deref().map_or(c".".to_owned(), |n| {
        CString::new(n.as_bytes()).expect("the path was opened, so it holds no NUL")
    });
    packer.walk(parent, last, name)?;
    header::finish(packer.out)?;
    packer.out.flush().map_err(Error::Write)?;
    Ok(packer.packed)
}

struct Packer<'a, W> {
    out: &'a mut W,
    options: &'a PackOptions,
    shown: &'a Path,
    links: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
    packed: Packed,
}

struct Frame {
    dir: OwnedFd,
    /// The directory's name in the archive, no trailing slash.
    name: Vec<u8>,
    /// Its path relative to the tree, for `exclude`.
    relative: PathBuf,
    names: std::vec::IntoIter<CString>,
}

/// How a directory entry is opened.
enum Opened {
    Fd(OwnedFd),
    OtherMount,
    Vanished,
}

impl<W: Write> Packer<'_, W> {
    fn walk(&mut self, parent: OwnedFd, last: CString, name: &[u8]) -> Result<()> {
        let st = statat(parent.as_fd(), last.as_c_str(), AtFlags::SYMLINK_NOFOLLOW)
            .context("stat", self.shown)?;
        let mut stack = Vec::new();
        if let Some(frame) = self.one(&parent, &last, &st, name.to_vec(), PathBuf::new(), true)? {
            stack.push(frame);
        }
        while let Some(frame) = stack.last_mut() {
            let Some(child) = frame.names.next() else {
                stack.pop();
                continue;
            };
            let relative = frame.relative.join(OsStr::from_bytes(child.to_bytes()));
            if self.options.exclude.contains(&relative) {
                continue;
            }
            let name = join(&frame.name, child.to_bytes());
            let st = match statat(
                frame.dir.as_fd(),
                child.as_c_str(),
                AtFlags::SYMLINK_NOFOLLOW,
            ) {
                Ok(st) => st,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno).context("stat", relative),
            };
            if let Some(child) = self.one(&frame.dir, &child, &st, name, relative, false)? {
                if stack.len() >= MAX_DEPTH {
                    return Err(Error::Unsupported {
                        path: child.relative,
                        reason: "directories are nested too deeply",
                    });
                }
                stack.push(child);
            }
        }
        Ok(())
    }

    /// Writes one entry; a directory is returned to be walked.
    fn one(
        &mut self,
        parent: &OwnedFd,
        child: &CString,
        st: &Stat,
        name: Vec<u8>,
        relative: PathBuf,
        top: bool,
    ) -> Result<Option<Frame>> {
        let kind = match FileType::from_raw_mode(st.st_mode) {
            FileType::RegularFile => EntryKind::File,
            FileType::Directory => EntryKind::Directory,
            FileType::Symlink => EntryKind::Symlink,
            FileType::CharacterDevice => EntryKind::CharDevice,
            FileType::BlockDevice => EntryKind::BlockDevice,
            FileType::Fifo => EntryKind::Fifo,
            FileType::Socket | FileType::Unknown => return Ok(None),
        };
        if self.options.whiteouts == PackWhiteouts::ToOci && is_whiteout(st) {
            return self.whiteout(&name, st).map(|()| None);
        }
        let path = Path::new(OsStr::from_bytes(child.to_bytes()));
        match kind {
            EntryKind::Directory => self.directory(parent, child, name, relative, top),
            EntryKind::File => self
                .file(parent, child, st, &name, &relative)
                .map(|()| None),
            _ => {
                if let Some(first) = self.linked(st, &name) {
                    return self.hard_link(st, &name, &first).map(|()| None);
                }
                let target = if kind == EntryKind::Symlink {
                    match readlinkat(parent.as_fd(), child.as_c_str(), Vec::new()) {
                        Ok(target) => target.into_bytes(),
                        Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
                        Err(errno) => return Err(errno).context("read link", relative),
                    }
                } else {
                    Vec::new()
                };
                let xattrs = Target::At(parent.as_fd(), path)
                    .read()
                    .context("read attributes of", &relative)?;
                self.header(kind, st, &name, &target, 0, &xattrs)?;
                Ok(None)
            }
        }
    }

    fn whiteout(&mut self, name: &[u8], st: &Stat) -> Result<()> {
        let slash = name.iter().rposition(|b| *b == b'/').map_or(0, |i| i + 1);
        let mut marked = name[..slash].to_vec();
        marked.extend_from_slice(WHITEOUT_PREFIX.as_bytes());
        marked.extend_from_slice(&name[slash..]);
        self.marker(&marked, st)
    }

    fn marker(&mut self, name: &[u8], st: &Stat) -> Result<()> {
        self.packed.entries += 1;
        header::write(
            self.out,
            &Fields {
                name,
                link: b"",
                kind: EntryKind::File,
                mode: 0,
                uid: 0,
                gid: 0,
                mtime_seconds: st.st_mtime,
                size_bytes: 0,
                device_major: 0,
                device_minor: 0,
                xattrs: &[],
            },
        )
    }

    fn directory(
        &mut self,
        parent: &OwnedFd,
        child: &CString,
        name: Vec<u8>,
        relative: PathBuf,
        top: bool,
    ) -> Result<Option<Frame>> {
        let dir = match self
            .open(parent, child, OFlags::DIRECTORY, top)
            .context("open", &relative)?
        {
            Opened::Fd(dir) => dir,
            Opened::Vanished => return Ok(None),
            Opened::OtherMount => {
                // The mount point itself: seen from outside, an empty directory.
                let st = statat(parent.as_fd(), child.as_c_str(), AtFlags::SYMLINK_NOFOLLOW);
                let st = st.context("stat", &relative)?;
                self.header(EntryKind::Directory, &st, &with_slash(&name), b"", 0, &[])?;
                return Ok(None);
            }
        };
        let st = fstat(&dir).context("stat", &relative)?;
        let attributes = Target::Fd(dir.as_fd());
        if self.options.whiteouts == PackWhiteouts::ToOci
            && attributes
                .get("trusted.overlay.redirect")
                .context("read attributes of", &relative)?
                .is_some()
        {
            return Err(Error::Unsupported {
                path: relative,
                reason: "the directory was renamed with overlayfs' redirect_dir",
            });
        }
        let xattrs = attributes.read().context("read attributes of", &relative)?;
        if !name.is_empty() || self.options.root_entry {
            let name = if name.is_empty() {
                b"./".to_vec()
            } else {
                with_slash(&name)
            };
            self.header(EntryKind::Directory, &st, &name, b"", 0, &xattrs)?;
        }
        if self.options.whiteouts == PackWhiteouts::ToOci && is_opaque(&dir) {
            self.marker(&join(&name, OPAQUE_MARKER.as_bytes()), &st)?;
        }
        let names = list(&dir).context("list", &relative)?;
        Ok(Some(Frame {
            dir,
            name,
            relative,
            names: names.into_iter(),
        }))
    }

    fn file(
        &mut self,
        parent: &OwnedFd,
        child: &CString,
        st: &Stat,
        name: &[u8],
        relative: &Path,
    ) -> Result<()> {
        if let Some(first) = self.linked(st, name) {
            return self.hard_link(st, name, &first);
        }
        let file = match self
            .open(parent, child, OFlags::NONBLOCK, false)
            .context("open", relative)?
        {
            Opened::Fd(fd) => fd,
            Opened::Vanished | Opened::OtherMount => return Ok(()),
        };
        let st = fstat(&file).context("stat", relative)?;
        if FileType::from_raw_mode(st.st_mode) != FileType::RegularFile {
            // Replaced since it was listed.
            return Ok(());
        }
        let attributes = Target::Fd(file.as_fd());
        if self.options.whiteouts == PackWhiteouts::ToOci
            && attributes
                .get("trusted.overlay.metacopy")
                .context("read attributes of", relative)?
                .is_some()
        {
            return Err(Error::Unsupported {
                path: relative.into(),
                reason: "its contents are in a lower layer (overlayfs' metacopy)",
            });
        }
        let xattrs = attributes.read().context("read attributes of", relative)?;
        let size_bytes = u64::try_from(st.st_size).unwrap_or(0);
        self.header(EntryKind::File, &st, name, b"", size_bytes, &xattrs)?;
        self.contents(file, size_bytes, relative)?;
        self.packed.bytes += size_bytes;
        header::pad(self.out, size_bytes)
    }

    /// Exactly `size_bytes` of the file.
    fn contents(&mut self, file: OwnedFd, size_bytes: u64, relative: &Path) -> Result<()> {
        let mut file = std::fs::File::from(file);
        let mut left = size_bytes;
        while left > 0 {
            let want = left.min(self.buffer.len() as u64) as usize;
            let got = match file.read(&mut self.buffer[..want]) {
                Ok(got) => got,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e).context("read", relative),
            };
            let chunk = if got == 0 {
                self.buffer[..want].fill(0);
                want
            } else {
                got
            };
            self.out
                .write_all(&self.buffer[..chunk])
                .map_err(Error::Write)?;
            left -= chunk as u64;
        }
        Ok(())
    }

    /// Opens a child for reading, following nothing.
    fn open(
        &self,
        parent: &OwnedFd,
        child: &CString,
        flags: OFlags,
        top: bool,
    ) -> rustix::io::Result<Opened> {
        let mut resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        if self.options.one_file_system && !top {
            resolve |= ResolveFlags::NO_XDEV;
        }
        let path = Path::new(OsStr::from_bytes(child.to_bytes()));
        match open_raw(
            parent.as_fd(),
            path,
            OFlags::RDONLY | OFlags::NOFOLLOW | flags,
            resolve,
        ) {
            Ok(fd) => Ok(Opened::Fd(fd)),
            Err(Errno::XDEV) => Ok(Opened::OtherMount),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO) => Ok(Opened::Vanished),
            Err(errno) => Err(errno),
        }
    }

    /// The name under which this file was packed already.
    fn linked(&mut self, st: &Stat, name: &[u8]) -> Option<Vec<u8>> {
        if st.st_nlink < 2 {
            return None;
        }
        match self.links.entry((st.st_dev, st.st_ino)) {
            std::collections::hash_map::Entry::Occupied(first) => Some(first.get().clone()),
            std::collections::hash_map::Entry::Vacant(slot) => {
                slot.insert(name.to_vec());
                None
            }
        }
    }

    fn hard_link(&mut self, st: &Stat, name: &[u8], first: &[u8]) -> Result<()> {
        self.header(EntryKind::HardLink, st, name, first, 0, &[])
    }

    fn header(
        &mut self,
        kind: EntryKind,
        st: &Stat,
        name: &[u8],
        link: &[u8],
        size_bytes: u64,
        xattrs: &[Xattr],
    ) -> Result<()> {
        self.packed.entries += 1;
        header::write(
            self.out,
            &Fields {
                name,
                link,
                kind,
                mode: st.st_mode & 0o7777,
                uid: st.st_uid,
                gid: st.st_gid,
                mtime_seconds: st.st_mtime,
                size_bytes,
                device_major: major(st.st_rdev),
                device_minor: minor(st.st_rdev),
                xattrs,
            },
        )
    }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut joined = dir.to_vec();
    if !joined.is_empty() && !joined.ends_with(b"/") {
        joined.push(b'/');
    }
    joined.extend_from_slice(name);
    joined
}

fn with_slash(name: &[u8]) -> Vec<u8> {
    join(name, b"")
}

fn list(dir: &OwnedFd) -> rustix::io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes() != b"." && name.to_bytes() != b".." {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}
