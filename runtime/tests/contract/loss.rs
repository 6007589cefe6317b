//! The daemon goes, the supervisor goes, garbage comes.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use caisson_runtime::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bench::*;

crate::contract! {
    a_restarted_daemon_finds_everything, a_restarted_daemon_learns_exit_codes, a_killed_supervisor_takes_its_processes_along,
    a_killed_supervisor_is_found_by_a_restarted_daemon, a_supervisor_killed_before_the_first_process,
    nothing_is_recovered_from_nothing, garbage_only_loses_its_connection, the_directory_is_private,
    a_half_made_sandbox_is_removed_on_recovery, without_a_pid_namespace_nothing_survives_either,
    polite_signals_do_not_end_a_supervisor, a_stuck_supervisor_is_killed,
}

fn supervisor_pid(bench: &Bench, sandbox: &dyn Sandbox) -> Pid {
    let record = fs::read(bench.sandbox_dir(sandbox.id()).join("shim.json")).expect("a record");
    let record: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
    Pid::from_raw(record["pid"].as_i64().expect("a pid") as i32)
}

async fn a_restarted_daemon_finds_everything(bench: &Bench) {
    let sandbox = bench.create().await;
    let init = ProcessId::init();
    let log = bench.log_path(sandbox.id());
    let stdio = Stdio {
        stdin: true,
        ..log_to(&log)
    };
    sandbox
        .spawn(
            &init,
            sh("while read line; do echo got $line; done; exit 8"),
            stdio,
            None,
        )
        .await
        .expect("spawned");
    sandbox.start(&init).await.expect("started");
    let (id, pid) = (
        sandbox.id().clone(),
        sandbox.pid(&init).await.expect("a pid"),
    );
    drop(sandbox);

    let restarted = bench.restarted();
    let sandbox = restarted
        .recover(&id)
        .await
        .expect("recovered")
        .expect("there");
    assert_eq!(
        sandbox.state().await.expect("a state"),
        SandboxState::Running
    );
    assert_eq!(sandbox.pid(&init).await.expect("a pid"), pid);
    let mut io = sandbox.attach(&init, ALL).await.expect("attached");
    let input = io.input.as_mut().expect("input");
    tokio::io::AsyncWriteExt::write_all(input, b"again\n")
        .await
        .expect("written");
    bench
        .eventually("it is logged", async || {
            logged(&log, "stdout") == "got again\n"
        })
        .await;
    assert_eq!(exec(&*sandbox, "e", "exit 3").await.1.code, 3);
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn a_restarted_daemon_learns_exit_codes(bench: &Bench) {
    let sandbox = bench.running("sleep 0.2; exit 44").await;
    let id = sandbox.id().clone();
    exec(&*sandbox, "done", "exit 5").await;
    drop(sandbox);
    tokio::time::sleep(Duration::from_millis(400)).await;
    let sandbox = bench
        .restarted()
        .recover(&id)
        .await
        .expect("recovered")
        .expect("there");
    assert_eq!(
        sandbox.wait(&ProcessId::init()).await.expect("known").code,
        44
    );
    assert!(
        matches!(sandbox.state().await.expect("a state"), SandboxState::Exited(s) if s.code == 44)
    );
    assert_eq!(
        sandbox
            .wait(&ProcessId("done".into()))
            .await
            .expect("known")
            .code,
        5
    );
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn a_killed_supervisor_takes_its_processes_along(bench: &Bench) {
    let sandbox = bench.running("sleep 1000 & sleep 1000").await;
    let init = ProcessId::init();
    let pid = sandbox.pid(&init).await.expect("a pid");
    let waiting = {
        let sandbox = sandbox.clone();
        tokio::spawn(async move { sandbox.wait(&ProcessId::init()).await })
    };
    let io = sandbox.attach(&init, OUTPUTS).await.expect("attached");
    tokio::time::sleep(Duration::from_millis(50)).await;
    kill(supervisor_pid(bench, &*sandbox), Signal::SIGKILL).expect("killed");
    let status = tokio::time::timeout(Duration::from_secs(5), waiting)
        .await
        .expect("told")
        .expect("joined");
    assert_eq!(status.expect("a status").code, 137);
    let mut output = io.output;
    assert!(
        futures_util::StreamExt::next(&mut output)
            .await
            .expect("told")
            .is_err(),
        "the stream did not simply end"
    );
    bench
        .eventually("the first process is gone", async || {
            !std::path::Path::new(&format!("/proc/{pid}")).exists()
        })
        .await;
    assert!(
        matches!(sandbox.state().await.expect("a state"), SandboxState::Exited(s) if s.code == 137)
    );
    let error = sandbox
        .spawn(&ProcessId("e".into()), sh("true"), Stdio::default(), None)
        .await
        .expect_err("lost");
    assert_eq!(error.kind, ErrorKind::Lost);
    sandbox
        .destroy(Duration::from_secs(5))
        .await
        .expect("destroyed");
    sandbox.destroy(Duration::ZERO).await.expect("again");
}

async fn a_killed_supervisor_is_found_by_a_restarted_daemon(bench: &Bench) {
    let sandbox = bench.running("sleep 1000").await;
    let id = sandbox.id().clone();
    kill(supervisor_pid(bench, &*sandbox), Signal::SIGKILL).expect("killed");
    drop(sandbox);
    bench
        .eventually("the socket is deaf", async || {
            UnixStream::connect(bench.sandbox_dir(&id).join("shim.sock")).is_err()
        })
        .await;
    let sandbox = bench
        .restarted()
        .recover(&id)
        .await
        .expect("recovered")
        .expect("there");
    assert_eq!(
        sandbox.wait(&ProcessId::init()).await.expect("known").code,
        137
    );
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
    assert!(
        bench
            .restarted()
            .recover(&id)
            .await
            .expect("looked")
            .is_none()
    );
}

async fn a_supervisor_killed_before_the_first_process(bench: &Bench) {
    let sandbox = bench.create().await;
    kill(supervisor_pid(bench, &*sandbox), Signal::SIGKILL).expect("killed");
    bench
        .eventually("told", async || {
            let spawn = sandbox
                .spawn(&ProcessId::init(), sh("true"), Stdio::default(), None)
                .await;
            spawn.is_err_and(|e| e.kind == ErrorKind::Lost)
        })
        .await;
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn a_half_made_sandbox_is_removed_on_recovery(bench: &Bench) {
    let id = bench.new_id();
    fs::create_dir(bench.sandbox_dir(&id)).expect("made");
    assert!(bench.runtime.recover(&id).await.expect("looked").is_none());
    assert!(!bench.sandbox_dir(&id).exists());
}

async fn nothing_is_recovered_from_nothing(bench: &Bench) {
    assert!(
        bench
            .runtime
            .recover(&bench.new_id())
            .await
            .expect("looked")
            .is_none()
    );
}

async fn garbage_only_loses_its_connection(bench: &Bench) {
    let sandbox = bench.running("sleep 1000").await;
    let socket = bench.sandbox_dir(sandbox.id()).join("shim.sock");
    let hello = br#"{"generation":1,"version":"x"}"#;
    let greeting = [&(hello.len() as u32).to_le_bytes()[..], hello].concat();
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 100_000],
        &[0; 64],
        &[&greeting[..], b"\x05\0\0\0hello"].concat(),
        &[&greeting[..], b"\x02\0\0\0{}"].concat(),
        &greeting[..7],
    ] {
        let mut stream = UnixStream::connect(&socket).expect("connected");
        let _ = stream.write_all(garbage);
        assert_eq!(
            sandbox.state().await.expect("unharmed"),
            SandboxState::Running
        );
    }
    // A client that never reads what it asked for, and one that never finishes asking.
    let mut deaf = UnixStream::connect(&socket).expect("connected");
    deaf.set_nonblocking(true).expect("set");
    let question = br#"{"id":1,"request":"stats"}"#;
    let question = [&(question.len() as u32).to_le_bytes()[..], question].concat();
    let _ = deaf.write_all(&greeting);
    for _ in 0..100_000 {
        if deaf.write_all(&question).is_err() {
            break;
        }
    }
    assert_eq!(exec(&*sandbox, "e", "echo fine").await.0.out(), "fine\n");
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn the_directory_is_private(bench: &Bench) {
    use std::os::unix::fs::PermissionsExt;
    let sandbox = bench.create().await;
    let dir = bench.sandbox_dir(sandbox.id());
    for path in [dir.parent().expect("a parent").to_path_buf(), dir] {
        assert_eq!(
            fs::metadata(&path).expect("there").permissions().mode() & 0o777,
            0o700,
            "{path:?}"
        );
    }
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

fn on_host_pids() -> Wish {
    let namespaces = serde_json::json!([{"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}]);
    Wish {
        spec: serde_json::json!({"linux": {"namespaces": namespaces}}),
        ..Wish::default()
    }
}

async fn without_a_pid_namespace_nothing_survives_either(bench: &Bench) {
    if bench.isolation == Isolation::Vm {
        // A guest's process 1 is the agent: there is nobody to share numbers with.
        let id = bench.new_id();
        let made = bench.runtime.create(&id, bench.spec(&id, on_host_pids()));
        assert_eq!(made.await.err().expect("refused").kind, ErrorKind::Invalid);
        return;
    }
    let init = ProcessId::init();
    for kill_supervisor in [false, true] {
        let sandbox = bench.create_with(on_host_pids()).await;
        // A grandchild whose parent ends is nobody's but the supervisor's.
        let script = "(sleep 1000 & echo $! > /tmp/pid); exec sleep 1000";
        sandbox
            .spawn(&init, sh(script), Stdio::default(), None)
            .await
            .expect("spawned");
        sandbox.start(&init).await.expect("started");
        let file = bench.upper(sandbox.id()).join("tmp/pid");
        bench
            .eventually("it is there", async || {
                fs::read_to_string(&file).is_ok_and(|s| s.ends_with('\n'))
            })
            .await;
        let grandchild = fs::read_to_string(&file).expect("there");
        // A zombie that the host's init has not collected yet is dead.
        let lives = || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", grandchild.trim()));
            stat.is_ok_and(|s| !s.contains(") Z "))
        };
        assert!(lives());
        if kill_supervisor {
            kill(supervisor_pid(bench, &*sandbox), Signal::SIGKILL).expect("killed");
            assert_eq!(sandbox.wait(&init).await.expect("known").code, 137);
            assert!(!lives());
        }
        sandbox.destroy(Duration::ZERO).await.expect("destroyed");
        assert!(!lives());
    }
}

async fn polite_signals_do_not_end_a_supervisor(bench: &Bench) {
    let sandbox = bench.running("exec sleep 1000").await;
    let pid = supervisor_pid(bench, &*sandbox);
    for signal in [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGPIPE,
        Signal::SIGUSR1,
    ] {
        kill(pid, signal).expect("sent");
    }
    assert_eq!(exec(&*sandbox, "e", "echo fine").await.0.out(), "fine\n");
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn a_stuck_supervisor_is_killed(bench: &Bench) {
    let sandbox = bench.running("exec sleep 1000").await;
    kill(supervisor_pid(bench, &*sandbox), Signal::SIGSTOP).expect("stopped");
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
    assert_eq!(
        sandbox.wait(&ProcessId::init()).await.expect("known").code,
        137
    );
}
