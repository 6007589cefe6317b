//! Start, stop, restart, kill, pause, rename, update, wait, rm, prune; restart policies and health checks.

use std::time::Duration;

use caisson_tests::{IMAGE, Isolation, Test, cases};

fn stop_then_start(t: &Test) {
    let id = t.start_sh(&["--init"], "sleep 1000");
    t.cli(&["stop", &id]).ok().prints(&format!("{id}\n"));
    assert_eq!(
        t.inspect(&id, "{{.State.Status}} {{.State.ExitCode}} {{.State.Pid}}"),
        "exited 143 0"
    );
    t.cli(&["stop", &id]).ok();
    t.cli(&["start", &id]).ok();
    assert_eq!(t.inspect(&id, "{{.State.Status}}"), "running");
    t.cli(&["start", &id]).ok();
}

fn stop_kills_after_the_timeout(t: &Test) {
    let id = t.start_sh(&[], "trap '' TERM; echo up; while :; do sleep 0.05; done");
    t.eventually("it is up", || t.cli(&["logs", &id]).out().contains("up"));
    let outcome = t.cli(&["stop", "-t", "1", &id]);
    assert!(
        (0.9..8.0).contains(&outcome.ok().took.as_secs_f64()),
        "{}",
        outcome.dump()
    );
    assert_eq!(t.inspect(&id, "{{.State.ExitCode}}"), "137");
}

fn file_changes_survive_a_restart(t: &Test) {
    let id = t.sleeper(&[]);
    t.exec(&id, "echo kept > /root/file");
    t.cli(&["restart", "-t", "0", &id])
        .ok()
        .prints(&format!("{id}\n"));
    assert_eq!(t.exec(&id, "cat /root/file"), "kept");
}

fn kill_sends_the_signal(t: &Test) {
    let id = t.start_sh(
        &[],
        "trap 'exit 11' USR1; echo up; while :; do sleep 0.05; done",
    );
    t.eventually("it is up", || t.cli(&["logs", &id]).out().contains("up"));
    t.cli(&["kill", "--signal", "USR1", &id]).ok();
    t.cli(&["wait", &id]).ok().prints("11\n");
    t.cli(&["kill", &id]).code(1).complains(&["not running"]);
}

fn kill_by_default_kills(t: &Test) {
    let id = t.sleeper(&[]);
    t.cli(&["kill", &id]).ok();
    t.cli(&["wait", &id]).ok().prints("137\n");
    let id = t.sleeper(&[]);
    t.cli(&["kill", "-s", "NOSUCH", &id])
        .fails()
        .complains(&["invalid signal", "NOSUCH"]);
}

fn pause_freezes(t: &Test) {
    let id = t.start_sh(
        &[],
        "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.02; done",
    );
    t.cli(&["pause", &id]).ok();
    assert_eq!(
        t.inspect(
            &id,
            "{{.State.Status}} {{.State.Paused}} {{.State.Running}}"
        ),
        "paused true true"
    );
    t.cli(&["exec", &id, "true"]).fails().complains(&["paused"]);
    t.cli(&["pause", &id])
        .fails()
        .complains(&["already paused"]);
    let listed = t.cli(&[
        "ps",
        "--filter",
        &format!("id={id}"),
        "--format",
        "{{.Status}}",
    ]);
    listed.ok().has("(Paused)");
    t.cli(&["unpause", &id]).ok();
    assert_eq!(t.inspect(&id, "{{.State.Status}}"), "running");
    let before: u64 = t.exec(&id, "cat /count").parse().unwrap_or(0);
    t.eventually("it counts on", || {
        t.exec(&id, "cat /count").parse::<u64>().unwrap_or(0) > before
    });
    t.cli(&["unpause", &id]).fails().complains(&["not paused"]);
}

fn a_paused_container_can_be_removed(t: &Test) {
    let id = t.sleeper(&[]);
    t.cli(&["pause", &id]).ok();
    t.cli(&["rm", "-f", &id]).ok();
    t.cli(&["container", "inspect", &id]).fails();
}

fn rename(t: &Test) {
    let (old, new, other) = (t.unique("old"), t.unique("new"), t.unique("other"));
    let id = t.create(&["--name", &old, IMAGE]);
    t.create(&["--name", &other, IMAGE]);
    t.cli(&["rename", &old, &new]).ok();
    assert_eq!(t.inspect(&new, "{{.Id}}"), id);
    t.cli(&["container", "inspect", &old])
        .fails()
        .complains(&["no such container"]);
    t.cli(&["rename", &new, &other])
        .fails()
        .complains(&["already in use"]);
}

fn names_ids_and_prefixes(t: &Test) {
    let name = t.unique("n");
    let id = t.create(&["--name", &name, IMAGE]);
    for reference in [
        name.as_str(),
        &id,
        &id[..12],
        &id[..20],
        &format!("/{name}"),
    ] {
        assert_eq!(t.inspect(reference, "{{.Id}}"), id, "{reference}");
    }
}

fn unknown_containers(t: &Test) {
    for verb in [
        "start", "stop", "kill", "rm", "pause", "logs", "top", "wait", "restart", "diff", "port",
        "attach",
    ] {
        t.cli(&[verb, "no-such-container"])
            .code(1)
            .complains(&["no such container: no-such-container"]);
    }
    t.cli(&["rm", "-f", "no-such-container"])
        .complains(&["no such container"]);
    t.cli(&["exec", "no-such-container", "true"])
        .code(1)
        .complains(&["no such container"]);
    t.cli(&["rename", "no-such-container", "x1"])
        .code(1)
        .complains(&["no such container"]);
    t.cli(&["inspect", "no-such-container"])
        .code(1)
        .complains(&["no such object"]);
}

fn rm_refuses_what_runs(t: &Test) {
    let id = t.sleeper(&[]);
    t.cli(&["rm", &id])
        .code(1)
        .complains(&["running container", "container is running"]);
    t.cli(&["rm", "-f", &id]).ok().prints(&format!("{id}\n"));
}

fn rm_several(t: &Test) {
    let ids = [t.create(&[IMAGE]), t.create(&[IMAGE]), t.sleeper(&[])];
    let outcome = t.cli(&["rm", "-f", &ids[0], &ids[1], "missing", &ids[2]]);
    for id in &ids {
        outcome.has(id);
        t.cli(&["container", "inspect", id]).fails();
    }
}

fn wait_for_several(t: &Test) {
    let first = t.start_sh(&[], "sleep 0.3; exit 1");
    let second = t.start_sh(&[], "exit 2");
    t.cli(&["wait", &first, &second]).ok().prints("1\n2\n");
}

fn update_limits_while_running(t: &Test) {
    let id = t.sleeper(&["-m", "64m"]);
    t.cli(&[
        "update",
        "--memory",
        "100m",
        "--memory-swap",
        "200m",
        "--cpu-shares",
        "512",
        "--pids-limit",
        "77",
        &id,
    ])
    .ok()
    .prints(&format!("{id}\n"));
    let host = &t.inspect_json(&id)["HostConfig"];
    assert_eq!(host["Memory"], 100 << 20);
    assert_eq!(host["CpuShares"], 512);
    assert_eq!(host["PidsLimit"], 77);
    let seen = t.exec(&id, "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max");
    assert_eq!(seen, (100 << 20).to_string());
    let seen = t.exec(
        &id,
        "cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max",
    );
    assert_eq!(seen, "77");
}

fn update_restart_policy(t: &Test) {
    let id = t.sleeper(&[]);
    t.cli(&["update", "--restart", "on-failure:3", &id]).ok();
    assert_eq!(
        t.inspect(
            &id,
            "{{.HostConfig.RestartPolicy.Name}} {{.HostConfig.RestartPolicy.MaximumRetryCount}}"
        ),
        "on-failure 3"
    );
}

fn restart_on_failure_gives_up(t: &Test) {
    let id = t.start_sh(&["--restart", "on-failure:2"], "echo try; exit 3");
    t.eventually("it gave up", || {
        t.inspect(&id, "{{.State.Status}} {{.RestartCount}}") == "exited 2"
    });
    assert_eq!(t.inspect(&id, "{{.State.ExitCode}}"), "3");
    assert_eq!(t.cli(&["logs", &id]).out(), "try\ntry\ntry\n");
}

fn restart_on_failure_accepts_success(t: &Test) {
    let id = t.start_sh(&["--restart", "on-failure"], "exit 0");
    t.await_state(&id, "exited");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(
        t.inspect(&id, "{{.State.Status}} {{.RestartCount}}"),
        "exited 0"
    );
}

fn restart_always_until_stopped(t: &Test) {
    let id = t.start_sh(&["--restart", "always"], "sleep 0.1");
    t.eventually("it restarted twice", || {
        t.inspect(&id, "{{.RestartCount}}")
            .parse()
            .is_ok_and(|n: u32| n >= 2)
    });
    t.cli(&["stop", "-t", "0", &id]).ok();
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(t.inspect(&id, "{{.State.Status}}"), "exited");
}

fn a_restarting_container_can_be_removed(t: &Test) {
    let id = t.start_sh(&["--restart", "always"], "exit 1");
    t.eventually("it restarts", || {
        t.inspect(&id, "{{.RestartCount}}")
            .parse()
            .is_ok_and(|n: u32| n >= 1)
    });
    t.cli(&["rm", "-f", &id]).ok();
    t.cli(&["container", "inspect", &id]).fails();
}

fn bad_restart_policies(t: &Test) {
    t.run(&["--restart", "sometimes", IMAGE, "true"])
        .code(125)
        .complains(&["restart policy"]);
    t.run(&["--rm", "--restart", "always", IMAGE, "true"])
        .code(125)
        .complains(&["--restart", "conflict"]);
}

fn health_becomes_healthy_then_unhealthy(t: &Test) {
    let id = t.start_sh(
        &[
            "--health-cmd",
            "cat /healthy",
            "--health-interval",
            "200ms",
            "--health-retries",
            "2",
            "--health-timeout",
            "5s",
        ],
        "echo fine > /healthy; sleep 1000",
    );
    let health = || t.inspect(&id, "{{.State.Health.Status}}");
    t.eventually("healthy", || health() == "healthy");
    t.cli(&[
        "ps",
        "--filter",
        "health=healthy",
        "--format",
        "{{.ID}} {{.Status}}",
        "--no-trunc",
    ])
    .ok()
    .has(&id)
    .has("(healthy)");
    let log = t.inspect(&id, "{{json .State.Health.Log}}");
    assert!(
        log.contains("fine") && log.contains("\"ExitCode\":0"),
        "{log}"
    );
    t.exec(&id, "rm /healthy");
    t.eventually("unhealthy", || health() == "unhealthy");
    assert!(
        t.inspect(&id, "{{.State.Health.FailingStreak}}")
            .parse()
            .is_ok_and(|n: u32| n >= 2)
    );
}

fn health_starts_as_starting(t: &Test) {
    let id = t.start_sh(
        &["--health-cmd", "false", "--health-interval", "30s"],
        "sleep 1000",
    );
    assert_eq!(t.inspect(&id, "{{.State.Health.Status}}"), "starting");
    let id = t.start_sh(&["--no-healthcheck"], "sleep 1000");
    assert_eq!(
        t.inspect(
            &id,
            "{{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}}"
        ),
        "none"
    );
}

fn health_timeout_counts_as_failure(t: &Test) {
    let id = t.start_sh(
        &[
            "--health-cmd",
            "sleep 100",
            "--health-interval",
            "100ms",
            "--health-timeout",
            "300ms",
            "--health-retries",
            "1",
        ],
        "sleep 1000",
    );
    t.eventually("unhealthy", || {
        t.inspect(&id, "{{.State.Health.Status}}") == "unhealthy"
    });
}

fn prune_removes_stopped_containers(t: &Test) {
    let label = format!("prune={}", t.unique("p"));
    let stopped = t.create(&["--label", &label, IMAGE]);
    let running = t.sleeper(&["--label", &label]);
    let outcome = t.cli(&[
        "container",
        "prune",
        "-f",
        "--filter",
        &format!("label={label}"),
    ]);
    outcome
        .ok()
        .has(&stopped)
        .lacks(&running)
        .has("Total reclaimed space");
    t.cli(&["container", "inspect", &stopped]).fails();
    t.cli(&["container", "inspect", &running]).ok();
}

fn ps_lists_and_filters(t: &Test) {
    let label = format!("ps={}", t.unique("l"));
    let running = t.sleeper(&["--label", &label, "--name", &t.unique("runs")]);
    let created = t.create(&["--label", &label, IMAGE]);
    let exited = t.start_sh(&["--label", &label], "exit 4");
    t.cli(&["wait", &exited]).ok();
    let filter = format!("label={label}");
    let list = |more: &[&str]| {
        let base = ["ps", "--no-trunc", "-q", "--filter", &filter];
        let mut ids: Vec<String> = t
            .cli(&[&base, more].concat())
            .ok()
            .out()
            .lines()
            .map(str::to_string)
            .collect();
        ids.sort();
        ids
    };
    let sorted = |ids: &[&String]| {
        let mut ids: Vec<String> = ids.iter().map(|id| id.to_string()).collect();
        ids.sort();
        ids
    };
    assert_eq!(list(&[]), sorted(&[&running]));
    assert_eq!(list(&["-a"]), sorted(&[&running, &created, &exited]));
    assert_eq!(
        list(&["-a", "--filter", "status=created"]),
        sorted(&[&created])
    );
    assert_eq!(list(&["-a", "--filter", "exited=4"]), sorted(&[&exited]));
    assert_eq!(
        list(&["--filter", &format!("name={}", t.unique("runs"))]),
        sorted(&[&running])
    );
    assert_eq!(
        list(&["-a", "--filter", &format!("ancestor={IMAGE}")]).len(),
        3
    );
    assert_eq!(
        list(&["-a", "--filter", &format!("since={running}")]),
        sorted(&[&created, &exited])
    );
    assert_eq!(
        list(&["-a", "--filter", &format!("before={created}")]),
        sorted(&[&running])
    );
    let table = t.cli(&["ps", "-a", "--filter", &filter]);
    for text in [
        "CONTAINER ID",
        "IMAGE",
        "COMMAND",
        "CREATED",
        "STATUS",
        "PORTS",
        "NAMES",
        "\"sleep 1000\"",
        "Up ",
        "Exited (4)",
        "Created",
        &running[..12],
    ] {
        table.ok().has(text);
    }
    let json = t.cli(&["ps", "--filter", &filter, "--format", "{{json .}}"]);
    json.ok().has(&format!("\"ID\":\"{}\"", &running[..12]));
    t.cli(&["ps", "--filter", "nonsense=1"])
        .fails()
        .complains(&["filter"]);
}

fn ps_last_and_size(t: &Test) {
    let id = t.start_sh(&[], "head -c 100000 /dev/zero > /file; sync; sleep 1000");
    t.cli(&["ps", "-n", "1", "--format", "{{.ID}}"]).ok();
    let filter = format!("id={id}");
    t.eventually("the size is seen", || {
        let size = t.cli(&["ps", "-s", "--filter", &filter, "--format", "{{.Size}}"]);
        match t.isolation {
            Isolation::Container => size.ok().out().contains("100kB (virtual"),
            // the blocks of a disk, with what its file system keeps for itself
            Isolation::Vm => {
                let written = t.cli(&["inspect", "-s", "--format", "{{.SizeRw}}", &id]);
                size.ok().has("(virtual ");
                (100_000..16 << 20).contains(&written.ok().trimmed().parse().expect("bytes"))
            }
        }
    });
}

fn exit_time_and_start_time(t: &Test) {
    let id = t.start_sh(&[], "sleep 0.3");
    t.cli(&["wait", &id]).ok();
    let state = &t.inspect_json(&id)["State"];
    let (started, finished) = (
        state["StartedAt"].as_str().unwrap_or(""),
        state["FinishedAt"].as_str().unwrap_or(""),
    );
    assert!(started.starts_with("20") && started < finished, "{state}");
}

cases![
    stop_then_start.core(),
    stop_kills_after_the_timeout,
    file_changes_survive_a_restart.core(),
    kill_sends_the_signal,
    kill_by_default_kills.core(),
    pause_freezes.core(),
    a_paused_container_can_be_removed,
    rename,
    names_ids_and_prefixes,
    unknown_containers,
    rm_refuses_what_runs,
    rm_several,
    wait_for_several,
    update_limits_while_running,
    update_restart_policy,
    restart_on_failure_gives_up,
    restart_on_failure_accepts_success,
    restart_always_until_stopped,
    a_restarting_container_can_be_removed,
    bad_restart_policies,
    health_becomes_healthy_then_unhealthy,
    health_starts_as_starting,
    health_timeout_counts_as_failure,
    prune_removes_stopped_containers,
    ps_lists_and_filters,
    ps_last_and_size,
    exit_time_and_start_time,
];
