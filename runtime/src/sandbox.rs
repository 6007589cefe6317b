//! The trait and the plain data that crosses it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
pub use caisson_protocol::{
    Attach, BlockUse, Error, ErrorKind, ExitStatus, LogFile, NetworkUse, PathStat, ProcessTable,
    ResourceUse, Rootfs, SandboxState, Stats, Stdio, TtySize, WriteOptions,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

/// Which wall stands between a container and its host. Resolved and recorded when a container is created; never decided
/// again and never weakened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Namespaces and cgroups on the host's kernel.
    Container,
    /// A KVM microVM with its own kernel.
    Vm,
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isolation::Container => "container",
            Isolation::Vm => "vm",
        })
    }
}

impl FromStr for Isolation {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s.to_ascii_lowercase().as_str() {
            "container" => Ok(Isolation::Container),
            "vm" => Ok(Isolation::Vm),
            other => Err(format!(
                "unknown isolation \"{other}\": use container, vm or default"
            )),
        }
    }
}

/// Identifies a sandbox: the container's 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SandboxId(pub String);

/// Identifies a process within its sandbox: `"init"` for the first, an exec id for the others.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProcessId(pub String);

impl ProcessId {
    /// The first process of every sandbox.
    pub fn init() -> Self {
        ProcessId(caisson_protocol::INIT.into())
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What one isolation can do on this host. Callers ask first; no method answers "unsupported".
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Capabilities {
    /// The isolation described.
    pub isolation: Isolation,
    /// The form in which a root file system must be handed over.
    pub rootfs: RootfsForm,
    /// The container may share the host's network, PID, IPC, UTS or user namespace (`--network host`, …).
    pub share_host_namespaces: bool,
    /// The container may be given host devices (`--device`).
    pub host_devices: bool,
    /// [`Sandbox::snapshot`] and [`Runtime::restore`] work.
    pub snapshot: bool,
    /// cgroup controllers that bound the workload, by their v2 names (`cpu`, `cpuset`, `io`, `memory`, `pids`).
    pub controllers: Vec<String>,
}

/// The form of a root file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootfsForm {
    /// Directories to be stacked with overlayfs.
    Overlay,
    /// Block images.
    Block,
}

/// Everything needed to make a sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The OCI runtime spec of the sandbox and its first process. `root.path` is ignored in favour of `rootfs`;
    /// `root.readonly` counts. User-namespace mappings, when present, say which ids the rootfs is shifted to with idmapped
    /// mounts: the files of `rootfs` are always stored with unshifted ids.
    pub oci: oci_spec::runtime::Spec,
    /// Its root file system.
    pub rootfs: Rootfs,
    /// Run a small reaping init as PID 1 and the first process as its child (`--init`).
    pub reaper: bool,
    /// Sources of bind mounts that are small files of the sandbox alone and that nobody changes while it runs
    /// (`/etc/resolv.conf` and its like): an isolation that cannot mount the host's files may copy these.
    #[serde(default)]
    pub copies: Vec<PathBuf>,
}

/// One piece of a process' output. With a terminal everything is `Stdout`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Output {
    Stdout(bytes::Bytes),
    Stderr(bytes::Bytes),
}

/// A live connection to a process' standard streams.
pub struct ProcessIo {
    /// Everything the process writes from the moment of attaching; ends when all its ends are closed. Back-pressure: a
    /// reader that stalls stalls the process once about 1 MiB is buffered.
    pub output: Pin<Box<dyn futures_util::Stream<Item = std::io::Result<Output>> + Send>>,
    /// Standard input. Shutting it down closes the process' standard input if it was spawned with [`Stdio::stdin_once`] and
    /// without a terminal; otherwise it only ends this attachment's part. `None` when not asked for.
    pub input: Option<Pin<Box<dyn AsyncWrite + Send>>>,
}

/// A tar archive being read.
pub type TarStream = Pin<Box<dyn AsyncRead + Send>>;

/// A saved sandbox on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The directory that holds it.
    pub path: PathBuf,
    /// The isolation it was taken from.
    pub isolation: Isolation,
}

/// Makes sandboxes of one isolation.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// Which one.
    fn isolation(&self) -> Isolation;
    /// What it can do on this host.
    fn capabilities(&self) -> &Capabilities;
    /// Makes the box: root file system mounted, cgroup made, no user process yet. On `Err` nothing is left behind.
    async fn create(&self, id: &SandboxId, spec: SandboxSpec) -> Result<Arc<dyn Sandbox>>;
    /// Like `create`, with memory and processes as they were saved.
    async fn restore(
        &self,
        id: &SandboxId,
        spec: SandboxSpec,
        from: &Snapshot,
    ) -> Result<Arc<dyn Sandbox>>;
    /// Finds a sandbox again after a daemon restart, running or ended; `None` when this runtime has nothing of it.
    async fn recover(&self, id: &SandboxId) -> Result<Option<Arc<dyn Sandbox>>>;
}

/// One running container's box.
#[async_trait]
pub trait Sandbox: Send + Sync {
    /// Its id.
    fn id(&self) -> &SandboxId;
    /// Sets a process up and holds it just before it executes the user's program: the first must be
    /// [`ProcessId::init`], later ones are execs. A program that does not exist or cannot be executed is an error here
    /// ([`ErrorKind::CommandNotFound`], [`ErrorKind::CommandNotExecutable`]).
    async fn spawn(
        &self,
        id: &ProcessId,
        process: oci_spec::runtime::Process,
        stdio: Stdio,
        size: Option<TtySize>,
    ) -> Result<()>;
    /// Where the sandbox is in its life: what a restarted daemon asks first.
    async fn state(&self) -> Result<SandboxState>;
    /// Connects to its streams. Attaching between `spawn` and `start` misses nothing.
    async fn attach(&self, id: &ProcessId, streams: Attach) -> Result<ProcessIo>;
    /// Lets a held process execute.
    async fn start(&self, id: &ProcessId) -> Result<()>;
    /// Waits for its end; answers at once, any number of times, when it has ended.
    async fn wait(&self, id: &ProcessId) -> Result<ExitStatus>;
    /// Its process id on the host (for vm: of the VMM), for `inspect`.
    async fn pid(&self, id: &ProcessId) -> Result<i32>;
    /// Sends a signal by number.
    async fn signal(&self, id: &ProcessId, signal: i32) -> Result<()>;
    /// Changes the terminal's size.
    async fn resize_tty(&self, id: &ProcessId, size: TtySize) -> Result<()>;
    /// Freezes every process.
    async fn pause(&self) -> Result<()>;
    /// Thaws them.
    async fn resume(&self) -> Result<()>;
    /// Changes limits while running.
    async fn update(&self, limits: &oci_spec::runtime::LinuxResources) -> Result<()>;
    /// Workload and overhead as separate numbers.
    async fn stats(&self) -> Result<Stats>;
    /// What `ps` says of the sandbox' processes. `ps_args` as given to `docker top`, `-ef` when empty; understood are `-ef`,
    /// `aux` and their relatives, and `-o column,…`.
    async fn processes(&self, ps_args: &str) -> Result<ProcessTable>;
    /// What `path` is; symbolic links are resolved inside the sandbox' root, never outside, except the last component.
    async fn stat_path(&self, path: &Path) -> Result<PathStat>;
    /// A tar archive of `path`, whose entries begin with its last component.
    async fn read_path(&self, path: &Path) -> Result<TarStream>;
    /// A tar archive of the root file system alone, without what is mounted in it (`docker export`).
    async fn export(&self) -> Result<TarStream>;
    /// What differs from the image, as an OCI layer: removed files are `.wh.NAME`, replaced directories hold `.wh..wh..opq`.
    async fn changes(&self) -> Result<TarStream>;
    /// Unpacks an archive into the directory `path`.
    async fn write_path(&self, path: &Path, tar: TarStream, options: WriteOptions) -> Result<()>;
    /// Saves memory, processes and disk.
    async fn snapshot(&self, into: &Path) -> Result<Snapshot>;
    /// Ends every process (init gets `SIGKILL` after `grace`, `SIGTERM` before unless zero) and returns when every kernel
    /// resource is released. Idempotent.
    async fn destroy(&self, grace: Duration) -> Result<()>;
}

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
