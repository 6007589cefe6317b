//! Limits: memory, processes, CPU, block I/O, ulimits; and how running into them is told.

use caisson_tests::{IMAGE, Test, cases};

/// Reads a control file under either cgroup version.
fn control(v1: &str, v2: &str) -> String {
    format!("cat /sys/fs/cgroup/{v1} 2>/dev/null || cat /sys/fs/cgroup/{v2}")
}

fn memory_limit_is_set(t: &Test) {
    let seen = t.sh(
        &["-m", "64m"],
        &control("memory/memory.limit_in_bytes", "memory.max"),
    );
    assert_eq!(seen, (64 << 20).to_string());
}

fn out_of_memory_is_told(t: &Test) {
    let id = t.start_sh(
        &["-m", "24m", "--memory-swap", "24m"],
        // by the process itself: a pipe would make each byte the kernel's work, which some hosts emulate
        "awk 'BEGIN { s = \"x\"; while (1) s = s s }'",
    );
    t.cli(&["wait", &id]).ok().prints("137\n");
    assert_eq!(
        t.inspect(&id, "{{.State.OOMKilled}} {{.State.ExitCode}}"),
        "true 137"
    );
}

fn a_plain_kill_is_not_out_of_memory(t: &Test) {
    let id = t.sleeper(&["-m", "24m"]);
    t.cli(&["kill", &id]).ok();
    t.cli(&["wait", &id]).ok().prints("137\n");
    assert_eq!(t.inspect(&id, "{{.State.OOMKilled}}"), "false");
}

fn memory_reservation_and_swap(t: &Test) {
    let id = t.create(&[
        "-m",
        "64m",
        "--memory-reservation",
        "32m",
        "--memory-swap",
        "128m",
        "--memory-swappiness",
        "0",
        IMAGE,
    ]);
    let host = &t.inspect_json(&id)["HostConfig"];
    assert_eq!(host["MemoryReservation"], 32 << 20);
    assert_eq!(host["MemorySwap"], 128 << 20);
}

fn bad_memory_limits(t: &Test) {
    for bad in ["1k", "5m", "-3", "lots", "64m --memory-swap 32m"] {
        let options: Vec<&str> = bad.split(' ').collect();
        t.run(&[&["--rm", "-m"], options.as_slice(), &[IMAGE, "true"]].concat())
            .code(125);
    }
}

fn process_limit_holds(t: &Test) {
    let seen = t.sh(
        &["--pids-limit", "20"],
        &control("pids/pids.max", "pids.max"),
    );
    assert_eq!(seen, "20");
    let outcome = t.run(&[
        "--rm",
        "--pids-limit",
        "10",
        IMAGE,
        "sh",
        "-c",
        "for i in $(seq 30); do sleep 1 & done; wait",
    ]);
    outcome.complains(&["can't fork", "resource temporarily unavailable"]);
}

fn cpu_quota_throttles(t: &Test) {
    let seen = t.sh(
        &["--cpus", "0.25"],
        &control("cpu/cpu.cfs_quota_us", "cpu.max"),
    );
    assert!(seen.starts_with("25000"), "{seen}");
    let seen = t.sh(
        &["--cpu-period", "50000", "--cpu-quota", "10000"],
        &control("cpu/cpu.cfs_quota_us", "cpu.max"),
    );
    assert!(seen.starts_with("10000"), "{seen}");
    let throttled = t.sh(
        &["--cpus", "0.1"],
        &format!(
            "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; {}",
            control("cpu/cpu.stat", "cpu.stat")
        ),
    );
    let periods = throttled
        .lines()
        .find_map(|l| l.strip_prefix("nr_throttled "))
        .and_then(|n| n.parse::<u64>().ok());
    assert!(periods.is_some_and(|n| n > 0), "{throttled}");
}

fn cpu_shares_and_sets(t: &Test) {
    assert_eq!(
        t.sh(
            &["--cpuset-cpus", "0"],
            "grep Cpus_allowed_list /proc/self/status | cut -f2"
        ),
        "0"
    );
    let several = std::thread::available_parallelism().is_ok_and(|n| n.get() > 1);
    let cpus = if several { "0-1" } else { "0" };
    let id = t.create(&[
        "--cpu-shares",
        "512",
        "--cpuset-cpus",
        cpus,
        "--cpuset-mems",
        "0",
        IMAGE,
    ]);
    assert_eq!(
        t.inspect(
            &id,
            "{{.HostConfig.CpuShares}} {{.HostConfig.CpusetCpus}} {{.HostConfig.CpusetMems}}"
        ),
        format!("512 {cpus} 0")
    );
    t.run(&["--rm", "--cpuset-cpus", "4000", IMAGE, "true"])
        .code(125);
    t.run(&["--rm", "--cpus", "1000", IMAGE, "true"])
        .code(125)
        .complains(&["cpus"]);
}

fn block_io_throttle(t: &Test) {
    let device = ["/dev/vda", "/dev/sda", "/dev/nvme0n1"]
        .into_iter()
        .find(|d| std::path::Path::new(d).exists());
    let Some(device) = device else {
        t.skip("no block device with a usual name")
    };
    let seen = t.sh(
        &[
            "--device-read-bps",
            &format!("{device}:1mb"),
            "--device-write-iops",
            &format!("{device}:100"),
        ],
        &control("blkio/blkio.throttle.read_bps_device", "io.max"),
    );
    assert!(seen.contains("1048576"), "{seen}");
    t.run(&[
        "--rm",
        "--device-read-bps",
        "/dev/no-such:1mb",
        IMAGE,
        "true",
    ])
    .fails()
    .complains(&["/dev/no-such"]);
}

fn ulimits(t: &Test) {
    assert_eq!(
        t.sh(&["--ulimit", "nofile=123:456"], "ulimit -Sn; ulimit -Hn"),
        "123\n456"
    );
    assert_eq!(t.sh(&["--ulimit", "core=0"], "ulimit -c"), "0");
    t.run(&["--rm", "--ulimit", "nosuch=1", IMAGE, "true"])
        .code(125);
    t.run(&["--rm", "--ulimit", "nofile=10:5", IMAGE, "true"])
        .code(125);
}

fn oom_score(t: &Test) {
    assert_eq!(
        t.sh(&["--oom-score-adj", "500"], "cat /proc/self/oom_score_adj"),
        "500"
    );
    t.run(&["--rm", "--oom-score-adj", "5000", IMAGE, "true"])
        .code(125);
}

fn a_missing_controller_is_told(t: &Test) {
    // hugetlb is on no machine without huge pages; a limit on what the host cannot bound must not be dropped in silence
    let id = t.run(&["--rm", "--cpu-rt-runtime", "95000", IMAGE, "true"]);
    id.code(125);
}

fn parent_cgroup(t: &Test) {
    let parent = format!("caisson-test-parent-{}", std::process::id());
    let id = t.sleeper(&["--cgroup-parent", &format!("/{parent}")]);
    let pid = t.inspect(&id, "{{.State.Pid}}");
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("a running process");
    t.cli(&["rm", "-f", &id]).ok();
    for tree in std::fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten()
    {
        let _ = std::fs::remove_dir(tree.path().join(&parent));
    }
    let _ = std::fs::remove_dir(format!("/sys/fs/cgroup/{parent}"));
    assert!(cgroup.contains(&format!("/{parent}/")), "{cgroup}");
}

cases![
    memory_limit_is_set,
    out_of_memory_is_told,
    a_plain_kill_is_not_out_of_memory,
    memory_reservation_and_swap,
    bad_memory_limits,
    process_limit_holds.core(),
    cpu_quota_throttles,
    cpu_shares_and_sets,
    block_io_throttle.container_only(),
    ulimits,
    oom_score,
    a_missing_controller_is_told.container_only(),
    parent_cgroup.container_only(),
];
