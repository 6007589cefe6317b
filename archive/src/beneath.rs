//! Path lookup beneath a root descriptor, done by the kernel.
//!
//! Every lookup is `openat2(root, path, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)`: `..`, absolute names and symbolic links
//! are interpreted as if the process had `chroot`ed into `root`, and `/proc/*/fd` style links are refused.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};

/// openat2 answers EAGAIN when a rename elsewhere made `..` ambiguous; it asks to be called again.
const AGAIN_ATTEMPTS: u32 = 128;

/// Opens `path` as a process chrooted into `root` would. `flags` gets `O_CLOEXEC`; add `O_NOFOLLOW` to open a link itself.
///
/// # Errors
/// [`Error::Io`] with the system's error.
pub fn open_beneath(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd> {
    open_raw(root, path, flags, ResolveFlags::IN_ROOT).context("open", path)
}

pub(crate) fn open_raw(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let mut attempts = 0;
    loop {
        match openat2(
            root,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            resolve | ResolveFlags::NO_MAGICLINKS,
        ) {
            Err(Errno::AGAIN | Errno::INTR) if attempts < AGAIN_ATTEMPTS => attempts += 1,
            other => return other,
        }
    }
}

/// Opens the directory `path` (`O_PATH`), creating it and its missing parents with mode 0755.
///
/// # Errors
/// [`Error::Io`] with the system's error; a component that exists and is no directory gives `ENOTDIR`.
pub fn create_dir_all(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    match open_raw(root, path, flags, ResolveFlags::IN_ROOT) {
        Ok(fd) => return Ok(fd),
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno).context("open", path),
    }
    let mut here =
        open_raw(root, Path::new("."), flags, ResolveFlags::IN_ROOT).context("open", ".")?;
    let mut walked = PathBuf::new();
    for component in normal_components(path) {
        walked.push(component);
        here = match open_raw(root, &walked, flags, ResolveFlags::IN_ROOT) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => {
                match mkdirat(here.as_fd(), component, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno).context("create directory", &walked),
                }
                // A dangling link in the way exists and still cannot be opened: that is the error the caller sees.
                open_raw(root, &walked, flags, ResolveFlags::IN_ROOT).context("open", &walked)?
            }
            Err(errno) => return Err(errno).context("open", &walked),
        };
    }
    Ok(here)
}

fn normal_components(path: &Path) -> impl Iterator<Item = &OsStr> {
    path.components().filter_map(|c| match c {
        Component::Normal(name) => Some(name),
        _ => None,
    })
}

/// An archive's name made relative and free of `.` and `..`, as `path.Clean` would; `None` in `file_name` for the root.
///
/// # Errors
/// [`Error::Escapes`] when `..` climbs above the start, [`Error::Invalid`] for a NUL byte.
pub(crate) fn clean(name: &[u8]) -> Result<PathBuf> {
    if name.contains(&0) {
        return Err(Error::Invalid("a name contains a NUL byte".into()));
    }
    let mut out = PathBuf::new();
    for part in name.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                if !out.pop() {
                    return Err(Error::Escapes(PathBuf::from(OsStr::from_bytes(name))));
                }
            }
            part => out.push(OsStr::from_bytes(part)),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_lexically_and_never_climb_out() {
        for (name, expected) in [
            ("", Some("")),
            ("./", Some("")),
            ("a//b/./c/", Some("a/b/c")),
            ("/etc/passwd", Some("etc/passwd")),
            ("a/../b", Some("b")),
            ("..", None),
            ("a/../../b", None),
            ("/../etc", None),
        ] {
            match (clean(name.as_bytes()), expected) {
                (Ok(got), Some(want)) => assert_eq!(got, Path::new(want), "{name}"),
                (Err(Error::Escapes(_)), None) => {}
                (got, want) => panic!("{name}: {got:?}, expected {want:?}"),
            }
        }
        assert!(matches!(clean(b"a\0b"), Err(Error::Invalid(_))));
    }
}
