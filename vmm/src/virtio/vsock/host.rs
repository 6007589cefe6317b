//! The host's side before a connection: whoever connects to the socket says in one line what it wants.
//!
//! ```text
//! accepted ──── a line within 5 s ───▶ CONNECT port: becomes a connection at once
//!     │                          └───▶ ACCEPT port: waits for a guest that connects to that port; the first comes first
//!     └──── a bad line, none in time: ERROR reason
//! ```
//!
//! Before the guest's driver is there nothing is accepted: the clients wait in the socket's backlog.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::EventSet;

use crate::virtio::sys;

/// Clients that are not connected; more wait in the backlog.
const CLIENTS_MAX: usize = 128;
/// Bytes of a line with its end.
const LINE_MAX: usize = 32;
/// How long a client may take to say its line.
const PATIENCE: Duration = Duration::from_secs(5);
/// When to try again after the host had no descriptor left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// To be connected with this port of the guest.
    Connect(u32),
    /// To be connected with the next that connects to this port of the host.
    Accept(u32),
}

/// The listening socket and the clients that are not connected yet.
pub struct Host {
    listener: UnixListener,
    may_accept: bool,
    accept_again: Option<Instant>,
    clients: BTreeMap<u64, Client>,
}

struct Client {
    stream: UnixStream,
    stage: Stage,
}

#[derive(Clone, Copy)]
enum Stage {
    Line { deadline: Instant },
    Waits { port: u32 },
}

impl Host {
    /// Takes over a listening socket.
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Host {
            listener,
            may_accept: true,
            accept_again: None,
            clients: BTreeMap::new(),
        })
    }

    /// To be watched for [`Host::may_accept`].
    pub fn listener(&self) -> RawFd {
        self.listener.as_raw_fd()
    }

    /// Somebody has connected.
    pub fn may_accept(&mut self) {
        self.may_accept = true;
    }

    /// Takes one client; `watch` is called with its descriptor.
    pub fn accept(
        &mut self,
        id: u64,
        now: Instant,
        watch: impl FnOnce(RawFd) -> io::Result<()>,
    ) -> bool {
        if !self.may_accept || self.clients.len() >= CLIENTS_MAX {
            return false;
        }
        match self.listener.accept() {
            Ok((stream, _)) => {
                let ready = stream
                    .set_nonblocking(true)
                    .and_then(|()| watch(stream.as_raw_fd()));
                if ready.is_ok() {
                    let deadline = now + PATIENCE;
                    let stage = Stage::Line { deadline };
                    self.clients.insert(id, Client { stream, stage });
                }
                true
            }
            Err(e) => {
                self.may_accept = false;
                if e.kind() != io::ErrorKind::WouldBlock {
                    self.accept_again = Some(now + ACCEPT_AGAIN);
                }
                false
            }
        }
    }

    /// Something has happened to a client: a `CONNECT` is returned and is a client no more.
    pub fn happened(&mut self, id: u64, events: EventSet) -> Option<(UnixStream, u32)> {
        let client = self.clients.get_mut(&id)?;
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            self.clients.remove(&id);
            return None;
        }
        if matches!(client.stage, Stage::Waits { .. }) {
            return None;
        }
        match read_line(&client.stream) {
            Line::NotYet => None,
            Line::Is(Ask::Connect(port)) => self.clients.remove(&id).map(|c| (c.stream, port)),
            Line::Is(Ask::Accept(port)) => {
                client.stage = Stage::Waits { port };
                None
            }
            Line::Bad(reason) => {
                refuse(&client.stream, reason);
                self.clients.remove(&id);
                None
            }
        }
    }

    /// The client that has waited longest for this port.
    pub fn waiting_for(&mut self, port: u32) -> Option<(u64, UnixStream)> {
        let waits = |c: &Client| matches!(c.stage, Stage::Waits { port: p } if p == port);
        let id = *self.clients.iter().find(|(_, c)| waits(c))?.0;
        self.clients.remove(&id).map(|client| (id, client.stream))
    }

    /// When [`Host::expire`] is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        let deadlines = self.clients.values().filter_map(|c| match c.stage {
            Stage::Line { deadline } => Some(deadline),
            Stage::Waits { .. } => None,
        });
        deadlines.chain(self.accept_again).min()
    }

    /// Drops who has said nothing for too long.
    pub fn expire(&mut self, now: Instant) {
        self.clients.retain(|_, client| match client.stage {
            Stage::Line { deadline } if deadline <= now => {
                refuse(&client.stream, "no line within five seconds");
                false
            }
            _ => true,
        });
        if self.accept_again.is_some_and(|at| at <= now) {
            self.accept_again = None;
            self.may_accept = true;
        }
    }
}

/// Says why a client is not connected.
pub fn refuse(mut stream: &UnixStream, reason: &str) {
    // it sees the end of the stream in any case
    let _ = stream.write_all(format!("ERROR {reason}\n").as_bytes());
}

enum Line {
    NotYet,
    Is(Ask),
    Bad(&'static str),
}

/// Reads a line if there is a whole one, and nothing of what follows it.
fn read_line(mut stream: &UnixStream) -> Line {
    let mut bytes = [0; LINE_MAX];
    let came = match sys::peek(stream.as_fd(), &mut bytes) {
        Ok(0) => return Line::Bad("no line"),
        Ok(came) => came,
        Err(_) => return Line::NotYet,
    };
    let Some(end) = bytes[..came].iter().position(|b| *b == b'\n') else {
        let whole = came == LINE_MAX;
        return if whole {
            Line::Bad("the line is longer than 32 bytes")
        } else {
            Line::NotYet
        };
    };
    if stream.read_exact(&mut bytes[..=end]).is_err() {
        return Line::Bad("the line cannot be read");
    }
    match parse(&bytes[..end]) {
        Some(ask) => Line::Is(ask),
        None => Line::Bad("not CONNECT or ACCEPT and a port"),
    }
}

fn parse(line: &[u8]) -> Option<Ask> {
    let (word, port) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    if !port.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let port = port.parse().ok()?;
    match word {
        "CONNECT" => Some(Ask::Connect(port)),
        "ACCEPT" => Some(Ask::Accept(port)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_word_and_a_port() {
        assert_eq!(parse(b"CONNECT 1024"), Some(Ask::Connect(1024)));
        assert_eq!(parse(b"ACCEPT 4294967295"), Some(Ask::Accept(u32::MAX)));
        for bad in [
            "CONNECT",
            "CONNECT ",
            "CONNECT -1",
            "CONNECT +1",
            "CONNECT 4294967296",
            "connect 1",
            "ACCEPT 1 ",
            "ACCEPT  1",
            "\u{fffd} 1",
            "",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn a_line_is_read_whole_and_nothing_behind_it() {
        let (mut client, stream) = UnixStream::pair().expect("a socket pair");
        stream.set_nonblocking(true).expect("a socket");
        assert!(matches!(read_line(&stream), Line::NotYet));
        client.write_all(b"ACCEPT 7").expect("room");
        assert!(matches!(read_line(&stream), Line::NotYet));
        client.write_all(b"\nhello").expect("room");
        assert!(matches!(read_line(&stream), Line::Is(Ask::Accept(7))));
        let mut rest = [0; 8];
        assert_eq!((&stream).read(&mut rest).expect("the rest"), 5);

        client.write_all(&[b'1'; LINE_MAX]).expect("room");
        assert!(matches!(read_line(&stream), Line::Bad(_)));
    }
}
