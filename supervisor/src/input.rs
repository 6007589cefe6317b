//! A process' standard input: what its clients sent and it has not read yet.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;

use crate::STALL_BYTES;
use crate::poller::{Token, Watched};

/// The writing end of a process' standard input with its queue; closed for good when `pipe` is gone.
pub(crate) struct Input {
    pipe: Option<Watched>,
    queue: VecDeque<u8>,
    close_when_empty: bool,
}

impl Input {
    /// A process without standard input: everything is thrown away.
    pub(crate) fn none() -> Self {
        Input {
            pipe: None,
            queue: VecDeque::new(),
            close_when_empty: false,
        }
    }

    pub(crate) fn new(pipe: Watched) -> Self {
        Input {
            pipe: Some(pipe),
            ..Self::none()
        }
    }

    pub(crate) fn token(&self) -> Option<Token> {
        self.pipe.as_ref().map(Watched::token)
    }

    /// Whether clients may go on sending.
    pub(crate) fn has_room(&self) -> bool {
        self.queue.len() < STALL_BYTES
    }

    /// Queues what a client sent.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.pipe.is_some() && !self.close_when_empty {
            self.queue.extend(bytes);
            self.drain();
        }
    }

    /// No more will come: the process sees the end once it has read what is queued.
    pub(crate) fn close(&mut self) {
        self.close_when_empty = true;
        self.drain();
    }

    /// The process has ended.
    pub(crate) fn abandon(&mut self) {
        *self = Self::none();
    }

    /// Writes as much as the process takes without waiting.
    pub(crate) fn drain(&mut self) {
        let Some(pipe) = &mut self.pipe else { return };
        let outcome = loop {
            if self.queue.is_empty() {
                self.queue = VecDeque::new();
                break Ok(EpollFlags::empty());
            }
            match nix::unistd::write(pipe.as_fd(), self.queue.as_slices().0) {
                Ok(n) => drop(self.queue.drain(..n)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break Ok(EpollFlags::EPOLLOUT),
                // Nobody will read it.
                Err(errno) => break Err(io::Error::from(errno)),
            }
        };
        let watched = outcome.and_then(|interest| pipe.set_interest(interest));
        if watched.is_err() || (self.close_when_empty && self.queue.is_empty()) {
            self.abandon();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::poller::Poller;

    #[test]
    fn input_in_single_bytes_takes_no_more_than_its_bytes_and_arrives_whole() {
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let writer = std::os::fd::OwnedFd::from(writer);
        crate::process::set_nonblocking(&writer).expect("a pipe");
        let mut poller = Poller::new().expect("epoll");
        let mut input = Input::new(poller.watch(writer));
        let mut sent = 0;
        while input.has_room() {
            input.push(&[sent as u8]);
            sent += 1;
        }
        assert!(input.queue.capacity() <= 2 * STALL_BYTES);
        input.close();
        let reading = std::thread::spawn(move || {
            let mut came = Vec::new();
            reader.read_to_end(&mut came).expect("a pipe");
            came
        });
        while input.pipe.is_some() {
            input.drain();
        }
        let came = reading.join().expect("a thread");
        assert!(came.len() == sent && came.iter().enumerate().all(|(i, b)| *b == i as u8));
    }
}
