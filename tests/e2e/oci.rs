//! `caisson-oci`, the OCI runtime command line: by hand, and under podman, containerd and dockerd.

use std::path::Path;
use std::process::Command;

use caisson_tests::case::Clients;
use caisson_tests::target::{binary, on_path};
use caisson_tests::{Daemon, IMAGE, Target, Test, cases, client, fixture};
use serde_json::{Value, json};

/// Ours; runc where the cases themselves are being validated.
fn program() -> std::path::PathBuf {
    match Target::from_environment() {
        Target::Caisson => binary("caisson-oci"),
        Target::Dockerd => on_path("runc").expect("dockerd brings runc"),
    }
}

/// A bundle that runs `script`, and a function that runs caisson-oci on it.
struct Bundle {
    directory: std::path::PathBuf,
    state: std::path::PathBuf,
    id: String,
}

impl Bundle {
    fn new(t: &Test, script: &str, change: impl FnOnce(&mut Value)) -> Bundle {
        let directory = t.directory().join("bundle");
        let root = directory.join("rootfs");
        std::fs::create_dir_all(&root).expect("a directory");
        tar::Archive::new(fixture::toolbox_layer().as_slice())
            .unpack(&root)
            .expect("the default image's layer");
        let mut command = Command::new(program());
        command.arg("spec").current_dir(&directory);
        client::run(command, b"").ok();
        let path = directory.join("config.json");
        let mut config: Value =
            serde_json::from_slice(&std::fs::read(&path).expect("a spec")).expect("JSON");
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(["/bin/sh", "-c", script]);
        config["root"]["readonly"] = json!(false);
        change(&mut config);
        std::fs::write(&path, config.to_string()).expect("a writable bundle");
        let id = format!(
            "caisson-test-{}-{}",
            std::process::id(),
            directory.display().to_string().replace(['/', '.'], "-")
        );
        Bundle {
            state: t.directory().join("state"),
            directory,
            id,
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .arg("--root")
            .arg(&self.state)
            .args(arguments)
            .current_dir(&self.directory);
        command
    }

    fn run(&self, arguments: &[&str]) -> caisson_tests::Outcome {
        client::run(self.command(arguments), b"")
    }

    /// Fails unless nothing of the container is left.
    fn is_gone(&self) {
        let left = caisson_tests::residue::after(
            &self.id,
            &[&self.state],
            std::time::Duration::from_secs(5),
        );
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

fn run_and_exit_code(t: &Test) {
    let bundle = Bundle::new(t, "echo from the bundle; exit 7", |_| {});
    bundle
        .run(&["run", &bundle.id])
        .code(7)
        .prints("from the bundle\n");
    bundle.is_gone();
}

fn create_start_state_kill_delete(t: &Test) {
    let bundle = Bundle::new(
        t,
        "trap 'exit 3' TERM; while :; do sleep 0.05; done",
        |_| {},
    );
    let pid_file = t.directory().join("pid").display().to_string();
    // the container keeps our pipes as its standard streams: do not wait for their end
    let mut create = bundle.command(&["create", "--pid-file", &pid_file, &bundle.id]);
    create
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    assert!(create.status().expect("caisson-oci runs").success());
    let state = |field: &str| {
        let outcome = bundle.run(&["state", &bundle.id]);
        let state: Value = serde_json::from_slice(&outcome.ok().stdout).expect("JSON");
        state[field].clone()
    };
    assert_eq!(state("status"), "created");
    assert_eq!(
        state("pid").to_string(),
        std::fs::read_to_string(&pid_file)
            .expect("a pid file")
            .trim()
    );
    bundle.run(&["start", &bundle.id]).ok();
    assert_eq!(state("status"), "running");
    bundle.run(&["start", &bundle.id]).fails();
    bundle
        .run(&["exec", &bundle.id, "/bin/echo", "exec"])
        .ok()
        .prints("exec\n");
    bundle
        .run(&["exec", &bundle.id, "/bin/sh", "-c", "exit 9"])
        .code(9);
    bundle.run(&["ps", &bundle.id]).ok().has("sleep");
    bundle.run(&["pause", &bundle.id]).ok();
    assert_eq!(state("status"), "paused");
    bundle.run(&["resume", &bundle.id]).ok();
    bundle.run(&["list"]).ok().has(&bundle.id);
    bundle
        .run(&["update", "--pids-limit", "99", &bundle.id])
        .ok();
    bundle.run(&["kill", &bundle.id, "TERM"]).ok();
    t.eventually("it stops", || state("status") == "stopped");
    bundle.run(&["delete", &bundle.id]).ok();
    bundle.run(&["state", &bundle.id]).fails().complains(&[
        "does not exist",
        "not exist",
        "not found",
    ]);
    bundle.is_gone();
}

fn forced_delete(t: &Test) {
    let bundle = Bundle::new(t, "sleep 1000", |_| {});
    let mut run = bundle.command(&["run", "--detach", &bundle.id]);
    run.stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    assert!(run.status().expect("caisson-oci runs").success());
    bundle.run(&["delete", &bundle.id]).fails();
    bundle.run(&["delete", "--force", &bundle.id]).ok();
    bundle.run(&["delete", "--force", &bundle.id]).ok();
    bundle.is_gone();
}

fn hooks_run(t: &Test) {
    let log = t.directory().join("hooks").display().to_string();
    let bundle = Bundle::new(t, "true", |config| {
        let hook = |name: &str| json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("grep -o '\"status\": *\"[a-z]*\"' | sed 's/.*\"\\([a-z]*\\)\"$/{name} \\1/' >> {log}")]}]);
        config["hooks"] = json!({"prestart": hook("prestart"), "createRuntime": hook("createRuntime"), "poststart": hook("poststart"), "poststop": hook("poststop")});
    });
    bundle.run(&["run", &bundle.id]).ok();
    let lines = std::fs::read_to_string(&log).expect("hooks wrote");
    let names: Vec<&str> = lines.lines().filter_map(|l| l.split(' ').next()).collect();
    assert_eq!(
        names,
        ["prestart", "createRuntime", "poststart", "poststop"],
        "{lines}"
    );
    bundle.is_gone();
}

fn a_failing_hook_undoes_everything(t: &Test) {
    let bundle = Bundle::new(t, "echo must not run", |config| {
        config["hooks"] = json!({"createRuntime": [{"path": "/bin/false"}]});
    });
    bundle.run(&["run", &bundle.id]).fails().prints("");
    bundle.is_gone();
}

fn features_and_version(t: &Test) {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(program());
        command.args(arguments);
        client::run(command, b"")
    };
    let features: Value = serde_json::from_slice(&run(&["features"]).ok().stdout).expect("JSON");
    for field in ["ociVersionMin", "hooks", "mountOptions", "linux"] {
        assert!(!features[field].is_null(), "no {field}");
    }
    run(&["--version"]).ok().has("spec");
    run(&["state", "no-such-container"]).fails();
    let _ = t;
}

fn errors_are_logged_as_json(t: &Test) {
    let log = t.directory().join("log").display().to_string();
    let bundle = Bundle::new(t, "true", |config| {
        config["process"]["args"] = json!(["/no/such/program"])
    });
    bundle
        .run(&["--log", &log, "--log-format", "json", "run", &bundle.id])
        .fails();
    let text = std::fs::read_to_string(&log).expect("a log");
    let line: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    assert_eq!(line["level"], "error");
    assert!(
        line["msg"]
            .as_str()
            .is_some_and(|m| m.contains("/no/such/program")),
        "{line}"
    );
    bundle.is_gone();
}

/// podman binds its storage onto itself and leaves it so.
struct PodmanMount(std::path::PathBuf);

impl Drop for PodmanMount {
    fn drop(&mut self) {
        let mut umount = Command::new("umount");
        umount.arg(&self.0).stderr(std::process::Stdio::null());
        let _ = umount.status();
    }
}

fn under_podman(t: &Test) {
    if on_path("podman").is_none() {
        t.skip("no podman: apt-get install podman");
    }
    let state = t.directory().join("podman");
    let _unmounted = PodmanMount(state.join("root/overlay"));
    let podman = |arguments: &[&str]| {
        let mut command = Command::new("podman");
        command
            .arg("--root")
            .arg(state.join("root"))
            .arg("--runroot")
            .arg(state.join("run"));
        command
            .args([
                "--cgroup-manager=cgroupfs",
                "--events-backend=file",
                "--runtime",
            ])
            .arg(program());
        client::run(client::with(command, arguments), b"")
    };
    let archive = fixture::toolbox_archive().display().to_string();
    podman(&["load", "-q", "-i", &archive]).ok();
    let image = format!("localhost/{IMAGE}");
    let images = podman(&["images", "--format", "{{.Repository}}:{{.Tag}}"])
        .ok()
        .trimmed();
    let image = if images.contains(&image) {
        image
    } else {
        images.lines().next().expect("an image").to_string()
    };
    podman(&[
        "run",
        "--rm",
        "--ulimit=nofile=1024:1024",
        "--ulimit=nproc=1000:1000",
        "--network=none",
        &image,
        "sh",
        "-c",
        "echo by podman; exit 5",
    ])
    .code(5)
    .prints("by podman\n");
    let id = podman(&[
        "run",
        "-d",
        "--ulimit=nofile=1024:1024",
        "--ulimit=nproc=1000:1000",
        "--network=none",
        &image,
        "sleep",
        "1000",
    ])
    .ok()
    .trimmed();
    podman(&["exec", &id, "echo", "exec by podman"])
        .ok()
        .prints("exec by podman\n");
    podman(&["pause", &id]).ok();
    podman(&["unpause", &id]).ok();
    podman(&["stop", "-t", "0", &id]).ok();
    podman(&["rm", &id]).ok();
    let _ = podman(&["rmi", "-af"]);
}

fn under_dockerd(t: &Test) {
    if on_path("dockerd").is_none() {
        t.skip("no dockerd: apt-get install docker.io");
    }
    let runtime = format!("--add-runtime=caisson={}", program().display());
    let daemon = Daemon::start(Target::Dockerd, &[&runtime, "--default-runtime=caisson"]);
    let docker = |arguments: &[&str]| daemon.client(caisson_tests::Cli::Docker, arguments);
    docker(&["info", "--format", "{{.DefaultRuntime}}"])
        .ok()
        .prints("caisson\n");
    docker(&[
        "run",
        "--rm",
        "--network=none",
        IMAGE,
        "sh",
        "-c",
        "echo by dockerd; exit 5",
    ])
    .code(5)
    .prints("by dockerd\n");
    let id = docker(&[
        "run",
        "-d",
        "--network=none",
        "-m",
        "64m",
        IMAGE,
        "sleep",
        "1000",
    ])
    .ok()
    .trimmed();
    docker(&["exec", &id, "echo", "exec by dockerd"])
        .ok()
        .prints("exec by dockerd\n");
    docker(&["exec", &id, "no-such-program"]).fails();
    docker(&["update", "--memory", "100m", "--memory-swap", "200m", &id]).ok();
    docker(&["pause", &id]).ok();
    docker(&["unpause", &id]).ok();
    docker(&["top", &id]).ok().has("sleep 1000");
    docker(&["stop", "-t", "0", &id]).ok();
    docker(&["rm", &id]).ok();
    let outcome = docker(&["run", "--rm", "--network=none", IMAGE, "no-such-program"]);
    outcome.code(127);
}

fn under_containerd(t: &Test) {
    let (Some(containerd), Some(ctr)) = (on_path("containerd"), on_path("ctr")) else {
        t.skip("no containerd: apt-get install containerd");
    };
    let root = t.directory().join("containerd");
    std::fs::create_dir(&root).expect("a directory");
    let socket = root.join("containerd.sock");
    let config = root.join("config.toml");
    let text = format!(
        "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = \"{0}/containerd.sock\"\n[ttrpc]\n  address = \"{0}/ttrpc.sock\"\n",
        root.display()
    );
    std::fs::write(&config, text).expect("a writable directory");
    let mut command = Command::new(containerd);
    command.arg("--config").arg(&config);
    let daemon = client::Background::start(command);
    t.eventually("containerd listens", || socket.exists());
    let ctr = |arguments: &[&str]| {
        let mut command = Command::new(&ctr);
        command.arg("--address").arg(&socket).args(arguments);
        client::run(command, b"")
    };
    let archive = fixture::toolbox_archive().display().to_string();
    ctr(&["images", "import", &archive]).ok();
    let image = format!("docker.io/{IMAGE}");
    let runc_binary = program().display().to_string();
    let arguments = ["run", "--rm", "--runc-binary", &runc_binary, "--runc-root"];
    let state = root.join("oci").display().to_string();
    let rest = [
        state.as_str(),
        &image,
        "caisson-test-ctr",
        "sh",
        "-c",
        "echo by containerd; exit 5",
    ];
    let outcome = ctr(&[arguments.as_slice(), &rest].concat());
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    outcome.code(5).prints("by containerd\n");
    assert!(Path::new(&root).exists());
}

cases![
    run_and_exit_code.clients(Clients::Native).container_only(),
    create_start_state_kill_delete
        .clients(Clients::Native)
        .container_only(),
    forced_delete.clients(Clients::Native).container_only(),
    hooks_run.clients(Clients::Native).container_only(),
    a_failing_hook_undoes_everything
        .clients(Clients::Native)
        .container_only(),
    features_and_version
        .clients(Clients::Native)
        .container_only(),
    errors_are_logged_as_json
        .clients(Clients::Native)
        .container_only(),
    under_podman.clients(Clients::Native).container_only(),
    under_dockerd.clients(Clients::Native).container_only(),
    under_containerd.clients(Clients::Native).container_only(),
];
