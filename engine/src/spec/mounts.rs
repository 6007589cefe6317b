//! What is mounted where: Docker's default mounts, `-v`, `--mount`, `--tmpfs`.
//!
//! Reading is pure; whether a bind mount's source exists is looked at by [`Requested::prepare`].
//!
//! Must not know: how a mount is made.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use caisson_api as api;
use oci_spec::runtime::{Mount, MountBuilder};

use crate::error::{Error, Result};

/// A mount that the user asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Requested {
    pub target: PathBuf,
    pub read_only: bool,
    pub what: What,
    /// The options as written, for inspect.
    pub mode: String,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// A path of the host.
    Bind {
        source: PathBuf,
        /// `-v` makes a missing directory, `--mount` refuses.
        create: bool,
        recursive: bool,
        propagation: Option<String>,
        /// The read-only flag covers what is mounted below, too.
        recursive_read_only: bool,
    },
    /// Memory.
    Tmpfs { options: Vec<String> },
}

const PROPAGATIONS: [&str; 6] = [
    "private", "rprivate", "shared", "rshared", "slave", "rslave",
];

/// Everything that the host configuration asks for, in the order of its targets' depth.
pub(crate) fn requested(host: &api::HostConfig) -> Result<Vec<Requested>> {
    let mut all = Vec::new();
    for bind in host.binds.iter().flatten() {
        all.push(read_bind(bind)?);
    }
    for mount in host.mounts.iter().flatten() {
        all.push(read_mount(mount)?);
    }
    for (target, options) in host.tmpfs.iter().flatten() {
        let target = check_target(target, "tmpfs mount")?;
        let options: Vec<String> = options
            .split(',')
            .filter(|o| !o.is_empty())
            .map(str::to_string)
            .collect();
        let (read_only, options) = tmpfs_options(&options)?;
        all.push(Requested {
            target,
            read_only,
            mode: String::new(),
            what: What::Tmpfs { options },
        });
    }
    let mut seen = BTreeSet::new();
    for r in &all {
        if !seen.insert(r.target.clone()) {
            return Err(Error::invalid(format!(
                "Duplicate mount point: {}",
                r.target.display()
            )));
        }
    }
    all.sort_by_key(|r| r.target.components().count());
    Ok(all)
}

/// An absolute, normal path other than `/`.
fn check_target(target: &str, what: &str) -> Result<PathBuf> {
    if target.is_empty() {
        return Err(Error::invalid(format!(
            "invalid {what}: the path in the container is missing"
        )));
    }
    let path = Path::new(target);
    if !path.is_absolute() {
        return Err(Error::invalid(format!(
            "invalid mount path: '{target}' mount path must be absolute"
        )));
    }
    let mut clean = PathBuf::from("/");
    for c in path.components() {
        match c {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if clean == Path::new("/") {
        return Err(Error::invalid(
            "invalid specification: destination can't be '/'",
        ));
    }
    Ok(clean)
}

fn no_named_volume(name: &str) -> Error {
    Error::not_implemented(format!(
        "named volume \"{name}\" cannot be used: this version of caisson has no volumes yet; mount a directory of the host \
         instead (-v /path/on/host:/path/in/container)"
    ))
}

/// `-v SOURCE:TARGET[:OPTIONS]`.
fn read_bind(text: &str) -> Result<Requested> {
    let bad = || Error::invalid(format!("invalid volume specification: '{text}'"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts.as_slice() {
        [source, target] => (*source, *target, ""),
        [source, target, options] => (*source, *target, *options),
        _ => return Err(bad()),
    };
    if source.is_empty() || target.is_empty() {
        return Err(bad());
    }
    if !source.starts_with('/') {
        return Err(
            if source.starts_with('.') || source.starts_with('~') || source.contains('/') {
                Error::invalid(format!(
                    "invalid volume specification: '{text}': \"{source}\" includes invalid characters for a local volume name; if \
                 you meant a directory of the host, use its absolute path"
                ))
            } else {
                no_named_volume(source)
            },
        );
    }
    let target = check_target(target, "volume specification")?;
    let mut read_only = None;
    let mut propagation: Option<String> = None;
    let bad_mode = || Error::invalid(format!("invalid mode: {options}"));
    for option in options.split(',').filter(|o| !o.is_empty()) {
        match option {
            "ro" | "rw" if read_only.is_none() => read_only = Some(option == "ro"),
            // SELinux relabelling and macOS consistency: nothing to do here.
            "z" | "Z" | "consistent" | "cached" | "delegated" | "default" | "nocopy" => {}
            p if PROPAGATIONS.contains(&p) && propagation.is_none() => propagation = Some(p.into()),
            _ => return Err(bad_mode()),
        }
    }
    Ok(Requested {
        target,
        read_only: read_only.unwrap_or(false),
        mode: options.into(),
        what: What::Bind {
            source: source.into(),
            create: true,
            recursive: true,
            propagation,
            recursive_read_only: true,
        },
    })
}

/// `--mount`.
fn read_mount(mount: &api::Mount) -> Result<Requested> {
    let kind = mount.kind.as_str();
    let bad =
        |why: &str| Error::invalid(format!("invalid mount config for type \"{kind}\": {why}"));
    if mount.target.is_empty() {
        return Err(bad("field Target must not be empty"));
    }
    let target = check_target(&mount.target, "mount").map_err(|e| bad(&e.message))?;
    match kind {
        "bind" => {
            if mount.source.is_empty() {
                return Err(bad("field Source must not be empty"));
            }
            if !mount.source.starts_with('/') {
                return Err(bad(&format!(
                    "invalid mount path: '{}' mount path must be absolute",
                    mount.source
                )));
            }
            if mount.tmpfs_options.is_some() {
                return Err(bad("field TmpfsOptions must not be specified"));
            }
            if mount.volume_options.is_some() {
                return Err(bad("field VolumeOptions must not be specified"));
            }
            let options = mount.bind_options.clone().unwrap_or_default();
            let propagation = Some(options.propagation).filter(|p| !p.is_empty());
            if let Some(p) = &propagation
                && !PROPAGATIONS.contains(&p.as_str())
            {
                return Err(bad(&format!("invalid propagation: \"{p}\"")));
            }
            Ok(Requested {
                target,
                read_only: mount.read_only,
                mode: String::new(),
                what: What::Bind {
                    source: mount.source.clone().into(),
                    create: options.create_mountpoint,
                    recursive: !options.non_recursive,
                    propagation,
                    recursive_read_only: !options.read_only_non_recursive && !options.non_recursive,
                },
            })
        }
        "tmpfs" => {
            if !mount.source.is_empty() {
                return Err(bad("field Source must not be specified"));
            }
            let given = mount.tmpfs_options.clone().unwrap_or_default();
            let mut options: Vec<String> = Vec::new();
            if given.size_bytes < 0 {
                return Err(bad("invalid tmpfs size: must not be negative"));
            }
            if given.size_bytes > 0 {
                options.push(format!("size={}", given.size_bytes));
            }
            if given.mode != 0 {
                options.push(format!("mode={:o}", given.mode));
            }
            for pair in given.options.iter().flatten() {
                options.push(pair.join("="));
            }
            if mount.read_only {
                options.push("ro".into());
            }
            let (read_only, options) = tmpfs_options(&options)?;
            Ok(Requested {
                target,
                read_only,
                mode: String::new(),
                what: What::Tmpfs { options },
            })
        }
        "volume" | "" => Err(no_named_volume(if mount.source.is_empty() {
            "(anonymous)"
        } else {
            &mount.source
        })),
        "image" | "npipe" | "cluster" => Err(Error::not_implemented(format!(
            "mounts of type \"{kind}\" are not available here; use bind or tmpfs"
        ))),
        other => Err(Error::invalid(format!("mount type unknown: \"{other}\""))),
    }
}

/// Docker's tmpfs defaults with the user's options over them; refuses what tmpfs does not know.
fn tmpfs_options(given: &[String]) -> Result<(bool, Vec<String>)> {
    const OPPOSITES: [(&str, &str); 4] = [
        ("noexec", "exec"),
        ("nosuid", "suid"),
        ("nodev", "dev"),
        ("rw", "ro"),
    ];
    const FLAGS: [&str; 22] = [
        "exec",
        "noexec",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "rw",
        "ro",
        "sync",
        "async",
        "dirsync",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "mand",
        "nomand",
        "private",
    ];
    const VALUES: [&str; 8] = [
        "size",
        "mode",
        "uid",
        "gid",
        "nr_inodes",
        "nr_blocks",
        "mpol",
        "huge",
    ];
    let mut options: Vec<String> = Vec::new();
    for (default, opposite) in OPPOSITES {
        if !given.iter().any(|o| o == opposite || o == default) {
            options.push(default.into());
        }
    }
    let mut read_only = false;
    for option in given {
        let known = match option.split_once('=') {
            Some((key, value)) => VALUES.contains(&key) && !value.is_empty(),
            None => FLAGS.contains(&option.as_str()),
        };
        if !known {
            return Err(Error::invalid(format!(
                "invalid tmpfs option [\"{option}\"]"
            )));
        }
        read_only |= option == "ro";
        options.push(option.clone());
    }
    Ok((read_only, options))
}

impl Requested {
    /// For `--mount`: what the source must be when the container is made.
    pub(crate) fn check_source(&self) -> Result<()> {
        match &self.what {
            What::Bind {
                source,
                create: false,
                ..
            } if !source.exists() => Err(Error::invalid(format!(
                "invalid mount config for type \"bind\": bind source path does not exist: {}",
                source.display()
            ))),
            What::Bind { .. } | What::Tmpfs { .. } => Ok(()),
        }
    }

    /// Before a start: makes a missing source where that was promised. Blocks.
    pub(crate) fn prepare(&self) -> Result<()> {
        match &self.what {
            What::Bind {
                source,
                create: true,
                ..
            } if !source.exists() => std::fs::create_dir_all(source).map_err(|e| {
                Error::invalid(format!(
                    "error while creating mount source path '{}': {e}",
                    source.display()
                ))
            }),
            _ => self.check_source(),
        }
    }

    /// As an OCI mount.
    pub(crate) fn to_oci(&self) -> Mount {
        let (kind, source, options) = match &self.what {
            What::Bind {
                source,
                recursive,
                propagation,
                recursive_read_only,
                ..
            } => {
                let mut options = vec![if *recursive { "rbind" } else { "bind" }.to_string()];
                if self.read_only {
                    options.push("ro".into());
                    if *recursive_read_only {
                        options.push("rro".into());
                    }
                }
                options.push(propagation.clone().unwrap_or_else(|| "rprivate".into()));
                ("bind", source.clone(), options)
            }
            What::Tmpfs { options } => ("tmpfs", PathBuf::from("tmpfs"), options.clone()),
        };
        mount(&self.target, kind, &source, options)
    }

    /// As inspect shows it. Docker lists `--tmpfs` mounts only in the host configuration, `--mount type=tmpfs` here too.
    pub(crate) fn to_api(&self) -> api::MountPoint {
        let (kind, source, propagation) = match &self.what {
            What::Bind {
                source,
                propagation,
                ..
            } => (
                "bind",
                source.display().to_string(),
                propagation.clone().unwrap_or_else(|| "rprivate".into()),
            ),
            What::Tmpfs { .. } => ("tmpfs", String::new(), String::new()),
        };
        api::MountPoint {
            kind: kind.into(),
            source,
            destination: self.target.display().to_string(),
            mode: self.mode.clone(),
            rw: !self.read_only,
            propagation,
            ..api::MountPoint::default()
        }
    }
}

fn mount(target: &Path, kind: &str, source: &Path, options: Vec<String>) -> Mount {
    MountBuilder::default()
        .destination(target)
        .typ(kind)
        .source(source)
        .options(options)
        .build()
        .expect("every field of a mount is optional but its destination, which is set")
}

/// Docker's default mounts.
pub(crate) struct Defaults {
    pub privileged: bool,
    /// A `/dev/shm` of its own.
    pub own_shm: bool,
    /// The host's (`--ipc host`).
    pub host_shm: bool,
    pub shm_size_bytes: u64,
    pub cgroup_writable: bool,
}

impl Defaults {
    /// In the order in which they are mounted.
    pub(crate) fn mounts(&self) -> Vec<Mount> {
        let own = |list: &[&str]| list.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        let at = |target: &str, kind: &str, source: &str, options: Vec<String>| {
            mount(Path::new(target), kind, Path::new(source), options)
        };
        let mut all = vec![
            at("/proc", "proc", "proc", own(&["nosuid", "noexec", "nodev"])),
            at(
                "/dev",
                "tmpfs",
                "tmpfs",
                own(&["nosuid", "strictatime", "mode=755", "size=65536k"]),
            ),
            at(
                "/dev/pts",
                "devpts",
                "devpts",
                own(&[
                    "nosuid",
                    "noexec",
                    "newinstance",
                    "ptmxmode=0666",
                    "mode=0620",
                    "gid=5",
                ]),
            ),
        ];
        let mut sys = own(&["nosuid", "noexec", "nodev"]);
        if !self.privileged {
            sys.push("ro".into());
        }
        all.push(at("/sys", "sysfs", "sysfs", sys));
        let mut cgroup = own(&["nosuid", "noexec", "nodev", "relatime"]);
        if !(self.privileged || self.cgroup_writable) {
            cgroup.insert(0, "ro".into());
        }
        all.push(at("/sys/fs/cgroup", "cgroup", "cgroup", cgroup));
        // shows the queues of whichever IPC namespace it is mounted in, the host's as well
        all.push(at(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            own(&["nosuid", "noexec", "nodev"]),
        ));
        if self.host_shm {
            all.push(at(
                "/dev/shm",
                "bind",
                "/dev/shm",
                own(&["rbind", "rprivate", "nosuid", "noexec", "nodev"]),
            ));
        } else if self.own_shm {
            let mut options = own(&["nosuid", "noexec", "nodev", "mode=1777"]);
            options.push(format!("size={}", self.shm_size_bytes));
            all.push(at("/dev/shm", "tmpfs", "shm", options));
        }
        all
    }
}

/// A file of ours bound over one of the image's (`/etc/hosts`).
pub(crate) fn bind_file(source: &Path, target: &str) -> Mount {
    mount(
        Path::new(target),
        "bind",
        source,
        vec!["bind".into(), "rprivate".into()],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binds(list: &[&str]) -> Result<Vec<Requested>> {
        requested(&api::HostConfig {
            binds: Some(list.iter().map(|s| s.to_string()).collect()),
            ..Default::default()
        })
    }

    #[test]
    fn volumes_flag() {
        let r = binds(&["/a/b/c:/x/y:ro,rshared", "/src:/d"]).unwrap();
        assert_eq!(r[0].target, Path::new("/d"), "parents are mounted first");
        assert!(r[1].read_only);
        let oci = r[1].to_oci();
        assert_eq!(
            oci.options().as_ref().unwrap(),
            &["rbind", "ro", "rro", "rshared"]
        );
        assert_eq!(
            r[0].to_oci().options().as_ref().unwrap(),
            &["rbind", "rprivate"]
        );
    }

    #[test]
    fn bad_volumes_are_told_apart() {
        let e = |text: &str| binds(&[text]).unwrap_err().message;
        assert!(e("data:/x").contains("named volume \"data\""));
        assert!(e("./data:/x").contains("absolute path"));
        assert!(e("/a").contains("invalid volume specification"));
        assert!(e("/a:/b:c:d").contains("invalid volume specification"));
        assert!(e("/a:b").contains("must be absolute"));
        assert!(e("/a:/").contains("destination can't be '/'"));
        assert!(e("/a:/x/..").contains("destination can't be '/'"));
        assert!(e("/a:/b:rx").contains("invalid mode: rx"));
        assert!(
            binds(&["/a:/x", "/b:/x/"])
                .unwrap_err()
                .message
                .contains("Duplicate mount point: /x")
        );
    }

    #[test]
    fn mount_flag() {
        let one = |m: api::Mount| {
            requested(&api::HostConfig {
                mounts: Some(vec![m]),
                ..Default::default()
            })
        };
        let bind = api::Mount {
            kind: "bind".into(),
            source: "/nowhere/at/all".into(),
            target: "/x".into(),
            ..Default::default()
        };
        let r = one(bind.clone()).unwrap();
        assert_eq!(
            r[0].check_source().unwrap_err().message,
            "invalid mount config for type \"bind\": bind source path does not exist: /nowhere/at/all"
        );
        assert!(
            one(api::Mount {
                source: String::new(),
                ..bind.clone()
            })
            .unwrap_err()
            .message
            .contains("field Source must not be empty")
        );
        assert!(
            one(api::Mount {
                kind: "volume".into(),
                source: "v".into(),
                target: "/x".into(),
                ..Default::default()
            })
            .is_err()
        );
        let tmpfs = api::Mount {
            kind: "tmpfs".into(),
            target: "/t".into(),
            tmpfs_options: Some(api::TmpfsOptions {
                size_bytes: 1024,
                mode: 0o1770,
                ..Default::default()
            }),
            ..Default::default()
        };
        let oci = one(tmpfs).unwrap()[0].to_oci();
        assert_eq!(
            oci.options().as_ref().unwrap(),
            &["noexec", "nosuid", "nodev", "rw", "size=1024", "mode=1770"]
        );
    }

    #[test]
    fn tmpfs_flag() {
        let one = |o: &str| {
            requested(&api::HostConfig {
                tmpfs: Some([("/t".to_string(), o.to_string())].into()),
                ..Default::default()
            })
        };
        assert_eq!(
            one("exec,size=1m").unwrap()[0]
                .to_oci()
                .options()
                .as_ref()
                .unwrap(),
            &["nosuid", "nodev", "rw", "exec", "size=1m"]
        );
        assert!(
            one("lowerdir=/etc")
                .unwrap_err()
                .message
                .contains("invalid tmpfs option")
        );
        assert!(one("size=").is_err());
    }
}
