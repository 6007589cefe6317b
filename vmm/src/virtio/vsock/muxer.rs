//! All connections of a guest: finds the one that a packet or an event of the host is for, and the next that has a packet for
//! the guest. Knows no queues.
//!
//! What a guest can make it hold is bounded: [`CONNECTIONS_MAX`] connections (of which only the host can cause new ones, by
//! CONNECT and ACCEPT), what each keeps for its host, and [`RESETS_MAX`] refusals; beyond these the guest's packets wait.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connection::{Connection, Outcome, Ports};
use super::host::{self, Host};
use super::packet::{HOST_CID, Header, Op, STREAM};
use crate::timing::{self, Phase};
use crate::virtio::slices::Slices;

/// Connections at once, with those whose guest is gone and whose host has not read everything yet.
pub const CONNECTIONS_MAX: usize = 1024;
/// RSTs that wait for a buffer of the guest.
const RESETS_MAX: usize = 256;
/// Where the ports begin that connections of the host come from.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// The listening socket's token; clients and connections have larger ones, never used again.
const LISTENER: u64 = 1 << 8;

/// What is counted.
#[derive(Default)]
#[allow(missing_docs)]
pub struct Counters {
    /// At this moment.
    pub connections: AtomicU64,
    /// By the guest.
    pub received_bytes: AtomicU64,
    pub sent_bytes: AtomicU64,
}

/// All connections.
pub struct Muxer {
    guest_cid: u64,
    epoll: Epoll,
    host: Host,
    connections: BTreeMap<u64, Connection>,
    by_ports: HashMap<Ports, u64>,
    /// Connections that have, or may have, a packet for the guest; each once.
    ready: VecDeque<u64>,
    resets: VecDeque<Header>,
    next_id: u64,
    next_port: u32,
    /// No deadline is earlier than this.
    alarm: Option<Instant>,
    counters: Arc<Counters>,
    /// Clients wait in the backlog.
    closed: bool,
}

impl Muxer {
    /// Nobody is connected yet.
    pub fn new(
        guest_cid: u32,
        listener: UnixListener,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let host = Host::new(listener)?;
        watch(&epoll, host.listener(), LISTENER)?;
        Ok(Muxer {
            guest_cid: u64::from(guest_cid),
            epoll,
            host,
            connections: BTreeMap::new(),
            by_ports: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            next_id: LISTENER + 1,
            next_port: FIRST_HOST_PORT,
            alarm: None,
            counters,
            closed: false,
        })
    }

    /// Where its descriptors are watched. Tokens below 256 are the caller's own.
    pub fn epoll(&self) -> &Epoll {
        &self.epoll
    }

    /// When [`Muxer::expire`] is to be called, at the latest.
    pub fn alarm(&self) -> Option<Instant> {
        self.alarm
    }

    /// The guest's packets must wait until it has taken some of ours.
    pub fn is_full(&self) -> bool {
        self.resets.len() >= RESETS_MAX
    }

    /// Whether [`Muxer::give`] has, or may have, a packet.
    pub fn has_packet(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// One of the watched descriptors is ready.
    pub fn happened(&mut self, token: u64, events: EventSet, now: Instant) {
        if let Some(connection) = self.connections.get_mut(&token) {
            let outcome = connection.happened(events);
            self.settle(token, outcome);
            return;
        }
        if token == LISTENER {
            self.host.may_accept();
        } else if let Some((stream, port)) = self.host.happened(token, events) {
            self.connect(token, stream, port, now);
        }
        self.accept(now);
    }

    /// Ends what has waited too long, if the alarm is due.
    pub fn expire(&mut self, now: Instant) {
        if self.alarm.is_none_or(|at| at > now) {
            return;
        }
        self.host.expire(now);
        let is_late = |c: &Connection| c.deadline().is_some_and(|at| at <= now);
        let late: Vec<u64> = self
            .connections
            .iter()
            .filter_map(|(id, c)| is_late(c).then_some(*id))
            .collect();
        for id in late {
            if let Some(connection) = self.connections.get_mut(&id) {
                let outcome = connection.expire();
                self.settle(id, outcome);
            }
        }
        self.accept(now);
        self.alarm_changed();
    }

    /// Takes a packet of the guest.
    pub fn take(&mut self, header: &Header, payload: Slices) {
        if header.src_cid != self.guest_cid {
            return;
        }
        if header.dst_cid != HOST_CID || header.kind != STREAM {
            return self.refuse(header);
        }
        let ports = Ports {
            guest: header.src_port,
            host: header.dst_port,
        };
        let Some(id) = self.by_ports.get(&ports).copied() else {
            return match Op::new(header.op) {
                Some(Op::Request) => self.request(ports, header),
                _ => self.refuse(header),
            };
        };
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let outcome = connection.receive(header, payload);
        if Op::new(header.op) == Some(Op::Data) && outcome == Outcome::Goes {
            let sent = &self.counters.sent_bytes;
            sent.fetch_add(u64::from(header.len), Ordering::Relaxed);
        }
        self.settle(id, outcome);
    }

    /// The next packet for the guest, its data in `payload`.
    pub fn give(&mut self, payload: &Slices, now: Instant) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        while let Some(id) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(&id) else {
                continue;
            };
            let filled = connection.fill(payload.clone(), now);
            let deadline = connection.deadline();
            connection.queued = false;
            self.settle(id, Outcome::Goes);
            if let Some(mut header) = filled {
                header.dst_cid = self.guest_cid;
                let received = &self.counters.received_bytes;
                received.fetch_add(u64::from(header.len), Ordering::Relaxed);
                self.alarm = self.alarm.into_iter().chain(deadline).min();
                return Some(header);
            }
        }
        None
    }

    /// The guest has forgotten its connections. Clients that wait go on waiting.
    pub fn disconnect(&mut self) {
        self.connections.clear();
        self.by_ports.clear();
        self.ready.clear();
        self.resets.clear();
        self.count();
        self.alarm_changed();
    }

    /// No client is taken until [`Muxer::open`].
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Clients are taken again.
    pub fn open(&mut self, now: Instant) {
        self.closed = false;
        self.accept(now);
    }

    /// The machine goes on after a pause: nobody is late.
    pub fn resume(&mut self, now: Instant) {
        for connection in self.connections.values_mut() {
            connection.resume(now);
        }
        self.alarm_changed();
    }

    /// Takes clients as long as there are some.
    fn accept(&mut self, now: Instant) {
        let epoll = &self.epoll;
        let id = &mut self.next_id;
        while !self.closed && self.host.accept(*id, now, |fd| watch(epoll, fd, *id)) {
            *id += 1;
        }
        self.alarm_changed();
    }

    fn connect(&mut self, id: u64, stream: UnixStream, port: u32, now: Instant) {
        if self.connections.len() >= CONNECTIONS_MAX {
            return host::refuse(&stream, "the guest has 1024 connections");
        }
        let mut ports = Ports {
            guest: port,
            host: self.next_port,
        };
        while self.by_ports.contains_key(&ports) {
            ports.host = ports.host.wrapping_add(1).max(FIRST_HOST_PORT);
        }
        self.next_port = ports.host.wrapping_add(1).max(FIRST_HOST_PORT);
        self.add(id, Connection::to_guest(ports, stream, now));
    }

    /// The guest asks for a connection.
    fn request(&mut self, ports: Ports, header: &Header) {
        if self.connections.len() >= CONNECTIONS_MAX {
            return self.refuse(header);
        }
        match self.host.waiting_for(ports.host) {
            Some((id, stream)) => {
                timing::reached(Phase::Agent);
                self.add(id, Connection::from_guest(ports, stream, header));
            }
            None => self.refuse(header),
        }
    }

    fn add(&mut self, id: u64, connection: Connection) {
        self.by_ports.insert(connection.ports(), id);
        self.connections.insert(id, connection);
        self.count();
        self.alarm_changed();
        self.settle(id, Outcome::Goes);
    }

    /// An RST for a packet that has no connection; never one for an RST.
    fn refuse(&mut self, header: &Header) {
        if header.op != Op::Reset as u16 {
            self.resets.push_back(header.refusal());
        }
    }

    /// Draws the conclusions after something has happened to a connection.
    fn settle(&mut self, id: u64, outcome: Outcome) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if outcome != Outcome::Goes {
            connection.drain();
            let ports = connection.ports();
            self.by_ports.remove(&ports);
            if outcome == Outcome::Reset {
                self.resets.push_back(Header {
                    src_cid: HOST_CID,
                    dst_cid: self.guest_cid,
                    src_port: ports.host,
                    dst_port: ports.guest,
                    kind: STREAM,
                    op: Op::Reset as u16,
                    ..Header::default()
                });
            }
        }
        if connection.finished() {
            self.connections.remove(&id);
            self.count();
        } else if !connection.queued && connection.has_packet() {
            connection.queued = true;
            self.ready.push_back(id);
        }
    }

    fn count(&self) {
        let connections = self.connections.len() as u64;
        let counter = &self.counters.connections;
        counter.store(connections, Ordering::Relaxed);
    }

    fn alarm_changed(&mut self) {
        let connections = self.connections.values().filter_map(Connection::deadline);
        self.alarm = connections.chain(self.host.deadline()).min();
    }
}

/// Watches a descriptor of the host for changes.
fn watch(epoll: &Epoll, fd: RawFd, token: u64) -> io::Result<()> {
    let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, token))
}
