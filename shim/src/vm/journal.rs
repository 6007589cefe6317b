//! The journal of one process: its output into the log and, behind it, its exit status.
//!
//! ```text
//!   agent ── Stdout*, Stderr* ──▶ JsonLog
//!         ── Status ─────────────▶ log flushed ─▶ exit record ─▶ waits answered
//!         ── more output of what the process left behind ─▶ JsonLog ─ its end
//! ```
//!
//! Opened before anyone is told that the process exists, so nothing is missed. What comes is the guest's: chunks have a limit,
//! everything else about them is only text.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use caisson_protocol::{
    Attach, AttachRequest, ChunkDecoder, Error, FrameDecoder, LogFile, Outcome, Request,
    RequestFrame, Response, ResponseFrame, Stream, decode, encode,
};
use caisson_supervisor::{Log, LogStream};

use super::agent::read_frame;
use super::processes::Processes;
use crate::json_log::JsonLog;

/// A journal that has been agreed on.
pub struct Journal {
    stream: UnixStream,
    chunks: ChunkDecoder,
    log: Option<JsonLog>,
}

/// Opens the log, if one is to be kept. Before the process is made: it must not run unlogged.
pub fn open_log(file: Option<&LogFile>) -> Result<Option<JsonLog>, Error> {
    let Some(file) = file else { return Ok(None) };
    let log = JsonLog::open(file)
        .map_err(|e| Error::failed(format!("cannot open the log {}", file.path.display()), e))?;
    Ok(Some(log))
}

impl Journal {
    /// Turns a fresh connection with the agent into the journal of a process.
    pub fn open(
        process: &str,
        log: Option<JsonLog>,
        connection: (UnixStream, FrameDecoder),
    ) -> Result<Self, Error> {
        let (mut stream, mut decoder) = connection;
        let request = Request::Attach(AttachRequest {
            process: process.into(),
            streams: Attach {
                stdin: false,
                stdout: log.is_some(),
                stderr: log.is_some(),
            },
            journal: true,
        });
        let ask = || -> io::Result<Outcome> {
            let frame = encode(&RequestFrame { id: 1, request }).map_err(io::Error::other)?;
            stream.write_all(&frame)?;
            let frame = read_frame(&mut stream, &mut decoder)?;
            let answer: ResponseFrame = decode(&frame).map_err(io::Error::other)?;
            Ok(answer.outcome)
        };
        match ask() {
            Ok(Outcome::Ok(_)) => Ok(Journal {
                chunks: ChunkDecoder::with_rest(decoder.take_rest()),
                stream,
                log,
            }),
            Ok(Outcome::Error(error)) => Err(error),
            Err(e) => Err(Error::failed(
                format!("the journal of process {process} cannot be opened"),
                e,
            )),
        }
    }

    /// The connection, for hanging up on it.
    pub fn handle(&self) -> io::Result<UnixStream> {
        self.stream.try_clone()
    }

    /// Keeps it to its end. Whether the process' end was told.
    pub fn keep(mut self, process: &str, processes: &Arc<Processes>) -> bool {
        let mut told = false;
        let mut buffer = vec![0; 64 << 10];
        let result = loop {
            match self.chunks.next_chunk() {
                Ok(Some(chunk)) => match chunk.stream {
                    Stream::Stdout => self.write(LogStream::Stdout, &chunk.bytes),
                    Stream::Stderr => self.write(LogStream::Stderr, &chunk.bytes),
                    Stream::Status => {
                        if let Some(log) = &mut self.log {
                            log.flush();
                        }
                        match serde_json::from_slice(&chunk.bytes) {
                            Ok(Outcome::Ok(Response::Exited(status))) => {
                                processes.exited(process, status.code, status.oom_killed);
                                told = true;
                            }
                            _ => break Err(io::Error::other("an unintelligible status")),
                        }
                    }
                    Stream::Stdin => break Err(io::Error::other("a chunk of the wrong stream")),
                },
                Err(e) => break Err(io::Error::other(e)),
                Ok(None) => match self.stream.read(&mut buffer) {
                    Ok(0) => break Ok(()),
                    Ok(count) => self.chunks.feed(&buffer[..count]),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => break Err(e),
                },
            }
        };
        if let Err(error) = result {
            tracing::warn!(process, %error, "a journal is cut short");
        }
        if let Some(log) = &mut self.log {
            // A last line that nobody will finish.
            log.end(LogStream::Stdout);
            log.end(LogStream::Stderr);
            log.flush();
        }
        told
    }

    fn write(&mut self, stream: LogStream, bytes: &[u8]) {
        let Some(log) = &mut self.log else { return };
        if bytes.is_empty() {
            log.end(stream);
        } else {
            log.write(stream, bytes);
        }
    }
}
