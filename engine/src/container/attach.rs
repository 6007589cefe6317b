//! Who is connected to the first process' streams: those that wait for the next start, and those whose output must have
//! arrived before the sandbox may go.
//!
//! Must not know: detach keys, HTTP.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use caisson_runtime::{Attach, Output, ProcessId, ProcessIo, Sandbox};
use futures_util::Stream;
use tokio::sync::{Notify, oneshot};

use super::Streams;
use super::actor::Actor;
use crate::error::{Error, Result};
use crate::records::Status;

/// Someone who attached before the start.
pub(crate) struct Pending {
    pub streams: Attach,
    pub to: oneshot::Sender<ProcessIo>,
}

/// Tells whether an attached client has got all the output.
#[derive(Default)]
pub(crate) struct Drain {
    items: AtomicU64,
    done: AtomicBool,
    notify: Notify,
}

impl Drain {
    /// Wraps a process' output so that its end is noticed.
    pub(crate) fn over(self: &Arc<Self>, io: ProcessIo) -> ProcessIo {
        ProcessIo {
            output: Box::pin(Drained {
                inner: io.output,
                drain: self.clone(),
            }),
            input: io.input,
        }
    }

    fn finish(&self) {
        self.done.store(true, Ordering::Release);
        self.notify.notify_waiters();
    }

    /// Returns once the output was read to its end or dropped, or when nothing moved for a while.
    pub(crate) async fn drained(&self) {
        const STILL: Duration = Duration::from_secs(2);
        loop {
            let before = self.items.load(Ordering::Acquire);
            let notified = self.notify.notified();
            if self.done.load(Ordering::Acquire) {
                return;
            }
            let still = tokio::time::timeout(STILL, notified).await.is_err();
            if still && self.items.load(Ordering::Acquire) == before {
                return;
            }
        }
    }
}

struct Drained {
    inner: Pin<Box<dyn Stream<Item = std::io::Result<Output>> + Send>>,
    drain: Arc<Drain>,
}

impl Stream for Drained {
    type Item = std::io::Result<Output>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.inner.as_mut().poll_next(cx);
        match &polled {
            Poll::Ready(Some(_)) => {
                self.drain.items.fetch_add(1, Ordering::AcqRel);
            }
            Poll::Ready(None) => self.drain.finish(),
            Poll::Pending => {}
        }
        polled
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        self.drain.finish();
    }
}

impl Actor {
    /// Attaches now, or registers for the next start.
    pub(super) async fn attach(&mut self, streams: Attach) -> Result<Streams> {
        match self.view.state.status {
            Status::Paused => {
                return Err(Error::conflict(format!(
                    "container {} is paused, unpause the container before attach",
                    self.view.id
                )));
            }
            Status::Restarting => {
                return Err(Error::conflict(format!(
                    "container {} is restarting, wait until the container is running",
                    self.view.id
                )));
            }
            Status::Removing | Status::Dead => return Err(self.not_running()),
            Status::Created | Status::Exited | Status::Running => {}
        }
        if let Some(sandbox) = self.sandbox.clone() {
            return Ok(Streams::Now(self.connect(&*sandbox, streams).await?));
        }
        let (to, later) = oneshot::channel();
        self.pending.retain(|p| !p.to.is_closed());
        self.pending.push(Pending { streams, to });
        Ok(Streams::Later(later))
    }

    async fn connect(&mut self, sandbox: &dyn Sandbox, streams: Attach) -> Result<ProcessIo> {
        let io = sandbox.attach(&ProcessId::init(), streams).await?;
        if !(streams.stdout || streams.stderr) {
            return Ok(io);
        }
        let drain = Arc::new(Drain::default());
        let io = drain.over(io);
        self.drains.retain(|d| !d.done.load(Ordering::Acquire));
        self.drains.push(drain);
        Ok(io)
    }

    /// Between spawn and start: connects everybody who waits.
    pub(super) async fn connect_pending(&mut self, sandbox: &dyn Sandbox) {
        for pending in std::mem::take(&mut self.pending) {
            if pending.to.is_closed() {
                continue;
            }
            match self.connect(sandbox, pending.streams).await {
                Ok(io) => {
                    let _ = pending.to.send(io);
                }
                Err(e) => {
                    tracing::warn!(container = self.view.id, error = %e, "a waiting client could not be attached")
                }
            }
        }
    }
}
