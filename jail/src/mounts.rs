//! Performs the mounts of a spec inside a container's root.
//!
//! Every mount is made detached (fsopen, open_tree), given its attributes while nobody can see it, and then moved onto a
//! descriptor of its destination that was resolved inside the root. No destination path is ever resolved by the kernel
//! on its own, and there is no moment at which a read-only mount is writable.
//!
//! Must not know: which mounts a container should have; devices; what is masked.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use oci_spec::runtime::Mount;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use crate::beneath::{RootDir, Want, clean};
use crate::cgroup::CgroupMount;
use crate::copy_up;
use crate::error::{Context, Error, Result};
use crate::mount_options::{self, Attributes, Bind, Idmap, MountOptions, attr};
use crate::namespaces::{self, IdMappings};
use crate::sys::{self, MountAttr};

/// The longest value fsconfig(2) takes.
const FSCONFIG_VALUE_MAX: usize = 255;
/// proc's file system type (linux/magic.h).
const PROC_SUPER_MAGIC: u64 = 0x9fa0;

/// Files under /proc a spec may mount over: what LXCFS provides, and runc allows.
const PROC_OVERRIDES: &[&str] = &[
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Bind mount sources that have to be opened by the caller: before a user namespace takes the rights away.
pub(crate) type PreparedTrees = HashMap<usize, OwnedFd>;

/// What mounting leaves for later steps.
#[derive(Default)]
pub(crate) struct Mounted {
    /// Read-only tmpfs mounts, still writable: [`finish`] closes them when everything inside exists.
    deferred: Vec<(OwnedFd, PathBuf, Attributes)>,
    /// The devpts mounted at /dev/pts.
    pub devpts: Option<OwnedFd>,
    /// Whether the spec puts an existing tree at /dev, whose content is then its own affair.
    pub dev_is_bound: bool,
}

/// Where and how mounts are made.
pub(crate) struct Place<'a> {
    pub root: &'a RootDir,
    pub bundle: &'a Path,
    pub cgroups: &'a [CgroupMount],
    pub cgroup_namespace: bool,
    pub in_userns: bool,
    pub label: Option<&'a str>,
}

/// Opens, as the caller, the sources that init could not: all binds of a container with a user namespace, and idmapped ones.
pub(crate) fn prepare(
    mounts: &[Mount],
    bundle: &Path,
    in_userns: bool,
    userns: impl Fn() -> Result<OwnedFd>,
    keep_shared: bool,
) -> Result<PreparedTrees> {
    let mut trees = HashMap::new();
    for (index, mount) in mounts.iter().enumerate() {
        let options = options_of(mount)?;
        let own_maps = IdMappings {
            uids: mount.uid_mappings().clone().unwrap_or_default(),
            gids: mount.gid_mappings().clone().unwrap_or_default(),
        };
        let has_own_maps = !own_maps.uids.is_empty() || !own_maps.gids.is_empty();
        let idmapped = options.idmap != Idmap::No || has_own_maps;
        if options.bind == Bind::No || options.remount || !(in_userns || idmapped) {
            if idmapped && options.bind == Bind::No {
                return Err(Error::invalid(format!(
                    "mount {:?}: only bind mounts can be idmapped",
                    mount.destination()
                )));
            }
            continue;
        }
        let tree = open_tree(&source_of(mount, bundle)?, options.bind)?;
        if !keep_shared {
            // Taken from a shared mount it would be a peer of the host's and carry the container's mounts out.
            let slave = MountAttr {
                propagation: libc::MS_SLAVE,
                ..MountAttr::default()
            };
            sys::mount_setattr(tree.as_fd(), true, &slave)
                .step("make a bind mount's source a slave")?;
        }
        if idmapped {
            let namespace = if has_own_maps {
                namespaces::user_namespace(&own_maps)?
            } else {
                userns()?
            };
            let shift = MountAttr {
                set: attr::IDMAP,
                userns_fd: namespace.as_raw_fd() as u64,
                ..MountAttr::default()
            };
            let recursive = options.idmap == Idmap::Recursive;
            sys::mount_setattr(tree.as_fd(), recursive, &shift).map_err(|e| Error::HostUnfit {
                need: format!("idmap the mount at {:?}", mount.destination()),
                why: format!(
                    "mount_setattr: {} (the file system must support idmapped mounts)",
                    e.desc()
                ),
            })?;
        }
        trees.insert(index, tree);
    }
    Ok(trees)
}

/// Performs every mount of the spec, in order.
pub(crate) fn mount_all(
    mounts: &[Mount],
    place: &Place<'_>,
    mut trees: PreparedTrees,
) -> Result<Mounted> {
    let mut done = Mounted::default();
    for (index, mount) in mounts.iter().enumerate() {
        mount_one(mount, place, trees.remove(&index), &mut done)?;
    }
    Ok(done)
}

/// Makes the deferred mounts read-only.
pub(crate) fn finish(mounted: Mounted) -> Result<()> {
    for (fd, destination, attributes) in mounted.deferred {
        set_attributes(fd.as_fd(), &destination, false, &attributes)?;
    }
    Ok(())
}

fn options_of(mount: &Mount) -> Result<MountOptions> {
    let mut options = mount_options::parse(mount.options().as_deref().unwrap_or_default())?;
    if options.bind == Bind::No && mount.typ().as_deref() == Some("bind") {
        options.bind = Bind::One;
    }
    Ok(options)
}

fn source_of(mount: &Mount, bundle: &Path) -> Result<PathBuf> {
    match mount.source() {
        Some(source) => Ok(bundle.join(source)),
        None => Err(Error::invalid(format!(
            "bind mount at {:?} has no source",
            mount.destination()
        ))),
    }
}

fn mount_one(
    mount: &Mount,
    place: &Place<'_>,
    prepared: Option<OwnedFd>,
    done: &mut Mounted,
) -> Result<()> {
    let mut options = options_of(mount)?;
    let destination = clean(mount.destination())?;
    let fstype = mount.typ().as_deref().unwrap_or("none");

    if options.remount {
        let target = place
            .root
            .open(&destination, OFlags::PATH)
            .step_at("open mount point", &destination)?;
        set_attributes(target.as_fd(), &destination, false, &options.attributes)?;
        return set_attributes(target.as_fd(), &destination, true, &options.recursive);
    }
    if options.bind != Bind::No {
        let tree = match prepared {
            Some(tree) => tree,
            None => open_tree(&source_of(mount, place.bundle)?, options.bind)?,
        };
        done.dev_is_bound |= destination == Path::new("/dev");
        return attach_bind(place, &destination, tree, &options);
    }
    match fstype {
        "cgroup" | "cgroup2" => return crate::cgroupfs::mount(place, &destination, &options),
        "proc" | "sysfs" => {
            let target = kernel_mount_point(place.root, &destination)?;
            let made = new_filesystem(fstype, fstype, &options, false);
            let tree = match made {
                // A user namespace without a network namespace of its own may not mount sysfs: show it the host's.
                Err(e)
                    if fstype == "sysfs"
                        && place.in_userns
                        && e.errno() == Some(nix::errno::Errno::EPERM) =>
                {
                    open_tree(Path::new("/sys"), Bind::Recursive)?
                }
                other => other?,
            };
            return attach(tree, target.as_fd(), &destination, &options).map(drop);
        }
        "tmpfs" => {
            let covers = place.root.open(&destination, OFlags::PATH).is_ok();
            let target = place.root.mount_point(&destination, Want::Directory)?;
            refuse_inside_proc(target.as_fd(), &destination)?;
            if covers {
                inherit_mode(&mut options, target.as_fd());
            }
            if let Some(label) = place.label.filter(|l| !l.is_empty()) {
                options.data.push(("context".into(), Some(label.into())));
            }
            let tree = new_filesystem("tmpfs", source_name(mount, "tmpfs"), &options, false)?;
            if options.copy_up {
                copy_up::copy_tree(target.as_fd(), tree.as_fd())
                    .map_err(|e| in_context(e, "tmpcopyup to", &destination))?;
            }
            let mut visible = options.clone();
            let read_only = options.attributes.set & attr::RDONLY != 0;
            visible.attributes.set &= !attr::RDONLY;
            let fd = attach(tree, target.as_fd(), &destination, &visible)?;
            if read_only {
                let attributes = Attributes {
                    set: attr::RDONLY,
                    clear: 0,
                };
                done.deferred.push((fd, destination, attributes));
            }
            return Ok(());
        }
        _ => {}
    }
    let target = place.root.mount_point(&destination, Want::Directory)?;
    refuse_inside_proc(target.as_fd(), &destination)?;
    let source = source_name(mount, fstype);
    let block_device = source.starts_with('/');
    let tree = new_filesystem(fstype, source, &options, block_device)?;
    let fd = attach(tree, target.as_fd(), &destination, &options)?;
    if fstype == "devpts" && destination == Path::new("/dev/pts") {
        done.devpts = Some(fd);
    }
    Ok(())
}

fn in_context(e: Error, step: &str, path: &Path) -> Error {
    match e.errno() {
        Some(errno) => Error::sys_at(step, path, errno),
        None => e,
    }
}

fn source_name<'m>(mount: &'m Mount, default: &'m str) -> &'m str {
    mount
        .source()
        .as_deref()
        .and_then(Path::to_str)
        .filter(|s| !s.is_empty())
        .unwrap_or(default)
}

/// Where /proc and /sys go: a plain directory, no symlink anywhere on the way (CVE-2019-19921).
fn kernel_mount_point(root: &RootDir, destination: &Path) -> Result<OwnedFd> {
    let open = || root.open_no_symlinks(destination, OFlags::PATH | OFlags::DIRECTORY);
    match open() {
        Ok(fd) => Ok(fd),
        Err(Errno::NOENT) => {
            root.directory(destination)?;
            open().step_at("open mount point", destination)
        }
        Err(Errno::LOOP | Errno::NOTDIR) => Err(Error::invalid(format!(
            "mount destination {destination:?} must be an ordinary directory"
        ))),
        Err(e) => Err(Error::sys_at("open mount point", destination, e)),
    }
}

/// Unless the spec says so, a tmpfs has the permissions of the directory it covers. (One that covers nothing keeps the
/// kernel's 1777: whoever the container runs as can use it.)
fn inherit_mode(options: &mut MountOptions, target: BorrowedFd<'_>) {
    if options.data.iter().any(|(key, _)| key == "mode") {
        return;
    }
    if let Ok(stat) = rustix::fs::fstat(target) {
        options
            .data
            .push(("mode".into(), Some(format!("{:o}", stat.st_mode & 0o7777))));
    }
}

/// Nothing is mounted inside /proc but the known overrides: it could fake what confinement relies on.
fn refuse_inside_proc(target: BorrowedFd<'_>, destination: &Path) -> Result<()> {
    let on = rustix::fs::fstatfs(target).step_at("stat the file system of", destination)?;
    if on.f_type as u64 != PROC_SUPER_MAGIC
        || PROC_OVERRIDES
            .iter()
            .any(|allowed| destination == Path::new(allowed))
    {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{destination:?} cannot be mounted because it is inside /proc"
    )))
}

/// A detached copy of an existing tree.
pub(crate) fn open_tree(source: &Path, bind: Bind) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if bind == Bind::Recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(rustix::fs::CWD, source, flags).map_err(|e| match e {
        Errno::NOENT => Error::NotFound {
            what: "bind mount source".into(),
            path: source.to_path_buf(),
        },
        e => Error::sys_at("open bind mount source", source, e),
    })
}

/// A detached copy of the mount at an open file.
pub(crate) fn open_tree_fd(fd: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(fd, c"", flags)
}

/// Puts a detached tree at an open mount point.
pub(crate) fn move_onto(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, c"", target, c"", flags)
}

/// Binds a tree at a path inside the root.
pub(crate) fn attach_bind(
    place: &Place<'_>,
    destination: &Path,
    tree: OwnedFd,
    options: &MountOptions,
) -> Result<()> {
    let stat = rustix::fs::fstat(&tree).step_at("stat the bind mount source for", destination)?;
    let want = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Want::Directory,
        _ => Want::File,
    };
    let target = place.root.mount_point(destination, want)?;
    refuse_inside_proc(target.as_fd(), destination)?;
    attach(tree, target.as_fd(), destination, options).map(drop)
}

/// Gives a detached tree its attributes and propagation and moves it onto its mount point; returns a descriptor of the mount.
fn attach(
    tree: OwnedFd,
    target: BorrowedFd<'_>,
    destination: &Path,
    options: &MountOptions,
) -> Result<OwnedFd> {
    let early = apply(tree.as_fd(), options);
    if let Err(e) = early
        && e != nix::errno::Errno::ENOSYS
    {
        return Err(Error::sys_at(
            "set the options of the mount at",
            destination,
            e,
        ));
    }
    move_onto(tree.as_fd(), target).step_at("mount at", destination)?;
    if early.is_err() {
        apply_with_mount(tree.as_fd(), destination, options)?;
    }
    Ok(tree)
}

fn apply(tree: BorrowedFd<'_>, options: &MountOptions) -> Result<(), nix::errno::Errno> {
    for (recursive, attributes) in [(false, &options.attributes), (true, &options.recursive)] {
        // A new file system got its attributes from fsmount.
        if !attributes.is_empty() && (recursive || options.bind != Bind::No) {
            let attr = MountAttr {
                set: attributes.set,
                clear: attributes.clear,
                ..MountAttr::default()
            };
            sys::mount_setattr(tree, recursive, &attr)?;
        }
    }
    for change in &options.propagation {
        let attr = MountAttr {
            propagation: change.flag,
            ..MountAttr::default()
        };
        sys::mount_setattr(tree, change.recursive, &attr)?;
    }
    Ok(())
}

/// Kernels before 5.12: the same on the attached mount, with mount(2).
fn apply_with_mount(
    mount: BorrowedFd<'_>,
    destination: &Path,
    options: &MountOptions,
) -> Result<()> {
    if !options.recursive.is_empty() {
        return Err(Error::HostUnfit {
            need: "mount recursively read-only".into(),
            why: "mount_setattr(2) needs Linux 5.12".into(),
        });
    }
    if options.bind != Bind::No {
        remount(mount, destination, &options.attributes)?;
    }
    for change in &options.propagation {
        let mut flags = MsFlags::from_bits_retain(change.flag);
        if change.recursive {
            flags |= MsFlags::MS_REC;
        }
        change_mount(mount, destination, flags)?;
    }
    Ok(())
}

fn change_mount(mount: BorrowedFd<'_>, destination: &Path, flags: MsFlags) -> Result<()> {
    let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
    nix::mount::mount(
        None::<&str>,
        path.as_str(),
        None::<&str>,
        flags,
        None::<&str>,
    )
    .step_at("set the options of the mount at", destination)
}

fn remount(mount: BorrowedFd<'_>, destination: &Path, attributes: &Attributes) -> Result<()> {
    if attributes.is_empty() {
        return Ok(());
    }
    let now = rustix::fs::fstatvfs(mount).step_at("stat the mount at", destination)?;
    let mut flags = MsFlags::from_bits_truncate(now.f_flag.bits() & 0xf);
    for (bit, flag) in [
        (attr::RDONLY, MsFlags::MS_RDONLY),
        (attr::NOSUID, MsFlags::MS_NOSUID),
        (attr::NODEV, MsFlags::MS_NODEV),
        (attr::NOEXEC, MsFlags::MS_NOEXEC),
        (attr::NODIRATIME, MsFlags::MS_NODIRATIME),
    ] {
        if attributes.set & bit != 0 {
            flags |= flag;
        } else if attributes.clear & bit != 0 {
            flags -= flag;
        }
    }
    match attributes.set & attr::ATIME_MASK {
        attr::NOATIME => flags |= MsFlags::MS_NOATIME,
        attr::STRICTATIME => flags |= MsFlags::MS_STRICTATIME,
        _ if attributes.clear & attr::ATIME_MASK != 0 => flags |= MsFlags::MS_RELATIME,
        _ => {}
    }
    change_mount(
        mount,
        destination,
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags,
    )
}

/// Changes the attributes of a mount that is attached.
pub(crate) fn set_attributes(
    mount: BorrowedFd<'_>,
    destination: &Path,
    recursive: bool,
    attributes: &Attributes,
) -> Result<()> {
    if attributes.is_empty() {
        return Ok(());
    }
    let attr = MountAttr {
        set: attributes.set,
        clear: attributes.clear,
        ..MountAttr::default()
    };
    match sys::mount_setattr(mount, recursive, &attr) {
        Err(nix::errno::Errno::ENOSYS) => remount(mount, destination, attributes),
        other => other.step_at("set the options of the mount at", destination),
    }
}

/// A new, detached file system. `read_only_super` also makes the file system itself read-only when the options say `ro`
/// (a block device may not be writable at all).
pub(crate) fn new_filesystem(
    fstype: &str,
    source: &str,
    options: &MountOptions,
    read_only_super: bool,
) -> Result<OwnedFd> {
    let what = format!("mount {fstype}");
    let fs = rustix::mount::fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC).step(&what)?;
    let fail = |key: &str, e: Errno| -> Error {
        let log = kernel_log(fs.as_fd());
        let shown = if log.is_empty() {
            format!("{what}: {key}")
        } else {
            format!("{what}: {key}: {log}")
        };
        Error::sys(shown, e)
    };
    // In-kernel file systems take any source and most ignore it.
    match rustix::mount::fsconfig_set_string(&fs, "source", source) {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(e) => return Err(fail("source", e)),
    }
    for (key, value) in &options.data {
        let set = match value {
            None => rustix::mount::fsconfig_set_flag(&fs, key.as_str()),
            Some(value) if value.len() > FSCONFIG_VALUE_MAX => {
                return long_mount(fstype, source, options);
            }
            Some(value) => rustix::mount::fsconfig_set_string(&fs, key.as_str(), value.as_str()),
        };
        set.map_err(|e| fail(&format!("option {key}"), e))?;
    }
    if read_only_super && options.attributes.set & attr::RDONLY != 0 {
        rustix::mount::fsconfig_set_flag(&fs, "ro").map_err(|e| fail("option ro", e))?;
    }
    rustix::mount::fsconfig_create(&fs).map_err(|e| fail("create", e))?;
    let attributes = MountAttrFlags::from_bits_retain(options.attributes.set as u32);
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).step(&what)
}

/// What the kernel says about a failed fsconfig.
pub(crate) fn kernel_log(fs: BorrowedFd<'_>) -> String {
    let mut text = String::new();
    let mut buffer = [0u8; 512];
    while let Ok(n @ 1..) = rustix::io::read(fs, &mut buffer) {
        let line = String::from_utf8_lossy(&buffer[..n]);
        let line = line.trim_end();
        if !text.is_empty() {
            text.push_str("; ");
        }
        text.push_str(line.get(2..).unwrap_or(line));
        if text.len() > 2048 {
            break;
        }
    }
    text
}

/// mount(2) for options longer than fsconfig takes (an overlay's lowerdir): made at a private place, then detached again.
fn long_mount(fstype: &str, source: &str, options: &MountOptions) -> Result<OwnedFd> {
    let what = format!("mount {fstype}");
    let empty = MountOptions::default();
    // A detached tmpfs serves as the private mount point; mount(2) reaches it through /proc/self/fd.
    let holder = new_filesystem("tmpfs", "tmpfs", &empty, false)?;
    let data = options
        .data
        .iter()
        .map(|(key, value)| match value {
            Some(value) => format!("{key}={value}"),
            None => key.clone(),
        })
        .collect::<Vec<_>>()
        .join(",");
    let path = format!("/proc/self/fd/{}", holder.as_raw_fd());
    let host = rustix::fs::open(
        "/tmp",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .step(&what)?;
    move_onto(holder.as_fd(), host.as_fd()).step(&what)?;
    let mounted = nix::mount::mount(
        Some(source),
        path.as_str(),
        Some(fstype),
        MsFlags::empty(),
        Some(data.as_str()),
    )
    .step(&what)
    .and_then(|()| {
        rustix::fs::open(
            "/tmp",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .step(&what)
    })
    .and_then(|top| open_tree_fd(top.as_fd(), false).step(&what));
    // The mount namespace is this container's own; what is left at /tmp goes with the old root.
    let _ = nix::mount::umount2("/tmp", nix::mount::MntFlags::MNT_DETACH);
    let _ = nix::mount::umount2("/tmp", nix::mount::MntFlags::MNT_DETACH);
    let tree = mounted?;
    let attr = MountAttr {
        set: options.attributes.set,
        clear: options.attributes.clear,
        ..MountAttr::default()
    };
    sys::mount_setattr(tree.as_fd(), false, &attr).step(&what)?;
    Ok(tree)
}
