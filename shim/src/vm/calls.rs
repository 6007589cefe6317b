//! Requests over one connection, many at a time, by threads that wait for their answers.
//!
//! ```text
//!   call ─▶ number, pending[number] ─▶ connection ─▶ reader thread ─▶ pending[number] ─▶ answer
//! ```
//!
//! The same for the agent and for the VMM; what a frame says is theirs. The other side may be hostile: a frame has a limit,
//! an answer that nobody waits for is dropped.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use caisson_protocol::{FrameDecoder, ProtocolError};

/// Whoever does not take a request for so long is stuck.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The connection has ended.
    Ended,
    /// It did not come in time.
    Late,
    /// It cannot be sent.
    Unsendable(String),
}

/// One connection and who waits on it.
pub struct Calls<A> {
    writer: Mutex<UnixStream>,
    state: Mutex<State<A>>,
}

struct State<A> {
    next_id: u64,
    /// `None` once the connection has ended.
    pending: Option<HashMap<u64, Sender<A>>>,
}

impl<A: Send + 'static> Calls<A> {
    /// Over a connection on which nothing but answers comes any more; `decoder` may hold the first of them. `ended` is called
    /// once it has ended, by whichever side.
    pub fn start(
        stream: UnixStream,
        mut decoder: FrameDecoder,
        decode: impl Fn(&[u8]) -> Result<(u64, A), ProtocolError> + Send + 'static,
        ended: impl FnOnce() + Send + 'static,
    ) -> io::Result<Arc<Self>> {
        let mut reader = stream.try_clone()?;
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let calls = Arc::new(Calls {
            writer: Mutex::new(stream),
            state: Mutex::new(State {
                next_id: 1,
                pending: Some(HashMap::new()),
            }),
        });
        let ours = Arc::clone(&calls);
        super::spawn("calls", move || {
            if let Err(error) = ours.read(&mut reader, &mut decoder, decode) {
                tracing::warn!(%error, "a connection with the virtual machine ends");
            }
            ours.close();
            ended();
        })?;
        Ok(calls)
    }

    fn read(
        &self,
        reader: &mut UnixStream,
        decoder: &mut FrameDecoder,
        decode: impl Fn(&[u8]) -> Result<(u64, A), ProtocolError>,
    ) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        loop {
            while let Some(frame) = decoder.next_frame().map_err(io::Error::other)? {
                let (id, answer) = decode(&frame).map_err(io::Error::other)?;
                let waiting = self.state().pending.as_mut().and_then(|p| p.remove(&id));
                if let Some(sender) = waiting {
                    let _ = sender.send(answer);
                }
            }
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => decoder.feed(&buffer[..count]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Asks; the answer comes to the receiver, which hangs up if none will come.
    pub fn send(
        &self,
        frame: impl FnOnce(u64) -> Result<Vec<u8>, ProtocolError>,
    ) -> Result<Receiver<A>, Lost> {
        let (sender, receiver) = channel();
        let id = {
            let mut state = self.state();
            let id = state.next_id;
            state.next_id += 1;
            state
                .pending
                .as_mut()
                .ok_or(Lost::Ended)?
                .insert(id, sender);
            id
        };
        let forget = || {
            self.state().pending.as_mut().map(|p| p.remove(&id));
        };
        let bytes = frame(id).map_err(|e| {
            forget();
            Lost::Unsendable(e.to_string())
        })?;
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if writer.write_all(&bytes).is_err() {
            // Half a frame may be on its way: nothing that follows would be understood.
            let _ = writer.shutdown(Shutdown::Both);
            forget();
            return Err(Lost::Ended);
        }
        Ok(receiver)
    }

    /// Asks and waits for the answer.
    pub fn call(
        &self,
        frame: impl FnOnce(u64) -> Result<Vec<u8>, ProtocolError>,
        timeout: Option<Duration>,
    ) -> Result<A, Lost> {
        let receiver = self.send(frame)?;
        match timeout {
            None => receiver.recv().map_err(|_| Lost::Ended),
            Some(timeout) => receiver.recv_timeout(timeout).map_err(|e| match e {
                RecvTimeoutError::Timeout => Lost::Late,
                RecvTimeoutError::Disconnected => Lost::Ended,
            }),
        }
    }

    /// Ends the connection; whoever waits is told.
    pub fn close(&self) {
        self.state().pending = None;
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writer.shutdown(Shutdown::Both);
    }

    fn state(&self) -> MutexGuard<'_, State<A>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use caisson_protocol::{decode, encode};

    use super::*;

    type Frame = (u64, String);

    fn echo(mut stream: UnixStream, backwards: bool) {
        std::thread::spawn(move || {
            let (mut decoder, mut buffer, mut frames) =
                (FrameDecoder::default(), [0; 1000], Vec::new());
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                decoder.feed(&buffer[..count]);
                while let Some(frame) = decoder.next_frame().expect("a frame") {
                    frames.push(decode::<Frame>(&frame).expect("a request"));
                }
                if backwards && frames.len() < 2 {
                    continue;
                }
                for frame in frames.drain(..).rev() {
                    stream
                        .write_all(&encode(&frame).expect("short"))
                        .expect("written");
                }
            }
        });
    }

    fn calls(backwards: bool) -> Arc<Calls<String>> {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        echo(theirs, backwards);
        Calls::start(ours, FrameDecoder::default(), decode::<Frame>, || {}).expect("started")
    }

    #[test]
    fn answers_find_their_requests_in_any_order() {
        let calls = calls(true);
        let first = calls.send(|id| encode(&(id, "a"))).expect("sent");
        let second = calls.send(|id| encode(&(id, "b"))).expect("sent");
        assert_eq!(first.recv().as_deref(), Ok("a"));
        assert_eq!(second.recv().as_deref(), Ok("b"));
    }

    #[test]
    fn a_silent_side_is_late_and_a_gone_one_is_gone() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let calls = Calls::<String>::start(ours, FrameDecoder::default(), decode::<Frame>, || {})
            .expect("started");
        let soon = Some(Duration::from_millis(20));
        assert_eq!(calls.call(|id| encode(&(id, "a")), soon), Err(Lost::Late));
        let waiting = calls.send(|id| encode(&(id, "b"))).expect("sent");
        drop(theirs);
        assert!(waiting.recv().is_err());
        assert_eq!(calls.call(|id| encode(&(id, "c")), None), Err(Lost::Ended));
    }

    #[test]
    fn garbage_ends_the_connection() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let calls = Calls::<String>::start(ours, FrameDecoder::default(), decode::<Frame>, || {})
            .expect("started");
        let waiting = calls.send(|id| encode(&(id, "b"))).expect("sent");
        theirs.write_all(&u32::MAX.to_le_bytes()).expect("written");
        assert!(waiting.recv().is_err());
    }
}
