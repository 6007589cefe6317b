//! The daemon's own life: killed and restarted under load, two of them, no room, no permission.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use caisson_tests::case::Clients;
use caisson_tests::{Cli, Daemon, IMAGE, Target, Test, cases, client, rest};

fn kill_9_keeps_running_containers(t: &Test) {
    let own = t.own_daemon(&[]);
    let id = own.start_sh(
        &["-i"],
        "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done",
    );
    let pid = own.inspect(&id, "{{.State.Pid}}");
    std::thread::sleep(Duration::from_millis(300));
    own.daemon.kill9();
    std::thread::sleep(Duration::from_millis(700));
    assert!(
        std::path::Path::new(&format!("/proc/{pid}")).exists(),
        "the container died with the daemon"
    );
    own.daemon.launch();
    assert_eq!(
        own.inspect(&id, "{{.State.Status}} {{.State.Pid}}"),
        format!("running {pid}")
    );
    own.eventually("it logs on", || {
        own.cli(&["logs", &id]).out().lines().count() > 20
    });
    own.cli(&["stop", "-t", "0", &id]).ok();
    let lines: Vec<u32> = own
        .cli(&["logs", &id])
        .ok()
        .out()
        .lines()
        .filter_map(|l| l.strip_prefix("line ")?.parse().ok())
        .collect();
    assert!(
        lines.len() > 20 && lines.iter().zip(1..).all(|(seen, want)| *seen == want),
        "a line is missing: {lines:?}"
    );
}

fn kill_9_loses_no_exit_code(t: &Test) {
    let own = t.own_daemon(&[]);
    let id = own.start_sh(&[], "sleep 0.6; echo last words; exit 42");
    let removed = own.start_sh(&["--rm"], "sleep 0.6");
    own.daemon.kill9();
    std::thread::sleep(Duration::from_millis(1200));
    own.daemon.launch();
    own.await_state(&id, "exited");
    assert_eq!(own.inspect(&id, "{{.State.ExitCode}}"), "42");
    own.cli(&["logs", &id]).ok().prints("last words\n");
    own.cli(&["wait", &id]).ok().prints("42\n");
    own.eventually("--rm is honoured", || {
        own.cli(&["container", "inspect", &removed]).code != 0
    });
}

fn kill_9_keeps_terminals_and_exec(t: &Test) {
    let own = t.own_daemon(&[]);
    let id = own.start(&["-it", IMAGE]);
    own.daemon.kill9();
    own.daemon.launch();
    assert_eq!(own.exec(&id, "echo exec works"), "exec works");
    let mut terminal = own.terminal(&["attach", &id]);
    terminal.send("echo $((40+2)); exit 3\n");
    terminal.expect("42");
    assert_eq!(terminal.exit_code(), 3);
}

fn kill_9_then_restart_policies(t: &Test) {
    let own = t.own_daemon(&[]);
    let always = own.start_sh(&["--restart", "always"], "echo up; sleep 0.5");
    let stopped = own.start_sh(&["--restart", "unless-stopped"], "sleep 1000");
    own.cli(&["stop", "-t", "0", &stopped]).ok();
    own.daemon.kill9();
    std::thread::sleep(Duration::from_millis(800));
    own.daemon.launch();
    own.eventually("it is restarted", || {
        own.cli(&["logs", &always]).out().matches("up").count() >= 3
    });
    assert_eq!(own.inspect(&stopped, "{{.State.Status}}"), "exited");
}

fn kill_9_while_creating(t: &Test) {
    let own = t.own_daemon(&[]);
    for round in 0..5 {
        let mut clients: Vec<_> = (0..4)
            .map(|_| own.background_run(&["-d", IMAGE, "sleep", "0.1"]))
            .collect();
        std::thread::sleep(Duration::from_millis(15 * (round + 1)));
        own.daemon.kill9();
        clients.iter_mut().for_each(|c| {
            c.exit_code();
        });
        own.daemon.launch();
        own.run(&["--rm", IMAGE, "true"]).ok();
    }
    let ids = own.cli(&["ps", "-aq", "--no-trunc"]).ok().out();
    let ids: Vec<&str> = ids.split_whitespace().collect();
    for id in &ids {
        own.cli(&["rm", "-f", id]).ok();
        let left = own.daemon.residue_of(id);
        assert!(left.is_empty(), "{left:?}");
    }
}

fn kill_9_while_loading(t: &Test) {
    use caisson_tests::fixture::{self, Entry};
    let own = t.own_daemon(&[]);
    let before = own.cli(&["images", "-aq", "--no-trunc"]).ok().out();
    let noise: Vec<u8> = (0..60_u32 << 20)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8)
        .collect();
    let layer = fixture::layer(&[Entry::File("large", &noise)]);
    let archive = fixture::docker_archive(
        "interrupted:latest",
        &[fixture::toolbox_layer(), layer],
        |_| {},
    );
    let path = t.file("archive.tar", archive).display().to_string();
    for pause_ms in [20, 80, 200, 400] {
        let mut load = own.background(&["load", "-i", &path]);
        std::thread::sleep(Duration::from_millis(pause_ms));
        own.daemon.kill9();
        load.exit_code();
        own.daemon.launch();
        let now = own.cli(&["images", "-aq", "--no-trunc"]).ok().out();
        if now != before {
            own.run(&["--rm", "interrupted", "/bin/busybox", "sha256sum", "/large"])
                .ok(); // it was complete
            own.cli(&["rmi", "interrupted"]).ok();
        }
        own.run(&["--rm", IMAGE, "true"]).ok();
    }
    own.cli(&["system", "prune", "-f"]).ok();
    let used = |directory: std::path::PathBuf| {
        let mut command = Command::new("du");
        command.args(["-sm"]).arg(directory);
        client::run(command, b"")
            .ok()
            .out()
            .split_whitespace()
            .next()
            .and_then(|n| n.parse::<u64>().ok())
            .unwrap_or(0)
    };
    assert!(
        used(own.daemon.data_root()) < 20,
        "garbage that nothing removes: {} MB",
        used(own.daemon.data_root())
    );
    own.cli(&["load", "-i", &path]).ok();
    own.run(&["--rm", "interrupted", "/bin/busybox", "true"])
        .ok();
}

fn records_survive_a_restart(t: &Test) {
    let own = t.own_daemon(&[]);
    let name = t.unique("kept");
    let id = own.create(&[
        "--name",
        &name,
        "-e",
        "A=1",
        "-m",
        "64m",
        IMAGE,
        "echo",
        "still here",
    ]);
    own.cli(&["tag", IMAGE, "my/tag:1"]).ok();
    own.daemon.stop();
    own.daemon.launch();
    assert_eq!(own.inspect(&name, "{{.Id}}"), id);
    own.cli(&["start", "-a", &name]).ok().prints("still here\n");
    own.cli(&["image", "inspect", "my/tag:1"]).ok();
}

fn a_polite_stop_ends_quickly(t: &Test) {
    let own = t.own_daemon(&[]);
    own.sleeper(&[]);
    let began = Instant::now();
    own.daemon.stop();
    assert!(began.elapsed() < caisson_tests::patience(20));
    own.daemon.launch();
}

fn second_daemon_is_refused(t: &Test) {
    let own = t.own_daemon(&[]);
    let id = own.sleeper(&[]);
    let other = own.daemon.root().join("other.sock");
    for socket in [own.daemon.socket(), &other] {
        let mut command = own.target().daemon_command(own.daemon.root(), socket);
        command.env("HOME", own.daemon.home()).stdin(Stdio::null());
        let outcome = client::run_within(command, b"", caisson_tests::patience(20));
        outcome.fails().complains(&[
            "already",
            "in use",
            "another",
            "still running",
            "pid file",
            "lock",
        ]);
    }
    assert_eq!(own.inspect(&id, "{{.State.Status}}"), "running");
    own.run(&["--rm", IMAGE, "true"]).ok();
}

fn a_stale_socket_is_replaced(t: &Test) {
    let own = t.own_daemon(&[]);
    own.daemon.kill9();
    assert!(own.daemon.socket().exists(), "the socket file stays behind");
    own.daemon.launch();
    own.run(&["--rm", IMAGE, "true"]).ok();
}

fn the_socket_is_for_its_group_only(t: &Test) {
    let own = t.own_daemon(&[]);
    let mode = std::fs::metadata(own.daemon.socket())
        .expect("a socket")
        .permissions()
        .mode()
        & 0o777;
    assert_eq!(mode, 0o660, "{mode:o}");
    std::fs::set_permissions(own.daemon.root(), std::fs::Permissions::from_mode(0o755))
        .expect("own directory");
    let inner = own.command(["ps"]);
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(inner.get_program())
        .args(inner.get_args());
    command
        .env_clear()
        .env("HOME", "/nonexistent")
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    client::run(command, b"")
        .fails()
        .complains(&["permission denied"]);
}

fn no_daemon_is_told(t: &Test) {
    let mut command = t
        .cli
        .command("unix:///tmp/caisson-no-such.sock", &t.daemon.home());
    command.arg("ps");
    client::run(command, b"")
        .code(1)
        .complains(&["/tmp/caisson-no-such.sock"]);
}

fn a_full_disk_harms_nothing(t: &Test) {
    // the data root on a file system of 24 MB: a second image does not fit
    let daemon = Daemon::prepare(t.target(), &[]);
    let data = daemon.data_root();
    std::fs::create_dir(&data).expect("a directory");
    let disk = daemon.root().join("disk.img");
    let run = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments);
        client::run(command, b"").code
    };
    std::fs::File::create(&disk)
        .and_then(|f| f.set_len(24 << 20))
        .expect("a sparse file");
    let (disk, mount) = (disk.display().to_string(), data.display().to_string());
    if run("mkfs.ext4", &["-q", "-F", &disk]) != 0
        || run("mount", &["-o", "loop", &disk, &mount]) != 0
    {
        t.skip("no loop device for a small disk");
    }
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        daemon.launch();
        let cli = daemon.native_cli();
        if t.is_reference() {
            daemon
                .client(
                    cli,
                    &[
                        "load",
                        "-i",
                        &caisson_tests::fixture::toolbox_archive()
                            .display()
                            .to_string(),
                    ],
                )
                .ok();
        }
        let random: Vec<u8> = (0..30_u32 << 20)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        let layer =
            caisson_tests::fixture::layer(&[caisson_tests::fixture::Entry::File("large", &random)]);
        let archive = caisson_tests::fixture::docker_archive("too/large:latest", &[layer], |_| {});
        let load = client::with(daemon.command(cli), ["load"]);
        client::run(load, &archive)
            .fails()
            .complains(&["no space left"]);
        daemon
            .client(cli, &["image", "inspect", "too/large:latest"])
            .fails();
        let arguments: &[&str] = if t.is_reference() {
            &["run", "--rm", "--network=none"]
        } else {
            &["run", "--rm"]
        };
        daemon
            .client(cli, &[arguments, &[IMAGE, "echo", "still works"]].concat())
            .ok()
            .prints("still works\n");
        let fill = daemon.client(
            cli,
            &[
                arguments,
                &[IMAGE, "dd", "if=/dev/zero", "of=/fill", "bs=1M", "count=40"],
            ]
            .concat(),
        );
        fill.fails().complains(&["no space left"]);
        daemon
            .client(cli, &[arguments, &[IMAGE, "echo", "and again"]].concat())
            .ok()
            .prints("and again\n");
    }));
    let left = daemon.finish();
    run("umount", &[&mount]);
    if let Err(payload) = result {
        std::panic::resume_unwind(payload);
    }
    assert!(left.iter().all(|l| l.contains(&mount)), "{left:?}");
}

fn the_client_starts_the_daemon(t: &Test) {
    // no -H, no socket: the first command brings the daemon up. In a mount namespace with private /run and /var/lib
    let Ok(ours) = Cli::Caisson.locate() else {
        t.skip("no caisson binary")
    };
    let script = format!(
        "mount -t tmpfs none /run && mount -t tmpfs none /var/lib && {0} run --rm {IMAGE} echo started by itself && {0} ps -a && kill $(cat /run/caisson.pid /run/caisson/caisson.pid 2>/dev/null)",
        ours.display()
    );
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation=private", "sh", "-c", &script])
        .env_remove("DOCKER_HOST");
    let outcome = client::run_within(command, b"", caisson_tests::patience(60));
    outcome.ok().has("started by itself").has("CONTAINER ID");
}

fn tcp_needs_certificates(t: &Test) {
    let daemon = Daemon::prepare(Target::Caisson, &[]);
    let mut command = Target::Caisson.daemon_command(daemon.root(), &daemon.root().join("s.sock"));
    command
        .args(["-H", "tcp://127.0.0.1:0"])
        .env("HOME", daemon.home())
        .stdin(Stdio::null());
    let outcome = client::run_within(command, b"", caisson_tests::patience(20));
    outcome.fails().complains(&["tls"]);
    assert!(!rest::ping(&daemon.root().join("s.sock")));
    let _ = t;
}

cases![
    kill_9_keeps_running_containers
        .core()
        .ours("its containers end with it unless --live-restore"),
    kill_9_loses_no_exit_code
        .core()
        .ours("its containers end with it unless --live-restore"),
    kill_9_keeps_terminals_and_exec.ours("its containers end with it unless --live-restore"),
    kill_9_then_restart_policies.ours("its containers end with it unless --live-restore"),
    kill_9_while_creating
        .clients(Clients::Native)
        .ours("it needs its own containerd to be restarted as well"),
    kill_9_while_loading
        .clients(Clients::Native)
        .ours("it needs its own containerd to be restarted as well"),
    records_survive_a_restart,
    a_polite_stop_ends_quickly.clients(Clients::Native),
    second_daemon_is_refused.clients(Clients::Native),
    a_stale_socket_is_replaced
        .clients(Clients::Native)
        .ours("it needs its own containerd to be restarted as well"),
    the_socket_is_for_its_group_only,
    no_daemon_is_told,
    a_full_disk_harms_nothing.clients(Clients::Native).alone(),
    the_client_starts_the_daemon.clients(Clients::Caisson),
    tcp_needs_certificates.clients(Clients::Caisson),
];
