//! A private daemon: directories, socket and log of its own; killed, restarted and checked for residue.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::client::{self, Cli, Outcome, wait};
use crate::target::Target;
use crate::{fixture, residue, rest};

/// Where test directories are made: the first of `CAISSON_TEST_DIR`, `/tmp`, `/var/tmp` that overlayfs can write to.
pub fn test_directory() -> PathBuf {
    const OVERLAYFS: i64 = 0x794c_7630;
    if let Some(directory) = std::env::var_os("CAISSON_TEST_DIR") {
        return directory.into();
    }
    let suitable = |path: &&&str| rustix::fs::statfs(**path).is_ok_and(|s| s.f_type != OVERLAYFS);
    ["/tmp", "/var/tmp"]
        .iter()
        .find(suitable)
        .unwrap_or(&"/tmp")
        .into()
}

/// A running engine with everything of its own.
pub struct Daemon {
    /// Which engine.
    pub target: Target,
    root: tempfile::TempDir,
    socket: PathBuf,
    arguments: Vec<String>,
    process: Mutex<Option<Child>>,
    /// container id → the `caisson.case` label it was created with, as told by the engine's events
    created: Arc<Mutex<HashMap<String, String>>>,
}

impl Daemon {
    /// Starts one with extra arguments and waits until it answers and has the default image.
    pub fn start(target: Target, arguments: &[&str]) -> Daemon {
        let daemon = Daemon::prepare(target, arguments);
        daemon.launch();
        if target == Target::Dockerd {
            let archive = fixture::toolbox_archive();
            daemon
                .client(Cli::Docker, &["load", "-i", &archive.display().to_string()])
                .ok();
        }
        daemon
    }

    /// One that was not started yet.
    pub fn prepare(target: Target, arguments: &[&str]) -> Daemon {
        let root = tempfile::Builder::new()
            .prefix("caisson-test-")
            .tempdir_in(test_directory())
            .expect("a test directory");
        std::fs::create_dir(root.path().join("home")).expect("a home directory");
        Daemon {
            target,
            socket: root.path().join("engine.sock"),
            root,
            arguments: arguments.iter().map(|a| a.to_string()).collect(),
            process: Mutex::new(None),
            created: Arc::default(),
        }
    }

    /// Starts the process and waits until it answers.
    #[track_caller]
    pub fn launch(&self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.root.path().join("log"))
            .expect("a log file");
        let mut command = self.target.daemon_command(self.root.path(), &self.socket);
        command
            .args(&self.arguments)
            .env("HOME", self.home())
            .env_remove("DOCKER_HOST");
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log);
        let mut child = command
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {}: {e}", client::shown(&command)));
        let until = Instant::now() + crate::patience(60);
        while !rest::ping(&self.socket) {
            if let Some(status) = child.try_wait().expect("our own child") {
                panic!(
                    "daemon ended at once, {status}: {}\n{}",
                    client::shown(&command),
                    self.log()
                );
            }
            assert!(
                Instant::now() < until,
                "daemon does not answer on {}\n{}",
                self.socket.display(),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        *self.process.lock().expect("no panic while held") = Some(child);
        let created = self.created.clone();
        let _ = rest::follow_events(&self.socket, move |event| {
            if event["Type"] == "container" && event["Action"] == "create" {
                let case = event["Actor"]["Attributes"]["caisson.case"]
                    .as_str()
                    .unwrap_or_default();
                let id = event["Actor"]["ID"].as_str().unwrap_or_default();
                created
                    .lock()
                    .expect("no panic while held")
                    .insert(id.into(), case.into());
            }
        });
    }

    /// Everything it has is beneath this directory.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The home directory of its clients, where `~/.docker` is.
    pub fn home(&self) -> PathBuf {
        self.root.path().join("home")
    }

    /// `--data-root`.
    pub fn data_root(&self) -> PathBuf {
        self.root.path().join("data")
    }

    /// The socket's path.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The socket as `-H` wants it.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.process
            .lock()
            .expect("no panic while held")
            .as_ref()
            .expect("daemon runs")
            .id() as i32
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.root.path().join("log")).unwrap_or_default()
    }

    /// A command of `cli` to this daemon.
    pub fn command(&self, cli: Cli) -> Command {
        cli.command(&self.host(), &self.home())
    }

    /// Runs `cli` with these arguments.
    pub fn client(&self, cli: Cli, arguments: &[&str]) -> Outcome {
        client::run(client::with(self.command(cli), arguments), b"")
    }

    /// The client every target understands.
    pub fn native_cli(&self) -> Cli {
        match self.target {
            Target::Caisson => Cli::Caisson,
            Target::Dockerd => Cli::Docker,
        }
    }

    /// Kills it without a chance to tidy up.
    pub fn kill9(&self) {
        self.end(Signal::SIGKILL);
    }

    /// Ends it politely.
    pub fn stop(&self) {
        self.end(Signal::SIGTERM);
    }

    fn end(&self, signal: Signal) {
        let Some(mut child) = self.process.lock().expect("no panic while held").take() else {
            return;
        };
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        let _ = nix::sys::signal::kill(pid, signal);
        if wait(&mut child, crate::patience(30)).is_none() {
            let _ = child.kill();
            let _ = child.wait();
            panic!("daemon did not end within 30 s of {signal}\n{}", self.log());
        }
    }

    /// The ids of the containers that a case created.
    pub fn created_by(&self, case: &str) -> Vec<String> {
        let created = self.created.lock().expect("no panic while held");
        created
            .iter()
            .filter(|(_, by)| *by == case)
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// What is left of a removed container.
    pub fn residue_of(&self, id: &str) -> Vec<String> {
        let (data, exec) = (self.data_root(), self.root.path().join("exec"));
        residue::after(id, &[&data, &exec], crate::patience(5))
    }

    /// Removes every container, ends the daemon and returns what is left of both.
    pub fn finish(&self) -> Vec<String> {
        if self.process.lock().expect("no panic while held").is_none() && self.data_root().exists()
        {
            self.launch();
        }
        if rest::ping(&self.socket) {
            let cli = self.native_cli();
            let ids = self.client(cli, &["ps", "-aq", "--no-trunc"]).out();
            let ids: Vec<&str> = ids.split_whitespace().collect();
            if !ids.is_empty() {
                self.client(cli, &[&["rm", "-f"], ids.as_slice()].concat());
            }
        }
        self.stop();
        if self.target == Target::Dockerd {
            // the reference leaves these
            let _ = nix::mount::umount(&self.root.path().join("exec/netns/default"));
            let _ = nix::mount::umount(&self.data_root());
        }
        let root = self.root.path().display().to_string();
        let mut left = residue::after(&root, &[], crate::patience(5));
        if self.target == Target::Dockerd {
            left.retain(|line| !line.starts_with("mount")); // its mounts spread to namespaces that others made meanwhile
        }
        left
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let left = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.finish()))
            .unwrap_or_default();
        if std::thread::panicking() || std::env::var_os("CAISSON_TEST_SHOW_LOG").is_some() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(30).collect();
            eprintln!(
                "--- daemon log, end\n{}",
                tail.into_iter().rev().collect::<Vec<_>>().join("\n")
            );
        } else if !left.is_empty() {
            panic!("left behind by the daemon:\n{}", left.join("\n"));
        }
    }
}
