//! Which cgroup hierarchies are mounted here and where: read from `/proc/self/mountinfo`, `/proc/self/cgroup` and
//! `cgroup.controllers`. Knows nothing of limits.
//!
//! ```text
//! v1      one hierarchy per controller (or a few of them), each a mount of type cgroup; name=systemd has none
//! v2      one hierarchy, a mount of type cgroup2, all controllers
//! hybrid  v1, plus a cgroup2 mount with the controllers that no v1 hierarchy took (often none)
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use nix::unistd::Pid;

use super::error::Error;

/// Version of one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    /// cgroup v1, with its mount options: `cpu,cpuacct` or `name=systemd`.
    V1 {
        /// What `mount -t cgroup -o` needs to mount the same hierarchy.
        options: String,
    },
    /// cgroup v2.
    V2,
}

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// v1 or v2.
    pub version: Version,
    /// Controllers: v1 names on v1, v2 names on v2. Empty for named ones.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Which of its cgroups is mounted there; `/` except inside containers.
    pub mount_root: PathBuf,
    /// The cgroup of this process, as `/proc/self/cgroup` says.
    pub own: PathBuf,
}

impl Hierarchy {
    /// The directory of the cgroup `path`. Absolute: below the mount point. Relative: below this process' cgroup on v1, beside
    /// it on v2, because there a cgroup with processes cannot hand controllers to its children.
    pub fn dir(&self, path: &Path) -> PathBuf {
        if let Ok(below_root) = path.strip_prefix("/") {
            return self.mount_point.join(below_root);
        }
        let own = self
            .own
            .strip_prefix(&self.mount_root)
            .unwrap_or(Path::new(""));
        let base = match self.version {
            Version::V1 { .. } => own,
            Version::V2 => own.parent().unwrap_or(own),
        };
        self.mount_point.join(base).join(path)
    }
}

/// Everything that is mounted, v2 (if any) first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The hierarchies.
    pub hierarchies: Vec<Hierarchy>,
}

impl Layout {
    /// Reads the layout of this process.
    pub fn detect() -> Result<Layout, Error> {
        let read = |path: &str| {
            std::fs::read(path).map_err(|source| Error::Read {
                path: path.into(),
                source,
            })
        };
        let mut layout = parse(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?);
        for hierarchy in &mut layout.hierarchies {
            if hierarchy.version == Version::V2 {
                let path = hierarchy.mount_point.join("cgroup.controllers");
                let text = std::fs::read_to_string(&path)
                    .map_err(|source| Error::Read { path, source })?;
                hierarchy.controllers = text.split_whitespace().map(str::to_owned).collect();
            }
        }
        Ok(layout)
    }

    /// The v2 hierarchy, alone or beside v1.
    pub fn unified(&self) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|h| h.version == Version::V2)
    }
}

/// The v2 cgroup that `pid` is in, as a directory; `None` when it is outside of what is mounted here, or the process is gone.
pub fn dir_of_process(hierarchy: &Hierarchy, pid: Pid) -> Result<Option<PathBuf>, Error> {
    let path = PathBuf::from(format!("/proc/{pid}/cgroup"));
    let own = match std::fs::read(&path) {
        Ok(text) => parse_own(&text),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => return Ok(None),
        Err(source) => return Err(Error::Read { path, source }),
    };
    let below = own
        .get("")
        .and_then(|cgroup| cgroup.strip_prefix(&hierarchy.mount_root).ok())
        .filter(|below| !below.components().any(|c| c == Component::ParentDir));
    Ok(below.map(|below| hierarchy.mount_point.join(below)))
}

/// Refuses what would leave the tree or name the tree's root.
pub fn check_path(path: &Path) -> Result<(), Error> {
    let bad = |why| {
        Err(Error::BadPath {
            path: path.to_owned(),
            why,
        })
    };
    if path.components().any(|c| c == Component::ParentDir) {
        return bad("must not contain \"..\"");
    }
    if !path.components().any(|c| matches!(c, Component::Normal(_))) {
        return bad("must name a cgroup below the root");
    }
    if path
        .as_os_str()
        .as_bytes()
        .iter()
        .any(|b| matches!(b, b'\n' | 0))
    {
        return bad("must not contain line breaks");
    }
    Ok(())
}

/// proc(5), `/proc/PID/mountinfo` and cgroups(7), `/proc/PID/cgroup`. Controllers of v2 are left empty: they are in a file.
fn parse(mountinfo: &[u8], own: &[u8]) -> Layout {
    let own = parse_own(own);
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.split(|&b| b == b'\n') {
        let fields: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
        let Some(separator) = fields
            .iter()
            .skip(6)
            .position(|f| *f == b"-")
            .map(|i| i + 6)
        else {
            continue;
        };
        let (Some(fstype), Some(super_options)) =
            (fields.get(separator + 1), fields.get(separator + 3))
        else {
            continue;
        };
        let (version, controllers, key) = match *fstype {
            b"cgroup2" => (Version::V2, Vec::new(), String::new()),
            b"cgroup" => {
                let options = String::from_utf8_lossy(super_options).into_owned();
                let options: Vec<&str> = options.split(',').filter(|o| !is_flag(o)).collect();
                let controllers = options
                    .iter()
                    .filter(|o| !o.starts_with("name="))
                    .map(|o| (*o).to_owned())
                    .collect();
                let Some(first) = options.first() else {
                    continue;
                };
                let key = (*first).to_owned();
                (
                    Version::V1 {
                        options: options.join(","),
                    },
                    controllers,
                    key,
                )
            }
            _ => continue,
        };
        let hierarchy = Hierarchy {
            own: own.get(&key).cloned().unwrap_or_else(|| PathBuf::from("/")),
            version,
            controllers,
            mount_point: unescape(fields[4]),
            mount_root: unescape(fields[3]),
        };
        // The same hierarchy may be mounted again elsewhere (inside other containers' roots): the usual place wins, then the first.
        match found.iter_mut().find(|h| h.version == hierarchy.version) {
            None => found.push(hierarchy),
            Some(known) if !is_usual(&known.mount_point) && is_usual(&hierarchy.mount_point) => {
                *known = hierarchy
            }
            Some(_) => {}
        }
    }
    found.sort_by_key(|h| h.version != Version::V2);
    Layout { hierarchies: found }
}

fn is_usual(mount_point: &Path) -> bool {
    mount_point.starts_with("/sys/fs/cgroup")
}

/// Mount options that name neither a controller nor a hierarchy.
fn is_flag(option: &str) -> bool {
    matches!(
        option,
        "" | "rw"
            | "ro"
            | "xattr"
            | "noprefix"
            | "clone_children"
            | "cpuset_v2_mode"
            | "none"
            | "favordynmods"
    ) || option.starts_with("release_agent=")
}

/// Maps each controller, each `name=…`, and "" for v2, to this process' cgroup.
fn parse_own(text: &[u8]) -> BTreeMap<String, PathBuf> {
    let mut own = BTreeMap::new();
    for line in text.split(|&b| b == b'\n') {
        let mut fields = line.splitn(3, |&b| b == b':');
        if let (Some(_id), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        {
            for controller in String::from_utf8_lossy(controllers).split(',') {
                own.insert(
                    controller.to_owned(),
                    PathBuf::from(OsString::from_vec(path.to_vec())),
                );
            }
        }
    }
    own
}

/// mountinfo writes blanks, tabs, line breaks and backslashes as `\ooo`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'\\' && tail.len() >= 3 && tail[..3].iter().all(|b| (b'0'..=b'7').contains(b)) {
            let code = tail[..3]
                .iter()
                .fold(0u32, |n, b| n * 8 + u32::from(b - b'0'));
            out.push(code as u8);
            rest = &tail[3..];
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime shared:9 - cgroup cgroup rw,xattr,release_agent=/lib/agent,name=systemd
50 31 0:37 / /some/root/sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
42 31 0:29 / /odd\\040place rw - cgroup cgroup rw,cpu,cpuacct
";

    #[test]
    fn hybrid_is_v1_and_v2_side_by_side() {
        let layout = parse(
            HYBRID.as_bytes(),
            b"2:cpu,cpuacct:/a\n1:name=systemd:/b c\n0::/u/v\n",
        );
        let shown: Vec<_> = layout
            .hierarchies
            .iter()
            .map(|h| {
                (
                    h.mount_point.to_str().unwrap_or(""),
                    h.controllers.join("+"),
                    h.own.clone(),
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                (
                    "/sys/fs/cgroup/unified",
                    String::new(),
                    PathBuf::from("/u/v")
                ),
                (
                    "/sys/fs/cgroup/cpu,cpuacct",
                    "cpu+cpuacct".into(),
                    PathBuf::from("/a")
                ),
                (
                    "/sys/fs/cgroup/systemd",
                    String::new(),
                    PathBuf::from("/b c")
                ),
            ]
        );
        assert_eq!(
            layout.hierarchies[2].version,
            Version::V1 {
                options: "name=systemd".into()
            }
        );
    }

    #[test]
    fn the_usual_place_wins_over_an_earlier_bind_mount() {
        let text = "50 31 0:37 / /root/fs\\040x/cpu rw - cgroup cgroup rw,cpu\n51 31 0:37 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        assert_eq!(
            parse(text.as_bytes(), b"").hierarchies[0].mount_point,
            Path::new("/sys/fs/cgroup/cpu")
        );
        let only = parse(text.lines().next().unwrap_or("").as_bytes(), b"");
        assert_eq!(only.hierarchies[0].mount_point, Path::new("/root/fs x/cpu"));
    }

    #[test]
    fn relative_paths_are_below_the_own_cgroup_also_inside_a_container() {
        let v1 = Hierarchy {
            version: Version::V1 {
                options: "cpu".into(),
            },
            controllers: vec!["cpu".into()],
            mount_point: "/sys/fs/cgroup/cpu".into(),
            mount_root: "/docker/c1".into(),
            own: "/docker/c1/sub".into(),
        };
        assert_eq!(
            v1.dir(Path::new("/x/y")),
            Path::new("/sys/fs/cgroup/cpu/x/y")
        );
        assert_eq!(
            v1.dir(Path::new("x")),
            Path::new("/sys/fs/cgroup/cpu/sub/x")
        );
        let v2 = Hierarchy {
            version: Version::V2,
            ..v1.clone()
        };
        assert_eq!(v2.dir(Path::new("x")), Path::new("/sys/fs/cgroup/cpu/x"));
        let outside = Hierarchy {
            own: "/../other".into(),
            ..v1
        };
        assert_eq!(
            outside.dir(Path::new("x")),
            Path::new("/sys/fs/cgroup/cpu/x")
        );
    }

    #[test]
    fn paths_that_leave_the_tree_are_refused() {
        for bad in ["", "/", "/a/../../b", "..", "/.", "a\nb"] {
            assert!(check_path(Path::new(bad)).is_err(), "{bad:?}");
        }
        for good in ["/a", "a/b", "/a/b..c"] {
            assert!(check_path(Path::new(good)).is_ok(), "{good:?}");
        }
    }
}
