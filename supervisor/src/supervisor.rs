//! The loop: who is in the epoll set, and where each event goes.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use caisson_jail::cgroup::Cgroup;
use caisson_protocol::{
    Error, GENERATION, Hello, ProtocolError, RequestFrame, Response, Stream, decode,
};
use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{SockFlag, accept4};
use oci_spec::runtime::Spec;

use crate::connection::{Connection, Mode};
use crate::destroy::Destruction;
use crate::host::{Host, Life};
use crate::poller::{Poller, Token, Watched};
use crate::process::{ConnectionId, OUTPUTS, Process};

/// More connections than any daemon has; beyond them the newest is refused.
const MAX_CONNECTIONS: usize = 4096;

/// How long to wait when no connection can be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const READ_BYTES: usize = 64 << 10;

/// The sandbox once it has been made.
pub(crate) struct Sandbox {
    pub(crate) id: String,
    pub(crate) spec: Spec,
    pub(crate) rootfs: PathBuf,
    pub(crate) changes: Option<PathBuf>,
    pub(crate) cgroup: Cgroup,
    pub(crate) reaper: bool,
    pub(crate) paused: bool,
}

/// What an event belongs to.
#[derive(Clone)]
pub(crate) enum Source {
    Listener,
    Signals,
    Connection(ConnectionId),
    Output(Rc<str>, Stream),
    Input(Rc<str>),
}

/// Owns one sandbox and serves its clients.
pub struct Supervisor {
    pub(crate) host: Box<dyn Host>,
    pub(crate) poller: Poller,
    pub(crate) sources: HashMap<Token, Source>,
    listener: Option<Watched>,
    /// Out of descriptors: accept again then.
    accept_again_at: Option<Instant>,
    signals: SignalFd,
    _signals_watched: Watched,
    pub(crate) connections: BTreeMap<ConnectionId, Connection>,
    next_connection: ConnectionId,
    pub(crate) sandbox: Option<Sandbox>,
    pub(crate) processes: BTreeMap<Rc<str>, Process>,
    /// Ended execs, oldest first.
    pub(crate) ended: Vec<Rc<str>>,
    pub(crate) workers: Vec<nix::unistd::Pid>,
    pub(crate) destruction: Option<Destruction>,
    /// Leave the loop once everything has been written.
    pub(crate) leaving: bool,
    pub(crate) life: Life,
    unused_until: Option<Instant>,
    pub(crate) scratch: Vec<u8>,
}

impl Supervisor {
    /// Takes over a listening stream socket. Blocks `SIGCHLD` in this (single) thread and adopts orphans.
    pub fn new(listener: OwnedFd, host: Box<dyn Host>) -> io::Result<Self> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&mask), None)?;
        nix::sys::prctl::set_child_subreaper(true)?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;

        let mut poller = Poller::new()?;
        let mut sources = HashMap::new();
        let mut signals_watched = poller.watch(signals.as_fd().try_clone_to_owned()?);
        signals_watched.set_interest(EpollFlags::EPOLLIN)?;
        sources.insert(signals_watched.token(), Source::Signals);
        crate::process::set_nonblocking(&listener)?;
        let mut listener = poller.watch(listener);
        listener.set_interest(EpollFlags::EPOLLIN)?;
        sources.insert(listener.token(), Source::Listener);
        let life = host.life();
        Ok(Supervisor {
            host,
            poller,
            sources,
            listener: Some(listener),
            accept_again_at: None,
            signals,
            _signals_watched: signals_watched,
            connections: BTreeMap::new(),
            next_connection: 1,
            sandbox: None,
            processes: BTreeMap::new(),
            ended: Vec::new(),
            workers: Vec::new(),
            destruction: None,
            leaving: false,
            life,
            unused_until: life.unused.map(|unused| Instant::now() + unused),
            scratch: vec![0; READ_BYTES],
        })
    }

    /// Serves until the sandbox has been destroyed, or could not be made.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        while !self.is_finished() {
            let count = self.poller.wait(&mut events, self.next_deadline())?;
            for event in &events[..count] {
                if let Some(source) = self.sources.get(&event.data()).cloned() {
                    self.dispatch(source, event.events());
                }
            }
            self.meet_deadlines();
        }
        if self.life.farewell > Duration::ZERO {
            self.say_farewell()?;
        }
        Ok(())
    }

    /// Tells every client that nothing more will come, and waits a while for them to hang up.
    fn say_farewell(&mut self) -> io::Result<()> {
        let until = Instant::now() + self.life.farewell;
        self.close_listener();
        for id in self.connections.keys().copied().collect::<Vec<_>>() {
            self.farewell_to(id, Connection::end_writing);
        }
        let mut events = [EpollEvent::empty(); 64];
        while !self.connections.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!(clients = self.connections.len(), "not everyone has hung up");
                break;
            }
            let count = self.poller.wait(&mut events, Some(left))?;
            for event in &events[..count] {
                match self.sources.get(&event.data()).cloned() {
                    // Nothing is understood any more.
                    Some(Source::Connection(id)) => self.farewell_to(id, Connection::discard),
                    Some(other) => self.dispatch(other, event.events()),
                    None => {}
                }
            }
        }
        Ok(())
    }

    fn farewell_to(
        &mut self,
        id: ConnectionId,
        step: impl FnOnce(&mut Connection) -> io::Result<()>,
    ) {
        if let Some(connection) = self.connections.get_mut(&id)
            && (step(connection).is_err() || connection.read_ended)
        {
            self.drop_connection(id);
        }
    }

    fn is_finished(&self) -> bool {
        self.leaving
            && self
                .connections
                .values()
                .all(|c| c.outstanding_bytes() == 0)
    }

    fn next_deadline(&self) -> Option<Duration> {
        let unused = if self.sandbox.is_none() {
            self.unused_until
        } else {
            None
        };
        let cuts = self.processes.values().filter_map(|p| p.cut_at);
        let destruction = self.destruction.as_ref().map(|d| d.wake_at);
        let earliest = cuts
            .chain(unused)
            .chain(destruction)
            .chain(self.accept_again_at)
            .min()?;
        Some(earliest.saturating_duration_since(Instant::now()))
    }

    fn meet_deadlines(&mut self) {
        let now = Instant::now();
        if self.accept_again_at.is_some_and(|at| at <= now)
            && let Some(listener) = &mut self.listener
            && listener.set_interest(EpollFlags::EPOLLIN).is_ok()
        {
            self.accept_again_at = None;
        }
        let due: Vec<Rc<str>> = self
            .processes
            .values()
            .filter(|p| p.cut_at.is_some_and(|at| at <= now))
            .map(|p| Rc::clone(&p.id))
            .collect();
        for id in due {
            self.cut_attachments(&id);
        }
        if self.destruction.as_ref().is_some_and(|d| d.wake_at <= now) {
            self.continue_destruction();
        }
        if self.sandbox.is_none()
            && self.connections.is_empty()
            && self.unused_until.is_some_and(|at| at <= now)
        {
            tracing::warn!("nobody has asked for a sandbox: ending");
            self.leaving = true;
        } else if self.unused_until.is_some_and(|at| at <= now) {
            self.unused_until = None;
        }
    }

    fn dispatch(&mut self, source: Source, events: EpollFlags) {
        match source {
            Source::Listener => self.accept(),
            Source::Signals => {
                while let Ok(Some(_)) = self.signals.read_signal() {}
                self.reap();
            }
            Source::Connection(id) => self.connection_event(id, events),
            Source::Output(process, stream) => self.output_ready(&process, stream),
            Source::Input(process) => self.input_ready(&process),
        }
    }

    /// No connection is taken any more.
    pub(crate) fn close_listener(&mut self) {
        if let Some(listener) = self.listener.take() {
            self.sources.remove(&listener.token());
        }
    }

    /// The listener would be reported over and over while nothing can be accepted.
    fn listen_again_in(&mut self, pause: Duration) {
        if let Some(listener) = &mut self.listener
            && listener.set_interest(EpollFlags::empty()).is_ok()
        {
            self.accept_again_at = Some(Instant::now() + pause);
        }
    }

    fn accept(&mut self) {
        while let Some(listener) = &self.listener {
            let fd = match accept4(
                listener.as_fd().as_raw_fd(),
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            ) {
                Ok(raw) => crate::sys::own(raw),
                Err(Errno::EINTR | Errno::ECONNABORTED) => continue,
                Err(Errno::EAGAIN) => return,
                Err(errno) => {
                    tracing::error!(%errno, "no connection can be accepted");
                    self.listen_again_in(ACCEPT_PAUSE);
                    return;
                }
            };
            if self.connections.len() >= MAX_CONNECTIONS || !self.host.admits(fd.as_fd()) {
                continue;
            }
            let id = self.next_connection;
            self.next_connection += 1;
            let watched = self.poller.watch(fd);
            self.sources.insert(watched.token(), Source::Connection(id));
            self.connections.insert(id, Connection::new(watched));
            self.settle(id);
        }
    }

    fn connection_event(&mut self, id: ConnectionId, events: EpollFlags) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if events.intersects(EpollFlags::EPOLLOUT | EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
            connection.flush();
        }
        if events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR)
            && self.wants_input(id)
            && let Some(connection) = self.connections.get_mut(&id)
        {
            let mut buffer = std::mem::take(&mut self.scratch);
            let count = connection.read(&mut buffer);
            match &mut connection.mode {
                Mode::Attached(attached) => attached.decoder.feed(&buffer[..count]),
                _ => connection.frames.feed(&buffer[..count]),
            }
            self.scratch = buffer;
        }
        self.understand(id);
        self.settle(id);
    }

    /// Acts on everything that has been read from a connection, as far as there is room for the consequences.
    pub(crate) fn understand(&mut self, id: ConnectionId) {
        loop {
            match self.understand_one(id) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(%error, "a client is hung up on");
                    self.drop_connection(id);
                    return;
                }
            }
        }
    }

    /// Acts on one message or chunk; `false` when there is none, or no room for what it would cause.
    fn understand_one(&mut self, id: ConnectionId) -> Result<bool, ProtocolError> {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Ok(false);
        };
        if connection.closing {
            return Ok(false);
        }
        match connection.mode {
            Mode::Attached(_) => return self.understand_input(id),
            _ if !connection.has_room() => return Ok(false),
            Mode::Greeting => {
                let Some(frame) = connection.frames.next_frame()? else {
                    return Ok(false);
                };
                let hello: Hello = decode(&frame)?;
                connection.send(&Hello {
                    generation: GENERATION,
                    version: env!("CARGO_PKG_VERSION").into(),
                    pid: Some(std::process::id() as i32),
                });
                connection.closing = hello.generation != GENERATION;
                connection.mode = Mode::Requests { fresh: true };
            }
            Mode::Requests { fresh } => {
                let Some(frame) = connection.frames.next_frame()? else {
                    return Ok(false);
                };
                let RequestFrame {
                    id: request_id,
                    request,
                } = decode(&frame)?;
                connection.mode = Mode::Requests { fresh: false };
                if request.takes_connection() && !fresh {
                    let error = Error::invalid("this request must be the first of its connection");
                    self.answer(id, request_id, Err(error));
                } else {
                    self.handle(id, request_id, request);
                }
            }
        }
        Ok(true)
    }

    fn wants_input(&self, id: ConnectionId) -> bool {
        let Some(connection) = self.connections.get(&id) else {
            return false;
        };
        match &connection.mode {
            Mode::Attached(attached) => self
                .processes
                .get(&attached.process)
                .is_none_or(|p| p.input.has_room()),
            _ => connection.has_room(),
        }
    }

    /// Writes what can be written, notes what to wait for next, and drops the connection when it is over.
    pub(crate) fn settle(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.flush();
        if connection.read_ended && !matches!(connection.mode, Mode::Attached(_)) {
            // Answers may still be on their way to a client that closed its half only.
            connection.closing |= connection.outstanding_waits == 0;
        }
        let wants_input = self.wants_input(id);
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let over = connection.is_over()
            || connection
                .update_interest(wants_input && !connection.closing)
                .is_err();
        let process = match &connection.mode {
            Mode::Attached(attached) => Some(Rc::clone(&attached.process)),
            _ => None,
        };
        if over {
            self.drop_connection(id);
        }
        if let Some(process) = process {
            self.unstall(&process);
        }
    }

    pub(crate) fn drop_connection(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.remove(&id) else {
            return;
        };
        self.sources.remove(&connection.watched.token());
        for process in self.processes.values_mut() {
            process.waiters.retain(|(waiting, _)| *waiting != id);
        }
        if let Mode::Attached(attached) = &connection.mode {
            self.detach(id, attached);
        }
        // A daemon that died before it asked for anything leaves nothing behind.
        if self.sandbox.is_none() && self.connections.is_empty() && self.life.unused.is_some() {
            self.leaving = true;
        }
    }

    /// Answers a request.
    pub(crate) fn answer(
        &mut self,
        connection: ConnectionId,
        request_id: u64,
        result: Result<Response, caisson_protocol::Error>,
    ) {
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.answer(request_id, result);
        }
    }

    pub(crate) fn forget_sources(&mut self, tokens: impl Iterator<Item = Token>) {
        for token in tokens {
            self.sources.remove(&token);
        }
    }

    pub(crate) fn register_process(&mut self, process: Process) {
        for (output, stream) in process.outputs.iter().zip(OUTPUTS) {
            if let Some(output) = output {
                self.sources.insert(
                    output.token(),
                    Source::Output(Rc::clone(&process.id), stream),
                );
            }
        }
        if let Some(token) = process.input.token() {
            self.sources
                .insert(token, Source::Input(Rc::clone(&process.id)));
        }
        self.processes.insert(Rc::clone(&process.id), process);
    }
}

impl Drop for Supervisor {
    /// Whatever made the loop end, nothing of the sandbox stays.
    fn drop(&mut self) {
        self.release_everything();
    }
}
