//! What `docker cp` and `HEAD /containers/ID/archive` ask about a path.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, OFlags, ResolveFlags, readlinkat, statat};
use rustix::io::Errno;

use crate::beneath::open_raw;
use crate::error::{Context, Error, Result};

/// The kernel's own limit on links in one lookup.
const MAX_LINKS: u32 = 40;

/// The kind of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A file with contents.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// What is at a path. The last component is not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathStat {
    /// The last component of the path as asked; `/` for the root.
    pub name: OsString,
    /// Its kind.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Length.
    pub size_bytes: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime_seconds: i64,
    /// Nanoseconds within the second.
    pub mtime_nanos: u32,
    /// For a symbolic link, the path within the root it leads to, every link resolved.
    pub link_target: Option<PathBuf>,
}

/// What a path's target is called: its last component; `.` for `dir/.`, which asks for what is in it; `/` for the root.
pub fn shown_name(path: &Path) -> OsString {
    let bytes = path.as_os_str().as_bytes();
    if bytes.ends_with(b"/.") || bytes == b"." {
        return OsString::from(".");
    }
    path.file_name()
        .map_or_else(|| OsString::from("/"), OsString::from)
}

/// A path taken apart: where its last component lives, the component (`None`: the root itself or a path that must be
/// followed to a directory) and whether the path asks for a directory.
pub(crate) fn split(path: &Path) -> (PathBuf, Option<OsString>, bool) {
    let bytes = path.as_os_str().as_bytes();
    let wants_dir = bytes.ends_with(b"/") || bytes.ends_with(b"/.") || bytes == b".";
    let mut dir = path.to_path_buf();
    let name = path.file_name().map(OsString::from);
    match name {
        Some(name) if !wants_dir => {
            dir.pop();
            (dir, Some(name), false)
        }
        _ => (dir, None, wants_dir),
    }
}

/// Describes `path` beneath `root`.
///
/// # Errors
/// [`Error::Io`], of kind not-found when there is nothing.
pub fn stat(root: BorrowedFd<'_>, path: &Path) -> Result<PathStat> {
    let (dir, name, _) = split(path);
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let dir_fd = open_raw(root, &dir, flags, ResolveFlags::IN_ROOT).context("open", path)?;
    let st = match &name {
        Some(name) => statat(dir_fd.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW),
        None => rustix::fs::fstat(&dir_fd),
    }
    .context("stat", path)?;
    let kind = kind_of(FileType::from_raw_mode(st.st_mode)).ok_or(Error::Unsupported {
        path: path.into(),
        reason: "it is of an unknown kind",
    })?;
    let link_target = match kind {
        FileKind::Symlink => Some(resolve(root, path)?),
        _ => None,
    };
    Ok(PathStat {
        name: shown_name(path),
        kind,
        mode: st.st_mode & 0o7777,
        size_bytes: u64::try_from(st.st_size).unwrap_or(0),
        uid: st.st_uid,
        gid: st.st_gid,
        mtime_seconds: st.st_mtime as i64,
        mtime_nanos: st.st_mtime_nsec as u32,
        link_target,
    })
}

fn kind_of(file_type: FileType) -> Option<FileKind> {
    Some(match file_type {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        FileType::CharacterDevice => FileKind::CharDevice,
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::Unknown => return None,
    })
}

/// The absolute path within the root that `path` leads to, every link resolved; what does not exist is taken as written.
/// For display: what opens a path must use [`crate::open_beneath`].
///
/// # Errors
/// [`Error::Io`] with `ELOOP` for too many links.
pub fn resolve(root: BorrowedFd<'_>, path: &Path) -> Result<PathBuf> {
    let mut todo: Vec<OsString> = components(path).rev().collect();
    let mut done = PathBuf::new();
    let mut links = 0;
    while let Some(component) = todo.pop() {
        if component == ".." {
            done.pop();
            continue;
        }
        let parent = match open_raw(
            root,
            &done,
            OFlags::PATH | OFlags::DIRECTORY,
            ResolveFlags::IN_ROOT,
        ) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => {
                done.push(&component);
                continue;
            }
            Err(errno) => return Err(errno).context("open", path),
        };
        match readlinkat(parent.as_fd(), component.as_os_str(), Vec::new()) {
            Ok(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP).context("resolve", path);
                }
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                if target.is_absolute() {
                    done = PathBuf::new();
                }
                todo.extend(components(&target).rev());
            }
            Err(_) => done.push(&component),
        }
    }
    Ok(Path::new("/").join(done))
}

fn components(path: &Path) -> impl DoubleEndedIterator<Item = OsString> + '_ {
    path.components().filter_map(|c| match c {
        std::path::Component::Normal(name) => Some(name.to_owned()),
        std::path::Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    })
}
