//! an attached process: its input, output, terminal size and signals, from before it starts until it ends or the user leaves.
//!
//! ```text
//! stdin ──thread──▶ detach watch ──▶ │           │
//! terminal: raw mode while attached  │ hijacked  │──▶ 8-byte frames or raw ──▶ writer thread ──▶ stdout, stderr
//! end of input ──▶ half close        │ connection│
//! ```
//! The input never ends the session: output is read to its end. Only the detach keys leave early.

use std::io::Read;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::command::Failure;
use super::output::{Stream, Writer};
use super::terminal::{DetachWatch, RawMode, Typed};
use crate::client::{self, Client, Hijacked};

/// What is attached and how.
pub struct Attachment {
    /// The connection.
    pub connection: Hijacked,
    /// Whether output is a terminal's (raw) or framed.
    pub tty: bool,
    /// Whether standard input goes to the process.
    pub stdin: bool,
    /// Whether the terminal is switched to raw mode.
    pub raw_mode: bool,
    /// Keys that leave.
    pub detach_keys: Vec<u8>,
}

/// How an attachment ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// The daemon closed it: the process's output is complete.
    Closed,
    /// The user typed the detach keys.
    Detached,
}

/// Takes frames apart: 1 byte stream, 3 of padding, 4 of length, payload.
#[derive(Default)]
pub struct Frames {
    buffer: BytesMut,
}

impl Frames {
    /// Adds bytes as they arrive.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next piece of a frame; large frames come out whole.
    pub fn next(&mut self) -> Result<Option<(Stream, Bytes)>, String> {
        if self.buffer.len() < 8 {
            return Ok(None);
        }
        let length = u32::from_be_bytes([
            self.buffer[4],
            self.buffer[5],
            self.buffer[6],
            self.buffer[7],
        ]) as usize;
        let kind = self.buffer[0];
        if kind > 3 {
            return Err(format!("Unrecognized input header: {kind}"));
        }
        if self.buffer.len() < 8 + length {
            return Ok(None);
        }
        self.buffer.advance(8);
        let payload = self.buffer.split_to(length).freeze();
        match kind {
            0 | 1 => Ok(Some((Stream::Out, payload))),
            2 => Ok(Some((Stream::Err, payload))),
            _ => Err(format!(
                "error from daemon in stream: {}",
                String::from_utf8_lossy(&payload)
            )),
        }
    }
}

/// Standard input, chunk by chunk, from a thread: reads of a terminal or a pipe cannot be cancelled otherwise.
fn read_stdin() -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut buffer = vec![0u8; 64 * 1024];
        let mut input = std::io::stdin().lock();
        loop {
            match input.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    if sender
                        .blocking_send(Bytes::copy_from_slice(&buffer[..n]))
                        .is_err()
                    {
                        break;
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    });
    receiver
}

impl Attachment {
    /// Moves bytes until the end; the terminal is restored on every way out.
    pub async fn pump(self) -> Result<Ended, Failure> {
        let raw = if self.raw_mode {
            Some(RawMode::enter()?)
        } else {
            None
        };
        let (mut from, mut to) = tokio::io::split(self.connection.stream);
        let mut typed = if self.stdin { Some(read_stdin()) } else { None };
        let mut watch = DetachWatch::new(if raw.is_some() {
            self.detach_keys
        } else {
            Vec::new()
        });
        if typed.is_none() {
            // A process that reads nothing of ours; a refused half close changes nothing.
            let _ = to.shutdown().await;
        }

        let tty = self.tty;
        let output = async move {
            let writer = Writer::start();
            let mut frames = Frames::default();
            let mut buffer = vec![0u8; 64 * 1024];
            loop {
                let n = match from.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(n) => n,
                };
                if tty {
                    if !writer
                        .write(Stream::Out, Bytes::copy_from_slice(&buffer[..n]))
                        .await
                    {
                        break;
                    }
                    continue;
                }
                frames.feed(&buffer[..n]);
                while let Some((stream, bytes)) = frames.next()? {
                    if !writer.write(stream, bytes).await {
                        break;
                    }
                }
            }
            writer.finish().await.map_err(Failure::from)
        };
        let input = async {
            let Some(typed) = typed.as_mut() else {
                return std::future::pending::<Ended>().await;
            };
            while let Some(bytes) = typed.recv().await {
                match watch.feed(&bytes) {
                    Typed::Send(bytes) => {
                        if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
                            return std::future::pending().await;
                        }
                    }
                    Typed::Detach(bytes) => {
                        let _ = to.write_all(&bytes).await;
                        return Ended::Detached;
                    }
                }
            }
            // The process has seen everything; its output still comes.
            let _ = to.shutdown().await;
            std::future::pending().await
        };
        let killed = async {
            if raw.is_none() {
                return std::future::pending().await;
            }
            let (Ok(mut term), Ok(mut hup)) = (
                signal(SignalKind::terminate()),
                signal(SignalKind::hangup()),
            ) else {
                return std::future::pending().await;
            };
            tokio::select! { _ = term.recv() => 143u8, _ = hup.recv() => 129u8 }
        };
        let ended = tokio::select! {
            result = output => result.map(|()| Ended::Closed),
            ended = input => Ok(ended),
            code = killed => Err(Failure::silent(code)),
        };
        drop(raw);
        ended
    }
}

/// Passes the signals this command gets on to the container, until dropped.
pub async fn proxy_signals(client: &Client, container: &str) {
    const FORWARDED: [(i32, &str); 10] = [
        (libc_signal::SIGHUP, "HUP"),
        (libc_signal::SIGINT, "INT"),
        (libc_signal::SIGQUIT, "QUIT"),
        (libc_signal::SIGUSR1, "USR1"),
        (libc_signal::SIGUSR2, "USR2"),
        (libc_signal::SIGALRM, "ALRM"),
        (libc_signal::SIGTERM, "TERM"),
        (libc_signal::SIGCONT, "CONT"),
        (libc_signal::SIGTSTP, "TSTP"),
        (libc_signal::SIGWINCH, "WINCH"),
    ];
    let (sender, mut caught) = mpsc::channel::<&'static str>(16);
    for (number, name) in FORWARDED {
        let Ok(mut source) = signal(SignalKind::from_raw(number)) else {
            continue;
        };
        let sender = sender.clone();
        tokio::spawn(async move {
            while source.recv().await.is_some() {
                if sender.send(name).await.is_err() {
                    break;
                }
            }
        });
    }
    let mut impatient = 0;
    while let Some(name) = caught.recv().await {
        if name == "INT" || name == "TERM" {
            impatient += 1;
        }
        let target = client::target(format!("/containers/{}/kill", client::segment(container)))
            .with("signal", name);
        let sent = client.act::<serde_json::Value>(target, None).await;
        if impatient >= 3 && sent.is_err() {
            super::output::complain("got 3 SIGTERM/SIGINTs, forcefully exiting");
            std::process::exit(1);
        }
    }
}

/// Signal numbers by name.
mod libc_signal {
    use nix::sys::signal::Signal;
    pub const SIGHUP: i32 = Signal::SIGHUP as i32;
    pub const SIGINT: i32 = Signal::SIGINT as i32;
    pub const SIGQUIT: i32 = Signal::SIGQUIT as i32;
    pub const SIGUSR1: i32 = Signal::SIGUSR1 as i32;
    pub const SIGUSR2: i32 = Signal::SIGUSR2 as i32;
    pub const SIGALRM: i32 = Signal::SIGALRM as i32;
    pub const SIGTERM: i32 = Signal::SIGTERM as i32;
    pub const SIGCONT: i32 = Signal::SIGCONT as i32;
    pub const SIGTSTP: i32 = Signal::SIGTSTP as i32;
    pub const SIGWINCH: i32 = Signal::SIGWINCH as i32;
}

/// Keeps a remote terminal as large as ours: once now, then whenever ours changes, until dropped.
pub async fn follow_size(client: &Client, path: &str) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else {
        return;
    };
    let mut attempts = 0;
    loop {
        let Some((rows, columns)) = super::terminal::size() else {
            return;
        };
        let target = client::target(path)
            .with("h", rows.to_string())
            .with("w", columns.to_string());
        let resized = client.act::<serde_json::Value>(target, None).await;
        if resized.is_err() && attempts < 10 {
            // The terminal may be a moment younger than the answer to `start`.
            attempts += 1;
            tokio::time::sleep(std::time::Duration::from_millis(10 * attempts)).await;
            continue;
        }
        if changes.recv().await.is_none() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_apart_however_they_arrive() {
        let wire = [
            &[1, 0, 0, 0, 0, 0, 0, 2][..],
            b"ab",
            &[2, 0, 0, 0, 0, 0, 0, 1],
            b"c",
            &[1, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        for step in [1, 3, wire.len()] {
            let mut frames = Frames::default();
            let mut seen = Vec::new();
            for piece in wire.chunks(step) {
                frames.feed(piece);
                while let Some(frame) = frames.next().expect("valid") {
                    seen.push(frame);
                }
            }
            assert_eq!(
                seen,
                [
                    (Stream::Out, Bytes::from_static(b"ab")),
                    (Stream::Err, Bytes::from_static(b"c")),
                    (Stream::Out, Bytes::new())
                ]
            );
        }
        let mut frames = Frames::default();
        frames.feed(b"plain text");
        assert!(frames.next().is_err());
    }
}
