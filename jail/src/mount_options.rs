//! What the option strings of an OCI mount mean: a pure plan, performed by `mounts.rs`.
//!
//! The vocabulary is that of the OCI runtime spec (config.md, "Linux mount options") and of mount(8).
//! Must not know: file descriptors, roots, whether the mount succeeds.

use crate::error::{Error, Result};

/// Mount attributes (linux/mount.h), as mount_setattr(2) takes them.
pub(crate) mod attr {
    pub(crate) const RDONLY: u64 = 0x1;
    pub(crate) const NOSUID: u64 = 0x2;
    pub(crate) const NODEV: u64 = 0x4;
    pub(crate) const NOEXEC: u64 = 0x8;
    pub(crate) const ATIME_MASK: u64 = 0x70;
    pub(crate) const RELATIME: u64 = 0x0;
    pub(crate) const NOATIME: u64 = 0x10;
    pub(crate) const STRICTATIME: u64 = 0x20;
    pub(crate) const NODIRATIME: u64 = 0x80;
    pub(crate) const IDMAP: u64 = 0x10_0000;
    pub(crate) const NOSYMFOLLOW: u64 = 0x20_0000;
}

/// Whether a mount shows an existing tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Bind {
    /// A new mount of a file system.
    #[default]
    No,
    /// `bind`: one mount.
    One,
    /// `rbind`: with everything mounted below.
    Recursive,
}

/// Whether ids are shifted by the mount's mappings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Idmap {
    #[default]
    No,
    One,
    Recursive,
}

/// Attributes to set and to clear on a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub set: u64,
    pub clear: u64,
}

impl Attributes {
    pub(crate) fn is_empty(&self) -> bool {
        self.set == 0 && self.clear == 0
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Set(bits) => {
                self.set |= bits;
                self.clear &= !bits;
            }
            Change::Clear(bits) => {
                self.set &= !bits;
                self.clear |= bits;
            }
            // Access-time modes are one field: changing it needs the whole mask cleared (mount_setattr(2)).
            Change::Atime(mode) => {
                self.set = self.set & !attr::ATIME_MASK | mode;
                self.clear |= attr::ATIME_MASK;
            }
        }
    }
}

/// A change of propagation: the `MS_*` flag and whether it covers the mounts below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Propagation {
    pub flag: u64,
    pub recursive: bool,
}

/// The meaning of a mount's options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MountOptions {
    pub bind: Bind,
    pub remount: bool,
    /// For the mount itself.
    pub attributes: Attributes,
    /// For it and everything below (`rro`...).
    pub recursive: Attributes,
    pub propagation: Vec<Propagation>,
    /// For the file system: `key` or `key=value`.
    pub data: Vec<(String, Option<String>)>,
    /// Copy what the image has there into the new tmpfs.
    pub copy_up: bool,
    pub idmap: Idmap,
}

enum Change {
    Set(u64),
    Clear(u64),
    Atime(u64),
}

fn attribute(name: &str) -> Option<Change> {
    use Change::{Atime, Clear, Set};
    Some(match name {
        "ro" => Set(attr::RDONLY),
        "rw" => Clear(attr::RDONLY),
        "nosuid" => Set(attr::NOSUID),
        "suid" => Clear(attr::NOSUID),
        "nodev" => Set(attr::NODEV),
        "dev" => Clear(attr::NODEV),
        "noexec" => Set(attr::NOEXEC),
        "exec" => Clear(attr::NOEXEC),
        "nodiratime" => Set(attr::NODIRATIME),
        "diratime" => Clear(attr::NODIRATIME),
        "nosymfollow" => Set(attr::NOSYMFOLLOW),
        "symfollow" => Clear(attr::NOSYMFOLLOW),
        "noatime" => Atime(attr::NOATIME),
        "strictatime" => Atime(attr::STRICTATIME),
        "relatime" | "atime" | "norelatime" | "nostrictatime" => Atime(attr::RELATIME),
        _ => return None,
    })
}

fn propagation(name: &str) -> Option<Propagation> {
    let (recursive, base) = match name.strip_prefix('r') {
        Some(rest) => (true, rest),
        None => (false, name),
    };
    let flag = match base {
        "private" => libc::MS_PRIVATE,
        "slave" => libc::MS_SLAVE,
        "shared" => libc::MS_SHARED,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return None,
    };
    Some(Propagation { flag, recursive })
}

/// Reads a mount's options. Unknown words go to the file system, which refuses what it does not know.
pub(crate) fn parse(options: &[String]) -> Result<MountOptions> {
    let mut plan = MountOptions::default();
    for option in options {
        let option = option.as_str();
        if let Some(change) = attribute(option) {
            plan.attributes.apply(change);
        } else if let Some(change) = propagation(option) {
            plan.propagation.push(change);
        } else if let Some(change) = option.strip_prefix('r').and_then(attribute) {
            plan.recursive.apply(change);
        } else {
            match option {
                "bind" => plan.bind = Bind::One,
                "rbind" => plan.bind = Bind::Recursive,
                "remount" => plan.remount = true,
                "tmpcopyup" => plan.copy_up = true,
                "idmap" => plan.idmap = Idmap::One,
                "ridmap" => plan.idmap = Idmap::Recursive,
                // Defaults, and switches that mean nothing to a fresh mount.
                "" | "defaults" | "async" | "loud" | "silent" | "nolazytime" | "noiversion"
                | "nomand" => {}
                data => plan.data.push(match data.split_once('=') {
                    Some((key, value)) => (key.to_string(), Some(value.to_string())),
                    None => (data.to_string(), None),
                }),
            }
        }
    }
    if plan.bind != Bind::No && plan.copy_up {
        return Err(Error::invalid(
            "mount option tmpcopyup is for tmpfs, not for a bind mount",
        ));
    }
    Ok(plan)
}

/// The propagation a spec names for its root file system.
pub(crate) fn root_propagation(name: &str) -> Result<Propagation> {
    propagation(name)
        .ok_or_else(|| Error::invalid(format!("rootfsPropagation {name:?} is not one of private, slave, shared, unbindable (or with r before it)")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(options: &[&str]) -> MountOptions {
        parse(&options.iter().map(|s| s.to_string()).collect::<Vec<_>>()).expect("parses")
    }

    #[test]
    fn the_later_option_wins() {
        assert_eq!(
            parsed(&["ro", "rw"]).attributes,
            Attributes {
                set: 0,
                clear: attr::RDONLY
            }
        );
        assert_eq!(
            parsed(&["rw", "ro"]).attributes,
            Attributes {
                set: attr::RDONLY,
                clear: 0
            }
        );
        let atime = parsed(&["noatime", "strictatime"]).attributes;
        assert_eq!(
            atime,
            Attributes {
                set: attr::STRICTATIME,
                clear: attr::ATIME_MASK
            }
        );
    }

    #[test]
    fn r_prefixes_mean_three_different_things() {
        let plan = parsed(&["rbind", "rro", "rprivate", "relatime", "ro"]);
        assert_eq!(plan.bind, Bind::Recursive);
        assert_eq!(
            plan.recursive,
            Attributes {
                set: attr::RDONLY,
                clear: 0
            }
        );
        assert_eq!(
            plan.propagation,
            [Propagation {
                flag: libc::MS_PRIVATE,
                recursive: true
            }]
        );
        // "relatime" is not a recursive "elatime".
        assert_eq!(plan.attributes.clear, attr::ATIME_MASK);
        assert!(plan.data.is_empty());
    }

    #[test]
    fn the_rest_belongs_to_the_file_system() {
        let plan = parsed(&[
            "nosuid",
            "mode=755",
            "size=65536k",
            "newinstance",
            "tmpcopyup",
        ]);
        assert!(plan.copy_up);
        assert_eq!(
            plan.data,
            [
                ("mode".into(), Some("755".into())),
                ("size".into(), Some("65536k".into())),
                ("newinstance".into(), None)
            ]
        );
    }
}
