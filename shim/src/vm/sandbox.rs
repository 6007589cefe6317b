//! One sandbox in a virtual machine: what the shim answers itself, and what it asks the agent.
//!
//! ```text
//!   create ─▶ plan ─▶ Machine ─▶ agent ready ─▶ agent's Create ─▶ made
//!   the machine ends: every process of it has, with 137
//!   destroy ─▶ agent's Destroy ─▶ the guest resets ─▶ (or is stopped) ─▶ released, the shim leaves
//! ```

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use caisson_jail::cgroup::Cgroup;
use caisson_protocol::{
    CreateRequest, DestroyRequest, Error, ErrorKind, GuestFile, GuestSetup, INIT,
    MAX_GUEST_FILE_BYTES, ProcessRequest, Request, Response, Rootfs, SandboxState, SignalRequest,
    SpawnRequest, UpdateRequest, VmSetup,
};
use caisson_supervisor::{check_process_id, jail_error, parse_oci};
use oci_spec::runtime::{LinuxResources, Spec};
use rustix::event::{EventfdFlags, eventfd};
use serde_json::value::RawValue;

use super::agent::Agent;
use super::journal::{self, Journal};
use super::machine::{self, Machine, Parts};
use super::plan::{self, Copy, DISKS, Plan, Shared};
use super::processes::Processes;
use super::shares;
use super::stats;
use crate::records;

/// How long a boot may take, and how much longer everything takes where ring 0 is emulated.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);
const EMULATED_FACTOR: u32 = 3;

/// How long the agent may take to make its sandbox.
const CREATE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the agent may take to end everything, besides the grace it was given; then how long the guest may take to reset.
const DESTROY_TIMEOUT: Duration = Duration::from_secs(8);
const RESET_TIMEOUT: Duration = Duration::from_secs(6);

/// How long an agent that hung up may take to end its guest.
const LOST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long journals may take to be read once nothing comes any more.
const JOURNAL_PATIENCE: Duration = Duration::from_secs(2);

/// From the agent's word that a process has ended to that of its journal.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);

/// One sandbox.
pub struct Sandbox {
    dir: PathBuf,
    state: Mutex<State>,
    pub processes: Arc<Processes>,
    /// One destruction at a time.
    destroying: Mutex<()>,
}

#[derive(Default)]
struct State {
    making: bool,
    made: Option<Arc<Made>>,
}

/// A sandbox that has been made.
pub struct Made {
    pub machine: Arc<Machine>,
    pub agent: Agent,
    cgroup: Cgroup,
    /// How much longer everything takes than usual.
    factor: u32,
    /// It is being destroyed: its end is what is wanted.
    ending: Arc<AtomicBool>,
    /// The same, for whoever waits for several things: an eventfd that is readable from then on.
    pub destruction: OwnedFd,
}

impl Sandbox {
    /// Nothing has been made yet.
    pub fn new(dir: &Path) -> Self {
        Sandbox {
            dir: dir.to_path_buf(),
            state: Mutex::default(),
            processes: Arc::new(Processes::new(dir)),
            destroying: Mutex::default(),
        }
    }

    /// What has been made.
    pub fn made(&self) -> Result<Arc<Made>, Error> {
        self.state()
            .made
            .clone()
            .ok_or_else(|| Error::conflict("there is no sandbox yet"))
    }

    /// Whether there is a sandbox, or will be.
    pub fn is_used(&self) -> bool {
        let state = self.state();
        state.making || state.made.is_some()
    }

    /// Makes it. To be called by a thread that lives as long as the process: see [`Machine::start`].
    pub fn create(&self, request: CreateRequest) -> Result<Response, Error> {
        {
            let mut state = self.state();
            if state.making || state.made.is_some() {
                return Err(Error::conflict("the sandbox has been made already"));
            }
            state.making = true;
        }
        let made = self.make(request);
        let mut state = self.state();
        state.making = false;
        state.made = Some(Arc::new(made?));
        Ok(Response::Done)
    }

    fn make(&self, request: CreateRequest) -> Result<Made, Error> {
        let setup = request.vm.ok_or_else(|| {
            Error::invalid("the shim is not told what to make the virtual machine of")
        })?;
        let Rootfs::Block { lower, upper } = &request.rootfs else {
            return Err(Error::invalid(
                "the root file system of a virtual machine comes in block images",
            ));
        };
        let spec: Spec = parse_oci("runtime spec", &request.spec)?;
        let host_cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let mut plan = plan::plan(&spec, &setup, host_cpus)?;
        let shares = shares::open(&mut plan)?;
        let files = read_copies(&plan.copies)?;
        let cgroups_path = spec
            .linux()
            .as_ref()
            .and_then(|l| l.cgroups_path().clone())
            .unwrap_or_else(|| PathBuf::from("/caisson").join(&request.id));
        let cgroup = Cgroup::new(&cgroups_path).map_err(jail_error)?;
        records::write_shim_record(&self.dir, &cgroups_path)
            .map_err(|e| Error::failed(format!("cannot write to {}", self.dir.display()), e))?;

        let undo = Undo {
            dir: &self.dir,
            cgroup: Some(cgroup.clone()),
        };
        let parts = Parts {
            id: &request.id,
            dir: &self.dir,
            cgroup: cgroup.clone(),
            setup: &setup,
            image: lower,
            scratch: upper,
            shares,
        };
        let destruction = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| Error::failed("cannot make an eventfd", e))?;
        let machine = Arc::new(Machine::start(parts, &plan)?);
        let result = self.bring_up(&machine, &setup, &plan, files, request.id, request.reaper);
        match result {
            Ok((agent, ending)) => {
                undo.disarm();
                Ok(Made {
                    factor: factor(&setup),
                    machine,
                    agent,
                    cgroup,
                    ending,
                    destruction,
                })
            }
            Err(error) => {
                machine.stop();
                Err(error)
            }
        }
    }

    /// From a machine that has been started to a sandbox in it.
    fn bring_up(
        &self,
        machine: &Arc<Machine>,
        setup: &VmSetup,
        plan: &Plan,
        files: Vec<GuestFile>,
        id: String,
        reaper: bool,
    ) -> Result<(Agent, Arc<AtomicBool>), Error> {
        let factor = factor(setup);
        machine.await_ready(BOOT_TIMEOUT * factor)?;
        machine.log_boot();
        let ending = Arc::new(AtomicBool::new(false));
        let agent = {
            let (machine, ending) = (Arc::clone(machine), Arc::clone(&ending));
            let vsock = machine.vsock();
            Agent::connect(&vsock, move || agent_lost(&machine, &ending))?
        };
        let [_, (_, lower), (_, upper)] = DISKS;
        let create = Request::Create(CreateRequest {
            id,
            spec: raw("runtime spec", &plan.guest)?,
            rootfs: Rootfs::Block {
                lower: lower.into(),
                upper: upper.into(),
            },
            reaper,
            guest: Some(GuestSetup {
                now: SystemTime::now(),
                entropy: entropy()?,
                shares: plan.shares.iter().map(Shared::for_agent).collect(),
                files,
                interfaces: Vec::new(),
            }),
            vm: None,
        });
        agent.call_within(create, Some(CREATE_TIMEOUT * factor))?;
        let (watched, wanted) = (Arc::clone(machine), Arc::clone(&ending));
        let processes = Arc::clone(&self.processes);
        super::spawn("end", move || {
            let end = watched.wait();
            if wanted.load(Ordering::Acquire) && end.orderly {
                tracing::info!("the virtual machine has ended: {}", end.why);
            } else {
                tracing::error!("the virtual machine has ended: {}", end.why);
            }
            processes.all_ended(end.oom_killed, JOURNAL_PATIENCE);
        })
        .map_err(|e| Error::failed("cannot watch the virtual machine", e))?;
        Ok((agent, ending))
    }

    /// Sets a process up and opens its journal.
    pub fn spawn(&self, mut request: SpawnRequest) -> Result<Response, Error> {
        let made = self.made()?;
        let id = check_process_id(&request.process)?.to_string();
        let file = request.stdio.log.take();
        let log = journal::open_log(file.as_ref())?;
        made.agent.call(Request::Spawn(request))?;
        let opened = made
            .agent
            .open()
            .and_then(|connection| Journal::open(&id, log, connection))
            .and_then(|journal| {
                let handle = journal
                    .handle()
                    .map_err(|e| Error::failed("the journal cannot be kept", e))?;
                self.processes.add(&id, handle)?;
                self.keep(&made, id.clone(), journal)
            });
        if let Err(error) = opened {
            // Held, and known to nobody: it must not stay.
            self.processes.remove(&id, &error);
            let kill = SignalRequest {
                process: id,
                signal: libc::SIGKILL,
            };
            let _ = made.agent.call(Request::Signal(kill));
            return Err(error);
        }
        Ok(Response::Pid(made.machine.pid))
    }

    fn keep(&self, made: &Arc<Made>, id: String, journal: Journal) -> Result<(), Error> {
        let (made, processes) = (Arc::clone(made), Arc::clone(&self.processes));
        super::spawn("journal", move || {
            let told = journal.keep(&id, &processes);
            if !told && processes.status(&id).is_none() {
                // The connection broke, the process may live on: its end still counts. When the machine has ended there
                // is no answer, and it is known anyway.
                let wait = Request::Wait(ProcessRequest {
                    process: id.clone(),
                });
                if let Ok(Response::Exited(status)) = made.agent.call(wait) {
                    processes.exited(&id, status.code, status.oom_killed);
                }
            }
            processes.journal_ended(&id);
        })
        .map(drop)
        .map_err(|e| Error::failed("the journal cannot be kept", e))
    }

    /// Lets a held process go on.
    pub fn start(&self, request: ProcessRequest) -> Result<Response, Error> {
        let id = request.process.clone();
        let result = self.made()?.agent.call(Request::Start(request));
        if let Err(error) = &result
            && error.kind != ErrorKind::Conflict
            && error.kind != ErrorKind::NotFound
        {
            // The agent has forgotten it.
            self.processes.remove(&id, error);
        }
        result
    }

    /// The VMM's process id stands for every process of it.
    pub fn pid(&self, request: &ProcessRequest) -> Result<Response, Error> {
        let made = self.made()?;
        if self.processes.knows(&request.process) {
            Ok(Response::Pid(made.machine.pid))
        } else {
            Err(Error::not_found(format!(
                "no process {} in this sandbox",
                request.process
            )))
        }
    }

    /// Sends a signal; what has ended cannot have it.
    pub fn signal(&self, request: SignalRequest) -> Result<Response, Error> {
        let made = self.made()?;
        if self.processes.status(&request.process).is_some() {
            return Err(Error::not_found(format!(
                "process {} has ended",
                request.process
            )));
        }
        made.agent.call(Request::Signal(request))
    }

    /// Where the sandbox is in its life. The exit status is the one that everybody was told.
    pub fn life(&self) -> Result<Response, Error> {
        let made = self.made()?;
        let exited = |status| Ok(Response::State(SandboxState::Exited(status)));
        if let Some(status) = self.processes.status(INIT) {
            return exited(status);
        }
        match made.agent.call(Request::State) {
            Ok(Response::State(SandboxState::Exited(told))) => {
                let status = self.processes.status_within(INIT, STATUS_PATIENCE);
                exited(status.unwrap_or(told))
            }
            Ok(other) => Ok(other),
            Err(error) => match self.processes.status_within(INIT, STATUS_PATIENCE) {
                Some(status) => exited(status),
                None => Err(error),
            },
        }
    }

    /// Changes limits, each where it is kept.
    pub fn update(&self, request: UpdateRequest) -> Result<Response, Error> {
        let made = self.made()?;
        let resources: LinuxResources = parse_oci("resources", &request.resources)?;
        let limit = resources.memory().as_ref().and_then(|m| m.limit());
        if let Some(bytes) = limit.and_then(|l| u64::try_from(l).ok())
            && bytes > made.machine.memory_bytes
        {
            return Err(Error::invalid(format!(
                "a running virtual machine keeps its memory of {} MiB: stop the container, then raise its limit",
                made.machine.memory_bytes >> 20
            )));
        }
        made.agent.call(Request::Update(request))?;
        made.cgroup
            .update(&plan::host_limits(&resources))
            .map_err(jail_error)?;
        Ok(Response::Done)
    }

    /// Counters: the workload's are the guest's, the rest is what its wall costs the host.
    pub fn stats(&self) -> Result<Response, Error> {
        let made = self.made()?;
        match made.agent.call(Request::Stats)? {
            Response::Stats(mut told) => {
                stats::account(&mut told, &made.machine, &made.cgroup);
                Ok(Response::Stats(told))
            }
            other => Ok(other),
        }
    }

    /// Ends everything and takes everything back. Idempotent.
    pub fn destroy(&self, request: DestroyRequest) -> Result<Response, Error> {
        let Ok(made) = self.made() else {
            return self.abandon();
        };
        made.ending.store(true, Ordering::Release);
        if let Err(error) = rustix::io::write(&made.destruction, &1u64.to_ne_bytes()) {
            tracing::error!(%error, "streams are not told that their sandbox ends");
        }
        // A second request may be in more of a hurry than the first.
        let _one = match self.destroying.try_lock() {
            Ok(guard) => guard,
            Err(_) => {
                if request.grace_ms == 0 {
                    let again = Request::Destroy(request.clone());
                    let _ = made.agent.call_within(again, Some(DESTROY_TIMEOUT));
                }
                self.destroying
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
            }
        };
        if made.machine.end(Duration::ZERO).is_none() {
            let grace = Duration::from_millis(request.grace_ms);
            let told = made.agent.call_within(
                Request::Destroy(request),
                Some(grace.saturating_add(DESTROY_TIMEOUT * made.factor)),
            );
            if let Err(error) = &told {
                tracing::warn!(%error, "the agent does not end its sandbox: its machine is stopped");
            }
            if told.is_err() || made.machine.end(RESET_TIMEOUT * made.factor).is_none() {
                made.machine.stop();
            }
        }
        self.processes.all_ended(false, JOURNAL_PATIENCE);
        machine::release(&self.dir, &made.cgroup)?;
        Ok(Response::Done)
    }

    /// Nobody wants what is being made, or nothing was. The machine dies with this process.
    fn abandon(&self) -> Result<Response, Error> {
        let record = records::read_shim_record(&self.dir)
            .map_err(|e| Error::failed("cannot read what has been made", e))?;
        if let Some(record) = record {
            let cgroup = Cgroup::new(&record.cgroups_path).map_err(jail_error)?;
            machine::release(&self.dir, &cgroup)?;
        }
        Ok(Response::Done)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn factor(setup: &VmSetup) -> u32 {
    if setup.emulated { EMULATED_FACTOR } else { 1 }
}

/// Takes back what is left of a machine that did not come to be.
struct Undo<'a> {
    dir: &'a Path,
    cgroup: Option<Cgroup>,
}

impl Undo<'_> {
    fn disarm(mut self) {
        self.cgroup = None;
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if let Some(cgroup) = &self.cgroup
            && let Err(error) = machine::release(self.dir, cgroup)
        {
            tracing::error!(%error, "something of a virtual machine stays behind");
        }
    }
}

/// The agent's connection has ended: usually with its guest. A guest without an agent is of no use.
fn agent_lost(machine: &Machine, ending: &AtomicBool) {
    if machine.end(LOST_TIMEOUT).is_none() && !ending.load(Ordering::Acquire) {
        tracing::error!("the agent is gone and its guest does not end: stopping the machine");
        machine.stop();
    }
}

/// The files that the guest gets copies of.
fn read_copies(copies: &[Copy]) -> Result<Vec<GuestFile>, Error> {
    let read = |copy: &Copy| -> Result<GuestFile, Error> {
        let failed =
            |why: String| Error::invalid(format!("cannot copy {}: {why}", copy.source.display()));
        let file = fs::File::open(&copy.source).map_err(|e| failed(e.to_string()))?;
        let status = file.metadata().map_err(|e| failed(e.to_string()))?;
        if !status.is_file() {
            return Err(failed("it is no regular file".into()));
        }
        let mut content = Vec::new();
        file.take(MAX_GUEST_FILE_BYTES + 1)
            .read_to_end(&mut content)
            .map_err(|e| failed(e.to_string()))?;
        if content.len() as u64 > MAX_GUEST_FILE_BYTES {
            return Err(failed(format!(
                "it is larger than {} KiB",
                MAX_GUEST_FILE_BYTES >> 10
            )));
        }
        Ok(GuestFile {
            path: copy.target.clone(),
            mode: status.permissions().mode() & 0o777,
            content,
        })
    };
    copies.iter().map(read).collect()
}

/// Randomness of the host for the guest.
fn entropy() -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; 64];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|e| Error::failed("cannot read /dev/urandom", e))?;
    Ok(bytes)
}

fn raw(what: &str, value: &impl serde::Serialize) -> Result<Box<RawValue>, Error> {
    serde_json::to_string(value)
        .and_then(RawValue::from_string)
        .map_err(|e| Error::failed(format!("the OCI {what} cannot be written"), e))
}
