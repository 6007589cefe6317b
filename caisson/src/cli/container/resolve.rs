//! from parsed `run`/`create` flags to the body of `POST /containers/create`: one pure function, given a way to read files.

use std::collections::BTreeMap;

use caisson_api::{
    ContainerConfig, ContainerCreateBody, DeviceRequest, Empty, EndpointIpamConfig,
    EndpointSettings, HealthConfig, HostConfig, LogConfig, NetworkingConfig, Resources,
    RestartPolicy,
};

use super::{checks, mount_flag, port_flag};
use crate::cli::flags::Parsed;
use crate::cli::units;

/// What the world outside the command line contributes.
pub struct Surroundings<'a> {
    /// Reads a file the user named.
    pub read: &'a dyn Fn(&str) -> Result<String, String>,
    /// Looks up an environment variable.
    pub lookup: &'a dyn Fn(&str) -> Option<String>,
    /// Proxy settings every container gets.
    pub proxies: &'a [(String, String)],
    /// Rows and columns of the user's terminal, 0 without one.
    pub console: [u32; 2],
}

/// A container to create.
#[derive(Debug, PartialEq)]
pub struct Plan {
    /// The request's body.
    pub body: ContainerCreateBody,
    /// The image as typed.
    pub image: String,
}

/// Resolves `create`'s flags; for `run`, `detach` says whether anything is attached by default.
pub fn resolve(parsed: &Parsed, detach: bool, around: &Surroundings) -> Result<Plan, String> {
    let image = parsed.operands.first().cloned().unwrap_or_default();
    let config = config(parsed, detach, &image, around)?;
    let host_config = host_config(parsed, around)?;
    let networking_config = networking(parsed, &host_config.network_mode)?;
    Ok(Plan {
        body: ContainerCreateBody {
            config,
            host_config: Some(host_config),
            networking_config: Some(networking_config),
        },
        image,
    })
}

fn optional(list: &[String]) -> Option<Vec<String>> {
    (!list.is_empty()).then(|| list.to_vec())
}

fn key_values(list: &[String]) -> BTreeMap<String, String> {
    list.iter()
        .map(|kv| {
            kv.split_once('=')
                .map_or((kv.clone(), String::new()), |(k, v)| (k.into(), v.into()))
        })
        .collect()
}

/// Lines of `--env-file` and `--label-file`. A bare name takes the caller's value (`lookup`) or, for environments, is dropped.
fn file_lines(path: &str, around: &Surroundings, lookup: bool) -> Result<Vec<String>, String> {
    let text = (around.read)(path)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut lines = Vec::new();
    for line in text.lines() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split('=').next().unwrap_or("");
        if name.is_empty() {
            return Err(format!(
                "invalid env file ({path}): no variable name on line '{line}'"
            ));
        }
        if name.contains([' ', '\t']) {
            return Err(format!(
                "invalid env file ({path}): variable '{name}' contains whitespaces"
            ));
        }
        if line.contains('=') {
            lines.push(line.to_owned());
        } else if lookup {
            lines.extend((around.lookup)(name).map(|value| format!("{name}={value}")));
        } else {
            lines.push(line.to_owned());
        }
    }
    Ok(lines)
}

/// `--env-file` then `--env`.
pub fn environment(parsed: &Parsed, around: &Surroundings) -> Result<Vec<String>, String> {
    let mut env = Vec::new();
    for path in parsed.list("env-file") {
        env.extend(file_lines(path, around, true)?);
    }
    env.extend(parsed.list("env").iter().cloned());
    Ok(env)
}

fn config(
    parsed: &Parsed,
    detach: bool,
    image: &str,
    around: &Surroundings,
) -> Result<ContainerConfig, String> {
    let attach = parsed.list("attach");
    let wants = |stream: &str| attach.iter().any(|a| a == stream);
    let interactive = parsed.flag("interactive");
    // Without --attach: output always, input when it is kept open; nothing at all in the background.
    let (stdin, stdout, stderr) = match (attach, detach) {
        ([], true) => (false, false, false),
        ([], false) => (interactive, true, true),
        _ => (
            wants("stdin") || interactive,
            wants("stdout"),
            wants("stderr"),
        ),
    };
    let mut exposed = BTreeMap::new();
    let mut bindings = port_flag::Bindings::new();
    for spec in parsed.list("publish") {
        port_flag::publish(spec, &mut bindings)?;
    }
    exposed.extend(bindings.into_keys().map(|p| (p, Empty)));
    for spec in parsed.list("expose") {
        exposed.extend(port_flag::expose(spec)?.into_iter().map(|p| (p, Empty)));
    }
    let mut volumes = BTreeMap::new();
    for spec in parsed.list("volume") {
        if let mount_flag::Volume::Anonymous(target) = mount_flag::volume(spec)? {
            volumes.insert(target, Empty);
        }
    }
    let mut env = environment(parsed, around)?;
    for (name, value) in around.proxies {
        if !env.iter().any(|e| e.split('=').next() == Some(name)) {
            env.push(format!("{name}={value}"));
        }
    }
    let mut labels = Vec::new();
    for path in parsed.list("label-file") {
        labels.extend(file_lines(path, around, false)?);
    }
    labels.extend(parsed.list("label").iter().cloned());
    let command = parsed.operands.get(1..).unwrap_or_default();
    Ok(ContainerConfig {
        hostname: parsed.text("hostname").to_owned(),
        domainname: parsed.text("domainname").to_owned(),
        user: parsed.text("user").to_owned(),
        attach_stdin: stdin,
        attach_stdout: stdout,
        attach_stderr: stderr,
        exposed_ports: (!exposed.is_empty()).then_some(exposed),
        tty: parsed.flag("tty"),
        open_stdin: interactive,
        stdin_once: interactive && stdin,
        env: Some(env),
        cmd: optional(command),
        healthcheck: healthcheck(parsed)?,
        image: image.to_owned(),
        volumes: Some(volumes),
        working_dir: parsed.text("workdir").to_owned(),
        entrypoint: parsed.last("entrypoint").map(|e| vec![e.to_owned()]),
        labels: Some(key_values(&labels)),
        stop_signal: parsed.text("stop-signal").to_owned(),
        stop_timeout: parsed.int("stop-timeout"),
        ..ContainerConfig::default()
    })
}

fn healthcheck(parsed: &Parsed) -> Result<Option<HealthConfig>, String> {
    let any = [
        "cmd",
        "interval",
        "timeout",
        "start-period",
        "start-interval",
        "retries",
    ]
    .iter()
    .any(|f| parsed.given(&format!("health-{f}")));
    if parsed.flag("no-healthcheck") {
        if any {
            return Err("--no-healthcheck conflicts with --health-* options".to_owned());
        }
        return Ok(Some(HealthConfig {
            test: Some(vec!["NONE".to_owned()]),
            ..HealthConfig::default()
        }));
    }
    if !any {
        return Ok(None);
    }
    let duration = |name: &str| match parsed.duration_ns(name) {
        negative if negative < 0 => Err(format!("--{name} cannot be negative")),
        fine => Ok(fine),
    };
    let retries = parsed.int("health-retries").unwrap_or(0);
    if retries < 0 {
        return Err("--health-retries cannot be negative".to_owned());
    }
    let command = parsed.text("health-cmd");
    Ok(Some(HealthConfig {
        test: (!command.is_empty()).then(|| vec!["CMD-SHELL".to_owned(), command.to_owned()]),
        interval: duration("health-interval")?,
        timeout: duration("health-timeout")?,
        start_period: duration("health-start-period")?,
        start_interval: duration("health-start-interval")?,
        retries,
    }))
}

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

fn host_config(parsed: &Parsed, around: &Surroundings) -> Result<HostConfig, String> {
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
    let network_mode = networks.first().map_or("default", |n| network_name(n));
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

/// `--network name=net,alias=a` names its network inside.
fn network_name(text: &str) -> &str {
    text.split(',')
        .find_map(|f| f.strip_prefix("name="))
        .unwrap_or(text)
}

fn networking(parsed: &Parsed, first: &str) -> Result<NetworkingConfig, String> {
    let aliased = parsed.given("network-alias") || parsed.given("net-alias");
    if aliased && ["default", "bridge", "host", "none"].contains(&first) {
        return Err(
            "network-scoped aliases are only supported for user-defined networks".to_owned(),
        );
    }
    let mut endpoints = BTreeMap::new();
    for (i, text) in [parsed.list("network"), parsed.list("net")]
        .concat()
        .iter()
        .enumerate()
    {
        let name = network_name(text).to_owned();
        let mut settings = EndpointSettings::default();
        let mut ipam = EndpointIpamConfig::default();
        if text.contains("name=") {
            for field in text.split(',') {
                match field.split_once('=') {
                    Some(("name", _)) => {}
                    Some(("alias", value)) => settings
                        .aliases
                        .get_or_insert_default()
                        .push(value.to_owned()),
                    Some(("ip", value)) => ipam.ipv4_address = value.to_owned(),
                    Some(("ip6", value)) => ipam.ipv6_address = value.to_owned(),
                    Some(("mac-address", value)) => settings.mac_address = value.to_owned(),
                    Some(("driver-opt", value)) => {
                        let (k, v) = value.split_once('=').unwrap_or((value, ""));
                        settings
                            .driver_opts
                            .get_or_insert_default()
                            .insert(k.to_owned(), v.to_owned());
                    }
                    _ => return Err(format!("invalid field in --network: {field}")),
                }
            }
        }
        if i == 0 {
            single_network(parsed, &mut settings, &mut ipam);
        }
        settings.ipam_config = (ipam != EndpointIpamConfig::default()).then_some(ipam);
        // Docker's own networks take no options, and an empty entry would say nothing.
        if ["host", "none", "bridge"].contains(&name.as_str())
            && settings == EndpointSettings::default()
        {
            continue;
        }
        if endpoints.insert(name.clone(), settings).is_some() {
            return Err(format!("network {name:?} is specified multiple times"));
        }
    }
    if endpoints.is_empty() && first == "default" {
        let mut settings = EndpointSettings::default();
        let mut ipam = EndpointIpamConfig::default();
        single_network(parsed, &mut settings, &mut ipam);
        settings.ipam_config = (ipam != EndpointIpamConfig::default()).then_some(ipam);
        endpoints.insert(first.to_owned(), settings);
    }
    Ok(NetworkingConfig {
        endpoints_config: Some(endpoints),
    })
}

/// Flags that belong to the first network: `--ip`, `--network-alias` and their kind.
fn single_network(parsed: &Parsed, settings: &mut EndpointSettings, ipam: &mut EndpointIpamConfig) {
    let aliases = [parsed.list("network-alias"), parsed.list("net-alias")].concat();
    if !aliases.is_empty() {
        settings.aliases.get_or_insert_default().extend(aliases);
    }
    for (flag, field) in [
        ("ip", &mut ipam.ipv4_address),
        ("ip6", &mut ipam.ipv6_address),
    ] {
        if parsed.given(flag) {
            *field = parsed.text(flag).to_owned();
        }
    }
    ipam.link_local_ips
        .extend_from_slice(parsed.list("link-local-ip"));
    if parsed.given("mac-address") {
        settings.mac_address = parsed.text("mac-address").to_owned();
    }
}

#[cfg(test)]
mod tests {
    use super::super::create_flags;
    use super::*;
    use crate::cli::flags;

    fn planned(words: &[&str], detach: bool) -> Result<Plan, String> {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        let parsed = flags::parse(
            &[
                create_flags::CREATE,
                create_flags::RUN,
                create_flags::ALIASES,
            ],
            false,
            &words,
        )?;
        let around = Surroundings {
            read: &|path| match path {
                "/env" => Ok("\u{feff}# note\nA=1\n\n  B=2 3\nHOME\nUNSET\n".to_owned()),
                "/bad" => Ok("=x\n".to_owned()),
                "/spaces" => Ok("a b=x\n".to_owned()),
                "/labels" => Ok("x=y\nbare\n".to_owned()),
                "/seccomp" => Ok("{ \"a\": 1 }\n".to_owned()),
                _ => Err(format!("open {path}: no such file or directory")),
            },
            lookup: &|name| (name == "HOME").then(|| "/h".to_owned()),
            proxies: &[],
            console: [24, 80],
        };
        resolve(&parsed, detach, &around)
    }

    fn host(words: &[&str]) -> HostConfig {
        let words = [words, &["img"]].concat();
        planned(&words, false)
            .expect("valid")
            .body
            .host_config
            .expect("always there")
    }

    fn config(words: &[&str], detach: bool) -> ContainerConfig {
        let words = [words, &["img"]].concat();
        planned(&words, detach).expect("valid").body.config
    }

    #[test]
    fn streams_follow_interactive_detach_and_attach() {
        let streams = |words: &[&str], detach| {
            let c = config(words, detach);
            (
                c.attach_stdin,
                c.attach_stdout,
                c.attach_stderr,
                c.open_stdin,
                c.stdin_once,
            )
        };
        assert_eq!(streams(&[], false), (false, true, true, false, false));
        assert_eq!(streams(&["-i"], false), (true, true, true, true, true));
        assert_eq!(streams(&["-i"], true), (false, false, false, true, false));
        assert_eq!(
            streams(&["-a", "STDERR"], false),
            (false, false, true, false, false)
        );
        assert_eq!(
            streams(&["-i", "-a", "stdout"], false),
            (true, true, false, true, true)
        );
    }

    #[test]
    fn environment_files_come_first_and_resolve_bare_names() {
        let env = config(&["-e", "Z=9", "--env-file", "/env"], false)
            .env
            .expect("always there");
        assert_eq!(env, ["A=1", "B=2 3", "HOME=/h", "Z=9"]);
        let labels = config(&["--label-file", "/labels", "-l", "k=v=w"], false)
            .labels
            .expect("always there");
        assert_eq!(
            (
                labels["x"].as_str(),
                labels["bare"].as_str(),
                labels["k"].as_str()
            ),
            ("y", "", "v=w")
        );
    }

    #[test]
    fn limits_and_modes_land_in_the_host_config() {
        let h = host(&[
            "-m",
            "64m",
            "--cpus",
            "1.5",
            "--pids-limit",
            "20",
            "--network",
            "none",
            "--isolation",
            "vm",
            "--init",
            "--rm",
        ]);
        assert_eq!(
            (
                h.resources.memory,
                h.resources.nano_cpus,
                h.resources.pids_limit
            ),
            (64 << 20, 1_500_000_000, Some(20))
        );
        assert_eq!(
            (
                h.network_mode.as_str(),
                h.isolation.as_str(),
                h.init,
                h.auto_remove
            ),
            ("none", "vm", Some(true), true)
        );
        assert_eq!(host(&[]).network_mode, "default");
        assert_eq!(host(&["--init=false"]).init, Some(false));
        let h = host(&[
            "--cap-add",
            "net_admin",
            "--cap-drop",
            "all",
            "--cap-drop",
            "CAP_NET_ADMIN",
        ]);
        assert_eq!(
            (h.cap_add, h.cap_drop),
            (
                Some(vec!["CAP_NET_ADMIN".to_owned()]),
                Some(vec!["ALL".to_owned()])
            )
        );
        let h = host(&["--restart", "on-failure:3"]);
        assert_eq!(
            (
                h.restart_policy.name.as_str(),
                h.restart_policy.maximum_retry_count
            ),
            ("on-failure", 3)
        );
        let h = host(&[
            "--tmpfs",
            "/t:size=1m",
            "-v",
            "/a:/b:ro",
            "-v",
            "/anon",
            "--mount",
            "type=tmpfs,dst=/m",
        ]);
        assert_eq!(h.binds, Some(vec!["/a:/b:ro".to_owned()]));
        assert_eq!(h.tmpfs.expect("given")["/t"], "size=1m");
        assert_eq!(h.mounts.expect("given").len(), 1);
        let h = host(&[
            "--security-opt",
            "seccomp=/seccomp",
            "--security-opt",
            "no-new-privileges",
            "--security-opt",
            "systempaths=unconfined",
        ]);
        assert_eq!(
            h.security_opt,
            Some(vec![
                "seccomp={\"a\":1}".to_owned(),
                "no-new-privileges".to_owned()
            ])
        );
        assert_eq!(
            (h.masked_paths, h.readonly_paths),
            (Some(vec![]), Some(vec![]))
        );
    }

    #[test]
    fn health_flags() {
        let h = config(
            &[
                "--health-cmd",
                "true",
                "--health-interval",
                "5s",
                "--health-retries",
                "2",
            ],
            false,
        )
        .healthcheck
        .expect("given");
        assert_eq!(
            (h.test, h.interval, h.retries),
            (
                Some(vec!["CMD-SHELL".into(), "true".into()]),
                5_000_000_000,
                2
            )
        );
        let h = config(&["--no-healthcheck"], false)
            .healthcheck
            .expect("given");
        assert_eq!(h.test, Some(vec!["NONE".to_owned()]));
    }

    #[test]
    fn command_and_entrypoint() {
        let plan = planned(&["--entrypoint", "", "img", "-x", "--rm"], false).expect("valid");
        assert_eq!(
            plan.body.config.cmd,
            Some(vec!["-x".to_owned(), "--rm".to_owned()])
        );
        assert_eq!(plan.body.config.entrypoint, Some(vec![String::new()]));
        assert_eq!(plan.image, "img");
    }

    #[test]
    fn contradictions_and_nonsense_are_refused() {
        for (words, message) in [
            (
                &["--rm", "--restart", "always"][..],
                "conflicting options: cannot specify both --restart and --rm",
            ),
            (
                &["--memory-swappiness", "200"],
                "invalid value: 200. Valid memory swappiness range is 0-100",
            ),
            (
                &["--no-healthcheck", "--health-cmd", "x"],
                "--no-healthcheck conflicts with --health-* options",
            ),
            (
                &["--health-interval=-1s"],
                "--health-interval cannot be negative",
            ),
            (
                &["--restart", ":3"],
                "invalid restart policy format: no policy provided before colon",
            ),
            (
                &["--restart", "on-failure:x"],
                "invalid restart policy format: maximum retry count must be an integer",
            ),
            (&["--pid", "foo"], "--pid: invalid PID mode"),
            (&["--uts", "foo"], "--uts: invalid UTS mode"),
            (
                &["--security-opt", "foo"],
                "Invalid --security-opt: \"foo\"",
            ),
            (
                &["--security-opt", "seccomp=/no"],
                "opening seccomp profile (/no) failed: open /no: no such file or directory",
            ),
            (
                &["--env-file", "/no"],
                "open /no: no such file or directory",
            ),
            (
                &["--env-file", "/bad"],
                "invalid env file (/bad): no variable name on line '=x'",
            ),
            (
                &["--env-file", "/spaces"],
                "invalid env file (/spaces): variable 'a b' contains whitespaces",
            ),
            (
                &["--log-driver", "none", "--log-opt", "a=b"],
                "invalid logging opts for driver none",
            ),
            (&["--storage-opt", "size"], "invalid storage option"),
            (&["--device", "x:y:z"], "bad mode specified: z"),
        ] {
            let words = [words, &["img"]].concat();
            assert_eq!(planned(&words, false).expect_err(message), message);
        }
    }
}
