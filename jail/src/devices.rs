//! The content of a container's /dev: device nodes, the symlinks every program expects, ptmx.
//!
//! Nodes are made with mknod, or, where that is not allowed (user namespaces), bound from the host. Both work on a
//! descriptor of the parent directory resolved inside the root, so a symlink at /dev leads nowhere else (CVE-2026-41579).
//!
//! Must not know: which devices the cgroup lets the container use.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, makedev};
use rustix::io::Errno;

use crate::beneath::{RootDir, Want};
use crate::error::{Context, Error, Result};
use crate::mount_options::Bind;
use crate::mounts;

/// A device node to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub path: PathBuf,
    pub kind: NodeKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// What sort of node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NodeKind {
    Character { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
}

impl NodeKind {
    fn file_type(self) -> FileType {
        match self {
            NodeKind::Character { .. } => FileType::CharacterDevice,
            NodeKind::Block { .. } => FileType::BlockDevice,
            NodeKind::Fifo => FileType::Fifo,
        }
    }

    fn number(self) -> u64 {
        match self {
            NodeKind::Character { major, minor } | NodeKind::Block { major, minor } => {
                makedev(major, minor)
            }
            NodeKind::Fifo => 0,
        }
    }
}

/// The devices every Linux container has (OCI runtime spec, config-linux.md, "Default Devices").
const DEFAULTS: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// The nodes of a container: the defaults, replaced and extended by the spec's. Pure.
pub(crate) fn plan(devices: &[LinuxDevice]) -> Result<Vec<Node>> {
    let mut nodes: Vec<Node> = DEFAULTS
        .iter()
        .map(|(path, major, minor)| Node {
            path: PathBuf::from(path),
            kind: NodeKind::Character {
                major: *major,
                minor: *minor,
            },
            mode: 0o666,
            uid: 0,
            gid: 0,
        })
        .collect();
    for device in devices {
        let path = crate::beneath::clean(device.path())?;
        // Always the link to the container's own devpts.
        if path == Path::new("/dev/ptmx") {
            continue;
        }
        let number = |value: i64| {
            u32::try_from(value).map_err(|_| {
                Error::invalid(format!("device {path:?}: number {value} is out of range"))
            })
        };
        let kind = match device.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U => NodeKind::Character {
                major: number(device.major())?,
                minor: number(device.minor())?,
            },
            LinuxDeviceType::B => NodeKind::Block {
                major: number(device.major())?,
                minor: number(device.minor())?,
            },
            LinuxDeviceType::P => NodeKind::Fifo,
            LinuxDeviceType::A => {
                return Err(Error::invalid(format!("device {path:?} has no type")));
            }
        };
        let node = Node {
            kind,
            mode: device.file_mode().unwrap_or(0o666) & 0o7777,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
            path,
        };
        match nodes.iter_mut().find(|n| n.path == node.path) {
            Some(default) => *default = node,
            None => nodes.push(node),
        }
    }
    Ok(nodes)
}

/// Makes the nodes.
pub(crate) fn create(root: &RootDir, nodes: &[Node], in_userns: bool) -> Result<()> {
    let dev = root.directory(Path::new("/dev"))?;
    for node in nodes {
        // Nearly all are directly in /dev: resolve that once.
        let parent;
        let (at, name) = match (node.path.parent(), node.path.file_name()) {
            (Some(dir), Some(name)) if dir == Path::new("/dev") => (dev.as_fd(), name),
            _ => {
                let (dir, name) = root.parent(&node.path)?;
                parent = dir;
                (parent.as_fd(), name)
            }
        };
        if !in_userns || node.kind == NodeKind::Fifo {
            match make(at, name, node) {
                Err(e) if e.errno() == Some(nix::errno::Errno::EPERM) => {}
                other => {
                    other?;
                    continue;
                }
            }
        }
        bind_from_host(root, node)?;
    }
    Ok(())
}

fn make(at: BorrowedFd<'_>, name: &std::ffi::OsStr, node: &Node) -> Result<()> {
    match rustix::fs::mknodat(
        at,
        name,
        node.kind.file_type(),
        Mode::from_raw_mode(node.mode),
        node.kind.number(),
    ) {
        Ok(()) => {}
        // The image brought one; it may stay if it is the same device.
        Err(Errno::EXIST) => {
            let found = rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)
                .step_at("stat device", &node.path)?;
            if FileType::from_raw_mode(found.st_mode) != node.kind.file_type()
                || found.st_rdev != node.kind.number()
            {
                return Err(Error::Conflict {
                    what: format!(
                        "{:?} exists in the image and is not the device the spec asks for",
                        node.path
                    ),
                });
            }
            return Ok(());
        }
        Err(e) => return Err(Error::sys_at("create device", &node.path, e)),
    }
    if node.uid != 0 || node.gid != 0 {
        let owner = (Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)));
        rustix::fs::chownat(at, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
            .step_at("chown device", &node.path)?;
    }
    Ok(())
}

fn bind_from_host(root: &RootDir, node: &Node) -> Result<()> {
    let tree = mounts::open_tree(&node.path, Bind::One)?;
    let found = rustix::fs::fstat(&tree).step_at("stat device", &node.path)?;
    if FileType::from_raw_mode(found.st_mode) != node.kind.file_type()
        || found.st_rdev != node.kind.number()
    {
        return Err(Error::HostUnfit {
            need: format!("provide device {:?} in a user namespace", node.path),
            why: "the host has a different device, or none, at this path".into(),
        });
    }
    let target = root.mount_point(&node.path, Want::File)?;
    mounts::move_onto(tree.as_fd(), target.as_fd()).step_at("bind device at", &node.path)
}

/// Makes /dev/fd, stdin, stdout, stderr, core and ptmx. What is there already stays, ptmx excepted.
pub(crate) fn link(root: &RootDir) -> Result<()> {
    let dev = root.directory(Path::new("/dev"))?;
    let place = |target: &str, name: &str| match rustix::fs::symlinkat(target, &dev, name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(Error::sys_at(
            "create symlink",
            Path::new("/dev").join(name),
            e,
        )),
    };
    for (name, target) in LINKS {
        place(target, name)?;
    }
    if root.open(Path::new("/proc/kcore"), OFlags::PATH).is_ok() {
        place("/proc/kcore", "core")?;
    }
    match rustix::fs::symlinkat("pts/ptmx", &dev, "ptmx") {
        Ok(()) => return Ok(()),
        Err(Errno::EXIST) => {}
        Err(e) => return Err(Error::sys_at("create symlink", "/dev/ptmx", e)),
    }
    match rustix::fs::unlinkat(&dev, "ptmx", AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        // Bound there by the spec: its business.
        Err(Errno::BUSY | Errno::ROFS) => return Ok(()),
        Err(e) => return Err(Error::sys_at("remove", "/dev/ptmx", e)),
    }
    place("pts/ptmx", "ptmx")
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxDeviceBuilder;

    fn device(path: &str, typ: LinuxDeviceType, major: i64) -> LinuxDevice {
        LinuxDeviceBuilder::default()
            .path(path)
            .typ(typ)
            .major(major)
            .minor(7i64)
            .build()
            .expect("device")
    }

    #[test]
    fn the_specs_devices_replace_defaults_and_ptmx_is_left_out() {
        let nodes = plan(&[
            device("/dev/null", LinuxDeviceType::B, 9),
            device("/dev/ptmx", LinuxDeviceType::C, 5),
            device("/dev/../dev/x/y", LinuxDeviceType::P, 0),
        ])
        .expect("plans");
        assert_eq!(nodes.len(), DEFAULTS.len() + 1);
        assert_eq!(nodes[0].kind, NodeKind::Block { major: 9, minor: 7 });
        assert_eq!(nodes[6].path, Path::new("/dev/x/y"));
        assert!(plan(&[device("/dev/x", LinuxDeviceType::C, -1)]).is_err());
    }
}
