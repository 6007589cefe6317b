//! Limits: what `-m`, `--cpus`, `--pids-limit`, `--blkio-weight`, … become in a spec, and which of them make no sense.
//!
//! Must not know: cgroup versions.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use caisson_api as api;
use oci_spec::runtime::{
    LinuxBlockIo, LinuxBlockIoBuilder, LinuxCpu, LinuxCpuBuilder, LinuxMemory, LinuxMemoryBuilder,
    LinuxPidsBuilder, LinuxResources, LinuxThrottleDevice, LinuxThrottleDeviceBuilder,
    LinuxWeightDeviceBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType,
};

use crate::error::{Error, Result};

const SMALLEST_MEMORY_BYTES: i64 = 6 << 20;

/// Checks limits as Docker does and fills what follows from others; answers warnings.
pub(crate) fn check(r: &mut api::Resources, cpus_online: usize) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    if r.memory != 0 && r.memory < SMALLEST_MEMORY_BYTES {
        return Err(Error::invalid("Minimum memory limit allowed is 6MB"));
    }
    if r.memory > 0 && r.memory_swap != -1 && r.memory_swap != 0 && r.memory_swap < r.memory {
        return Err(Error::invalid(
            "Minimum memoryswap limit should be larger than memory limit, see usage",
        ));
    }
    if r.memory == 0 && r.memory_swap > 0 {
        return Err(Error::invalid(
            "You should always set the Memory limit when using Memoryswap limit, see usage",
        ));
    }
    if r.memory > 0 && r.memory_swap == 0 {
        r.memory_swap = r.memory.saturating_mul(2);
    }
    if r.memory_swap < -1 || r.memory < 0 || r.memory_reservation < 0 {
        return Err(Error::invalid(
            "memory limits must not be negative (except --memory-swap=-1 for unlimited swap)",
        ));
    }
    if r.memory_reservation != 0 && r.memory_reservation < SMALLEST_MEMORY_BYTES {
        return Err(Error::invalid("Minimum memory reservation allowed is 6MB"));
    }
    if r.memory > 0 && r.memory_reservation > 0 && r.memory < r.memory_reservation {
        return Err(Error::invalid(
            "Minimum memory limit can not be less than memory reservation limit, see usage",
        ));
    }
    if let Some(s) = r.memory_swappiness
        && !(-1..=100).contains(&s)
    {
        return Err(Error::invalid(format!(
            "Invalid value: {s}, valid memory swappiness range is 0-100"
        )));
    }
    if r.memory_swappiness == Some(-1) {
        r.memory_swappiness = None;
    }
    if r.oom_kill_disable == Some(true) && r.memory == 0 {
        warnings.push(
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources."
                .into(),
        );
    }
    if r.kernel_memory != 0 || r.kernel_memory_tcp != 0 {
        warnings.push("Specifying a kernel memory limit is deprecated and has no effect.".into());
        r.kernel_memory = 0;
        r.kernel_memory_tcp = 0;
    }
    if r.nano_cpus != 0 {
        if r.cpu_quota != 0 || r.cpu_period != 0 {
            return Err(Error::invalid(
                "Conflicting options: Nano CPUs and CPU Period/Quota cannot both be set",
            ));
        }
        let most = i64::try_from(cpus_online)
            .unwrap_or(i64::MAX)
            .saturating_mul(1_000_000_000);
        if r.nano_cpus < 0 || r.nano_cpus > most {
            return Err(Error::invalid(format!(
                "range of CPUs is from 0.01 to {cpus_online}.00, as there are only {cpus_online} CPUs available"
            )));
        }
        if r.nano_cpus < 10_000_000 {
            return Err(Error::invalid(format!(
                "range of CPUs is from 0.01 to {cpus_online}.00, as there are only {cpus_online} CPUs available"
            )));
        }
    }
    if r.cpu_shares < 0 {
        return Err(Error::invalid("invalid CPU shares: must not be negative"));
    }
    if r.cpu_period != 0 && !(1000..=1_000_000).contains(&r.cpu_period) {
        return Err(Error::invalid(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
        ));
    }
    if r.cpu_quota > 0 && r.cpu_quota < 1000 {
        return Err(Error::invalid(
            "CPU cfs quota can not be less than 1ms (i.e. 1000)",
        ));
    }
    if r.cpu_percent != 0 || r.cpu_count != 0 {
        return Err(Error::invalid(
            "--cpu-count and --cpu-percent are for Windows: use --cpus",
        ));
    }
    check_cpuset(&r.cpuset_cpus, "CPUs", Some(cpus_online))?;
    check_cpuset(&r.cpuset_mems, "memory nodes", None)?;
    if r.blkio_weight != 0 && !(10..=1000).contains(&r.blkio_weight) {
        return Err(Error::invalid("Range of blkio weight is from 10 to 1000"));
    }
    for w in r.blkio_weight_device.iter().flatten() {
        if w.weight != 0 && !(10..=1000).contains(&w.weight) {
            return Err(Error::invalid(format!(
                "Range of blkio weight is from 10 to 1000 (device {})",
                w.path
            )));
        }
    }
    for u in r.ulimits.iter().flatten() {
        rlimit(&u.name, u.soft, u.hard)?;
    }
    if r.device_requests.iter().flatten().next().is_some() {
        return Err(Error::not_implemented(
            "could not select device driver: GPUs and other device requests (--gpus) are not available in this version of caisson; \
             give single devices with --device",
        ));
    }
    if r.io_maximum_iops != 0 || r.io_maximum_bandwidth != 0 {
        return Err(Error::invalid(
            "--io-maxiops and --io-maxbandwidth are for Windows: use --device-read-bps and its relatives",
        ));
    }
    Ok(warnings)
}

/// Takes out what only version 1 of cgroups has, where the container's kernel has version 2: as Docker does on such hosts.
pub(crate) fn discard_v1_only(r: &mut api::Resources, version_2: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    if !version_2 {
        return warnings;
    }
    let mut discard = |what: &str| {
        warnings.push(format!(
            "Your kernel does not support {what} capabilities or the cgroup is not mounted. Limitation discarded."
        ));
    };
    if r.memory_swappiness.take().is_some_and(|s| s != -1) {
        discard("memory swappiness");
    }
    if r.oom_kill_disable.take().is_some_and(|on| on) {
        discard("OomKillDisable");
    }
    warnings
}

/// Takes out limits that this host has no controller for, as Docker does, and says so. What bounds a container hard and
/// cannot be had is an error instead.
pub(crate) fn discard_unsupported(
    r: &mut api::Resources,
    controllers: &[String],
) -> Result<Vec<String>> {
    let has = |name: &str| controllers.iter().any(|c| c == name);
    let mut warnings = Vec::new();
    let mut discard = |what: &str| {
        warnings.push(format!(
            "Your kernel does not support {what} capabilities or the cgroup is not mounted. Limitation discarded."
        ));
    };
    if !has("memory")
        && (r.memory != 0 || r.memory_reservation != 0 || r.memory_swappiness.is_some())
    {
        discard("memory limit");
        r.memory = 0;
        r.memory_swap = 0;
        r.memory_reservation = 0;
        r.memory_swappiness = None;
    }
    if !has("memory") && r.oom_kill_disable.is_some() {
        r.oom_kill_disable = None;
    }
    if !has("pids") && r.pids_limit.is_some_and(|l| l > 0) {
        discard("PIDs limit");
        r.pids_limit = None;
    }
    if !has("cpu") {
        if r.nano_cpus != 0 {
            return Err(Error::invalid(
                "NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is not mounted",
            ));
        }
        if r.cpu_shares != 0 || r.cpu_period != 0 || r.cpu_quota != 0 {
            discard("CPU shares and CPU cfs quota");
            (r.cpu_shares, r.cpu_period, r.cpu_quota) = (0, 0, 0);
        }
    }
    let pinned = !r.cpuset_cpus.is_empty() || !r.cpuset_mems.is_empty();
    if !has("cpuset") && pinned {
        discard("cpuset");
        r.cpuset_cpus.clear();
        r.cpuset_mems.clear();
    }
    let throttled = [
        &r.blkio_device_read_bps,
        &r.blkio_device_write_bps,
        &r.blkio_device_read_iops,
        &r.blkio_device_write_iops,
    ];
    let throttled = throttled.into_iter().flatten().any(|l| !l.is_empty());
    let weighted = r.blkio_weight != 0
        || r.blkio_weight_device
            .as_ref()
            .is_some_and(|l| !l.is_empty());
    if !has("io") && (throttled || weighted) {
        discard("Block I/O limit");
        r.blkio_weight = 0;
        r.blkio_weight_device = None;
        r.blkio_device_read_bps = None;
        r.blkio_device_write_bps = None;
        r.blkio_device_read_iops = None;
        r.blkio_device_write_iops = None;
    }
    Ok(warnings)
}

/// `0-3,5`.
fn check_cpuset(text: &str, what: &str, online: Option<usize>) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let bad = || Error::invalid(format!("invalid value {text} for cpuset {what}"));
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: usize = first.trim().parse().map_err(|_| bad())?;
        let last: usize = last.trim().parse().map_err(|_| bad())?;
        if first > last || last > 8191 {
            return Err(bad());
        }
        if let Some(online) = online
            && last >= online
        {
            return Err(Error::invalid(format!(
                "Requested {what} are not available - requested {text}, available: 0-{}",
                online.saturating_sub(1)
            )));
        }
    }
    Ok(())
}

/// One `--ulimit`.
pub(crate) fn rlimit(name: &str, soft: i64, hard: i64) -> Result<PosixRlimit> {
    use PosixRlimitType::*;
    let kind = match name {
        "as" => RlimitAs,
        "core" => RlimitCore,
        "cpu" => RlimitCpu,
        "data" => RlimitData,
        "fsize" => RlimitFsize,
        "locks" => RlimitLocks,
        "memlock" => RlimitMemlock,
        "msgqueue" => RlimitMsgqueue,
        "nice" => RlimitNice,
        "nofile" => RlimitNofile,
        "nproc" => RlimitNproc,
        "rss" => RlimitRss,
        "rtprio" => RlimitRtprio,
        "rttime" => RlimitRttime,
        "sigpending" => RlimitSigpending,
        "stack" => RlimitStack,
        other => return Err(Error::invalid(format!("invalid ulimit type: {other}"))),
    };
    if hard != -1 && (soft > hard || soft == -1) {
        return Err(Error::invalid(format!(
            "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
        )));
    }
    // -1 is "unlimited": all bits set.
    let value = |n: i64| u64::try_from(n).unwrap_or(u64::MAX);
    Ok(PosixRlimitBuilder::default()
        .typ(kind)
        .soft(value(soft))
        .hard(value(hard))
        .build()
        .expect("all three fields are set"))
}

fn device_numbers(path: &str) -> Result<(i64, i64)> {
    let fail = |why: &str| Error::invalid(format!("cannot limit the block device {path}: {why}"));
    let meta = std::fs::metadata(path).map_err(|e| fail(&e.to_string()))?;
    if !meta.file_type().is_block_device() {
        return Err(fail("it is not a block device"));
    }
    Ok((
        i64::from(rustix::fs::major(meta.rdev())),
        i64::from(rustix::fs::minor(meta.rdev())),
    ))
}

fn throttles(list: &Option<Vec<api::ThrottleDevice>>) -> Result<Option<Vec<LinuxThrottleDevice>>> {
    let mut all = Vec::new();
    for device in list.iter().flatten() {
        let (major, minor) = device_numbers(&device.path)?;
        all.push(
            LinuxThrottleDeviceBuilder::default()
                .major(major)
                .minor(minor)
                .rate(device.rate)
                .build()
                .expect("all three fields are set"),
        );
    }
    Ok(Some(all).filter(|a| !a.is_empty()))
}

fn memory(r: &api::Resources) -> Option<LinuxMemory> {
    let mut b = LinuxMemoryBuilder::default();
    let mut any = false;
    if r.memory > 0 {
        b = b.limit(r.memory);
        any = true;
    }
    if r.memory_reservation > 0 {
        b = b.reservation(r.memory_reservation);
        any = true;
    }
    if r.memory_swap != 0 {
        b = b.swap(r.memory_swap);
        any = true;
    }
    if let Some(s) = r.memory_swappiness.and_then(|s| u64::try_from(s).ok()) {
        b = b.swappiness(s);
        any = true;
    }
    if r.oom_kill_disable == Some(true) {
        b = b.disable_oom_killer(true);
        any = true;
    }
    any.then(|| {
        b.build()
            .expect("every field of the memory limits is optional")
    })
}

fn cpu(r: &api::Resources) -> Option<LinuxCpu> {
    const PERIOD_US: i64 = 100_000;
    let mut b = LinuxCpuBuilder::default();
    let mut any = false;
    let positive = |n: i64| u64::try_from(n).ok().filter(|n| *n > 0);
    if let Some(shares) = positive(r.cpu_shares) {
        b = b.shares(shares);
        any = true;
    }
    if r.nano_cpus > 0 {
        b = b
            .period(PERIOD_US.unsigned_abs())
            .quota(r.nano_cpus.saturating_mul(PERIOD_US) / 1_000_000_000);
        any = true;
    }
    if let Some(period) = positive(r.cpu_period) {
        b = b.period(period);
        any = true;
    }
    if r.cpu_quota != 0 {
        b = b.quota(r.cpu_quota);
        any = true;
    }
    if let Some(period) = positive(r.cpu_realtime_period) {
        b = b.realtime_period(period);
        any = true;
    }
    if r.cpu_realtime_runtime != 0 {
        b = b.realtime_runtime(r.cpu_realtime_runtime);
        any = true;
    }
    if !r.cpuset_cpus.is_empty() {
        b = b.cpus(r.cpuset_cpus.clone());
        any = true;
    }
    if !r.cpuset_mems.is_empty() {
        b = b.mems(r.cpuset_mems.clone());
        any = true;
    }
    any.then(|| {
        b.build()
            .expect("every field of the CPU limits is optional")
    })
}

fn block_io(r: &api::Resources) -> Result<Option<LinuxBlockIo>> {
    let mut b = LinuxBlockIoBuilder::default();
    let mut any = false;
    if r.blkio_weight != 0 {
        b = b.weight(r.blkio_weight);
        any = true;
    }
    let mut weights = Vec::new();
    for w in r.blkio_weight_device.iter().flatten() {
        let (major, minor) = device_numbers(&w.path)?;
        weights.push(
            LinuxWeightDeviceBuilder::default()
                .major(major)
                .minor(minor)
                .weight(w.weight)
                .build()
                .expect("numbers are set"),
        );
    }
    if !weights.is_empty() {
        b = b.weight_device(weights);
        any = true;
    }
    if let Some(list) = throttles(&r.blkio_device_read_bps)? {
        b = b.throttle_read_bps_device(list);
        any = true;
    }
    if let Some(list) = throttles(&r.blkio_device_write_bps)? {
        b = b.throttle_write_bps_device(list);
        any = true;
    }
    if let Some(list) = throttles(&r.blkio_device_read_iops)? {
        b = b.throttle_read_iops_device(list);
        any = true;
    }
    if let Some(list) = throttles(&r.blkio_device_write_iops)? {
        b = b.throttle_write_iops_device(list);
        any = true;
    }
    Ok(any.then(|| {
        b.build()
            .expect("every field of the block limits is optional")
    }))
}

/// The limits in a spec; device rules are added by the caller.
pub(crate) fn to_oci(r: &api::Resources) -> Result<LinuxResources> {
    let mut all = LinuxResources::default();
    all.set_devices(None);
    all.set_memory(memory(r));
    all.set_cpu(cpu(r));
    all.set_block_io(block_io(r)?);
    if let Some(limit) = r.pids_limit.filter(|l| *l != 0) {
        all.set_pids(Some(
            LinuxPidsBuilder::default()
                .limit(if limit < 0 { -1 } else { limit })
                .build()
                .expect("limit is set"),
        ));
    }
    Ok(all)
}

/// Lays an update over the limits in force, as `docker update` does: zero leaves as it is.
pub(crate) fn merge_update(
    now: &api::Resources,
    update: &api::Resources,
) -> Result<api::Resources> {
    let mut r = now.clone();
    if update.nano_cpus > 0 && (now.cpu_period > 0 || now.cpu_quota > 0) {
        return Err(Error::conflict(
            "Conflicting options: Nano CPUs cannot be updated as CPU Period/Quota has already been set",
        ));
    }
    if (update.cpu_period > 0 || update.cpu_quota != 0) && now.nano_cpus > 0 {
        return Err(Error::conflict(
            "Conflicting options: CPU Period/Quota cannot be updated as NanoCPUs has already been set",
        ));
    }
    let set = |field: &mut i64, new: i64| {
        if new != 0 {
            *field = new;
        }
    };
    set(&mut r.cpu_shares, update.cpu_shares);
    set(&mut r.cpu_period, update.cpu_period);
    set(&mut r.cpu_quota, update.cpu_quota);
    set(&mut r.nano_cpus, update.nano_cpus);
    set(&mut r.cpu_realtime_period, update.cpu_realtime_period);
    set(&mut r.cpu_realtime_runtime, update.cpu_realtime_runtime);
    set(&mut r.memory_reservation, update.memory_reservation);
    if update.blkio_weight != 0 {
        r.blkio_weight = update.blkio_weight;
    }
    if !update.cpuset_cpus.is_empty() {
        r.cpuset_cpus.clone_from(&update.cpuset_cpus);
    }
    if !update.cpuset_mems.is_empty() {
        r.cpuset_mems.clone_from(&update.cpuset_mems);
    }
    if update.memory != 0 {
        if update.memory_swap == 0 && now.memory_swap > 0 && update.memory > now.memory_swap {
            return Err(Error::conflict(
                "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time",
            ));
        }
        r.memory = update.memory;
    }
    set(&mut r.memory_swap, update.memory_swap);
    if update.pids_limit.is_some() {
        r.pids_limit = update.pids_limit;
    }
    Ok(r)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn r() -> api::Resources {
        api::Resources::default()
    }

    #[test]
    fn limits_become_a_spec() {
        let mut given = api::Resources {
            memory: 64 << 20,
            nano_cpus: 1_500_000_000,
            cpu_shares: 512,
            cpuset_cpus: "0-1".into(),
            pids_limit: Some(77),
            blkio_weight: 500,
            ..r()
        };
        assert_eq!(check(&mut given, 2).unwrap(), Vec::<String>::new());
        let oci = to_oci(&given).unwrap();
        let memory = oci.memory().as_ref().unwrap();
        assert_eq!(
            (memory.limit(), memory.swap()),
            (Some(64 << 20), Some(128 << 20))
        );
        let cpu = oci.cpu().as_ref().unwrap();
        assert_eq!(
            (cpu.quota(), cpu.period(), cpu.shares()),
            (Some(150_000), Some(100_000), Some(512))
        );
        assert_eq!(oci.pids().as_ref().unwrap().limit(), 77);
        assert_eq!(oci.block_io().as_ref().unwrap().weight(), Some(500));
    }

    #[test]
    fn nothing_asked_nothing_limited() {
        let oci = to_oci(&r()).unwrap();
        assert!(
            oci.memory().is_none()
                && oci.cpu().is_none()
                && oci.pids().is_none()
                && oci.block_io().is_none()
        );
        let unlimited = to_oci(&api::Resources {
            pids_limit: Some(-1),
            ..r()
        })
        .unwrap();
        assert_eq!(unlimited.pids().as_ref().unwrap().limit(), -1);
    }

    #[test]
    fn nonsense_is_refused() {
        let bad = |r: api::Resources| check(&mut { r }, 2).unwrap_err().message;
        assert!(
            bad(api::Resources {
                memory: 1024,
                ..r()
            })
            .contains("6MB")
        );
        assert!(
            bad(api::Resources {
                memory: 64 << 20,
                memory_swap: 32 << 20,
                ..r()
            })
            .contains("memoryswap")
        );
        assert!(
            bad(api::Resources {
                memory_swap: 32 << 20,
                ..r()
            })
            .contains("always set the Memory limit")
        );
        assert!(
            bad(api::Resources {
                nano_cpus: 3_000_000_000,
                ..r()
            })
            .contains("only 2 CPUs available")
        );
        assert!(
            bad(api::Resources {
                nano_cpus: 1_000_000_000,
                cpu_quota: 5000,
                ..r()
            })
            .contains("Conflicting")
        );
        assert!(
            bad(api::Resources {
                cpuset_cpus: "0-7".into(),
                ..r()
            })
            .contains("not available")
        );
        assert!(
            bad(api::Resources {
                cpuset_cpus: "x".into(),
                ..r()
            })
            .contains("invalid value x")
        );
        assert!(
            bad(api::Resources {
                blkio_weight: 5,
                ..r()
            })
            .contains("10 to 1000")
        );
        assert!(
            bad(api::Resources {
                device_requests: Some(vec![api::DeviceRequest::default()]),
                ..r()
            })
            .contains("--gpus")
        );
        let u = |name: &str, soft, hard| api::Ulimit {
            name: name.into(),
            soft,
            hard,
        };
        assert!(
            bad(api::Resources {
                ulimits: Some(vec![u("nofil", 1, 1)]),
                ..r()
            })
            .contains("invalid ulimit type")
        );
        assert!(
            bad(api::Resources {
                ulimits: Some(vec![u("nofile", 2, 1)]),
                ..r()
            })
            .contains("soft limit")
        );
    }

    #[test]
    fn an_update_lays_over() {
        let now = api::Resources {
            memory: 64 << 20,
            memory_swap: 128 << 20,
            cpu_shares: 100,
            ..r()
        };
        let new = merge_update(
            &now,
            &api::Resources {
                cpu_shares: 200,
                ..r()
            },
        )
        .unwrap();
        assert_eq!((new.memory, new.cpu_shares), (64 << 20, 200));
        assert!(
            merge_update(
                &now,
                &api::Resources {
                    memory: 256 << 20,
                    ..r()
                }
            )
            .is_err()
        );
        assert!(
            merge_update(
                &now,
                &api::Resources {
                    memory: 256 << 20,
                    memory_swap: -1,
                    ..r()
                }
            )
            .is_ok()
        );
    }

    #[test]
    fn limits_without_a_controller_are_told() {
        let all = ["cpu", "cpuset", "io", "memory", "pids"].map(str::to_string);
        let given = api::Resources {
            memory: 64 << 20,
            pids_limit: Some(5),
            blkio_weight: 100,
            ..r()
        };
        let mut kept = given.clone();
        assert!(discard_unsupported(&mut kept, &all).unwrap().is_empty());
        assert_eq!(kept, given);
        let mut left = given;
        assert_eq!(discard_unsupported(&mut left, &all[..2]).unwrap().len(), 3);
        assert_eq!(
            (left.memory, left.pids_limit, left.blkio_weight),
            (0, None, 0)
        );
        let mut cpus = api::Resources {
            nano_cpus: 1_000_000_000,
            ..r()
        };
        assert!(
            discard_unsupported(&mut cpus, &[]).is_err(),
            "a hard bound is not dropped"
        );
    }

    #[test]
    fn unlimited_is_all_bits() {
        let l = rlimit("core", -1, -1).unwrap();
        assert_eq!((l.soft(), l.hard()), (u64::MAX, u64::MAX));
        assert!(rlimit("nofile", -1, 100).is_err());
    }
}
