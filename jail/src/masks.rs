//! Hides what a spec masks and closes what it makes read-only (mostly parts of /proc and /sys).
//!
//! What covers a file is the host's /dev/null, checked to be that device (CVE-2025-31133: a container's may be a symlink);
//! what is covered is the descriptor that was resolved inside the root.
//! Must not know: which paths; that is the spec's.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, OFlags, makedev};
use rustix::io::Errno;

use crate::beneath::RootDir;
use crate::error::{Context, Error, Result};
use crate::mount_options::{Attributes, Bind, MountOptions, attr};
use crate::mounts;

/// Covers each path that exists: files with /dev/null, directories with an empty read-only tmpfs.
pub(crate) fn mask(root: &RootDir, paths: &[String]) -> Result<()> {
    let mut null: Option<OwnedFd> = None;
    let mut empty: Option<OwnedFd> = None;
    for path in paths.iter().map(Path::new) {
        let Some(target) = existing(root, path)? else {
            continue;
        };
        let stat = rustix::fs::fstat(&target).step_at("stat", path)?;
        let (cover, make): (&mut Option<OwnedFd>, fn() -> Result<OwnedFd>) =
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => (&mut empty, empty_directory),
                _ => (&mut null, null_device),
            };
        // The first use attaches the mount itself, later ones attach copies of the attached one.
        match cover {
            None => {
                let made = make()?;
                mounts::move_onto(made.as_fd(), target.as_fd()).step_at("mask", path)?;
                *cover = Some(made);
            }
            Some(first) => {
                let copy = mounts::open_tree_fd(first.as_fd(), false).step_at("mask", path)?;
                mounts::move_onto(copy.as_fd(), target.as_fd()).step_at("mask", path)?;
            }
        }
    }
    Ok(())
}

/// Makes each path that exists read-only, with everything mounted below it.
pub(crate) fn read_only(root: &RootDir, paths: &[String]) -> Result<()> {
    for path in paths.iter().map(Path::new) {
        let Some(target) = existing(root, path)? else {
            continue;
        };
        let copy = mounts::open_tree_fd(target.as_fd(), true).step_at("make read-only", path)?;
        let closed = Attributes {
            set: attr::RDONLY,
            clear: 0,
        };
        let attributes = crate::sys::MountAttr {
            set: attr::RDONLY,
            ..Default::default()
        };
        let early = crate::sys::mount_setattr(copy.as_fd(), true, &attributes);
        if let Err(e) = early
            && e != nix::errno::Errno::ENOSYS
        {
            return Err(Error::sys_at("make read-only", path, e));
        }
        mounts::move_onto(copy.as_fd(), target.as_fd()).step_at("make read-only", path)?;
        if early.is_err() {
            mounts::set_attributes(copy.as_fd(), path, false, &closed)?;
        }
    }
    Ok(())
}

fn existing(root: &RootDir, path: &Path) -> Result<Option<OwnedFd>> {
    if !path.is_absolute() {
        return Err(Error::invalid(format!(
            "masked and read-only paths must be absolute: {path:?}"
        )));
    }
    match root.open(path, OFlags::PATH) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(e) => Err(Error::sys_at("open in the container's root", path, e)),
    }
}

fn null_device() -> Result<OwnedFd> {
    let path = Path::new("/dev/null");
    let tree = mounts::open_tree(path, Bind::One)?;
    let stat = rustix::fs::fstat(&tree).step_at("stat", path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice
        || stat.st_rdev != makedev(1, 3)
    {
        return Err(Error::HostUnfit {
            need: "mask files".into(),
            why: "/dev/null is not the null device".into(),
        });
    }
    Ok(tree)
}

fn empty_directory() -> Result<OwnedFd> {
    let options = MountOptions {
        attributes: Attributes {
            set: attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC,
            clear: 0,
        },
        data: vec![
            ("size".into(), Some("0".into())),
            ("nr_inodes".into(), Some("1".into())),
        ],
        ..MountOptions::default()
    };
    mounts::new_filesystem("tmpfs", "tmpfs", &options, false)
}
