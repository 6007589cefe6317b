//! Noticing that the peer of a unix socket is gone, although it may have ended its writing half long before.
//!
//! A client that only half-closed (`docker attach --no-stdin` does at once) reads as end of file, like one that was killed.
//! The kernel tells them apart: `EPOLLHUP` comes when both halves are closed. Without this, an attachment to a silent
//! container would outlive its client.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches one connection: an epoll instance that only reports hangups (they are reported unasked), itself watched by
/// tokio, so that nothing wakes up for bytes or for the half-close.
pub struct Hangup(Option<AsyncFd<OwnedFd>>);

impl Hangup {
    /// Watches a socket for as long as it is open. When that cannot be had, nothing is noticed.
    pub fn of(socket: &impl AsFd) -> Self {
        let watch = || -> io::Result<AsyncFd<OwnedFd>> {
            let hangups = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            epoll::add(
                &hangups,
                socket,
                epoll::EventData::new_u64(0),
                epoll::EventFlags::empty(),
            )?;
            #[expect(
                deprecated,
                reason = "unsound only for descriptors that are closed while registered: this one is owned"
            )]
            AsyncFd::with_interest(hangups, Interest::READABLE)
        };
        Hangup(watch().ok())
    }

    /// For connections that cannot be watched.
    pub fn unnoticed() -> Self {
        Hangup(None)
    }

    /// Ends when the peer is gone.
    pub async fn wait(self) {
        if let Some(hangups) = self.0
            && hangups.readable().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    #[tokio::test]
    async fn a_half_close_is_no_hangup() {
        let (mut client, mut server) = UnixStream::pair().expect("socket pair");
        let mut gone = tokio::spawn(Hangup::of(&server).wait());
        client.write_all(b"x").await.expect("fits");
        client.shutdown().await.expect("half-close");
        let mut read = Vec::new();
        server.read_to_end(&mut read).await.expect("readable");
        let early = tokio::time::timeout(Duration::from_millis(50), &mut gone).await;
        assert!(early.is_err(), "the client still reads");
        drop(client);
        tokio::time::timeout(Duration::from_secs(5), gone)
            .await
            .expect("noticed")
            .expect("no panic");
    }
}
