//! Owns the processes of one sandbox: standard streams, terminals, signals, exit codes; serves `protocol`.
//!
//! The same on both sides of the wall: `caisson-shim` runs it on the host over a unix socket, the agent runs it as
//! the guest's first process over a vsock. What only one of them has (log files, exit records, who may connect, how the
//! root file system comes to be) is behind [`Host`].
//!
//! Must not know: Docker, images, tokio, what is on the other end of its connections.
//!
//! # One thread, one loop
//!
//! ```text
//!               ┌──────────────────────────── epoll ────────────────────────────┐
//!   listener ──▶│ connection: frames ⇄ requests      process: pipes or a terminal │◀── signalfd (SIGCHLD)
//!               └────────────────────────────────────────────────────────────────┘
//!   process stdout ─┬─▶ log                      (Host::open_log)
//!                   ├─▶ attachment A's outbox ──▶ connection
//!                   └─▶ attachment B's outbox ──▶ connection     an outbox above STALL_BYTES stops the reading
//!   connection ──▶ process' input queue ──▶ process stdin        a full queue stops the reading of its connections
//! ```
//!
//! Nothing in the loop waits for a client. Work on the sandbox' file tree, which its processes could make slow (a FUSE
//! mount), happens in a forked worker which is given the whole connection.
//!
//! # Life of a process
//!
//! ```text
//!   spawn ──▶ Held ── start ──▶ Running ── SIGCHLD: drain the pipes, close the log's lines,
//!                                          Host::exited, answer every wait ──▶ Exited (status kept)
//! ```
//!
//! Its output may outlast it, when a child of its own keeps the pipe open: `wait` does not wait for that. Attachments of
//! an ended process are ended [`STREAM_GRACE`] later; what still comes then goes to the log only.

#![deny(unsafe_op_in_unsafe_fn)]

mod attachment;
mod connection;
mod destroy;
mod files;
mod host;
mod input;
mod poller;
mod process;
mod reap;
mod requests;
mod stats;
mod supervisor;
#[allow(unsafe_code)]
mod sys;
mod top;

use std::time::Duration;

pub use host::{Host, Life, Log, LogStream, Mounted};
pub use requests::{check_process_id, parse_oci};
pub use supervisor::Supervisor;

/// An attachment with so many bytes outstanding stalls its process; so does an input queue its clients.
pub const STALL_BYTES: usize = 1 << 20;

/// How long attachments stay open after their process has ended when something else keeps its output open.
pub const STREAM_GRACE: Duration = Duration::from_secs(2);

/// How many ended processes are remembered, `init` aside.
pub const MAX_ENDED_EXECS: usize = 256;

/// The jail's error in the protocol's words.
pub fn jail_error(error: caisson_jail::Error) -> caisson_protocol::Error {
    use caisson_jail::ErrorKind as Jail;
    use caisson_protocol::ErrorKind;
    let kind = match error.kind() {
        Jail::Invalid => ErrorKind::Invalid,
        Jail::NotFound => ErrorKind::NotFound,
        Jail::CommandNotFound => ErrorKind::CommandNotFound,
        Jail::CommandNotExecutable => ErrorKind::CommandNotExecutable,
        Jail::HostUnfit => ErrorKind::HostUnfit,
        Jail::Conflict => ErrorKind::Conflict,
        Jail::Internal => ErrorKind::Internal,
    };
    caisson_protocol::Error::new(kind, error.to_string())
}
