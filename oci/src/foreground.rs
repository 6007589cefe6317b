//! Stays with a process until it ends: passes signals on, and its terminal through.
//!
//! Must not know: whether the process is a container's init or an exec.

use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use caisson_jail::Init;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{self, SetArg, Termios};
use nix::sys::wait::{WaitStatus, waitpid};

/// Signals blocked and readable: to be made before the process is, so that none is lost.
pub struct Signals {
    fd: SignalFd,
}

impl Signals {
    pub fn take() -> Result<Signals> {
        let mut set = SigSet::all();
        for own in [
            Signal::SIGSEGV,
            Signal::SIGBUS,
            Signal::SIGILL,
            Signal::SIGFPE,
            Signal::SIGABRT,
            Signal::SIGTRAP,
        ] {
            set.remove(own);
        }
        set.thread_block().context("block signals")?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context("signalfd")?;
        Ok(Signals { fd })
    }
}

/// The caller's terminal in raw mode; restored on drop.
struct Raw {
    before: Termios,
}

impl Raw {
    fn enter() -> Option<Raw> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let before = termios::tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&stdin, SetArg::TCSANOW, &raw).ok()?;
        Some(Raw { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.before);
    }
}

/// Waits for a started process; returns its exit code, 128 + signal if one killed it.
pub fn stay(process: &Init, signals: &Signals) -> Result<u8> {
    let raw = process.console.as_ref().and_then(|_| Raw::enter());
    if process.console.is_some() {
        copy_size(process);
    }
    let stdin = std::io::stdin();
    let mut reading = process.console.is_some();
    let mut writing = process.console.is_some();
    let code = loop {
        let mut fds = vec![
            PollFd::new(signals.fd.as_fd(), PollFlags::POLLIN),
            PollFd::new(process.pidfd.as_fd(), PollFlags::POLLIN),
        ];
        if let Some(master) = &process.console {
            fds.push(PollFd::new(
                master.as_fd(),
                if writing {
                    PollFlags::POLLIN
                } else {
                    PollFlags::empty()
                },
            ));
            if reading {
                fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
            }
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other.context("poll")?,
        };
        let ready = |index: usize| {
            fds.get(index)
                .and_then(PollFd::revents)
                .is_some_and(|r| !r.is_empty())
        };
        let (signalled, ended, output, input) = (ready(0), ready(1), ready(2), ready(3));
        if signalled {
            forward(process, signals);
        }
        if let Some(master) = &process.console {
            if output && writing {
                writing = copy(master.as_fd(), std::io::stdout().as_fd());
            }
            if input && reading {
                reading = copy(stdin.as_fd(), master.as_fd());
            }
        }
        if ended {
            if let Some(master) = &process.console {
                while writing && has_output(master) {
                    writing = copy(master.as_fd(), std::io::stdout().as_fd());
                }
            }
            break match waitpid(process.pid, None) {
                Ok(WaitStatus::Exited(_, code)) => code as u8,
                Ok(WaitStatus::Signaled(_, signal, _)) => 128 + signal as u8,
                other => return Err(anyhow::anyhow!("unexpected wait status {other:?}")),
            };
        }
    };
    drop(raw);
    Ok(code)
}

fn has_output(master: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(master.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
        && fds[0]
            .revents()
            .is_some_and(|r| r.contains(PollFlags::POLLIN))
}

fn forward(process: &Init, signals: &Signals) {
    while let Ok(Some(info)) = signals.fd.read_signal() {
        let number = info.ssi_signo as i32;
        match Signal::try_from(number) {
            Ok(Signal::SIGCHLD) => {}
            Ok(Signal::SIGWINCH) if process.console.is_some() => copy_size(process),
            // From the terminal we share with it: it got them already, or is to get them from its own.
            Ok(Signal::SIGTTIN | Signal::SIGTTOU | Signal::SIGPIPE | Signal::SIGURG) => {}
            Ok(signal) => drop(kill(process.pid, signal)),
            Err(_) => {}
        }
    }
}

fn copy_size(process: &Init) {
    if let Some(master) = &process.console {
        let _ = caisson_jail::copy_window_size(std::io::stdin().as_fd(), master.as_fd());
    }
}

/// Passes on what is there; `false` at the end of the source.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> bool {
    let mut buffer = [0u8; 16 * 1024];
    let count = match nix::unistd::read(from, &mut buffer) {
        Ok(0) => return false,
        Ok(count) => count,
        Err(Errno::EINTR | Errno::EAGAIN) => return true,
        Err(_) => return false,
    };
    let mut rest = &buffer[..count];
    while !rest.is_empty() {
        match nix::unistd::write(to, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(_) => return false,
        }
    }
    true
}
