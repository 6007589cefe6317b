//! What each request does.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::rc::Rc;

use caisson_jail::cgroup::Cgroup;
use caisson_jail::{Exec, Gate, Init, Root, Setup};
use caisson_protocol::{
    CreateRequest, Error, INIT, Request, Response, SandboxState, SignalRequest, SpawnRequest,
};
use nix::unistd::Pid;
use oci_spec::runtime::{LinuxResources, Process as OciProcess, Spec};
use serde_json::value::RawValue;

use crate::connection::MAX_OUTSTANDING_WAITS;
use crate::jail_error;
use crate::process::{ConnectionId, OUTPUTS, Process, State, open_streams, watch_streams};
use crate::supervisor::{Sandbox, Supervisor};

impl Supervisor {
    /// Takes one request; most are answered before this returns.
    pub(crate) fn handle(&mut self, connection: ConnectionId, id: u64, request: Request) {
        let result = match request {
            Request::Create(request) => {
                let result = self.create(request);
                // There is nothing a supervisor without a sandbox could do.
                self.leaving |= result.is_err() && self.sandbox.is_none();
                result
            }
            Request::Spawn(request) => self.spawn(request),
            Request::Start(request) => self.start(&request.process),
            Request::Wait(request) => match self.wait(connection, id, &request.process) {
                Ok(Some(response)) => Ok(response),
                Ok(None) => return,
                Err(error) => Err(error),
            },
            Request::Pid(request) => self
                .process(&request.process)
                .map(|p| Response::Pid(p.pid.as_raw())),
            Request::Signal(request) => self.signal(&request),
            Request::Resize(request) => self
                .process(&request.process)
                .and_then(|p| p.resize(request.size))
                .map(|()| Response::Done),
            Request::State => self.state(),
            Request::Pause => self.pause(),
            Request::Resume => self.resume(),
            Request::Update(request) => self.update(&request.resources),
            Request::Stats => self.stats(),
            Request::Processes(request) => self.process_table(&request.ps_args),
            Request::Destroy(request) => return self.destroy(connection, id, request),
            Request::Attach(request) => return self.attach(connection, id, request),
            Request::StatPath(_) | Request::ReadPath(_) | Request::WritePath(_) => {
                return self.hand_to_worker(connection, id, request);
            }
        };
        self.answer(connection, id, result);
    }

    pub(crate) fn made(&self) -> Result<&Sandbox, Error> {
        self.sandbox
            .as_ref()
            .ok_or_else(|| Error::conflict("there is no sandbox yet"))
    }

    fn made_mut(&mut self) -> Result<&mut Sandbox, Error> {
        self.sandbox
            .as_mut()
            .ok_or_else(|| Error::conflict("there is no sandbox yet"))
    }

    pub(crate) fn process(&self, id: &str) -> Result<&Process, Error> {
        self.processes
            .get(id)
            .ok_or_else(|| Error::not_found(format!("no process {id} in this sandbox")))
    }

    fn create(&mut self, request: CreateRequest) -> Result<Response, Error> {
        if self.sandbox.is_some() {
            return Err(Error::conflict("the sandbox has been made already"));
        }
        let mut spec: Spec = parse_oci("runtime spec", &request.spec)?;
        self.host.adapt(&request, &mut spec)?;
        let cgroups_path = spec
            .linux()
            .as_ref()
            .and_then(|l| l.cgroups_path().clone())
            .unwrap_or_else(|| PathBuf::from("/caisson").join(&request.id));
        let cgroup = Cgroup::new(&cgroups_path).map_err(jail_error)?;
        self.host.created(&cgroups_path)?;
        let mounted = match self.host.mount(&request, &mut spec) {
            Ok(mounted) => mounted,
            Err(error) => {
                let _ = self.host.unmount();
                return Err(error);
            }
        };
        self.sandbox = Some(Sandbox {
            id: request.id,
            spec,
            rootfs: mounted.root,
            changes: mounted.changes,
            cgroup,
            reaper: request.reaper,
            paused: false,
        });
        Ok(Response::Done)
    }

    fn spawn(&mut self, request: SpawnRequest) -> Result<Response, Error> {
        let id = check_process_id(&request.process)?;
        let sandbox = self.made()?;
        if self.destruction.is_some() {
            return Err(Error::conflict("the sandbox is being destroyed"));
        }
        if self.processes.contains_key(id) {
            return Err(Error::conflict(format!("there is a process {id} already")));
        }
        let mut oci: OciProcess = parse_oci("process", &request.spec)?;
        self.host.adapt_process(&mut oci);
        forget_own_protection(&mut oci);
        let terminal = oci.terminal().unwrap_or(false);
        let joined = self.joined_by(id, sandbox.paused)?;
        let oom_kills_before = match joined {
            Some(_) => sandbox.cgroup.oom_kills().unwrap_or(0),
            None => 0,
        };
        let log = request
            .stdio
            .log
            .as_ref()
            .map(|file| self.host.open_log(file))
            .transpose()?;
        let (stdio, ends) = open_streams(&request.stdio, terminal, request.size)?;
        let mut init = self.make_process(oci, joined, stdio)?;
        let terminal = init.console.take();
        let (outputs, input) = watch_streams(
            &mut self.poller,
            ends,
            terminal.as_ref(),
            request.stdio.stdin,
        )
        .map_err(|e| Error::failed("cannot watch the process' streams", e))?;
        let pid = init.pid;
        let mut process = Process {
            id: id.into(),
            pid,
            init,
            state: State::Held,
            terminal,
            outputs,
            stalled: false,
            input,
            stdin_once: request.stdio.stdin_once,
            attachments: Vec::new(),
            log,
            waiters: Vec::new(),
            cut_at: None,
            oom_kills_before,
        };
        process.listen(true);
        self.register_process(process);
        Ok(Response::Pid(pid.as_raw()))
    }

    /// The first process, whose namespaces any other one joins.
    fn joined_by(&self, id: &str, paused: bool) -> Result<Option<Pid>, Error> {
        match self.processes.get(INIT) {
            _ if id == INIT => Ok(None),
            Some(init) if matches!(init.state, State::Running) && !paused => Ok(Some(init.pid)),
            Some(_) if paused => Err(Error::conflict("the container is paused: unpause it first")),
            _ => Err(Error::conflict("the container is not running")),
        }
    }

    /// Makes a process that is held until it is started: the first one, or one that joins it.
    fn make_process(
        &mut self,
        oci: OciProcess,
        joined: Option<Pid>,
        stdio: caisson_jail::Stdio,
    ) -> Result<Init, Error> {
        let sandbox = self.made_mut()?;
        if let Some(init_pid) = joined {
            return caisson_jail::exec(Exec {
                init_pid,
                spec: &sandbox.spec,
                process: &oci,
                stdio,
                cgroup: &sandbox.cgroup,
                preserve_fds: 0,
                hold: true,
            })
            .map_err(jail_error);
        }
        let mut spec = sandbox.spec.clone();
        spec.set_process(Some(oci));
        let init = caisson_jail::create(Setup {
            id: &sandbox.id,
            spec: &spec,
            root: Root::Mounted(sandbox.rootfs.clone()),
            stdio,
            gate: Gate::Pipe,
            cgroup: &sandbox.cgroup,
            reaper: sandbox.reaper,
            preserve_fds: 0,
            no_pivot: false,
            no_new_keyring: false,
            die_with_parent: true,
        })
        .map_err(jail_error)?;
        sandbox.spec = spec;
        Ok(init)
    }

    fn start(&mut self, id: &str) -> Result<Response, Error> {
        let process = self
            .processes
            .get_mut(id)
            .ok_or_else(|| Error::not_found(format!("no process {id} in this sandbox")))?;
        if !matches!(process.state, State::Held) {
            return Err(Error::conflict(format!(
                "process {id} has been started already"
            )));
        }
        match process.init.start() {
            Ok(()) => {
                process.state = State::Running;
                Ok(Response::Done)
            }
            Err(error) => {
                let error = jail_error(error);
                let id = Rc::clone(&process.id);
                let waiters = std::mem::take(&mut process.waiters);
                let _ = nix::sys::signal::kill(process.pid, nix::sys::signal::Signal::SIGKILL);
                for (connection, request) in waiters {
                    self.answer(connection, request, Err(error.clone()));
                }
                for stream in OUTPUTS {
                    self.output_ended(&id, stream);
                }
                if let Some(process) = self.processes.remove(&id) {
                    self.forget_sources(process.tokens());
                }
                Err(error)
            }
        }
    }

    fn wait(
        &mut self,
        connection_id: ConnectionId,
        request_id: u64,
        id: &str,
    ) -> Result<Option<Response>, Error> {
        let process = self
            .processes
            .get_mut(id)
            .ok_or_else(|| Error::not_found(format!("no process {id} in this sandbox")))?;
        if let State::Exited(status) = &process.state {
            return Ok(Some(Response::Exited(status.clone())));
        }
        let Some(connection) = self.connections.get_mut(&connection_id) else {
            return Ok(None);
        };
        if connection.outstanding_waits >= MAX_OUTSTANDING_WAITS {
            return Err(Error::conflict("too many waits on one connection"));
        }
        connection.outstanding_waits += 1;
        process.waiters.push((connection_id, request_id));
        Ok(None)
    }

    fn signal(&mut self, request: &SignalRequest) -> Result<Response, Error> {
        let process = self.process(&request.process)?;
        if process.is_over() {
            return Err(Error::not_found(format!(
                "process {} has ended",
                request.process
            )));
        }
        crate::sys::send_signal(process.init.pidfd.as_fd(), request.signal).map_err(|errno| {
            match errno {
                nix::errno::Errno::ESRCH => {
                    Error::not_found(format!("process {} has ended", request.process))
                }
                nix::errno::Errno::EINVAL => {
                    Error::invalid(format!("{} is no signal", request.signal))
                }
                other => Error::failed("cannot send the signal", other),
            }
        })?;
        Ok(Response::Done)
    }

    fn state(&self) -> Result<Response, Error> {
        let sandbox = self.made()?;
        Ok(Response::State(
            match self.processes.get(INIT).map(|init| &init.state) {
                None => SandboxState::Created,
                Some(State::Held) => SandboxState::Held,
                Some(State::Running) if sandbox.paused => SandboxState::Paused,
                Some(State::Running) => SandboxState::Running,
                Some(State::Exited(status)) => SandboxState::Exited(status.clone()),
            },
        ))
    }

    fn pause(&mut self) -> Result<Response, Error> {
        if !matches!(
            self.processes.get(INIT).map(|p| &p.state),
            Some(State::Running)
        ) {
            return Err(Error::conflict("the container is not running"));
        }
        let sandbox = self.made_mut()?;
        if sandbox.paused {
            return Err(Error::conflict("the container is paused already"));
        }
        sandbox.cgroup.freeze().map_err(jail_error)?;
        sandbox.paused = true;
        Ok(Response::Done)
    }

    fn resume(&mut self) -> Result<Response, Error> {
        let sandbox = self.made_mut()?;
        if !sandbox.paused {
            return Err(Error::conflict("the container is not paused"));
        }
        sandbox.cgroup.thaw().map_err(jail_error)?;
        sandbox.paused = false;
        Ok(Response::Done)
    }

    fn update(&self, resources: &RawValue) -> Result<Response, Error> {
        let mut resources: LinuxResources = parse_oci("resources", resources)?;
        self.host.adapt_resources(&mut resources);
        self.made()?.cgroup.update(&resources).map_err(jail_error)?;
        Ok(Response::Done)
    }

    /// Gives a connection to a worker process which answers on it.
    fn hand_to_worker(&mut self, connection_id: ConnectionId, request_id: u64, request: Request) {
        let root = self.made().and_then(|sandbox| {
            let init = self
                .processes
                .get(INIT)
                .filter(|p| !p.is_over())
                .map(|p| p.pid);
            crate::files::open_root(&request, sandbox, init)
        });
        let root = match root {
            Ok(root) => root,
            Err(error) => {
                if let Some(connection) = self.connections.get_mut(&connection_id) {
                    connection.answer(request_id, Err(error));
                    connection.closing = true;
                }
                return;
            }
        };
        let Some(connection) = self.connections.remove(&connection_id) else {
            return;
        };
        self.sources.remove(&connection.watched.token());
        let started = connection.into_parts().and_then(|parts| {
            Ok(crate::files::start_worker(
                request_id, request, root, parts,
            )?)
        });
        match started {
            Ok(pid) => self.workers.push(pid),
            Err(error) => {
                tracing::error!(%error, "a worker cannot be made; its client is hung up on")
            }
        }
    }
}

/// A supervisor protected from the kernel's out-of-memory killer must not pass that on to what it supervises.
fn forget_own_protection(process: &mut OciProcess) {
    let own = std::fs::read_to_string("/proc/self/oom_score_adj")
        .ok()
        .and_then(|s| s.trim().parse::<i32>().ok());
    if process.oom_score_adj().is_none() && own.is_some_and(|score| score < 0) {
        process.set_oom_score_adj(Some(0));
    }
}

/// Reads a part of an OCI document; `what` names it in errors.
pub fn parse_oci<T: serde::de::DeserializeOwned>(what: &str, json: &RawValue) -> Result<T, Error> {
    serde_json::from_str(json.get())
        .map_err(|e| Error::invalid(format!("the OCI {what} is not valid: {e}")))
}

/// Ids become file names (exit records) and log fields.
pub fn check_process_id(id: &str) -> Result<&str, Error> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    let fine = id.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && id.len() <= 128
        && id.bytes().all(plain);
    if fine {
        Ok(id)
    } else {
        Err(Error::invalid(format!("{id:?} cannot be a process id")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_ids_cannot_leave_their_directory() {
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "-x",
            "a\0",
            "ä",
            &"x".repeat(129),
        ] {
            assert!(check_process_id(bad).is_err(), "{bad:?}");
        }
        for good in ["init", "0a9f", "exec-1_2.3"] {
            assert!(check_process_id(good).is_ok(), "{good:?}");
        }
    }
}
