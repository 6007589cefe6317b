//! Children that have ended: our processes, workers, adopted orphans.

use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::SystemTime;

use caisson_protocol::{ExitStatus, INIT, Response};
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::process::{OUTPUTS, State};
use crate::supervisor::Supervisor;
use crate::{MAX_ENDED_EXECS, sys};

impl Supervisor {
    /// Takes every status there is.
    pub(crate) fn reap(&mut self) {
        loop {
            match sys::wait_any() {
                Ok(Some((pid, code))) => self.child_ended(pid, code),
                Ok(None) | Err(Errno::ECHILD) => return,
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    tracing::error!(%errno, "children cannot be waited for");
                    return;
                }
            }
        }
    }

    fn child_ended(&mut self, pid: Pid, code: i32) {
        self.workers.retain(|worker| *worker != pid);
        let ended = self
            .processes
            .values()
            .find(|p| p.pid == pid && !p.is_over())
            .map(|p| Rc::clone(&p.id));
        if let Some(id) = ended {
            self.process_ended(&id, code);
        }
    }

    fn process_ended(&mut self, id: &Rc<str>, code: i32) {
        self.drain_outputs(id);
        let oom_kills = self
            .sandbox
            .as_ref()
            .and_then(|s| s.cgroup.oom_kills().ok())
            .unwrap_or(0);
        let cut_at = self.grace_of_streams();
        let Some(process) = self.processes.get_mut(id) else {
            return;
        };
        let status = ExitStatus {
            code,
            oom_killed: oom_kills > process.oom_kills_before,
            at: SystemTime::now(),
        };
        if let Some(log) = &mut process.log {
            log.flush();
        }
        process.state = State::Exited(status.clone());
        let input = process.input.token();
        process.input.abandon();
        process.cut_at = process
            .outputs
            .iter()
            .any(Option::is_some)
            .then_some(cut_at);
        let waiters = std::mem::take(&mut process.waiters);
        self.forget_sources(input.into_iter());
        self.host.exited(id, &status);
        self.journal_exit(id, &status);
        for (connection_id, request_id) in waiters {
            self.answer(
                connection_id,
                request_id,
                Ok(Response::Exited(status.clone())),
            );
            if let Some(connection) = self.connections.get_mut(&connection_id) {
                connection.outstanding_waits -= 1;
            }
            self.understand(connection_id);
            self.settle(connection_id);
        }
        self.close_finished_attachments(id);
        if &**id != INIT {
            self.ended.push(Rc::clone(id));
            self.forget_old_execs();
        }
        if self.destruction.is_some() {
            self.continue_destruction();
        }
    }

    /// Reads what the process had written before it ended. Bounded by what is in the pipe now: someone else may go on
    /// writing into it.
    fn drain_outputs(&mut self, id: &Rc<str>) {
        for stream in OUTPUTS {
            let index = usize::from(stream == caisson_protocol::Stream::Stderr);
            let waiting = self
                .processes
                .get(id)
                .and_then(|p| p.outputs[index].as_ref())
                .and_then(|output| sys::readable_bytes(output.as_fd()).ok());
            let Some(mut left) = waiting else { continue };
            while left > 0 {
                match self.read_output(id, stream, left) {
                    Some(count) => left -= count,
                    None => break,
                }
            }
            // One more look, for the end.
            if self
                .processes
                .get(id)
                .is_some_and(|p| p.outputs[index].is_some())
            {
                self.read_output(id, stream, usize::MAX);
            }
        }
    }

    fn forget_old_execs(&mut self) {
        while self.ended.len() > MAX_ENDED_EXECS {
            let id = self.ended.remove(0);
            self.remove_process(&id);
            self.host.forget(&id);
        }
    }

    /// Takes a process out of everything.
    pub(crate) fn remove_process(&mut self, id: &Rc<str>) {
        let Some(process) = self.processes.remove(id) else {
            return;
        };
        self.forget_sources(process.tokens());
        for connection in process.attachments {
            self.drop_connection(connection);
        }
    }
}
