//! One connection: a pair of ports on the guest's side, a unix stream on the host's.
//!
//! ```text
//!     the host says CONNECT                          the guest sends REQUEST, the host said ACCEPT
//!              │ REQUEST ▶                                       │ ◀ RESPONSE
//!              ▼                                                 ▼
//!         Connecting ──── RESPONSE ────────────────────────▶   Open   ◀─▶ data; SHUTDOWN of one direction
//!              │                                                 │ the host's end of both directions: SHUTDOWN ▶
//!    RST, or   │                                                 ▼
//!    30 s pass │                                              Closing: the guest owes an RST
//!              ▼                                                 │ it comes; or 30 s pass, and it gets one
//!      ERROR to the host      RST or SHUTDOWN of both,           ▼
//!                             from Open as well ──────────▶   Draining: the ports are free again; what the guest had
//!                                                                │ sent is still written to the host
//!                                                                ▼
//!                                                              finished
//! ```
//!
//! Credit: each header carries how much its sender can hold (`buf_alloc`) and how much its user took (`fwd_cnt`). The guest
//! may have [`BUFFER_MAX`] on its way to a host that does not read; what does not fit into the host's socket is kept here.
//! In the other direction nothing is kept: the host's socket is read only into a buffer of the guest, for as much as the
//! guest has credit for.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::EventSet;

use super::packet::{self, Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use crate::virtio::slices::{Slice, Slices};

/// What a connection holds for a host that does not read.
pub const BUFFER_MAX: usize = 256 << 10;
/// The guest is told of new room when there is so much of it.
const UPDATE_AFTER: u32 = BUFFER_MAX as u32 / 4;
/// How long the guest may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Ports {
    pub guest: u32,
    pub host: u32,
}

/// What the muxer is to do after something has happened to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing.
    Goes,
    /// The guest is to get an RST; for it the connection exists no more.
    Reset,
    /// The guest knows that the connection exists no more.
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting { asked: bool },
    Open,
    Closing,
    Draining,
}

/// One connection.
pub struct Connection {
    /// The muxer has it in its list of those that may have a packet.
    pub queued: bool,
    ports: Ports,
    stream: UnixStream,
    state: State,
    deadline: Option<Instant>,
    readable: bool,
    writable: bool,
    hung_up: bool,

    owes_response: bool,
    owes_credit: bool,
    told_shutdown: u32,

    /// From the guest to the host: what the host's socket did not take.
    kept: VecDeque<u8>,
    taken: u32,
    told_taken: u32,
    guest_sends: bool,
    told_host_end: bool,
    host_receives: bool,

    /// From the host to the guest.
    sent: u32,
    guest_room: u32,
    guest_taken: u32,
    asked_credit: bool,
    guest_receives: bool,
    host_sends: bool,
}

impl Connection {
    /// The host wants to be connected with a port of the guest.
    pub fn to_guest(ports: Ports, stream: UnixStream, now: Instant) -> Self {
        let mut connection = Self::new(ports, stream, State::Connecting { asked: false });
        connection.deadline = Some(now + PATIENCE);
        connection
    }

    /// The guest wants to be connected, and the host waits for it.
    pub fn from_guest(ports: Ports, stream: UnixStream, request: &Header) -> Self {
        let mut connection = Self::new(ports, stream, State::Open);
        connection.owes_response = true;
        connection.update_credit(request);
        connection.greet(ports.guest);
        connection
    }

    fn new(ports: Ports, stream: UnixStream, state: State) -> Self {
        Connection {
            queued: false,
            ports,
            stream,
            state,
            deadline: None,
            readable: true,
            writable: true,
            hung_up: false,
            owes_response: false,
            owes_credit: false,
            told_shutdown: 0,
            kept: VecDeque::new(),
            taken: 0,
            told_taken: 0,
            guest_sends: true,
            told_host_end: false,
            host_receives: true,
            sent: 0,
            guest_room: 0,
            guest_taken: 0,
            asked_credit: false,
            guest_receives: true,
            host_sends: true,
        }
    }

    /// Its ports.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// When [`Connection::expire`] is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Nothing is left to be done for either side.
    pub fn finished(&self) -> bool {
        self.state == State::Draining && self.kept.is_empty()
    }

    /// Whether [`Connection::fill`] has, or may have, a packet for the guest.
    pub fn has_packet(&self) -> bool {
        match self.state {
            State::Connecting { asked } => !asked,
            State::Open => {
                self.owes_response
                    || self.may_read()
                    || self.shutdown() & !self.told_shutdown != 0
                    || self.update_is_due()
            }
            State::Closing => self.update_is_due(),
            State::Draining => false,
        }
    }

    /// Its next packet for the guest; data is read into `payload`. The header lacks the context ids.
    pub fn fill(&mut self, payload: Slices, now: Instant) -> Option<Header> {
        if let State::Connecting { asked } = &mut self.state {
            return (!std::mem::replace(asked, true)).then(|| self.header(Op::Request, 0, 0));
        }
        if self.state == State::Draining {
            return None;
        }
        if std::mem::take(&mut self.owes_response) {
            return Some(self.header(Op::Response, 0, 0));
        }
        if self.state == State::Open && self.may_read() {
            let credit = self.credit();
            if credit == 0 {
                self.asked_credit = true;
                return Some(self.header(Op::CreditRequest, 0, 0));
            }
            let len = self.read(payload, credit);
            if len > 0 {
                return Some(self.header(Op::Data, len, 0));
            }
        }
        let shutdown = self.shutdown();
        if self.state == State::Open && shutdown & !self.told_shutdown != 0 {
            self.told_shutdown = shutdown;
            if shutdown == SHUTDOWN_BOTH {
                self.state = State::Closing;
                self.deadline = Some(now + PATIENCE);
            }
            return Some(self.header(Op::Shutdown, 0, shutdown));
        }
        (self.update_is_due()).then(|| self.header(Op::CreditUpdate, 0, 0))
    }

    /// A packet of the guest for this connection.
    pub fn receive(&mut self, header: &Header, payload: Slices) -> Outcome {
        self.update_credit(header);
        match (self.state, Op::new(header.op)) {
            (State::Draining, _) => Outcome::Goes,
            (State::Connecting { asked: true }, Some(Op::Response)) => {
                self.state = State::Open;
                self.deadline = None;
                self.greet(self.ports.guest);
                Outcome::Goes
            }
            (State::Connecting { .. }, Some(Op::Reset)) => {
                self.refuse("nobody listens on that port of the guest");
                Outcome::Ended
            }
            (State::Connecting { .. }, _) => {
                self.refuse("the guest did not answer as it should");
                Outcome::Reset
            }
            (_, Some(Op::Data)) => self.receive_data(header, payload),
            (_, Some(Op::Shutdown)) => self.guest_shuts(header.flags),
            (_, Some(Op::Reset)) => Outcome::Ended,
            (_, Some(Op::CreditUpdate)) => Outcome::Goes,
            (_, Some(Op::CreditRequest)) => {
                self.owes_credit = true;
                Outcome::Goes
            }
            (_, Some(Op::Request | Op::Response) | None) => Outcome::Reset,
        }
    }

    /// Something has happened to the host's socket.
    pub fn happened(&mut self, events: EventSet) -> Outcome {
        let hung_up = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        self.hung_up |= hung_up;
        self.readable |= hung_up || events.intersects(EventSet::IN | EventSet::READ_HANG_UP);
        if events.intersects(EventSet::OUT) || hung_up {
            self.writable = true;
            self.flush();
        }
        if matches!(self.state, State::Connecting { .. }) && self.hung_up {
            return Outcome::Reset;
        }
        if self.hung_up && !self.host_sends {
            self.host_left();
        }
        Outcome::Goes
    }

    /// The deadline has passed.
    pub fn expire(&mut self) -> Outcome {
        self.deadline = None;
        if matches!(self.state, State::Connecting { .. }) {
            self.refuse("the guest does not answer");
        }
        Outcome::Reset
    }

    /// The machine was paused: the guest's time to answer begins anew.
    pub fn resume(&mut self, now: Instant) {
        self.deadline = self.deadline.map(|_| now + PATIENCE);
    }

    /// For the guest the connection exists no more; what it sent before is still the host's.
    pub fn drain(&mut self) {
        self.deadline = None;
        self.state = State::Draining;
        self.flush();
    }

    fn header(&mut self, op: Op, len: usize, flags: u32) -> Header {
        self.owes_credit = false;
        self.told_taken = self.taken;
        Header {
            src_cid: packet::HOST_CID,
            dst_cid: 0,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len: len as u32,
            kind: packet::STREAM,
            op: op as u16,
            flags,
            buf_alloc: BUFFER_MAX as u32,
            fwd_cnt: self.taken,
        }
    }

    fn update_credit(&mut self, header: &Header) {
        self.guest_room = header.buf_alloc;
        self.guest_taken = header.fwd_cnt;
        // an answer without room is none: the guest says when there is some, asking again would only keep both busy
        self.asked_credit &= self.credit() == 0;
    }

    /// How much the guest can take.
    fn credit(&self) -> usize {
        let underway = self.sent.wrapping_sub(self.guest_taken);
        self.guest_room.saturating_sub(underway) as usize
    }

    fn update_is_due(&self) -> bool {
        self.owes_credit || self.taken.wrapping_sub(self.told_taken) >= UPDATE_AFTER
    }

    fn may_read(&self) -> bool {
        self.readable && self.host_sends && (!self.asked_credit || self.credit() > 0)
    }

    /// What the host does no more, as flags.
    fn shutdown(&self) -> u32 {
        let send = if self.host_sends { 0 } else { SHUTDOWN_SEND };
        let receive = if self.host_receives {
            0
        } else {
            SHUTDOWN_RECEIVE
        };
        send | receive
    }

    fn read(&mut self, mut payload: Slices, credit: usize) -> usize {
        payload.split_off(credit);
        if payload.len() == 0 {
            return 0;
        }
        match payload.read_from(&self.stream) {
            Ok(0) => self.host_sends = false,
            Ok(len) => {
                self.sent = self.sent.wrapping_add(len as u32);
                return len;
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => {
                self.host_sends = false;
                self.hung_up = true;
            }
        }
        if self.hung_up && !self.host_sends {
            self.host_left();
        }
        0
    }

    fn receive_data(&mut self, header: &Header, mut payload: Slices) -> Outcome {
        let len = header.len as usize;
        if !self.guest_sends || len > payload.len() || self.kept.len() + len > BUFFER_MAX {
            return Outcome::Reset;
        }
        payload.split_off(len);
        if !self.host_receives {
            self.took(len);
            return Outcome::Goes;
        }
        let mut written = 0;
        if self.kept.is_empty() && self.writable && len > 0 {
            match payload.write_to(&self.stream) {
                Ok(len) => written = len,
                Err(e) => self.write_failed(&e),
            }
        }
        self.took(written);
        let rest = payload.split_off(written);
        if self.host_receives {
            self.keep(rest);
            self.flush();
        } else {
            self.took(rest.len());
        }
        Outcome::Goes
    }

    fn keep(&mut self, data: Slices) {
        for slice in data {
            self.keep_slice(&slice);
        }
    }

    fn keep_slice(&mut self, slice: &Slice) {
        let mut piece = [0; 4096];
        let mut rest = *slice;
        while !rest.is_empty() {
            let len = rest.copy_to(&mut piece[..]);
            self.kept.extend(&piece[..len]);
            match rest.offset(len) {
                Ok(next) => rest = next,
                Err(_) => return,
            }
        }
    }

    fn took(&mut self, len: usize) {
        self.taken = self.taken.wrapping_add(len as u32);
    }

    /// Writes what is kept, as much as the host's socket takes; passes on the end of the guest's data behind it.
    fn flush(&mut self) {
        while self.writable && !self.kept.is_empty() {
            match (&self.stream).write(self.kept.as_slices().0) {
                Ok(len) => {
                    self.kept.drain(..len);
                    self.took(len);
                }
                Err(e) => self.write_failed(&e),
            }
        }
        if self.kept.is_empty() {
            self.kept = VecDeque::new();
            if !self.guest_sends && !std::mem::replace(&mut self.told_host_end, true) {
                // a host that has left is told nothing
                let _ = self.stream.shutdown(Shutdown::Write);
            }
        }
    }

    fn write_failed(&mut self, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::WouldBlock => self.writable = false,
            io::ErrorKind::Interrupted => {}
            _ => self.host_left(),
        }
    }

    /// The host receives no more: what is kept for it, or still comes, is dropped.
    fn host_left(&mut self) {
        self.host_receives = false;
        self.took(self.kept.len());
        self.kept = VecDeque::new();
    }

    fn guest_shuts(&mut self, flags: u32) -> Outcome {
        if flags & SHUTDOWN_RECEIVE != 0 && self.guest_receives {
            self.guest_receives = false;
            self.host_sends = false;
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        if flags & SHUTDOWN_SEND != 0 && self.guest_sends {
            self.guest_sends = false;
            self.flush();
        }
        if self.guest_receives || self.guest_sends {
            Outcome::Goes
        } else {
            Outcome::Reset
        }
    }

    /// Tells the host that the two are connected.
    fn greet(&mut self, port: u32) {
        if (&self.stream)
            .write_all(format!("OK {port}\n").as_bytes())
            .is_err()
        {
            self.host_left();
        }
    }

    /// Tells the host that they will not be.
    fn refuse(&mut self, reason: &str) {
        // it reads the end of the stream in any case
        let _ = (&self.stream).write_all(format!("ERROR {reason}\n").as_bytes());
    }
}

impl Drop for Connection {
    /// A unix socket that is closed with data in it gives the other side ECONNRESET where it expects the end.
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        let mut unread = [0; 16 << 10];
        for _ in 0..64 {
            match (&self.stream).read(&mut unread) {
                Ok(1..) => {}
                _ => return,
            }
        }
    }
}
