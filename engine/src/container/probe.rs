//! Running the health check while the container runs: a task that probes and reports back.

use std::sync::Arc;
use std::time::Duration;

use caisson_api as api;
use caisson_runtime::{Attach, Output, ProcessId, Sandbox, Stdio};
use futures_util::StreamExt as _;

use super::Message;
use super::actor::Actor;
use crate::Inner;
use crate::health::{Check, OUTPUT_BYTES};
use crate::records::View;

impl Actor {
    pub(super) fn start_probes(&mut self) {
        self.pause_probes();
        let Some(check) = Check::read(&self.view.definition.config) else {
            return;
        };
        let Some(sandbox) = self.sandbox.clone() else {
            return;
        };
        let (inner, mailbox, views, run) = (
            self.inner.clone(),
            self.mailbox.clone(),
            self.watch(),
            self.run,
        );
        let task = tokio::spawn(async move {
            loop {
                let pause = {
                    let view = views.borrow();
                    let status = view.health.as_ref().map_or("", |h| h.status.as_str());
                    check.pause(status, uptime(&view))
                };
                tokio::time::sleep(pause).await;
                let view = views.borrow().clone();
                let probe = probe(&inner, &view, &*sandbox, &check).await;
                let Some(mailbox) = mailbox.upgrade() else {
                    return;
                };
                if mailbox.send(Message::Probed { run, probe }).is_err() {
                    return;
                }
            }
        });
        self.prober = Some(task.abort_handle());
    }

    pub(super) fn pause_probes(&mut self) {
        if let Some(task) = self.prober.take() {
            task.abort();
        }
    }

    pub(super) fn probed(&mut self, probe: api::HealthProbe) {
        let Some(check) = Check::read(&self.view.definition.config) else {
            return;
        };
        let changed = self
            .health
            .record(probe, uptime(&self.view) < check.start_period);
        self.view.health = self.health.report();
        self.publish();
        if let Some(status) = changed {
            self.event(&format!("health_status: {status}"), &[]);
        }
    }
}

fn uptime(view: &View) -> Duration {
    (chrono::Utc::now() - view.state.started_at.0)
        .to_std()
        .unwrap_or_default()
}

async fn probe(
    inner: &Arc<Inner>,
    view: &View,
    sandbox: &dyn Sandbox,
    check: &Check,
) -> api::HealthProbe {
    let start = api::Timestamp::now();
    let id = crate::names::new_id();
    let told = |action: &str| format!("{action}: {}", check.command.join(" "));
    inner.container_event(view, &told("exec_create"), &[("execID", id.clone())]);
    inner.container_event(view, &told("exec_start"), &[("execID", id.clone())]);
    let process = ProcessId(id.clone());
    let mut output = Vec::new();
    let run = run(inner, view, sandbox, check, &process, &mut output);
    let exit_code = match tokio::time::timeout(check.timeout, run).await {
        Ok(Ok(code)) => i64::from(code),
        Ok(Err(e)) => {
            output = e.message.into_bytes();
            -1
        }
        Err(_) => {
            let _ = sandbox.signal(&process, nix::libc::SIGKILL).await;
            output =
                format!("Health check exceeded timeout ({})", humane(check.timeout)).into_bytes();
            -1
        }
    };
    inner.container_event(
        view,
        "exec_die",
        &[("execID", id), ("exitCode", exit_code.to_string())],
    );
    let output = String::from_utf8_lossy(&output).into_owned();
    api::HealthProbe {
        start,
        end: api::Timestamp::now(),
        exit_code,
        output,
    }
}

fn humane(d: Duration) -> String {
    if d.subsec_millis() == 0 {
        format!("{}s", d.as_secs())
    } else {
        format!("{}ms", d.as_millis())
    }
}

async fn run(
    inner: &Arc<Inner>,
    view: &View,
    sandbox: &dyn Sandbox,
    check: &Check,
    id: &ProcessId,
    kept: &mut Vec<u8>,
) -> crate::Result<i32> {
    let request = api::ExecCreateBody {
        cmd: Some(check.command.clone()),
        ..Default::default()
    };
    let process = crate::exec::process(inner, view, request).await?;
    sandbox.spawn(id, process, Stdio::default(), None).await?;
    let mut io = sandbox
        .attach(
            id,
            Attach {
                stdin: false,
                stdout: true,
                stderr: true,
            },
        )
        .await?;
    sandbox.start(id).await?;
    while let Some(Ok(Output::Stdout(bytes) | Output::Stderr(bytes))) = io.output.next().await {
        let room = OUTPUT_BYTES.saturating_sub(kept.len());
        kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
    Ok(sandbox.wait(id).await?.code)
}
