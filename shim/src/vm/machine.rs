//! One VMM process: made from a plan, watched to its end, always taken back.
//!
//! ```text
//!   DIR/vm/vsock.sock     the socket device's listener, opened here, inherited by the VMM
//!   DIR/vm/root/          empty: the VMM's root directory
//!   DIR/console.log       what the guest's kernel and agent said, bounded by the VMM
//!
//!   start ─▶ (cgroup, VMM in it) ─▶ await_ready ─▶ … ─▶ it ends, or stop, or kill ─▶ end ─▶ release
//! ```

use std::fs;
use std::io::Write;
use std::os::fd::RawFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use caisson_jail::cgroup::Cgroup;
use caisson_protocol::layout::{VM, VM_ROOT, VM_SOCKET};
use caisson_protocol::vmm::{
    FsShare, VmSpec, VmStats, VmmOutcome, VmmRequest, VmmRequestFrame, VmmResponse,
    VmmResponseFrame,
};
use caisson_protocol::{Error, ErrorKind, FrameDecoder, VmSetup, decode, encode};
use caisson_supervisor::jail_error;

use super::calls::{Calls, Lost};
use super::end::{self, End};
use super::handover::{self, Inherited};
use super::plan::Plan;
use super::{agent, shares, sys};

/// A VMM answers at once, whatever its guest does.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// From the VM's end to that of its process.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// One VMM.
pub struct Machine {
    pub pid: i32,
    pub memory_bytes: u64,
    dir: PathBuf,
    cgroup: Cgroup,
    calls: Arc<Calls<VmmOutcome>>,
    ending: Arc<Ending>,
}

#[derive(Default)]
struct Ending {
    end: Mutex<Option<End>>,
    changed: Condvar,
}

/// What a machine is made of besides the plan.
pub struct Parts<'a> {
    pub id: &'a str,
    pub dir: &'a Path,
    pub cgroup: Cgroup,
    pub setup: &'a VmSetup,
    /// The container image's and the scratch disk's files.
    pub image: &'a Path,
    pub scratch: &'a Path,
    /// What the guest sees of the host's files.
    pub shares: Vec<shares::Source>,
}

impl Machine {
    /// Starts the VMM and hands it its spec. To be called by a thread that lives as long as the process, for the VMM dies
    /// with it. On `Err` whatever is left is in the directory and in the cgroup: [`release`] takes it back.
    pub fn start(parts: Parts<'_>, plan: &Plan) -> Result<Self, Error> {
        make_dirs(parts.dir)?;
        parts.cgroup.create(Some(&plan.host)).map_err(jail_error)?;
        let mut inherited = Inherited::default();
        let mut spec = handover::spec(&parts, plan, &mut inherited)?;
        let server = &parts.setup.share_server;
        for share in shares::start(parts.shares, server, &parts.cgroup)? {
            spec.shares.push(FsShare {
                tag: share.tag,
                server: inherited.add(share.server),
            });
        }
        let (ours, theirs) =
            UnixStream::pair().map_err(|e| Error::failed("cannot make a socket pair", e))?;
        let control = inherited.keep(theirs.into());
        let child = launch(&parts.setup.vmm, &parts.cgroup, control, inherited)?;
        let machine = Machine {
            pid: child.id() as i32,
            memory_bytes: plan.memory_bytes,
            dir: parts.dir.to_path_buf(),
            cgroup: parts.cgroup,
            calls: Self::speak(&spec, ours, child.id())?,
            ending: Arc::default(),
        };
        machine.watch(child)?;
        Ok(machine)
    }

    /// Hands the spec over; from then on there are only requests.
    fn speak(
        spec: &VmSpec,
        mut control: UnixStream,
        pid: u32,
    ) -> Result<Arc<Calls<VmmOutcome>>, Error> {
        let frame =
            encode(spec).map_err(|e| Error::failed("the machine cannot be described", e))?;
        // A VMM that has ended already is found out by its end.
        if let Err(error) = control.write_all(&frame) {
            tracing::warn!(pid, %error, "the VMM does not take its spec");
        }
        let understand = |frame: &[u8]| {
            let VmmResponseFrame { id, outcome } = decode(frame)?;
            Ok((id, outcome))
        };
        // What it means is told by the process' end.
        let ended = || {};
        Calls::start(control, FrameDecoder::default(), understand, ended)
            .map_err(|e| Error::failed("cannot speak with the VMM", e))
    }

    /// Follows the process to its end. Without a control connection it ends by itself.
    fn watch(&self, mut child: Child) -> Result<(), Error> {
        let (calls, ending, cgroup) = (
            Arc::clone(&self.calls),
            Arc::clone(&self.ending),
            self.cgroup.clone(),
        );
        super::spawn("vmm", move || {
            let said = match calls.call(|id| request_frame(id, VmmRequest::Wait), None) {
                Ok(VmmOutcome::Ok(VmmResponse::Ended(end))) => Some(end),
                _ => None,
            };
            calls.close();
            let status = reap(&mut child);
            let oom_killed = cgroup.oom_kills().is_ok_and(|kills| kills > 0);
            let end = end::of(said, status, oom_killed);
            *ending.lock() = Some(end);
            ending.changed.notify_all();
        })
        .map(drop)
        .map_err(|e| Error::failed("cannot watch the VMM", e))
    }

    /// Where its socket device listens.
    pub fn vsock(&self) -> PathBuf {
        self.dir.join(VM_SOCKET)
    }

    /// Waits until the agent is ready, or the machine has ended, or the time is over.
    pub fn await_ready(&self, timeout: Duration) -> Result<(), Error> {
        let vsock = self.vsock();
        let ending = Arc::clone(&self.ending);
        let heard = Arc::new(Mutex::new(None));
        let hello = Arc::clone(&heard);
        super::spawn("hello", move || {
            let result = agent::await_hello(&vsock, timeout);
            *hello.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
            drop(ending.lock());
            ending.changed.notify_all();
        })
        .map_err(|e| Error::failed("cannot wait for the agent", e))?;
        let give_up_at = Instant::now() + timeout;
        let mut end = self.ending.lock();
        loop {
            if end.is_some() {
                return Err(self.boot_error(end.clone()));
            }
            let said = heard.lock().unwrap_or_else(PoisonError::into_inner).take();
            match said {
                Some(Ok(())) => return Ok(()),
                // The socket goes when the machine does: the end says more.
                Some(Err(error)) => {
                    drop(end);
                    let end = self.end(EXIT_TIMEOUT);
                    let mut told = self.boot_error(end);
                    told.message = format!("{} ({error})", told.message);
                    return Err(told);
                }
                None => {}
            }
            let left = give_up_at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(end);
                return Err(self.boot_error(None));
            }
            end = self
                .ending
                .changed
                .wait_timeout(end, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Leaves in the shim's log where the boot's time went.
    pub fn log_boot(&self) {
        let Some(stats) = self.stats() else { return };
        let boot = stats.boot;
        let ms =
            |from: Option<u64>, to: Option<u64>| Some(to?.saturating_sub(from?) as f64 / 1000.0);
        tracing::info!(
            vmm_ms = ms(Some(0), boot.built_us),
            kernel_ms = ms(boot.built_us, boot.drivers_us),
            devices_ms = ms(boot.drivers_us, boot.root_us),
            agent_ms = ms(boot.root_us, boot.agent_us),
            exits = boot.agent_exits,
            "the machine has booted"
        );
    }

    /// Why a machine did not come up, with what its guest said last.
    fn boot_error(&self, end: Option<End>) -> Error {
        let why = end.map_or_else(
            || "its agent does not say that it is ready".to_string(),
            |end| end.why,
        );
        let console = end::console_tail(&self.dir);
        let said = if console.is_empty() {
            String::new()
        } else {
            format!("; its console ends with: {console}")
        };
        Error::internal(format!(
            "the container's virtual machine did not start: {why}{said}"
        ))
    }

    /// Waits for the machine's end, but not longer than this.
    pub fn end(&self, timeout: Duration) -> Option<End> {
        let end = self.ending.lock();
        let result = self
            .ending
            .changed
            .wait_timeout_while(end, timeout, |end| end.is_none());
        result.unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Waits for the machine's end.
    pub fn wait(&self) -> End {
        loop {
            if let Some(end) = self.end(Duration::from_secs(3600)) {
                return end;
            }
        }
    }

    /// The VMM's counters.
    pub fn stats(&self) -> Option<VmStats> {
        let frame = |id| request_frame(id, VmmRequest::Stats);
        match self.calls.call(frame, Some(ANSWER_TIMEOUT)) {
            Ok(VmmOutcome::Ok(VmmResponse::Stats(stats))) => Some(*stats),
            _ => None,
        }
    }

    /// Ends the machine, by request or, if that does not help, by force. Nothing of it runs afterwards.
    pub fn stop(&self) {
        let frame = |id| request_frame(id, VmmRequest::Stop);
        let told = self.calls.call(frame, Some(ANSWER_TIMEOUT));
        if matches!(told, Ok(_) | Err(Lost::Ended)) && self.end(EXIT_TIMEOUT).is_some() {
            return;
        }
        self.kill();
    }

    fn kill(&self) {
        if let Err(error) = self.cgroup.kill() {
            tracing::error!(%error, "the VMM cannot be killed");
        }
        if self.end(EXIT_TIMEOUT).is_none() {
            tracing::error!(
                pid = self.pid,
                "the VMM does not end although it was killed"
            );
        }
    }
}

/// Takes back what a machine left on the host. Idempotent.
pub fn release(dir: &Path, cgroup: &Cgroup) -> Result<(), Error> {
    cgroup.kill().map_err(jail_error)?;
    cgroup.remove().map_err(jail_error)?;
    match fs::remove_dir_all(dir.join(VM)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::failed("cannot remove the machine's directory", e))
        }
        _ => Ok(()),
    }
}

/// Starts the program in the cgroup; `control` is one of what it inherits.
fn launch(
    program: &Path,
    cgroup: &Cgroup,
    control: RawFd,
    inherited: Inherited,
) -> Result<Child, Error> {
    let mut command = Command::new(program);
    command
        .arg("--control")
        .arg(control.to_string())
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let entrance = cgroup.entrance().map_err(jail_error)?;
    sys::prepare_child(&mut command, entrance, inherited.numbers());
    command.spawn().map_err(|e| {
        let what = format!("cannot start the VMM {}", program.display());
        Error::new(ErrorKind::HostUnfit, format!("{what}: {e}"))
    })
}

impl Ending {
    fn lock(&self) -> MutexGuard<'_, Option<End>> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn request_frame(id: u64, request: VmmRequest) -> Result<Vec<u8>, caisson_protocol::ProtocolError> {
    encode(&VmmRequestFrame { id, request })
}

/// Waits for a process whose machine has ended; one that stays is killed.
fn reap(child: &mut Child) -> Option<ExitStatus> {
    let give_up_at = Instant::now() + EXIT_TIMEOUT;
    while Instant::now() < give_up_at {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) => std::thread::sleep(Duration::from_millis(2)),
            Err(_) => return None,
        }
    }
    let _ = child.kill();
    child.wait().ok()
}

/// Makes the machine's directory with an empty root in it, ours alone.
fn make_dirs(dir: &Path) -> Result<(), Error> {
    for (name, mode) in [(VM, 0o700), (VM_ROOT, 0o755)] {
        let path = dir.join(name);
        fs::DirBuilder::new()
            .mode(mode)
            .create(&path)
            .map_err(|e| Error::failed(format!("cannot make {}", path.display()), e))?;
    }
    Ok(())
}
