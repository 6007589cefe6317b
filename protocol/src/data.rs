//! The plain data of a sandbox that crosses process boundaries. `runtime` shows it to its callers as it is.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

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
    /// An overlay of two block images: files on the host where a microVM is made, devices inside of it.
    Block {
        /// A read-only EROFS image, shared by every sandbox of the same container image.
        lower: PathBuf,
        /// An ext4 disk of this sandbox alone: where changes go.
        upper: PathBuf,
    },
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// The workload.
    pub workload: ResourceUse,
    /// What the wall itself costs: supervisor, VMM and guest kernel.
    pub overhead: ResourceUse,
    /// Per network interface, by name inside the sandbox.
    pub networks: BTreeMap<String, NetworkUse>,
}

/// CPU, memory, process and disk counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// Where a sandbox is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxState {
    /// The box is there; no process yet.
    Created,
    /// The first process waits to be let go.
    Held,
    /// It runs.
    Running,
    /// Every process is frozen.
    Paused,
    /// The first process has ended.
    Exited(ExitStatus),
}

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

/// An error of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Error {
    /// For the caller's decision.
    pub kind: ErrorKind,
    /// For the user: what failed, why, and what to do.
    pub message: String,
}

impl Error {
    /// An error of some kind, with its message for the user.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error {
            kind,
            message: message.into(),
        }
    }

    /// The request is at fault.
    pub fn invalid(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Invalid, message)
    }

    /// It cannot be done now.
    pub fn conflict(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Conflict, message)
    }

    /// There is no such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::NotFound, message)
    }

    /// Neither the request nor the host is at fault.
    pub fn internal(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Internal, message)
    }

    /// What could not be done, and why: [`Error::internal`].
    pub fn failed(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Self {
        Error::internal(format!("{what}: {why}"))
    }
}
