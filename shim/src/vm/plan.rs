//! What a virtual machine is to be, decided from the OCI spec before anything is touched.
//!
//! ```text
//!   OCI spec ─┬─▶ machine      vCPUs, memory, limits of the disks          ─▶ a VmSpec
//!             ├─▶ host         the limits of the cgroup around the VMM
//!             └─▶ guest        the spec with the host's things taken out; copied files, shares   ─▶ the agent's Create
//! ```
//!
//! | limit | where |
//! |---|---|
//! | memory, CPU quota, processes | the guest's cgroup: they bound the workload, not the wall |
//! | CPU set, CPU shares, weight of I/O | the host's cgroup: the guest knows nothing of the host's processors and neighbours |
//! | bandwidth of block devices | the VMM's disks |

use std::path::{Path, PathBuf};

use caisson_protocol::vmm::{Bucket, RateLimits};
use caisson_protocol::{Error, Share, VmSetup};
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxResources, LinuxThrottleDevice, Mount, Spec,
};
use serde_json::json;

const MIB: u64 = 1 << 20;

/// More would not be used by what runs in one container, and each costs the host memory and the guest boot time.
const MAX_VCPUS: u8 = 8;

/// What the guest's kernel, its page tables and the agent take beside the workload, besides a share of the memory.
const KERNEL_BYTES: u64 = 96 * MIB;
const KERNEL_SHARE: u64 = 16;

/// A disk may do at once what it may do in a tenth of a second.
const BURSTS_PER_SECOND: u64 = 10;

/// Where the agent puts what it is given.
const FILES: &str = "/run/caisson/files";
const SHARES: &str = "/run/caisson/shares";

/// The guest kernel's command line. Quiet, for its console is only read when it fails. Free memory goes back to the host in
/// blocks of 512 KiB: with the kernel's own 4 MiB a guest must have 128 MiB free before it reports any.
pub const COMMAND_LINE: &str = "root=/dev/vda rootfstype=erofs ro init=/agent quiet reboot=k panic=-1 random.trust_bootloader=on dummy.numdummies=0 page_reporting.page_reporting_order=7";

/// The disks, in this order: their serial numbers and what the guest's kernel calls them.
pub const DISKS: [(&str, &str); 3] = [
    ("agent", "/dev/vda"),
    ("image", "/dev/vdb"),
    ("scratch", "/dev/vdc"),
];

/// A decided machine.
#[derive(Clone, Debug)]
pub struct Plan {
    pub vcpus: u8,
    pub memory_bytes: u64,
    /// Of the image's disk and the scratch disk.
    pub image_rate: Option<RateLimits>,
    pub scratch_rate: Option<RateLimits>,
    /// Limits of the host's cgroup around the VMM and its helpers.
    pub host: LinuxResources,
    /// The spec for the agent.
    pub guest: Spec,
    pub copies: Vec<Copy>,
    pub shares: Vec<Shared>,
}

/// A file of the host that the guest gets a copy of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    pub source: PathBuf,
    pub target: PathBuf,
}

/// A bind mount that the guest sees through a share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    pub source: PathBuf,
    pub tag: String,
    /// Where the agent mounts it.
    pub target: PathBuf,
    pub read_only: bool,
    /// With what is mounted below it.
    pub recursive: bool,
    /// Which of the guest spec's mounts it is for: a source that is a file is found only when it is opened.
    pub mount: usize,
}

impl Shared {
    /// What the agent is told of it.
    pub fn for_agent(&self) -> Share {
        Share {
            tag: self.tag.clone(),
            target: self.target.clone(),
            read_only: self.read_only,
        }
    }
}

/// Decides.
pub fn plan(spec: &Spec, setup: &VmSetup, host_cpus: u64) -> Result<Plan, Error> {
    let linux = spec
        .linux()
        .as_ref()
        .ok_or_else(|| Error::invalid("the OCI spec has no linux part"))?;
    let resources = linux.resources().clone().unwrap_or_default();
    let cpu = resources.cpu().clone().unwrap_or_default();
    let limit = resources.memory().as_ref().and_then(|m| m.limit());
    let (image_rate, scratch_rate) = match resources.block_io() {
        Some(io) => disk_rates(io),
        None => (None, None),
    };
    let mut guest = spec.clone();
    guest.set_hooks(None);
    let (mut copies, mut shares) = (Vec::new(), Vec::new());
    for (n, mount) in guest.mounts_mut().iter_mut().flatten().enumerate() {
        if is_bind(mount) {
            translate_bind(n, mount, setup, &mut copies, &mut shares)?;
        }
    }
    Ok(Plan {
        vcpus: vcpus(&cpu, setup.emulated, host_cpus),
        memory_bytes: memory(limit, setup.memory_bytes),
        image_rate,
        scratch_rate,
        host: host_resources(&resources)?,
        guest,
        copies,
        shares,
    })
}

/// As many as the workload may use at once; an emulated ring 0 makes each one dear.
fn vcpus(cpu: &LinuxCpu, emulated: bool, host_cpus: u64) -> u8 {
    let by_quota = match (cpu.quota(), cpu.period()) {
        (Some(quota), period) if quota > 0 => {
            let period = period.filter(|p| *p > 0).unwrap_or(100_000);
            Some((quota as u64).div_ceil(period).max(1))
        }
        _ => None,
    };
    let by_set = cpu.cpus().as_deref().and_then(count_cpus);
    let most = host_cpus.clamp(1, u64::from(MAX_VCPUS));
    let usual = if emulated { 1 } else { most };
    let wanted = by_quota.unwrap_or(usual).min(most);
    by_set.map_or(wanted, |set| wanted.min(set)).max(1) as u8
}

/// How many processors a list such as `0-3,7` names; `None` when it is none.
fn count_cpus(list: &str) -> Option<u64> {
    list.split(',').try_fold(0u64, |sum, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: u64 = first.trim().parse().ok()?;
        let last: u64 = last.trim().parse().ok()?;
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

/// The guest's memory: the workload may use all of its limit, so the kernel's part comes on top.
fn memory(limit: Option<i64>, usual: u64) -> u64 {
    let needed = match limit.and_then(|bytes| u64::try_from(bytes).ok()) {
        Some(limit) if limit < 1 << 45 => limit + limit / KERNEL_SHARE + KERNEL_BYTES,
        _ => 0,
    };
    usual.max(needed).div_ceil(MIB) * MIB
}

/// Limits of bandwidth, for the image and for the scratch disk. A disk has one bucket for both directions, so the scratch
/// disk gets the stricter of the two: a limit may be kept too well, but is kept.
fn disk_rates(io: &LinuxBlockIo) -> (Option<RateLimits>, Option<RateLimits>) {
    let least = |devices: &Option<Vec<LinuxThrottleDevice>>| {
        let rates = devices.iter().flatten().map(LinuxThrottleDevice::rate);
        rates.filter(|rate| *rate > 0).min()
    };
    let (read_bytes, write_bytes) = (
        least(io.throttle_read_bps_device()),
        least(io.throttle_write_bps_device()),
    );
    let (read_ops, write_ops) = (
        least(io.throttle_read_iops_device()),
        least(io.throttle_write_iops_device()),
    );
    let stricter = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
    (
        rate(read_bytes, read_ops),
        rate(
            stricter(read_bytes, write_bytes),
            stricter(read_ops, write_ops),
        ),
    )
}

fn rate(bytes: Option<u64>, operations: Option<u64>) -> Option<RateLimits> {
    let bucket = |per_second: u64| Bucket {
        per_second,
        burst: (per_second / BURSTS_PER_SECOND).max(1),
    };
    (bytes.is_some() || operations.is_some()).then(|| RateLimits {
        bytes: bytes.map(bucket),
        operations: operations.map(bucket),
    })
}

/// What of a sandbox' limits the host's cgroup around its VMM keeps, and the devices that a VMM opens.
fn host_resources(resources: &LinuxResources) -> Result<LinuxResources, Error> {
    let mut host = host_limits(resources);
    // /dev/kvm, and what a program needs to begin at all is always allowed.
    let rules: Result<Vec<LinuxDeviceCgroup>, _> = serde_json::from_value(json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 10, "minor": 232, "access": "rw"},
    ]));
    host.set_devices(Some(rules.map_err(|e| Error::invalid(e.to_string()))?));
    Ok(host)
}

/// The part of limits that is the host's.
pub fn host_limits(resources: &LinuxResources) -> LinuxResources {
    let mut host = LinuxResources::default();
    host.set_devices(None);
    if let Some(given) = resources.cpu() {
        let mut cpu = LinuxCpu::default();
        cpu.set_cpus(given.cpus().clone())
            .set_mems(given.mems().clone())
            .set_shares(given.shares());
        host.set_cpu(Some(cpu));
    }
    if let Some(weight) = resources.block_io().as_ref().and_then(|io| io.weight()) {
        let mut io = LinuxBlockIo::default();
        io.set_weight(Some(weight));
        host.set_block_io(Some(io));
    }
    host
}

fn options_of(mount: &Mount) -> impl Iterator<Item = &str> {
    mount.options().iter().flatten().map(String::as_str)
}

fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind") || options_of(mount).any(|o| o == "bind" || o == "rbind")
}

/// Rewrites a bind mount's source to what the guest has in its place.
fn translate_bind(
    n: usize,
    mount: &mut Mount,
    setup: &VmSetup,
    copies: &mut Vec<Copy>,
    shares: &mut Vec<Shared>,
) -> Result<(), Error> {
    let destination = mount.destination().display().to_string();
    let source = mount
        .source()
        .clone()
        .ok_or_else(|| Error::invalid(format!("the bind mount at {destination} has no source")))?;
    let shared = ["shared", "rshared", "slave", "rslave"];
    if let Some(option) = options_of(mount).find(|o| shared.contains(o)) {
        return Err(Error::invalid(format!(
            "the bind mount at {destination} asks for {option} propagation, which cannot cross the wall of a virtual machine: \
             leave it out, or use --isolation=container"
        )));
    }
    if setup.copies.contains(&source) {
        let target = Path::new(FILES).join(n.to_string());
        mount.set_source(Some(target.clone()));
        copies.push(Copy { source, target });
        return Ok(());
    }
    let target = Path::new(SHARES).join(n.to_string());
    let read_only = options_of(mount).any(|o| o == "ro");
    let recursive = options_of(mount).any(|o| o == "rbind");
    mount.set_source(Some(target.clone()));
    shares.push(Shared {
        source,
        tag: format!("share{n}"),
        target,
        read_only,
        recursive,
        mount: n,
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn setup(emulated: bool) -> VmSetup {
        VmSetup {
            vmm: "/vmm".into(),
            share_server: "/share".into(),
            kernel: "/vmlinux".into(),
            agent: "/agent.erofs".into(),
            memory_bytes: 512 * MIB,
            emulated,
            copies: vec!["/c/hosts".into()],
        }
    }

    fn planned_on(resources: Value, mounts: Value, emulated: bool) -> Result<Plan, Error> {
        let spec =
            json!({"ociVersion": "1.2.0", "mounts": mounts, "linux": {"resources": resources}});
        let spec: Spec = serde_json::from_value(spec).expect("a spec");
        plan(&spec, &setup(emulated), 4)
    }

    fn planned(resources: Value) -> Plan {
        planned_on(resources, json!([]), false).expect("a plan")
    }

    #[test]
    fn as_many_processors_as_the_workload_may_use() {
        for (cpu, native, emulated) in [
            (json!({}), 4, 1),
            (json!({"quota": -1, "period": 100000}), 4, 1),
            (json!({"quota": 50000, "period": 100000}), 1, 1),
            (json!({"quota": 150000, "period": 100000}), 2, 2),
            (json!({"quota": 150000}), 2, 2),
            (json!({"quota": 99999999, "period": 100000}), 4, 4),
            (json!({"cpus": "1"}), 1, 1),
            (json!({"cpus": "0-1,3"}), 3, 1),
            (json!({"cpus": "0-9999999"}), 4, 1),
            (json!({"cpus": "nonsense"}), 4, 1),
            (json!({"cpus": "0-1", "quota": 400000}), 2, 2),
        ] {
            let at = |emulated| {
                let plan = planned_on(json!({"cpu": cpu.clone()}), json!([]), emulated);
                plan.expect("a plan").vcpus
            };
            assert_eq!((at(false), at(true)), (native, emulated), "{cpu}");
        }
    }

    #[test]
    fn the_kernels_memory_comes_on_top_of_the_limit() {
        for (limit, mib) in [
            (json!({}), 512),
            (json!({"memory": {"limit": -1}}), 512),
            (json!({"memory": {"limit": 64 * MIB}}), 512),
            (json!({"memory": {"limit": 1024 * MIB}}), 1024 + 64 + 96),
            (json!({"memory": {"limit": i64::MAX}}), 512),
        ] {
            assert_eq!(planned(limit.clone()).memory_bytes, mib * MIB, "{limit}");
        }
    }

    #[test]
    fn each_limit_is_kept_where_it_can_be() {
        let plan = planned(json!({
            "cpu": {"shares": 512, "quota": 50000, "cpus": "1", "mems": "0"},
            "memory": {"limit": 1 << 30}, "pids": {"limit": 9},
            "blockIO": {"weight": 300, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 2000}],
                        "throttleWriteBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}],
                        "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 50}]}
        }));
        let host = serde_json::to_value(&plan.host).expect("json");
        assert_eq!(
            host["cpu"],
            json!({"shares": 512, "cpus": "1", "mems": "0"})
        );
        assert_eq!(host["blockIO"], json!({"weight": 300}));
        assert_eq!(
            (&host["memory"], &host["pids"]),
            (&Value::Null, &Value::Null)
        );
        assert_eq!(host["devices"][0]["allow"], json!(false));
        let per_second = |b: Option<Bucket>| b.map(|b| (b.per_second, b.burst));
        let (image, scratch) = (
            plan.image_rate.expect("limited"),
            plan.scratch_rate.expect("limited"),
        );
        assert_eq!(per_second(image.bytes), Some((2000, 200)));
        assert_eq!(per_second(image.operations), None);
        assert_eq!(per_second(scratch.bytes), Some((1000, 100)));
        assert_eq!(per_second(scratch.operations), Some((50, 5)));
        assert!(planned(json!({})).scratch_rate.is_none());
    }

    #[test]
    fn bind_mounts_become_copies_and_shares() {
        let mounts = json!([
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/etc/hosts", "type": "bind", "source": "/c/hosts", "options": ["rbind", "rprivate"]},
            {"destination": "/data", "source": "/srv/data", "options": ["rbind", "ro"]},
        ]);
        let plan = planned_on(json!({}), mounts, false).expect("a plan");
        assert_eq!(
            plan.copies,
            [Copy {
                source: "/c/hosts".into(),
                target: "/run/caisson/files/1".into()
            }]
        );
        let share = &plan.shares[0];
        assert_eq!(
            (share.source.as_path(), share.mount),
            (Path::new("/srv/data"), 2)
        );
        assert!(share.read_only && share.recursive);
        let sources: Vec<_> = plan
            .guest
            .mounts()
            .iter()
            .flatten()
            .map(|m| m.source().clone().unwrap_or_default())
            .collect();
        assert_eq!(sources[0], Path::new("proc"));
        assert_eq!(sources[1], Path::new("/run/caisson/files/1"));
        assert_eq!(sources[2], share.target);
    }

    #[test]
    fn propagation_across_the_wall_is_refused() {
        let mounts = json!([{"destination": "/d", "type": "bind", "source": "/d", "options": ["rbind", "rshared"]}]);
        let error = planned_on(json!({}), mounts, false).expect_err("refused");
        assert!(error.message.contains("rshared propagation"), "{error}");
    }
}
