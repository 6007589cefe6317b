//! A container's configuration turned into an OCI runtime spec: a pure function of [`Plan`].
//!
//! Whatever has to be looked up (accounts of the image, device nodes, other containers' process ids, the seccomp profile) is
//! looked up before and is part of the plan.
//!
//! Must not know: how a spec is executed; where records are kept.

pub(crate) mod accounts;
pub(crate) mod capabilities;
pub(crate) mod devices;
pub(crate) mod files;
pub(crate) mod idmap;
pub(crate) mod mounts;
pub(crate) mod namespaces;
pub(crate) mod process;
pub(crate) mod resources;
pub(crate) mod security;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use caisson_api as api;
use oci_spec::runtime::{
    Linux, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxSeccomp, Root,
    RootBuilder, Spec,
};

use crate::error::{Error, Result};
use accounts::Identity;
use devices::HostDevice;
use idmap::IdMap;
use mounts::Requested;
use namespaces::{Choice, Ipc, Namespaces};
use security::Security;

/// What Docker hides from a container.
pub(crate) const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// What Docker lets a container only read.
pub(crate) const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Process ids of the containers whose namespaces are joined.
#[derive(Clone, Debug, Default)]
pub(crate) struct Joined {
    pub network: Option<i32>,
    pub pid: Option<i32>,
    pub ipc: Option<i32>,
}

/// Files of ours that are bound into the container.
#[derive(Clone, Debug)]
pub(crate) struct OwnFiles {
    pub hostname: PathBuf,
    pub hosts: PathBuf,
    pub resolv_conf: PathBuf,
}

/// Everything that the spec follows from.
pub(crate) struct Plan<'a> {
    pub id: &'a str,
    pub config: &'a api::ContainerConfig,
    pub host: &'a api::HostConfig,
    /// Program and arguments.
    pub args: Vec<String>,
    pub namespaces: &'a Namespaces,
    pub security: &'a Security,
    pub seccomp: Option<LinuxSeccomp>,
    pub mounts: &'a [Requested],
    pub identity: Identity,
    pub joined: Joined,
    pub devices: &'a [HostDevice],
    pub idmap: Option<IdMap>,
    pub files: Option<&'a OwnFiles>,
    pub default_ulimits: &'a [(String, i64, i64)],
    pub default_shm_size_bytes: u64,
    pub cgroup_parent: &'a str,
    /// The host has cgroup v2 only.
    pub cgroup_v2: bool,
    /// Rows, columns.
    pub console_size: Option<(u16, u16)>,
}

/// Makes the spec.
pub(crate) fn build(plan: &Plan<'_>) -> Result<Spec> {
    let mut spec = Spec::default();
    spec.set_version("1.2.0".into());
    spec.set_root(Some(root(plan)));
    spec.set_process(Some(process::init(plan)?));
    spec.set_hostname(None);
    if !plan.namespaces.uts_host {
        spec.set_hostname(Some(files::hostname(plan.config, plan.id)));
        spec.set_domainname(Some(plan.config.domainname.clone()).filter(|d| !d.is_empty()));
    }
    spec.set_mounts(Some(all_mounts(plan)));
    let annotations: HashMap<String, String> = plan
        .host
        .annotations
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    spec.set_annotations(Some(annotations).filter(|a| !a.is_empty()));
    spec.set_hooks(None);
    spec.set_linux(Some(linux(plan)?));
    Ok(spec)
}

fn root(plan: &Plan<'_>) -> Root {
    RootBuilder::default()
        .path("rootfs")
        .readonly(plan.host.readonly_rootfs)
        .build()
        .expect("path and readonly are all there is")
}

fn all_mounts(plan: &Plan<'_>) -> Vec<oci_spec::runtime::Mount> {
    let shm_size_bytes = u64::try_from(plan.host.shm_size)
        .ok()
        .filter(|s| *s > 0)
        .unwrap_or(plan.default_shm_size_bytes);
    let host_ipc = plan.namespaces.ipc == Ipc::Shared(Choice::Host);
    let mut all = mounts::Defaults {
        privileged: plan.host.privileged,
        own_shm: plan.namespaces.ipc == Ipc::Own,
        host_shm: host_ipc,
        shm_size_bytes,
        cgroup_writable: plan.security.writable_cgroups,
    }
    .mounts();
    if let Some(own) = plan.files {
        all.push(mounts::bind_file(&own.resolv_conf, "/etc/resolv.conf"));
        all.push(mounts::bind_file(&own.hostname, "/etc/hostname"));
        all.push(mounts::bind_file(&own.hosts, "/etc/hosts"));
    }
    // A user's mount takes the place of one of ours at the same path, and of what we would mount below it.
    all.retain(|m| {
        !plan.mounts.iter().any(|r| {
            m.destination() == &r.target
                || (r.target.starts_with("/dev") && m.destination().starts_with(&r.target))
        })
    });
    all.extend(plan.mounts.iter().map(Requested::to_oci));
    all
}

fn linux(plan: &Plan<'_>) -> Result<Linux> {
    let mut linux = Linux::default();
    let mut resources = resources::to_oci(&plan.host.resources)?;
    let custom = plan
        .host
        .resources
        .device_cgroup_rules
        .clone()
        .unwrap_or_default();
    resources.set_devices(Some(devices::rules(
        plan.host.privileged,
        plan.devices,
        &custom,
    )?));
    linux.set_resources(Some(resources));
    linux.set_devices(Some(devices::nodes(plan.devices)).filter(|d| !d.is_empty()));
    linux.set_namespaces(Some(namespaces_of(plan)?));
    linux.set_seccomp(plan.seccomp.clone());
    linux.set_rootfs_propagation(Some(rootfs_propagation(plan)));
    linux.set_cgroups_path(Some(cgroups_path(plan.cgroup_parent, plan.id)));
    let sysctls = sysctls(plan.host, plan.namespaces, plan.idmap.is_some())?;
    linux.set_sysctl(Some(sysctls).filter(|s| !s.is_empty()));
    let list = |given: &Option<Vec<String>>, default: &[&str]| {
        if plan.host.privileged || plan.security.system_paths_unconfined {
            return None;
        }
        Some(
            given
                .clone()
                .unwrap_or_else(|| default.iter().map(|s| s.to_string()).collect()),
        )
        .filter(|l| !l.is_empty())
    };
    linux.set_masked_paths(list(&plan.host.masked_paths, &MASKED_PATHS));
    linux.set_readonly_paths(list(&plan.host.readonly_paths, &READONLY_PATHS));
    if let Some(map) = plan.idmap {
        let (uids, gids) = map.to_oci();
        linux.set_uid_mappings(Some(uids));
        linux.set_gid_mappings(Some(gids));
    }
    Ok(linux)
}

fn rootfs_propagation(plan: &Plan<'_>) -> String {
    use mounts::What;
    let asked = |names: &[&str]| {
        plan.mounts.iter().any(
            |m| matches!(&m.what, What::Bind { propagation: Some(p), .. } if names.contains(&p.as_str())),
        )
    };
    if asked(&["shared", "rshared"]) {
        "rshared".into()
    } else if asked(&["slave", "rslave"]) {
        "rslave".into()
    } else {
        "rprivate".into()
    }
}

fn cgroups_path(parent: &str, id: &str) -> PathBuf {
    let parent = if parent.is_empty() {
        "/caisson"
    } else {
        parent
    };
    Path::new("/").join(parent).join(id)
}

fn namespaces_of(plan: &Plan<'_>) -> Result<Vec<LinuxNamespace>> {
    use LinuxNamespaceType as T;
    let own = |t: T| {
        LinuxNamespaceBuilder::default()
            .typ(t)
            .build()
            .expect("the type is set")
    };
    let join = |t: T, pid: Option<i32>, name: &str| -> Result<LinuxNamespace> {
        let pid = pid.ok_or_else(|| {
            Error::internal(format!(
                "the container whose {name} namespace is to be joined has no process"
            ))
        })?;
        Ok(LinuxNamespaceBuilder::default()
            .typ(t)
            .path(format!("/proc/{pid}/ns/{name}"))
            .build()
            .expect("type and path are set"))
    };
    let mut all = vec![own(T::Mount)];
    if plan.idmap.is_some() {
        all.push(own(T::User));
    }
    match &plan.namespaces.network {
        Choice::Own => all.push(own(T::Network)),
        Choice::Host => {}
        Choice::Container(_) => all.push(join(T::Network, plan.joined.network, "net")?),
    }
    match &plan.namespaces.pid {
        Choice::Own => all.push(own(T::Pid)),
        Choice::Host => {}
        Choice::Container(_) => all.push(join(T::Pid, plan.joined.pid, "pid")?),
    }
    match &plan.namespaces.ipc {
        Ipc::Own | Ipc::NoShm | Ipc::Shared(Choice::Own) => all.push(own(T::Ipc)),
        Ipc::Shared(Choice::Host) => {}
        Ipc::Shared(Choice::Container(_)) => all.push(join(T::Ipc, plan.joined.ipc, "ipc")?),
    }
    if !plan.namespaces.uts_host {
        all.push(own(T::Uts));
    }
    let private = plan
        .namespaces
        .cgroup_private
        .unwrap_or(plan.cgroup_v2 && !plan.host.privileged);
    if private {
        all.push(own(T::Cgroup));
    }
    Ok(all)
}

/// Sysctls: Docker's defaults, then the user's. Refuses those that would reach beyond the container.
pub(crate) fn sysctls(
    host: &api::HostConfig,
    namespaces: &Namespaces,
    remapped: bool,
) -> Result<HashMap<String, String>> {
    let mut all = HashMap::new();
    // the group range speaks of ids that a mapped user namespace does not have
    if namespaces.network == Choice::Own && !host.privileged && !remapped {
        all.insert(
            "net.ipv4.ip_unprivileged_port_start".to_string(),
            "0".to_string(),
        );
        all.insert(
            "net.ipv4.ping_group_range".to_string(),
            "0 2147483647".to_string(),
        );
    }
    const IPC: [&str; 9] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.auto_msgmni",
    ];
    for (key, value) in host.sysctls.iter().flatten() {
        let refuse = |why: &str| Err(Error::invalid(format!("sysctl \"{key}\" {why}")));
        if key.starts_with("net.") {
            if namespaces.network == Choice::Host {
                return refuse("not allowed in host network namespace");
            }
        } else if IPC.contains(&key.as_str()) || key.starts_with("fs.mqueue.") {
            if namespaces.ipc == Ipc::Shared(Choice::Host) {
                return refuse("not allowed in host IPC namespace");
            }
        } else if key == "kernel.domainname" || key == "kernel.hostname" {
            return refuse("is set with --hostname and --domainname");
        } else {
            return refuse("is not in a separate kernel namespace: it would change the host");
        }
        all.insert(key.clone(), value.clone());
    }
    Ok(all)
}

/// The set of capabilities as the spec holds them.
fn capability_set(
    list: &std::collections::BTreeSet<capabilities::CapabilityOrd>,
) -> HashSet<oci_spec::runtime::Capability> {
    list.iter().map(|c| c.0).collect()
}

#[cfg(test)]
mod tests;
