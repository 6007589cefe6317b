//! The thread between the driver's queues and the server's socket.
//!
//! ```text
//! queue ─ pop ─▶ message, its unique replaced ─ send ─▶ server      full socket: kept until there is room, nothing popped
//!                      └ pending[slot]: head, writable part, the guest's unique
//! queue ◀─ give back ─ copy into the writable part ◀─ receive ─ server
//! ```
//!
//! A server that died, or said what is not an answer, is not asked any more: its requests fail with ENOTCONN.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use virtio_queue::QueueT;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::message::{self, ANSWER_HEADER, Kind, MESSAGE_MAX, REQUEST_HEADER};
use crate::error::{Error, Result};
use crate::virtio::Activation;
use crate::virtio::chain::{self, Buffers, Chain, Popped};
use crate::worker::Worker;

/// Headers, arguments and 32 pages both ways, with room.
const DESCRIPTORS_MAX: usize = 128;
/// Requests that the server may have at a time.
const PENDING_MAX: usize = 128;
/// How long a stop waits for answers; what is late then has failed.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Tokens: the kicks have their queues' numbers.
const STOP: u64 = 2;
const SERVER: u64 = 3;

/// What the thread owns.
pub struct Relay {
    pub activation: Activation,
    pub server: Server,
}

/// The connection and what has been asked over it.
pub struct Server {
    /// Each `read` and `write` is a message: it is a `SOCK_SEQPACKET` socket. `None` once it is dead.
    socket: Option<UnixStream>,
    pending: Vec<Option<Pending>>,
    free: Vec<usize>,
    /// Makes the numbers of requests differ, so that a late answer is not taken for another's.
    generation: u32,
    unsent: Option<Vec<u8>>,
    buffer: Vec<u8>,
}

struct Pending {
    generation: u32,
    queue: usize,
    head: u16,
    writable: Buffers,
    unique: u64,
}

impl Server {
    /// Takes the connection.
    pub fn new(socket: UnixStream) -> Result<Self> {
        socket
            .set_nonblocking(true)
            .map_err(Error::io("the connection with a file server"))?;
        Ok(Server {
            socket: Some(socket),
            pending: (0..PENDING_MAX).map(|_| None).collect(),
            free: (0..PENDING_MAX).collect(),
            generation: 0,
            unsent: None,
            buffer: vec![0; MESSAGE_MAX + 1],
        })
    }

    fn is_idle(&self) -> bool {
        self.free.len() == PENDING_MAX && self.unsent.is_none()
    }

    /// Whether another request may be taken from a queue.
    fn has_room(&self) -> bool {
        self.unsent.is_none() && !self.free.is_empty()
    }

    /// Watches for answers, and for room while something is unsent.
    fn watch(&self, epoll: &Epoll, operation: ControlOperation) -> Result<()> {
        let Some(socket) = &self.socket else {
            return Ok(());
        };
        let mut events = EventSet::IN;
        events.set(EventSet::OUT, self.unsent.is_some());
        let interest = EpollEvent::new(events, SERVER);
        epoll
            .ctl(operation, socket.as_raw_fd(), interest)
            .map_err(Error::io("epoll"))
    }

    /// Sends, or keeps for later.
    fn send(&mut self, message: Vec<u8>) {
        let Some(socket) = &mut self.socket else {
            return;
        };
        match socket.write(&message) {
            Ok(sent) if sent == message.len() => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                self.unsent = Some(message);
            }
            _ => self.socket = None,
        }
    }

    /// Notes a request; its number.
    fn note(&mut self, queue: usize, chain: Chain, unique: u64) -> Option<u64> {
        let slot = self.free.pop()?;
        self.generation = self.generation.wrapping_add(1);
        let Chain { head, writable, .. } = chain;
        self.pending[slot] = Some(Pending {
            generation: self.generation,
            queue,
            head,
            writable,
            unique,
        });
        Some(u64::from(self.generation) << 32 | slot as u64)
    }

    /// The request of this number, if it still waits.
    fn take(&mut self, number: u64) -> Option<Pending> {
        let slot = (number & 0xffff_ffff) as usize;
        let pending = self.pending.get_mut(slot)?;
        let is_it = |p: &mut Pending| u64::from(p.generation) == number >> 32;
        let taken = pending.take_if(is_it)?;
        self.free.push(slot);
        Some(taken)
    }
}

impl Relay {
    /// Serves the queues until it is stopped.
    pub fn spawn(self, name: &str) -> Result<Worker<Relay>> {
        Worker::<Relay>::spawn_loop(name, self, |relay, stop| relay.run(stop))
    }

    fn run(&mut self, stop: &EventFd) -> Result<()> {
        let epoll = Epoll::new().map_err(Error::io("epoll"))?;
        let watched = (stop, STOP);
        self.activation
            .watch(&epoll, watched, || ControlOperation::Add)?;
        self.server.watch(&epoll, ControlOperation::Add)?;
        let mut ready = [EpollEvent::default(); 8];
        let mut until: Option<Instant> = None;
        let mut waits_for_room = false;
        loop {
            self.receive()?;
            if let Some(message) = self.server.unsent.take() {
                self.server.send(message);
            }
            if until.is_none() {
                self.pop_all()?;
            }
            if self.server.socket.is_none() {
                // closing it has taken it out of the epoll set
                self.fail_all(libc::ENOTCONN)?;
            }
            if let Some(end) = until
                && (self.server.is_idle() || Instant::now() >= end)
            {
                return self.fail_all(libc::EIO);
            }
            if waits_for_room != self.server.unsent.is_some() {
                waits_for_room = !waits_for_room;
                self.server.watch(&epoll, ControlOperation::Modify)?;
            }
            let timeout_ms = if until.is_some() { 100 } else { -1 };
            let count = match epoll.wait(timeout_ms, &mut ready) {
                Ok(count) => count,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(Error::io("epoll")(e)),
            };
            for token in ready[..count].iter().map(EpollEvent::data) {
                match token {
                    STOP => {
                        until.get_or_insert_with(|| Instant::now() + STOP_PATIENCE);
                        // it would wake at once, again and again
                        drop(stop.read());
                    }
                    SERVER => {}
                    kick => drop(self.activation.kicks[kick as usize].read()),
                }
            }
        }
    }

    /// Passes on what waits in the queues, as long as there is room.
    fn pop_all(&mut self) -> Result<()> {
        for index in 0..self.activation.queues.len() {
            if !self.activation.queues[index].ready() {
                continue;
            }
            loop {
                let queue = &mut self.activation.queues[index];
                queue
                    .disable_notification(&self.activation.memory)
                    .map_err(chain::broken)?;
                while self.server.has_room() {
                    match chain::pop(
                        &mut self.activation.queues[index],
                        &self.activation.memory,
                        DESCRIPTORS_MAX,
                    )? {
                        None => break,
                        Some(Popped::Malformed(head)) => self.give_back(index, head, 0)?,
                        Some(Popped::Chain(chain)) => self.request(index, chain)?,
                    }
                }
                // without room an answer brings the thread back here
                let queue = &mut self.activation.queues[index];
                let more = queue
                    .enable_notification(&self.activation.memory)
                    .map_err(chain::broken)?;
                if !more || !self.server.has_room() {
                    break;
                }
            }
        }
        Ok(())
    }

    fn request(&mut self, queue: usize, chain: Chain) -> Result<()> {
        let head = chain.head;
        let len = chain.readable.len();
        let mut message = vec![0; len.min(MESSAGE_MAX as u64) as usize];
        let whole =
            len <= MESSAGE_MAX as u64 && chain.readable.read(&self.activation.memory, &mut message);
        let kind = message::kind(&message).filter(|_| whole);
        let unique = match message.len() {
            REQUEST_HEADER.. => message::unique(&message),
            _ => 0,
        };
        let fits = kind != Some(Kind::Answered) || chain.writable.len() >= ANSWER_HEADER as u64;
        let errno = match (kind, &self.server.socket) {
            (None, _) => libc::EINVAL,
            (_, None) => libc::ENOTCONN,
            _ if !fits => libc::EINVAL,
            (Some(Kind::Ignored), _) => return self.give_back(queue, head, 0),
            (Some(Kind::Unanswered), _) => {
                self.server.send(message);
                return self.give_back(queue, head, 0);
            }
            (Some(Kind::Answered), _) => {
                if let Some(number) = self.server.note(queue, chain, unique) {
                    message::set_unique(&mut message, number);
                    self.server.send(message);
                }
                return Ok(());
            }
        };
        let written = match chain.writable.len() {
            room if room < ANSWER_HEADER as u64 => 0,
            _ => chain
                .writable
                .write(&self.activation.memory, &message::error(errno, unique)),
        };
        self.give_back(queue, head, written as u32)
    }

    /// Takes all answers that are there.
    fn receive(&mut self) -> Result<()> {
        while let Some(socket) = &mut self.server.socket {
            let len = match socket.read(&mut self.server.buffer) {
                Ok(len @ 1..=MESSAGE_MAX) => len,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                _ => {
                    self.server.socket = None;
                    return Ok(());
                }
            };
            let Some(number) = message::answers(&self.server.buffer[..len]) else {
                self.server.socket = None;
                return Ok(());
            };
            // an answer to what nobody waits for any more is dropped
            let Some(pending) = self.server.take(number) else {
                continue;
            };
            let answer = &mut self.server.buffer[..len];
            message::set_unique(answer, pending.unique);
            let written = match pending.writable.len() {
                room if room < len as u64 => {
                    let error = message::error(libc::EIO, pending.unique);
                    pending.writable.write(&self.activation.memory, &error)
                }
                _ => pending.writable.write(&self.activation.memory, answer),
            };
            self.give_back(pending.queue, pending.head, written as u32)?;
        }
        Ok(())
    }

    /// Fails what the server has not answered.
    fn fail_all(&mut self, errno: i32) -> Result<()> {
        self.server.unsent = None;
        for slot in 0..PENDING_MAX {
            let Some(pending) = self.server.pending[slot].take() else {
                continue;
            };
            self.server.free.push(slot);
            let error = message::error(errno, pending.unique);
            let written = pending.writable.write(&self.activation.memory, &error);
            self.give_back(pending.queue, pending.head, written as u32)?;
        }
        Ok(())
    }

    fn give_back(&mut self, queue: usize, head: u16, written: u32) -> Result<()> {
        if chain::give_back(
            &mut self.activation.queues[queue],
            &self.activation.memory,
            head,
            written,
        )? {
            self.activation.interrupt.used()?;
        }
        Ok(())
    }
}
