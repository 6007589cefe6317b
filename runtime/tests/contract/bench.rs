//! A host to make sandboxes on, and what to look for when they are gone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use caisson_runtime::*;
use futures_util::StreamExt;
use oci_spec::runtime::{Process, Spec};
use serde_json::{Value, json};
use tempfile::TempDir;

/// One runtime with directories of its own.
pub struct Bench {
    pub isolation: Isolation,
    pub dir: TempDir,
    pub runtime: Arc<dyn Runtime>,
    pub cgroup_parent: String,
    count: AtomicU32,
}

/// What a sandbox in a virtual machine may write.
const SCRATCH_BYTES: u64 = 256 << 20;

/// How a sandbox differs from the usual one.
#[derive(Default)]
pub struct Wish {
    pub spec: Value,
    pub reaper: bool,
}

fn shim() -> &'static Path {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| {
        if let Some(named) = std::env::var_os("CAISSON_SHIM") {
            return named.into();
        }
        let built = Command::new(env!("CARGO"))
            .args(["build", "-q", "-p", "caisson-shim"])
            .status();
        assert!(built.is_ok_and(|s| s.success()), "the shim builds");
        let deps = std::env::current_exe().expect("a test program");
        deps.parent()
            .and_then(Path::parent)
            .expect("target/debug/deps")
            .join("caisson-shim")
    })
}

impl Bench {
    /// `None` where the host lacks something.
    pub fn new(isolation: Isolation) -> Option<Bench> {
        for (there, why) in [
            (nix::unistd::geteuid().is_root(), "not root"),
            (
                Path::new("/bin/busybox").exists(),
                "no /bin/busybox (Debian: busybox-static)",
            ),
            (Path::new("/sys/fs/cgroup").exists(), "no cgroups"),
        ] {
            if !there {
                eprintln!("SKIPPED: {why}");
                return None;
            }
        }
        let dir = tempfile::Builder::new()
            .prefix("cc-")
            .tempdir()
            .expect("a directory");
        let layer = dir.path().join("layer");
        for sub in ["bin", "proc", "sys", "dev", "tmp", "etc", "root"] {
            fs::create_dir_all(layer.join(sub)).expect("made");
        }
        fs::copy("/bin/busybox", layer.join("bin/busybox")).expect("copied");
        for applet in [
            "sh", "cat", "echo", "sleep", "stty", "head", "yes", "ls", "id", "kill", "seq", "true",
            "dd", "readlink",
        ] {
            std::os::unix::fs::symlink("busybox", layer.join("bin").join(applet)).expect("linked");
        }
        fs::write(layer.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("written");
        fs::write(layer.join("etc/not-executable"), "text\n").expect("written");
        if isolation == Isolation::Vm {
            let image = dir.path().join("image");
            caisson_blockfs::erofs::from_directory(&layer, &image).expect("an image");
        }
        let runtime = Self::open(isolation, dir.path());
        let cgroup_parent = format!(
            "/caisson-contract-{}-{}",
            std::process::id(),
            dir.path().display().to_string().replace('/', "-")
        );
        Some(Bench {
            isolation,
            dir,
            runtime,
            cgroup_parent,
            count: AtomicU32::new(0),
        })
    }

    fn open(isolation: Isolation, dir: &Path) -> Arc<dyn Runtime> {
        let exec_root = dir.join("exec");
        match isolation {
            Isolation::Container => {
                let runtime = ContainerRuntime::open_with_shim(&exec_root, shim());
                Arc::new(runtime.expect("a runtime"))
            }
            Isolation::Vm => {
                let settings = VmSettings {
                    shim: Some(shim().to_path_buf()),
                    ..VmSettings::default()
                };
                Arc::new(VmRuntime::open(&exec_root, settings).expect("a runtime"))
            }
        }
    }

    /// What a restarted daemon has: the same directories, nothing in memory.
    pub fn restarted(&self) -> Arc<dyn Runtime> {
        Self::open(self.isolation, self.dir.path())
    }

    pub fn new_id(&self) -> SandboxId {
        let n = self.count.fetch_add(1, Ordering::Relaxed);
        SandboxId(format!("{n:0>8}{}", "c".repeat(56)))
    }

    pub fn sandbox_dir(&self, id: &SandboxId) -> PathBuf {
        self.dir.path().join("exec/sandboxes").join(&id.0)
    }

    pub fn log_path(&self, id: &SandboxId) -> PathBuf {
        self.dir.path().join(format!("{id}.log"))
    }

    pub fn upper(&self, id: &SandboxId) -> PathBuf {
        self.dir.path().join("containers").join(&id.0).join("upper")
    }

    pub fn spec(&self, id: &SandboxId, wish: Wish) -> SandboxSpec {
        let mut spec = json!({
            "ociVersion": "1.2.0",
            "hostname": "box",
            "root": {"path": "rootfs", "readonly": false},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}
            ],
            "linux": {
                "cgroupsPath": format!("{}/{id}", self.cgroup_parent),
                "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}],
                "resources": {}
            }
        });
        merge(&mut spec, wish.spec);
        let oci: Spec = serde_json::from_value(spec).expect("a spec");
        let (upper, work) = (
            self.upper(id),
            self.dir.path().join("containers").join(&id.0).join("work"),
        );
        fs::create_dir_all(&upper).expect("made");
        fs::create_dir_all(&work).expect("made");
        let rootfs = match self.isolation {
            Isolation::Container => Rootfs::Overlay {
                lower: vec![self.dir.path().join("layer")],
                upper,
                work,
            },
            Isolation::Vm => {
                let scratch = self
                    .dir
                    .path()
                    .join("containers")
                    .join(&id.0)
                    .join("scratch");
                if !scratch.exists() {
                    let options = caisson_blockfs::ext4::Options::new(SCRATCH_BYTES);
                    caisson_blockfs::ext4::create(&scratch, &options).expect("a disk");
                }
                Rootfs::Block {
                    lower: self.dir.path().join("image"),
                    upper: scratch,
                }
            }
        };
        SandboxSpec {
            oci,
            rootfs,
            reaper: wish.reaper,
            copies: Vec::new(),
        }
    }

    pub async fn create(&self) -> Arc<dyn Sandbox> {
        self.create_with(Wish::default()).await
    }

    pub async fn create_with(&self, wish: Wish) -> Arc<dyn Sandbox> {
        let id = self.new_id();
        let spec = self.spec(&id, wish);
        self.runtime.create(&id, spec).await.expect("created")
    }

    /// A sandbox whose first process runs a shell script.
    pub async fn running(&self, script: &str) -> Arc<dyn Sandbox> {
        let sandbox = self.create().await;
        sandbox
            .spawn(&ProcessId::init(), sh(script), Stdio::default(), None)
            .await
            .expect("spawned");
        sandbox.start(&ProcessId::init()).await.expect("started");
        sandbox
    }

    /// Runs one script as the first process; its output and code.
    pub async fn run(&self, script: &str) -> (Collected, ExitStatus) {
        let sandbox = self.create().await;
        let result = run_in(&*sandbox, &ProcessId::init(), sh(script), Stdio::default()).await;
        sandbox.destroy(Duration::ZERO).await.expect("destroyed");
        result
    }

    /// How many, or how much: a virtual machine takes a boot, and all its bytes go through an emulated kernel on some hosts.
    pub fn many(&self, containers: usize, vms: usize) -> usize {
        match self.isolation {
            Isolation::Container => containers,
            Isolation::Vm => vms,
        }
    }

    /// So long that a process has done its next step; a guest whose ring 0 is emulated needs longer.
    pub async fn moment(&self, milliseconds: u64) {
        let factor = if self.isolation == Isolation::Vm {
            50
        } else {
            1
        };
        tokio::time::sleep(Duration::from_millis(milliseconds * factor)).await;
    }

    /// Waits until it is so. A question to a guest may take seconds where ring 0 is emulated.
    pub async fn eventually(&self, what: &str, mut check: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(self.many(10, 120) as u64);
        while !check().await {
            assert!(Instant::now() < deadline, "never: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn assert_clean(&self) {
        let deadline = Instant::now() + Duration::from_secs(3);
        loop {
            let left = self.leftovers();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind: {left:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Everything on the host that has to do with this bench and should not.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        let mark = self.dir.path().display().to_string();
        let sandboxes = fs::read_dir(self.dir.path().join("exec/sandboxes")).expect("there");
        left.extend(
            sandboxes
                .flatten()
                .map(|e| format!("directory {}", e.path().display())),
        );
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("readable");
        left.extend(
            mounts
                .lines()
                .filter(|l| l.contains(&mark))
                .map(|l| format!("mount {l}")),
        );
        for process in fs::read_dir("/proc").expect("readable").flatten() {
            let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if command.contains(&mark) {
                left.push(format!("process {} {command}", process.path().display()));
            }
        }
        for hierarchy in fs::read_dir("/sys/fs/cgroup").expect("readable").flatten() {
            for parent in [hierarchy.path(), PathBuf::from("/sys/fs/cgroup")] {
                let parent = parent.join(self.cgroup_parent.trim_start_matches('/'));
                let children = fs::read_dir(&parent).into_iter().flatten().flatten();
                left.extend(
                    children
                        .filter(|c| c.path().is_dir())
                        .map(|c| format!("cgroup {}", c.path().display())),
                );
            }
        }
        left
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // A case that failed left its sandboxes; their shims take the rest along.
        let mark = self.dir.path().display().to_string();
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let pid = process.file_name().to_string_lossy().parse::<i32>();
            if let Ok(pid) = pid
                && command.starts_with(b"caisson-shim")
                && String::from_utf8_lossy(&command).contains(&mark)
            {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
        // The parent cgroup is ours, the runtime only makes its children.
        for hierarchy in fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            let _ = fs::remove_dir(
                hierarchy
                    .path()
                    .join(self.cgroup_parent.trim_start_matches('/')),
            );
        }
        let _ = fs::remove_dir(
            Path::new("/sys/fs/cgroup").join(self.cgroup_parent.trim_start_matches('/')),
        );
    }
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (into, from) => *into = from,
    }
}

/// A process of root's with all that Docker leaves it.
pub fn process(args: &[&str]) -> Process {
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE"
    ]);
    serde_json::from_value(json!({
        "user": {"uid": 0, "gid": 0},
        "args": args,
        "cwd": "/",
        "env": ["PATH=/bin", "TERM=xterm", "HOME=/root"],
        "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
    }))
    .expect("a process")
}

pub fn sh(script: &str) -> Process {
    process(&["sh", "-c", script])
}

pub fn with_terminal(mut process: Process) -> Process {
    process.set_terminal(Some(true));
    process
}

pub const OUTPUTS: Attach = Attach {
    stdin: false,
    stdout: true,
    stderr: true,
};
pub const ALL: Attach = Attach {
    stdin: true,
    stdout: true,
    stderr: true,
};

/// What came out of a process.
#[derive(Debug, Default)]
pub struct Collected {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Collected {
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

pub async fn collect(io: ProcessIo) -> Collected {
    let mut collected = Collected::default();
    let mut output = io.output;
    while let Some(piece) = output.next().await {
        match piece.expect("output") {
            Output::Stdout(bytes) => collected.stdout.extend_from_slice(&bytes),
            Output::Stderr(bytes) => collected.stderr.extend_from_slice(&bytes),
        }
    }
    collected
}

/// Spawns, attaches, starts, collects, waits.
pub async fn run_in(
    sandbox: &dyn Sandbox,
    id: &ProcessId,
    process: Process,
    stdio: Stdio,
) -> (Collected, ExitStatus) {
    sandbox
        .spawn(id, process, stdio, None)
        .await
        .expect("spawned");
    let io = sandbox.attach(id, OUTPUTS).await.expect("attached");
    sandbox.start(id).await.expect("started");
    let collected = collect(io).await;
    (collected, sandbox.wait(id).await.expect("ended"))
}

pub async fn exec(sandbox: &dyn Sandbox, name: &str, script: &str) -> (Collected, ExitStatus) {
    run_in(
        sandbox,
        &ProcessId(name.into()),
        sh(script),
        Stdio::default(),
    )
    .await
}

pub fn log_to(path: &Path) -> Stdio {
    Stdio {
        log: Some(LogFile {
            path: path.to_path_buf(),
            max_size_bytes: None,
            max_files: 1,
        }),
        ..Stdio::default()
    }
}

/// The text of a json-file log, by stream.
pub fn logged(path: &Path, stream: &str) -> String {
    let text = fs::read_to_string(path).expect("a log");
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines
        .filter(|l| l["stream"] == stream)
        .map(|l| l["log"].as_str().expect("text").to_string())
        .collect()
}
