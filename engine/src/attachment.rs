//! A client's connection to a process: output and input that may begin later, and the keys that detach.
//!
//! Must not know: containers, HTTP.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use caisson_runtime::{Output, ProcessIo};
use futures_util::{Stream, StreamExt as _};
use tokio::io::AsyncWrite;
use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::options::{InputSink, OutputStream};

/// `ctrl-p,ctrl-q` as bytes.
const DEFAULT_DETACH_KEYS: [u8; 2] = [16, 17];

/// Reads `ctrl-a,x,…`; `None`: the default.
pub(crate) fn detach_keys(text: Option<&str>) -> Result<Vec<u8>> {
    let Some(text) = text.filter(|t| !t.is_empty()) else {
        return Ok(DEFAULT_DETACH_KEYS.to_vec());
    };
    text.split(',')
        .map(|key| {
            let bytes = key.as_bytes();
            match key.strip_prefix("ctrl-").map(str::as_bytes) {
                Some(b"@") => Ok(0),
                Some(&[c @ (b'a'..=b'z' | b'A'..=b'Z')]) => Ok(c.to_ascii_lowercase() - b'a' + 1),
                Some(b"[") => Ok(27),
                Some(b"\\") => Ok(28),
                Some(b"]") => Ok(29),
                Some(b"^") => Ok(30),
                Some(b"_") => Ok(31),
                None if bytes.len() == 1 => Ok(bytes[0]),
                _ => Err(Error::invalid(format!(
                    "Invalid detach keys ({text}): unknown character: '{key}'"
                ))),
            }
        })
        .collect()
}

/// Output that begins when the process is there, and ends early when its client detaches.
pub(crate) fn later(
    streams: oneshot::Receiver<ProcessIo>,
) -> (OutputStream, oneshot::Receiver<Option<InputSink>>) {
    let (to, input) = oneshot::channel();
    let output = futures_util::stream::once(async move {
        match streams.await {
            Ok(io) => {
                let _ = to.send(io.input);
                io.output
            }
            Err(_) => futures_util::stream::empty().boxed(),
        }
    })
    .flatten()
    .boxed();
    (output, input)
}

/// Whether the client has detached; shared by its output and its input.
#[derive(Clone, Default)]
pub(crate) struct Detach(Arc<Mutex<(bool, Option<Waker>)>>);

impl Detach {
    fn detach(&self) {
        let mut state = self.0.lock().expect("nothing panics while it holds this");
        state.0 = true;
        if let Some(waker) = state.1.take() {
            waker.wake();
        }
    }

    /// Output that ends when the client detaches; `on_detach` runs then.
    pub(crate) fn over(
        &self,
        output: OutputStream,
        on_detach: impl FnOnce() + Send + 'static,
    ) -> OutputStream {
        Box::pin(Detachable {
            output,
            detach: self.clone(),
            on_detach: Some(Box::new(on_detach)),
        })
    }
}

struct Detachable {
    output: OutputStream,
    detach: Detach,
    on_detach: Option<Box<dyn FnOnce() + Send>>,
}

impl Stream for Detachable {
    type Item = io::Result<Output>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let detached = {
            let mut state = self
                .detach
                .0
                .lock()
                .expect("nothing panics while it holds this");
            if !state.0 {
                state.1 = Some(cx.waker().clone());
            }
            state.0
        };
        if detached {
            if let Some(f) = self.on_detach.take() {
                f();
            }
            return Poll::Ready(None);
        }
        self.output.as_mut().poll_next(cx)
    }
}

/// Where input goes.
pub(crate) enum Target {
    Now(InputSink),
    Later(oneshot::Receiver<Option<InputSink>>),
    /// The process is gone or has no standard input: swallow.
    Gone,
}

/// Standard input that may begin later and looks for the detach keys.
pub(crate) struct Input {
    target: Target,
    detach: Detach,
    /// Empty: nothing detaches.
    keys: Vec<u8>,
    matched: usize,
    /// Bytes that are to be written before any new ones: accepted, not yet passed on.
    held: Vec<u8>,
}

impl Input {
    pub(crate) fn new(target: Target, keys: Vec<u8>, detach: Detach) -> Input {
        Input {
            target,
            detach,
            keys,
            matched: 0,
            held: Vec::new(),
        }
    }

    fn poll_target(&mut self, cx: &mut Context<'_>) -> Poll<Option<&mut InputSink>> {
        if let Target::Later(receiver) = &mut self.target {
            match Pin::new(receiver).poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(Some(sink))) => self.target = Target::Now(sink),
                Poll::Ready(_) => self.target = Target::Gone,
            }
        }
        Poll::Ready(match &mut self.target {
            Target::Now(sink) => Some(sink),
            Target::Later(_) | Target::Gone => None,
        })
    }

    /// Passes held bytes on.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            let polled = match self.poll_target(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(None) => Poll::Ready(Ok(held.len())),
                Poll::Ready(Some(sink)) => sink.as_mut().poll_write(cx, &held),
            };
            self.held = held;
            match polled {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => {
                    self.held.drain(..n);
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Looks for the keys: what is to be passed on is added to `held`; true when the sequence is complete.
    fn scan(&mut self, bytes: &[u8]) -> bool {
        for &byte in bytes {
            if byte == self.keys[self.matched] {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    self.matched = 0;
                    return true;
                }
                continue;
            }
            // A false start: what looked like the keys is input after all.
            let partial = self.matched;
            self.matched = 0;
            self.held.extend_from_slice(&self.keys[..partial]);
            if byte == self.keys[0] && self.keys.len() > 1 {
                self.matched = 1;
            } else {
                self.held.push(byte);
            }
        }
        false
    }
}

impl AsyncWrite for Input {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.poll_held(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
            Poll::Ready(Ok(())) => {}
        }
        if self.keys.is_empty() {
            return match self.poll_target(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(None) => Poll::Ready(Ok(bytes.len())),
                Poll::Ready(Some(sink)) => sink.as_mut().poll_write(cx, bytes),
            };
        }
        if self.scan(bytes) {
            self.detach.detach();
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "read escape sequence",
            )));
        }
        if let Poll::Ready(Err(e)) = self.poll_held(cx) {
            return Poll::Ready(Err(e));
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.poll_held(cx) {
            Poll::Ready(Ok(())) => {}
            other => return other,
        }
        match self.poll_target(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(Ok(())),
            Poll::Ready(Some(sink)) => sink.as_mut().poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.poll_held(cx) {
            Poll::Ready(Ok(())) => {}
            other => return other,
        }
        match self.poll_target(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(Ok(())),
            Poll::Ready(Some(sink)) => sink.as_mut().poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    #[test]
    fn keys_are_read() {
        assert_eq!(detach_keys(None).unwrap(), [16, 17]);
        assert_eq!(detach_keys(Some("ctrl-a,x")).unwrap(), [1, b'x']);
        assert_eq!(
            detach_keys(Some("ctrl-@,ctrl-[,ctrl-_")).unwrap(),
            [0, 27, 31]
        );
        assert!(detach_keys(Some("ctrl-1")).is_err() && detach_keys(Some("ab")).is_err());
    }

    async fn typed(pieces: &[&[u8]]) -> (Vec<u8>, bool) {
        let (mut near, far) = tokio::io::duplex(1024);
        let detach = Detach::default();
        let mut input = Input::new(Target::Now(Box::pin(far)), vec![16, 17], detach.clone());
        let mut detached = false;
        for piece in pieces {
            detached |= input.write_all(piece).await.is_err();
        }
        if !detached {
            input.flush().await.unwrap();
        }
        drop(input);
        let mut got = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut near, &mut got)
            .await
            .unwrap();
        (got, detached)
    }

    #[tokio::test]
    async fn the_sequence_detaches_also_in_pieces() {
        assert_eq!(typed(&[b"ab", &[16], &[17]]).await, (b"ab".to_vec(), true));
        assert_eq!(typed(&[&[16, 17]]).await, (vec![], true));
    }

    #[tokio::test]
    async fn false_starts_are_input() {
        assert_eq!(
            typed(&[&[16], b"x", &[16, 16, b'y']]).await,
            (vec![16, b'x', 16, 16, b'y'], false)
        );
        assert!(
            typed(&[&[16, 16, 17]]).await.1,
            "the second may be the first"
        );
    }

    #[tokio::test]
    async fn input_waits_for_its_process() {
        let (to, from) = oneshot::channel();
        let mut input = Input::new(Target::Later(from), Vec::new(), Detach::default());
        let (mut near, far) = tokio::io::duplex(64);
        let writer = tokio::spawn(async move { input.write_all(b"early").await });
        tokio::task::yield_now().await;
        assert!(!writer.is_finished());
        assert!(to.send(Some(Box::pin(far) as InputSink)).is_ok());
        writer.await.unwrap().unwrap();
        let mut got = [0u8; 5];
        tokio::io::AsyncReadExt::read_exact(&mut near, &mut got)
            .await
            .unwrap();
        assert_eq!(&got, b"early");
    }
}
