//! Device nodes and the rules that let a container use them: Docker's default rules, `--device`, `--device-cgroup-rule`,
//! `--privileged`.
//!
//! Looking at the host's `/dev` ([`HostDevice::look`], [`host_devices`]) is apart from deciding.
//!
//! Must not know: how a cgroup enforces a rule.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use caisson_api as api;
use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
};

use crate::error::{Error, Result};

/// A device node of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostDevice {
    pub kind: LinuxDeviceType,
    pub major: i64,
    pub minor: i64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Where it appears in the container.
    pub target: PathBuf,
    /// `r`, `w`, `m`.
    pub access: String,
}

impl HostDevice {
    fn at(path: &Path, target: PathBuf, access: &str) -> std::io::Result<Option<HostDevice>> {
        let meta = std::fs::metadata(path)?;
        let kind = if meta.file_type().is_char_device() {
            LinuxDeviceType::C
        } else if meta.file_type().is_block_device() {
            LinuxDeviceType::B
        } else {
            return Ok(None);
        };
        Ok(Some(HostDevice {
            kind,
            major: i64::from(rustix::fs::major(meta.rdev())),
            minor: i64::from(rustix::fs::minor(meta.rdev())),
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            target,
            access: access.into(),
        }))
    }

    /// Finds what `--device` names: a node, or every node below a directory. Blocks.
    pub(crate) fn look(mapping: &api::DeviceMapping) -> Result<Vec<HostDevice>> {
        let fail = |why: String| {
            Error::invalid(format!(
                "error gathering device information while adding custom device \"{}\": {why}",
                mapping.path_on_host
            ))
        };
        let access = check_access(&mapping.cgroup_permissions)?;
        let source = Path::new(&mapping.path_on_host);
        let target = if mapping.path_in_container.is_empty() {
            source
        } else {
            Path::new(&mapping.path_in_container)
        };
        if !target.is_absolute() {
            return Err(fail(format!(
                "the path in the container must be absolute: {}",
                target.display()
            )));
        }
        if let Some(device) =
            Self::at(source, target.into(), access).map_err(|e| fail(e.to_string()))?
        {
            return Ok(vec![device]);
        }
        if !source.is_dir() {
            return Err(fail("not a device node".into()));
        }
        let mut found = Vec::new();
        collect(source, target, access, &mut found);
        if found.is_empty() {
            return Err(fail("no device nodes found in that directory".into()));
        }
        Ok(found)
    }
}

/// Every device node of the host, for `--privileged`. Blocks.
pub(crate) fn host_devices() -> Vec<HostDevice> {
    let mut found = Vec::new();
    collect(Path::new("/dev"), Path::new("/dev"), "rwm", &mut found);
    found
}

fn collect(source: &Path, target: &Path, access: &str, found: &mut Vec<HostDevice>) {
    // What the container gets a fresh one of, or what is nothing but links.
    const SKIPPED: [&str; 9] = [
        "pts",
        "shm",
        "fd",
        "mqueue",
        "console",
        ".lxc",
        ".lxd-mounts",
        ".udev",
        "ptmx",
    ];
    let Ok(entries) = std::fs::read_dir(source) else {
        return;
    };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        if SKIPPED.iter().any(|s| name == *s) {
            continue;
        }
        let (path, target) = (entry.path(), target.join(&name));
        match entry.file_type() {
            Ok(t) if t.is_dir() => collect(&path, &target, access, found),
            Ok(t) if t.is_char_device() || t.is_block_device() => {
                found.extend(HostDevice::at(&path, target, access).ok().flatten());
            }
            _ => {}
        }
    }
}

fn check_access(access: &str) -> Result<&str> {
    let access = if access.is_empty() { "rwm" } else { access };
    if access.bytes().all(|b| b"rwm".contains(&b)) && access.len() <= 3 {
        Ok(access)
    } else {
        Err(Error::invalid(format!(
            "invalid device mode: {access}: use a combination of r, w and m"
        )))
    }
}

/// Nodes that every container has; the executor makes them, here they are only to be skipped.
const STANDARD: [&str; 6] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
];

/// Nodes to make.
pub(crate) fn nodes(devices: &[HostDevice]) -> Vec<LinuxDevice> {
    devices
        .iter()
        .filter(|d| !STANDARD.iter().any(|s| d.target == Path::new(s)))
        .map(|d| {
            LinuxDeviceBuilder::default()
                .path(d.target.clone())
                .typ(d.kind)
                .major(d.major)
                .minor(d.minor)
                .file_mode(d.mode)
                .uid(d.uid)
                .gid(d.gid)
                .build()
                .expect("path, type and numbers are set")
        })
        .collect()
}

fn rule(
    allow: bool,
    kind: LinuxDeviceType,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut builder = LinuxDeviceCgroupBuilder::default()
        .allow(allow)
        .typ(kind)
        .access(access);
    if let Some(major) = major {
        builder = builder.major(major);
    }
    if let Some(minor) = minor {
        builder = builder.minor(minor);
    }
    builder.build().expect("allow is set")
}

/// The rules, in order; later ones win.
pub(crate) fn rules(
    privileged: bool,
    devices: &[HostDevice],
    custom: &[String],
) -> Result<Vec<LinuxDeviceCgroup>> {
    use LinuxDeviceType::{A, B, C};
    let custom: Vec<_> = custom
        .iter()
        .map(|r| parse_rule(r))
        .collect::<Result<_>>()?;
    if privileged {
        return Ok(vec![rule(true, A, None, None, "rwm")]);
    }
    let mut all = vec![
        rule(false, A, None, None, "rwm"),
        rule(true, C, None, None, "m"),
        rule(true, B, None, None, "m"),
        rule(true, C, Some(1), Some(3), "rwm"), // null
        rule(true, C, Some(1), Some(5), "rwm"), // zero
        rule(true, C, Some(1), Some(7), "rwm"), // full
        rule(true, C, Some(1), Some(8), "rwm"), // random
        rule(true, C, Some(1), Some(9), "rwm"), // urandom
        rule(true, C, Some(5), Some(0), "rwm"), // tty
        rule(true, C, Some(5), Some(1), "rwm"), // console
        rule(true, C, Some(5), Some(2), "rwm"), // ptmx
        rule(true, C, Some(136), None, "rwm"),  // pts/*
    ];
    all.extend(
        devices
            .iter()
            .map(|d| rule(true, d.kind, Some(d.major), Some(d.minor), &d.access)),
    );
    all.extend(custom);
    Ok(all)
}

/// `c 1:3 rwm`, `b 8:* r`, `a *:* rwm`.
fn parse_rule(text: &str) -> Result<LinuxDeviceCgroup> {
    let bad = || Error::invalid(format!("invalid device cgroup rule format: '{text}'"));
    let mut words = text.split_ascii_whitespace();
    let (Some(kind), Some(numbers), Some(access), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(bad());
    };
    let kind = match kind {
        "a" => LinuxDeviceType::A,
        "b" => LinuxDeviceType::B,
        "c" => LinuxDeviceType::C,
        _ => return Err(bad()),
    };
    let (major, minor) = numbers.split_once(':').ok_or_else(bad)?;
    let number = |n: &str| match n {
        "*" => Ok(None),
        n if !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) => {
            n.parse().map(Some).map_err(|_| bad())
        }
        _ => Err(bad()),
    };
    let access = check_access(access).map_err(|_| bad())?;
    Ok(rule(true, kind, number(major)?, number(minor)?, access))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_deny_first() {
        let rules = rules(false, &[], &["c 10:* rw".into()]).unwrap();
        assert!(!rules[0].allow() && rules[0].typ() == Some(LinuxDeviceType::A));
        let last = rules.last().unwrap();
        assert_eq!(
            (last.major(), last.minor(), last.access().as_deref()),
            (Some(10), None, Some("rw"))
        );
    }

    #[test]
    fn bad_rules_are_refused() {
        for bad in [
            "",
            "x 1:1 r",
            "c 1 r",
            "c 1:1",
            "c 1:1 rx",
            "c -1:1 r",
            "c 1:1 r r",
        ] {
            assert!(parse_rule(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn devices_are_looked_at() {
        let map = |path: &str, access: &str| api::DeviceMapping {
            path_on_host: path.into(),
            path_in_container: "/dev/x".into(),
            cgroup_permissions: access.into(),
        };
        let null = &HostDevice::look(&map("/dev/null", "r")).unwrap()[0];
        assert_eq!((null.major, null.minor, null.access.as_str()), (1, 3, "r"));
        assert!(
            HostDevice::look(&map("/dev/nonexistent", ""))
                .unwrap_err()
                .message
                .contains("custom device")
        );
        assert!(
            HostDevice::look(&map("/etc/passwd", ""))
                .unwrap_err()
                .message
                .contains("not a device node")
        );
        assert!(
            HostDevice::look(&map("/dev/null", "q"))
                .unwrap_err()
                .message
                .contains("invalid device mode")
        );
    }
}
