//! Copies a directory of the image into the tmpfs about to cover it (`tmpcopyup`), by descriptors only.
//!
//! Must not know: mounts.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid};

use crate::error::{Context, Result};

/// Copies the content, owners and modes of one directory into another.
pub(crate) fn copy_tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let step = "copy a directory of the image";
    let listing = open_dir(from, c".").step(step)?;
    let own = rustix::fs::fstat(&listing).step(step)?;
    let target = open_dir(to, c".").step(step)?;
    for entry in Dir::read_from(&listing).step(step)? {
        let entry = entry.step(step)?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = rustix::fs::statat(&listing, name, AtFlags::SYMLINK_NOFOLLOW).step(step)?;
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                rustix::fs::mkdirat(&target, name, Mode::from_raw_mode(0o700)).step(step)?;
                let source = open_dir(listing.as_fd(), name).step(step)?;
                let copy = open_dir(target.as_fd(), name).step(step)?;
                copy_tree(source.as_fd(), copy.as_fd())?;
            }
            FileType::RegularFile => {
                let source = rustix::fs::openat(
                    &listing,
                    name,
                    OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                )
                .step(step)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let copy = rustix::fs::openat(&target, name, flags, Mode::from_raw_mode(0o600))
                    .step(step)?;
                std::io::copy(
                    &mut std::fs::File::from(source),
                    &mut std::fs::File::from(copy.try_clone().step(step)?),
                )
                .step(step)?;
                set_owner_and_mode(copy.as_fd(), &stat).step(step)?;
            }
            FileType::Symlink => {
                let to = rustix::fs::readlinkat(&listing, name, Vec::new()).step(step)?;
                rustix::fs::symlinkat(to.as_c_str(), &target, name).step(step)?;
                let (uid, gid) = owner(&stat);
                rustix::fs::chownat(&target, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                    .step(step)?;
            }
            other => {
                rustix::fs::mknodat(&target, name, other, mode, stat.st_rdev).step(step)?;
                let (uid, gid) = owner(&stat);
                rustix::fs::chownat(&target, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                    .step(step)?;
            }
        }
    }
    set_owner_and_mode(target.as_fd(), &own).step(step)
}

fn open_dir(at: BorrowedFd<'_>, name: &std::ffi::CStr) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(
        at,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

fn owner(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )
}

fn set_owner_and_mode(fd: BorrowedFd<'_>, stat: &Stat) -> rustix::io::Result<()> {
    let (uid, gid) = owner(stat);
    rustix::fs::fchown(fd, uid, gid)?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(stat.st_mode & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_tree_arrives_with_modes_and_links() {
        let (a, b) = (
            tempfile::tempdir().expect("dir"),
            tempfile::tempdir().expect("dir"),
        );
        std::fs::create_dir(a.path().join("d")).expect("mkdir");
        std::fs::write(a.path().join("d/f"), "text").expect("write");
        std::fs::set_permissions(
            a.path().join("d/f"),
            std::fs::Permissions::from_mode(0o4751),
        )
        .expect("chmod");
        std::os::unix::fs::symlink("../gone", a.path().join("l")).expect("symlink");
        let open = |p: &std::path::Path| crate::beneath::open_host_path(p).expect("opens");
        copy_tree(open(a.path()).as_fd(), open(b.path()).as_fd()).expect("copies");
        assert_eq!(
            std::fs::read_to_string(b.path().join("d/f")).expect("read"),
            "text"
        );
        let mode = std::fs::metadata(b.path().join("d/f"))
            .expect("stat")
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o4751);
        assert_eq!(
            std::fs::read_link(b.path().join("l")).expect("link"),
            std::path::Path::new("../gone")
        );
    }
}
