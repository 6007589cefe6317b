//! The epoll set and the descriptors in it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Names a watched descriptor; never used twice.
pub(crate) type Token = u64;

/// The epoll set.
pub(crate) struct Poller {
    epoll: Rc<Epoll>,
    next_token: Token,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Poller {
            epoll: Rc::new(epoll),
            next_token: 1,
        })
    }

    /// Takes a descriptor into care; it is in the set once it has an interest.
    pub(crate) fn watch(&mut self, fd: OwnedFd) -> Watched {
        let token = self.next_token;
        self.next_token += 1;
        Watched {
            epoll: Rc::clone(&self.epoll),
            fd,
            token,
            interest: EpollFlags::empty(),
        }
    }

    /// Waits for events; an interruption is no event.
    pub(crate) fn wait(
        &self,
        events: &mut [EpollEvent],
        timeout: Option<Duration>,
    ) -> io::Result<usize> {
        let timeout = match timeout {
            None => EpollTimeout::NONE,
            // Round up: waking before the deadline would spin.
            Some(d) => {
                EpollTimeout::try_from(d + Duration::from_micros(999)).unwrap_or(EpollTimeout::MAX)
            }
        };
        match self.epoll.wait(events, timeout) {
            Err(Errno::EINTR) => Ok(0),
            other => Ok(other?),
        }
    }
}

/// A descriptor and what the loop wants to hear of it. Leaves the set before it is closed: a held child may have a copy,
/// and the set would go on reporting it.
pub(crate) struct Watched {
    epoll: Rc<Epoll>,
    fd: OwnedFd,
    token: Token,
    interest: EpollFlags,
}

impl Watched {
    pub(crate) fn token(&self) -> Token {
        self.token
    }

    /// Changes the interest. Without any it leaves the set, for a hang-up would be reported over and over.
    pub(crate) fn set_interest(&mut self, interest: EpollFlags) -> io::Result<()> {
        if interest == self.interest {
            return Ok(());
        }
        let mut event = EpollEvent::new(interest, self.token);
        if interest.is_empty() {
            self.epoll.delete(&self.fd)?;
        } else if self.interest.is_empty() {
            self.epoll.add(&self.fd, event)?;
        } else {
            self.epoll.modify(&self.fd, &mut event)?;
        }
        self.interest = interest;
        Ok(())
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.interest.is_empty() {
            let _ = self.epoll.delete(&self.fd);
        }
    }
}
