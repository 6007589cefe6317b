//! `caisson-shim --vm`: the shim of a sandbox whose processes run in a virtual machine.
//!
//! To the daemon it is what every shim is: the same socket, directory, logs and exit records. It has no processes of its
//! own; it keeps one `caisson-vmm` and relays to the agent, which is this very `supervisor` on the other side of the wall.
//!
//! ```text
//!   main thread: makes children, for they die with the thread that made them; waits for the end
//!   accept ──▶ relay.rs, a thread a connection ──▶ sandbox.rs ──▶ plan.rs ─▶ machine.rs ─▶ caisson-vmm
//!                      └─ streams ───────────────────▶ agent.rs ─▶ vm/vsock.sock ─▶ the guest
//!   journal.rs, a thread a process ◀── agent: output ─▶ log, exit status ─▶ processes.rs ─▶ exit records, waits
//! ```
//!
//! Threads wait where they like; nothing is held while they do. When this process is killed the kernel kills the VMM.

mod agent;
mod calls;
mod client;
mod end;
mod handover;
pub mod journal;
mod machine;
mod plan;
pub mod processes;
mod relay;
mod sandbox;
mod shares;
mod short;
mod stats;
#[allow(unsafe_code)]
mod sys;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use caisson_protocol::{CreateRequest, Error, Request, Response};
use caisson_supervisor::Host;

use crate::host::SandboxDir;
use sandbox::Sandbox;

/// A shim that nobody has asked to make a sandbox ends by itself.
const UNUSED_LIFE: Duration = Duration::from_secs(30);

/// Many threads, none of which calls deeply.
const STACK_BYTES: usize = 256 << 10;

/// More connections than any daemon has; beyond them the newest is refused.
const MAX_CONNECTIONS: usize = 1024;

/// The shim of one virtual machine.
struct Shim {
    sandbox: Sandbox,
    main: Sender<Job>,
    listener: UnixListener,
    connections: Busy,
    /// Connections that have become streams, requests that are not answered yet.
    streams: Busy,
    requests: Busy,
}

/// What only the main thread does.
enum Job {
    Create(Box<CreateRequest>, Sender<Result<Response, Error>>),
    Leave,
}

/// Serves until the sandbox has been destroyed, or could not be made.
pub fn run(listener: OwnedFd, dir: PathBuf) -> io::Result<()> {
    let (main, jobs) = channel();
    let shim = Arc::new(Shim {
        sandbox: Sandbox::new(&dir),
        main,
        listener: UnixListener::from(listener),
        connections: Busy::default(),
        streams: Busy::default(),
        requests: Busy::default(),
    });
    let accepting = Arc::clone(&shim);
    spawn("accept", move || accepting.accept(&SandboxDir { dir }))?;
    shim.work(&jobs);
    shim.requests.wait_until_idle();
    // Clients take what the processes wrote, or go away themselves.
    shim.streams.wait_until_idle();
    Ok(())
}

impl Shim {
    fn work(&self, jobs: &Receiver<Job>) {
        loop {
            match jobs.recv_timeout(UNUSED_LIFE) {
                Ok(Job::Create(request, answer)) => {
                    let _ = answer.send(self.sandbox.create(*request));
                }
                Ok(Job::Leave) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    if !self.sandbox.is_used() && self.connections.count() == 0 {
                        tracing::warn!("nobody has asked for a sandbox: ending");
                        return;
                    }
                }
            }
        }
    }

    fn accept(self: &Arc<Self>, admission: &SandboxDir) {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                // It has been closed.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
                Err(error) => {
                    tracing::error!(%error, "no connection can be accepted");
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                }
            };
            if self.connections.count() >= MAX_CONNECTIONS || !admission.admits(stream.as_fd()) {
                continue;
            }
            let shim = Arc::clone(self);
            if let Err(error) = spawn("client", move || shim.serve(stream)) {
                tracing::error!(%error, "a connection cannot be served");
            }
        }
    }

    fn serve(self: &Arc<Self>, stream: UnixStream) {
        {
            let _one = self.connections.enter();
            if let Err(error) = relay::serve(self, stream) {
                tracing::warn!(%error, "a client is hung up on");
            }
        }
        // A daemon that died before it asked for anything leaves nothing behind.
        if self.connections.count() == 0 && !self.sandbox.is_used() {
            self.leave();
        }
    }

    /// Does what a request says.
    fn perform(&self, request: Request) -> Result<Response, Error> {
        let sandbox = &self.sandbox;
        match request {
            Request::Create(request) => {
                let (answer, answered) = channel();
                let _ = self.main.send(Job::Create(Box::new(request), answer));
                let gone = || Error::internal("the shim is ending");
                answered.recv().unwrap_or_else(|_| Err(gone()))
            }
            Request::Spawn(request) => sandbox.spawn(request),
            Request::Start(request) => sandbox.start(request),
            Request::Pid(request) => sandbox.pid(&request),
            Request::Signal(request) => sandbox.signal(request),
            Request::State => sandbox.life(),
            Request::Stats => sandbox.stats(),
            Request::Update(request) => sandbox.update(request),
            Request::Destroy(request) => sandbox.destroy(request),
            Request::Resize(_) | Request::Pause | Request::Resume | Request::Processes(_) => {
                sandbox.made()?.agent.call(request)
            }
            Request::Wait(_)
            | Request::Attach(_)
            | Request::StatPath(_)
            | Request::ReadPath(_)
            | Request::WritePath(_) => Err(Error::internal("this request is answered elsewhere")),
        }
    }

    /// From now on nobody who looks for this shim finds it.
    fn close(&self) {
        if let Err(error) = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both) {
            tracing::warn!(%error, "the socket cannot be closed");
        }
    }

    /// Ends the process once its requests and streams are done.
    fn leave(&self) {
        let _ = self.main.send(Job::Leave);
    }
}

/// Starts a thread.
fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    Builder::new()
        .name(name.into())
        .stack_size(STACK_BYTES)
        .spawn(work)
}

/// Counts what is under way.
#[derive(Default)]
struct Busy {
    count: Mutex<usize>,
    changed: Condvar,
}

impl Busy {
    fn enter(&self) -> Leave<'_> {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Leave(self)
    }

    fn count(&self) -> usize {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until_idle(&self) {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(count, |count| *count > 0));
    }
}

struct Leave<'a>(&'a Busy);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        *self.0.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.changed.notify_all();
    }
}
