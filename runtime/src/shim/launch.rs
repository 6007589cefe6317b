//! Starting a shim, and taking everything back when the sandbox does not come to be.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use caisson_protocol::layout::{LOG, SOCKET};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::failed;
use super::program::ShimProgram;
use crate::{Error, ErrorKind, Isolation, Result};

/// How much of a dead shim's log goes into an error message.
const LOG_TAIL_BYTES: usize = 2000;

/// A shim that has been started for a sandbox that is not made yet. Unless it succeeds everything is taken back.
pub(super) struct Launch {
    program: Arc<ShimProgram>,
    dir: PathBuf,
    pidfd: Option<OwnedFd>,
}

impl Launch {
    /// Makes the directory, listens, starts the shim with the listening socket as its standard input. Connections can be
    /// made at once; they wait until it is ready.
    pub(super) async fn start(
        program: &Arc<ShimProgram>,
        isolation: Isolation,
        dir: PathBuf,
    ) -> Result<Self> {
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let name = dir.file_name().unwrap_or_default().to_string_lossy();
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("there is a sandbox {name} already"),
                ));
            }
            Err(e) => return Err(failed(&format!("cannot make {}", dir.display()), &e)),
        }
        let mut launch = Launch {
            program: Arc::clone(program),
            dir,
            pidfd: None,
        };
        let spawned = launch.spawn(isolation);
        match spawned {
            Ok(pidfd) => {
                launch.pidfd = Some(pidfd);
                Ok(launch)
            }
            Err(e) => {
                let what = format!("cannot start the shim {}", program.path().display());
                Err(launch.undo(failed(&what, &e)).await)
            }
        }
    }

    fn spawn(&self, isolation: Isolation) -> io::Result<OwnedFd> {
        let listener = listen(&self.dir)?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(self.dir.join(LOG))?;
        let mut command = self.program.command(&self.dir);
        if isolation == Isolation::Vm {
            command.arg("--vm");
        }
        command
            .stdin(OwnedFd::from(listener))
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command.spawn()?;
        // The command still holds our copy of the listening socket: while it did, a dead shim's socket would answer.
        drop(command);
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        reap(child, pidfd.try_clone()?);
        Ok(pidfd)
    }

    /// The sandbox has been made.
    pub(super) fn succeed(mut self) {
        self.pidfd = None;
        self.dir = PathBuf::new();
    }

    /// Takes everything back; the error again, with what the shim said if it died.
    pub(super) async fn undo(mut self, mut error: Error) -> Error {
        if error.kind == ErrorKind::Lost {
            let tail = said(&self.dir);
            if !tail.is_empty() {
                error.message = format!("{}; it said: {tail}", error.message);
            }
        }
        let (dir, pidfd) = (std::mem::take(&mut self.dir), self.pidfd.take());
        if let Err(undo) = take_back(&self.program, &dir, pidfd).await {
            tracing::error!(dir = %dir.display(), error = %undo, "a sandbox that was not made leaves something behind");
        }
        error
    }
}

impl Drop for Launch {
    /// The caller went away in the middle.
    fn drop(&mut self) {
        if self.dir.as_os_str().is_empty() {
            return;
        }
        let (program, dir, pidfd) = (
            Arc::clone(&self.program),
            std::mem::take(&mut self.dir),
            self.pidfd.take(),
        );
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = take_back(&program, &dir, pidfd).await {
                    tracing::error!(dir = %dir.display(), %error, "an abandoned sandbox leaves something behind");
                }
            });
        }
    }
}

async fn take_back(program: &ShimProgram, dir: &Path, pidfd: Option<OwnedFd>) -> Result<()> {
    if let Some(pidfd) = pidfd {
        kill(pidfd).await;
    }
    clean_up(program, dir).await?;
    remove_dir(dir).await
}

/// The end of a shim's log.
fn said(dir: &Path) -> String {
    let log = fs::read(dir.join(LOG)).unwrap_or_default();
    let tail = &log[log.len().saturating_sub(LOG_TAIL_BYTES)..];
    String::from_utf8_lossy(tail).trim().to_string()
}

/// The errors in a shim's log, which goes with its directory.
pub(super) fn complaints(dir: &Path) -> Vec<String> {
    let errors = |line: &&str| line.contains(" ERROR ");
    said(dir)
        .lines()
        .filter(errors)
        .filter_map(|line| Some(line.split_once(" ERROR ")?.1.to_string()))
        .collect()
}

/// Has a dead shim's cgroup and processes removed.
pub(super) async fn clean_up(program: &ShimProgram, dir: &Path) -> Result<()> {
    let mut command: Command = program.command(dir);
    command.arg("--cleanup").stderr(Stdio::piped());
    let output = tokio::process::Command::from(command).output().await;
    let output = output.map_err(|e| failed("cannot start the shim's clean-up", &e))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::new(
        ErrorKind::Internal,
        format!("cannot clean up after {}: {}", dir.display(), said.trim()),
    ))
}

pub(super) async fn remove_dir(dir: &Path) -> Result<()> {
    match tokio::fs::remove_dir_all(dir).await {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(failed(&format!("cannot remove {}", dir.display()), &e))
        }
        _ => Ok(()),
    }
}

/// Kills a process and waits for its end.
pub(super) async fn kill(pidfd: OwnedFd) {
    let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    ended(pidfd).await;
}

/// Waits for the end of a process that need not be ours.
pub(super) async fn ended(pidfd: OwnedFd) {
    #[expect(
        deprecated,
        reason = "its successor is unsafe for the sake of descriptors that change; an OwnedFd does not"
    )]
    let watched = AsyncFd::with_interest(pidfd, Interest::READABLE);
    if let Ok(pidfd) = watched {
        let _ = pidfd.readable().await;
    }
}

/// The process, to be waited for; `None` when it has gone.
pub(super) fn open_pid(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

/// While the daemon lives its shims are its children and must not become zombies.
fn reap(mut child: std::process::Child, pidfd: OwnedFd) {
    tokio::spawn(async move {
        ended(pidfd).await;
        for _ in 0..10 {
            match child.try_wait() {
                Ok(None) => tokio::time::sleep(Duration::from_millis(10)).await,
                _ => return,
            }
        }
    });
}

/// A listening socket in a directory of any path length; socket addresses are short.
fn listen(dir: &Path) -> io::Result<UnixListener> {
    let dir = File::open(dir)?;
    UnixListener::bind(format!(
        "/proc/self/fd/{}/{SOCKET}",
        dir.as_fd().as_raw_fd()
    ))
}

/// Makes a directory that only its owner may enter, and its parents.
pub(super) fn make_private_dir_all(dir: &Path) -> io::Result<()> {
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}
