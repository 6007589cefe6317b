//! request bodies fed from blocking threads, as a stream hyper can poll.

use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::mpsc;

/// Chunks from a channel; an error among them breaks the request off.
pub struct Chunks(Mutex<mpsc::Receiver<std::io::Result<Bytes>>>);

impl Chunks {
    /// Over the receiving end.
    pub fn new(receiver: mpsc::Receiver<std::io::Result<Bytes>>) -> Self {
        Chunks(Mutex::new(receiver))
    }
}

impl Stream for Chunks {
    type Item = std::io::Result<Bytes>;
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.0.lock() {
            Ok(mut receiver) => receiver.poll_recv(cx),
            Err(_) => Poll::Ready(None),
        }
    }
}
