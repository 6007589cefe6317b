//! writing to standard output and error: whole, ordered, without panicking on a closed pipe, and from a thread of its own when the
//! stream is long-lived, so that a slow reader never stops signals or input.

use std::io::Write;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::command::Failure;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

fn write_now(stream: Stream, bytes: &[u8]) -> std::io::Result<()> {
    match stream {
        Stream::Out => {
            let mut out = std::io::stdout().lock();
            out.write_all(bytes)?;
            out.flush()
        }
        Stream::Err => {
            let mut err = std::io::stderr().lock();
            err.write_all(bytes)?;
            err.flush()
        }
    }
}

/// Writes text to standard output at once.
pub fn print(text: impl AsRef<str>) -> Result<(), Failure> {
    write_now(Stream::Out, text.as_ref().as_bytes()).map_err(Failure::from)
}

/// Writes a line to standard output at once.
pub fn line(text: impl AsRef<str>) -> Result<(), Failure> {
    print(format!("{}\n", text.as_ref()))
}

/// Writes a line to standard error; a closed standard error is nobody's failure.
pub fn complain(text: impl AsRef<str>) {
    let _ = write_now(Stream::Err, format!("{}\n", text.as_ref()).as_bytes());
}

/// A writer thread for streams.
pub struct Writer {
    queue: mpsc::Sender<(Stream, Bytes)>,
    done: oneshot::Receiver<std::io::Result<()>>,
}

impl Writer {
    /// Starts the thread.
    pub fn start() -> Self {
        let (queue, mut chunks) = mpsc::channel::<(Stream, Bytes)>(16);
        let (finished, done) = oneshot::channel();
        std::thread::spawn(move || {
            let mut result = Ok(());
            while let Some((stream, bytes)) = chunks.blocking_recv() {
                result = write_now(stream, &bytes);
                if result.is_err() {
                    break;
                }
            }
            // The receiver is gone when the command ended early.
            let _ = finished.send(result);
        });
        Writer { queue, done }
    }

    /// Queues bytes; waits while the reader is slow; false when nobody reads any more.
    pub async fn write(&self, stream: Stream, bytes: Bytes) -> bool {
        self.queue.send((stream, bytes)).await.is_ok()
    }

    /// Waits until everything queued has been written.
    pub async fn finish(self) -> std::io::Result<()> {
        drop(self.queue);
        self.done.await.unwrap_or(Ok(()))
    }
}

/// Writes text to standard error at once; a closed standard error is nobody's failure.
pub fn print_err(text: &str) {
    let _ = write_now(Stream::Err, text.as_bytes());
}
