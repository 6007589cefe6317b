//! The messages. Their order on a connection is in the crate's documentation.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    Attach, Error, ExitStatus, GuestSetup, PathStat, ProcessTable, Rootfs, SandboxState, Stats,
    Stdio, TtySize, VmSetup, WriteOptions,
};

/// The first frame of both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The generation that the sender speaks.
    pub generation: u32,
    /// Its build, for messages to people.
    pub version: String,
    /// The supervisor's process id where the client can see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
}

/// A request with the number that its answer will carry.
#[derive(Debug, Serialize, Deserialize)]
pub struct RequestFrame {
    /// Chosen by the client; not reused while the answer is outstanding.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// The answer to the request of the same number.
#[derive(Debug, Serialize, Deserialize)]
pub struct ResponseFrame {
    /// The request's.
    pub id: u64,
    /// How it went.
    pub outcome: Outcome,
}

/// How a request or a transfer went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Well.
    Ok(Response),
    /// Not.
    Error(Error),
}

/// What a client may ask.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Makes the sandbox: cgroup, root file system. Once, before anything else. → `Done`
    Create(CreateRequest),
    /// Sets a process up and holds it before it executes the program. The id `init` is the first. → `Pid`
    Spawn(SpawnRequest),
    /// Lets a held process go on. → `Done`
    Start(ProcessRequest),
    /// Waits for the end of a process, any number of times. → `Exited`
    Wait(ProcessRequest),
    /// The process id as the supervisor's host sees it. → `Pid`
    Pid(ProcessRequest),
    /// Sends a signal. → `Done`
    Signal(SignalRequest),
    /// Changes a terminal's size. → `Done`
    Resize(ResizeRequest),
    /// Where the sandbox is in its life. → `State`
    State,
    /// Freezes every process. → `Done`
    Pause,
    /// Thaws them. → `Done`
    Resume,
    /// Changes limits. → `Done`
    Update(UpdateRequest),
    /// Counters. → `Stats`
    Stats,
    /// What `ps` would say. → `Processes`
    Processes(ProcessesRequest),
    /// Ends every process, releases every kernel resource and, after the answer, ends the supervisor. → `Done`
    Destroy(DestroyRequest),
    /// Turns the connection into a process' streams. → `Done`, then chunks
    Attach(AttachRequest),
    /// What a path is; ends the connection. → `PathStat`
    StatPath(PathRequest),
    /// Turns the connection into a tar archive of a path. → `Done`, then chunks
    ReadPath(PathRequest),
    /// Turns the connection into a tar archive to be unpacked into a directory. → `Done`, then chunks
    WritePath(WritePathRequest),
}

impl Request {
    /// Whether the request turns its connection into something else. Such a request is the first of its connection.
    pub fn takes_connection(&self) -> bool {
        matches!(
            self,
            Request::Attach(_)
                | Request::StatPath(_)
                | Request::ReadPath(_)
                | Request::WritePath(_)
        )
    }
}

/// See [`Request::Create`].
#[derive(Debug, Serialize, Deserialize)]
pub struct CreateRequest {
    /// The sandbox' id.
    pub id: String,
    /// The OCI runtime spec.
    pub spec: Box<RawValue>,
    /// Its root file system.
    pub rootfs: Rootfs,
    /// Run a small reaping init as PID 1.
    pub reaper: bool,
    /// What a guest needs beyond the spec; only ever sent to an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestSetup>,
    /// What a virtual machine is made of; only ever sent to a shim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<Box<VmSetup>>,
}

/// See [`Request::Spawn`].
#[derive(Debug, Serialize, Deserialize)]
pub struct SpawnRequest {
    /// The id that the process gets: `init`, or letters, digits, `-`, `_` and `.` that begin with none of the latter.
    pub process: String,
    /// The OCI process. For `init` it takes the place of the spec's.
    pub spec: Box<RawValue>,
    /// Its streams.
    pub stdio: Stdio,
    /// The terminal's first size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<TtySize>,
}

/// Names a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRequest {
    /// Its id.
    pub process: String,
}

/// See [`Request::Signal`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalRequest {
    /// To which process.
    pub process: String,
    /// The signal's number.
    pub signal: i32,
}

/// See [`Request::Resize`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizeRequest {
    /// Whose terminal.
    pub process: String,
    /// Its new size.
    pub size: TtySize,
}

/// See [`Request::Update`].
#[derive(Debug, Serialize, Deserialize)]
pub struct UpdateRequest {
    /// OCI `linux.resources`; what is absent stays as it is.
    pub resources: Box<RawValue>,
}

/// See [`Request::Processes`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessesRequest {
    /// As given to `docker top`; empty means `-ef`.
    pub ps_args: String,
}

/// See [`Request::Destroy`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestroyRequest {
    /// `SIGTERM` first, `SIGKILL` after so many milliseconds; zero means `SIGKILL` at once.
    pub grace_ms: u64,
}

/// See [`Request::Attach`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// To which process.
    pub process: String,
    /// Which of its streams.
    pub streams: Attach,
    /// The supervisor's record for someone who keeps the log and the exit status elsewhere: it is not ended a while after the
    /// process, as other attachments are, and behind everything the process wrote until its end comes a `Status` chunk
    /// with its [`Response::Exited`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub journal: bool,
}

/// Which tree a path is looked up in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum View {
    /// What the processes of the sandbox see, mounts included; the bare root file system when there is none.
    #[default]
    Processes,
    /// The root file system alone, without anything mounted in it.
    Rootfs,
    /// What differs from the read-only part of an overlay, as an OCI layer: removed files are `.wh.NAME` entries, replaced
    /// directories hold `.wh..wh..opq`. `path` is `/`.
    Changes,
}

/// See [`Request::StatPath`] and [`Request::ReadPath`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathRequest {
    /// An absolute path inside the sandbox.
    pub path: PathBuf,
    /// Looked up where.
    #[serde(default)]
    pub view: View,
}

/// See [`Request::WritePath`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WritePathRequest {
    /// An absolute path of a directory inside the sandbox.
    pub path: PathBuf,
    /// How to unpack.
    pub options: WriteOptions,
}

/// Answers that are not errors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// It is done; there is nothing to say.
    Done,
    /// A process id.
    Pid(i32),
    /// A process has ended.
    Exited(ExitStatus),
    /// Where the sandbox is in its life.
    State(SandboxState),
    /// Counters.
    Stats(Box<Stats>),
    /// A process table.
    Processes(ProcessTable),
    /// What a path is.
    PathStat(PathStat),
}
