//! The end of a sandbox, step by step, without ever blocking the loop for long.
//!
//! ```text
//!   destroy ─ grace? ─▶ SIGTERM to init ─ it ends, or the grace does ─▶ kill the cgroup ─ empty? ─▶ remove it,
//!                                                                          ▲    no │               unmount, answer,
//!                                                                          └───────┘               leave
//! ```
//!
//! The supervisor leaves once attached clients have taken what the processes wrote, or have gone away themselves.

use std::time::{Duration, Instant};

use caisson_protocol::{DestroyRequest, Error, INIT, Response};
use nix::sys::signal::{Signal, kill};

use crate::jail_error;
use crate::process::{ConnectionId, OUTPUTS, State};
use crate::supervisor::Supervisor;

/// Processes that do not die of `SIGKILL` for so long are stuck in the kernel.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(50);

/// A destruction under way.
pub(crate) struct Destruction {
    waiters: Vec<(ConnectionId, u64)>,
    pub(crate) wake_at: Instant,
    phase: Phase,
}

enum Phase {
    /// `SIGTERM` has been sent; `wake_at` ends the grace.
    Grace,
    /// `SIGKILL` has been sent.
    Killing {
        give_up_at: Instant,
        next_look: Duration,
    },
}

impl Supervisor {
    pub(crate) fn destroy(
        &mut self,
        connection: ConnectionId,
        request_id: u64,
        request: DestroyRequest,
    ) {
        if let Some(destruction) = &mut self.destruction {
            destruction.waiters.push((connection, request_id));
            if request.grace_ms == 0 && matches!(destruction.phase, Phase::Grace) {
                self.begin_killing();
            }
            return;
        }
        let running = self
            .processes
            .get(INIT)
            .filter(|init| matches!(init.state, State::Running))
            .map(|init| init.pid);
        self.destruction = Some(Destruction {
            waiters: vec![(connection, request_id)],
            wake_at: Instant::now() + Duration::from_millis(request.grace_ms),
            phase: Phase::Grace,
        });
        match running {
            Some(pid) if request.grace_ms > 0 => {
                self.thaw();
                let _ = kill(pid, Signal::SIGTERM);
            }
            _ => self.begin_killing(),
        }
    }

    fn thaw(&mut self) {
        if let Some(sandbox) = self.sandbox.as_mut().filter(|s| s.paused) {
            match sandbox.cgroup.thaw() {
                Ok(()) => sandbox.paused = false,
                Err(error) => tracing::warn!(%error, "a paused sandbox cannot be thawed"),
            }
        }
    }

    fn begin_killing(&mut self) {
        let now = Instant::now();
        if let Some(destruction) = &mut self.destruction {
            destruction.phase = Phase::Killing {
                give_up_at: now + KILL_TIMEOUT,
                next_look: FIRST_LOOK,
            };
            destruction.wake_at = now;
        }
        self.continue_destruction();
    }

    /// A deadline has come, or a process has ended.
    pub(crate) fn continue_destruction(&mut self) {
        let init_over = self.processes.get(INIT).is_none_or(|init| init.is_over());
        let now = Instant::now();
        let Some(destruction) = &mut self.destruction else {
            return;
        };
        match &mut destruction.phase {
            Phase::Grace => {
                if init_over || destruction.wake_at <= now {
                    self.begin_killing();
                }
            }
            Phase::Killing {
                give_up_at,
                next_look,
            } => {
                let give_up = *give_up_at <= now;
                destruction.wake_at = now + *next_look;
                *next_look = (*next_look * 2).min(LAST_LOOK);
                match self.kill_all() {
                    Ok(true) => self.finish_destruction(),
                    Ok(false) if give_up => {
                        let stuck = "processes of the sandbox do not end although they were killed";
                        self.fail_destruction(Error::failed("cannot destroy the sandbox", stuck));
                    }
                    Err(error) if give_up => self.fail_destruction(error),
                    // Killed processes need a moment; so may a cgroup that cannot be read just now.
                    Ok(false) | Err(_) => {}
                }
            }
        }
    }

    /// Kills whatever lives; whether nothing does.
    fn kill_all(&mut self) -> Result<bool, Error> {
        for worker in &self.workers {
            let _ = kill(*worker, Signal::SIGKILL);
        }
        for process in self.processes.values().filter(|p| !p.is_over()) {
            let _ = kill(process.pid, Signal::SIGKILL);
        }
        let Some(sandbox) = &self.sandbox else {
            return Ok(true);
        };
        let living = sandbox.cgroup.pids().map_err(jail_error)?;
        if !living.is_empty() {
            sandbox.cgroup.kill().map_err(jail_error)?;
        }
        Ok(living.is_empty()
            && self.workers.is_empty()
            && self.processes.values().all(|p| p.is_over()))
    }

    fn finish_destruction(&mut self) {
        let result = self.release();
        if let Err(error) = result {
            self.fail_destruction(error);
            return;
        }
        self.close_listener();
        for id in self.processes.keys().cloned().collect::<Vec<_>>() {
            for stream in OUTPUTS {
                while self.read_output(&id, stream, usize::MAX).is_some() {}
                self.output_ended(&id, stream);
            }
        }
        self.answer_destruction(Ok(Response::Done));
        self.leaving = true;
    }

    /// Gives the kernel's things back.
    fn release(&mut self) -> Result<(), Error> {
        if let Some(sandbox) = &self.sandbox {
            sandbox.cgroup.remove().map_err(jail_error)?;
        }
        self.host.unmount()
    }

    fn fail_destruction(&mut self, error: Error) {
        tracing::error!(%error, "the sandbox cannot be destroyed");
        if self.life.releases_all {
            self.close_listener();
            self.answer_destruction(Ok(Response::Done));
            self.leaving = true;
            return;
        }
        self.answer_destruction(Err(error));
        self.destruction = None;
    }

    fn answer_destruction(&mut self, result: Result<Response, Error>) {
        let waiters = self
            .destruction
            .as_mut()
            .map(|d| std::mem::take(&mut d.waiters))
            .unwrap_or_default();
        for (connection, request_id) in waiters {
            self.answer(connection, request_id, result.clone());
            self.settle(connection);
        }
    }

    /// For the way out that nobody asked for: kills and releases without waiting for anyone.
    pub(crate) fn release_everything(&mut self) {
        let give_up_at = Instant::now() + Duration::from_secs(2);
        while self.sandbox.is_some()
            && !matches!(self.kill_all(), Ok(true))
            && Instant::now() < give_up_at
        {
            std::thread::sleep(FIRST_LOOK);
            self.reap();
        }
        if let Err(error) = self.release() {
            tracing::error!(%error, "something of the sandbox stays behind");
        }
        self.sandbox = None;
    }
}
