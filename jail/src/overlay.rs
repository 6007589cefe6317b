//! Mounts the layers of a container's root file system as an overlay.
//!
//! New kernels take one layer at a time (`lowerdir+`, Linux 6.5), so their number and names do not matter. Older ones take
//! one option string of at most a page: there the layers' common directory is made the working directory and the names are
//! relative or, where that is still too long, the numbers of their descriptors.
//!
//! Must not know: images, what a layer is.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use caps::CapSet;
use nix::mount::{MntFlags, MsFlags};
use oci_spec::runtime::LinuxIdMapping;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::beneath::open_host_path;
use crate::error::{Context, Error, Result};
use crate::mount_options::{Bind, MountOptions, attr};
use crate::mounts;
use crate::namespaces::{IdMappings, user_namespace};
use crate::sys::{self, MountAttr};

/// Values of fsconfig(2) end here.
const FSCONFIG_VALUE_MAX: usize = 255;
/// mount(2) options end here.
const PAGE: usize = 4096;

/// Mounts an overlay at `target` in the caller's mount namespace. `lower` is topmost first.
///
/// With `idmap`, layers and upper are seen through idmapped mounts, as a user namespace with these mappings would own them.
pub fn mount_overlay(
    lower: &[PathBuf],
    upper: &Path,
    work: &Path,
    target: &Path,
    idmap: Option<&IdMappings>,
) -> Result<()> {
    if lower.is_empty() {
        return Err(Error::invalid("an overlay needs at least one layer"));
    }
    for dir in lower.iter().map(PathBuf::as_path).chain([upper, work]) {
        if !dir.is_dir() {
            return Err(Error::NotFound {
                what: "overlay directory".into(),
                path: dir.to_path_buf(),
            });
        }
    }
    match idmap {
        None => mount_plain(lower, upper, work, target),
        Some(maps) => mount_shifted(lower, upper, work, target, maps),
    }
}

fn mount_plain(lower: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> Result<()> {
    match layer_by_layer(lower, upper, work)? {
        Some(tree) => {
            let at = open_host_path(target).step_at("open mount point", target)?;
            mounts::move_onto(tree.as_fd(), at.as_fd()).step_at("mount overlay at", target)
        }
        None => in_one_string(lower, upper, work, target),
    }
}

/// Whether a kernel may have `lowerdir+`: older ones complain of it in their log.
fn may_add_layers(release: &str) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => (major, minor) >= (6, 5),
        _ => true,
    }
}

/// The overlay, detached; `None` where the kernel has no `lowerdir+`.
fn layer_by_layer(lower: &[PathBuf], upper: &Path, work: &Path) -> Result<Option<OwnedFd>> {
    if !may_add_layers(&rustix::system::uname().release().to_string_lossy()) {
        return Ok(None);
    }
    let fs = match rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(fs) => fs,
        Err(Errno::NOSYS) => return Ok(None),
        Err(Errno::NODEV) => {
            return Err(Error::HostUnfit {
                need: "mount an overlay".into(),
                why: "the kernel has no overlay file system (modprobe overlay)".into(),
            });
        }
        Err(e) => return Err(Error::sys("open an overlay file system", e)),
    };
    let _ = rustix::mount::fsconfig_set_string(&fs, "source", "overlay");
    // Kept open for as long as a /proc/self/fd name refers to them.
    let mut held = Vec::new();
    let set = |key: &str, dir: &Path, held: &mut Vec<OwnedFd>| -> Result<(), Errno> {
        if dir.as_os_str().len() <= FSCONFIG_VALUE_MAX {
            return rustix::mount::fsconfig_set_string(&fs, key, dir);
        }
        let fd = open_host_path(dir)?;
        let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
        held.push(fd);
        rustix::mount::fsconfig_set_string(&fs, key, name.as_str())
    };
    for dir in lower {
        match set("lowerdir+", dir, &mut held) {
            Ok(()) => {}
            // Not known at all or, before Linux 6.5, collected as text until a page is full.
            Err(Errno::INVAL) => return Ok(None),
            Err(e) => return Err(Error::sys_at("add overlay layer", dir, e)),
        }
    }
    set("upperdir", upper, &mut held).step_at("set overlay upper", upper)?;
    set("workdir", work, &mut held).step_at("set overlay work directory", work)?;
    match rustix::mount::fsconfig_create(&fs) {
        Ok(()) => {}
        // Before Linux 6.5 overlayfs reads its options only now, and knows no `lowerdir+`: mount(2) says better what is
        // wrong, if that was not it.
        Err(Errno::INVAL) => return Ok(None),
        Err(e) => {
            let log = mounts::kernel_log(fs.as_fd());
            return Err(Error::sys_at(
                format!("mount overlay ({log}) over"),
                upper,
                e,
            ));
        }
    }
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .step("mount overlay")
        .map(Some)
}

fn in_one_string(lower: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> Result<()> {
    // Kept open for as long as the options name them by number.
    let mut held = Vec::new();
    let plan = match one_string(lower, upper, work) {
        Some(plan) => plan,
        None => by_number(lower, upper, work, &mut held)?,
    };
    let target = std::path::absolute(target).step_at("resolve", target)?;
    let back = rustix::fs::open(
        ".",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .step("open .")?;
    nix::unistd::chdir(&plan.from).step_at("chdir to", &plan.from)?;
    let mounted = nix::mount::mount(
        Some("overlay"),
        &target,
        Some("overlay"),
        MsFlags::empty(),
        Some(OsStr::from_bytes(&plan.options)),
    )
    .step_at("mount overlay at", &target);
    nix::unistd::fchdir(&back).step("return to the working directory")?;
    mounted
}

/// Names too long for a page: each layer is opened and named by the number of its descriptor, relative to /proc/self/fd.
fn by_number(
    lower: &[PathBuf],
    upper: &Path,
    work: &Path,
    held: &mut Vec<OwnedFd>,
) -> Result<OneString> {
    let from = PathBuf::from("/proc/self/fd");
    let mut names = Vec::with_capacity(lower.len());
    for dir in lower {
        let fd = open_host_path(dir).step_at("open overlay layer", dir)?;
        names.push(from.join(fd.as_raw_fd().to_string()));
        held.push(fd);
    }
    one_string(&names, upper, work).ok_or_else(|| Error::HostUnfit {
        need: format!("mount {} layers", lower.len()),
        why:
            "even their numbers do not fit in one page and this kernel has no lowerdir+ (Linux 6.5)"
                .into(),
    })
}

#[derive(Debug, PartialEq, Eq)]
struct OneString {
    from: PathBuf,
    options: Vec<u8>,
}

/// Options relative to the layers' common directory, `None` if they do not fit. Pure.
fn one_string(lower: &[PathBuf], upper: &Path, work: &Path) -> Option<OneString> {
    let all = || lower.iter().map(PathBuf::as_path).chain([upper, work]);
    if !all().all(Path::is_absolute) {
        return None;
    }
    let mut from = lower.first()?.parent()?.to_path_buf();
    while !lower.iter().all(|dir| dir.starts_with(&from)) {
        from.pop();
    }
    let mut options = b"lowerdir=".to_vec();
    for (index, dir) in lower.iter().enumerate() {
        if index > 0 {
            options.push(b':');
        }
        escape(dir.strip_prefix(&from).ok()?, b":,\\", &mut options);
    }
    for (key, dir) in [(&b",upperdir="[..], upper), (b",workdir=", work)] {
        options.extend_from_slice(key);
        escape(dir, b",\\", &mut options);
    }
    (options.len() < PAGE).then_some(OneString { from, options })
}

fn escape(path: &Path, special: &[u8], out: &mut Vec<u8>) {
    for byte in path.as_os_str().as_bytes() {
        if special.contains(byte) {
            out.push(b'\\');
        }
        out.push(*byte);
    }
}

/// Overlays want attached mounts to work on: idmapped copies of the layers are put on a scratch tmpfs at the target, which
/// goes away again before the overlay takes its place, or lies below it where the kernel has no `lowerdir+`.
fn mount_shifted(
    lower: &[PathBuf],
    upper: &Path,
    work: &Path,
    target: &Path,
    maps: &IdMappings,
) -> Result<()> {
    let namespace = user_namespace(maps)?;
    let scratch = mounts::new_filesystem("tmpfs", "tmpfs", &MountOptions::default(), false)?;
    let at = open_host_path(target).step_at("open mount point", target)?;
    mounts::move_onto(scratch.as_fd(), at.as_fd()).step_at("mount a scratch tmpfs at", target)?;
    let gone = Unmount(target);
    let shifted = |dir: &Path, name: &str| -> Result<PathBuf> {
        let tree = mounts::open_tree(dir, Bind::One)?;
        let shift = MountAttr {
            set: attr::IDMAP,
            userns_fd: namespace.as_raw_fd() as u64,
            ..MountAttr::default()
        };
        sys::mount_setattr(tree.as_fd(), false, &shift).map_err(|e| Error::HostUnfit {
            need: format!("idmap {dir:?}"),
            why: format!(
                "mount_setattr: {} (the file system must support idmapped mounts)",
                e.desc()
            ),
        })?;
        rustix::fs::mkdirat(&scratch, name, Mode::from_raw_mode(0o755)).step_at("create", name)?;
        let place = rustix::fs::openat(
            &scratch,
            name,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .step_at("open", name)?;
        mounts::move_onto(tree.as_fd(), place.as_fd()).step_at("mount", name)?;
        Ok(target.join(name))
    };
    let layers = lower
        .iter()
        .enumerate()
        .map(|(n, dir)| shifted(dir, &n.to_string()))
        .collect::<Result<Vec<_>>>()?;
    // Upper and work must be on one mount: shift the directory that holds both.
    let common = upper
        .parent()
        .filter(|parent| work.parent() == Some(parent))
        .ok_or_else(|| {
            Error::invalid("upper and work directories must have the same parent to be idmapped")
        })?;
    let top = shifted(common, "top")?;
    let (Some(upper), Some(work)) = (upper.file_name(), work.file_name()) else {
        return Err(Error::invalid("upper and work directories need names"));
    };
    let (upper, work) = (top.join(upper), top.join(work));
    match as_root_of(maps, || layer_by_layer(&layers, &upper, &work))? {
        Some(tree) => {
            drop(gone);
            mounts::move_onto(tree.as_fd(), at.as_fd()).step_at("mount overlay at", target)
        }
        None => {
            // Covers the scratch tmpfs, which ends with the caller's mount namespace.
            as_root_of(maps, || in_one_string(&layers, &upper, &work, target))?;
            std::mem::forget(gone);
            Ok(())
        }
    }
}

/// An overlay works on its upper with the credentials of whoever mounted it, and host root's ids do not exist on mounts
/// that are shifted elsewhere (EOVERFLOW, and the kernel silently mounts read-only). So: the ids of the container's root,
/// the capabilities of the host's.
fn as_root_of<T>(maps: &IdMappings, mount: impl FnOnce() -> Result<T>) -> Result<T> {
    let root_in = |maps: &[LinuxIdMapping]| {
        maps.iter()
            .find(|m| m.container_id() == 0)
            .map(|m| m.host_id())
    };
    let (Some(uid), Some(gid)) = (root_in(&maps.uids), root_in(&maps.gids)) else {
        return Err(Error::invalid(
            "the id mappings of a user namespace must map root",
        ));
    };
    let permitted = caps::read(None, CapSet::Permitted).map_err(capability_error)?;
    let effective = caps::read(None, CapSet::Effective).map_err(capability_error)?;
    let our_gid = nix::unistd::setfsgid(gid.into());
    let our_uid = nix::unistd::setfsuid(uid.into());
    let result = caps::set(None, CapSet::Effective, &permitted)
        .map_err(capability_error)
        .and_then(|()| mount());
    nix::unistd::setfsuid(our_uid);
    nix::unistd::setfsgid(our_gid);
    caps::set(None, CapSet::Effective, &effective).map_err(capability_error)?;
    result
}

fn capability_error(error: caps::errors::CapsError) -> Error {
    Error::HostUnfit {
        need: "mount an overlay for a user namespace".into(),
        why: error.to_string(),
    }
}

struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0, MntFlags::MNT_DETACH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_added_one_by_one_since_linux_6_5() {
        for (release, may) in [
            ("6.1.192", false),
            ("5.15.0-91-generic", false),
            ("6.4.99", false),
            ("6.5.0", true),
            ("7.0-rc1", true),
            ("strange", true),
        ] {
            assert_eq!(may_add_layers(release), may, "{release}");
        }
    }

    #[test]
    fn many_layers_fit_relative_to_their_common_directory() {
        let layers: Vec<PathBuf> = (0..120)
            .map(|n| {
                PathBuf::from(format!(
                    "/var/lib/caisson/image/layers/{n:03}abcdefghij/diff"
                ))
            })
            .collect();
        let plan = one_string(&layers, Path::new("/var/u"), Path::new("/var/w")).expect("fits");
        assert_eq!(plan.from, Path::new("/var/lib/caisson/image/layers"));
        assert!(plan.options.starts_with(b"lowerdir=000abcdefghij/diff:001"));
        assert!(plan.options.ends_with(b",upperdir=/var/u,workdir=/var/w"));
        let long: Vec<PathBuf> = (0..60)
            .map(|n| PathBuf::from(format!("/l/{n}{}", "x".repeat(100))))
            .collect();
        assert_eq!(one_string(&long, Path::new("/u"), Path::new("/w")), None);
    }

    #[test]
    fn separators_in_names_are_escaped() {
        let plan = one_string(
            &[PathBuf::from("/l/a:b"), PathBuf::from("/l/c,d")],
            Path::new("/u,1"),
            Path::new("/w"),
        )
        .expect("fits");
        assert_eq!(
            plan.options,
            b"lowerdir=a\\:b:c\\,d,upperdir=/u\\,1,workdir=/w"
        );
    }
}
