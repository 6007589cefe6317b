//! What each command does.
//!
//! Must not know: the command line's words.

mod exec;
mod life;
mod limits;
mod make;
mod show;

use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use caisson_jail::Init;

use crate::cli::{Command, Globals, HELP};
use crate::store::Store;

/// A command's failure and the code it ends with.
pub struct Failure {
    pub error: anyhow::Error,
    pub code: u8,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure { error, code: 1 }
    }
}

/// Runs a command; the code is a process' where it stayed with one.
pub fn run(globals: &Globals, command: Command) -> Result<u8, Failure> {
    let store = Store::new(&globals.root);
    match command {
        Command::Create(options) => make::create(&store, options)?,
        Command::Run(options) => return Ok(make::run(&store, options)?),
        // runc's code for an exec that could not be made.
        Command::Exec(options) => {
            return exec::exec(&store, *options).map_err(|error| Failure { error, code: 255 });
        }
        Command::Start { id } => life::start(&store, &id)?,
        Command::State { id } => show::state(&store, &id)?,
        Command::Kill { id, signal, all } => life::kill(&store, &id, &signal, all)?,
        Command::Delete { id, force } => life::delete(&store, &id, force)?,
        Command::Pause { id } => life::pause(&store, &id)?,
        Command::Resume { id } => life::resume(&store, &id)?,
        Command::Update(options) => limits::update(&store, options)?,
        Command::List { format, quiet } => show::list(&store, format, quiet)?,
        Command::Ps { id, format } => show::ps(&store, &id, format)?,
        Command::Events {
            id,
            stats,
            interval_s,
        } => show::events(&store, &id, stats, interval_s)?,
        Command::Spec { bundle, rootless } => crate::template::write(bundle.as_deref(), rootless)?,
        Command::Features => println!("{:#}", caisson_jail::features::features()),
        Command::Version => print!("{}", version()),
        Command::Help => print!("{HELP}"),
    }
    Ok(0)
}

/// runc's form: dockerd and podman read it.
fn version() -> String {
    format!(
        "caisson-oci version {}\ncommit: {}\nspec: {}\n",
        env!("CARGO_PKG_VERSION"),
        option_env!("CAISSON_COMMIT").unwrap_or("unknown"),
        caisson_jail::features::SPEC_VERSION
    )
}

/// runc's words around whatever kept a process from starting.
fn could_not_start(error: caisson_jail::Error) -> anyhow::Error {
    anyhow!("unable to start container process: {error}")
}

/// Writes a process id for the caller, by rename, so that it is never read half.
fn write_pid_file(path: &Path, process: &Init) -> Result<()> {
    let name = path
        .file_name()
        .ok_or_else(|| anyhow!("pid file {} has no name", path.display()))?;
    let temporary = path.with_file_name(format!(".{}", name.to_string_lossy()));
    std::fs::write(&temporary, process.pid.to_string())
        .and_then(|()| std::fs::rename(&temporary, path))
        .with_context(|| format!("write pid file {}", path.display()))
}

/// Sends a terminal's master to whoever listens on a console socket.
fn send_console(socket: &Path, process: &mut Init) -> Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let Some(master) = process.console.take() else {
        return Ok(());
    };
    let stream = std::os::unix::net::UnixStream::connect(socket)
        .with_context(|| format!("connect to console socket {}", socket.display()))?;
    let name = [std::io::IoSlice::new(b"/dev/ptmx")];
    let fds = [master.as_raw_fd()];
    sendmsg::<()>(
        stream.as_raw_fd(),
        &name,
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::empty(),
        None,
    )
    .with_context(|| format!("send the terminal to {}", socket.display()))?;
    Ok(())
}

/// Descriptors handed over by socket activation: their number, if any were meant for us.
fn listen_fds() -> u32 {
    std::env::var("LISTEN_FDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0)
}

/// Sends any signal number to a process.
fn send_signal(pid: nix::unistd::Pid, number: i32) -> Result<(), nix::errno::Errno> {
    caisson_jail::send_signal(pid, number)
}
