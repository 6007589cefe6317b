//! Performs a plan on one cgroup: limits, then device rules.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};

use super::error::{Error, hint};
use super::layout::Version;
use super::plan::{Host, Seat, Write, plan};
use super::{Cgroup, bpf, bpf_sys, devices, files, tree};

/// Applies all limits that `resources` names.
pub fn limits(cgroup: &Cgroup, resources: &LinuxResources) -> Result<(), Error> {
    let mut waiting: VecDeque<Write> = plan(resources, cgroup)?.into();
    // Limits that bound each other (memory and memory+swap, quota and burst) are taken in one order when raised and in the
    // other when lowered: what is refused waits until the others were tried, as long as that gets us further.
    let mut refused = 0;
    while let Some(write) = waiting.pop_front() {
        let Some(dir) = cgroup.dir_of(&write.controller) else {
            return Err(Error::MissingController {
                why: cgroup.why_missing(&write.controller, &write.controller),
                limit: write.file,
                controller: write.controller,
            });
        };
        let path = dir.join(&write.file);
        match files::write_raw(&path, &write.value) {
            Ok(()) => refused = 0,
            Err(e)
                if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EBUSY))
                    && refused < waiting.len() =>
            {
                refused += 1;
                waiting.push_back(write);
            }
            Err(source) => {
                return Err(Error::Write {
                    hint: limit_hint(&write, &source),
                    path,
                    value: write.value,
                    source,
                });
            }
        }
    }
    Ok(())
}

fn limit_hint(write: &Write, source: &std::io::Error) -> &'static str {
    match (write.file.as_str(), source.raw_os_error()) {
        ("cpuset.cpus" | "cpuset.mems", Some(libc::EACCES | libc::EINVAL | libc::ERANGE)) => {
            " (not all of them are online and allowed by the parent cgroup: see its cpuset.cpus and cpuset.mems)"
        }
        ("memory.limit_in_bytes" | "memory.memsw.limit_in_bytes", Some(libc::EBUSY)) => {
            " (more than that is in use and cannot be reclaimed)"
        }
        (
            "cpu.cfs_quota_us" | "cpu.cfs_period_us" | "cpu.cfs_burst_us" | "cpu.max"
            | "cpu.max.burst",
            Some(libc::EINVAL),
        ) => {
            " (a period is 1000 to 1000000 µs, a quota at least 1000 µs and, like a burst, no more than the parent cgroup's)"
        }
        ("cpu.rt_runtime_us" | "cpu.rt_period_us", Some(libc::EINVAL)) => {
            " (the parent cgroup has no realtime budget left: its cpu.rt_runtime_us comes first)"
        }
        (file, Some(libc::ENODEV)) if file.starts_with("blkio.") || file.starts_with("io.") => {
            " (there is no such block device)"
        }
        _ => hint(source),
    }
}

/// Applies the device rules, in full: what is not named is denied, except what every container needs.
pub fn device_rules(cgroup: &Cgroup, spec: &[LinuxDeviceCgroup]) -> Result<(), Error> {
    let rules = devices::rules(spec)?;
    if let Some(dir) = cgroup.v1("devices") {
        for (file, value) in devices::plan_v1(&rules)? {
            files::write(&dir.join(file), &value)?;
        }
        return Ok(());
    }
    let Some(dir) = cgroup.unified() else {
        return Err(Error::NoDeviceControl);
    };
    device_filter(dir, &bpf::program(&rules))
}

/// Makes `code` the one device program of the v2 cgroup `dir`.
pub(super) fn device_filter(dir: &Path, code: &[bpf::Instruction]) -> Result<(), Error> {
    let failed = |action, log: String| {
        move |source| Error::DeviceFilter {
            action,
            path: dir.to_owned(),
            source,
            log: if log.is_empty() {
                log
            } else {
                format!("; the kernel says: {log}")
            },
        }
    };
    let cgroup = File::open(dir).map_err(failed("open", String::new()))?;
    let cgroup = cgroup.as_fd();
    let program = with_locked_memory(|| bpf_sys::load(code))
        .map_err(|(source, log)| failed("load", log)(source))?;
    let program = program.as_fd();
    let old = bpf_sys::attached(cgroup).map_err(failed("query", String::new()))?;
    let swapped = match old.as_slice() {
        [only] => bpf_sys::replace(cgroup, only, program).is_ok(),
        _ => false,
    };
    if !swapped {
        // Both hold until the old ones are gone: never less than either.
        attach_then_detach(cgroup, program, &old).map_err(failed("attach", String::new()))?;
    }
    Ok(())
}

fn attach_then_detach(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    old: &[std::os::fd::OwnedFd],
) -> std::io::Result<()> {
    bpf_sys::attach(cgroup, program)?;
    old.iter()
        .try_for_each(|program| bpf_sys::detach(cgroup, program))
}

/// Before Linux 5.11 programs counted as locked memory: on `EPERM` once more with that limit lifted for the moment.
fn with_locked_memory<T>(
    load: impl Fn() -> Result<T, (std::io::Error, String)>,
) -> Result<T, (std::io::Error, String)> {
    let first = match load() {
        Err(e) if e.0.raw_os_error() == Some(libc::EPERM) => e,
        other => return other,
    };
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_MEMLOCK) else {
        return Err(first);
    };
    if setrlimit(
        Resource::RLIMIT_MEMLOCK,
        libc::RLIM_INFINITY,
        libc::RLIM_INFINITY,
    )
    .is_err()
    {
        return Err(first);
    }
    let second = load();
    if let Err(errno) = setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard) {
        tracing::warn!(%errno, "cannot put the limit of locked memory back");
    }
    second
}

impl Cgroup {
    fn dir_of(&self, controller: &str) -> Option<&Path> {
        if controller.is_empty() {
            return self.unified();
        }
        self.v1(controller).or_else(|| self.unified())
    }
}

impl Host for Cgroup {
    fn seat(&self, v1: &str, v2: &str) -> Option<Seat> {
        if !v1.is_empty() && self.v1(v1).is_some() {
            return Some(Seat::V1);
        }
        let list = files::read_if_there(&self.unified()?.join("cgroup.controllers")).ok()??;
        (!v2.is_empty() && list.split_whitespace().any(|c| c == v2)).then_some(Seat::V2)
    }

    fn why_missing(&self, v1: &str, v2: &str) -> String {
        let Some(place) = self
            .places
            .iter()
            .find(|p| p.hierarchy.version == Version::V2)
        else {
            return format!(
                "no v1 hierarchy with it is mounted; try `mount -t cgroup -o {v1} cgroup /sys/fs/cgroup/{v1}`, or boot without cgroup_disable={v1}"
            );
        };
        if v2.is_empty() {
            return format!(
                "it exists on cgroup v1 only; mount it with `mount -t cgroup -o {v1} cgroup /sys/fs/cgroup/{v1}`"
            );
        }
        tree::why_missing(&place.hierarchy, &place.dir, v2)
    }

    fn read(&self, controller: &str, file: &str) -> Option<String> {
        files::read_if_there(&self.dir_of(controller)?.join(file)).ok()?
    }
}
