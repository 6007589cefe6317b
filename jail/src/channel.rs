//! The line between the caller and the process it is setting up: a SEQPACKET socket pair, one JSON message per packet,
//! now and then a descriptor.
//!
//! ```text
//! init  ── Relayed(pid) ──▶ caller     (from the relay, if there is one)
//! init  ── MapIds ────────▶ caller ── Go ──▶ init
//! init  ── RunHooks ──────▶ caller ── Go ──▶ init
//! init  ── Ready + pty ───▶ caller          (held before exec)
//!          caller ── Go ──▶ init            (Gate::Pipe) ── exec: end of stream, or Failed
//! ```
//! Must not know: what any message makes anybody do.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};

/// From the process being set up.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromChild {
    /// The relay has made the process; its id where the caller is.
    Relayed(i32),
    /// It is in a new user namespace and waits for its id maps.
    MapIds,
    /// The namespaces and mounts are there: time for prestart and createRuntime hooks.
    RunHooks,
    /// Everything is done but the exec. Carries the pty master, if any.
    Ready {
        /// Places in the list of resource limits that the caller has to set.
        limits: Vec<usize>,
    },
    /// It gave up.
    Failed(Error),
}

/// To the process being set up: go on.
const GO: &[u8] = b"go";

/// A message never comes near this size; an error text that would is cut.
const MESSAGE_MAX: usize = 32 * 1024;

/// One end.
#[derive(Debug)]
pub(crate) struct Channel {
    fd: OwnedFd,
    /// Messages of init that overtook the relay's.
    early: VecDeque<Packet>,
}

type Packet = (FromChild, Option<OwnedFd>);

impl Channel {
    /// Both ends, close-on-exec.
    pub(crate) fn pair() -> Result<(Channel, Channel)> {
        let (a, b) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .step("create socket pair")?;
        Ok((Channel::new(a), Channel::new(b)))
    }

    fn new(fd: OwnedFd) -> Channel {
        Channel {
            fd,
            early: VecDeque::new(),
        }
    }

    /// A second handle on the same end.
    pub(crate) fn try_clone(&self) -> Result<Channel> {
        self.fd
            .try_clone()
            .step("duplicate a socket")
            .map(Channel::new)
    }

    /// Sends, from the child's end.
    pub(crate) fn send(&self, message: &FromChild, fd: Option<&OwnedFd>) -> Result<()> {
        let bytes =
            serde_json::to_vec(message).map_err(|e| Error::invalid(format!("message: {e}")))?;
        let bytes = &bytes[..bytes.len().min(MESSAGE_MAX)];
        let fds: Vec<RawFd> = fd.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
        sendmsg::<()>(
            self.fd.as_raw_fd(),
            &[IoSlice::new(bytes)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .step("report to the caller")?;
        Ok(())
    }

    /// Receives, at the caller's end. `None` when the other side is gone.
    pub(crate) fn receive(&mut self) -> Result<Option<Packet>> {
        match self.early.pop_front() {
            Some(packet) => Ok(Some(packet)),
            None => self.receive_packet(),
        }
    }

    /// Receives the relay's word: `Relayed`, or `Failed`. Init may already be talking; that is kept for [`Channel::receive`].
    pub(crate) fn receive_relayed(&mut self) -> Result<Option<FromChild>> {
        loop {
            match self.receive_packet()? {
                Some((relayed @ FromChild::Relayed(_), _)) => return Ok(Some(relayed)),
                Some(packet) => self.early.push_back(packet),
                None => return Ok(self.early.pop_front().map(|(message, _)| message)),
            }
        }
    }

    fn receive_packet(&self) -> Result<Option<Packet>> {
        let mut buffer = vec![0u8; MESSAGE_MAX];
        let mut control = cmsg_space!([RawFd; 1]);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let received = loop {
            match recvmsg::<()>(
                self.fd.as_raw_fd(),
                &mut slices,
                Some(&mut control),
                MsgFlags::MSG_CMSG_CLOEXEC,
            ) {
                Err(Errno::EINTR) => continue,
                // The other end died with our message unread.
                Err(Errno::ECONNRESET) => return Ok(None),
                other => break other.step("receive from the container's process")?,
            }
        };
        let length = received.bytes;
        let mut fd = None;
        for message in received
            .cmsgs()
            .step("receive from the container's process")?
        {
            if let ControlMessageOwned::ScmRights(fds) = message {
                fd = fds.into_iter().map(crate::sys::adopt).next_back();
            }
        }
        if length == 0 {
            return Ok(None);
        }
        let message = serde_json::from_slice(&buffer[..length]).map_err(|e| Error::Died {
            during: "set-up".into(),
            why: format!("it sent something unreadable: {e}"),
        })?;
        Ok(Some((message, fd)))
    }

    /// Lets the other side go on.
    pub(crate) fn go(&self) -> Result<()> {
        sendmsg::<()>(
            self.fd.as_raw_fd(),
            &[IoSlice::new(GO)],
            &[],
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .step("release the container's process")?;
        Ok(())
    }

    /// Waits for [`Channel::go`]. An error means that the caller is gone.
    pub(crate) fn wait_go(&self) -> Result<()> {
        let mut buffer = [0u8; 16];
        let length = loop {
            match rustix::io::read(&self.fd, &mut buffer) {
                Err(rustix::io::Errno::INTR) => continue,
                other => break other.step("wait for the caller")?,
            }
        };
        if &buffer[..length] == GO {
            return Ok(());
        }
        Err(Error::Died {
            during: "set-up".into(),
            why: "the caller is gone".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_and_its_descriptor_arrive_and_the_end_is_seen() {
        let (mut ours, theirs) = Channel::pair().expect("pair");
        let (fd, _other) = nix::unistd::pipe().expect("pipe");
        theirs
            .send(&FromChild::Ready { limits: vec![1] }, Some(&fd))
            .expect("sends");
        theirs
            .send(&FromChild::Failed(Error::invalid("x")), None)
            .expect("sends");
        drop(theirs);
        assert!(matches!(
            ours.receive().expect("receives"),
            Some((FromChild::Ready { .. }, Some(_)))
        ));
        assert!(
            matches!(ours.receive().expect("receives"), Some((FromChild::Failed(e), None)) if e == Error::invalid("x"))
        );
        assert!(ours.receive().expect("receives").is_none());
    }
}
