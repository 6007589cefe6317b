//! The task that owns one container's state: takes messages one by one, keeps record, view and sandbox in step.
//!
//! Order of effects: the record says it before the resource is made, and no longer says it once the resource is gone.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use caisson_api as api;
use caisson_runtime::{ProcessId, Runtime, Sandbox};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::attach::{Drain, Pending};
use super::files::Idle;
use super::{Container, Dir, Intent, Message, Paused};
use crate::Inner;
use crate::db::Durability;
use crate::error::{Error, Result};
use crate::health;
use crate::options::Outcome;
use crate::records::{self, State, Status, View};
use crate::restart::BackOff;
use crate::spec::resources;

pub(crate) struct Actor {
    pub(super) inner: Arc<Inner>,
    pub(super) runtime: Option<Arc<dyn Runtime>>,
    pub(super) view: View,
    published: watch::Sender<Arc<View>>,
    inbox: mpsc::UnboundedReceiver<Message>,
    pub(super) mailbox: mpsc::WeakUnboundedSender<Message>,
    pub(super) sandbox: Option<Arc<dyn Sandbox>>,
    pub(super) idle: Option<Idle>,
    deferred: VecDeque<Message>,
    pub(super) pending: Vec<Pending>,
    pub(super) drains: Vec<Arc<Drain>>,
    pub(super) back_off: BackOff,
    /// Counts starts: notices of an earlier run are ignored.
    pub(super) run: u64,
    /// What the user wants this run's end to mean.
    pub(super) ending: Option<Intent>,
    pub(super) keep_on_exit: bool,
    pub(super) timer: Option<AbortHandle>,
    pub(super) prober: Option<AbortHandle>,
    pub(super) health: health::Machine,
}

/// Starts the task of a container. `sandbox`: found again after a daemon restart, with its first process running.
pub(crate) fn spawn(
    inner: &Arc<Inner>,
    view: View,
    recovered: Option<Arc<dyn Sandbox>>,
) -> Arc<Container> {
    let (mailbox, inbox) = mpsc::unbounded_channel();
    let (published, seen) = watch::channel(Arc::new(view.clone()));
    let container = Arc::new(Container {
        id: view.id.clone(),
        mailbox: mailbox.clone(),
        view: seen,
    });
    let runtime = inner.runtimes.for_recovery(view.definition.isolation);
    let mut actor = Actor {
        inner: inner.clone(),
        runtime,
        view,
        published,
        inbox,
        mailbox: mailbox.downgrade(),
        sandbox: None,
        idle: None,
        deferred: VecDeque::new(),
        pending: Vec::new(),
        drains: Vec::new(),
        back_off: BackOff::default(),
        run: 0,
        ending: None,
        keep_on_exit: false,
        timer: None,
        prober: None,
        health: health::Machine::default(),
    };
    if let Some(sandbox) = recovered {
        actor.adopt(sandbox);
    }
    tokio::spawn(actor.live());
    container
}

impl Actor {
    async fn live(mut self) {
        while let Some(message) = self.inbox.recv().await {
            let defer = self.idle.as_ref().is_some_and(Idle::is_leased)
                && matches!(
                    message,
                    Message::Start { .. } | Message::Remove { .. } | Message::RestartNow { .. }
                );
            if defer {
                // Someone copies files: two overlays over one upper directory must not be.
                self.deferred.push_back(message);
                continue;
            }
            if self.handle(message).await.is_break() {
                return;
            }
            while self.idle.is_none()
                && let Some(message) = self.deferred.pop_front()
            {
                if self.handle(message).await.is_break() {
                    return;
                }
            }
        }
    }

    async fn handle(&mut self, message: Message) -> std::ops::ControlFlow<()> {
        match message {
            Message::Start { reply } => {
                let result = self.start_by_user().await;
                let failed = result.is_err();
                let _ = reply.send(result);
                if failed
                    && self.view.definition.host.auto_remove
                    && !self.view.state.status.is_up()
                {
                    return self.remove_quietly().await;
                }
            }
            Message::Signal {
                signal,
                intent,
                reply,
            } => {
                let result = self.signal(signal, intent).await;
                let _ = reply.send(result);
            }
            Message::Pause { reply } => {
                let result = self.pause().await;
                let _ = reply.send(result);
            }
            Message::Unpause { reply } => {
                let result = self.unpause().await;
                let _ = reply.send(result);
            }
            Message::Rename { name, reply } => {
                let result = self.rename(name).await;
                let _ = reply.send(result);
            }
            Message::Update { update, reply } => {
                let result = self.update(*update).await;
                let _ = reply.send(result);
            }
            Message::Remove { force, reply } => {
                let result = self.remove(force).await;
                let removed = result.is_ok();
                let _ = reply.send(result);
                if removed {
                    return std::ops::ControlFlow::Break(());
                }
            }
            Message::Attach { streams, reply } => {
                let result = self.attach(streams).await;
                let _ = reply.send(result);
            }
            Message::Sandbox { paused, reply } => {
                let _ = reply.send(self.running_sandbox(paused));
            }
            Message::Files { reply } => {
                let result = self.lease_files().await;
                let _ = reply.send(result);
            }
            Message::Released => self.end_idle().await,
            Message::Exited { run, status } => {
                if run == self.run && self.sandbox.is_some() {
                    return self.exited(status).await;
                }
            }
            Message::RestartNow { run } => {
                if run == self.run && self.view.state.status == Status::Restarting {
                    return self.restart_by_policy().await;
                }
            }
            Message::Probed { run, probe } => {
                if run == self.run && self.sandbox.is_some() {
                    self.probed(probe);
                }
            }
            Message::KeepOnExit(keep) => {
                self.keep_on_exit = keep;
                if !keep && self.view.definition.host.auto_remove && !self.view.state.status.is_up()
                {
                    return self.remove_quietly().await;
                }
            }
            Message::SaveState => self.save_state_or_log().await,
            Message::Quit { done } => {
                self.stop_timers();
                let _ = done.send(());
                return std::ops::ControlFlow::Break(());
            }
        }
        std::ops::ControlFlow::Continue(())
    }

    /// Shows the view to readers.
    pub(super) fn publish(&self) {
        self.published.send_replace(Arc::new(self.view.clone()));
    }

    /// For tasks that look at the view.
    pub(super) fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.published.subscribe()
    }

    /// Publishes an event of this container, with more attributes.
    pub(super) fn event(&self, action: &str, more: &[(&str, String)]) {
        self.inner.container_event(&self.view, action, more);
    }

    /// Writes the state down.
    pub(super) async fn save_state(&self) -> Result<()> {
        self.inner
            .db
            .set_state(self.view.id.clone(), records::to_json(&self.view.state)?)
            .await
    }

    /// Writes the state down where there is nobody to tell that it failed: tries again until it succeeds.
    pub(super) async fn save_state_or_log(&self) {
        const AGAIN: Duration = Duration::from_secs(5);
        if let Err(e) = self.save_state().await {
            tracing::error!(container = self.view.id, error = %e, "the container's state could not be written down");
            let mailbox = self.mailbox.clone();
            tokio::spawn(async move {
                tokio::time::sleep(AGAIN).await;
                if let Some(mailbox) = mailbox.upgrade() {
                    let _ = mailbox.send(Message::SaveState);
                }
            });
        }
    }

    pub(super) fn dir(&self) -> Dir {
        Dir::new(&self.inner.config.data_root, &self.view.id)
    }

    pub(super) fn stop_timers(&mut self) {
        for handle in [self.timer.take(), self.prober.take()]
            .into_iter()
            .flatten()
        {
            handle.abort();
        }
    }

    pub(super) fn running_sandbox(&self, paused: Paused) -> Result<Arc<dyn Sandbox>> {
        match (&self.sandbox, self.view.state.status) {
            (Some(_), Status::Paused) if paused == Paused::Refused => {
                Err(Error::conflict(format!(
                    "Container {} is paused, unpause the container before exec",
                    self.view.id
                )))
            }
            (Some(sandbox), _) => Ok(sandbox.clone()),
            (None, Status::Restarting) => Err(Error::conflict(format!(
                "Container {} is restarting, wait until the container is running",
                self.view.id
            ))),
            (None, _) => Err(self.not_running()),
        }
    }

    pub(super) fn not_running(&self) -> Error {
        Error::conflict(format!("container {} is not running", self.view.id))
    }

    async fn start_by_user(&mut self) -> Result<Outcome> {
        match self.view.state.status {
            Status::Running => return Ok(Outcome::Unchanged),
            Status::Paused => {
                return Err(Error::conflict(
                    "cannot start a paused container, try unpause instead",
                ));
            }
            Status::Removing | Status::Dead => {
                return Err(Error::conflict(
                    "container is marked for removal and cannot be started",
                ));
            }
            Status::Created | Status::Exited | Status::Restarting => {}
        }
        self.stop_timers();
        self.back_off = BackOff::default();
        self.view.state.restart_count = 0;
        self.view.state.stopped_by_user = false;
        self.start().await.map(|()| Outcome::Changed)
    }

    async fn signal(&mut self, signal: i32, intent: Intent) -> Result<()> {
        let ends = signal == nix::libc::SIGKILL || intent != Intent::Kill;
        if intent == Intent::Stop || (intent == Intent::Kill && self.is_stop_signal(signal)) {
            self.view.state.stopped_by_user = true;
        }
        let Some(sandbox) = self.sandbox.clone() else {
            if self.view.state.status == Status::Restarting && ends {
                self.stop_timers();
                self.view.state.status = Status::Exited;
                self.save_state().await?;
                self.publish();
                return Ok(());
            }
            return Err(self.not_running());
        };
        if ends || self.is_stop_signal(signal) {
            self.ending = Some(match (self.ending, intent) {
                (Some(earlier), Intent::Kill) => earlier,
                (_, intent) => intent,
            });
        }
        if self.view.state.stopped_by_user {
            self.save_state_or_log().await;
        }
        match sandbox.signal(&ProcessId::init(), signal).await {
            Ok(()) => {}
            // It has ended in between: that is what the sender wanted, or its exit will say so in a moment.
            Err(e)
                if e.kind == caisson_runtime::ErrorKind::Conflict
                    || e.kind == caisson_runtime::ErrorKind::NotFound => {}
            Err(e) => return Err(e.into()),
        }
        self.event("kill", &[("signal", signal.to_string())]);
        if self.view.state.status == Status::Paused && ends {
            // A frozen process cannot die of it.
            sandbox.resume().await?;
            self.view.state.status = Status::Running;
            self.publish();
        }
        Ok(())
    }

    fn is_stop_signal(&self, signal: i32) -> bool {
        signal == nix::libc::SIGKILL
            || crate::signals::parse(&self.view.definition.config.stop_signal)
                .unwrap_or(nix::libc::SIGTERM)
                == signal
    }

    async fn pause(&mut self) -> Result<()> {
        match self.view.state.status {
            Status::Running => {}
            Status::Paused => {
                return Err(Error::conflict(format!(
                    "Container {} is already paused",
                    self.view.id
                )));
            }
            Status::Restarting => {
                return Err(Error::conflict(format!(
                    "Container {} is restarting, wait until the container is running",
                    self.view.id
                )));
            }
            _ => {
                return Err(Error::conflict(format!(
                    "Container {} is not running",
                    self.view.id
                )));
            }
        }
        let sandbox = self.sandbox.clone().ok_or_else(|| self.not_running())?;
        sandbox.pause().await?;
        self.view.state.status = Status::Paused;
        self.pause_probes();
        self.save_state_or_log().await;
        self.publish();
        self.event("pause", &[]);
        Ok(())
    }

    async fn unpause(&mut self) -> Result<()> {
        if self.view.state.status != Status::Paused {
            return Err(Error::conflict(format!(
                "Container {} is not paused",
                self.view.id
            )));
        }
        let sandbox = self.sandbox.clone().ok_or_else(|| self.not_running())?;
        sandbox.resume().await?;
        self.view.state.status = Status::Running;
        self.start_probes();
        self.save_state_or_log().await;
        self.publish();
        self.event("unpause", &[]);
        Ok(())
    }

    async fn rename(&mut self, name: String) -> Result<()> {
        let old = self.view.name.clone();
        if name == old {
            return Err(Error::invalid(
                "Renaming a container with the same name as its current name",
            ));
        }
        self.inner.registry().index.reserve(&name, &self.view.id)?;
        let definition = records::to_json(&*self.view.definition)?;
        if let Err(e) = self
            .inner
            .db
            .set_definition(self.view.id.clone(), name.clone(), definition)
            .await
        {
            self.inner
                .registry()
                .index
                .release_name(&name, &self.view.id);
            return Err(e);
        }
        self.inner
            .registry()
            .index
            .release_name(&old, &self.view.id);
        self.view.name = name;
        self.publish();
        self.event("rename", &[("oldName", format!("/{old}"))]);
        Ok(())
    }

    async fn update(&mut self, update: api::UpdateBody) -> Result<Vec<String>> {
        if matches!(self.view.state.status, Status::Removing | Status::Dead) {
            return Err(Error::conflict(
                "container is marked for removal and cannot be updated",
            ));
        }
        let mut definition = (*self.view.definition).clone();
        let mut merged = resources::merge_update(&definition.host.resources, &update.resources)?;
        let warnings = resources::check(&mut merged, crate::create::cpus_online())?;
        definition.host.resources = merged;
        if !update.restart_policy.name.is_empty() {
            if definition.host.auto_remove && update.restart_policy.name != "no" {
                return Err(Error::conflict(
                    "Restart policy cannot be updated because AutoRemove is enabled for the container",
                ));
            }
            crate::restart::Policy::parse(
                &update.restart_policy.name,
                update.restart_policy.maximum_retry_count,
            )
            .map_err(Error::invalid)?;
            definition.host.restart_policy = update.restart_policy;
        }
        if let Some(sandbox) = &self.sandbox {
            sandbox
                .update(&resources::to_oci(&definition.host.resources)?)
                .await?;
        }
        self.inner
            .db
            .set_definition(
                self.view.id.clone(),
                self.view.name.clone(),
                records::to_json(&definition)?,
            )
            .await?;
        self.view.definition = Arc::new(definition);
        self.publish();
        self.event("update", &[]);
        Ok(warnings)
    }

    /// After an exit with `--rm`, or a start that failed.
    pub(super) async fn remove_quietly(&mut self) -> std::ops::ControlFlow<()> {
        match self.remove(false).await {
            Ok(()) => std::ops::ControlFlow::Break(()),
            Err(e) => {
                tracing::error!(container = self.view.id, error = %e, "the container could not be removed automatically");
                std::ops::ControlFlow::Continue(())
            }
        }
    }

    async fn remove(&mut self, force: bool) -> Result<()> {
        if self.view.state.status.is_up() && !force {
            let why = match self.view.state.status {
                Status::Paused => {
                    "container is paused and must be unpaused first: unpause and then stop the container before removing or force remove"
                }
                _ => "container is running: stop the container before removing or force remove",
            };
            return Err(Error::conflict(format!(
                "cannot remove container \"/{}\": {why}",
                self.view.name
            )));
        }
        self.stop_timers();
        let durability = self.inner.durability(&self.view.definition);
        if durability == Durability::Flushed {
            self.view.state.status = Status::Removing;
            self.save_state_or_log().await;
            self.publish();
        }
        if let Some(sandbox) = self.sandbox.clone() {
            self.kill_for_removal(&*sandbox).await;
        }
        self.pending.clear();
        if let Some(idle) = self.idle.take() {
            let _ = idle.sandbox.destroy(Duration::ZERO).await;
        }
        let dir = self.dir();
        if let Err(e) = self.inner.delete_dir(dir.path().to_path_buf()).await {
            self.view.state.status = Status::Dead;
            self.view.state.error = e.message.clone();
            self.save_state_or_log().await;
            self.publish();
            return Err(e.context(format!("container {} could not be removed", self.view.id)));
        }
        self.inner
            .db
            .delete(self.view.id.clone(), durability)
            .await?;
        self.inner.execs.forget_container(&self.view.id);
        {
            let mut registry = self.inner.registry();
            registry.index.release(&self.view.name, &self.view.id);
            registry.containers.remove(&self.view.id);
        }
        self.event("destroy", &[]);
        self.view.removed = true;
        self.publish();
        Ok(())
    }

    async fn kill_for_removal(&mut self, sandbox: &dyn Sandbox) {
        if self.view.state.status == Status::Paused {
            let _ = sandbox.resume().await;
        }
        let _ = sandbox.signal(&ProcessId::init(), nix::libc::SIGKILL).await;
        self.event("kill", &[("signal", "9".into())]);
        let status =
            tokio::time::timeout(Duration::from_secs(10), sandbox.wait(&ProcessId::init())).await;
        let code = status.ok().and_then(Result::ok).map_or(137, |s| s.code);
        if let Err(e) = sandbox.destroy(Duration::ZERO).await {
            tracing::error!(container = self.view.id, error = %e, "the sandbox could not be destroyed");
        }
        self.sandbox = None;
        self.view.state.exit_code = code;
        self.view.state.finished_at = api::Timestamp::now();
        self.view.exits += 1;
        self.view.pid = 0;
        self.event("die", &[("exitCode", code.to_string())]);
    }

    /// Forgets a run's leftovers in the state before the next one.
    pub(super) fn reset_state_for_start(&mut self) -> State {
        let before = self.view.state.clone();
        self.view.state.error.clear();
        self.view.state.oom_killed = false;
        before
    }
}
