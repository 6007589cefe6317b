//! Long operations as feeds of progress lines.
//!
//! ```text
//! operation ──▶ first line? ──yes──▶ Ok(feed): lines … then its closing lines, or an error line
//!                  │ no: it ended
//!                  ├─ with an error ──▶ Err: the request fails with a status
//!                  └─ well ───────────▶ Ok(feed of the closing lines)
//! ```
//! Whoever drops the feed (a client that went away) ends the operation; what it fetched so far is kept for the next try.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use caisson_api::JsonMessage;
use caisson_image::{Event, Progress};
use futures_util::Stream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::{Error, Feed, Result};

/// How an event reads on the wire.
pub type Wording = fn(Event) -> JsonMessage;

/// Docker's form for pull and push: status and bar.
pub fn as_status(event: Event) -> JsonMessage {
    let signed = super::view::signed;
    if event.current == 0 && event.total == 0 {
        JsonMessage::status(&event.id, &event.status)
    } else {
        JsonMessage::progress(
            &event.id,
            &event.status,
            signed(event.current),
            signed(event.total),
        )
    }
}

/// Docker's form for load: what concerns the whole is text, what concerns a layer a bar.
pub fn as_stream(event: Event) -> JsonMessage {
    if event.id.is_empty() && event.current == 0 && event.total == 0 {
        JsonMessage::stream(&format!("{}\n", event.status))
    } else {
        as_status(event)
    }
}

/// Runs an operation; `run` answers the closing lines.
pub async fn feed<F, Fut>(wording: Wording, run: F) -> Result<Feed<JsonMessage>>
where
    F: FnOnce(Progress) -> Fut,
    Fut: Future<Output = Result<Vec<JsonMessage>>> + Send + 'static,
{
    // Progress is throttled where it is made, so a slow client cannot make this grow without bound.
    let (say, lines) = mpsc::unbounded_channel();
    let progress: Progress = {
        let say = say.clone();
        Arc::new(move |event| {
            // Nobody listens any more: the operation is about to be ended.
            let _ = say.send(wording(event));
        })
    };
    let operation = run(progress);
    let task = tokio::spawn(async move {
        match operation.await {
            Ok(closing) => {
                for line in closing {
                    let _ = say.send(line);
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    });
    let mut running = Running {
        lines,
        task: Some(task),
        failed: None,
        pending: None,
    };
    match running.next_line().await {
        Some(Ok(line)) => running.pending = Some(line),
        Some(Err(error)) => return Err(error),
        None => {}
    }
    Ok(Box::pin(running))
}

struct Running {
    lines: mpsc::UnboundedReceiver<JsonMessage>,
    task: Option<JoinHandle<Result<()>>>,
    failed: Option<Error>,
    pending: Option<JsonMessage>,
}

impl Running {
    async fn next_line(&mut self) -> Option<Result<JsonMessage>> {
        std::future::poll_fn(|context| self.poll_line(context)).await
    }

    /// Lines first; once they are exhausted, how the operation ended.
    fn poll_line(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<JsonMessage>>> {
        match self.lines.poll_recv(context) {
            Poll::Ready(Some(line)) => return Poll::Ready(Some(Ok(line))),
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => {}
        }
        let Some(task) = self.task.as_mut() else {
            return Poll::Ready(None);
        };
        let ended = std::task::ready!(Pin::new(task).poll(context));
        self.task = None;
        match ended {
            Ok(Ok(())) => Poll::Ready(None),
            Ok(Err(error)) => Poll::Ready(Some(Err(error))),
            Err(panic) => Poll::Ready(Some(Err(Error::internal(format!(
                "the operation broke off: {panic}"
            ))))),
        }
    }
}

impl Stream for Running {
    type Item = JsonMessage;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<JsonMessage>> {
        if let Some(line) = self.pending.take() {
            return Poll::Ready(Some(line));
        }
        if self.failed.is_some() {
            return Poll::Ready(None);
        }
        self.poll_line(context).map(|next| {
            next.map(|line| {
                line.unwrap_or_else(|error| {
                    let message = JsonMessage::error(&error.message);
                    self.failed = Some(error);
                    message
                })
            })
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;

    fn event(status: &str) -> Event {
        Event {
            status: status.into(),
            ..Event::default()
        }
    }

    #[tokio::test]
    async fn a_failure_before_the_first_line_fails_the_request() {
        let result = feed(as_status, |_| async { Err(Error::not_found("no")) }).await;
        assert_eq!(result.err().expect("fails").message, "no");
    }

    #[tokio::test]
    async fn a_later_failure_is_the_last_line() {
        let feed = feed(as_status, |progress| async move {
            progress(event("begun"));
            Err(Error::internal("broke"))
        });
        let lines: Vec<_> = feed.await.expect("begun").collect().await;
        assert_eq!(
            lines,
            [
                JsonMessage::status("", "begun"),
                JsonMessage::error("broke")
            ]
        );
    }

    #[tokio::test]
    async fn closing_lines_come_last() {
        let feed = feed(as_stream, |progress| async move {
            progress(event("one"));
            Ok(vec![JsonMessage::stream("two\n")])
        });
        let lines: Vec<_> = feed.await.expect("begun").collect().await;
        assert_eq!(
            lines,
            [JsonMessage::stream("one\n"), JsonMessage::stream("two\n")]
        );
    }

    #[tokio::test]
    async fn dropping_the_feed_ends_the_operation() {
        let (gone, mut seen) = tokio::sync::oneshot::channel::<()>();
        let feed = feed(as_status, |progress| async move {
            let _held = gone;
            progress(event("begun"));
            std::future::pending::<Result<Vec<JsonMessage>>>().await
        });
        let feed = feed.await.expect("begun");
        assert!(
            seen.try_recv()
                .is_err_and(|e| e == tokio::sync::oneshot::error::TryRecvError::Empty)
        );
        drop(feed);
        assert!(seen.await.is_err(), "the operation was dropped");
    }
}
