//! Limits of a spec that speak of the host's hardware, taken out: the host applies them around the whole VM, or there is
//! nothing in a guest that they could limit. Pure.
//!
//! | taken out | why that is right |
//! |---|---|
//! | `cpu.cpus`, `cpu.mems`, unified `cpuset.*` | numbers of the host's processors and nodes; the VMM's threads are bound to them |
//! | `blockIO`, unified `io.*` | devices of the host; the VMM limits its disks |
//! | `hugepageLimits`, `rdma`, unified `hugetlb.*`, `rdma.*`, `misc.*` | a guest has neither such pages nor such devices |
//! | rules that allow one block device | its number means another disk here |
//!
//! Memory, processor time and process limits stay: they bound the workload inside of the guest.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxResources};

/// Prefixes of cgroup v2 files that speak of the host's hardware.
const HARDWARE: [&str; 5] = ["cpuset.", "io.", "hugetlb.", "rdma.", "misc."];

/// See the module's text.
pub fn adapt(resources: &mut LinuxResources) {
    if let Some(cpu) = resources.cpu_mut() {
        cpu.set_cpus(None).set_mems(None);
    }
    resources
        .set_block_io(None)
        .set_hugepage_limits(None)
        .set_rdma(None);
    if let Some(unified) = resources.unified_mut() {
        unified.retain(|file, _| !HARDWARE.iter().any(|prefix| file.starts_with(prefix)));
    }
    if let Some(rules) = resources.devices_mut() {
        rules.retain(|rule| !allows_one_disk(rule));
    }
}

fn allows_one_disk(rule: &LinuxDeviceCgroup) -> bool {
    // A missing number, or a negative one, means all of them.
    rule.allow()
        && rule.typ() == Some(LinuxDeviceType::B)
        && rule.major().is_some_and(|major| major >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn adapted(resources: Value) -> Value {
        let mut resources: LinuxResources = serde_json::from_value(resources).expect("resources");
        adapt(&mut resources);
        serde_json::to_value(&resources).expect("json")
    }

    #[test]
    fn what_names_the_hosts_hardware_goes_and_what_bounds_the_workload_stays() {
        for (given, left) in [
            (
                json!({"cpu": {"shares": 512, "quota": 5000, "cpus": "3-5", "mems": "1"}}),
                json!({"cpu": {"shares": 512, "quota": 5000}}),
            ),
            (
                json!({"blockIO": {"weight": 300, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}]}}),
                json!({}),
            ),
            (
                json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 1}], "rdma": {"mlx5_1": {"hcaHandles": 3}}}),
                json!({}),
            ),
            (
                json!({"unified": {"io.max": "8:0 rbps=1", "cpuset.cpus": "7", "misc.max": "x 1", "memory.high": "99"}}),
                json!({"unified": {"memory.high": "99"}}),
            ),
            (
                json!({"memory": {"limit": 4096, "swap": 8192}, "pids": {"limit": 7}}),
                json!({"memory": {"limit": 4096, "swap": 8192}, "pids": {"limit": 7}}),
            ),
        ] {
            assert_eq!(adapted(given.clone()), left, "{given}");
        }
    }

    #[test]
    fn only_rules_for_one_disk_go() {
        let rules = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
            {"allow": true, "type": "b", "access": "m"},
            {"allow": true, "type": "b", "major": 254, "minor": 16, "access": "rwm"},
            {"allow": false, "type": "b", "major": 254, "minor": 0, "access": "rwm"},
        ]);
        let left = adapted(json!({"devices": rules}));
        let left = left["devices"].as_array().expect("rules");
        assert_eq!(left.len(), 4);
        assert!(!left.iter().any(|r| r["minor"] == 16));
    }
}
