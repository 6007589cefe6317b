//! Whiteouts met while unpacking: turned into overlayfs' marks, or carried out on a complete tree.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, mknodat, statat};
use rustix::io::Errno;

use super::Unpacker;
use crate::error::{Context, Error, Result};
use crate::remove::{empty, remove_all};
use crate::stream::{Entry, EntryKind};
use crate::whiteout::{OPAQUE_MARKER, OPAQUE_XATTR, UnpackWhiteouts, WHITEOUT_META_PREFIX};
use crate::xattr::Target;

impl Unpacker<'_> {
    pub(super) fn whiteout(
        &mut self,
        dir: &Path,
        name: &OsStr,
        hidden: &OsStr,
        entry: &Entry,
    ) -> Result<()> {
        if entry.kind != EntryKind::File && entry.kind != EntryKind::HardLink {
            return Err(Error::Invalid(format!(
                "the whiteout {} is not a file",
                dir.join(name).display()
            )));
        }
        if name == OPAQUE_MARKER {
            return match self.options.whiteouts {
                UnpackWhiteouts::Overlay => {
                    let opened = self.open_dir(dir)?;
                    self.set_opaque(&opened, dir)
                }
                _ => self.remove_older(dir),
            };
        }
        if name.as_bytes().starts_with(WHITEOUT_META_PREFIX.as_bytes()) {
            return Ok(());
        }
        let path = dir.join(hidden);
        if matches!(hidden.as_bytes(), b"" | b"." | b"..") {
            return Err(Error::Invalid(format!(
                "the whiteout {} names nothing",
                dir.join(name).display()
            )));
        }
        let (_, parent) = self
            .parent
            .as_ref()
            .expect("the parent was opened by the caller");
        match self.options.whiteouts {
            UnpackWhiteouts::Overlay => match statat(parent, hidden, AtFlags::SYMLINK_NOFOLLOW) {
                // The layer itself holds this name: the whiteout speaks of the layers below only.
                Ok(st) if FileType::from_raw_mode(st.st_mode) == FileType::Directory => {
                    let opened = self.open_dir(&path)?;
                    self.set_opaque(&opened, &path)
                }
                Ok(_) => Ok(()),
                Err(Errno::NOENT) => {
                    mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), 0)
                        .context("whiteout", &path)
                }
                Err(errno) => Err(errno).context("stat", &path),
            },
            _ => {
                if self.made.contains(&path) {
                    return Ok(());
                }
                let result = remove_all(parent.as_fd(), hidden);
                self.parent = None;
                result
            }
        }
    }

    pub(super) fn set_opaque(&self, dir: &OwnedFd, path: &Path) -> Result<()> {
        match Target::Fd(dir.as_fd())
            .set(OPAQUE_XATTR, b"y")
            .context("mark as opaque", path)?
        {
            true => Ok(()),
            false => Err(Error::Unsupported {
                path: path.into(),
                reason: "the file system does not hold trusted.overlay.opaque",
            }),
        }
    }

    /// An opaque mark on a complete tree: everything in the directory that this archive did not make goes.
    fn remove_older(&mut self, dir: &Path) -> Result<()> {
        let opened = self.open_dir(dir)?;
        if !self.made_beneath(dir) {
            self.parent = None;
            return empty(&opened).context("empty", dir);
        }
        let mut names: Vec<OsString> = Vec::new();
        for found in rustix::fs::Dir::read_from(&opened).context("list", dir)? {
            let found = found.context("list", dir)?;
            names.push(OsStr::from_bytes(found.file_name().to_bytes()).to_owned());
        }
        for name in names.into_iter().filter(|n| n != "." && n != "..") {
            let path = dir.join(&name);
            if self.made.contains(&path) || self.made_beneath(&path) {
                let is_dir = statat(&opened, &name, AtFlags::SYMLINK_NOFOLLOW)
                    .is_ok_and(|st| FileType::from_raw_mode(st.st_mode) == FileType::Directory);
                if is_dir {
                    self.remove_older(&path)?;
                }
            } else {
                remove_all(opened.as_fd(), &name)?;
            }
        }
        self.parent = None;
        Ok(())
    }

    fn made_beneath(&self, dir: &Path) -> bool {
        // Paths compare by component, so what is beneath a directory follows it at once.
        let after = (std::ops::Bound::Excluded(dir), std::ops::Bound::Unbounded);
        self.made
            .range::<Path, _>(after)
            .next()
            .is_some_and(|made| made.starts_with(dir))
    }
}
