//! From create to destroy.

use std::time::Duration;

use caisson_runtime::*;
use serde_json::json;

use crate::bench::*;

crate::contract! {
    a_process_runs_from_spawn_to_exit, exit_codes_are_the_shells, unknown_and_unexecutable_commands,
    states_follow_the_life, execs, signals, reaper_as_first_process, pause_and_resume, update_and_stats, process_table,
    a_failed_create_leaves_nothing, a_failed_spawn_can_be_destroyed, destroy_twice_and_while_running, destroy_with_grace,
    a_second_sandbox_of_the_same_id_is_refused, ids_cannot_leave_their_directory, out_of_memory_is_told, wait_by_many,
    dropping_a_create_half_way_leaves_nothing, snapshots_are_refused_clearly, realtime_signals_have_a_code,
    the_supervisors_protection_from_the_oom_killer_is_its_own,
}

async fn a_process_runs_from_spawn_to_exit(bench: &Bench) {
    let (output, status) = bench
        .run("echo out; echo err >&2; echo $$; cat /proc/1/comm; exit 3")
        .await;
    assert_eq!(output.out(), "out\n1\nsh\n");
    assert_eq!(output.stderr, b"err\n");
    assert_eq!((status.code, status.oom_killed), (3, false));
}

async fn exit_codes_are_the_shells(bench: &Bench) {
    for (script, code) in [("exit 0", 0), ("exit 255", 255)] {
        assert_eq!(bench.run(script).await.1.code, code, "{script}");
    }
    // The first process of a PID namespace is immune to its own signals; an exec is not.
    let sandbox = bench.running("sleep 1000").await;
    assert_eq!(
        exec(&*sandbox, "e1", "kill -TERM $$").await.1.code,
        128 + 15
    );
    assert_eq!(exec(&*sandbox, "e2", "kill -KILL $$").await.1.code, 137);
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn realtime_signals_have_a_code(bench: &Bench) {
    let sandbox = bench.running("sleep 1000").await;
    assert_eq!(exec(&*sandbox, "rt", "kill -37 $$").await.1.code, 128 + 37);
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn unknown_and_unexecutable_commands(bench: &Bench) {
    let sandbox = bench.create().await;
    let init = ProcessId::init();
    let spawn =
        |args: &'static [&'static str]| sandbox.spawn(&init, process(args), Stdio::default(), None);
    assert_eq!(
        spawn(&["no-such-program"]).await.expect_err("127").kind,
        ErrorKind::CommandNotFound
    );
    assert_eq!(
        spawn(&["/nowhere/at/all"]).await.expect_err("127").kind,
        ErrorKind::CommandNotFound
    );
    assert_eq!(
        spawn(&["/etc/not-executable"]).await.expect_err("126").kind,
        ErrorKind::CommandNotExecutable
    );
    assert_eq!(
        spawn(&["/etc"]).await.expect_err("126").kind,
        ErrorKind::CommandNotExecutable
    );
    // And the sandbox is still good for a command that exists.
    sandbox
        .spawn(&init, sh("exec sleep 1000"), Stdio::default(), None)
        .await
        .expect("spawned");
    sandbox.start(&init).await.expect("started");
    let error = sandbox
        .spawn(
            &ProcessId("e".into()),
            process(&["no-such-program"]),
            Stdio::default(),
            None,
        )
        .await;
    assert_eq!(error.expect_err("127").kind, ErrorKind::CommandNotFound);
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn states_follow_the_life(bench: &Bench) {
    let sandbox = bench.create().await;
    let init = ProcessId::init();
    assert_eq!(
        sandbox.state().await.expect("a state"),
        SandboxState::Created
    );
    assert_eq!(
        sandbox.wait(&init).await.expect_err("none yet").kind,
        ErrorKind::NotFound
    );
    sandbox
        .spawn(&init, sh("exec sleep 1000"), Stdio::default(), None)
        .await
        .expect("spawned");
    assert_eq!(sandbox.state().await.expect("a state"), SandboxState::Held);
    assert!(
        sandbox
            .spawn(&init, sh("true"), Stdio::default(), None)
            .await
            .is_err()
    );
    let early = sandbox
        .spawn(&ProcessId("e".into()), sh("true"), Stdio::default(), None)
        .await;
    assert_eq!(early.expect_err("not running").kind, ErrorKind::Conflict);
    sandbox.start(&init).await.expect("started");
    assert_eq!(
        sandbox.start(&init).await.expect_err("twice").kind,
        ErrorKind::Conflict
    );
    assert_eq!(
        sandbox.state().await.expect("a state"),
        SandboxState::Running
    );
    let pid = sandbox.pid(&init).await.expect("a pid");
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    sandbox.pause().await.expect("paused");
    assert_eq!(
        sandbox.state().await.expect("a state"),
        SandboxState::Paused
    );
    sandbox.resume().await.expect("resumed");
    sandbox.signal(&init, 9).await.expect("killed");
    let status = sandbox.wait(&init).await.expect("ended");
    assert_eq!(status.code, 137);
    assert_eq!(
        sandbox.state().await.expect("a state"),
        SandboxState::Exited(status)
    );
    assert_eq!(
        sandbox.signal(&init, 9).await.expect_err("ended").kind,
        ErrorKind::NotFound
    );
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
    // What is known stays known.
    assert_eq!(sandbox.wait(&init).await.expect("ended").code, 137);
}

async fn execs(bench: &Bench) {
    let sandbox = bench
        .running("echo from-init > /tmp/x; exec sleep 1000")
        .await;
    bench
        .eventually("the file is there", async || {
            exec(&*sandbox, &unique(), "cat /tmp/x").await.1.code == 0
        })
        .await;
    let (output, status) = exec(&*sandbox, "one", "cat /tmp/x; cat /proc/1/cmdline; exit 4").await;
    assert!(output.out().starts_with("from-init\nsleep\0"), "{output:?}");
    assert_eq!(status.code, 4);
    assert_eq!(
        sandbox
            .wait(&ProcessId("one".into()))
            .await
            .expect("kept")
            .code,
        4
    );
    assert_eq!(
        sandbox
            .wait(&ProcessId("never".into()))
            .await
            .expect_err("unknown")
            .kind,
        ErrorKind::NotFound
    );
    for bad in ["", "../x", "a/b"] {
        let error = sandbox
            .spawn(&ProcessId(bad.into()), sh("true"), Stdio::default(), None)
            .await
            .expect_err(bad);
        assert_eq!(error.kind, ErrorKind::Invalid, "{bad:?}");
    }
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

fn unique() -> String {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    format!(
        "u{}",
        NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    )
}

async fn signals(bench: &Bench) {
    let sandbox = bench.create().await;
    let init = ProcessId::init();
    let script = "trap 'echo got; exit 7' USR1; echo ready; while :; do sleep 0.05; done";
    sandbox
        .spawn(&init, sh(script), Stdio::default(), None)
        .await
        .expect("spawned");
    let mut io = sandbox.attach(&init, OUTPUTS).await.expect("attached");
    sandbox.start(&init).await.expect("started");
    let first = futures_util::StreamExt::next(&mut io.output)
        .await
        .expect("output")
        .expect("output");
    assert_eq!(first, Output::Stdout("ready\n".into()));
    sandbox.signal(&init, 10).await.expect("sent");
    assert_eq!(collect(io).await.out(), "got\n");
    assert_eq!(sandbox.wait(&init).await.expect("ended").code, 7);
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");

    let sandbox = bench.running("sleep 1000").await;
    assert_eq!(
        sandbox
            .signal(&init, 1000)
            .await
            .expect_err("no signal")
            .kind,
        ErrorKind::Invalid
    );
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn reaper_as_first_process(bench: &Bench) {
    let sandbox = bench
        .create_with(Wish {
            reaper: true,
            ..Wish::default()
        })
        .await;
    let init = ProcessId::init();
    let (output, status) = run_in(&*sandbox, &init, sh("echo $$; exit 5"), Stdio::default()).await;
    assert_ne!(output.out(), "1\n");
    assert_eq!(status.code, 5);
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn pause_and_resume(bench: &Bench) {
    let sandbox = bench.create().await;
    let init = ProcessId::init();
    let counting = "while :; do echo x; sleep 0.01; done";
    let log = bench.log_path(sandbox.id());
    sandbox
        .spawn(&init, sh(counting), log_to(&log), None)
        .await
        .expect("spawned");
    sandbox.start(&init).await.expect("started");
    let length = || std::fs::metadata(&log).map_or(0, |m| m.len());
    bench.eventually("it writes", async || length() > 0).await;
    sandbox.pause().await.expect("paused");
    assert_eq!(
        sandbox.pause().await.expect_err("twice").kind,
        ErrorKind::Conflict
    );
    assert_eq!(
        sandbox
            .spawn(&ProcessId("e".into()), sh("true"), Stdio::default(), None)
            .await
            .expect_err("paused")
            .kind,
        ErrorKind::Conflict
    );
    tokio::time::sleep(Duration::from_millis(50)).await;
    let paused_at = length();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(length(), paused_at);
    sandbox.resume().await.expect("resumed");
    assert_eq!(
        sandbox.resume().await.expect_err("twice").kind,
        ErrorKind::Conflict
    );
    bench
        .eventually("it writes again", async || length() > paused_at)
        .await;
    sandbox.pause().await.expect("paused");
    // A frozen sandbox can be destroyed.
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn update_and_stats(bench: &Bench) {
    let resources =
        json!({"linux": {"resources": {"memory": {"limit": 64 << 20}, "pids": {"limit": 50}}}});
    let sandbox = bench
        .create_with(Wish {
            spec: resources,
            ..Wish::default()
        })
        .await;
    let init = ProcessId::init();
    sandbox
        .spawn(&init, sh("while :; do :; done"), Stdio::default(), None)
        .await
        .expect("spawned");
    sandbox.start(&init).await.expect("started");
    bench
        .eventually("it has used a processor", async || {
            let stats = sandbox.stats().await.expect("stats");
            let (workload, own) = (
                stats.workload.cpu_total_ns.expect("cpu"),
                stats.overhead.cpu_total_ns.expect("our own"),
            );
            workload > 50_000_000 && workload > own
        })
        .await;
    let stats = sandbox.stats().await.expect("stats");
    assert!(stats.workload.memory_bytes.expect("memory") > 0);
    assert_eq!(stats.workload.memory_limit_bytes, Some(64 << 20));
    assert_eq!(
        (stats.workload.pids, stats.workload.pids_limit),
        (Some(1), Some(50))
    );
    assert!(stats.overhead.memory_bytes.expect("our own") > 0);
    let limits =
        serde_json::from_value(json!({"memory": {"limit": 96 << 20}, "pids": {"limit": 7}}))
            .expect("limits");
    sandbox.update(&limits).await.expect("updated");
    let stats = sandbox.stats().await.expect("stats");
    assert_eq!(stats.workload.memory_limit_bytes, Some(96 << 20));
    assert_eq!(stats.workload.pids_limit, Some(7));
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn out_of_memory_is_told(bench: &Bench) {
    let resources =
        json!({"linux": {"resources": {"memory": {"limit": 16 << 20, "swap": 16 << 20}}}});
    let sandbox = bench
        .create_with(Wish {
            spec: resources,
            ..Wish::default()
        })
        .await;
    let hog = "exec dd if=/dev/zero of=/dev/null bs=64M count=4";
    let (_, status) = run_in(&*sandbox, &ProcessId::init(), sh(hog), Stdio::default()).await;
    assert_eq!((status.code, status.oom_killed), (137, true));
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn process_table(bench: &Bench) {
    let sandbox = bench.running("sleep 1000 & exec sleep 2000").await;
    bench
        .eventually("both sleep", async || {
            let table = sandbox.processes("").await.expect("a table");
            assert_eq!(table.titles.last().map(String::as_str), Some("CMD"));
            let commands: Vec<_> = table
                .rows
                .iter()
                .filter_map(|r| r.last().cloned())
                .collect();
            commands.contains(&"sleep 1000".to_string())
                && commands.contains(&"sleep 2000".to_string())
        })
        .await;
    let table = sandbox.processes("-o pid,comm").await.expect("a table");
    let init = sandbox
        .pid(&ProcessId::init())
        .await
        .expect("a pid")
        .to_string();
    // Inside a virtual machine processes have numbers of its kernel; the VMM's stands for all of them outside.
    let named = |row: &Vec<String>| {
        row[1] == "sleep" && (bench.isolation == Isolation::Vm || row[0] == init)
    };
    assert!(table.rows.iter().any(named), "{table:?}");
    assert_eq!(
        sandbox
            .processes("--nonsense")
            .await
            .expect_err("unknown")
            .kind,
        ErrorKind::Invalid
    );
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn a_failed_create_leaves_nothing(bench: &Bench) {
    let id = bench.new_id();
    let mut spec = bench.spec(&id, Wish::default());
    spec.rootfs = Rootfs::Overlay {
        lower: vec![bench.dir.path().join("no-such-layer")],
        upper: bench.upper(&id),
        work: bench.upper(&id).with_file_name("work"),
    };
    let error = bench
        .runtime
        .create(&id, spec)
        .await
        .err()
        .expect("no layer");
    assert_ne!(error.kind, ErrorKind::Lost, "{error}");
    assert_eq!(bench.leftovers(), Vec::<String>::new());
    // The id is free again.
    let spec = bench.spec(&id, Wish::default());
    let sandbox = bench.runtime.create(&id, spec).await.expect("created");
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn dropping_a_create_half_way_leaves_nothing(bench: &Bench) {
    for micros in [0, 100, 500, 1000, 2000, 4000] {
        let id = bench.new_id();
        let spec = bench.spec(&id, Wish::default());
        let create = bench.runtime.create(&id, spec);
        if let Ok(Ok(sandbox)) = tokio::time::timeout(Duration::from_micros(micros), create).await {
            sandbox.destroy(Duration::ZERO).await.expect("destroyed");
        }
    }
}

async fn a_failed_spawn_can_be_destroyed(bench: &Bench) {
    let refused = json!({"mounts": [{"destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": ["size=much"]}]});
    let sandbox = bench
        .create_with(Wish {
            spec: refused,
            ..Wish::default()
        })
        .await;
    let error = sandbox
        .spawn(&ProcessId::init(), sh("true"), Stdio::default(), None)
        .await
        .expect_err("no size");
    assert!(error.message.contains("'size'"), "{error}");
    assert_eq!(
        sandbox.state().await.expect("a state"),
        SandboxState::Created
    );
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn destroy_twice_and_while_running(bench: &Bench) {
    let sandbox = bench.running("sleep 1000 & sleep 1000 & wait").await;
    let exec_id = ProcessId("e".into());
    sandbox
        .spawn(&exec_id, sh("sleep 1000"), Stdio::default(), None)
        .await
        .expect("spawned");
    sandbox.start(&exec_id).await.expect("started");
    let held = ProcessId("held".into());
    sandbox
        .spawn(&held, sh("sleep 1000"), Stdio::default(), None)
        .await
        .expect("spawned");
    let (one, two) = tokio::join!(
        sandbox.destroy(Duration::ZERO),
        sandbox.destroy(Duration::ZERO)
    );
    one.and(two).expect("destroyed");
    sandbox.destroy(Duration::ZERO).await.expect("again");
    assert_eq!(
        sandbox.wait(&ProcessId::init()).await.expect("known").code,
        137
    );
    assert_eq!(sandbox.wait(&exec_id).await.expect("known").code, 137);
    assert!(
        bench
            .runtime
            .recover(sandbox.id())
            .await
            .expect("looked")
            .is_none()
    );
    // Never spawned, never started.
    bench
        .create()
        .await
        .destroy(Duration::from_secs(5))
        .await
        .expect("destroyed");
}

async fn destroy_with_grace(bench: &Bench) {
    let sandbox = bench.create().await;
    let init = ProcessId::init();
    let script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.02; done";
    sandbox
        .spawn(&init, sh(script), Stdio::default(), None)
        .await
        .expect("spawned");
    let mut io = sandbox.attach(&init, OUTPUTS).await.expect("attached");
    sandbox.start(&init).await.expect("started");
    futures_util::StreamExt::next(&mut io.output)
        .await
        .expect("output")
        .expect("output");
    sandbox
        .destroy(Duration::from_secs(20))
        .await
        .expect("destroyed");
    assert_eq!(sandbox.wait(&init).await.expect("known").code, 9);

    // One that does not listen is killed when the grace is over.
    let sandbox = bench
        .running("trap '' TERM; while :; do sleep 1; done")
        .await;
    let begin = std::time::Instant::now();
    sandbox
        .destroy(Duration::from_millis(300))
        .await
        .expect("destroyed");
    assert!(
        begin.elapsed() >= Duration::from_millis(300) && begin.elapsed() < Duration::from_secs(5)
    );
    assert_eq!(sandbox.wait(&init).await.expect("known").code, 137);
}

async fn a_second_sandbox_of_the_same_id_is_refused(bench: &Bench) {
    let sandbox = bench.running("sleep 1000").await;
    let spec = bench.spec(sandbox.id(), Wish::default());
    let error = bench
        .runtime
        .create(sandbox.id(), spec)
        .await
        .err()
        .expect("taken");
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert_eq!(
        sandbox.state().await.expect("unharmed"),
        SandboxState::Running
    );
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn ids_cannot_leave_their_directory(bench: &Bench) {
    for bad in ["", ".", "..", "../x", "a/b"] {
        let id = SandboxId(bad.into());
        assert_eq!(
            bench.runtime.recover(&id).await.err().expect(bad).kind,
            ErrorKind::Invalid
        );
    }
}

async fn wait_by_many(bench: &Bench) {
    let sandbox = bench.running("exec sleep 1000").await;
    let waits: Vec<_> = (0..50)
        .map(|_| {
            let sandbox = sandbox.clone();
            tokio::spawn(async move { sandbox.wait(&ProcessId::init()).await.expect("ended").code })
        })
        .collect();
    for wait in &waits[..10] {
        wait.abort();
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    sandbox.signal(&ProcessId::init(), 9).await.expect("killed");
    for wait in waits.into_iter().skip(10) {
        assert_eq!(wait.await.expect("waited"), 137);
    }
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn snapshots_are_refused_clearly(bench: &Bench) {
    assert!(!bench.runtime.capabilities().snapshot);
    let sandbox = bench.create().await;
    assert_eq!(
        sandbox
            .snapshot(bench.dir.path())
            .await
            .expect_err("none")
            .kind,
        ErrorKind::Invalid
    );
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn the_supervisors_protection_from_the_oom_killer_is_its_own(bench: &Bench) {
    let own = "/proc/self/oom_score_adj";
    let before = std::fs::read_to_string(own).expect("readable");
    if std::fs::write(own, "-300").is_err() {
        eprintln!("SKIPPED: no CAP_SYS_RESOURCE");
        return;
    }
    let sandbox = bench.create().await;
    std::fs::write(own, before).expect("restored");
    let script = format!("cat {own}; exec sleep 1000");
    let (init, log) = (ProcessId::init(), bench.log_path(sandbox.id()));
    sandbox
        .spawn(&init, sh(&script), log_to(&log), None)
        .await
        .expect("spawned");
    sandbox.start(&init).await.expect("started");
    bench
        .eventually("it says", async || logged(&log, "stdout") == "0\n")
        .await;
    let (output, _) = exec(&*sandbox, "e", &format!("cat {own}")).await;
    assert_eq!(output.out(), "0\n");
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}
