//! Which extended attributes travel in archives, and reading and setting them.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::error::{Context, Result};

/// What PAX records of extended attributes are called, as GNU tar, bsdtar, Go and podman write them.
pub(crate) const PAX_PREFIX: &str = "SCHILY.xattr.";

/// The longest value the kernel takes (XATTR_SIZE_MAX).
const MAX_VALUE_BYTES: usize = 65536;

/// An attribute's name and value.
pub type Xattr = (String, Vec<u8>);

/// Whether an attribute may come out of or go into an archive. overlayfs' own attributes steer the mount itself and
/// SELinux labels and integrity hashes belong to the host: none of these travel.
pub(crate) fn travels(name: &str) -> bool {
    if name.starts_with("trusted.overlay.") || name.starts_with("user.overlay.") {
        return false;
    }
    name.starts_with("user.")
        || name == "security.capability"
        || name == "system.posix_acl_access"
        || name == "system.posix_acl_default"
}

/// The attributes of `name` in a directory that travel in archives, sorted by name. A symbolic link is not followed.
///
/// # Errors
/// [`crate::Error::Io`].
pub fn xattrs_at(parent: BorrowedFd<'_>, name: &Path) -> Result<Vec<Xattr>> {
    Target::At(parent, name)
        .read()
        .context("read the attributes of", name)
}

/// Where the attributes of something are.
#[derive(Clone, Copy)]
pub(crate) enum Target<'a> {
    /// An open file or directory.
    Fd(BorrowedFd<'a>),
    /// A name in a directory, not followed; for what cannot be opened for reading.
    At(BorrowedFd<'a>, &'a Path),
}

impl Target<'_> {
    fn proc_path(parent: BorrowedFd<'_>, name: &Path) -> std::path::PathBuf {
        Path::new("/proc/self/fd")
            .join(parent.as_raw_fd().to_string())
            .join(name)
    }

    /// All attributes that travel, sorted by name. File systems without attributes have none.
    pub(crate) fn read(self) -> rustix::io::Result<Vec<Xattr>> {
        let mut names = vec![0_u8; 1024];
        let len = loop {
            let listed = match self {
                Target::Fd(fd) => rustix::fs::flistxattr(fd, &mut names[..]),
                Target::At(parent, name) => {
                    rustix::fs::llistxattr(Self::proc_path(parent, name), &mut names[..])
                }
            };
            match listed {
                Ok(len) => break len,
                Err(Errno::RANGE) if names.len() < MAX_VALUE_BYTES => {
                    names.resize(names.len() * 4, 0)
                }
                Err(Errno::OPNOTSUPP | Errno::NOENT) => return Ok(Vec::new()),
                Err(errno) => return Err(errno),
            }
        };
        let mut found = Vec::new();
        for name in names[..len].split(|b| *b == 0).filter(|n| !n.is_empty()) {
            let Ok(name) = std::str::from_utf8(name) else {
                continue;
            };
            if travels(name)
                && let Some(value) = self.get(name)?
            {
                found.push((name.to_owned(), value));
            }
        }
        found.sort();
        Ok(found)
    }

    /// One attribute's value; `None` when absent.
    pub(crate) fn get(self, name: &str) -> rustix::io::Result<Option<Vec<u8>>> {
        let mut value = vec![0_u8; 256];
        loop {
            let got = match self {
                Target::Fd(fd) => rustix::fs::fgetxattr(fd, name, &mut value[..]),
                Target::At(parent, at) => {
                    rustix::fs::lgetxattr(Self::proc_path(parent, at), name, &mut value[..])
                }
            };
            match got {
                Ok(len) => {
                    value.truncate(len);
                    return Ok(Some(value));
                }
                Err(Errno::RANGE) if value.len() < MAX_VALUE_BYTES => {
                    value.resize(MAX_VALUE_BYTES, 0)
                }
                Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Sets one attribute. `false` when the file system or the kind of file cannot hold it.
    pub(crate) fn set(self, name: &str, value: &[u8]) -> rustix::io::Result<bool> {
        let done = match self {
            Target::Fd(fd) => rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()),
            Target::At(parent, at) => rustix::fs::lsetxattr(
                Self::proc_path(parent, at),
                name,
                value,
                XattrFlags::empty(),
            ),
        };
        match done {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}
