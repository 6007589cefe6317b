//! Cgroups of this machine's kernel, as root: limits read back, processes frozen and killed, nothing left. Each case runs on
//! every kind of layout that the machine offers: as it is, v1 only, v2 only.

#![allow(unsafe_code)] // CommandExt::pre_exec

use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use caisson_jail::ErrorKind;
use caisson_jail::cgroup::{Cgroup, Entrance, Layout, Unified, Version};
use nix::unistd::Pid;
use oci_spec::runtime::LinuxResources;

/// A cgroup path of our own, removed on drop in every hierarchy.
struct Scratch {
    top: PathBuf,
    layout: Layout,
}

impl Scratch {
    fn cgroup(&self, name: &str) -> Cgroup {
        Cgroup::in_layout(&self.layout, &self.top.join(name)).expect("plan")
    }

    fn dirs(&self) -> Vec<PathBuf> {
        self.layout
            .hierarchies
            .iter()
            .map(|h| h.dir(&self.top))
            .collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let all = Cgroup::in_layout(&self.layout, &self.top).expect("plan");
        let end = all.kill().and_then(|()| all.remove());
        let left: Vec<_> = self.dirs().into_iter().filter(|d| d.exists()).collect();
        if !std::thread::panicking() {
            end.expect("kill and remove");
            assert!(left.is_empty(), "left behind: {left:?}");
        }
    }
}

fn scratch(layout: Layout) -> Scratch {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Scratch {
        top: format!("/caisson-test-{}-{number}", std::process::id()).into(),
        layout,
    }
}

/// The layouts that can be tried here; none, with the reason printed, when this is not a root that may make cgroups.
fn layouts() -> Vec<(&'static str, Layout)> {
    let layout = Layout::detect().expect("layout");
    if !nix::unistd::geteuid().is_root() || layout.hierarchies.is_empty() {
        println!("skipped: needs root and a mounted cgroup file system");
        return Vec::new();
    }
    let only = |v2: bool| Layout {
        hierarchies: layout
            .hierarchies
            .iter()
            .filter(|h| (h.version == Version::V2) == v2)
            .cloned()
            .collect(),
    };
    let kinds = [
        ("as mounted", layout.clone()),
        ("v1", only(false)),
        ("v2", only(true)),
    ];
    kinds
        .into_iter()
        .filter(|(_, l)| !l.hierarchies.is_empty())
        .collect()
}

fn v1_layout() -> Option<Layout> {
    let found = layouts()
        .into_iter()
        .find(|(kind, _)| *kind == "v1")
        .map(|(_, l)| l);
    if found.is_none() {
        println!("skipped: no cgroup v1 here");
    }
    found
}

fn v2_layout() -> Option<Layout> {
    let found = layouts()
        .into_iter()
        .find(|(kind, _)| *kind == "v2")
        .map(|(_, l)| l);
    if found.is_none() {
        println!("skipped: no cgroup v2 here");
    }
    found
}

fn resources(json: &str) -> LinuxResources {
    serde_json::from_str(json).expect("resources parse")
}

/// A shell inside the cgroup; its output can be read.
fn shell_in(cgroup: &Cgroup, script: &str) -> Child {
    let entrance: Entrance = cgroup.entrance().expect("entrance");
    let mut command = Command::new("/bin/sh");
    command
        .arg("-c")
        .arg(script)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    // SAFETY: `enter` only calls write(2).
    unsafe { command.pre_exec(move || entrance.enter(Unified::Outside).map_err(Into::into)) };
    command.spawn().expect("sh in the cgroup")
}

fn wait_killed(mut child: Child) {
    let status = child.wait().expect("wait");
    assert_eq!(status.signal(), Some(libc::SIGKILL), "{status:?}");
}

fn dir(cgroup: &Cgroup, key: &str) -> PathBuf {
    cgroup
        .dirs()
        .get(key)
        .unwrap_or_else(|| panic!("no hierarchy {key:?}"))
        .clone()
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path)
        .unwrap_or_else(|e| panic!("{path:?}: {e}"))
        .trim()
        .to_owned()
}

#[test]
fn processes_come_are_frozen_are_killed_and_nothing_stays() {
    for (kind, layout) in layouts() {
        let scratch = scratch(layout);
        let cgroup = scratch.cgroup("box");
        assert!(!cgroup.exists(), "{kind}");
        cgroup.create(None).expect(kind);
        assert!(cgroup.exists() && cgroup.pids().expect(kind).is_empty());

        let mut child = shell_in(&cgroup, "while :; do echo tick; sleep 0.02; done");
        let pid = Pid::from_raw(child.id().cast_signed());
        let mut ticks = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        ticks.read_line(&mut line).expect("a tick");
        assert!(cgroup.pids().expect(kind).contains(&pid), "{kind}");
        let own =
            std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroup of the child");
        let inside = own.lines().filter(|l| l.ends_with("/box")).count();
        assert_eq!(inside, scratch.layout.hierarchies.len(), "{kind}: {own}");

        // Somebody lives there: it cannot be made a second time, nor removed.
        assert_eq!(
            cgroup.create(None).map_err(|e| e.kind()),
            Err(ErrorKind::Conflict),
            "{kind}"
        );
        assert!(cgroup.exists());

        assert!(!cgroup.is_frozen().expect(kind));
        cgroup.freeze().expect(kind);
        assert!(cgroup.is_frozen().expect(kind), "{kind}");
        let state = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
            let after_name = stat.rsplit_once(')').expect("name").1.to_owned();
            let fields: Vec<String> = after_name.split_whitespace().map(str::to_owned).collect();
            (fields[11].clone(), fields[12].clone())
        };
        let before = state();
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(state(), before, "{kind}: frozen processes use no time");
        cgroup.thaw().expect(kind);
        assert!(!cgroup.is_frozen().expect(kind), "{kind}");
        cgroup.thaw().expect("twice");

        // Killed while frozen.
        cgroup.freeze().expect(kind);
        cgroup.kill().expect(kind);
        wait_killed(child);
        let mut rest = String::new();
        ticks.read_to_string(&mut rest).expect("end of output");
        cgroup.kill().expect("nobody is left");
        cgroup.remove().expect(kind);
        assert!(!cgroup.exists(), "{kind}");
        cgroup.remove().expect("twice");
        cgroup.kill().expect("gone");
        assert!(cgroup.pids().expect("gone").is_empty());
    }
}

#[test]
fn a_fork_bomb_is_killed_to_the_last() {
    for (kind, layout) in layouts() {
        let scratch = scratch(layout);
        let cgroup = scratch.cgroup("bomb");
        let limited = kind != "v2" && cgroup.dirs().contains_key("pids");
        cgroup
            .create(
                limited
                    .then(|| resources(r#"{"pids":{"limit":60}}"#))
                    .as_ref(),
            )
            .expect(kind);
        // Each generation forks two and goes away. The depth bounds it where no pids controller does.
        let script = "f() { if [ $1 -gt 0 ]; then f $(($1-1)) & f $(($1-1)) & fi; sleep 30; }; f 5 2>/dev/null; wait";
        let child = shell_in(&cgroup, script);
        let deadline = Instant::now() + Duration::from_secs(5);
        while cgroup.pids().expect(kind).len() < 20 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        cgroup.kill().expect(kind);
        wait_killed(child);
        cgroup.remove().expect(kind);
        assert!(!cgroup.exists(), "{kind}");
    }
}

#[test]
fn removal_takes_what_the_container_made_below() {
    for (kind, layout) in layouts() {
        let scratch = scratch(layout);
        let cgroup = scratch.cgroup("deep");
        cgroup.create(None).expect(kind);
        for dir in cgroup.dirs().values() {
            std::fs::create_dir_all(dir.join("a/b")).expect("below");
            std::fs::create_dir_all(dir.join("c")).expect("below");
        }
        cgroup.remove().expect(kind);
        assert!(!cgroup.exists(), "{kind}");
    }
}

#[test]
fn removal_waits_for_the_dying() {
    for (kind, layout) in layouts() {
        let scratch = scratch(layout);
        let cgroup = scratch.cgroup("dying");
        cgroup.create(None).expect(kind);
        let child = shell_in(&cgroup, "sleep 0.3");
        cgroup.remove().expect(kind);
        assert!(!cgroup.exists(), "{kind}");
        child.wait_with_output().expect("wait");
    }
}

#[test]
fn limits_are_read_back_on_v1() {
    let Some(layout) = v1_layout() else { return };
    let scratch = scratch(layout);
    let cgroup = scratch.cgroup("limited");
    cgroup
        .create(Some(&resources(
            r#"{"cpu":{"shares":512,"quota":25000,"period":50000,"cpus":"0","mems":"0"},
                "memory":{"limit":67108864,"swap":134217728,"reservation":33554432,"swappiness":7},
                "pids":{"limit":42}}"#,
        )))
        .expect("create");
    let at = |controller: &str, file: &str| text(&dir(&cgroup, controller).join(file));
    let all = || {
        [
            at("cpu", "cpu.shares"),
            at("cpu", "cpu.cfs_quota_us"),
            at("cpu", "cpu.cfs_period_us"),
            at("cpuset", "cpuset.cpus"),
            at("memory", "memory.limit_in_bytes"),
            at("memory", "memory.memsw.limit_in_bytes"),
            at("memory", "memory.soft_limit_in_bytes"),
            at("memory", "memory.swappiness"),
            at("pids", "pids.max"),
        ]
    };
    assert_eq!(
        all(),
        [
            "512",
            "25000",
            "50000",
            "0",
            "67108864",
            "134217728",
            "33554432",
            "7",
            "42"
        ]
    );
    // Up, over the present bound of both; then down again, below it; then without bounds.
    let update = |json: &str| {
        cgroup
            .update(&resources(json))
            .unwrap_or_else(|e| panic!("{json}: {e}"))
    };
    update(
        r#"{"memory":{"limit":268435456,"swap":536870912},"pids":{"limit":-1},"cpu":{"shares":2048}}"#,
    );
    assert_eq!(
        all(),
        [
            "2048",
            "25000",
            "50000",
            "0",
            "268435456",
            "536870912",
            "33554432",
            "7",
            "max"
        ]
    );
    update(r#"{"memory":{"limit":16777216,"swap":16777216}}"#);
    assert_eq!(at("memory", "memory.memsw.limit_in_bytes"), "16777216");
    let stats = cgroup.stats().expect("stats");
    assert_eq!(stats.memory_limit_bytes, Some(16_777_216));
    update(r#"{"memory":{"limit":-1},"cpu":{"quota":-1}}"#);
    let stats = cgroup.stats().expect("stats");
    assert_eq!(
        (stats.memory_limit_bytes, stats.pids_limit, stats.pids),
        (None, None, Some(0))
    );
}

#[test]
fn counters_count() {
    for (kind, layout) in layouts() {
        let scratch = scratch(layout);
        let cgroup = scratch.cgroup("counted");
        cgroup.create(None).expect(kind);
        let child = shell_in(
            &cgroup,
            "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; echo done; sleep 30",
        );
        let mut line = String::new();
        let mut child = child;
        BufReader::new(child.stdout.take().expect("piped"))
            .read_line(&mut line)
            .expect("done");
        let stats = cgroup.stats().expect(kind);
        assert!(
            stats.cpu_total_ns.expect("cpu") > 1_000_000,
            "{kind}: {stats:?}"
        );
        let parts = stats.cpu_user_ns.expect("user") + stats.cpu_system_ns.expect("system");
        assert!(parts > 0, "{kind}: {stats:?}");
        let has = |controller: &str| {
            let all = &scratch.layout.hierarchies;
            all.iter()
                .any(|h| h.controllers.iter().any(|c| c == controller))
        };
        if has("memory") {
            assert!(
                stats.memory_bytes.expect("memory") > 4096,
                "{kind}: {stats:?}"
            );
            // v2 has a peak since Linux 5.19.
            assert!(
                stats
                    .memory_peak_bytes
                    .is_none_or(|peak| Some(peak) >= stats.memory_bytes)
            );
            let keys = ["rss", "anon"];
            assert!(
                keys.iter()
                    .any(|key| stats.memory_detail.contains_key(*key)),
                "{stats:?}"
            );
        }
        if has("pids") {
            assert!(stats.pids.expect("pids") >= 1, "{kind}: {stats:?}");
        }
        assert_eq!(cgroup.oom_kills().expect(kind), 0);
        cgroup.kill().expect(kind);
        wait_killed(child);
    }
}

#[test]
fn a_refused_limit_names_file_and_value_and_leaves_nothing() {
    let Some(layout) = v1_layout() else { return };
    let scratch = scratch(layout);
    let cgroup = scratch.cgroup("refused");
    let error = cgroup
        .create(Some(&resources(
            r#"{"pids":{"limit":5},"cpu":{"cpus":"900"}}"#,
        )))
        .expect_err("no such cpu");
    let message = error.to_string();
    assert!(
        message.contains("cpuset.cpus") && message.contains("\"900\""),
        "{message}"
    );
    assert!(!cgroup.exists());
    assert!(scratch.dirs().iter().all(|d| !d.exists()), "the parent too");
}

#[test]
fn a_missing_controller_is_named() {
    let Some(layout) = v2_layout() else { return };
    if layout.hierarchies[0]
        .controllers
        .iter()
        .any(|c| c == "memory")
    {
        println!("skipped: memory is on v2 here");
        return;
    }
    let scratch = scratch(layout);
    let error = scratch
        .cgroup("x")
        .create(Some(&resources(r#"{"memory":{"limit":100000000}}"#)))
        .expect_err("no memory controller");
    assert_eq!(error.kind(), ErrorKind::HostUnfit);
    assert!(error.to_string().contains("\"memory\""), "{error}");
}

/// The one v2 controller that a hybrid host may have left.
fn v2_with_hugetlb() -> Option<Layout> {
    let layout = v2_layout()?;
    let there = layout.hierarchies[0]
        .controllers
        .iter()
        .any(|c| c == "hugetlb");
    if !there {
        println!("skipped: hugetlb is not on v2 here");
    }
    there.then_some(layout)
}

const HUGE: &str = r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#;

#[test]
fn controllers_are_handed_down_on_v2() {
    let Some(layout) = v2_with_hugetlb() else {
        return;
    };
    let scratch = scratch(layout);
    let cgroup = scratch.cgroup("a/b/c");
    cgroup.create(Some(&resources(HUGE))).expect("create");
    let dir = dir(&cgroup, "");
    assert_eq!(text(&dir.join("hugetlb.2MB.max")), "4194304");
    assert_eq!(text(&dir.join("hugetlb.2MB.rsvd.max")), "4194304");
    cgroup
        .update(&resources(
            r#"{"hugepageLimits":[{"pageSize":"2MB","limit":-1}]}"#,
        ))
        .expect("update");
    assert_eq!(text(&dir.join("hugetlb.2MB.max")), "max");
}

#[test]
fn a_parent_with_processes_hands_nothing_down_and_the_error_says_so() {
    let Some(layout) = v2_with_hugetlb() else {
        return;
    };
    let scratch = scratch(layout);
    let parent = scratch.cgroup("parent");
    parent.create(None).expect("parent");
    let resident = shell_in(&parent, "sleep 30");
    let child = scratch.cgroup("parent/child");
    let error = child
        .create(Some(&resources(HUGE)))
        .expect_err("no internal processes");
    assert_eq!(error.kind(), ErrorKind::HostUnfit);
    assert!(
        error.to_string().contains("processes of its own"),
        "{error}"
    );
    assert!(!child.exists());
    assert_ne!(
        text(&dir(&parent, "").join("cgroup.type")),
        "domain threaded"
    );
    // Without a limit there is nothing to miss.
    child.create(None).expect("create");
    child.remove().expect("remove");
    parent.kill().expect("kill");
    wait_killed(resident);
}

#[test]
fn exec_joins_an_init_that_moved_down() {
    let Some(layout) = v2_with_hugetlb() else {
        return;
    };
    let scratch = scratch(layout);
    let cgroup = scratch.cgroup("systemd-like");
    cgroup.create(None).expect("create");
    let script = format!(
        "cd {0} && mkdir init.scope && echo $$ > init.scope/cgroup.procs && echo +hugetlb > cgroup.subtree_control && echo ready; sleep 30",
        dir(&cgroup, "").display()
    );
    let mut init = shell_in(&cgroup, &script);
    let pid = Pid::from_raw(init.id().cast_signed());
    let mut line = String::new();
    BufReader::new(init.stdout.take().expect("piped"))
        .read_line(&mut line)
        .expect("ready");
    assert_eq!(line, "ready\n");
    let further = shell_in(&cgroup.beside(pid).expect("beside"), "sleep 30");
    let further_pid = Pid::from_raw(further.id().cast_signed());
    assert!(cgroup.pids().expect("pids").contains(&further_pid));
    cgroup.kill().expect("kill");
    wait_killed(init);
    wait_killed(further);
}

/// Layouts with a memory controller.
fn with_memory() -> Vec<(&'static str, Layout)> {
    let has = |layout: &Layout| {
        layout
            .hierarchies
            .iter()
            .any(|h| h.controllers.iter().any(|c| c == "memory"))
    };
    let found: Vec<_> = layouts()
        .into_iter()
        .filter(|(_, layout)| has(layout))
        .collect();
    if found.is_empty() {
        println!("skipped: no memory controller here");
    }
    found
}

#[test]
fn an_out_of_memory_kill_is_told_and_counted() {
    for (kind, layout) in with_memory() {
        let scratch = scratch(layout);
        let cgroup = scratch.cgroup("oom");
        cgroup
            .create(Some(&resources(
                r#"{"memory":{"limit":16777216,"swap":16777216}}"#,
            )))
            .expect(kind);
        let watch = cgroup
            .oom_watch()
            .expect("watch")
            .expect("memory controller");
        let quiet = nix::unistd::read(&watch, &mut [0; 4096]);
        assert_eq!(quiet, Err(nix::errno::Errno::EAGAIN));
        let child = shell_in(&cgroup, "exec dd if=/dev/zero of=/dev/null bs=200M count=1");
        wait_killed(child);
        let mut poll = [nix::poll::PollFd::new(
            std::os::fd::AsFd::as_fd(&watch),
            nix::poll::PollFlags::POLLIN,
        )];
        assert_eq!(
            nix::poll::poll(&mut poll, 5000u16),
            Ok(1),
            "fd {}",
            watch.as_raw_fd()
        );
        assert!(nix::unistd::read(&watch, &mut [0; 4096]).is_ok());
        assert_eq!(cgroup.oom_kills().expect("count"), 1, "{kind}");
        // Linux 6.18 counts no failure here any more on v1.
        assert!(cgroup.stats().expect("stats").memory_failures.is_some());
    }
}

#[test]
fn limits_are_read_back_on_v2() {
    let Some((_, layout)) = with_memory().into_iter().find(|(kind, _)| *kind == "v2") else {
        println!("skipped: memory is not on v2 here");
        return;
    };
    let scratch = scratch(layout);
    let cgroup = scratch.cgroup("a/limited");
    cgroup
        .create(Some(&resources(
            r#"{"cpu":{"shares":1024,"quota":25000,"period":50000,"cpus":"0","mems":"0"},
                "memory":{"limit":67108864,"swap":134217728,"reservation":33554432},"pids":{"limit":42},
                "unified":{"memory.high":"50331648"}}"#,
        )))
        .expect("create");
    let dir = dir(&cgroup, "");
    let all = || {
        [
            "cpu.weight",
            "cpu.max",
            "cpuset.cpus",
            "memory.max",
            "memory.low",
            "memory.high",
            "pids.max",
        ]
        .map(|file| text(&dir.join(file)))
    };
    assert_eq!(
        all(),
        [
            "100",
            "25000 50000",
            "0",
            "67108864",
            "33554432",
            "50331648",
            "42"
        ]
    );
    let swap = || std::fs::read_to_string(dir.join("memory.swap.max")).map(|s| s.trim().to_owned());
    assert!(swap().is_ok_and(|s| s == "67108864"));
    let update = |json: &str| {
        cgroup
            .update(&resources(json))
            .unwrap_or_else(|e| panic!("{json}: {e}"))
    };
    update(
        r#"{"memory":{"limit":134217728,"swap":134217728},"cpu":{"quota":10000},"pids":{"limit":-1}}"#,
    );
    assert_eq!(
        all(),
        [
            "100",
            "10000 50000",
            "0",
            "134217728",
            "33554432",
            "50331648",
            "max"
        ]
    );
    assert!(swap().is_ok_and(|s| s == "0"));
    update(r#"{"memory":{"limit":-1},"cpu":{"period":100000}}"#);
    assert_eq!(all()[1], "10000 100000");
    let stats = cgroup.stats().expect("stats");
    assert_eq!(
        (stats.memory_limit_bytes, stats.pids_limit, stats.pids),
        (None, None, Some(0))
    );
    assert!(stats.memory_bytes.is_some() && stats.memory_detail.contains_key("anon"));
}

/// What a process in the cgroup may do with devices.
fn device_answers(cgroup: &Cgroup) -> String {
    let dir = tempfile::tempdir().expect("tempdir");
    let script = format!(
        "cd {}
         try() {{ if \"$@\" 2>/dev/null; then echo -n \"+\"; else echo -n \"-\"; fi; }}
         try mknod n c 1 3; try sh -c 'echo x > n'; try sh -c 'head -c1 n'
         try mknod z c 1 5; try sh -c 'head -c1 z >n'
         try mknod k c 1 11; try sh -c ': < k'; try sh -c ': > k'
         try mknod l b 7 99; try sh -c ': < l'",
        dir.path().display()
    );
    let child = shell_in(cgroup, &script);
    let out = child.wait_with_output().expect("wait");
    String::from_utf8(out.stdout).expect("text")
}

#[test]
fn devices_are_limited_on_every_layout() {
    for (kind, layout) in layouts() {
        let scratch = scratch(layout);
        let cgroup = scratch.cgroup("devices");
        // Docker's way: deny all, then what it needs. 1:11 is kmsg.
        let docker = resources(
            r#"{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":11,"access":"r"}]}"#,
        );
        cgroup.create(Some(&docker)).expect(kind);
        // null and zero work, kmsg may be read, making any node is allowed, using a loop device is not.
        assert_eq!(device_answers(&cgroup), "+++++++-+-", "{kind}");
        let nothing_more = resources(r#"{"devices":[{"allow":false,"access":"rwm"}]}"#);
        cgroup.update(&nothing_more).expect(kind);
        assert_eq!(device_answers(&cgroup), "++++++--+-", "{kind}");
        cgroup.update(&docker).expect(kind);
        cgroup
            .update(&resources(r#"{"pids":{"limit":0}}"#))
            .expect("leaves devices alone");
        assert_eq!(device_answers(&cgroup), "+++++++-+-", "{kind}");
    }
}

#[test]
fn without_rules_only_the_usual_devices_work() {
    for (kind, layout) in layouts() {
        let scratch = scratch(layout);
        let cgroup = scratch.cgroup("plain");
        cgroup.create(None).expect(kind);
        assert_eq!(device_answers(&cgroup), "++++++--+-", "{kind}");
    }
}

#[test]
fn join_moves_a_foreign_process() {
    for (kind, layout) in layouts() {
        let scratch = scratch(layout);
        let cgroup = scratch.cgroup("joined");
        cgroup.create(None).expect(kind);
        let mut child = Command::new("sleep").arg("30").spawn().expect("sleep");
        let pid = Pid::from_raw(child.id().cast_signed());
        cgroup.join(pid).expect(kind);
        assert_eq!(cgroup.pids().expect(kind), [pid], "{kind}");
        cgroup.kill().expect(kind);
        assert_eq!(child.wait().expect("wait").signal(), Some(libc::SIGKILL));
    }
}
