//! What a long operation tells meanwhile, in the shape of Docker's progress lines.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// One line of progress. The words of `status` are Docker's, for its command line draws bars by them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// What it is about: a layer's short digest, a tag; empty for the operation as a whole.
    pub id: String,
    /// `Downloading`, `Pull complete`, `Loaded image: alpine:latest`, …
    pub status: String,
    /// Bytes done and in all; both zero when they mean nothing.
    pub current: u64,
    /// See `current`; zero when unknown.
    pub total: u64,
}

/// Receives progress. Called from several threads; must not block for long.
pub type Progress = Arc<dyn Fn(Event) + Send + Sync>;

/// A receiver for callers that do not care.
pub fn silent() -> Progress {
    Arc::new(|_| {})
}

pub(crate) fn say(progress: &Progress, id: impl Into<String>, status: impl Into<String>) {
    progress(Event {
        id: id.into(),
        status: status.into(),
        current: 0,
        total: 0,
    });
}

/// Reports bytes done, at most some times a second.
pub(crate) struct Meter {
    progress: Progress,
    id: String,
    status: &'static str,
    total: u64,
    last: Mutex<(u64, Option<Instant>)>,
}

const INTERVAL: Duration = Duration::from_millis(100);

impl Meter {
    pub(crate) fn new(progress: &Progress, id: &str, status: &'static str, total: u64) -> Self {
        Meter {
            progress: progress.clone(),
            id: id.to_owned(),
            status,
            total,
            last: Mutex::new((0, None)),
        }
    }

    pub(crate) fn advance(&self, bytes: u64) {
        let mut last = self
            .last
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        last.0 += bytes;
        if last.0 < self.total && last.1.is_some_and(|at| at.elapsed() < INTERVAL) {
            return;
        }
        last.1 = Some(Instant::now());
        let event = Event {
            id: self.id.clone(),
            status: self.status.into(),
            current: last.0,
            total: self.total,
        };
        drop(last);
        (self.progress)(event);
    }
}
