//! Makes a directory the root of this mount namespace.
//!
//! ```text
//! open:   / becomes a slave ── rootfs is bound onto itself ── RootDir for everything that follows
//! enter:  fchdir(root) ── pivot_root(".", ".") ── the old root, now beneath, is detached ── chdir("/")
//! ```
//! Must not know: what is mounted inside.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};

use crate::beneath::{RootDir, open_host_path};
use crate::error::{Context, Error, Result};
use crate::mount_options::{Attributes, Bind, Propagation, attr};
use crate::mounts;

/// Cuts this mount namespace off from the host's, as far as wanted, and opens the root, by way of `reach` where its path
/// cannot be walked. The cwd is left where it was.
pub(crate) fn open(
    rootfs: &Path,
    reach: Option<&Path>,
    propagation: Option<Propagation>,
) -> Result<RootDir> {
    let reach = reach.unwrap_or(rootfs);
    let wanted = propagation.unwrap_or(Propagation {
        flag: libc::MS_SLAVE,
        recursive: true,
    });
    let shared = wanted.flag == libc::MS_SHARED;
    // Shared volumes need the mounts to stay peers of the host's; all else must not carry our mounts out.
    let flags = if shared {
        MsFlags::MS_SHARED
    } else {
        MsFlags::from_bits_retain(wanted.flag)
    };
    let first = if wanted.flag == libc::MS_UNBINDABLE {
        MsFlags::MS_PRIVATE
    } else {
        flags
    };
    change_propagation("/", first | MsFlags::MS_REC)?;
    if shared {
        // pivot_root refuses a root whose parent mount is shared, and our bind must not appear on the host.
        let parent = parent_mount(rootfs)?;
        change_propagation(&parent, MsFlags::MS_PRIVATE)?;
    }
    let tree = mounts::open_tree(reach, Bind::Recursive).map_err(|e| match e {
        Error::NotFound { .. } => Error::NotFound {
            what: "rootfs".into(),
            path: rootfs.to_path_buf(),
        },
        e => e,
    })?;
    let at = open_host_path(reach).step_at("open rootfs", rootfs)?;
    mounts::move_onto(tree.as_fd(), at.as_fd()).step_at("bind rootfs", rootfs)?;
    Ok(RootDir::new(tree))
}

/// Makes the root file system itself read-only.
pub(crate) fn make_read_only(root: &RootDir) -> Result<()> {
    let closed = Attributes {
        set: attr::RDONLY,
        clear: 0,
    };
    mounts::set_attributes(root.fd(), Path::new("/"), false, &closed)
}

/// Leaves the host's tree behind.
pub(crate) fn enter(root: &RootDir, rootfs: &Path, no_pivot: bool) -> Result<()> {
    let old_root = open_host_path(Path::new("/")).step("open the old root")?;
    nix::unistd::fchdir(root.fd()).step_at("enter rootfs", rootfs)?;
    if no_pivot {
        return move_root(root, rootfs);
    }
    // Both at the same place: the old root ends up beneath the new one and needs no directory in the image.
    nix::unistd::pivot_root(".", ".").map_err(|e| match e {
        nix::errno::Errno::EINVAL => Error::HostUnfit {
            need: format!("pivot_root to {rootfs:?}"),
            why: "the caller's root is the initial ramfs, which cannot be left that way: use --no-pivot".into(),
        },
        e => Error::sys_at("pivot_root to", rootfs, e),
    })?;
    // Unmounting the old root must not reach the host. "." would be the new root still, whose shared mounts must stay so.
    nix::unistd::fchdir(&old_root).step("enter the old root")?;
    change_propagation(".", MsFlags::MS_SLAVE | MsFlags::MS_REC)?;
    nix::mount::umount2(".", MntFlags::MNT_DETACH).step("detach the old root")?;
    nix::unistd::chdir("/").step("enter the new root")
}

/// For hosts that live in their initial ramfs: move the root over it and chroot.
fn move_root(root: &RootDir, rootfs: &Path) -> Result<()> {
    // Complete views of the host's /proc and /sys would stay reachable in the namespace: cover them.
    for (point, fstype) in mount_table()? {
        if matches!(fstype.as_str(), "proc" | "sysfs") && !point.starts_with(rootfs) {
            let gone = nix::mount::umount2(&point, MntFlags::MNT_DETACH);
            if gone.is_err() && point.exists() {
                nix::mount::mount(
                    Some("tmpfs"),
                    &point,
                    Some("tmpfs"),
                    MsFlags::empty(),
                    Some("size=0"),
                )
                .step_at("cover", &point)?;
            }
        }
    }
    nix::mount::mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .step_at("move rootfs to /", rootfs)?;
    nix::unistd::fchdir(root.fd()).step_at("enter rootfs", rootfs)?;
    nix::unistd::chroot(".").step_at("chroot to", rootfs)?;
    nix::unistd::chdir("/").step("enter the new root")
}

/// Applies the propagation a spec asks for to the container's own root, after [`enter`].
pub(crate) fn set_propagation(propagation: Propagation) -> Result<()> {
    let mut flags = MsFlags::from_bits_retain(propagation.flag);
    if propagation.recursive {
        flags |= MsFlags::MS_REC;
    }
    change_propagation("/", flags)
}

fn change_propagation(path: impl AsRef<Path>, flags: MsFlags) -> Result<()> {
    let path = path.as_ref();
    nix::mount::mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
        .step_at("set the mount propagation of", path)
}

fn parent_mount(path: &Path) -> Result<PathBuf> {
    let points: Vec<PathBuf> = mount_table()?.into_iter().map(|(point, _)| point).collect();
    path.ancestors()
        .find(|ancestor| points.iter().any(|point| point == ancestor))
        .map(Path::to_path_buf)
        .ok_or_else(|| Error::sys_at("find the mount that holds", path, libc::ENOENT))
}

/// Mount points and file system types of this namespace.
fn mount_table() -> Result<Vec<(PathBuf, String)>> {
    let text =
        std::fs::read_to_string("/proc/self/mountinfo").step_at("read", "/proc/self/mountinfo")?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let point = left.split(' ').nth(4)?;
            Some((
                PathBuf::from(unescape(point)),
                right.split(' ').next()?.to_string(),
            ))
        })
        .collect())
}

/// mountinfo writes blanks as \040 and the like.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail
            .get(..3)
            .filter(|d| *first == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        if let Some(digits) = digits {
            bytes.push(digits.iter().fold(0u32, |n, d| n * 8 + u32::from(d - b'0')) as u8);
            rest = &tail[3..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_names_are_unescaped() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescape(r"/a\x"), r"/a\x");
    }
}
