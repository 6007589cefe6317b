//! A client's side of a control connection: answers, from whichever thread has them.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use caisson_protocol::{Error, Outcome, Response, ResponseFrame, encode};
use serde::Serialize;

/// A client that does not take an answer for so long is hung up on.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a client's answers go.
pub struct Client {
    stream: Mutex<UnixStream>,
    gone: AtomicBool,
}

impl Client {
    /// Answers go into this connection.
    pub fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        Ok(Client {
            stream: Mutex::new(stream),
            gone: AtomicBool::new(false),
        })
    }

    /// Answers a request.
    pub fn answer(&self, id: u64, result: Result<Response, Error>) {
        let outcome = result.map_or_else(Outcome::Error, Outcome::Ok);
        self.send(&ResponseFrame { id, outcome });
    }

    /// Sends a frame; a client that cannot have it is hung up on, for it would wait for ever.
    pub fn send<T: Serialize>(&self, message: &T) {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = encode(message)
            .map_err(std::io::Error::other)
            .and_then(|frame| (&*stream).write_all(&frame));
        if let Err(error) = sent {
            if !self.gone.swap(true, Ordering::Relaxed) {
                tracing::debug!(%error, "a client is gone");
            }
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// It will not be told anything any more.
    pub fn leave(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    /// Whether it can be told anything.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }
}
