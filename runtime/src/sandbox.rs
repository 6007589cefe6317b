//! The trait and the plain data that crosses it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
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
            other => Err(format!("unknown isolation \"{other}\": use container, vm or default")),
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
        ProcessId("init".into())
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

/// A root file system, ready to be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rootfs {
    /// An overlay; `lower` is ordered topmost layer first. `upper` and `work` exist and are on one file system.
    Overlay {
        /// Read-only layers, topmost first; at least one.
        lower: Vec<PathBuf>,
        /// Where changes go.
        upper: PathBuf,
        /// overlayfs' work directory.
        work: PathBuf,
    },
    /// One directory, used as it is.
    Directory(PathBuf),
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
}

/// Where a process' output is kept, in addition to being handed to whoever attaches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogFile {
    /// The file that receives Docker's json-file lines (`{"log":…,"stream":…,"time":…}`).
    pub path: PathBuf,
    /// Rotate when the file would exceed this many bytes.
    pub max_size_bytes: Option<u64>,
    /// How many files are kept, the current one included; at least 1.
    pub max_files: u32,
}

/// What a process' standard streams are connected to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stdio {
    /// Keep standard input open for attached clients; otherwise it is `/dev/null`. Whether the process has a terminal is
    /// said by the OCI process (`process.terminal`).
    pub stdin: bool,
    /// Close standard input for good once the first client that attached to it has gone (`--interactive` without detach).
    pub stdin_once: bool,
    /// Keep the output; `None` discards what nobody is attached to.
    pub log: Option<LogFile>,
}

/// Terminal size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct TtySize {
    pub rows: u16,
    pub columns: u16,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// 0–255; 128+n when signal n ended it.
    pub code: i32,
    /// The kernel's out-of-memory killer struck inside the sandbox before it ended.
    pub oom_killed: bool,
    /// When it ended.
    pub at: SystemTime,
}

/// Counters of one sandbox; a number is `None` where the host does not provide it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Stats {
    /// The workload.
    pub workload: ResourceUse,
    /// What the wall itself costs: supervisor, VMM and guest kernel.
    pub overhead: ResourceUse,
    /// Per network interface, by name inside the sandbox.
    pub networks: BTreeMap<String, NetworkUse>,
}

/// CPU, memory, process and disk counters.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ResourceUse {
    /// CPU time in nanoseconds: total, in user mode, in kernel mode.
    pub cpu_total_ns: Option<u64>,
    #[allow(missing_docs)]
    pub cpu_user_ns: Option<u64>,
    #[allow(missing_docs)]
    pub cpu_system_ns: Option<u64>,
    /// CPU bandwidth periods, periods in which it was throttled, and for how long.
    pub cpu_periods: Option<u64>,
    #[allow(missing_docs)]
    pub cpu_throttled_periods: Option<u64>,
    #[allow(missing_docs)]
    pub cpu_throttled_ns: Option<u64>,
    /// Bytes in use, page cache included.
    pub memory_bytes: Option<u64>,
    /// Highest value of `memory_bytes`.
    pub memory_peak_bytes: Option<u64>,
    /// The limit; `None` when unlimited.
    pub memory_limit_bytes: Option<u64>,
    /// `memory.stat` as the kernel gives it.
    pub memory_detail: BTreeMap<String, u64>,
    /// How often an allocation hit the limit.
    pub memory_failures: Option<u64>,
    /// Processes and threads now, and the limit.
    pub pids: Option<u64>,
    #[allow(missing_docs)]
    pub pids_limit: Option<u64>,
    /// Per block device.
    pub block: Vec<BlockUse>,
}

/// Counters of one block device.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct BlockUse {
    pub major: u64,
    pub minor: u64,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub read_ops: u64,
    pub write_ops: u64,
}

/// Counters of one network interface.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct NetworkUse {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// Which of a process' streams an attachment carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Attach {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
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
    /// Standard input; shutting it down closes the process' standard input. `None` when not asked for.
    pub input: Option<Pin<Box<dyn AsyncWrite + Send>>>,
}

/// A tar archive being read.
pub type TarStream = Pin<Box<dyn AsyncRead + Send>>;

/// What a path inside the sandbox is (`docker cp` asks for it first).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStat {
    /// The last component.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// `st_mode`.
    pub mode: u32,
    /// Last modification.
    pub mtime: SystemTime,
    /// Target, for a symbolic link.
    pub link_target: Option<String>,
}

/// How a tar stream is written into a sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteOptions {
    /// Refuse to replace a directory by something else and the other way round.
    pub no_overwrite_dir_non_dir: bool,
    /// Keep the archive's uid and gid; otherwise files belong to root of the sandbox.
    pub keep_ownership: bool,
}

/// A process of a sandbox as `top` sees it: the host's (or guest's) process id and its id inside the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessTable {
    /// Column headings, as `ps` names them.
    pub titles: Vec<String>,
    /// One row a process.
    pub rows: Vec<Vec<String>>,
}

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
    async fn restore(&self, id: &SandboxId, spec: SandboxSpec, from: &Snapshot) -> Result<Arc<dyn Sandbox>>;
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
    async fn spawn(&self, id: &ProcessId, process: oci_spec::runtime::Process, stdio: Stdio, size: Option<TtySize>) -> Result<()>;
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
    /// `ps`, run against the sandbox' processes. `ps_args` as given to `docker top`, `-ef` when empty.
    async fn processes(&self, ps_args: &str) -> Result<ProcessTable>;
    /// What `path` is; symbolic links are resolved inside the sandbox' root, never outside, except the last component.
    async fn stat_path(&self, path: &Path) -> Result<PathStat>;
    /// A tar archive of `path`, whose entries begin with its last component.
    async fn read_path(&self, path: &Path) -> Result<TarStream>;
    /// Unpacks an archive into the directory `path`.
    async fn write_path(&self, path: &Path, tar: TarStream, options: WriteOptions) -> Result<()>;
    /// Saves memory, processes and disk.
    async fn snapshot(&self, into: &Path) -> Result<Snapshot>;
    /// Ends every process (init gets `SIGKILL` after `grace`, `SIGTERM` before unless zero) and returns when every kernel
    /// resource is released. Idempotent.
    async fn destroy(&self, grace: Duration) -> Result<()>;
}

/// What went wrong, for the caller's decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// No such sandbox, process or path.
    NotFound,
    /// The request makes no sense (a bad spec, a relative path, …).
    Invalid,
    /// The object is not in the state that the request needs.
    Conflict,
    /// The user's program does not exist (exit code 127).
    CommandNotFound,
    /// The user's program cannot be executed (exit code 126).
    CommandNotExecutable,
    /// This host lacks something that the request needs; the message says how to get it.
    HostUnfit,
    /// The supervisor of the sandbox is gone.
    Lost,
    /// Anything else.
    Internal,
}

/// An error of the runtime.
#[derive(Clone, Debug, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Error {
    /// For the caller's decision.
    pub kind: ErrorKind,
    /// For the user: what failed, why, and what to do.
    pub message: String,
}

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
