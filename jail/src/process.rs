//! The caller's side of making a container: prepares, clones, answers init's requests, and holds it before its command.
//!
//! ```text
//! create ── plan, check, open, cgroup, clone ── (maps) ── (hooks) ── Ready ── limits ──▶ Init
//! Init::start ── Go ── exec ──▶ running ── poststart hooks
//! ```
//! On `Err` nothing is left: the process is killed and collected, the cgroup removed.
//! Must not know: what init does to itself (`init.rs`, `launch.rs`).

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sched::CloneFlags;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use oci_spec::runtime::{Process, Spec};
use rustix::fs::{FileType, Mode, OFlags};

use crate::cgroup::{Cgroup, Unified};
use crate::channel::{Channel, FromChild};
use crate::error::{Context, Error, Result};
use crate::hooks::{self, HookKind};
use crate::init::{self, Job};
use crate::namespaces::{self, IdMappings, Joined};
use crate::sys::{self, Cloned};
use crate::{devices, limits, mounts, seccomp, sysctl};

/// Where the container's root file system comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// `spec.root.path`, relative to the bundle: the OCI command line.
    FromSpec {
        /// The bundle's directory.
        bundle: PathBuf,
    },
    /// Already mounted here, in the caller's mount namespace.
    Mounted(PathBuf),
}

/// The three standard streams of a process, or a new terminal.
#[derive(Debug)]
pub enum Stdio {
    /// These.
    Fds {
        /// Descriptor 0.
        stdin: OwnedFd,
        /// Descriptor 1.
        stdout: OwnedFd,
        /// Descriptor 2.
        stderr: OwnedFd,
    },
    /// A pty of the container's devpts; its master comes back in [`Init::console`].
    Terminal {
        /// Rows and columns.
        size: Option<(u16, u16)>,
    },
    /// The caller's.
    Inherit,
}

impl Stdio {
    /// Moves descriptors that are themselves 0, 1 or 2 out of the way, so that placing one does not overwrite another.
    pub(crate) fn above_standard(self) -> Result<Stdio> {
        let lift = |fd: OwnedFd| -> Result<OwnedFd> {
            if fd.as_raw_fd() > 2 {
                return Ok(fd);
            }
            fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(3))
                .step("duplicate a standard stream")
                .map(sys::adopt)
        };
        Ok(match self {
            Stdio::Fds {
                stdin,
                stdout,
                stderr,
            } => Stdio::Fds {
                stdin: lift(stdin)?,
                stdout: lift(stdout)?,
                stderr: lift(stderr)?,
            },
            other => other,
        })
    }

    /// Makes them descriptors 0, 1 and 2 of this process.
    pub(crate) fn place(&self) -> Result<()> {
        if let Stdio::Fds {
            stdin,
            stdout,
            stderr,
        } = self
        {
            for (number, fd) in [stdin, stdout, stderr].into_iter().enumerate() {
                sys::put_at(fd.as_fd(), number as i32).step("place a standard stream")?;
            }
        }
        Ok(())
    }
}

/// How the held init is released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// By the caller, with [`Init::start`], which waits until execve succeeded or returns why it failed.
    Pipe,
    /// By whoever calls [`release_fifo`] on this path: create and start are different processes.
    Fifo(PathBuf),
}

/// A container to be made.
pub struct Setup<'a> {
    /// Its id, for hooks and the keyring.
    pub id: &'a str,
    /// What it is.
    pub spec: &'a Spec,
    /// Its root file system.
    pub root: Root,
    /// Its standard streams.
    pub stdio: Stdio,
    /// How it is released.
    pub gate: Gate,
    /// Its cgroup, planned; [`create`] makes it.
    pub cgroup: &'a Cgroup,
    /// Whether PID 1 is a small init that runs the command as its child.
    pub reaper: bool,
    /// How many descriptors from 3 up the command inherits.
    pub preserve_fds: u32,
    /// Use MS_MOVE and chroot instead of pivot_root.
    pub no_pivot: bool,
    /// Stay in the caller's session keyring.
    pub no_new_keyring: bool,
    /// The process dies with its caller.
    pub die_with_parent: bool,
}

/// A process set up and held before its command.
#[derive(Debug)]
pub struct Init {
    /// Its id, where the caller is.
    pub pid: Pid,
    /// A handle that no reuse of the id can confuse.
    pub pidfd: OwnedFd,
    /// The master of its terminal.
    pub console: Option<OwnedFd>,
    channel: Option<Channel>,
    poststart: Option<Box<Poststart>>,
}

#[derive(Debug)]
struct Poststart {
    spec: Spec,
    id: String,
    bundle: PathBuf,
}

impl Init {
    /// A held process without hooks of its own.
    pub(crate) fn held(
        pid: Pid,
        pidfd: OwnedFd,
        console: Option<OwnedFd>,
        channel: Channel,
    ) -> Init {
        Init {
            pid,
            pidfd,
            console,
            channel: Some(channel),
            poststart: None,
        }
    }

    /// Lets the process execute its command, and waits until it did. `Gate::Pipe` only.
    ///
    /// An `Err` of kind `CommandNotFound` or `CommandNotExecutable` says that the exec failed; the process is then gone, and
    /// its status still to be collected by the caller.
    pub fn start(&mut self) -> Result<()> {
        let mut channel = self.channel.take().ok_or_else(|| Error::Conflict {
            what: "the process was already started".into(),
        })?;
        channel.go()?;
        match channel.receive()? {
            None => {}
            Some((FromChild::Failed(e), _)) => return Err(e),
            Some((other, _)) => {
                return Err(Error::Died {
                    during: "start".into(),
                    why: format!("unexpected message {other:?}"),
                });
            }
        }
        if let Some(poststart) = self.poststart.take() {
            let Poststart { spec, id, bundle } = *poststart;
            hooks::run_hooks(&spec, HookKind::Poststart, &id, Some(self.pid), &bundle)?;
        }
        Ok(())
    }
}

/// Lets an init that waits at a FIFO go. Returns once it has gone on; an error of kind `Conflict` if it is no longer there.
///
/// `pidfd` of the init tells when it died waiting.
pub fn release_fifo(path: &Path, pidfd: &OwnedFd) -> Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    // Opening lets the writer's open return; reading its byte tells that it did.
    let fifo = rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .step_at("open the start FIFO", path)?;
    let gone = || Error::Conflict {
        what: "cannot start a container that has stopped".into(),
    };
    loop {
        let mut fds = [
            PollFd::new(&fifo, PollFlags::IN),
            PollFd::new(pidfd, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.step("wait for the container")?,
        };
        let (readable, dead) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        if readable {
            match rustix::io::read(&fifo, &mut [0u8; 1]) {
                Ok(1..) => break,
                Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Error::sys_at("read the start FIFO", path, e)),
            }
        }
        if dead {
            return Err(gone());
        }
    }
    rustix::fs::unlink(path).step_at("remove the start FIFO", path)
}

/// Opens a process by its id. Check afterwards that it is the one that was meant.
pub fn open_process(pid: Pid) -> Result<OwnedFd> {
    let gone = || Error::Conflict {
        what: format!("process {pid} does not exist"),
    };
    let raw = rustix::process::Pid::from_raw(pid.as_raw()).ok_or_else(gone)?;
    rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()).map_err(|e| match e {
        rustix::io::Errno::SRCH | rustix::io::Errno::INVAL => gone(),
        e => Error::sys(format!("open process {pid}"), e),
    })
}

/// kill(2) with any signal number, real-time ones too.
pub fn send_signal(pid: Pid, signal: i32) -> std::result::Result<(), nix::errno::Errno> {
    sys::kill_number(pid, signal)
}

/// Kills, collects and removes what a failed [`create`] made.
pub(crate) struct Undo<'a> {
    pub cgroup: Option<&'a Cgroup>,
    pub process: Option<(Pid, OwnedFd)>,
    /// A caller's poststop hooks undo what prestart and createRuntime hooks did.
    pub hooks: Option<(&'a Spec, &'a str, &'a Path)>,
}

impl Undo<'_> {
    fn end_process(&mut self) -> Option<WaitStatus> {
        let (pid, pidfd) = self.process.take()?;
        let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
        waitpid(pid, None).ok()
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        let status = self.end_process();
        if let Some(cgroup) = self.cgroup {
            let _ = cgroup.kill();
            let _ = cgroup.remove();
        }
        if let Some((spec, id, bundle)) = self.hooks {
            let _ = hooks::run_hooks(spec, HookKind::Poststop, id, None, bundle);
        }
        if let Some(status) = status {
            tracing::debug!(?status, "ended a container that could not be made");
        }
    }
}

/// Makes a container up to, but not including, the exec of its command.
pub fn create(setup: Setup<'_>) -> Result<Init> {
    let spec = setup.spec;
    let process = spec
        .process()
        .as_ref()
        .ok_or_else(|| Error::invalid("the spec has no process"))?;
    let plan = namespaces::plan(
        spec.linux()
            .as_ref()
            .and_then(|l| l.namespaces().as_deref())
            .unwrap_or_default(),
    )?;
    init::check(spec, process, &plan)?;
    let nodes = devices::plan(init::devices_of(spec))?;
    let propagation = init::propagation_of(spec)?;
    check_preserved(setup.preserve_fds)?;
    let (rootfs, bundle) = locate(spec, &setup.root)?;
    let filter = compile_filter(spec)?;
    let joined = namespaces::open_joined(&plan)?;
    if let Some(sysctls) = spec.linux().as_ref().and_then(|l| l.sysctl().as_ref()) {
        sysctl::check(sysctls, &plan, namespaces::shared_with_caller(&joined))?;
    }
    let mappings =
        IdMappings::of_spec(spec).filter(|_| plan.new.contains(CloneFlags::CLONE_NEWUSER));
    let trees = mounts::prepare(
        init::mounts_of(spec),
        &bundle,
        plan.has_userns(),
        || container_userns(&joined, mappings.as_ref()),
        propagation.is_some_and(|p| p.flag == libc::MS_SHARED),
    )?;
    let fifo = match &setup.gate {
        Gate::Pipe => None,
        Gate::Fifo(path) => Some(open_fifo(path)?),
    };
    let stdio = setup.stdio.above_standard()?;
    let (mut ours, theirs) = Channel::pair()?;

    setup
        .cgroup
        .create(spec.linux().as_ref().and_then(|l| l.resources().as_ref()))?;
    let mut undo = Undo {
        cgroup: Some(setup.cgroup),
        process: None,
        hooks: None,
    };
    let entrance = setup.cgroup.entrance()?;
    let unified_dir = setup.cgroup.dir_fd()?;
    let cgroup_mounts = setup.cgroup.mounts();

    let mut job = Job {
        id: setup.id,
        spec,
        process,
        plan: &plan,
        joined: &joined,
        mappings: mappings.as_ref(),
        entrance: &entrance,
        unified: Unified::Outside,
        cgroup_mounts: &cgroup_mounts,
        rootfs: &rootfs,
        bundle: &bundle,
        trees,
        nodes: &nodes,
        propagation,
        filter: filter.as_ref(),
        stdio,
        fifo,
        preserve_fds: setup.preserve_fds,
        reaper: setup.reaper,
        no_pivot: setup.no_pivot,
        no_new_keyring: setup.no_new_keyring,
        die_with_parent: setup.die_with_parent,
    };
    let flags = plan.new.bits() as u32 as u64;
    // A bare clone3 leaves the child with whatever locks other threads held; a relay by libc's fork does not.
    if plan.relayed || sys::is_threaded() {
        let relay = match sys::fork().step("fork")? {
            Some(pid) => pid,
            None => {
                drop(ours);
                run_relay(flags, theirs, job)
            }
        };
        drop(theirs);
        drop(job);
        undo.process = Some(adopt_relayed(&mut ours, relay)?);
    } else {
        // Some sandboxes (and kernels before 5.7) have no CLONE_INTO_CGROUP: then init enters by itself.
        let cloned = match &unified_dir {
            Some(dir) => match sys::clone3(flags, Some(dir.as_fd())) {
                Ok(cloned) => {
                    job.unified = Unified::AlreadyInside;
                    cloned
                }
                Err(_) => sys::clone3(flags, None).step("clone the container's init")?,
            },
            None => sys::clone3(flags, None).step("clone the container's init")?,
        };
        match cloned {
            Cloned::Child => {
                drop(ours);
                init::run(job, theirs)
            }
            Cloned::Parent { pid, pidfd } => undo.process = Some((pid, pidfd)),
        }
        drop(theirs);
        drop(job);
    }
    supervise(
        setup.id,
        spec,
        process,
        &bundle,
        mappings.as_ref(),
        ours,
        undo,
    )
}

/// Answers init until it is ready.
fn supervise<'a>(
    id: &'a str,
    spec: &'a Spec,
    process: &Process,
    bundle: &'a Path,
    mappings: Option<&IdMappings>,
    mut channel: Channel,
    mut undo: Undo<'a>,
) -> Result<Init> {
    let pid = undo
        .process
        .as_ref()
        .map_or(Pid::from_raw(0), |(pid, _)| *pid);
    let (console, limits) = loop {
        match channel.receive()? {
            Some((FromChild::MapIds, _)) => {
                if let Some(maps) = mappings {
                    namespaces::write_id_maps(pid, maps)?;
                }
                channel.go()?;
            }
            Some((FromChild::RunHooks, _)) => {
                undo.hooks = Some((spec, id, bundle));
                for kind in [HookKind::Prestart, HookKind::CreateRuntime] {
                    hooks::run_hooks(spec, kind, id, Some(pid), bundle)?;
                }
                channel.go()?;
            }
            Some((FromChild::Ready { limits }, console)) => break (console, limits),
            Some((FromChild::Failed(e), _)) => return Err(e),
            Some((other @ FromChild::Relayed(_), _)) => {
                return Err(Error::Died {
                    during: "set-up".into(),
                    why: format!("unexpected message {other:?}"),
                });
            }
            None => return Err(died(&mut undo)),
        }
    };
    limits::apply_from_outside(pid, process, &limits)?;
    let poststart = (!hooks::list(spec, HookKind::Poststart).is_empty()).then(|| {
        Box::new(Poststart {
            spec: spec.clone(),
            id: id.to_string(),
            bundle: bundle.to_path_buf(),
        })
    });
    undo.cgroup = None;
    undo.hooks = None;
    let (pid, pidfd) = undo.process.take().ok_or_else(|| Error::Died {
        during: "set-up".into(),
        why: "no process".into(),
    })?;
    Ok(Init {
        pid,
        pidfd,
        console,
        channel: Some(channel),
        poststart,
    })
}

pub(crate) fn died(undo: &mut Undo<'_>) -> Error {
    let why = match undo.end_process() {
        Some(WaitStatus::Signaled(_, signal, _)) => format!("killed by {signal}"),
        Some(WaitStatus::Exited(_, code)) => format!("exit code {code}"),
        _ => "unknown".into(),
    };
    Error::Died {
        during: "set-up".into(),
        why,
    }
}

/// The process that enters joined namespaces and makes init a child of the caller.
fn run_relay(flags: u64, theirs: Channel, mut job: Job<'_>) -> ! {
    let fail = |e: Error| -> ! {
        let _ = theirs.send(&FromChild::Failed(e), None);
        sys::exit_now(1)
    };
    // With the caller's rights, before a user namespace takes them away.
    if let Err(e) = job.entrance.enter(Unified::Outside) {
        fail(Error::sys("enter the cgroup", e));
    }
    job.unified = Unified::AlreadyInside;
    if job.plan.joins(CloneFlags::CLONE_NEWPID)
        && let Err(e) = sys::set_dumpable(false)
    {
        fail(Error::sys("hide from the joined pid namespace", e));
    }
    if let Err(e) = namespaces::enter(job.joined) {
        fail(e);
    }
    job.joined = &[];
    match sys::clone3(flags | libc::CLONE_PARENT as u64, None) {
        Err(e) => fail(Error::sys("clone the container's init", e)),
        Ok(Cloned::Child) => init::run(job, theirs),
        Ok(Cloned::Parent { pid, .. }) => {
            let _ = theirs.send(&FromChild::Relayed(pid.as_raw()), None);
            sys::exit_now(0)
        }
    }
}

/// Receives init from the relay, which is collected.
pub(crate) fn adopt_relayed(channel: &mut Channel, relay: Pid) -> Result<(Pid, OwnedFd)> {
    let message = channel.receive_relayed();
    let _ = waitpid(relay, None);
    let pid = match message? {
        Some(FromChild::Relayed(pid)) => Pid::from_raw(pid),
        Some(FromChild::Failed(e)) => return Err(e),
        _ => {
            return Err(Error::Died {
                during: "joining namespaces".into(),
                why: "it said nothing".into(),
            });
        }
    };
    Ok((pid, open_process(pid)?))
}

fn container_userns(joined: &[Joined], mappings: Option<&IdMappings>) -> Result<OwnedFd> {
    if let Some(namespace) = joined.iter().find(|j| j.kind == CloneFlags::CLONE_NEWUSER) {
        return namespace
            .fd
            .try_clone()
            .step("duplicate a namespace's descriptor");
    }
    match mappings {
        Some(maps) => namespaces::user_namespace(maps),
        None => Err(Error::invalid(
            "an idmapped mount needs mappings: its own, or a user namespace of the container",
        )),
    }
}

pub(crate) fn compile_filter(spec: &Spec) -> Result<Option<seccomp::Filter>> {
    spec.linux()
        .as_ref()
        .and_then(|l| l.seccomp().as_ref())
        .map(seccomp::compile)
        .transpose()
}

pub(crate) fn check_preserved(count: u32) -> Result<()> {
    match (3..3u64 + u64::from(count)).find(|fd| !i32::try_from(*fd).is_ok_and(sys::is_open)) {
        None => Ok(()),
        Some(fd) => Err(Error::invalid(format!(
            "descriptor {fd} is to be preserved and is not open"
        ))),
    }
}

fn locate(spec: &Spec, root: &Root) -> Result<(PathBuf, PathBuf)> {
    let (wanted, bundle) = match root {
        Root::Mounted(path) => (path.clone(), path.clone()),
        Root::FromSpec { bundle } => {
            let root = spec
                .root()
                .as_ref()
                .ok_or_else(|| Error::invalid("the spec has no root"))?;
            (bundle.join(root.path()), bundle.clone())
        }
    };
    let missing = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => Error::NotFound {
            what: "rootfs".into(),
            path: wanted.clone(),
        },
        _ => Error::sys_at("open rootfs", &wanted, e),
    };
    let rootfs = std::fs::canonicalize(&wanted).map_err(missing)?;
    if rootfs == Path::new("/") {
        return Err(Error::invalid(
            "the container's root must not be the host's",
        ));
    }
    if !rootfs.is_dir() {
        return Err(Error::invalid(format!(
            "rootfs {rootfs:?} is not a directory"
        )));
    }
    Ok((rootfs, bundle))
}

fn open_fifo(path: &Path) -> Result<OwnedFd> {
    let fd = rustix::fs::open(
        path,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .step_at("open the start FIFO", path)?;
    let stat = rustix::fs::fstat(&fd).step_at("stat", path)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => Ok(fd),
        _ => Err(Error::invalid(format!("{path:?} is not a FIFO"))),
    }
}
