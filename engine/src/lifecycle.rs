//! The verbs of one container, as their callers see them: each resolves a name, sends messages, waits where Docker waits.

use std::sync::Arc;
use std::time::Duration;

use caisson_api as api;
use caisson_runtime::{Attach, TtySize};
use futures_util::StreamExt as _;

use crate::attachment::{self, Detach, Input, Target, detach_keys};
use crate::container::{Container, Intent, Message, Paused, Streams};
use crate::error::{Error, Result};
use crate::options::{
    AttachOptions, Attachment, LogsOptions, Outcome, OutputStream, RemoveOptions, StopOptions,
    Wait, WaitCondition,
};
use crate::records::{Status, View};
use crate::{Engine, names, signals};

const DEFAULT_STOP_TIMEOUT_S: i64 = 10;

impl Engine {
    /// `POST /containers/ID/start`.
    pub async fn start(&self, id: &str) -> Result<Outcome> {
        let container = self.inner.container(id)?;
        container.ask(|reply| Message::Start { reply }).await
    }

    /// `POST /containers/ID/stop`.
    pub async fn stop(&self, id: &str, options: StopOptions) -> Result<Outcome> {
        let container = self.inner.container(id)?;
        let (signal, timeout) = stop_plan(&container.view(), &options)?;
        if !container.view().state.status.is_up() {
            return Ok(Outcome::Unchanged);
        }
        // A task of its own: a client that goes away does not leave the container half stopped.
        let inner = self.inner.clone();
        let task = tokio::spawn(async move {
            bring_down(&container, signal, timeout, Intent::Stop).await?;
            inner.container_event(&container.view(), "stop", &[]);
            Ok(Outcome::Changed)
        });
        task.await
            .map_err(|e| Error::internal(format!("stopping the container failed: {e}")))?
    }

    /// `POST /containers/ID/restart`.
    pub async fn restart(&self, id: &str, options: StopOptions) -> Result<()> {
        let container = self.inner.container(id)?;
        let (signal, timeout) = stop_plan(&container.view(), &options)?;
        let inner = self.inner.clone();
        let task = tokio::spawn(async move {
            container.tell(Message::KeepOnExit(true));
            let result = async {
                if container.view().state.status.is_up() {
                    bring_down(&container, signal, timeout, Intent::Stop).await?;
                    inner.container_event(&container.view(), "stop", &[]);
                }
                container.ask(|reply| Message::Start { reply }).await
            }
            .await;
            container.tell(Message::KeepOnExit(false));
            result?;
            inner.container_event(&container.view(), "restart", &[]);
            Ok(())
        });
        task.await
            .map_err(|e| Error::internal(format!("restarting the container failed: {e}")))?
    }

    /// `POST /containers/ID/kill`; `signal` as a name or a number, `None`: `SIGKILL`.
    pub async fn kill(&self, id: &str, signal: Option<&str>) -> Result<()> {
        let text = signal.filter(|s| !s.is_empty()).unwrap_or("KILL");
        let signal = signals::parse(text)
            .ok_or_else(|| Error::invalid(format!("Invalid signal: {text}")))?;
        let container = self.inner.container(id)?;
        let intent = Intent::Kill;
        container
            .ask(|reply| Message::Signal {
                signal,
                intent,
                reply,
            })
            .await
            .map_err(|e| e.context(format!("cannot kill container: {id}")))?;
        if signal == nix::libc::SIGKILL {
            // Docker answers once it is dead.
            let _ = tokio::time::timeout(Duration::from_secs(10), until_down(&container)).await;
        }
        Ok(())
    }

    /// `POST /containers/ID/pause`.
    pub async fn pause(&self, id: &str) -> Result<()> {
        self.inner
            .container(id)?
            .ask(|reply| Message::Pause { reply })
            .await
    }

    /// `POST /containers/ID/unpause`.
    pub async fn unpause(&self, id: &str) -> Result<()> {
        self.inner
            .container(id)?
            .ask(|reply| Message::Unpause { reply })
            .await
    }

    /// `POST /containers/ID/rename`.
    pub async fn rename(&self, id: &str, name: &str) -> Result<()> {
        let container = self.inner.container(id)?;
        if name.is_empty() {
            return Err(Error::invalid("Neither old nor new names may be empty"));
        }
        let name = names::validate(name)?;
        container.ask(|reply| Message::Rename { name, reply }).await
    }

    /// `POST /containers/ID/update`; answers warnings.
    pub async fn update(&self, id: &str, request: api::UpdateBody) -> Result<Vec<String>> {
        let update = Box::new(request);
        self.inner
            .container(id)?
            .ask(|reply| Message::Update { update, reply })
            .await
    }

    /// `DELETE /containers/ID`.
    pub async fn remove(&self, id: &str, options: RemoveOptions) -> Result<()> {
        if options.link {
            return Err(Error::invalid(
                "legacy links are not supported: there is no link to remove",
            ));
        }
        let container = self.inner.container(id)?;
        if container.view().state.status == Status::Removing {
            return Err(Error::conflict(format!(
                "removal of container {id} is already in progress"
            )));
        }
        container
            .ask(|reply| Message::Remove {
                force: options.force,
                reply,
            })
            .await
    }

    /// `POST /containers/ID/wait`: registered when this returns, done when the inner future is.
    pub async fn wait(&self, id: &str, condition: WaitCondition) -> Result<Wait> {
        let container = self.inner.container(id)?;
        let mut watch = container.watch();
        let exits = watch.borrow_and_update().exits;
        Ok(Box::pin(async move {
            let done = |view: &Arc<View>| match condition {
                WaitCondition::NotRunning => view.removed || !view.state.status.is_up(),
                WaitCondition::NextExit => view.removed || view.exits > exits,
                WaitCondition::Removed => view.removed,
            };
            let mut result = match watch.wait_for(done).await {
                Ok(view) => view.wait_result(),
                Err(_) => container.view().wait_result(),
            };
            if condition == WaitCondition::Removed {
                // What was wanted has happened: an old failure to start is not a failure to remove.
                result.error = None;
            }
            Ok(result)
        }))
    }

    /// `POST /containers/ID/attach`; a container that is not started yet is attached to when it is.
    pub async fn attach(&self, id: &str, options: AttachOptions) -> Result<Attachment> {
        let keys = detach_keys(options.detach_keys.as_deref())?;
        let container = self.inner.container(id)?;
        let view = container.view();
        let config = &view.definition.config;
        let tty = config.tty;
        let past: OutputStream = if options.logs {
            let wanted = LogsOptions {
                stdout: options.stdout,
                stderr: options.stderr,
                ..LogsOptions::default()
            };
            self.logs_of(&view, container.watch(), wanted)?
        } else {
            futures_util::stream::empty().boxed()
        };
        if !options.stream {
            return Ok(Attachment {
                tty,
                output: past,
                input: None,
            });
        }
        let streams = Attach {
            stdin: options.stdin && config.open_stdin,
            stdout: options.stdout,
            stderr: options.stderr,
        };
        let detach = Detach::default();
        let keys = if tty { keys } else { Vec::new() };
        let (output, target) = match container
            .ask(|reply| Message::Attach { streams, reply })
            .await?
        {
            Streams::Now(io) => (io.output, io.input.map_or(Target::Gone, Target::Now)),
            Streams::Later(later) => {
                let (output, input) = attachment::later(later);
                (output, Target::Later(input))
            }
        };
        self.inner.container_event(&view, "attach", &[]);
        let inner = self.inner.clone();
        let on_detach = move || inner.container_event(&view, "detach", &[]);
        let output = detach.over(past.chain(output).boxed(), on_detach);
        let input = streams
            .stdin
            .then(|| Box::pin(Input::new(target, keys, detach)) as _);
        Ok(Attachment { tty, output, input })
    }

    /// `POST /containers/ID/resize`.
    pub async fn resize(&self, id: &str, size: TtySize) -> Result<()> {
        let container = self.inner.container(id)?;
        let sandbox = container
            .ask(|reply| Message::Sandbox {
                paused: Paused::Allowed,
                reply,
            })
            .await?;
        sandbox
            .resize_tty(&caisson_runtime::ProcessId::init(), size)
            .await?;
        let attributes = [
            ("height", size.rows.to_string()),
            ("width", size.columns.to_string()),
        ];
        self.inner
            .container_event(&container.view(), "resize", &attributes);
        Ok(())
    }
}

/// Which signal, and how long until `SIGKILL`; `None`: never.
fn stop_plan(view: &View, options: &StopOptions) -> Result<(i32, Option<Duration>)> {
    let config = &view.definition.config;
    let text = match options.signal.as_deref() {
        Some(text) if !text.is_empty() => text,
        _ if config.stop_signal.is_empty() => "TERM",
        _ => config.stop_signal.as_str(),
    };
    let signal =
        signals::parse(text).ok_or_else(|| Error::invalid(format!("Invalid signal: {text}")))?;
    let seconds = options
        .timeout_s
        .or(config.stop_timeout)
        .unwrap_or(DEFAULT_STOP_TIMEOUT_S);
    Ok((signal, u64::try_from(seconds).ok().map(Duration::from_secs)))
}

async fn until_down(container: &Container) {
    // An error means that the container is gone: as down as can be.
    let _ = container
        .watch()
        .wait_for(|v| v.removed || !v.state.status.is_up())
        .await;
}

/// Signal, grace, `SIGKILL`; returns when the container is down.
pub(crate) async fn bring_down(
    container: &Container,
    signal: i32,
    timeout: Option<Duration>,
    intent: Intent,
) -> Result<()> {
    let send = |signal| async move {
        match container
            .ask(|reply| Message::Signal {
                signal,
                intent,
                reply,
            })
            .await
        {
            Err(_) if !container.view().state.status.is_up() => Ok(()),
            other => other,
        }
    };
    send(signal).await?;
    match timeout {
        None => until_down(container).await,
        Some(timeout) => {
            if tokio::time::timeout(timeout, until_down(container))
                .await
                .is_err()
            {
                tracing::info!(container = container.id, "did not stop in time: killing it");
                send(nix::libc::SIGKILL).await?;
                let killed =
                    tokio::time::timeout(Duration::from_secs(30), until_down(container)).await;
                if killed.is_err() {
                    return Err(Error::internal(format!(
                        "cannot stop container: {}: it did not die within 30 s of SIGKILL; a process of it is stuck in the kernel",
                        container.id
                    )));
                }
            }
        }
    }
    Ok(())
}
