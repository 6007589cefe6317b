//! The control connection of one sandbox: many requests at a time over one socket, made anew when it broke.
//!
//! ```text
//!   call ─▶ number, pending[number] ─▶ writer task ─▶ socket ─▶ reader task ─▶ pending[number] ─▶ answer
//! ```
//!
//! Nothing waits for the greeting: it goes out together with the first request, and a shim of another generation is
//! noticed when its greeting comes back.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use caisson_protocol::layout::SOCKET;
use caisson_protocol::{
    FRAME_HEADER_BYTES, GENERATION, Hello, Outcome, Request, RequestFrame, Response, ResponseFrame,
    decode, encode, parse_frame_header,
};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use crate::{Error, ErrorKind, Result};

/// How long a shim with a full queue of connections is tried.
const CONNECT_TRIES: u32 = 100;
const CONNECT_PAUSE: Duration = Duration::from_millis(20);

/// The control connection.
pub(super) struct Control {
    dir: PathBuf,
    live: Mutex<Option<Arc<Live>>>,
}

impl Control {
    pub(super) fn new(dir: PathBuf) -> Self {
        Control {
            dir,
            live: Mutex::new(None),
        }
    }

    /// Asks and waits for the answer. [`ErrorKind::Lost`] when the shim is gone or went meanwhile.
    pub(super) async fn call(&self, request: Request) -> Result<Response> {
        let live = self.live().await?;
        let id = live.next_id.fetch_add(1, Ordering::Relaxed);
        let frame = encode(&RequestFrame { id, request }).map_err(|e| {
            Error::new(
                ErrorKind::Invalid,
                format!("the request cannot be sent: {e}"),
            )
        })?;
        let (sender, receiver) = oneshot::channel();
        match &mut *live.pending() {
            Pending::Open(pending) => pending.insert(id, sender),
            Pending::Closed(error) => return Err(error.clone()),
        };
        let _forget = Forget { live: &live, id };
        // A writer that is gone has closed `pending` or is about to, which drops the sender.
        let _ = live.writer.send(frame);
        match receiver.await {
            Ok(Outcome::Ok(response)) => Ok(response),
            Ok(Outcome::Error(error)) => Err(error),
            Err(_) => match &*live.pending() {
                Pending::Closed(error) => Err(error.clone()),
                Pending::Open(_) => Err(lost(&self.dir, "its connection is closed")),
            },
        }
    }

    /// Whether nobody listens on the socket any more. A shim that is merely slow is not gone.
    pub(super) async fn is_gone(&self) -> bool {
        matches!(connect_in(&self.dir).await, Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound))
    }

    async fn live(&self) -> Result<Arc<Live>> {
        let known = lock(&self.live).clone();
        if let Some(live) = known
            && matches!(&*live.pending(), Pending::Open(_))
        {
            return Ok(live);
        }
        let stream = connect(&self.dir).await?;
        let live = Live::start(stream, self.dir.clone());
        *lock(&self.live) = Some(Arc::clone(&live));
        Ok(live)
    }
}

/// One connection and who waits on it.
struct Live {
    next_id: AtomicU64,
    pending: Mutex<Pending>,
    writer: mpsc::UnboundedSender<Vec<u8>>,
}

enum Pending {
    Open(HashMap<u64, oneshot::Sender<Outcome>>),
    Closed(Error),
}

impl Live {
    fn start(stream: UnixStream, dir: PathBuf) -> Arc<Self> {
        let (reader, writer) = stream.into_split();
        let (sender, frames) = mpsc::unbounded_channel();
        let live = Arc::new(Live {
            next_id: AtomicU64::new(1),
            pending: Mutex::new(Pending::Open(HashMap::new())),
            writer: sender,
        });
        tokio::spawn(write_frames(writer, frames));
        let weak = Arc::downgrade(&live);
        tokio::spawn(async move {
            let mut greeted = false;
            let mut reader = BufReader::new(reader);
            let error = loop {
                match read_answer(&mut reader, &mut greeted).await {
                    Ok(Some(ResponseFrame { id, outcome })) => {
                        let Some(live) = weak.upgrade() else { return };
                        let waiting = match &mut *live.pending() {
                            Pending::Open(pending) => pending.remove(&id),
                            Pending::Closed(_) => None,
                        };
                        if let Some(sender) = waiting {
                            let _ = sender.send(outcome);
                        }
                    }
                    Ok(None) => break lost(&dir, "it is gone"),
                    Err(error) => break lost(&dir, &error.to_string()),
                }
            };
            if let Some(live) = weak.upgrade() {
                *live.pending() = Pending::Closed(error);
            }
        });
        live
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        lock(&self.pending)
    }
}

/// A caller that does not wait any more is forgotten.
struct Forget<'a> {
    live: &'a Live,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Pending::Open(pending) = &mut *self.live.pending() {
            pending.remove(&self.id);
        }
    }
}

async fn write_frames(mut writer: OwnedWriteHalf, mut frames: mpsc::UnboundedReceiver<Vec<u8>>) {
    while let Some(frame) = frames.recv().await {
        if writer.write_all(&frame).await.is_err() {
            return;
        }
    }
}

/// Connects and sends the greeting; the answer to it has still to be read.
async fn connect(dir: &Path) -> Result<UnixStream> {
    let mut tries = 0;
    let mut stream = loop {
        match connect_in(dir).await {
            Ok(stream) => break stream,
            // The queue of connections is full.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && tries < CONNECT_TRIES => {
                tries += 1;
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
            Err(e) => return Err(lost(dir, &e.to_string())),
        }
    };
    let hello = Hello {
        generation: GENERATION,
        version: env!("CARGO_PKG_VERSION").into(),
        pid: None,
    };
    let hello = encode(&hello).map_err(|e| lost(dir, &e.to_string()))?;
    stream
        .write_all(&hello)
        .await
        .map_err(|e| lost(dir, &e.to_string()))?;
    Ok(stream)
}

/// Socket addresses are short; the directory's path need not be.
async fn connect_in(dir: &Path) -> io::Result<UnixStream> {
    let dir = File::open(dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd())).await
}

/// Opens a connection whose first request turns it into something else; the shim has agreed when this returns.
pub(super) async fn open_stream(
    dir: &Path,
    request: Request,
) -> Result<(Response, BufReader<OwnedReadHalf>, OwnedWriteHalf)> {
    let (reader, mut writer) = connect(dir).await?.into_split();
    let mut reader = BufReader::with_capacity(64 << 10, reader);
    let frame = encode(&RequestFrame { id: 1, request }).map_err(|e| {
        Error::new(
            ErrorKind::Invalid,
            format!("the request cannot be sent: {e}"),
        )
    })?;
    let broken = |e: io::Error| lost(dir, &e.to_string());
    writer.write_all(&frame).await.map_err(broken)?;
    let answer = read_answer(&mut reader, &mut false).await.map_err(broken)?;
    match answer.ok_or_else(|| lost(dir, "it hung up"))?.outcome {
        Outcome::Ok(response) => Ok((response, reader, writer)),
        Outcome::Error(error) => Err(error),
    }
}

/// The next answer, behind the greeting; `None` when the shim has hung up.
async fn read_answer(
    reader: &mut (impl AsyncRead + Unpin),
    greeted: &mut bool,
) -> io::Result<Option<ResponseFrame>> {
    if !*greeted {
        let Some(hello) = read_frame::<Hello>(reader).await? else {
            return Ok(None);
        };
        if hello.generation != GENERATION {
            return Err(io::Error::other(format!(
                "it is caisson-shim {} and speaks generation {} of the protocol, this program generation {GENERATION}: \
                 stop the container with the version that started it",
                hello.version, hello.generation
            )));
        }
        *greeted = true;
    }
    read_frame(reader).await
}

async fn read_frame<T: DeserializeOwned>(
    reader: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<T>> {
    let mut header = [0; FRAME_HEADER_BYTES];
    match reader.read_exact(&mut header).await {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let length = parse_frame_header(header).map_err(io::Error::other)?;
    let mut content = vec![0; length];
    reader.read_exact(&mut content).await?;
    decode(&content).map(Some).map_err(io::Error::other)
}

fn lost(dir: &Path, why: &str) -> Error {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    Error::new(
        ErrorKind::Lost,
        format!("the supervisor of {name} does not answer: {why}"),
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
