//! `GET /info`: the daemon, its host and its limits.

use axum::extract::State;
use caisson_api::{Commit, IndexConfig, PluginsInfo, RegistryConfig, RuntimeInfo, SystemInfo};
use chrono::{SecondsFormat, Utc};

use super::App;
use super::body::json;
use super::error::ApiResult;
use super::system::kernel_version;

pub async fn info(State(app): State<App>) -> ApiResult {
    let images = app.engine.image_count().await?;
    let (running, paused, stopped) = app.engine.counts();
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let host = tokio::task::spawn_blocking(Host::look)
        .await
        .unwrap_or_default();
    let settings = &app.settings;
    let config = app.engine.config();
    let isolations = app.engine.isolations();
    let mut info = SystemInfo {
        id: app.id.to_string(),
        containers: count(running + paused + stopped),
        containers_running: count(running),
        containers_paused: count(paused),
        containers_stopped: count(stopped),
        images: count(images),
        driver: "overlay2".into(),
        driver_status: vec![
            [
                "Backing Filesystem".into(),
                filesystem_of(&config.data_root),
            ],
            ["Supports d_type".into(), "true".into()],
            [
                "Isolations".into(),
                isolations
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(" "),
            ],
        ],
        plugins: PluginsInfo {
            volume: vec!["local".into()],
            network: vec!["bridge".into(), "host".into(), "null".into()],
            authorization: None,
            log: vec!["json-file".into(), "local".into(), "none".into()],
        },
        memory_limit: host.has("memory"),
        swap_limit: host.swap_limit,
        cpu_cfs_period: host.has("cpu"),
        cpu_cfs_quota: host.has("cpu"),
        cpu_shares: host.has("cpu"),
        cpu_set: host.has("cpuset"),
        pids_limit: host.has("pids"),
        ipv4_forwarding: host.ipv4_forwarding,
        bridge_nf_iptables: false,
        bridge_nf_ip6tables: false,
        debug: settings.level == crate::daemon::Level::Debug,
        n_fd: host.open_fds,
        oom_kill_disable: host.cgroup_version == 1,
        n_goroutines: host.threads,
        system_time: Utc::now().to_rfc3339_opts(SecondsFormat::Nanos, true),
        logging_driver: config.log_driver.clone(),
        cgroup_driver: "cgroupfs".into(),
        cgroup_version: host.cgroup_version.to_string(),
        kernel_version: kernel_version(),
        operating_system: host.operating_system,
        os_version: host.os_version,
        os_type: "linux".into(),
        architecture: std::env::consts::ARCH.into(),
        index_server_address: "https://index.docker.io/v1/".into(),
        registry_config: RegistryConfig {
            insecure_registry_cidrs: vec!["127.0.0.0/8".into(), "::1/128".into()],
            mirrors: settings.registry_mirrors.clone(),
            ..Default::default()
        },
        ncpu: host.cpus,
        mem_total: host.memory_bytes,
        docker_root_dir: config.data_root.display().to_string(),
        name: host.name,
        server_version: env!("CARGO_PKG_VERSION").into(),
        default_runtime: "caisson".into(),
        live_restore_enabled: config.live_restore,
        isolation: config.default_isolation.to_string(),
        init_binary: "caisson-shim".into(),
        containerd_commit: Commit::default(),
        runc_commit: Commit::default(),
        init_commit: Commit::default(),
        security_options: vec!["name=seccomp,profile=builtin".into()],
        ..Default::default()
    };
    info.runtimes.insert(
        "caisson".into(),
        RuntimeInfo {
            path: "caisson-shim".into(),
            runtime_args: Vec::new(),
        },
    );
    let mut index = |name: &str, mirrors: Vec<String>, secure, official| {
        let entry = IndexConfig {
            name: name.to_owned(),
            mirrors,
            secure,
            official,
        };
        info.registry_config
            .index_configs
            .insert(name.to_owned(), entry);
    };
    index("docker.io", settings.registry_mirrors.clone(), true, true);
    for registry in &settings.insecure_registries {
        index(registry, Vec::new(), false, false);
    }
    if config.userns_remap.is_some() {
        info.security_options.push("name=userns".into());
    }
    if host.cgroup_version == 2 {
        info.security_options.push("name=cgroupns".into());
    }
    let missing: Vec<String> = [
        ("memory", info.memory_limit),
        ("cpu", info.cpu_cfs_quota),
        ("pids", info.pids_limit),
    ]
    .iter()
    .filter(|(_, there)| !there)
    .map(|(name, _)| {
        format!("WARNING: the {name} controller is missing: limits of that kind are refused")
    })
    .collect();
    info.warnings = (!missing.is_empty()).then_some(missing);
    Ok(json(&info))
}

/// What `/proc` and friends say of the host.
#[derive(Default)]
struct Host {
    name: String,
    operating_system: String,
    os_version: String,
    cpus: i64,
    memory_bytes: i64,
    cgroup_version: u8,
    controllers: Vec<String>,
    swap_limit: bool,
    ipv4_forwarding: bool,
    open_fds: i64,
    threads: i64,
}

impl Host {
    fn look() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let entries = |path: &str| {
            std::fs::read_dir(path).map_or(0, |d| i64::try_from(d.count()).unwrap_or(0))
        };
        let release = read("/etc/os-release");
        let release_field = |key: &str| {
            let line = release
                .lines()
                .find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches('"').to_owned()
        };
        let v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let controllers = if v2 {
            read("/sys/fs/cgroup/cgroup.controllers")
                .split_whitespace()
                .map(str::to_owned)
                .collect()
        } else {
            let enabled = |line: &str| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                (fields.len() == 4 && fields[3] == "1").then(|| fields[0].to_owned())
            };
            read("/proc/cgroups").lines().filter_map(enabled).collect()
        };
        let memory_kib = read("/proc/meminfo").lines().find_map(|l| {
            l.strip_prefix("MemTotal:")?
                .trim()
                .strip_suffix(" kB")?
                .trim()
                .parse::<i64>()
                .ok()
        });
        Host {
            name: nix::unistd::gethostname()
                .map(|n| n.to_string_lossy().into_owned())
                .unwrap_or_default(),
            operating_system: release_field("PRETTY_NAME"),
            os_version: release_field("VERSION_ID"),
            cpus: std::thread::available_parallelism()
                .map_or(1, |n| i64::try_from(n.get()).unwrap_or(1)),
            memory_bytes: memory_kib.unwrap_or(0) * 1024,
            cgroup_version: if v2 { 2 } else { 1 },
            controllers,
            swap_limit: v2
                || std::path::Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
                    .exists(),
            ipv4_forwarding: read("/proc/sys/net/ipv4/ip_forward").trim() == "1",
            open_fds: entries("/proc/self/fd"),
            threads: entries("/proc/self/task"),
        }
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }
}

/// The type of the file system at a path, as the mount table names it.
fn filesystem_of(path: &std::path::Path) -> String {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let covering = table.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (_, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
        path.starts_with(point).then_some((point.len(), kind))
    });
    // The last of the longest: later mounts cover earlier ones.
    covering
        .max_by_key(|(length, _)| *length)
        .map_or_else(|| "unknown".into(), |(_, kind)| kind.to_owned())
}
