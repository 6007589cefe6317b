//! What a container sees at /sys/fs/cgroup: its own cgroups and nothing above them.
//!
//! On v1 a tmpfs with one bind per hierarchy, named as on the host; on v2 the one hierarchy.
//! Must not know: limits, how a cgroup is made or where (`cgroup/`).

use std::os::fd::AsFd;
use std::path::Path;

use crate::beneath::{RootDir, Want, clean};
use crate::cgroup::{CgroupMount, Version};
use crate::error::{Context, Error, Result};
use crate::mount_options::{Attributes, Bind, MountOptions, attr};
use crate::mounts::{self, Place};

/// Mounts the cgroup file system a spec asks for.
pub(crate) fn mount(place: &Place<'_>, destination: &Path, options: &MountOptions) -> Result<()> {
    let bind = MountOptions {
        bind: Bind::One,
        ..options.clone()
    };
    let v1: Vec<&CgroupMount> = place
        .cgroups
        .iter()
        .filter(|c| c.version != Version::V2)
        .collect();
    if v1.is_empty() {
        let Some(unified) = place.cgroups.first() else {
            return Err(Error::HostUnfit {
                need: format!("mount a cgroup file system at {destination:?}"),
                why: "no cgroup hierarchy is mounted here: mount cgroup2 at /sys/fs/cgroup".into(),
            });
        };
        if place.cgroup_namespace {
            // Its root is the container's cgroup. The options of the one file system are the host's affair.
            let fresh = MountOptions {
                data: Vec::new(),
                ..options.clone()
            };
            if let Ok(tree) = mounts::new_filesystem("cgroup2", "cgroup", &fresh, false) {
                return mounts::attach_bind(place, destination, tree, &bind);
            }
        }
        let tree = mounts::open_tree(&unified.dir, Bind::One)?;
        return mounts::attach_bind(place, destination, tree, &bind);
    }

    let tmpfs = MountOptions {
        attributes: Attributes {
            set: options.attributes.set & !attr::RDONLY,
            clear: 0,
        },
        data: vec![
            ("mode".into(), Some("755".into())),
            ("size".into(), Some("1m".into())),
        ],
        ..MountOptions::default()
    };
    let holder = mounts::new_filesystem("tmpfs", "tmpfs", &tmpfs, false)?;
    let target = place.root.mount_point(destination, Want::Directory)?;
    mounts::move_onto(holder.as_fd(), target.as_fd()).step_at("mount at", destination)?;
    let inside = RootDir::new(holder);
    for hierarchy in v1 {
        let tree = mounts::open_tree(&hierarchy.dir, Bind::One)?;
        let at = Place {
            root: &inside,
            ..*place
        };
        mounts::attach_bind(&at, &clean(Path::new(&hierarchy.name))?, tree, &bind)?;
        for alias in &hierarchy.links {
            rustix::fs::symlinkat(hierarchy.name.as_str(), inside.fd(), alias.as_str())
                .step_at("create symlink", destination.join(alias))?;
        }
    }
    let whole = Attributes {
        set: options.attributes.set & attr::RDONLY,
        clear: 0,
    };
    mounts::set_attributes(inside.fd(), destination, false, &whole)
}
