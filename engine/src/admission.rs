//! What a container may ask for: every flag is understood, refused with a reason, or known to have no effect here.
//!
//! Must not know: how a container is made.

use caisson_api as api;
use caisson_runtime::Isolation;

use crate::create::cpus_online;
use crate::error::{Error, ErrorKind, Result};
use crate::logs::Driver;
use crate::restart::Policy;
use crate::spec::idmap::IdMap;
use crate::spec::namespaces::{Choice, Ipc, Namespaces};
use crate::spec::security::Security;
use crate::spec::{self, capabilities, devices, files, mounts, resources};
use crate::{Inner, health, signals, wall};

/// The portable half.
pub(crate) fn check_config(config: &api::ContainerConfig) -> Result<()> {
    files::check_hostname(config)?;
    if !config.stop_signal.is_empty() && signals::parse(&config.stop_signal).is_none() {
        return Err(Error::invalid(format!(
            "Invalid signal: {}",
            config.stop_signal
        )));
    }
    if let Some(check) = &config.healthcheck {
        health::validate(check).map_err(Error::invalid)?;
    }
    for entry in config.env.iter().flatten() {
        if entry.is_empty() || entry.starts_with('=') || entry.contains('\0') {
            return Err(Error::invalid(format!(
                "invalid environment variable: {entry}"
            )));
        }
    }
    if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
        return Err(Error::invalid(format!(
            "the working directory '{}' is invalid, it needs to be an absolute path",
            config.working_dir
        )));
    }
    for port in config.exposed_ports.iter().flatten().map(|(p, _)| p) {
        check_port(port)?;
    }
    Ok(())
}

/// `80`, `80/tcp`, `8000-8010/udp`.
fn check_port(text: &str) -> Result<()> {
    let bad = || Error::invalid(format!("invalid port specification: \"{text}\""));
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if !matches!(
        protocol.to_ascii_lowercase().as_str(),
        "tcp" | "udp" | "sctp"
    ) {
        return Err(Error::invalid(format!("Invalid proto: {protocol}")));
    }
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let (first, last): (u16, u16) = (
        first.parse().map_err(|_| bad())?,
        last.parse().map_err(|_| bad())?,
    );
    if first == 0 || first > last {
        return Err(bad());
    }
    Ok(())
}

/// Networking comes with its own issue: what would be silently wrong is refused.
pub(crate) fn check_networks(
    host: &api::HostConfig,
    networking: Option<&api::NetworkingConfig>,
) -> Result<()> {
    let published = host
        .port_bindings
        .iter()
        .flatten()
        .any(|(_, b)| b.as_ref().is_none_or(|b| !b.is_empty()));
    for (port, _) in host.port_bindings.iter().flatten() {
        check_port(port)?;
    }
    if (published || host.publish_all_ports) && host.network_mode != "host" {
        return Err(Error::not_implemented(
            "ports cannot be published yet (-p, -P): containers of this version have a loopback interface only; use --network host \
             to reach a server of the container",
        ));
    }
    if host.links.as_ref().is_some_and(|l| !l.is_empty()) {
        return Err(Error::not_implemented(
            "links between containers (--link) are not available",
        ));
    }
    for (name, endpoint) in networking
        .and_then(|n| n.endpoints_config.as_ref())
        .into_iter()
        .flatten()
    {
        let known = matches!(name.as_str(), "" | "default" | "bridge" | "none" | "host");
        if !known && *name != host.network_mode {
            // Not "not found": here Docker's command line would take that for the image and pull it.
            return Err(Error::invalid(format!("network {name} not found")));
        }
        let fixed = endpoint
            .ipam_config
            .as_ref()
            .is_some_and(|i| !(i.ipv4_address.is_empty() && i.ipv6_address.is_empty()));
        if fixed {
            return Err(Error::invalid(
                "user specified IP address is supported on user defined networks only: there are none yet",
            ));
        }
    }
    Ok(())
}

/// Fills in what the daemon's configuration decides.
pub(crate) fn settle(
    inner: &Inner,
    isolation: Isolation,
    host: &mut api::HostConfig,
    warnings: &mut Vec<String>,
) -> Result<()> {
    host.log_config = inner.log_config(&host.log_config);
    warnings.extend(resources::check(&mut host.resources, cpus_online())?);
    if let Some(runtime) = inner.runtimes.for_recovery(isolation) {
        let controllers = &runtime.capabilities().controllers;
        warnings.extend(resources::discard_unsupported(
            &mut host.resources,
            controllers,
        )?);
        let v1_only = inner.cgroup_v2(isolation) && !inner.host_cgroup_v2;
        warnings.extend(resources::discard_v1_only(&mut host.resources, v1_only));
    }
    if host.restart_policy.name.is_empty() {
        host.restart_policy.name = "no".into();
    }
    if host.network_mode.is_empty() {
        host.network_mode = "default".into();
    }
    if host.shm_size < 0 {
        return Err(Error::invalid("SHM size can not be less than 0"));
    }
    if host.shm_size == 0 {
        host.shm_size = i64::try_from(inner.config.default_shm_size_bytes).unwrap_or(i64::MAX);
    }
    if host.ipc_mode.is_empty() {
        host.ipc_mode = "private".into();
    }
    if host.cgroupns_mode.is_empty() {
        host.cgroupns_mode = if inner.cgroup_v2(isolation) && !host.privileged {
            "private"
        } else {
            "host"
        }
        .into();
    }
    if host.runtime.is_empty() {
        host.runtime = "caisson".into();
    }
    let own = |list: &[&str]| Some(list.iter().map(|s| s.to_string()).collect::<Vec<_>>());
    if host.privileged {
        host.masked_paths = None;
        host.readonly_paths = None;
    } else {
        if host.masked_paths.is_none() {
            host.masked_paths = own(&spec::MASKED_PATHS);
        }
        if host.readonly_paths.is_none() {
            host.readonly_paths = own(&spec::READONLY_PATHS);
        }
    }
    Ok(())
}

/// The host's half.
pub(crate) fn check_host(
    inner: &Inner,
    isolation: Isolation,
    config: &api::ContainerConfig,
    host: &api::HostConfig,
    warnings: &mut Vec<String>,
) -> Result<Namespaces> {
    let namespaces = Namespaces::read(host)?;
    let mounts = mounts::requested(host)?;
    if let Some(runtime) = inner.runtimes.for_recovery(isolation) {
        wall::check(runtime.capabilities(), host, &namespaces, &mounts)?;
    }
    for name in namespaces.joined() {
        let joined = inner.container(name)?.view();
        wall::check_joined(name, joined.definition.isolation)?;
    }
    if matches!(namespaces.ipc, Ipc::Shared(Choice::Container(_))) {
        return Err(Error::not_implemented(
            "--ipc container:… is not available yet: the other container's /dev/shm cannot be shared; use --ipc host or bind one \
             directory into both containers",
        ));
    }
    if matches!(namespaces.network, Choice::Host | Choice::Container(_))
        && !config.mac_address.is_empty()
    {
        return Err(Error::invalid(
            "conflicting options: mac-address and the network mode",
        ));
    }
    if matches!(namespaces.network, Choice::Container(_)) {
        if !config.hostname.is_empty() {
            return Err(Error::invalid(
                "conflicting options: hostname and the network mode",
            ));
        }
        if host.extra_hosts.as_ref().is_some_and(|h| !h.is_empty()) {
            return Err(Error::invalid(
                "conflicting options: custom host-to-IP mapping and the network mode",
            ));
        }
        if host.dns.as_ref().is_some_and(|d| !d.is_empty()) {
            return Err(Error::invalid(
                "conflicting options: dns and the network mode",
            ));
        }
    }
    if namespaces.uts_host && !config.hostname.is_empty() {
        return Err(Error::invalid(
            "conflicting options: hostname and the UTS mode",
        ));
    }
    files::check_dns(host)?;
    for entry in host.extra_hosts.iter().flatten() {
        files::extra_host(entry)?;
    }
    capabilities::bounding(
        host.cap_add.as_deref().unwrap_or_default(),
        host.cap_drop.as_deref().unwrap_or_default(),
        host.privileged,
    )?;
    let security = Security::read(
        host.security_opt.as_deref().unwrap_or_default(),
        host.privileged,
    )?;
    if let spec::security::Seccomp::Profile(json) = &security.seccomp {
        crate::seccomp_for(Some(json), &Default::default())?;
    }
    warnings.extend(security.warnings);
    devices::rules(
        false,
        &[],
        host.resources
            .device_cgroup_rules
            .as_deref()
            .unwrap_or_default(),
    )?;
    spec::sysctls(host, &namespaces, false)?;
    for mount in mounts {
        mount.check_source()?;
    }
    if host.volumes_from.as_ref().is_some_and(|v| !v.is_empty()) {
        return Err(Error::not_implemented(
            "--volumes-from is not available: this version of caisson has no volumes yet",
        ));
    }
    let policy = &host.restart_policy;
    let policy = Policy::parse(&policy.name, policy.maximum_retry_count).map_err(Error::invalid)?;
    if host.auto_remove && policy != Policy::No {
        return Err(Error::invalid(
            "can't create 'AutoRemove' container with restart policy",
        ));
    }
    Driver::read(&host.log_config)?;
    if !(-1000..=1000).contains(&host.oom_score_adj) {
        return Err(Error::invalid(format!(
            "Invalid value {}, range for oom score adj is [-1000, 1000]",
            host.oom_score_adj
        )));
    }
    Ok(namespaces)
}

/// What there is to say about an isolation without a runtime.
pub(crate) fn no_such_isolation(isolation: Isolation) -> Error {
    Error::not_implemented(format!(
        "this build of caisson has no isolation {isolation}; nothing was started behind a weaker wall instead"
    ))
}

impl Inner {
    /// The isolation that a container asks for, by `--isolation` and `--runtime`: never weaker than asked.
    pub(crate) fn resolve_isolation(&self, host: &api::HostConfig) -> Result<Isolation> {
        let by_runtime = match host.runtime.as_str() {
            "" => None,
            "caisson" => None,
            "runc" | "io.containerd.runc.v2" => Some(Isolation::Container),
            name => Some(*self.config.runtimes.get(name).ok_or_else(|| {
                Error::invalid(format!("unknown or invalid runtime name: {name}"))
            })?),
        };
        let asked = match host.isolation.to_ascii_lowercase().as_str() {
            "" | "default" => None,
            text => Some(text.parse::<Isolation>().map_err(|_| {
                Error::invalid(format!(
                    "invalid isolation \"{}\": use container, vm or default",
                    host.isolation
                ))
            })?),
        };
        let isolation = match (asked, by_runtime) {
            (Some(a), Some(b)) if a != b => {
                return Err(Error::invalid(format!(
                    "conflicting options: --isolation={a} and --runtime={} (which is {b})",
                    host.runtime
                )));
            }
            (asked, by_runtime) => asked
                .or(by_runtime)
                .unwrap_or(self.config.default_isolation),
        };
        if let Some(required) = self.config.require_isolation
            && required != isolation
        {
            return Err(Error::new(
                ErrorKind::Forbidden,
                format!(
                    "isolation {isolation} is not allowed: the daemon was started with --require-isolation={required}"
                ),
            ));
        }
        if let Err(e) = self.runtimes.get(isolation) {
            return Err(Error::not_implemented(format!(
                "isolation {isolation} is not available on this host, and nothing was started behind a weaker wall instead: {e}"
            )));
        }
        Ok(isolation)
    }

    /// Whether containers of an isolation see cgroups of version 2: a guest has a kernel of ours.
    pub(crate) fn cgroup_v2(&self, isolation: Isolation) -> bool {
        isolation == Isolation::Vm || self.host_cgroup_v2
    }

    /// The user namespace of a new container.
    pub(crate) fn idmap_for(
        &self,
        namespaces: &Namespaces,
        host: &api::HostConfig,
    ) -> Result<Option<IdMap>> {
        let map = match (namespaces.user_private, self.idmap) {
            (Some(false), _) | (None, None) => return Ok(None),
            (None, Some(map)) => map,
            (Some(true), Some(map)) => map,
            (Some(true), None) => {
                let read = |path| std::fs::read_to_string(path).unwrap_or_default();
                spec::idmap::find("default", &read("/etc/subuid"), &read("/etc/subgid"))?
            }
        };
        if host.privileged {
            return Err(Error::invalid(
                "privileged mode is incompatible with user namespaces.  You must run the container in the host namespace when running privileged mode (--userns=host)",
            ));
        }
        if namespaces.network == Choice::Host || namespaces.pid == Choice::Host {
            return Err(Error::invalid(
                "cannot share the host's network or PID namespace when user namespaces are enabled: add --userns=host",
            ));
        }
        Ok(Some(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        for good in ["80", "80/tcp", "53/udp", "8000-8010/tcp"] {
            check_port(good).unwrap();
        }
        for bad in ["", "0", "x", "70000", "10-5", "80/icmp"] {
            assert!(check_port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn publishing_is_refused_not_ignored() {
        let host = |mode: &str| api::HostConfig {
            port_bindings: Some([("80/tcp".to_string(), None)].into()),
            network_mode: mode.into(),
            ..Default::default()
        };
        assert!(check_networks(&host(""), None).is_err());
        assert!(check_networks(&host("host"), None).is_ok());
    }
}
