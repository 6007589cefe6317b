//! The agent inside the guest: connections with it through the VMM's socket device, and the control connection.
//!
//! ```text
//!   shim                     vm/vsock.sock (the VMM's)          guest
//!     │ CONNECT 1024\n  ─────────▶ │ ─── vsock connection ──────▶ │ agent's listener
//!     │ ◀────────────── OK n\n     │                              │
//!     │ Hello, requests …  ◀──── one stream ────▶                 │
//! ```

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use caisson_protocol::{
    AGENT_PORT, Error, FrameDecoder, GENERATION, Hello, Outcome, Request, RequestFrame, Response,
    ResponseFrame, decode, encode,
};

use super::calls::{Calls, Lost};

/// A guest that is busy may take its time to accept.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest line of the socket's greeting.
const MAX_LINE_BYTES: usize = 200;

/// The agent.
pub struct Agent {
    vsock: PathBuf,
    calls: Arc<Calls<Outcome>>,
}

impl Agent {
    /// Opens the control connection through the VMM's socket. `lost` is called once it has ended.
    pub fn connect(vsock: &Path, lost: impl FnOnce() + Send + 'static) -> Result<Self, Error> {
        let (stream, decoder) = open(vsock)?;
        let understand = |frame: &[u8]| {
            let ResponseFrame { id, outcome } = decode(frame)?;
            Ok((id, outcome))
        };
        let calls =
            Calls::start(stream, decoder, understand, lost).map_err(|e| gone(&e.to_string()))?;
        Ok(Agent {
            vsock: vsock.to_path_buf(),
            calls,
        })
    }

    /// Asks and waits.
    pub fn call(&self, request: Request) -> Result<Response, Error> {
        self.call_within(request, None)
    }

    /// Asks and waits, but not longer than this.
    pub fn call_within(
        &self,
        request: Request,
        timeout: Option<Duration>,
    ) -> Result<Response, Error> {
        let frame = |id| encode(&RequestFrame { id, request });
        match self.calls.call(frame, timeout) {
            Ok(Outcome::Ok(response)) => Ok(response),
            Ok(Outcome::Error(error)) => Err(error),
            Err(Lost::Ended) => Err(gone("its connection has ended")),
            Err(Lost::Late) => Err(gone("it does not answer")),
            Err(Lost::Unsendable(why)) => {
                Err(Error::invalid(format!("the request cannot be sent: {why}")))
            }
        }
    }

    /// A new connection for a request that turns it into something else. Both greetings are over; what the decoder holds
    /// is the beginning of what comes next.
    pub fn open(&self) -> Result<(UnixStream, FrameDecoder), Error> {
        open(&self.vsock)
    }
}

/// Connects with the agent and greets it.
fn open(vsock: &Path) -> Result<(UnixStream, FrameDecoder), Error> {
    let greet = || -> io::Result<(UnixStream, FrameDecoder)> {
        let mut stream = dial(vsock, "CONNECT")?;
        let hello = Hello {
            generation: GENERATION,
            version: env!("CARGO_PKG_VERSION").into(),
            pid: None,
        };
        stream.write_all(&encode(&hello).map_err(io::Error::other)?)?;
        let mut decoder = FrameDecoder::default();
        let hello: Hello =
            decode(&read_frame(&mut stream, &mut decoder)?).map_err(io::Error::other)?;
        if hello.generation != GENERATION {
            return Err(io::Error::other(format!(
                "it is version {} and speaks generation {} of the protocol, the shim generation {GENERATION}",
                hello.version, hello.generation
            )));
        }
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        Ok((stream, decoder))
    };
    greet().map_err(|e| gone(&e.to_string()))
}

/// Waits until the agent has said that it is ready.
pub fn await_hello(vsock: &Path, timeout: Duration) -> io::Result<()> {
    dial_within(vsock, "ACCEPT", timeout).map(drop)
}

fn dial(vsock: &Path, verb: &str) -> io::Result<UnixStream> {
    dial_within(vsock, verb, DIAL_TIMEOUT)
}

/// Asks the VMM's socket device for a connection.
fn dial_within(vsock: &Path, verb: &str, timeout: Duration) -> io::Result<UnixStream> {
    let mut stream = super::short::connect(vsock)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.write_all(format!("{verb} {AGENT_PORT}\n").as_bytes())?;
    let line = read_line(&mut stream)?;
    if line.starts_with("OK ") {
        return Ok(stream);
    }
    let why = line.strip_prefix("ERROR ").unwrap_or(&line);
    Err(io::Error::other(if why.is_empty() {
        "the socket device hung up".into()
    } else {
        why.to_string()
    }))
}

/// A line without its end, byte by byte: what follows it belongs to someone else.
fn read_line(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < MAX_LINE_BYTES {
        match stream.read(&mut byte) {
            Ok(0) => break,
            Ok(_) if byte[0] == b'\n' => break,
            Ok(_) => line.push(byte[0]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// The next frame, whose beginning the decoder may hold.
pub fn read_frame(stream: &mut UnixStream, decoder: &mut FrameDecoder) -> io::Result<Vec<u8>> {
    let mut buffer = [0; 4 << 10];
    loop {
        if let Some(frame) = decoder.next_frame().map_err(io::Error::other)? {
            return Ok(frame);
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => decoder.feed(&buffer[..count]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn gone(why: &str) -> Error {
    Error::conflict(format!(
        "the agent in the container's virtual machine cannot be reached: {why}"
    ))
}
