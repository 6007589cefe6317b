//! What a spec says of the host's kernel, said for the guest's. Pure; the shim has taken out what names things of the host
//! (sources of mounts, paths of namespaces, hooks).
//!
//! | in the spec | in the guest |
//! |---|---|
//! | network namespace, with or without a path | none: the guest's own network is the sandbox' |
//! | sysctls `net.*` | set by the agent in the guest's own network |
//! | cgroup namespace | always: the hierarchy is version 2 here, where Docker's default is a private one |
//! | `cgroupsPath` | [`CGROUP`]: there is only one sandbox |
//! | `devices` | those whose number exists here; no disks, whose numbers mean others here |
//! | AppArmor profile, SELinux labels | dropped: a guest's kernel has neither, and is itself the wall that they stand for |
//! | `intelRdt`, `memoryPolicy` | dropped: caches and memory nodes of the host |
//! | limits | see [`resources`] |
//! | a path for any other namespace; hooks; no pid or mount namespace | refused: things of the host that a microVM cannot have |

use std::collections::BTreeMap;
use std::path::PathBuf;

use caisson_protocol::Error;
use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceType, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType,
    Process, Spec,
};

use crate::resources;

/// The workload's cgroup.
pub const CGROUP: &str = "/workload";

/// A device number as a kernel may have it or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct CharDevice {
    pub major: i64,
    pub minor: i64,
}

/// Adapts a spec; the answer is the network's sysctls, which are not the container's to set any more.
pub fn adapt(
    spec: &mut Spec,
    exists: impl Fn(CharDevice) -> bool,
) -> Result<BTreeMap<String, String>, Error> {
    let hooks = spec
        .hooks()
        .as_ref()
        .and_then(|hooks| serde_json::to_value(hooks).ok());
    if hooks.is_some_and(|hooks| hooks.as_object().is_some_and(|h| !h.is_empty())) {
        return Err(Error::invalid(
            "hooks are programs of the host and cannot run in a microVM",
        ));
    }
    if let Some(process) = spec.process_mut() {
        adapt_process(process);
    }
    let Some(linux) = spec.linux_mut() else {
        return Err(Error::invalid("the spec has no linux part"));
    };
    let given = linux.namespaces().clone().unwrap_or_default();
    linux
        .set_namespaces(Some(namespaces(given)?))
        .set_cgroups_path(Some(PathBuf::from(CGROUP)))
        .set_mount_label(None)
        .set_intel_rdt(None)
        .set_memory_policy(None);
    if let Some(devices) = linux.devices_mut() {
        devices.retain(|device| is_here(device, &exists));
    }
    if let Some(resources) = linux.resources_mut() {
        resources::adapt(resources);
    }
    let sysctls = linux.sysctl().clone().unwrap_or_default();
    let (network, own): (BTreeMap<_, _>, BTreeMap<_, _>) =
        sysctls.into_iter().partition(|(name, _)| is_network(name));
    linux.set_sysctl(Some(own.into_iter().collect()));
    Ok(network)
}

/// Adapts a process, of a spec or to be started beside it.
pub fn adapt_process(process: &mut Process) {
    process.set_apparmor_profile(None).set_selinux_label(None);
}

fn namespaces(given: Vec<LinuxNamespace>) -> Result<Vec<LinuxNamespace>, Error> {
    use LinuxNamespaceType::{Cgroup, Mount, Network, Pid};
    let mut kept: Vec<LinuxNamespace> = given.into_iter().filter(|n| n.typ() != Network).collect();
    if let Some(joined) = kept.iter().find(|n| {
        n.path()
            .as_ref()
            .is_some_and(|path| !path.as_os_str().is_empty())
    }) {
        return Err(Error::invalid(format!(
            "a microVM cannot join the {} namespace of anything outside of it",
            joined.typ()
        )));
    }
    let has = |kept: &[LinuxNamespace], kind| kept.iter().any(|n| n.typ() == kind);
    if !has(&kept, Pid) || !has(&kept, Mount) {
        return Err(Error::invalid(
            "a microVM's container needs process and mount namespaces of its own: the guest's belong to the agent",
        ));
    }
    if !has(&kept, Cgroup) {
        let own = LinuxNamespaceBuilder::default()
            .typ(Cgroup)
            .build()
            .map_err(|e| Error::internal(e.to_string()))?;
        kept.push(own);
    }
    Ok(kept)
}

fn is_here(device: &LinuxDevice, exists: &impl Fn(CharDevice) -> bool) -> bool {
    match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => exists(CharDevice {
            major: device.major(),
            minor: device.minor(),
        }),
        LinuxDeviceType::B => false,
        // `A` is none: the jail says so.
        LinuxDeviceType::P | LinuxDeviceType::A => true,
    }
}

/// Names come with dots or with slashes.
fn is_network(sysctl: &str) -> bool {
    sysctl.starts_with("net.") || sysctl.starts_with("net/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use caisson_protocol::ErrorKind;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const NEEDED: &str = r#"[{"type":"pid"},{"type":"mount"}]"#;

    fn spec(linux: Value) -> Spec {
        let mut spec = json!({"ociVersion": "1.2.0", "linux": {"namespaces": serde_json::from_str::<Value>(NEEDED).expect("json")}});
        for (key, value) in linux.as_object().expect("an object") {
            spec["linux"][key] = value.clone();
        }
        serde_json::from_value(spec).expect("a spec")
    }

    fn adapted(linux: Value) -> (Value, BTreeMap<String, String>) {
        let mut spec = spec(linux);
        let sysctls = adapt(&mut spec, |d| d.major == 1 || d.major == 10).expect("adapts");
        (serde_json::to_value(&spec).expect("json"), sysctls)
    }

    #[test]
    fn each_row_of_the_table() {
        for (given, path, left) in [
            (
                json!({"namespaces": [{"type":"network","path":"/run/netns/x"},{"type":"pid"},{"type":"mount"},{"type":"ipc"}]}),
                "/linux/namespaces",
                json!([{"type":"pid"},{"type":"mount"},{"type":"ipc"},{"type":"cgroup"}]),
            ),
            (
                json!({"namespaces": [{"type":"pid"},{"type":"cgroup"},{"type":"mount"},{"type":"user"}]}),
                "/linux/namespaces",
                json!([{"type":"pid"},{"type":"cgroup"},{"type":"mount"},{"type":"user"}]),
            ),
            (
                json!({"cgroupsPath": "system.slice:docker:abc"}),
                "/linux/cgroupsPath",
                json!("/workload"),
            ),
            (
                json!({"devices": [
                    {"path":"/dev/null","type":"c","major":1,"minor":3},
                    {"path":"/dev/dri/card0","type":"c","major":226,"minor":0},
                    {"path":"/dev/sda","type":"b","major":10,"minor":0},
                    {"path":"/dev/pipe","type":"p","major":0,"minor":0}]}),
                "/linux/devices",
                json!([
                    {"path":"/dev/null","type":"c","major":1,"minor":3},
                    {"path":"/dev/pipe","type":"p","major":0,"minor":0}]),
            ),
            (
                json!({"mountLabel": "system_u:object_r:x", "intelRdt": {"closID": "x"}}),
                "/linux/mountLabel",
                Value::Null,
            ),
            (
                json!({"resources": {"cpu": {"cpus": "9"}, "pids": {"limit": 3}}}),
                "/linux/resources",
                json!({"cpu": {}, "pids": {"limit": 3}}),
            ),
            (
                json!({"uidMappings": [{"containerID":0,"hostID":100000,"size":65536}]}),
                "/linux/uidMappings",
                json!([{"containerID":0,"hostID":100000,"size":65536}]),
            ),
        ] {
            let (spec, _) = adapted(given.clone());
            assert_eq!(
                spec.pointer(path).cloned().unwrap_or_default(),
                left,
                "{given}"
            );
        }
        assert_eq!(
            adapted(json!({"intelRdt": {}}))
                .0
                .pointer("/linux/intelRdt"),
            None
        );
    }

    #[test]
    fn sysctls_of_the_network_are_told_apart() {
        let (spec, network) = adapted(json!({"sysctl": {
            "net.ipv4.ip_forward": "1", "net/ipv6/conf/eth0.1/x": "0", "kernel.shmmax": "9", "network.x": "2"}}));
        let names: Vec<_> = network.keys().map(String::as_str).collect();
        assert_eq!(names, ["net.ipv4.ip_forward", "net/ipv6/conf/eth0.1/x"]);
        assert_eq!(
            spec["linux"]["sysctl"],
            json!({"kernel.shmmax": "9", "network.x": "2"})
        );
    }

    #[test]
    fn labels_of_the_hosts_security_modules_go() {
        let mut spec = spec(json!({}));
        let mut process = Process::default();
        process
            .set_apparmor_profile(Some("docker-default".into()))
            .set_selinux_label(Some("x".into()));
        spec.set_process(Some(process));
        adapt(&mut spec, |_| true).expect("adapts");
        let process = spec.process().as_ref().expect("a process");
        assert_eq!(process.apparmor_profile(), &None);
        assert_eq!(process.selinux_label(), &None);
    }

    #[test]
    fn things_of_the_host_are_refused() {
        for (linux, word) in [
            (
                json!({"namespaces": [{"type":"pid"},{"type":"mount"},{"type":"ipc","path":"/proc/1/ns/ipc"}]}),
                "ipc",
            ),
            (json!({"namespaces": [{"type":"mount"}]}), "process"),
            (json!({"namespaces": []}), "mount"),
        ] {
            let error = adapt(&mut spec(linux.clone()), |_| true).expect_err("refused");
            assert!(error.message.contains(word), "{linux}: {error}");
            assert_eq!(error.kind, ErrorKind::Invalid);
        }
        let mut hooked = serde_json::to_value(spec(json!({}))).expect("json");
        hooked["hooks"] = json!({"prestart": [{"path": "/bin/x"}]});
        let mut hooked: Spec = serde_json::from_value(hooked).expect("a spec");
        assert!(adapt(&mut hooked, |_| true).is_err());
    }

    proptest! {
        /// Whatever the host sends: no panic, and what comes out joins nothing and names no disk.
        #[test]
        fn no_spec_makes_it_panic(
            kinds in proptest::collection::vec(0usize..8, 0..10),
            paths in proptest::collection::vec(proptest::option::of(".{0,12}"), 10),
            devices in proptest::collection::vec((0usize..5, any::<i64>(), any::<i64>(), ".{0,12}"), 0..6),
            sysctls in proptest::collection::hash_map(".{0,12}", ".{0,6}", 0..6),
            cgroup in ".{0,20}",
        ) {
            const KINDS: [&str; 8] = ["pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"];
            const TYPES: [&str; 5] = ["c", "u", "b", "p", "a"];
            let namespaces: Vec<Value> = kinds.iter().zip(&paths).map(|(kind, path)| match path {
                Some(path) => json!({"type": KINDS[*kind], "path": path}),
                None => json!({"type": KINDS[*kind]}),
            }).collect();
            let devices: Vec<Value> = devices.iter().map(|(t, major, minor, path)|
                json!({"path": path, "type": TYPES[*t], "major": major, "minor": minor})).collect();
            let mut spec = spec(json!({
                "namespaces": namespaces, "devices": devices, "sysctl": sysctls, "cgroupsPath": cgroup}));
            if let Ok(network) = adapt(&mut spec, |d| d.minor % 2 == 0) {
                prop_assert!(network.keys().all(|name| name.starts_with("net")));
                let linux = spec.linux().as_ref().expect("linux");
                prop_assert!(linux.devices().iter().flatten().all(|d| d.typ() != LinuxDeviceType::B));
                for namespace in linux.namespaces().iter().flatten() {
                    prop_assert!(namespace.typ() != LinuxNamespaceType::Network);
                    prop_assert!(namespace.path().as_ref().is_none_or(|p| p.as_os_str().is_empty()));
                }
            }
        }
    }
}
