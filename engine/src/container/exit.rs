//! What happens when the first process has ended: record, sandbox, policy, `--rm`.

use std::ops::ControlFlow;
use std::time::Duration;

use caisson_api as api;
use caisson_runtime::{ExitStatus, Sandbox};

use super::actor::Actor;
use super::{Intent, Message};
use crate::error::Result;
use crate::health;
use crate::records::Status;
use crate::restart::{Decision, Policy};

impl Actor {
    pub(super) async fn exited(&mut self, status: Result<ExitStatus>) -> ControlFlow<()> {
        let Some(sandbox) = self.sandbox.take() else {
            return ControlFlow::Continue(());
        };
        self.stop_timers();
        let state = &mut self.view.state;
        match status {
            Ok(status) => {
                state.exit_code = status.code;
                state.oom_killed = status.oom_killed;
                state.finished_at = status.at.into();
            }
            Err(e) => {
                state.exit_code = 137;
                state.error = format!("the container's supervisor was lost: {}", e.message);
                state.finished_at = api::Timestamp::now();
            }
        }
        let up = (state.finished_at.0 - state.started_at.0)
            .to_std()
            .unwrap_or_default();
        let decision = self.decide(up);
        let state = &mut self.view.state;
        state.status = match decision {
            Decision::RestartAfter(_) => Status::Restarting,
            Decision::Stay => Status::Exited,
        };
        let (code, oom_killed) = (state.exit_code, state.oom_killed);
        self.view.pid = 0;
        self.view.exits += 1;
        if let Some(h) = &mut self.view.health {
            h.status = health::AFTER_EXIT.into();
        }
        // First the record, then the resource: the shim's own exit record goes with the sandbox.
        self.save_state_or_log().await;
        if oom_killed {
            self.event("oom", &[]);
        }
        self.event(
            "die",
            &[
                ("exitCode", code.to_string()),
                ("execDuration", up.as_secs().to_string()),
            ],
        );
        self.publish();
        self.drain_and_destroy(&*sandbox).await;
        self.inner.execs.container_ended(&self.view.id);
        match decision {
            Decision::RestartAfter(delay) => {
                self.schedule_restart(delay);
                ControlFlow::Continue(())
            }
            Decision::Stay => {
                if self.view.definition.host.auto_remove
                    && !self.keep_on_exit
                    && self.ending != Some(Intent::Shutdown)
                {
                    return self.remove_quietly().await;
                }
                ControlFlow::Continue(())
            }
        }
    }

    fn decide(&mut self, up: Duration) -> Decision {
        let policy = &self.view.definition.host.restart_policy;
        let policy = Policy::parse(&policy.name, policy.maximum_retry_count).unwrap_or(Policy::No);
        let stopped = self.keep_on_exit
            || self.ending.is_some_and(|i| i != Intent::Kill)
            || self.view.state.stopped_by_user;
        self.back_off.decide(
            policy,
            self.view.state.exit_code,
            stopped,
            self.view.state.restart_count,
            up,
        )
    }

    /// Lets attached clients read the rest, then takes the sandbox away.
    async fn drain_and_destroy(&mut self, sandbox: &dyn Sandbox) {
        let drains = std::mem::take(&mut self.drains);
        futures_util::future::join_all(drains.iter().map(|d| d.drained())).await;
        if let Err(e) = sandbox.destroy(Duration::ZERO).await {
            tracing::error!(container = self.view.id, error = %e, "the sandbox could not be destroyed");
        }
    }

    pub(super) fn schedule_restart(&mut self, delay: Duration) {
        let (mailbox, run) = (self.mailbox.clone(), self.run);
        let task = tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            if let Some(mailbox) = mailbox.upgrade() {
                let _ = mailbox.send(Message::RestartNow { run });
            }
        });
        self.timer = Some(task.abort_handle());
    }

    pub(super) async fn restart_by_policy(&mut self) -> ControlFlow<()> {
        self.timer = None;
        self.view.state.restart_count += 1;
        if let Err(e) = self.start().await {
            tracing::error!(container = self.view.id, error = %e, "the container could not be restarted");
            // Docker keeps trying only what ran: a start that fails ends the policy.
        }
        ControlFlow::Continue(())
    }
}
