//! The last part of every process' set-up, the same for a container's init and for an exec: from inside the container to
//! its command.
//!
//! ```text
//! own limits → no_new_privs → seccomp (without no_new_privs: while CAP_SYS_ADMIN is there) → bounding set → user, groups
//!   → working directory → capabilities → command looked up → limits → Ready ─ held ─ released → startContainer hooks
//!   → (reaper forks) → seccomp (with no_new_privs: as late as can be) → exec
//! ```
//! Must not know: how the process got into its namespaces and root.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{Gid, Uid};
use oci_spec::runtime::{Process, Spec};
use rustix::fs::{Mode, OFlags};

use crate::beneath::{RootDir, open_host_path};
use crate::channel::{Channel, FromChild};
use crate::error::{Context, Error, Result};
use crate::hooks::{self, HookKind};
use crate::lsm::OnExec;
use crate::seccomp::Filter;
use crate::{capabilities, command, limits, reaper, sys};

/// The default file mode creation mask.
const UMASK: u32 = 0o022;

/// How the process waits for its release.
pub(crate) enum Hold {
    /// For the word on the channel.
    Channel,
    /// For a reader of a FIFO. `descriptors` is /proc/self/fd as the host shows it, `fifo` an O_PATH descriptor.
    Fifo { descriptors: OwnedFd, fifo: OwnedFd },
}

/// Hooks to run inside the container before the command: only init has them.
pub(crate) struct StartHooks<'a> {
    pub id: &'a str,
    pub bundle: &'a Path,
}

/// All that the last part needs.
pub(crate) struct Launch<'a> {
    pub spec: &'a Spec,
    pub process: &'a Process,
    pub filter: Option<&'a Filter>,
    pub hold: Hold,
    /// The pty's master, to be sent to the caller.
    pub console: Option<&'a OwnedFd>,
    pub on_exec: &'a OnExec,
    pub preserve_fds: u32,
    pub reaper: bool,
    pub die_with_parent: bool,
    pub start_hooks: Option<StartHooks<'a>>,
}

/// Goes all the way to exec. Returns only on failure, and then reports it on the channel if anyone listens there.
pub(crate) fn launch(launch: Launch<'_>, channel: Channel) -> Error {
    match to_exec(launch, channel) {
        Err(e) => e,
        Ok(never) => match never {},
    }
}

fn to_exec(launch: Launch<'_>, channel: Channel) -> Result<Infallible> {
    let process = launch.process;
    let sets = capabilities::plan(process.capabilities().as_ref());
    let no_new_privs = process.no_new_privileges().unwrap_or(false);
    let home = default_home(process);

    if launch.reaper {
        reaper::take_name();
    }
    limits::apply_to_self(process, launch.spec)?;
    launch.on_exec.apply()?;
    if no_new_privs {
        sys::no_new_privs().step("set no_new_privs")?;
    } else {
        install(launch.filter)?;
    }
    capabilities::bound(&sets)?;
    // Before the user changes, who may not be able to get there through its parents, and after, which decides.
    let early = nix::unistd::chdir(process.cwd());
    own_streams(process.user().uid())?;
    become_user(process)?;
    match nix::unistd::chdir(process.cwd()) {
        Ok(()) => {}
        Err(Errno::EACCES) if early.is_ok() => {}
        Err(e) => return Err(Error::sys_at("chdir to cwd", process.cwd(), e)),
    }
    verify_cwd(process.cwd())?;
    capabilities::apply(&sets)?;
    sys::keep_caps(false).step("drop the privilege to keep capabilities")?;
    if launch.die_with_parent {
        // After the user change, which clears it. A parent that died before is noticed at the channel.
        sys::signal_on_parent_death(libc::SIGKILL).step("ask to die with the parent")?;
    }

    // While it is held, an exec could already run beside it: our descriptors and memory are not for its eyes. execve undoes this.
    sys::set_dumpable(false).step("hide from the container")?;

    let mut env = process.env().clone().unwrap_or_default();
    if let Some(home) = home {
        env.push(format!("HOME={home}"));
    }
    let args = process.args().as_deref().unwrap_or_default();
    let name = args
        .first()
        .ok_or_else(|| Error::invalid("process.args is empty"))?;
    let path = command::find(name, &env)?;

    // Last, so that nothing of ours is subject to them.
    let limits = limits::lower_own(process);
    channel.send(&FromChild::Ready { limits }, launch.console)?;
    let detached = match &launch.hold {
        Hold::Channel => {
            channel.wait_go()?;
            false
        }
        Hold::Fifo { descriptors, fifo } => {
            drop(channel);
            wait_for_reader(descriptors, fifo)?;
            true
        }
    };
    let end = || -> Result<Infallible> {
        if let Some(start) = &launch.start_hooks {
            let pid = Some(nix::unistd::getpid());
            hooks::run_hooks(
                launch.spec,
                HookKind::StartContainer,
                start.id,
                pid,
                start.bundle,
            )?;
        }
        if launch.reaper {
            reaper::fork_command()?;
        }
        exec(&path, args, &env, &launch, no_new_privs)
    };
    match end() {
        Err(e) if detached => {
            // Nobody is on the channel any more; the container's own stderr is the only place left.
            eprintln!("{e}");
            sys::exit_now(match e.kind() {
                crate::ErrorKind::CommandNotFound => 127,
                crate::ErrorKind::CommandNotExecutable => 126,
                _ => 1,
            })
        }
        other => other,
    }
}

fn install(filter: Option<&Filter>) -> Result<()> {
    match filter {
        Some(filter) => filter.install().step("install the seccomp filter"),
        None => Ok(()),
    }
}

fn exec(
    path: &Path,
    args: &[String],
    env: &[String],
    launch: &Launch<'_>,
    no_new_privs: bool,
) -> Result<Infallible> {
    let args = command::c_strings(args, "process.args")?;
    let env = command::c_strings(env, "process.env")?;
    let c_path = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::invalid("the command contains a NUL byte"))?;
    for fd in 3..3 + launch.preserve_fds as i32 {
        sys::keep_on_exec(fd).step("hand over preserved descriptors")?;
    }
    close_on_exec(3 + launch.preserve_fds)?;
    sys::default_signals();
    let umask = launch.process.user().umask().unwrap_or(UMASK);
    rustix::process::umask(Mode::from_raw_mode(umask & 0o777));
    if no_new_privs {
        install(launch.filter)?;
    }
    Err(command::exec_failed(
        path,
        sys::execve(&c_path, &args, &env),
    ))
}

/// Everything from `first` up closes at exec, whoever opened it (CVE-2024-21626).
fn close_on_exec(first: u32) -> Result<()> {
    match sys::cloexec_from(first) {
        // Before Linux 5.11.
        Err(Errno::ENOSYS | Errno::EINVAL) => {
            for entry in std::fs::read_dir("/proc/self/fd")
                .step_at("read", "/proc/self/fd")?
                .flatten()
            {
                if let Some(fd) = entry
                    .file_name()
                    .to_str()
                    .and_then(|n| n.parse::<i32>().ok())
                    && fd >= first as i32
                {
                    let _ = sys::set_cloexec(fd);
                }
            }
            Ok(())
        }
        other => other.step("mark descriptors close-on-exec"),
    }
}

/// HOME for a process whose environment has none: of the container's /etc/passwd.
fn default_home(process: &Process) -> Option<String> {
    if process
        .env()
        .iter()
        .flatten()
        .any(|e| e.strip_prefix("HOME=").is_some_and(|v| !v.is_empty()))
    {
        return None;
    }
    let root = RootDir::new(open_host_path(Path::new("/")).ok()?);
    Some(crate::user::home_of(&root, process.user().uid()))
}

/// Gives the standard streams to the user, so that /dev/stdout can be opened; /dev/null stays everybody's.
fn own_streams(uid: u32) -> Result<()> {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    for fd in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        let Ok(stat) = rustix::fs::fstat(fd) else {
            continue;
        };
        if stat.st_uid == uid || stat.st_rdev == rustix::fs::makedev(1, 3) {
            continue;
        }
        match rustix::fs::fchown(fd, Some(rustix::fs::Uid::from_raw(uid)), None) {
            Ok(()) => {}
            // Owned by an id that is not mapped here, or on a read-only file system.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM | rustix::io::Errno::ROFS) => {}
            Err(e) => return Err(Error::sys("give the standard streams to the user", e)),
        }
    }
    Ok(())
}

fn become_user(process: &Process) -> Result<()> {
    let user = process.user();
    let groups = user.additional_gids().as_deref().unwrap_or_default();
    match sys::set_groups(groups) {
        Ok(()) => {}
        // A user namespace whose creator may not: nothing asked for, nothing lost.
        Err(Errno::EPERM) if groups.is_empty() => {}
        Err(e) => return Err(Error::sys("set supplementary groups", e)),
    }
    sys::keep_caps(true).step("keep capabilities over the change of user")?;
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    nix::unistd::setresgid(gid, gid, gid).map_err(|e| Error::sys(format!("set gid {gid}"), e))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(|e| Error::sys(format!("set uid {uid}"), e))
}

/// The kernel must agree that the working directory is beneath our root (CVE-2024-21626).
fn verify_cwd(wanted: &Path) -> Result<()> {
    let outside = || {
        Error::invalid(format!(
            "the working directory {wanted:?} is not inside the container"
        ))
    };
    match rustix::process::getcwd(Vec::new()) {
        Ok(cwd) if cwd.to_bytes().starts_with(b"/") => Ok(()),
        Ok(_) | Err(rustix::io::Errno::NOENT) => Err(outside()),
        Err(e) => Err(Error::sys_at("verify the working directory", wanted, e)),
    }
}

fn wait_for_reader(descriptors: &OwnedFd, fifo: &OwnedFd) -> Result<()> {
    let number = PathBuf::from(fifo.as_raw_fd().to_string());
    // /proc of the container may be anything: the host's view of our own descriptors was opened before.
    let writer = loop {
        match rustix::fs::openat(
            descriptors,
            &number,
            OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Err(rustix::io::Errno::INTR) => continue,
            other => break other.step("open the start FIFO")?,
        }
    };
    rustix::io::write(&writer, b"0").step("write to the start FIFO")?;
    Ok(())
}
