//! Making a container: everything is checked first, then recorded, then made; what fails half-way is taken back.

use std::path::PathBuf;
use std::sync::Arc;

use caisson_api as api;
use caisson_runtime::Isolation;

use crate::container::{self, Dir};
use crate::db::{Durability, Row};
use crate::error::{Error, ErrorKind, Result};
use crate::image_source::RunnableImage;
use crate::logs::Driver;
use crate::options::CreateOptions;
use crate::records::{self, Definition, State, View};
use crate::restart::Policy;
use crate::spec::idmap::IdMap;
use crate::spec::namespaces::{Choice, Ipc, Namespaces};
use crate::spec::security::Security;
use crate::spec::{self, capabilities, devices, files, mounts, resources};
use crate::{Engine, Inner, health, init_layer, merge, names, signals};

/// CPUs that may be asked for.
pub(crate) fn cpus_online() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Gives a name back unless the container was made.
struct NameGuard<'a> {
    inner: &'a Inner,
    name: String,
    id: String,
    armed: bool,
}

impl Drop for NameGuard<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.inner.registry().index.release(&self.name, &self.id);
        }
    }
}

impl Engine {
    /// `POST /containers/create`.
    pub async fn create_container(
        &self,
        options: CreateOptions,
    ) -> Result<api::ContainerCreateResponse> {
        let inner = &self.inner;
        let wanted = options
            .name
            .as_deref()
            .filter(|n| !n.is_empty())
            .map(names::validate)
            .transpose()?;
        let api::ContainerCreateBody {
            config,
            host_config,
            networking_config,
        } = options.request;
        let mut host = host_config.unwrap_or_default();
        if config.image.is_empty() {
            return Err(Error::invalid("config.Image is empty: no image was named"));
        }
        let isolation = inner.resolve_isolation(&host)?;
        let image = inner
            .image_source
            .runnable(
                &config.image,
                options.platform.as_deref().filter(|p| !p.is_empty()),
            )
            .await?;
        let mut config = merge::with_image(config, &image.config);
        let mut warnings = Vec::new();
        check_config(&config)?;
        check_networks(&host, networking_config.as_ref())?;
        settle(inner, isolation, &mut host, &mut warnings)?;
        let namespaces = check_host(inner, &config, &host, &mut warnings)?;
        if namespaces.network == Choice::Host && config.hostname.is_empty() {
            config.hostname = host_name();
        }
        host.isolation = isolation.to_string();
        let mut command = merge::command(&config)?;
        let path = command.remove(0);
        let idmap = inner.idmap_for(&namespaces, &host)?;
        if config.volumes.as_ref().is_some_and(|v| !v.is_empty()) {
            tracing::debug!("the image's volumes are kept in the container's own file system");
        }
        let definition = Definition {
            created: api::Timestamp::now(),
            isolation,
            image_id: image.id.clone(),
            platform: if image.os.is_empty() {
                "linux".into()
            } else {
                image.os.clone()
            },
            layers: inner.layers_for(image).await?,
            path,
            args: command,
            config,
            host,
            idmap,
        };
        let id = names::new_id();
        let name = {
            let mut registry = inner.registry();
            match wanted {
                Some(name) => {
                    registry.index.reserve(&name, &id)?;
                    name
                }
                None => registry.index.reserve_random(&id),
            }
        };
        let mut guard = NameGuard {
            inner,
            name: name.clone(),
            id: id.clone(),
            armed: true,
        };
        let view = self.record_and_make(&id, name, definition).await?;
        guard.armed = false;
        if inner
            .image_source
            .size_bytes(&view.definition.image_id)
            .is_none()
        {
            // Removed since we found it.
            inner
                .delete_dir(Dir::new(&inner.config.data_root, &id).path().to_path_buf())
                .await?;
            inner.db.delete(id, Durability::Written).await?;
            guard.armed = true;
            return Err(Error::not_found(format!(
                "No such image: {}",
                view.definition.config.image
            )));
        }
        let view_for_event = view.clone();
        let handle = container::spawn(inner, view, None);
        inner.registry().containers.insert(id.clone(), handle);
        inner.container_event(&view_for_event, "create", &[]);
        Ok(api::ContainerCreateResponse { id, warnings })
    }

    async fn record_and_make(
        &self,
        id: &str,
        name: String,
        definition: Definition,
    ) -> Result<View> {
        let inner = &self.inner;
        let durability = inner.durability(&definition);
        let state = State::default();
        let row = Row {
            id: id.into(),
            name: name.clone(),
            created_ns: definition.created.unix_nanos(),
            definition: records::to_json(&definition)?,
            state: records::to_json(&state)?,
        };
        inner.db.insert(row, durability).await?;
        let dir = Dir::new(&inner.config.data_root, id);
        let (config, host, made_id) = (
            definition.config.clone(),
            definition.host.clone(),
            id.to_string(),
        );
        let (target, idmap) = (dir.clone(), definition.idmap);
        let made =
            tokio::task::spawn_blocking(move || make_dir(&target, &config, &host, &made_id, idmap))
                .await
                .map_err(|e| {
                    Error::internal(format!("making the container's directory failed: {e}"))
                })
                .and_then(|r| r);
        if let Err(e) = made {
            let _ = inner.delete_dir(dir.path().to_path_buf()).await;
            inner.db.delete(id.into(), Durability::Written).await?;
            return Err(e);
        }
        Ok(View {
            id: id.into(),
            name,
            definition: Arc::new(definition),
            state,
            pid: 0,
            health: None,
            exits: 0,
            removed: false,
        })
    }
}

fn make_dir(
    dir: &Dir,
    config: &api::ContainerConfig,
    host: &api::HostConfig,
    id: &str,
    idmap: Option<IdMap>,
) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    let fail = |path: &std::path::Path, e: std::io::Error| {
        Error::io(format!("cannot create {}", path.display()), &e)
    };
    let make = |path: &std::path::Path, mode: u32| {
        std::fs::DirBuilder::new()
            .mode(mode)
            .create(path)
            .map_err(|e| fail(path, e))
    };
    make(dir.path(), 0o710)?;
    make(&dir.upper(), 0o755)?;
    make(&dir.work(), 0o700)?;
    std::fs::set_permissions(dir.upper(), std::fs::Permissions::from_mode(0o755))
        .map_err(|e| fail(&dir.upper(), e))?;
    let own = dir.own_files();
    // Bound as they are, not shifted like the root file system: they belong to the container's root from the start.
    let (uid, gid) = idmap.map_or((None, None), |m| (Some(m.first_uid), Some(m.first_gid)));
    let write = |path: &std::path::Path, text: String| -> Result<()> {
        std::fs::write(path, text).map_err(|e| fail(path, e))?;
        std::os::unix::fs::chown(path, uid, gid).map_err(|e| fail(path, e))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
            .map_err(|e| fail(path, e))
    };
    write(&own.hostname, format!("{}\n", files::hostname(config, id)))?;
    write(&own.hosts, files::hosts(config, host, id)?)?;
    let resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    write(&own.resolv_conf, files::resolv_conf(&resolv, host))
}

/// The portable half.
fn check_config(config: &api::ContainerConfig) -> Result<()> {
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

/// What the host calls itself.
fn host_name() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Networking comes with its own issue: what would be silently wrong is refused.
fn check_networks(
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
            return Err(Error::not_found(format!("network {name} not found")));
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
fn settle(
    inner: &Inner,
    isolation: Isolation,
    host: &mut api::HostConfig,
    warnings: &mut Vec<String>,
) -> Result<()> {
    host.log_config = inner.log_config(&host.log_config);
    warnings.extend(resources::check(&mut host.resources, cpus_online())?);
    if let Some(runtime) = inner.runtimes.get(&isolation) {
        let controllers = &runtime.capabilities().controllers;
        warnings.extend(resources::discard_unsupported(
            &mut host.resources,
            controllers,
        )?);
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
        host.cgroupns_mode = if inner.cgroup_v2 && !host.privileged {
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
fn check_host(
    inner: &Inner,
    config: &api::ContainerConfig,
    host: &api::HostConfig,
    warnings: &mut Vec<String>,
) -> Result<Namespaces> {
    let namespaces = Namespaces::read(host)?;
    for name in namespaces.joined() {
        inner.container(name)?;
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
    for mount in mounts::requested(host)? {
        mount.check_source()?;
    }
    if host.volumes_from.as_ref().is_some_and(|v| !v.is_empty()) {
        return Err(Error::not_implemented(
            "--volumes-from is not available: this version of caisson has no volumes yet",
        ));
    }
    if let Some((key, _)) = host.storage_opt.iter().flatten().next() {
        return Err(Error::invalid(format!(
            "--storage-opt {key}: the size of a container's file system cannot be limited with overlay directories; put \
             --data-root on a file system of its own to bound all of them"
        )));
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

impl Inner {
    /// What a container's overlay is stacked on, topmost first. Those beneath the data root are recorded relative to it, so
    /// that it may be moved.
    async fn layers_for(&self, image: RunnableImage) -> Result<Vec<PathBuf>> {
        let root = self.config.data_root.clone();
        let task = tokio::task::spawn_blocking(move || {
            let mut layers = image.layers;
            if let Some(init) = init_layer::for_image(&root, &layers)? {
                layers.insert(0, init);
            }
            Ok(layers
                .iter()
                .map(|l| l.strip_prefix(&root).unwrap_or(l).to_path_buf())
                .collect())
        });
        task.await
            .map_err(|e| Error::internal(format!("looking into the image failed: {e}")))?
    }

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
        if !self.runtimes.contains_key(&isolation) {
            return Err(self.no_such_isolation(isolation));
        }
        Ok(isolation)
    }

    /// What there is to say about an isolation without a runtime.
    pub(crate) fn no_such_isolation(&self, isolation: Isolation) -> Error {
        let have: Vec<String> = self.runtimes.keys().map(ToString::to_string).collect();
        Error::not_implemented(format!(
            "isolation {isolation} is not available on this host with this build of caisson (available: {}); nothing was started \
             behind a weaker wall instead",
            have.join(", ")
        ))
    }

    /// The user namespace of a new container.
    fn idmap_for(&self, namespaces: &Namespaces, host: &api::HostConfig) -> Result<Option<IdMap>> {
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

    /// How safely a container's records are written: one that is to vanish anyway need not survive a power cut.
    pub(crate) fn durability(&self, definition: &Definition) -> Durability {
        if definition.host.auto_remove {
            Durability::Written
        } else {
            Durability::Flushed
        }
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
