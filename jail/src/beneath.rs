//! Paths inside a container's root, resolved so that no symlink, however it changes meanwhile, leads outside.
//!
//! Everything is relative to a descriptor of the root and goes through openat2(RESOLVE_IN_ROOT); what is found is handed
//! out as a descriptor, never as a path to be resolved a second time.
//!
//! Must not know: what is mounted or created there.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
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
        let path = clean(path)?;
        match self.open(&path, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => {}
            other => return other.step_at("open in the container's root", &path),
        }
        let mut here = self
            .open(Path::new("/"), OFlags::PATH | OFlags::DIRECTORY)
            .step("open the container's root")?;
        let mut walked = PathBuf::from("/");
        for name in path.components().filter_map(normal) {
            walked.push(name);
            // The prefix is resolved from the root each time, so a symlink on the way (absolute ones too) counts from there.
            here = match self.open(&walked, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(dir) => dir,
                Err(Errno::NOENT) => {
                    match rustix::fs::mkdirat(&here, name, Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(e) => {
                            return Err(Error::sys_at(
                                "create directory in the container's root",
                                &walked,
                                e,
                            ));
                        }
                    }
                    // NOFOLLOW: a dangling symlink stands here (EXIST above); do not create where it points.
                    rustix::fs::openat(
                        &here,
                        name,
                        OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                        Mode::empty(),
                    )
                    .step_at("open in the container's root", &walked)?
                }
                Err(e) => return Err(Error::sys_at("open in the container's root", &walked, e)),
            };
        }
        Ok(here)
    }

    /// Opens a mount point, creating it if it is missing.
    pub(crate) fn mount_point(&self, path: &Path, want: Want) -> Result<OwnedFd> {
        if want == Want::Directory {
            return self.directory(path);
        }
        let path = clean(path)?;
        match self.open(&path, OFlags::PATH) {
            Ok(found) => {
                let stat = rustix::fs::fstat(&found).step_at("stat", &path)?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    return Err(Error::sys_at("mount a file on", &path, Errno::ISDIR));
                }
                Ok(found)
            }
            Err(Errno::NOENT) => {
                let (parent, name) = self.parent(&path)?;
                let made = rustix::fs::openat(
                    &parent,
                    name,
                    OFlags::CREATE
                        | OFlags::EXCL
                        | OFlags::NOFOLLOW
                        | OFlags::WRONLY
                        | OFlags::CLOEXEC,
                    Mode::from_raw_mode(0o755),
                );
                match made {
                    Ok(_) | Err(Errno::EXIST) => {}
                    Err(e) => return Err(Error::sys_at("create mount point", &path, e)),
                }
                rustix::fs::openat(
                    &parent,
                    name,
                    OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                )
                .step_at("open mount point", &path)
            }
            Err(e) => Err(Error::sys_at("open mount point", &path, e)),
        }
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

fn normal(part: Component<'_>) -> Option<&OsStr> {
    match part {
        Component::Normal(name) => Some(name),
        _ => None,
    }
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
    fn absolute_symlinks_stay_inside() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir(dir.path().join("real")).expect("mkdir");
        symlink("/real", dir.path().join("link")).expect("symlink");
        symlink("/../../../../../../etc", dir.path().join("up")).expect("symlink");
        let root = root_in(dir.path());
        root.directory(Path::new("/link/new/deep"))
            .expect("created through the link");
        assert!(dir.path().join("real/new/deep").is_dir());
        // /etc exists on the host, not in this root: the dangling link must not be followed out, nor created through.
        assert!(root.directory(Path::new("/up/x")).is_err());
        assert!(!Path::new("/etc/x").exists());
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
