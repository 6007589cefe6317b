//! The requests that callers make of the engine, and the streams they get back.
//!
//! Validated by the engine, not by its callers: an option struct may hold any nonsense a client sent.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use caisson_api as api;
use caisson_runtime::{Isolation, Output};
use futures_util::Stream;
use tokio::io::AsyncWrite;

use crate::error::Result;

/// How an engine is opened.
#[derive(Clone, Debug)]
pub struct Config {
    /// Everything that survives a reboot (`/var/lib/caisson`).
    pub data_root: PathBuf,
    /// Everything that does not (`/run/caisson`).
    pub exec_root: PathBuf,
    /// The isolation of containers that do not ask for one.
    pub default_isolation: Isolation,
    /// Refuse containers of any other isolation.
    pub require_isolation: Option<Isolation>,
    /// `--userns-remap`: `default`, `USER`, `USER:GROUP`, `UID`, `UID:GID`; `None` or empty: no remapping.
    pub userns_remap: Option<String>,
    /// Ulimits of containers that do not set them: (name, soft, hard).
    pub default_ulimits: Vec<(String, i64, i64)>,
    /// `--log-driver`: `json-file` (default), `local` or `none`.
    pub log_driver: String,
    /// `--log-opt`.
    pub log_opts: BTreeMap<String, String>,
    /// Names accepted in `HostConfig.Runtime` besides our own, and the isolation that they mean.
    pub runtimes: BTreeMap<String, Isolation>,
    /// `--default-shm-size` in bytes.
    pub default_shm_size_bytes: u64,
    /// `--default-disk-size`: how large the disk of a container is where its isolation gives it one.
    pub default_disk_bytes: u64,
    /// `--init`: run an init in every container that does not say otherwise.
    pub init: bool,
    /// `--cgroup-parent`.
    pub cgroup_parent: Option<String>,
    /// `--live-restore`, on by default with us: containers keep running when the daemon ends.
    pub live_restore: bool,
    /// How long containers get to stop when the daemon ends and `live_restore` is off.
    pub shutdown_timeout: Duration,
    /// `--insecure-registry`.
    pub insecure_registries: Vec<String>,
    /// `--registry-mirror`.
    pub registry_mirrors: Vec<String>,
}

impl Config {
    /// Docker's defaults for the given directories.
    pub fn new(data_root: impl Into<PathBuf>, exec_root: impl Into<PathBuf>) -> Self {
        Config {
            data_root: data_root.into(),
            exec_root: exec_root.into(),
            default_isolation: Isolation::Container,
            require_isolation: None,
            userns_remap: None,
            default_ulimits: Vec::new(),
            log_driver: "json-file".into(),
            log_opts: BTreeMap::new(),
            runtimes: BTreeMap::new(),
            default_shm_size_bytes: 64 << 20,
            default_disk_bytes: 10 << 30,
            init: false,
            cgroup_parent: None,
            live_restore: true,
            shutdown_timeout: Duration::from_secs(15),
            insecure_registries: Vec::new(),
            registry_mirrors: Vec::new(),
        }
    }
}

/// Whether a request changed anything (Docker: 204) or found it so already (304).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Something changed.
    Changed,
    /// It was so already.
    Unchanged,
}

/// `POST /containers/create`.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// `--name`, without or with a leading slash; `None` or empty: a random one.
    pub name: Option<String>,
    /// `--platform`.
    pub platform: Option<String>,
    /// The body of the request: `ContainerConfig` with `HostConfig` and `NetworkingConfig`.
    pub request: api::ContainerCreateBody,
}

/// `POST /containers/ID/stop` and `/restart`.
#[derive(Clone, Debug, Default)]
pub struct StopOptions {
    /// The signal to send first; `None`: the container's stop signal.
    pub signal: Option<String>,
    /// Seconds to wait before `SIGKILL`; negative: for ever; `None`: the container's stop timeout, else 10.
    pub timeout_s: Option<i64>,
}

/// `DELETE /containers/ID`.
#[derive(Clone, Copy, Debug, Default)]
pub struct RemoveOptions {
    /// Kill it first when it runs.
    pub force: bool,
    /// Remove its anonymous volumes.
    pub volumes: bool,
    /// Remove the legacy link of that name: refused, there are none.
    pub link: bool,
}

/// What `wait` waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WaitCondition {
    /// Until it does not run; at once when it does not.
    #[default]
    NotRunning,
    /// Until it exits the next time, having been started or not.
    NextExit,
    /// Until it is removed.
    Removed,
}

/// How a wait ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitResult {
    /// Exit code.
    pub status_code: i64,
    /// Why the container failed, if the engine knows.
    pub error: Option<String>,
}

/// A wait that is registered already: the HTTP response head may be sent before it is awaited.
pub type Wait = Pin<Box<dyn Future<Output = Result<WaitResult>> + Send>>;

/// `POST /containers/ID/attach`.
#[derive(Clone, Debug, Default)]
pub struct AttachOptions {
    /// Replay the log first.
    pub logs: bool,
    /// Stream what comes; without it only the replay.
    pub stream: bool,
    /// Take standard input.
    pub stdin: bool,
    /// Give standard output.
    pub stdout: bool,
    /// Give standard error.
    pub stderr: bool,
    /// The key sequence that detaches, `ctrl-p,ctrl-q` when `None`; only looked for with a terminal.
    pub detach_keys: Option<String>,
}

/// Output of a container or exec: framed by the HTTP layer unless the process has a terminal.
pub type OutputStream = Pin<Box<dyn Stream<Item = std::io::Result<Output>> + Send>>;
/// Standard input of a container or exec; `shutdown` is the client's end of file.
pub type InputSink = Pin<Box<dyn AsyncWrite + Send>>;

/// A connection to the streams of a container or an exec.
pub struct Attachment {
    /// It has a terminal: raw stream, no frames.
    pub tty: bool,
    /// Ends when the process' output ends, or when the client typed the detach keys.
    pub output: OutputStream,
    /// Present when asked for and the container keeps standard input open. The detach keys are recognised in here: a
    /// write then fails with `ConnectionAborted` and `output` ends; treat both as a normal end.
    pub input: Option<InputSink>,
}

/// `GET /containers/ID/logs`.
#[derive(Clone, Debug, Default)]
pub struct LogsOptions {
    /// Keep streaming.
    pub follow: bool,
    /// Give standard output.
    pub stdout: bool,
    /// Give standard error.
    pub stderr: bool,
    /// Only lines at or after this time.
    pub since: Option<chrono::DateTime<chrono::Utc>>,
    /// Only lines before this time.
    pub until: Option<chrono::DateTime<chrono::Utc>>,
    /// Prefix every line with its time.
    pub timestamps: bool,
    /// Prefix every line with the labels and variables chosen by `--log-opt labels=…`.
    pub details: bool,
    /// Only so many last lines; `None`: all.
    pub tail: Option<u64>,
}

/// A log being read.
pub struct Logs {
    /// The container has a terminal: raw stream, no frames.
    pub tty: bool,
    /// One item a line.
    pub output: OutputStream,
}

/// `GET /containers/json`.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Stopped ones too.
    pub all: bool,
    /// Only the latest so many, stopped ones too.
    pub limit: Option<usize>,
    /// Compute sizes.
    pub size: bool,
    /// `filters`.
    pub filters: api::Filters,
}

/// `GET /events`.
#[derive(Clone, Debug, Default)]
pub struct EventsOptions {
    /// Start with what happened since then (as far as remembered: 256 events).
    pub since: Option<chrono::DateTime<chrono::Utc>>,
    /// End then.
    pub until: Option<chrono::DateTime<chrono::Utc>>,
    /// `filters`.
    pub filters: api::Filters,
}

/// `GET /containers/ID/stats`.
#[derive(Clone, Copy, Debug, Default)]
pub struct StatsOptions {
    /// A sample every second.
    pub stream: bool,
    /// Do not take a second sample for `precpu_stats`.
    pub one_shot: bool,
}

/// `POST /exec/ID/start`.
#[derive(Clone, Debug, Default)]
pub struct ExecStartOptions {
    /// Do not attach.
    pub detach: bool,
    /// The client believes that there is a terminal; ignored, the exec's own configuration counts.
    pub tty: bool,
    /// Rows and columns of the terminal.
    pub console_size: Option<(u16, u16)>,
}

/// `PUT /containers/ID/archive`.
#[derive(Clone, Copy, Debug, Default)]
pub struct PathWriteOptions {
    /// Refuse to replace a directory by something else and the other way round.
    pub no_overwrite_dir_non_dir: bool,
    /// Keep the archive's uid and gid.
    pub copy_uid_gid: bool,
}

/// `POST /commit`.
#[derive(Clone, Debug, Default)]
pub struct CommitOptions {
    /// The container.
    pub container: String,
    /// `repo:tag` to give the image, if any.
    pub reference: Option<String>,
    /// `--message`.
    pub comment: String,
    /// `--author`.
    pub author: String,
    /// Pause while committing.
    pub pause: bool,
    /// `--change`: Dockerfile instructions.
    pub changes: Vec<String>,
    /// The body: a container configuration that overrides the container's.
    pub config: Option<api::ContainerConfig>,
}

/// A container that keeps an image from being removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUser {
    /// The container's id.
    pub container: String,
    /// The image's id (`sha256:…`).
    pub image: String,
    /// As the container's creator wrote it.
    pub reference: String,
    /// It runs: not even `--force` may remove the image.
    pub running: bool,
}
