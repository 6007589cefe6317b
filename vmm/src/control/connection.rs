//! The control connection: frames in both directions, descriptors beside those that come in.

use std::collections::VecDeque;
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use caisson_protocol::{FrameDecoder, decode, encode};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Descriptors that may wait for their request.
const DESCRIPTORS_MAX: usize = 16;
/// Whoever does not read its answers is gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// One end of a connected stream socket.
pub struct Connection {
    socket: UnixStream,
    decoder: FrameDecoder,
    descriptors: VecDeque<OwnedFd>,
}

impl Connection {
    /// Over this socket.
    pub fn new(socket: UnixStream) -> Result<Self> {
        socket
            .set_nonblocking(false)
            .and_then(|()| socket.set_write_timeout(Some(PATIENCE)))
            .map_err(Error::io("the control connection"))?;
        Ok(Connection {
            socket,
            decoder: FrameDecoder::default(),
            descriptors: VecDeque::new(),
        })
    }

    /// For polling.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Waits for bytes and takes them; `false` when the other side has gone.
    pub fn receive(&mut self) -> Result<bool> {
        let mut bytes = [0; 16 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let count = loop {
            let mut buffers = [IoSliceMut::new(&mut bytes)];
            match recvmsg(
                &self.socket,
                &mut buffers,
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Ok(received) => break received.bytes,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::CONNRESET) => return Ok(false),
                Err(e) => return Err(Error::io("the control connection")(e.into())),
            }
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        if self.descriptors.len() > DESCRIPTORS_MAX {
            return Err(Error::Refused(
                "the control connection brings more descriptors than its requests take".into(),
            ));
        }
        self.decoder.feed(&bytes[..count]);
        Ok(count > 0)
    }

    /// The next whole frame that has been received.
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        let frame = self.decoder.next_frame().map_err(garbled)?;
        frame
            .map(|content| decode(&content))
            .transpose()
            .map_err(garbled)
    }

    /// The next descriptor that came with a request.
    pub fn descriptor(&mut self) -> Result<OwnedFd> {
        self.descriptors
            .pop_front()
            .ok_or_else(|| Error::Refused("the request lacks a descriptor".into()))
    }

    /// Sends a frame.
    pub fn send<T: Serialize>(&mut self, message: &T) -> Result<()> {
        let frame = encode(message).map_err(garbled)?;
        self.socket
            .write_all(&frame)
            .map_err(Error::io("the control connection"))
    }
}

fn garbled(error: caisson_protocol::ProtocolError) -> Error {
    Error::Spec(format!("on the control connection: {error}"))
}

#[cfg(test)]
mod tests {
    use caisson_protocol::vmm::{VmSpec, VmmRequestFrame};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_bytes_are_frames_or_an_error(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..64), 0..8)) {
            let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
            let mut connection = Connection::new(ours).expect("a connection");
            for (at, piece) in pieces.iter().enumerate() {
                // every other piece is a frame whose content is no message
                if at % 2 == 0 {
                    theirs.write_all(&(piece.len() as u32).to_le_bytes()).expect("a socket");
                }
                theirs.write_all(piece).expect("a socket");
            }
            drop(theirs);
            while connection.receive().expect("a socket") {
                let spec = connection.next::<VmSpec>();
                let request = connection.next::<VmmRequestFrame>();
                if spec.is_err() || request.is_err() {
                    break;
                }
            }
        }
    }

    #[test]
    fn descriptors_wait_for_their_request_and_not_too_many() {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let mut connection = Connection::new(ours).expect("a connection");
        assert!(connection.descriptor().is_err());
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
            let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
            let fds = [theirs.as_fd(); 8];
            control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds));
            let bytes = [std::io::IoSlice::new(b"x")];
            rustix::net::sendmsg(
                &theirs,
                &bytes,
                &mut control,
                rustix::net::SendFlags::empty(),
            )
            .expect("a socket");
        };
        send();
        assert!(connection.receive().expect("a socket"));
        assert!(connection.descriptor().is_ok());
        send();
        assert!(connection.receive().expect("a socket"));
        send();
        assert!(connection.receive().is_err(), "23 wait");
    }
}
