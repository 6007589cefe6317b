//! The part of a container's request that says how it meets its host: mounts, limits, rights, policies.

use caisson_api::{DeviceRequest, HostConfig, LogConfig, Resources, RestartPolicy};

use super::resolve::{Surroundings, key_values, optional};
use super::{checks, mount_flag, network_flags, port_flag};
use crate::cli::flags::Parsed;
use crate::cli::units;

/// Reads `--restart`.
pub fn restart_policy(text: &str) -> Result<RestartPolicy, String> {
    let (name, count) = match text.split_once(':') {
        Some(("", _)) => {
            return Err(
                "invalid restart policy format: no policy provided before colon".to_owned(),
            );
        }
        Some((name, count)) => {
            let count = count.parse().map_err(|_| {
                "invalid restart policy format: maximum retry count must be an integer".to_owned()
            })?;
            (name, count)
        }
        None => (text, 0),
    };
    Ok(RestartPolicy {
        name: name.to_owned(),
        maximum_retry_count: count,
    })
}

/// Security options with the seccomp profile read, and the paths to mask when the user changed them.
type Security = (Option<Vec<String>>, bool);

fn security(parsed: &Parsed, around: &Surroundings) -> Result<Security, String> {
    let mut options = Vec::new();
    let mut unmasked = false;
    for option in parsed.list("security-opt") {
        if option == "systempaths=unconfined" {
            unmasked = true;
            continue;
        }
        let (key, value) = match option.split_once('=').or_else(|| option.split_once(':')) {
            Some(pair) => pair,
            None if option == "no-new-privileges" => {
                options.push(option.clone());
                continue;
            }
            None => return Err(format!("Invalid --security-opt: {option:?}")),
        };
        if key == "seccomp" && value != "unconfined" && value != "builtin" {
            let text = (around.read)(value)
                .map_err(|e| format!("opening seccomp profile ({value}) failed: {e}"))?;
            let profile: serde_json::Value = serde_json::from_str(&text).map_err(|e| {
                format!("compacting json for seccomp profile ({value}) failed: {e}")
            })?;
            options.push(format!("seccomp={profile}"));
        } else {
            options.push(option.clone());
        }
    }
    Ok((
        (!parsed.list("security-opt").is_empty()).then_some(options),
        unmasked,
    ))
}

fn mode(parsed: &Parsed, flag: &str, allowed: &[&str], complaint: &str) -> Result<String, String> {
    let value = parsed.text(flag);
    let valid = value.is_empty()
        || allowed.contains(&value)
        || (allowed.contains(&"container:")
            && value
                .strip_prefix("container:")
                .is_some_and(|c| !c.is_empty()));
    if valid {
        Ok(value.to_owned())
    } else {
        Err(format!("--{flag}: invalid {complaint} mode"))
    }
}

/// Everything that Docker keeps beside what the image may say itself.
pub fn host_config(parsed: &Parsed, around: &Surroundings) -> Result<HostConfig, String> {
    let mut binds = Vec::new();
    for spec in parsed.list("volume") {
        if let mount_flag::Volume::Bind(bind) = mount_flag::volume(spec)? {
            binds.push(bind);
        }
    }
    let mounts = parsed
        .list("mount")
        .iter()
        .map(|m| mount_flag::mount(m))
        .collect::<Result<Vec<_>, _>>()?;
    let mut port_bindings = port_flag::Bindings::new();
    for spec in parsed.list("publish") {
        port_flag::publish(spec, &mut port_bindings)?;
    }
    let restart = restart_policy(parsed.last("restart").unwrap_or("no"))?;
    if parsed.flag("rm") && !matches!(restart.name.as_str(), "no" | "") {
        return Err("conflicting options: cannot specify both --restart and --rm".to_owned());
    }
    let log_options = key_values(parsed.list("log-opt"));
    if parsed.text("log-driver") == "none" && !log_options.is_empty() {
        return Err("invalid logging opts for driver none".to_owned());
    }
    for option in parsed.list("storage-opt") {
        if !option.contains('=') {
            return Err("invalid storage option".to_owned());
        }
    }
    let (security_opt, unmasked) = security(parsed, around)?;
    let (capabilities_added, capabilities_dropped) = capabilities(parsed);
    let sysctls = key_values(parsed.list("sysctl"));
    let storage = key_values(parsed.list("storage-opt"));
    let annotations = key_values(parsed.list("annotation"));
    let networks = [parsed.list("network"), parsed.list("net")].concat();
    let network_mode = networks
        .first()
        .map_or("default", |n| network_flags::name(n));
    Ok(HostConfig {
        binds: optional(&binds),
        container_id_file: parsed.text("cidfile").to_owned(),
        log_config: LogConfig {
            driver: parsed.text("log-driver").to_owned(),
            config: log_options,
        },
        network_mode: network_mode.to_owned(),
        port_bindings: Some(port_bindings),
        restart_policy: restart,
        auto_remove: parsed.flag("rm"),
        volume_driver: parsed.text("volume-driver").to_owned(),
        volumes_from: optional(parsed.list("volumes-from")),
        console_size: around.console,
        annotations: (!annotations.is_empty()).then_some(annotations),
        cap_add: optional(&capabilities_added),
        cap_drop: optional(&capabilities_dropped),
        cgroupns_mode: mode(parsed, "cgroupns", &["host", "private"], "CGROUP")?,
        dns: Some(parsed.list("dns").to_vec()),
        dns_options: Some([parsed.list("dns-option"), parsed.list("dns-opt")].concat()),
        dns_search: Some(parsed.list("dns-search").to_vec()),
        extra_hosts: optional(parsed.list("add-host")),
        group_add: optional(parsed.list("group-add")),
        ipc_mode: parsed.text("ipc").to_owned(),
        links: optional(parsed.list("link")),
        oom_score_adj: parsed.int("oom-score-adj").unwrap_or(0),
        pid_mode: mode(parsed, "pid", &["host", "container:"], "PID")?,
        privileged: parsed.flag("privileged"),
        publish_all_ports: parsed.flag("publish-all"),
        readonly_rootfs: parsed.flag("read-only"),
        security_opt,
        storage_opt: (!storage.is_empty()).then_some(storage),
        tmpfs: mount_flag::tmpfs(parsed.list("tmpfs")),
        uts_mode: mode(parsed, "uts", &["host"], "UTS")?,
        userns_mode: mode(parsed, "userns", &["host"], "USER")?,
        shm_size: parsed.bytes("shm-size"),
        sysctls: (!sysctls.is_empty()).then_some(sysctls),
        runtime: parsed.text("runtime").to_owned(),
        isolation: parsed.text("isolation").to_owned(),
        resources: resources(parsed)?,
        mounts: (!mounts.is_empty()).then_some(mounts),
        masked_paths: unmasked.then(Vec::new),
        readonly_paths: unmasked.then(Vec::new),
        init: parsed.given("init").then(|| parsed.flag("init")),
        ..HostConfig::default()
    })
}

/// `--cap-add` and `--cap-drop` in the kernel's names, sorted; what is added is not dropped.
fn capabilities(parsed: &Parsed) -> (Vec<String>, Vec<String>) {
    let normal = |flag: &str| {
        let mut names: Vec<String> = parsed
            .list(flag)
            .iter()
            .map(|c| c.trim().to_uppercase())
            .map(|c| {
                if c == "ALL" || c.starts_with("CAP_") {
                    c
                } else {
                    format!("CAP_{c}")
                }
            })
            .collect();
        names.sort();
        names.dedup();
        if names.iter().any(|c| c == "ALL") {
            vec!["ALL".to_owned()]
        } else {
            names
        }
    };
    let (added, mut dropped) = (normal("cap-add"), normal("cap-drop"));
    dropped.retain(|c| c == "ALL" || !added.contains(c));
    (added, dropped)
}

fn resources(parsed: &Parsed) -> Result<Resources, String> {
    let swappiness = parsed.int("memory-swappiness").unwrap_or(-1);
    if swappiness != -1 && !(0..=100).contains(&swappiness) {
        return Err(format!(
            "invalid value: {swappiness}. Valid memory swappiness range is 0-100"
        ));
    }
    fn each<T>(
        parsed: &Parsed,
        flag: &str,
        read: fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, String> {
        parsed.list(flag).iter().map(|v| read(v)).collect()
    }
    let mut devices = Vec::new();
    let mut requests: Vec<DeviceRequest> = each(parsed, "gpus", checks::gpus)?;
    let mut cdi = Vec::new();
    for text in parsed.list("device") {
        if text.contains('=')
            && text
                .split('=')
                .next()
                .is_some_and(|c| c.contains('/') && !c.starts_with('/'))
        {
            cdi.push(text.clone());
        } else {
            devices.push(checks::device(text)?);
        }
    }
    if !cdi.is_empty() {
        requests.push(DeviceRequest {
            driver: "cdi".to_owned(),
            device_ids: Some(cdi),
            ..DeviceRequest::default()
        });
    }
    Ok(Resources {
        cpu_shares: parsed.int("cpu-shares").unwrap_or(0),
        memory: parsed.bytes("memory"),
        nano_cpus: parsed.last("cpus").map_or(Ok(0), units::nano_cpus)?,
        cgroup_parent: parsed.text("cgroup-parent").to_owned(),
        blkio_weight: parsed
            .int("blkio-weight")
            .and_then(|w| u16::try_from(w).ok())
            .unwrap_or(0),
        blkio_weight_device: Some(each(parsed, "blkio-weight-device", checks::weight)?),
        blkio_device_read_bps: Some(each(parsed, "device-read-bps", checks::bps)?),
        blkio_device_write_bps: Some(each(parsed, "device-write-bps", checks::bps)?),
        blkio_device_read_iops: Some(each(parsed, "device-read-iops", checks::iops)?),
        blkio_device_write_iops: Some(each(parsed, "device-write-iops", checks::iops)?),
        cpu_period: parsed.int("cpu-period").unwrap_or(0),
        cpu_quota: parsed.int("cpu-quota").unwrap_or(0),
        cpu_realtime_period: parsed.int("cpu-rt-period").unwrap_or(0),
        cpu_realtime_runtime: parsed.int("cpu-rt-runtime").unwrap_or(0),
        cpuset_cpus: parsed.text("cpuset-cpus").to_owned(),
        cpuset_mems: parsed.text("cpuset-mems").to_owned(),
        devices: Some(devices),
        device_cgroup_rules: optional(parsed.list("device-cgroup-rule")),
        device_requests: (!requests.is_empty()).then_some(requests),
        memory_reservation: parsed.bytes("memory-reservation"),
        memory_swap: parsed.bytes("memory-swap"),
        memory_swappiness: Some(swappiness),
        oom_kill_disable: Some(parsed.flag("oom-kill-disable")),
        pids_limit: Some(parsed.int("pids-limit").unwrap_or(0)),
        ulimits: Some(each(parsed, "ulimit", checks::ulimit)?),
        ..Resources::default()
    })
}
