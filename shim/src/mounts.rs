//! The shim's mount namespace: the root file system is mounted in it and nowhere else.
//!
//! ```text
//!   host's namespace ── unshare ──▶ shim's, everything slave: what the host mounts appears here, nothing goes back
//!                                     DIR/rootfs     the overlay
//!                                     DIR/binds/N    bind mounts asked to be shared: cloned before all became slave,
//!                                                    so that these, and only these, stay peers of the host's
//! ```
//!
//! When the shim ends, whatever way, the namespace goes and everything mounted in it.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use caisson_protocol::layout::{BINDS, ROOTFS};
use caisson_protocol::{Error, Rootfs};
use caisson_supervisor::jail_error;
use nix::sched::{CloneFlags, unshare};
use oci_spec::runtime::{Mount, Spec};
use rustix::fs::CWD;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount,
    open_tree, unmount,
};

/// Moves this process into a mount namespace of its own, still connected with the host's.
pub fn enter_namespace() -> Result<(), Error> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|e| Error::failed("cannot make a mount namespace", e))
}

/// Mounts the root file system beneath `dir`, where it is now, and cuts the namespace off from the host's.
pub fn mount(dir: &Path, rootfs: &Rootfs, spec: &mut Spec) -> Result<PathBuf, Error> {
    let shared = clone_shared_binds(spec)?;
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(|e| Error::failed("cannot separate the mount namespace", e))?;
    for (n, (mount_index, tree)) in shared.into_iter().enumerate() {
        let target = attach_bind(dir, n, &tree)?;
        if let Some(mount) = spec
            .mounts_mut()
            .as_mut()
            .and_then(|m| m.get_mut(mount_index))
        {
            mount.set_source(Some(target));
        }
    }
    match rootfs {
        Rootfs::Directory(path) => Ok(path.clone()),
        Rootfs::Block { .. } => Err(Error::invalid(
            "a root file system of block images belongs into a microVM",
        )),
        Rootfs::Overlay { lower, upper, work } => {
            let target = dir.join(ROOTFS);
            make_dir(&target)?;
            let maps = caisson_jail::IdMappings::of_spec(spec);
            caisson_jail::mount_overlay(lower, upper, work, &target, maps.as_ref())
                .map_err(jail_error)?;
            Ok(target)
        }
    }
}

/// Unmounts whatever `mount` mounted; idempotent.
pub fn unmount_all(dir: &Path) -> Result<(), Error> {
    let mut targets = vec![dir.join(ROOTFS)];
    targets.extend(
        fs::read_dir(dir.join(BINDS))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path()),
    );
    for target in targets {
        // Several layers if something was mounted on top.
        loop {
            match unmount(&target, UnmountFlags::NOFOLLOW) {
                Ok(()) => {}
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => break,
                Err(rustix::io::Errno::BUSY) => {
                    unmount(&target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH).map_err(
                        |e| Error::failed(format!("cannot unmount {}", target.display()), e),
                    )?;
                }
                Err(e) => {
                    return Err(Error::failed(
                        format!("cannot unmount {}", target.display()),
                        e,
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Which mounts of the spec are bind mounts that share propagation, and whether with what is mounted below.
fn shared_binds(mounts: &[Mount]) -> Vec<(usize, PathBuf, bool)> {
    let has = |mount: &Mount, names: &[&str]| {
        mount
            .options()
            .iter()
            .flatten()
            .any(|option| names.contains(&option.as_str()))
    };
    let bind =
        |mount: &Mount| mount.typ().as_deref() == Some("bind") || has(mount, &["bind", "rbind"]);
    mounts
        .iter()
        .enumerate()
        .filter(|(_, mount)| bind(mount) && has(mount, &["shared", "rshared"]))
        .filter_map(|(n, mount)| {
            Some((
                n,
                mount.source().clone()?,
                has(mount, &["rbind", "rshared"]),
            ))
        })
        .collect()
}

fn clone_shared_binds(spec: &Spec) -> Result<Vec<(usize, OwnedFd)>, Error> {
    shared_binds(spec.mounts().as_deref().unwrap_or_default())
        .into_iter()
        .map(|(n, source, recursive)| {
            let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            if recursive {
                flags |= OpenTreeFlags::AT_RECURSIVE;
            }
            let tree = open_tree(CWD, &source, flags).map_err(|e| {
                Error::failed(
                    format!("cannot clone the bind mount's source {}", source.display()),
                    e,
                )
            })?;
            Ok((n, tree))
        })
        .collect()
}

fn attach_bind(dir: &Path, n: usize, tree: &OwnedFd) -> Result<PathBuf, Error> {
    let binds = dir.join(BINDS);
    make_dir(&binds)?;
    let target = binds.join(n.to_string());
    let is_dir =
        nix::sys::stat::fstat(tree).is_ok_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFDIR);
    if is_dir {
        make_dir(&target)?;
    } else {
        fs::File::create(&target)
            .map_err(|e| Error::failed(format!("cannot make {}", target.display()), e))?;
    }
    move_mount(
        tree,
        "",
        CWD,
        &target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(|e| Error::failed(format!("cannot mount at {}", target.display()), e))?;
    Ok(target)
}

fn make_dir(path: &Path) -> Result<(), Error> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(Error::failed(format!("cannot make {}", path.display()), e))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bind_mounts_that_ask_for_it_are_shared() {
        let mounts: Vec<Mount> = serde_json::from_str(
            r#"[{"destination":"/proc","type":"proc","source":"proc"},
                {"destination":"/a","type":"bind","source":"/a","options":["rbind","rprivate"]},
                {"destination":"/b","type":"bind","source":"/b","options":["rbind","rshared"]},
                {"destination":"/c","source":"/c","options":["bind","shared","ro"]},
                {"destination":"/d","type":"tmpfs","source":"tmpfs","options":["shared"]}]"#,
        )
        .expect("mounts");
        assert_eq!(
            shared_binds(&mounts),
            [(2, "/b".into(), true), (3, "/c".into(), false)]
        );
    }
}
