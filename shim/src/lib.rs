//! `caisson-shim`: the host process that outlives the daemon, one per sandbox.
//!
//! ```text
//!   caisson-shim --dir EXEC-ROOT/sandboxes/ID             standard input: the listening socket, if not to be made here
//!   caisson-shim --dir EXEC-ROOT/sandboxes/ID --vm        the same for a sandbox in a virtual machine
//!   caisson-shim --dir EXEC-ROOT/sandboxes/ID --cleanup   after a killed shim
//! ```
//!
//! For a container it is `supervisor` with the host around it: a mount namespace, log files, exit records. It belongs to no terminal,
//! ignores every signal that is not meant to end it for good, and ends when its sandbox has been destroyed. When it is
//! killed its first process dies with it. For a virtual machine see [`vm`].
//!
//! Public is what the fuzzer drives: the journal of a process in a virtual machine, and the log behind it.
//!
//! Must not know: Docker's API, images, tokio.

mod cleanup;
mod host;
pub mod json_log;
mod mounts;
mod records;
pub mod vm;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use caisson_protocol::layout::SOCKET;
use caisson_supervisor::Supervisor;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::socket::{getsockopt, sockopt::AcceptConn};

const USAGE: &str = "usage: caisson-shim --dir DIRECTORY [--vm | --cleanup]\n\nStarted by the caisson daemon, one per container.";

/// The program.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("caisson-shim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

struct Arguments {
    dir: PathBuf,
    cleanup: bool,
    vm: bool,
}

fn parse(mut arguments: impl Iterator<Item = OsString>) -> anyhow::Result<Option<Arguments>> {
    let (mut dir, mut cleanup, mut vm) = (None, false, false);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--dir") => {
                dir = Some(PathBuf::from(
                    arguments.next().context("--dir needs a directory")?,
                ))
            }
            Some("--cleanup") => cleanup = true,
            Some("--vm") => vm = true,
            Some("--help" | "-h") => {
                println!("{USAGE}");
                return Ok(None);
            }
            Some("--version" | "-V") => {
                println!("caisson-shim {}", env!("CARGO_PKG_VERSION"));
                return Ok(None);
            }
            _ => bail!("unknown argument {argument:?}\n{USAGE}"),
        }
    }
    let Some(dir) = dir else {
        bail!("no directory\n{USAGE}")
    };
    if !dir.is_absolute() {
        bail!("{} is not an absolute path", dir.display());
    }
    Ok(Some(Arguments { dir, cleanup, vm }))
}

fn run() -> anyhow::Result<()> {
    let Some(arguments) = parse(std::env::args_os().skip(1))? else {
        return Ok(());
    };
    caisson_jail::seal_self().context("cannot protect this program from its container")?;
    let subscriber = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_target(false);
    subscriber.init();
    if arguments.cleanup {
        return cleanup::clean_up(&arguments.dir);
    }
    become_daemon()?;
    let listener = take_listener(&arguments)?;
    if arguments.vm {
        return vm::run(listener, arguments.dir).context("cannot serve the virtual machine");
    }
    mounts::enter_namespace()?;
    let host = host::SandboxDir { dir: arguments.dir };
    Supervisor::new(listener, Box::new(host))
        .context("cannot set up the event loop")?
        .run()
        .context("the event loop failed")
}

/// Leaves the daemon's session and everything that could end this process by accident.
fn become_daemon() -> anyhow::Result<()> {
    // Fails only for a process-group leader, which was started by hand.
    let _ = nix::unistd::setsid();
    let _ = nix::sys::prctl::set_name(c"caisson-shim");
    std::env::set_current_dir("/").context("cannot change to /")?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    // Blocked, not ignored: ignoring would be inherited through execve by every process of the container.
    let ignored = {
        use nix::sys::signal::Signal::*;
        [
            SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGTSTP, SIGTTIN, SIGTTOU,
        ]
    };
    sigprocmask(
        SigmaskHow::SIG_BLOCK,
        Some(&SigSet::from_iter(ignored)),
        None,
    )
    .context("cannot block signals")
}

/// The listening socket: standard input when it is one, otherwise a new one in the directory.
fn take_listener(arguments: &Arguments) -> anyhow::Result<OwnedFd> {
    let stdin = io::stdin();
    let inherited = getsockopt(&stdin.as_fd(), AcceptConn).unwrap_or(false);
    let listener = if inherited {
        stdin.as_fd().try_clone_to_owned()?
    } else {
        let path = arguments.dir.join(SOCKET);
        let listener = UnixListener::bind(&path)
            .with_context(|| format!("cannot listen on {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        listener.into()
    };
    let null = fs::File::open("/dev/null").context("cannot open /dev/null")?;
    nix::unistd::dup2_stdin(&null).context("cannot replace standard input")?;
    Ok(listener)
}
