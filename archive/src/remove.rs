//! Removing a tree that may be hostile: never through a symbolic link, and however deep it is.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

use crate::error::{Context, Result};

/// Directories held open at once. A deeper one is moved to the top first, so that depth costs no descriptors.
const MAX_DEPTH: usize = 64;

/// Removes `name` and all beneath it from the directory `parent`. Absent is fine. `name` is one component.
///
/// # Errors
/// [`crate::Error::Io`] with the system's error.
pub fn remove_all(parent: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno).context("remove", Path::new(name)),
    }
    let Some(top) = open_dir(parent, name).context("open", Path::new(name))? else {
        return Ok(());
    };
    empty(&top).context("empty", Path::new(name))?;
    drop(top);
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno).context("remove", Path::new(name)),
    }
}

/// Removes all beneath the directory `dir`, which stays.
pub(crate) fn empty(dir: &OwnedFd) -> rustix::io::Result<()> {
    struct Frame {
        dir: OwnedFd,
        name: CString,
        names: std::vec::IntoIter<(CString, bool)>,
    }
    let mut moved = 0_u64;
    loop {
        let again = moved;
        let top = Frame {
            dir: dir.try_clone().map_err(|_| Errno::MFILE)?,
            name: CString::default(),
            names: list(dir)?,
        };
        let mut stack = vec![top];
        while let Some(frame) = stack.last_mut() {
            let Some((name, maybe_dir)) = frame.names.next() else {
                let done = stack.pop().expect("the loop holds a frame");
                if let Some(above) = stack.last() {
                    match unlinkat(above.dir.as_fd(), done.name.as_c_str(), AtFlags::REMOVEDIR) {
                        Ok(()) | Err(Errno::NOENT) => {}
                        Err(errno) => return Err(errno),
                    }
                }
                continue;
            };
            if !maybe_dir {
                match unlinkat(frame.dir.as_fd(), name.as_c_str(), AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => continue,
                    Err(Errno::ISDIR | Errno::PERM) => {}
                    Err(errno) => return Err(errno),
                }
            }
            if stack.len() >= MAX_DEPTH {
                let frame = stack.last().expect("the loop holds a frame");
                let aside = format!(".caisson-removing-{moved}");
                moved += 1;
                renameat(
                    frame.dir.as_fd(),
                    name.as_c_str(),
                    dir.as_fd(),
                    aside.as_str(),
                )?;
                continue;
            }
            let frame = stack.last().expect("the loop holds a frame");
            let os_name = OsStr::from_bytes(name.to_bytes());
            match open_dir(frame.dir.as_fd(), os_name) {
                Ok(Some(child)) => {
                    let names = list(&child)?;
                    stack.push(Frame {
                        dir: child,
                        name,
                        names,
                    });
                }
                Ok(None) => {}
                // Not a directory after all: the file type in a directory listing is a hint.
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    match unlinkat(frame.dir.as_fd(), os_name, AtFlags::empty()) {
                        Ok(()) | Err(Errno::NOENT) => {}
                        Err(errno) => return Err(errno),
                    }
                }
                Err(errno) => return Err(errno),
            }
        }
        if moved == again {
            return Ok(());
        }
    }
}

fn open_dir(parent: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(parent, name, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn list(dir: &OwnedFd) -> rustix::io::Result<std::vec::IntoIter<(CString, bool)>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes() != b"." && name.to_bytes() != b".." {
            names.push((
                name.to_owned(),
                matches!(entry.file_type(), FileType::Directory | FileType::Unknown),
            ));
        }
    }
    Ok(names.into_iter())
}
