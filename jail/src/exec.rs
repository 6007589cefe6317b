//! A further process in a running container.
//!
//! ```text
//! caller ──clone3 (into the cgroup)──▶ relay ── setns(init's namespaces), root ──clone3(CLONE_PARENT)──▶ process
//! ```
//! The relay exists because a joined pid namespace holds for children only; the process is the caller's own child.
//! All is taken from a pidfd and /proc/PID of init, opened before anything is entered and checked afterwards to be of the
//! same process. The relay is not dumpable: nothing in the container can look at it or at the caller's program.
//!
//! Must not know: how the container was made.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::unistd::{Gid, Pid, Uid};
use oci_spec::runtime::{Process, Spec};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

use crate::beneath::{RootDir, open_host_path};
use crate::cgroup::{Cgroup, Entrance, Unified};
use crate::channel::{Channel, FromChild};
use crate::error::{Context, Error, Result};
use crate::launch::{Hold, Launch, launch};
use crate::lsm::OnExec;
use crate::process::{
    Init, Stdio, Undo, adopt_relayed, check_preserved, compile_filter, died, open_process,
};
use crate::seccomp::Filter;
use crate::sys::{self, Cloned};
use crate::{console, init, limits, namespaces};

/// A process to be run in a container.
pub struct Exec<'a> {
    /// The container's init.
    pub init_pid: Pid,
    /// The container's spec: seccomp filter and personality are its.
    pub spec: &'a Spec,
    /// What to run; capabilities, user, limits are this process' own.
    pub process: &'a Process,
    /// Its standard streams.
    pub stdio: Stdio,
    /// The container's cgroup.
    pub cgroup: &'a Cgroup,
    /// How many descriptors from 3 up the command inherits.
    pub preserve_fds: u32,
    /// Hold it before its command, until [`Init::start`].
    pub hold: bool,
}

/// The namespaces a container can have, in the order of their files.
const NAMESPACES: [(&str, CloneFlags); 8] = [
    ("user", CloneFlags::CLONE_NEWUSER),
    ("mnt", CloneFlags::CLONE_NEWNS),
    ("pid", CloneFlags::CLONE_NEWPID),
    ("net", CloneFlags::CLONE_NEWNET),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ("time", namespaces::TIME),
];

/// Init, as it was found.
struct Target {
    pidfd: OwnedFd,
    root: OwnedFd,
    /// Namespaces that are not the caller's.
    differing: CloneFlags,
}

struct Job<'a> {
    exec: &'a Exec<'a>,
    stdio: Stdio,
    target: Target,
    entrance: Entrance,
    unified: Unified,
    filter: Option<Filter>,
}

/// Runs a process in a container, up to its command or, unless held, through its exec.
pub fn exec(mut exec: Exec<'_>) -> Result<Init> {
    init::check_process(exec.process, None)?;
    check_preserved(exec.preserve_fds)?;
    let stdio = std::mem::replace(&mut exec.stdio, Stdio::Inherit).above_standard()?;
    let target = open_target(exec.init_pid)?;
    let filter = compile_filter(exec.spec)?;
    let cgroup = exec.cgroup.beside(exec.init_pid)?;
    let entrance = cgroup.entrance()?;
    let unified_dir = cgroup.dir_fd()?;
    let (mut ours, theirs) = Channel::pair()?;
    let mut job = Job {
        exec: &exec,
        stdio,
        target,
        entrance,
        unified: Unified::Outside,
        filter,
    };

    let relay = match fork_relay(&mut job, unified_dir.as_ref())? {
        Some(pid) => pid,
        None => {
            drop(ours);
            run_relay(job, theirs)
        }
    };
    drop(theirs);
    drop(job);

    let mut undo = Undo {
        cgroup: None,
        process: None,
        hooks: None,
    };
    undo.process = Some(adopt_relayed(&mut ours, relay)?);
    let (console, limits) = match ours.receive()? {
        Some((FromChild::Ready { limits }, console)) => (console, limits),
        Some((FromChild::Failed(e), _)) => return Err(e),
        Some((other, _)) => {
            return Err(Error::Died {
                during: "exec".into(),
                why: format!("unexpected message {other:?}"),
            });
        }
        None => return Err(died(&mut undo)),
    };
    if let Some((pid, _)) = &undo.process {
        limits::apply_from_outside(*pid, exec.process, &limits)?;
    }
    let (pid, pidfd) = undo.process.take().ok_or_else(|| Error::Died {
        during: "exec".into(),
        why: "no process".into(),
    })?;
    let mut process = Init::held(pid, pidfd, console, ours);
    if !exec.hold
        && let Err(e) = process.start()
    {
        let _ = nix::sys::wait::waitpid(process.pid, None);
        return Err(e);
    }
    Ok(process)
}

/// The relay's id; `None` in the relay, which is in the v2 cgroup already where that could be had for nothing.
fn fork_relay(job: &mut Job<'_>, unified: Option<&OwnedFd>) -> Result<Option<Pid>> {
    if let Some(dir) = unified
        && !sys::is_threaded()
        && let Ok(cloned) = sys::clone3(0, Some(dir.as_fd()))
    {
        job.unified = Unified::AlreadyInside;
        return Ok(match cloned {
            Cloned::Child => None,
            Cloned::Parent { pid, .. } => Some(pid),
        });
    }
    sys::fork().step("fork")
}

fn open_target(pid: Pid) -> Result<Target> {
    let gone = || Error::Conflict {
        what: "cannot exec in a container that is not running".into(),
    };
    let pidfd = open_process(pid).map_err(|_| gone())?;
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let root = rustix::fs::open(
        proc.join("root"),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let mut differing = CloneFlags::empty();
    for (name, flag) in NAMESPACES {
        let theirs = rustix::fs::stat(proc.join("ns").join(name));
        let ours = rustix::fs::stat(format!("/proc/self/ns/{name}").as_str());
        match (theirs, ours) {
            (Ok(theirs), Ok(ours))
                if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino) => {}
            (Ok(_), Ok(_)) => differing |= flag,
            // A kernel without this kind of namespace.
            (Err(_), Err(_)) => {}
            _ => return Err(gone()),
        }
    }
    // Still the process the pidfd is of: otherwise the above was another's.
    if has_ended(&pidfd) {
        return Err(gone());
    }
    Ok(Target {
        pidfd,
        root: root.map_err(|_| gone())?,
        differing,
    })
}

fn has_ended(pidfd: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    poll(
        &mut fds,
        Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    ) != Ok(0)
}

fn run_relay(job: Job<'_>, channel: Channel) -> ! {
    let fail = |e: Error| -> ! {
        let _ = channel.send(&FromChild::Failed(e), None);
        sys::exit_now(1)
    };
    let proc = match enter(&job) {
        Ok(proc) => proc,
        Err(e) => fail(e),
    };
    match sys::clone3(libc::CLONE_PARENT as u64, None) {
        Ok(Cloned::Parent { pid, .. }) => {
            let _ = channel.send(&FromChild::Relayed(pid.as_raw()), None);
            sys::exit_now(0)
        }
        Ok(Cloned::Child) => run_process(job, proc, channel),
        Err(e) => fail(Error::sys("fork in the container", e)),
    }
}

/// Enters cgroup and namespaces. Returns the caller's /proc, the only one to be believed.
fn enter(job: &Job<'_>) -> Result<OwnedFd> {
    let proc = open_host_path(Path::new("/proc")).step_at("open", "/proc")?;
    sys::set_dumpable(false).step("hide from the container")?;
    job.entrance.enter(job.unified).step("enter the cgroup")?;
    if !job.target.differing.is_empty() {
        nix::sched::setns(&job.target.pidfd, job.target.differing)
            .step("join the container's namespaces")?;
    }
    Ok(proc)
}

fn run_process(job: Job<'_>, proc: OwnedFd, channel: Channel) -> ! {
    let report = channel.try_clone();
    let error = match prepare(job, proc) {
        Ok(last) => launch(last.as_launch(), channel),
        Err(e) => e,
    };
    if let Ok(report) = report {
        let _ = report.send(&FromChild::Failed(error), None);
    }
    sys::exit_now(1)
}

struct Prepared<'a> {
    exec: &'a Exec<'a>,
    filter: Option<Filter>,
    console: Option<OwnedFd>,
    on_exec: OnExec,
}

impl Prepared<'_> {
    fn as_launch(&self) -> Launch<'_> {
        Launch {
            spec: self.exec.spec,
            process: self.exec.process,
            filter: self.filter.as_ref(),
            hold: Hold::Channel,
            console: self.console.as_ref(),
            on_exec: &self.on_exec,
            preserve_fds: self.exec.preserve_fds,
            reaper: false,
            die_with_parent: false,
            start_hooks: None,
        }
    }
}

fn prepare<'a>(job: Job<'a>, proc: OwnedFd) -> Result<Prepared<'a>> {
    enter_root(&job.target.root)?;
    if job.target.differing.contains(CloneFlags::CLONE_NEWUSER) {
        become_root()?;
    }
    nix::unistd::setsid().step("start a session")?;
    match sys::join_session_keyring(None) {
        Ok(()) | Err(Errno::ENOSYS | Errno::EPERM | Errno::EACCES) => {}
        Err(e) => return Err(Error::sys("create a session keyring", e)),
    }
    let on_exec = OnExec::open(proc.as_fd(), job.exec.process)?;
    let console = match &job.stdio {
        Stdio::Terminal { size } => {
            let root =
                RootDir::new(open_host_path(Path::new("/")).step("open the container's root")?);
            let pty = console::open(&root, None)?;
            if let Some((rows, columns)) = size {
                pty.resize(*rows, *columns)?;
            }
            Some(pty.take_over()?)
        }
        streams => {
            streams.place()?;
            None
        }
    };
    Ok(Prepared {
        exec: job.exec,
        filter: job.filter,
        console,
        on_exec,
    })
}

/// Init's root is not always that of its mount namespace (no_pivot), and the mount namespace may be the caller's.
fn enter_root(root: &OwnedFd) -> Result<()> {
    let identity = |fd: BorrowedFd<'_>| -> Result<_> {
        let stat = rustix::fs::statx(
            fd,
            c"",
            AtFlags::EMPTY_PATH,
            StatxFlags::INO | StatxFlags::MNT_ID,
        )
        .step("stat the container's root")?;
        Ok((
            stat.stx_dev_major,
            stat.stx_dev_minor,
            stat.stx_ino,
            stat.stx_mnt_id,
        ))
    };
    let here = open_host_path(Path::new("/")).step("open the container's root")?;
    if identity(here.as_fd())? != identity(root.as_fd())? {
        nix::unistd::fchdir(root).step("enter the container's root")?;
        nix::unistd::chroot(".").step("chroot to the container's root")?;
    }
    nix::unistd::chdir("/").step("enter the container's root")
}

fn become_root() -> Result<()> {
    // Ids that are not mapped (EINVAL) stay what they are: the process' own user is checked when it is set.
    let unmapped = |result: Result<(), Errno>, what: &str| match result {
        Ok(()) | Err(Errno::EINVAL | Errno::EPERM) => Ok(()),
        Err(e) => Err(Error::sys(what, e)),
    };
    unmapped(sys::set_groups(&[]), "drop supplementary groups")?;
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    unmapped(
        nix::unistd::setresgid(gid, gid, gid),
        "become group 0 of the user namespace",
    )?;
    unmapped(
        nix::unistd::setresuid(uid, uid, uid),
        "become root of the user namespace",
    )
}
