//! Paths inside a container's root, resolved so that no symlink, however it changes meanwhile, leads outside.
//!
//! Everything is relative to a descriptor of the root and goes through openat2(RESOLVE_IN_ROOT); what is found is handed
//! out as a descriptor, never as a path to be resolved a second time.
//!
//! Must not know: what is mounted or created there.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};

/// The root directory of a container.
pub(crate) struct RootDir {
    fd: OwnedFd,
}

/// What a mount point has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    Directory,
    File,
}

/// Concurrent renames make openat2 give up with EAGAIN; a container that keeps renaming loses after this many tries.
const ATTEMPTS: u32 = 128;
/// As many symlinks as the kernel follows on one path.
const LINKS_MAX: u32 = 40;

impl RootDir {
    pub(crate) fn new(fd: OwnedFd) -> RootDir {
        RootDir { fd }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens a path as a process chrooted here would, magic links (`/proc/PID/fd/N`) excepted.
    pub(crate) fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.open_with(path, flags, ResolveFlags::empty())
    }

    /// The same, refusing every symlink: for the places the kernel's own file systems go.
    pub(crate) fn open_no_symlinks(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.open_with(path, flags, ResolveFlags::NO_SYMLINKS)
    }

    fn open_with(&self, path: &Path, flags: OFlags, extra: ResolveFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | extra;
        let path = if path.as_os_str().is_empty() {
            Path::new("/")
        } else {
            path
        };
        for _ in 0..ATTEMPTS {
            let opened = rustix::fs::openat2(
                &self.fd,
                path,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                resolve,
            );
            match opened {
                Err(Errno::AGAIN | Errno::INTR) => continue,
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Opens the directory at `path`, creating what is missing with mode 0755.
    pub(crate) fn directory(&self, path: &Path) -> Result<OwnedFd> {
        self.mount_point(path, Want::Directory)
    }

    /// Opens a mount point, creating it if it is missing.
    pub(crate) fn mount_point(&self, path: &Path, want: Want) -> Result<OwnedFd> {
        let path = clean(path)?;
        let flags = match want {
            Want::Directory => OFlags::PATH | OFlags::DIRECTORY,
            Want::File => OFlags::PATH,
        };
        let found = match self.open(&path, flags) {
            Ok(found) => found,
            Err(Errno::NOENT) => self.create(&path, want)?,
            Err(e) => return Err(Error::sys_at("open in the container's root", &path, e)),
        };
        if want == Want::File && file_type(&found, &path)? == FileType::Directory {
            return Err(Error::sys_at("mount a file on", &path, Errno::ISDIR));
        }
        Ok(found)
    }

    /// Walks to `path` name by name and makes what is missing, also where a dangling symlink points (images have
    /// /etc/resolv.conf that way). No step follows anything by itself: links are read and their words walked from where the
    /// root's inhabitants would, `..` goes back along the descriptors that were walked.
    fn create(&self, path: &Path, want: Want) -> Result<OwnedFd> {
        let fail = |step: &str, e: Errno| Error::sys_at(step, path, e);
        let top = || self.open(Path::new("/"), OFlags::PATH | OFlags::DIRECTORY);
        let mut walked = vec![top().map_err(|e| fail("open in the container's root", e))?];
        let mut ahead: VecDeque<OsString> = words(path);
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            if name == ".." {
                if walked.len() > 1 {
                    walked.pop();
                }
                continue;
            }
            let here = walked.last().map(AsFd::as_fd).unwrap_or(self.fd.as_fd());
            let last = ahead.is_empty();
            let next = match step_into(here, &name) {
                Err(Errno::NOENT) => {
                    make(here, &name, last && want == Want::File)
                        .map_err(|e| fail("create in the container's root", e))?;
                    step_into(here, &name)
                }
                other => other,
            }
            .map_err(|e| fail("open in the container's root", e))?;
            match file_type(&next, path)? {
                FileType::Symlink => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(fail("open in the container's root", Errno::LOOP));
                    }
                    let target = rustix::fs::readlinkat(&next, c"", Vec::new())
                        .map_err(|e| fail("read a symlink in the container's root", e))?;
                    let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                    if target.is_absolute() {
                        walked.truncate(1);
                    }
                    for word in words(&target).into_iter().rev() {
                        ahead.push_front(word);
                    }
                }
                FileType::Directory => walked.push(next),
                _ if last && want == Want::File => return Ok(next),
                _ => return Err(fail("open in the container's root", Errno::NOTDIR)),
            }
        }
        walked
            .pop()
            .ok_or_else(|| fail("open in the container's root", Errno::NOENT))
    }

    /// The directory that holds the last name of an absolute path, created if missing, and that name.
    pub(crate) fn parent<'p>(&self, path: &'p Path) -> Result<(OwnedFd, &'p OsStr)> {
        let name = path
            .file_name()
            .ok_or_else(|| Error::invalid(format!("path {path:?} names no file")))?;
        let parent = self.directory(path.parent().unwrap_or(Path::new("/")))?;
        Ok((parent, name))
    }
}

/// A path without `.`, `..` and doubled slashes, as if from the root: what runc makes of a destination.
pub(crate) fn clean(path: &Path) -> Result<PathBuf> {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if path.as_os_str().is_empty() {
        return Err(Error::invalid("empty path inside the container"));
    }
    Ok(out)
}

/// The words of a path that mean a step.
fn words(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_os_string()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

fn step_into(at: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

fn make(at: BorrowedFd<'_>, name: &OsStr, file: bool) -> Result<(), Errno> {
    let made = if file {
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(at, name, flags, Mode::from_raw_mode(0o755)).map(drop)
    } else {
        rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o755))
    };
    match made {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

fn file_type(fd: &OwnedFd, path: &Path) -> Result<FileType> {
    let stat = rustix::fs::fstat(fd).step_at("stat in the container's root", path)?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

/// Opens a trusted path of the host for its location only.
pub(crate) fn open_host_path(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root_in(dir: &Path) -> RootDir {
        RootDir::new(open_host_path(dir).expect("the test's directory opens"))
    }

    #[test]
    fn paths_are_cleaned_as_from_the_root() {
        for (given, want) in [
            ("/a/../../b", "/b"),
            ("a//b/.", "/a/b"),
            ("/", "/"),
            ("../..", "/"),
        ] {
            assert_eq!(
                clean(Path::new(given)).expect(given),
                Path::new(want),
                "{given}"
            );
        }
        assert!(clean(Path::new("")).is_err());
    }

    #[test]
    fn symlinks_stay_inside_also_where_they_dangle() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir(dir.path().join("real")).expect("mkdir");
        symlink("/real", dir.path().join("link")).expect("symlink");
        symlink("/../../../../../../caisson-up", dir.path().join("up")).expect("symlink");
        symlink(
            "../../../../run/stub.conf",
            dir.path().join("real/resolv.conf"),
        )
        .expect("symlink");
        symlink("/loop", dir.path().join("loop")).expect("symlink");
        let root = root_in(dir.path());
        root.directory(Path::new("/link/new/deep"))
            .expect("created through the link");
        assert!(dir.path().join("real/new/deep").is_dir());
        root.directory(Path::new("/up/x"))
            .expect("created where the link points, as seen from inside");
        assert!(dir.path().join("caisson-up/x").is_dir() && !Path::new("/caisson-up").exists());
        root.mount_point(Path::new("/link/resolv.conf"), Want::File)
            .expect("created behind the dangling link");
        assert!(dir.path().join("run/stub.conf").is_file());
        assert!(root.directory(Path::new("/loop/x")).is_err());
        // Meanwhile a file where a directory is wanted.
        std::fs::write(dir.path().join("file"), "").expect("write");
        assert!(root.directory(Path::new("/file/x")).is_err());
    }

    #[test]
    fn files_are_created_only_where_nothing_is() {
        let dir = tempfile::tempdir().expect("tempdir");
        let root = root_in(dir.path());
        root.mount_point(Path::new("/etc/hosts"), Want::File)
            .expect("created");
        assert!(dir.path().join("etc/hosts").is_file());
        root.mount_point(Path::new("/etc/hosts"), Want::File)
            .expect("found");
        assert!(root.mount_point(Path::new("/etc"), Want::File).is_err());
        assert!(
            root.mount_point(Path::new("/etc/hosts"), Want::Directory)
                .is_err()
        );
    }
}
