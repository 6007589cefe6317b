//! One container: a task that owns its state, and the handle through which everybody else asks it for things.
//!
//! ```text
//!   Engine ── Message ──▶ Actor ── runtime::Sandbox ──▶ the wall
//!      ▲                    │
//!      └──── watch<View> ◀──┘        readers never wait for the actor
//! ```
//!
//! Messages are short: whoever waits for an exit watches the view. Long work (stop's grace, streams, probes) happens in tasks of
//! its own that send messages back.

mod actor;
mod attach;
mod exit;
mod files;
mod probe;
mod start;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use caisson_api as api;
use caisson_runtime::{Attach, ExitStatus, ProcessIo, Sandbox};
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::{Error, Result};
use crate::options::Outcome;
use crate::records::View;

pub(crate) use actor::spawn;
pub(crate) use files::Lease;

/// Answers of the actor.
pub(crate) type Reply<T> = oneshot::Sender<Result<T>>;

/// Why a signal is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    /// `kill`: a signal like any other.
    Kill,
    /// `stop` and `restart`: the user wants it down, whatever the policy.
    Stop,
    /// The daemon ends: the policy applies again when it is back.
    Shutdown,
}

/// Whether a frozen sandbox will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paused {
    Allowed,
    Refused,
}

/// What an attachment gets: streams now, or once the container starts.
pub(crate) enum Streams {
    Now(ProcessIo),
    Later(oneshot::Receiver<ProcessIo>),
}

/// What the actor is asked for.
pub(crate) enum Message {
    Start {
        reply: Reply<Outcome>,
    },
    Signal {
        signal: i32,
        intent: Intent,
        reply: Reply<()>,
    },
    Pause {
        reply: Reply<()>,
    },
    Unpause {
        reply: Reply<()>,
    },
    Rename {
        name: String,
        reply: Reply<()>,
    },
    Update {
        update: Box<api::UpdateBody>,
        reply: Reply<Vec<String>>,
    },
    Remove {
        force: bool,
        reply: Reply<()>,
    },
    Attach {
        streams: Attach,
        reply: Reply<Streams>,
    },
    /// The running sandbox: for execs, statistics, `top`; a paused one only for those that can do with it.
    Sandbox {
        paused: Paused,
        reply: Reply<Arc<dyn Sandbox>>,
    },
    /// A sandbox to copy files from or to, running or not.
    Files {
        reply: Reply<Lease>,
    },
    /// A lease has ended.
    Released,
    /// The first process has ended; `run` says which one.
    Exited {
        run: u64,
        status: Result<ExitStatus>,
    },
    /// The delay before a restart is over.
    RestartNow {
        run: u64,
    },
    /// A health probe has ended.
    Probed {
        run: u64,
        probe: api::HealthProbe,
    },
    /// The user's `restart` begins or ends: no `--rm` in between.
    KeepOnExit(bool),
    /// The state could not be written down before: once more.
    SaveState,
    /// The task ends, the container stays as it is.
    Quit {
        done: oneshot::Sender<()>,
    },
}

/// A container as the rest of the engine holds it.
pub(crate) struct Container {
    pub id: String,
    mailbox: mpsc::UnboundedSender<Message>,
    view: watch::Receiver<Arc<View>>,
}

impl Container {
    /// What it looks like now.
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// For waiting on a change.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// Sends without waiting for an answer.
    pub(crate) fn tell(&self, message: Message) {
        // A closed mailbox is a removed container: whoever waits for it sees its view end.
        let _ = self.mailbox.send(message);
    }

    /// Sends and waits for the answer.
    pub(crate) async fn ask<T>(&self, message: impl FnOnce(Reply<T>) -> Message) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::not_found(format!("No such container: {}", self.id));
        self.mailbox.send(message(reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// The directory of one container.
#[derive(Clone, Debug)]
pub(crate) struct Dir(PathBuf);

impl Dir {
    pub(crate) fn new(data_root: &Path, id: &str) -> Dir {
        Dir(data_root.join("containers").join(id))
    }
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
    pub(crate) fn upper(&self) -> PathBuf {
        self.0.join("upper")
    }
    pub(crate) fn work(&self) -> PathBuf {
        self.0.join("work")
    }
    /// The disk of a container whose isolation wants block devices.
    pub(crate) fn disk(&self) -> PathBuf {
        self.0.join("disk.ext4")
    }
    pub(crate) fn own_files(&self) -> crate::spec::OwnFiles {
        crate::spec::OwnFiles {
            hostname: self.0.join("hostname"),
            hosts: self.0.join("hosts"),
            resolv_conf: self.0.join("resolv.conf"),
        }
    }
    /// The current log file; rotated ones have `.1`, `.2`, … behind.
    pub(crate) fn log(&self) -> PathBuf {
        let id = self
            .0
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        self.0.join(format!("{id}-json.log"))
    }
}
