//! Limits as tables: what is written where on hosts of either cgroup version.

use std::collections::BTreeMap;

use super::*;

/// A host described by its control files: `controller/file` with content.
struct Table {
    seat: Seat,
    controllers: &'static [&'static str],
    files: BTreeMap<&'static str, &'static str>,
}

impl Host for Table {
    fn seat(&self, v1: &str, v2: &str) -> Option<Seat> {
        let name = if self.seat == Seat::V1 { v1 } else { v2 };
        self.controllers.contains(&name).then_some(self.seat)
    }
    fn why_missing(&self, _: &str, _: &str) -> String {
        "because".into()
    }
    fn read(&self, _: &str, file: &str) -> Option<String> {
        self.files.get(file).map(|s| (*s).to_owned())
    }
}

const V1_ALL: &[&str] = &[
    "cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "net_cls", "net_prio", "rdma",
];
const V2_ALL: &[&str] = &["cpu", "cpuset", "memory", "pids", "io", "hugetlb", "rdma"];

fn v1(files: &[(&'static str, &'static str)]) -> Table {
    Table {
        seat: Seat::V1,
        controllers: V1_ALL,
        files: files.iter().copied().collect(),
    }
}

fn v2(files: &[(&'static str, &'static str)]) -> Table {
    Table {
        seat: Seat::V2,
        controllers: V2_ALL,
        files: files.iter().copied().collect(),
    }
}

fn planned(host: &Table, json: &str) -> Result<Vec<String>, Error> {
    let resources: LinuxResources = serde_json::from_str(json).expect("test resources parse");
    let writes = plan(&resources, host)?;
    Ok(writes
        .into_iter()
        .map(|w| format!("{}={}", w.file, w.value))
        .collect())
}

#[track_caller]
fn assert_plan(host: &Table, json: &str, wanted: &[&str]) {
    assert_eq!(planned(host, json).expect("plan"), wanted, "{json}");
}

#[track_caller]
fn assert_refused(host: &Table, json: &str, part: &str) {
    let error = planned(host, json).expect_err(json).to_string();
    assert!(error.contains(part), "{error:?} does not say {part:?}");
}

#[test]
fn cpu() {
    let json = r#"{"cpu":{"shares":1024,"quota":50000,"period":100000,"burst":10,"cpus":"0-1","mems":"0"}}"#;
    assert_plan(
        &v1(&[]),
        json,
        &[
            "cpu.shares=1024",
            "cpu.cfs_period_us=100000",
            "cpu.cfs_quota_us=50000",
            "cpu.cfs_burst_us=10",
            "cpuset.cpus=0-1",
            "cpuset.mems=0",
        ],
    );
    assert_plan(
        &v2(&[]),
        json,
        &[
            "cpu.weight=100",
            "cpu.max=50000 100000",
            "cpu.max.burst=10",
            "cpuset.cpus=0-1",
            "cpuset.mems=0",
        ],
    );
}

#[test]
fn cpu_zeroes_ask_for_nothing() {
    let json = r#"{"cpu":{"shares":0,"quota":0,"period":0,"realtimeRuntime":0,"realtimePeriod":0,"cpus":"","mems":""}}"#;
    assert_plan(&v1(&[]), json, &[]);
    assert_plan(&v2(&[]), json, &[]);
}

#[test]
fn cpu_quota_alone_keeps_the_period_and_the_period_alone_keeps_the_quota() {
    let host = v2(&[("cpu.max", "50000 100000\n")]);
    assert_plan(&host, r#"{"cpu":{"quota":20000}}"#, &["cpu.max=20000"]);
    assert_plan(
        &host,
        r#"{"cpu":{"period":200000}}"#,
        &["cpu.max=50000 200000"],
    );
    assert_plan(&host, r#"{"cpu":{"quota":-1}}"#, &["cpu.max=max"]);
    assert_plan(
        &v1(&[]),
        r#"{"cpu":{"quota":-1}}"#,
        &["cpu.cfs_quota_us=-1"],
    );
}

#[test]
fn an_idle_cgroup_gets_no_weight_on_v2() {
    assert_plan(
        &v2(&[]),
        r#"{"cpu":{"idle":1,"shares":512}}"#,
        &["cpu.idle=1"],
    );
    assert_plan(
        &v1(&[]),
        r#"{"cpu":{"idle":1,"shares":512}}"#,
        &["cpu.idle=1", "cpu.shares=512"],
    );
    // Linux before 5.15 has no such file, and not idle is what it is.
    assert_plan(&v2(&[]), r#"{"cpu":{"idle":0}}"#, &[]);
}

#[test]
fn realtime_needs_the_kernel_option() {
    let json = r#"{"cpu":{"realtimeRuntime":9500,"realtimePeriod":10000}}"#;
    assert_refused(&v2(&[]), json, "CONFIG_RT_GROUP_SCHED");
    assert_refused(&v1(&[]), json, "CONFIG_RT_GROUP_SCHED");
    let host = v1(&[("cpu.rt_period_us", ""), ("cpu.rt_runtime_us", "")]);
    assert_plan(
        &host,
        json,
        &["cpu.rt_period_us=10000", "cpu.rt_runtime_us=9500"],
    );
}

#[test]
fn shares_become_weights() {
    // Values of runc's and crun's own tests.
    for (shares, weight) in [
        (2, 1),
        (1024, 100),
        (262_144, 10_000),
        (1, 1),
        (500_000, 10_000),
    ] {
        assert_eq!(weight_from_shares(shares), weight, "{shares}");
    }
    let all: Vec<u64> = (2..=262_144).map(weight_from_shares).collect();
    assert!(all.is_sorted(), "more shares never weigh less");
    assert_refused(&v1(&[]), r#"{"cpu":{"shares":1}}"#, "2 and 262144");
}

#[test]
fn cpuset_lists_are_looked_at() {
    assert_refused(&v1(&[]), r#"{"cpu":{"cpus":"0; rm"}}"#, "not a list");
}

const SWAP_V1: (&str, &str) = ("memory.memsw.limit_in_bytes", "9223372036854771712");

#[test]
fn memory_v1() {
    let json = r#"{"memory":{"limit":1000,"swap":2000,"reservation":500,"kernel":7,"swappiness":10,"disableOOMKiller":true}}"#;
    assert_plan(
        &v1(&[SWAP_V1]),
        json,
        &[
            "memory.limit_in_bytes=1000",
            "memory.memsw.limit_in_bytes=2000",
            "memory.soft_limit_in_bytes=500",
            "memory.swappiness=10",
            "memory.oom_control=1",
        ],
    );
    // Unlimited memory lifts the bound of both.
    assert_plan(
        &v1(&[SWAP_V1]),
        r#"{"memory":{"limit":-1}}"#,
        &["memory.limit_in_bytes=-1", "memory.memsw.limit_in_bytes=-1"],
    );
    assert_plan(
        &v1(&[]),
        r#"{"memory":{"limit":-1,"swap":-1}}"#,
        &["memory.limit_in_bytes=-1"],
    );
    assert_refused(&v1(&[]), json, "swapaccount=1");
    assert_refused(
        &v1(&[SWAP_V1]),
        r#"{"memory":{"limit":1000,"swap":999}}"#,
        "below the memory limit",
    );
    assert_refused(
        &v1(&[]),
        r#"{"memory":{"swappiness":101}}"#,
        "between 0 and 100",
    );
    assert_plan(
        &v1(&[]),
        r#"{"memory":{"swappiness":18446744073709551615}}"#,
        &[],
    );
}

#[test]
fn the_oom_killer_comes_back_on_update_only() {
    let off = v1(&[(
        "memory.oom_control",
        "oom_kill_disable 1\nunder_oom 0\noom_kill 0\n",
    )]);
    assert_plan(
        &off,
        r#"{"memory":{"disableOOMKiller":false}}"#,
        &["memory.oom_control=0"],
    );
    assert_plan(&v1(&[]), r#"{"memory":{"disableOOMKiller":false}}"#, &[]);
}

const SWAP_V2: (&str, &str) = ("memory.swap.max", "max");

#[test]
fn memory_v2() {
    assert_plan(
        &v2(&[SWAP_V2]),
        r#"{"memory":{"limit":1000,"swap":3000,"reservation":500,"swappiness":10,"disableOOMKiller":true}}"#,
        &["memory.swap.max=2000", "memory.max=1000", "memory.low=500"],
    );
    // Equal bounds: no swap at all, not "unset".
    assert_plan(
        &v2(&[SWAP_V2]),
        r#"{"memory":{"limit":1000,"swap":1000}}"#,
        &["memory.swap.max=0", "memory.max=1000"],
    );
    assert_plan(
        &v2(&[SWAP_V2]),
        r#"{"memory":{"limit":-1}}"#,
        &["memory.swap.max=max", "memory.max=max"],
    );
    assert_plan(
        &v2(&[SWAP_V2]),
        r#"{"memory":{"limit":1000,"swap":-1}}"#,
        &["memory.swap.max=max", "memory.max=1000"],
    );
    assert_plan(
        &v2(&[]),
        r#"{"memory":{"limit":1000,"swap":1000}}"#,
        &["memory.max=1000"],
    );
    assert_refused(
        &v2(&[]),
        r#"{"memory":{"limit":1000,"swap":1001}}"#,
        "swapaccount",
    );
    assert_refused(
        &v2(&[SWAP_V2]),
        r#"{"memory":{"limit":1000,"swap":900}}"#,
        "below the memory limit",
    );
    assert_refused(
        &v2(&[SWAP_V2]),
        r#"{"memory":{"swap":900}}"#,
        "needs a memory limit",
    );
    assert_refused(&v2(&[SWAP_V2]), r#"{"memory":{"limit":-5}}"#, "negative");
}

#[test]
fn updating_swap_alone_on_v2_counts_from_the_limit_there_is() {
    let host = v2(&[SWAP_V2, ("memory.max", "1000\n")]);
    assert_plan(
        &host,
        r#"{"memory":{"swap":1500}}"#,
        &["memory.swap.max=500"],
    );
    let unlimited = v2(&[SWAP_V2, ("memory.max", "max\n")]);
    assert_refused(
        &unlimited,
        r#"{"memory":{"swap":1500}}"#,
        "needs a memory limit",
    );
}

#[test]
fn check_before_update_refuses_what_would_kill() {
    let host = v2(&[("memory.current", "5000\n")]);
    assert_refused(
        &host,
        r#"{"memory":{"limit":4000,"checkBeforeUpdate":true}}"#,
        "in use now",
    );
    assert_plan(&host, r#"{"memory":{"limit":4000}}"#, &["memory.max=4000"]);
}

#[test]
fn pids() {
    for host in [v1(&[]), v2(&[])] {
        assert_plan(&host, r#"{"pids":{"limit":5}}"#, &["pids.max=5"]);
        assert_plan(&host, r#"{"pids":{"limit":-1}}"#, &["pids.max=max"]);
        assert_plan(&host, r#"{"pids":{"limit":0}}"#, &[]);
    }
}

const IO: &str = r#"{"blockIO":{"weight":500,"leafWeight":300,"weightDevice":[{"major":8,"minor":0,"weight":1000}],
    "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1}],"throttleWriteBpsDevice":[{"major":8,"minor":0,"rate":2}],
    "throttleReadIOPSDevice":[{"major":8,"minor":16,"rate":3}],"throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":0}]}}"#;

#[test]
fn block_io() {
    let host = v1(&[
        ("blkio.bfq.weight", ""),
        ("blkio.weight", ""),
        ("blkio.weight_device", ""),
        ("blkio.leaf_weight", ""),
    ]);
    assert_plan(
        &host,
        IO,
        &[
            "blkio.bfq.weight=500",
            "blkio.leaf_weight=300",
            "blkio.weight_device=8:0 1000",
            "blkio.throttle.read_bps_device=8:0 1",
            "blkio.throttle.write_bps_device=8:0 2",
            "blkio.throttle.read_iops_device=8:16 3",
            "blkio.throttle.write_iops_device=8:16 0",
        ],
    );
    let throttles = [
        "io.max=8:0 rbps=1",
        "io.max=8:0 wbps=2",
        "io.max=8:16 riops=3",
        "io.max=8:16 wiops=max",
    ];
    let with = |first: [&'static str; 2]| [&first[..], &throttles[..]].concat();
    assert_plan(
        &v2(&[("io.weight", "")]),
        IO,
        &with(["io.weight=default 4950", "io.weight=8:0 10000"]),
    );
    assert_plan(
        &v2(&[("io.weight", ""), ("io.bfq.weight", "")]),
        IO,
        &with(["io.bfq.weight=500", "io.bfq.weight=8:0 1000"]),
    );
    assert_refused(&v1(&[]), r#"{"blockIO":{"weight":500}}"#, "modprobe bfq");
    assert_refused(&host, r#"{"blockIO":{"weight":9}}"#, "between 10 and 1000");
    assert_plan(&v1(&[]), r#"{"blockIO":{"weight":0}}"#, &[]);
}

#[test]
fn hugetlb() {
    let json = r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4096}]}"#;
    assert_plan(
        &v1(&[("hugetlb.2MB.limit_in_bytes", "")]),
        json,
        &["hugetlb.2MB.limit_in_bytes=4096"],
    );
    assert_plan(
        &v2(&[("hugetlb.2MB.max", ""), ("hugetlb.2MB.rsvd.max", "")]),
        json,
        &["hugetlb.2MB.max=4096", "hugetlb.2MB.rsvd.max=4096"],
    );
    assert_refused(&v2(&[]), json, "no huge pages of size 2MB");
    assert_refused(
        &v2(&[]),
        r#"{"hugepageLimits":[{"pageSize":"../x","limit":1}]}"#,
        "not a page size",
    );
}

#[test]
fn network_is_v1_only() {
    let json = r#"{"network":{"classID":1048577,"priorities":[{"name":"eth0","priority":5}]}}"#;
    assert_plan(
        &v1(&[]),
        json,
        &["net_cls.classid=1048577", "net_prio.ifpriomap=eth0 5"],
    );
    assert_refused(&v2(&[]), json, "net_cls");
    assert_plan(
        &v2(&[]),
        r#"{"network":{"classID":0,"priorities":[]}}"#,
        &[],
    );
}

#[test]
fn rdma() {
    let json = r#"{"rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":10000},"mlx4_0":{"hcaObjects":1},"none":{}}}"#;
    let wanted = [
        "rdma.max=mlx4_0 hca_object=1",
        "rdma.max=mlx5_1 hca_handle=3 hca_object=10000",
    ];
    assert_plan(&v1(&[]), json, &wanted);
    assert_plan(&v2(&[]), json, &wanted);
}

#[test]
fn unified_is_for_v2_control_files_only() {
    let json = r#"{"unified":{"memory.high":"1000","cgroup.max.depth":"3"}}"#;
    assert_plan(&v2(&[]), json, &["cgroup.max.depth=3", "memory.high=1000"]);
    assert_refused(&v1(&[]), r#"{"unified":{"memory.high":"1000"}}"#, "memory");
    assert_refused(&v2(&[]), r#"{"unified":{"../x.y":"1"}}"#, "not the name");
    assert_refused(
        &v2(&[]),
        r#"{"unified":{"cgroup.procs":"1"}}"#,
        "not a limit",
    );
    assert_refused(&v2(&[]), r#"{"unified":{"nonsense.max":"1"}}"#, "nonsense");
}

#[test]
fn a_missing_controller_is_an_error_only_when_a_limit_was_asked_for() {
    let bare = Table {
        seat: Seat::V2,
        controllers: &[],
        files: BTreeMap::new(),
    };
    for (json, controller) in [
        (r#"{"memory":{"limit":1}}"#, "memory"),
        (r#"{"memory":{"disableOOMKiller":true}}"#, "memory"),
        (r#"{"pids":{"limit":1}}"#, "pids"),
        (r#"{"cpu":{"shares":3}}"#, "cpu"),
        (r#"{"cpu":{"quota":3}}"#, "cpu"),
        (r#"{"cpu":{"cpus":"0"}}"#, "cpuset"),
        (r#"{"blockIO":{"weight":10}}"#, "io"),
        (IO, "io"),
        (
            r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4096}]}"#,
            "hugetlb",
        ),
    ] {
        assert_refused(&bare, json, &format!("\"{controller}\""));
    }
    assert_plan(
        &bare,
        r#"{"memory":{"limit":-1,"swap":-1,"disableOOMKiller":false},"pids":{"limit":-1},"cpu":{"shares":0},"blockIO":{}}"#,
        &[],
    );
}
