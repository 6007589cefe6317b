//! What this host offers containers: read from `/proc` and `/sys`, nothing tried.

use std::fs;
use std::path::Path;

use crate::{Capabilities, Isolation, RootfsForm};

/// The controllers we speak of, by their v2 names, and what v1 calls them.
const CONTROLLERS: [(&str, &str); 5] = [
    ("cpu", "cpu"),
    ("cpuset", "cpuset"),
    ("io", "blkio"),
    ("memory", "memory"),
    ("pids", "pids"),
];

pub(super) fn of_this_host() -> Capabilities {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let v2 = |mount_point: &str| {
        fs::read_to_string(Path::new(mount_point).join("cgroup.controllers")).unwrap_or_default()
    };
    Capabilities {
        isolation: Isolation::Container,
        rootfs: RootfsForm::Overlay,
        share_host_namespaces: true,
        host_devices: true,
        snapshot: false,
        controllers: controllers(&mounts, v2),
    }
}

/// From the mount table, and the controllers that a v2 hierarchy at a mount point has.
fn controllers(mounts: &str, v2: impl Fn(&str) -> String) -> Vec<String> {
    let mut found = Vec::new();
    for mount in mounts.lines() {
        let mut fields = mount.split(' ').skip(1);
        let (Some(mount_point), Some(kind), Some(options)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        match kind {
            "cgroup" => found.extend(
                options
                    .split(',')
                    .filter_map(|option| CONTROLLERS.iter().find(|(_, v1)| *v1 == option))
                    .map(|(name, _)| *name),
            ),
            "cgroup2" => {
                let there = v2(mount_point);
                let there: Vec<&str> = there.split_whitespace().collect();
                found.extend(
                    CONTROLLERS
                        .iter()
                        .map(|(name, _)| *name)
                        .filter(|name| there.contains(name)),
                );
            }
            _ => {}
        }
    }
    found.sort_unstable();
    found.dedup();
    found.into_iter().map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_v2_and_both() {
        let v1 = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n\
                  cgroup /sys/fs/cgroup/blkio cgroup rw,relatime,blkio 0 0\n\
                  cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(controllers(v1, |_| String::new()), ["cpu", "io"]);
        assert_eq!(
            controllers(v1, |_| "memory cpu hugetlb\n".into()),
            ["cpu", "io", "memory"]
        );
        let v2 = "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n";
        assert_eq!(
            controllers(v2, |_| "cpuset cpu io memory pids rdma".into()),
            ["cpu", "cpuset", "io", "memory", "pids"]
        );
        assert!(controllers("proc /proc proc rw 0 0\n", |_| "cpu".into()).is_empty());
    }
}
