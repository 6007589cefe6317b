//! One client connection: bytes in, bytes out, and what the connection has become.
//!
//! ```text
//!   Greeting ── Hello ──▶ Requests ──┬─ attach ──▶ Attached
//!                                    └─ *_path ──▶ (handed to a worker, gone from here)
//! ```
//!
//! Must not know: what the requests mean.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;

use caisson_protocol::{
    Attach, ChunkDecoder, Error, FrameDecoder, Outcome, Response, ResponseFrame, Stream,
    chunk_header, encode,
};
use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{Shutdown, shutdown};
use serde::Serialize;

use crate::STALL_BYTES;
use crate::poller::Watched;

/// A client that has so many unanswered requests is not listening.
pub(crate) const MAX_OUTSTANDING_WAITS: usize = 4096;

/// What a connection has become.
pub(crate) enum Mode {
    /// Nothing but a greeting is understood.
    Greeting,
    /// Requests; none has been taken yet while `fresh`.
    Requests { fresh: bool },
    /// A process' streams.
    Attached(Attached),
}

/// An attachment, seen from its connection.
pub(crate) struct Attached {
    pub(crate) process: Rc<str>,
    pub(crate) streams: Attach,
    pub(crate) decoder: ChunkDecoder,
    /// The client has ended its part of standard input, or never had one.
    pub(crate) stdin_ended: bool,
    /// End marks sent for standard output and standard error.
    pub(crate) ended: [bool; 2],
    /// See [`caisson_protocol::AttachRequest::journal`].
    pub(crate) journal: bool,
}

/// One client connection.
pub(crate) struct Connection {
    pub(crate) watched: Watched,
    pub(crate) mode: Mode,
    pub(crate) frames: FrameDecoder,
    outbox: VecDeque<(Rc<[u8]>, usize)>,
    outbox_bytes: usize,
    /// Nothing more can be read.
    pub(crate) read_ended: bool,
    /// Nothing more can be written: the client is gone.
    pub(crate) write_ended: bool,
    /// Close once everything has been written.
    pub(crate) closing: bool,
    /// `wait` requests not answered yet.
    pub(crate) outstanding_waits: usize,
}

impl Connection {
    pub(crate) fn new(watched: Watched) -> Self {
        Connection {
            watched,
            mode: Mode::Greeting,
            frames: FrameDecoder::default(),
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            read_ended: false,
            write_ended: false,
            closing: false,
            outstanding_waits: 0,
        }
    }

    /// Bytes the client has not taken yet.
    pub(crate) fn outstanding_bytes(&self) -> usize {
        self.outbox_bytes
    }

    /// Answers a request. What is too long to be sent becomes an error, and only of this request.
    pub(crate) fn answer(&mut self, id: u64, result: Result<Response, Error>) {
        let outcome = result.map_or_else(Outcome::Error, Outcome::Ok);
        match encode(&ResponseFrame { id, outcome }) {
            Ok(bytes) => self.push(bytes.into()),
            Err(why) => {
                let outcome = Outcome::Error(Error::failed("the answer cannot be sent", why));
                self.send(&ResponseFrame { id, outcome });
            }
        }
    }

    /// Queues a frame. A message too long to be sent ends the connection: the client would wait for ever.
    pub(crate) fn send<T: Serialize>(&mut self, message: &T) {
        match encode(message) {
            Ok(bytes) => self.push(bytes.into()),
            Err(error) => {
                tracing::error!(%error, "an answer could not be sent");
                self.closing = true;
            }
        }
    }

    /// Queues bytes as they are.
    pub(crate) fn push(&mut self, bytes: Rc<[u8]>) {
        if !self.write_ended {
            self.outbox_bytes += bytes.len();
            self.outbox.push_back((bytes, 0));
        }
    }

    /// Queues the end mark of an output stream, once.
    pub(crate) fn end_stream(&mut self, stream: Stream) {
        let Mode::Attached(attached) = &mut self.mode else {
            return;
        };
        let index = usize::from(stream == Stream::Stderr);
        if !std::mem::replace(&mut attached.ended[index], true) {
            self.push(chunk_header(stream, 0).as_slice().into());
        }
    }

    /// Writes as much as the client takes without waiting.
    pub(crate) fn flush(&mut self) {
        while let Some((bytes, written)) = self.outbox.front_mut() {
            match nix::unistd::write(self.watched.as_fd(), &bytes[*written..]) {
                Ok(n) => {
                    *written += n;
                    self.outbox_bytes -= n;
                    if *written == bytes.len() {
                        self.outbox.pop_front();
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(_) => {
                    self.write_ended = true;
                    self.outbox.clear();
                    self.outbox_bytes = 0;
                }
            }
        }
    }

    /// Reads once. `Ok(0)` also when there is nothing now; the end is noted in `read_ended`.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> usize {
        loop {
            match nix::unistd::read(self.watched.as_fd(), buffer) {
                Ok(0) => self.read_ended = true,
                Ok(n) => return n,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => {}
                Err(_) => {
                    self.read_ended = true;
                    self.write_ended = true;
                    self.outbox.clear();
                    self.outbox_bytes = 0;
                }
            }
            return 0;
        }
    }

    /// Tells the client that nothing more will come, and listens for its hanging up only.
    pub(crate) fn end_writing(&mut self) -> io::Result<()> {
        shutdown(self.watched.as_fd().as_raw_fd(), Shutdown::Write)?;
        self.write_ended = true;
        self.outbox.clear();
        self.outbox_bytes = 0;
        self.watched.set_interest(EpollFlags::EPOLLIN)
    }

    /// Takes what the client still sends, and forgets it.
    pub(crate) fn discard(&mut self) -> io::Result<()> {
        self.read(&mut [0; 4096]);
        Ok(())
    }

    /// Whether more of the client's requests may be taken now.
    pub(crate) fn has_room(&self) -> bool {
        self.outbox_bytes < STALL_BYTES
            && self.outstanding_waits < MAX_OUTSTANDING_WAITS
            && !self.closing
    }

    /// Tells the loop what this connection waits for.
    pub(crate) fn update_interest(&mut self, wants_input: bool) -> io::Result<()> {
        let mut interest = EpollFlags::empty();
        if wants_input && !self.read_ended {
            interest |= EpollFlags::EPOLLIN;
        }
        if !self.outbox.is_empty() {
            interest |= EpollFlags::EPOLLOUT;
        }
        self.watched.set_interest(interest)
    }

    /// Whether nothing will happen on it any more.
    pub(crate) fn is_over(&self) -> bool {
        (self.closing && self.outbox.is_empty()) || (self.read_ended && self.write_ended)
    }

    /// Gives up the connection: its descriptor, what was read and not understood yet, what has still to be written.
    pub(crate) fn into_parts(mut self) -> io::Result<(OwnedFd, Vec<u8>, Vec<u8>)> {
        let unwritten = self
            .outbox
            .iter()
            .flat_map(|(bytes, written)| bytes[*written..].iter().copied())
            .collect();
        self.watched.set_interest(EpollFlags::empty())?;
        let fd = self.watched.as_fd().try_clone_to_owned()?;
        Ok((fd, self.frames.take_rest(), unwritten))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use caisson_protocol::{MAX_MESSAGE_BYTES, ProcessTable, decode};

    use super::*;
    use crate::poller::Poller;

    #[test]
    fn an_answer_that_is_too_long_is_an_error_and_the_connection_stays() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        let mut poller = Poller::new().expect("epoll");
        let mut connection = Connection::new(poller.watch(ours.into()));
        let rows = vec![vec!["x".repeat(MAX_MESSAGE_BYTES)]];
        let titles = vec!["CMD".into()];
        connection.answer(7, Ok(Response::Processes(ProcessTable { titles, rows })));
        assert!(!connection.closing);
        connection.flush();
        drop(connection);
        let mut bytes = Vec::new();
        theirs.read_to_end(&mut bytes).expect("a frame");
        let mut decoder = FrameDecoder::default();
        decoder.feed(&bytes);
        let frame = decoder.next_frame().expect("well-formed").expect("whole");
        let answer: ResponseFrame = decode(&frame).expect("an answer");
        assert_eq!(answer.id, 7);
        assert!(matches!(answer.outcome, Outcome::Error(_)));
    }
}
