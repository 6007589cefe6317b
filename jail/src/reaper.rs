//! A tiny init: PID 1 that runs the command as its child, reaps orphans, passes signals on, and ends with the child's code.
//!
//! It is the set-up process itself, which stays instead of executing the command. It keeps nothing but the standard
//! streams, and cannot be traced or read from inside (not dumpable).
//! Must not know: what the command is.

use std::ffi::CStr;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::error::{Context, Result};
use crate::sys::{self, Cloned};

/// Goes by a name of its own: the program's arguments tell of the host. While the privilege for it is still there; in a user
/// namespace it is not, and nothing worse than a path is seen.
pub(crate) fn take_name() {
    // Never freed: the kernel reads it for as long as we live, and only from anonymous memory.
    let name: &'static CStr = Box::leak(c"caisson-init".to_owned().into_boxed_c_str());
    if let Err(errno) = sys::show_as(name) {
        tracing::debug!(%errno, "the reaper keeps its command line");
    }
    let _ = nix::sys::prctl::set_name(c"caisson-init");
}

/// Forks. Returns in the child, which is to execute the command; the parent becomes the reaper and never returns.
pub(crate) fn fork_command() -> Result<()> {
    // Blocked before the child exists, so that no signal is lost; the child unblocks them before exec.
    sys::block_all_signals();
    let is_leader = nix::unistd::getsid(None) == Ok(nix::unistd::getpid());
    // Before the command exists, which could otherwise be quicker; its exec makes it dumpable again.
    sys::set_dumpable(false).step("hide the reaper from its container")?;
    match sys::clone3(0, None).step("fork the command")? {
        Cloned::Child => {
            // Its own process group in the foreground, or a ^C would reach it twice.
            if is_leader {
                let own = nix::unistd::getpid();
                let _ = nix::unistd::setpgid(own, own);
                let _ = sys::set_foreground(std::io::stdin().as_fd(), own);
            }
            Ok(())
        }
        Cloned::Parent { pid, pidfd } => {
            drop(pidfd);
            let _ = sys::close_range(3, u32::MAX);
            reap(pid)
        }
    }
}

fn reap(command: Pid) -> ! {
    loop {
        let Ok(signal) = sys::wait_signal() else {
            continue;
        };
        if signal == libc::SIGCHLD {
            if let Some(code) = collect(command) {
                sys::exit_now(code);
            }
        } else if !is_own_fault(signal) {
            forward(command, signal);
        }
    }
}

/// Collects every child that has ended; the command's code if it is among them.
fn collect(command: Pid) -> Option<i32> {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == command => code = Some(status),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == command => {
                code = Some(128 + signal as i32)
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return code,
            Err(Errno::EINTR) | Ok(_) => {}
            Err(_) => return code,
        }
    }
}

fn forward(command: Pid, signal: i32) {
    match Signal::try_from(signal) {
        Ok(signal) => drop(kill(command, signal)),
        // Real-time signals have no name in nix.
        Err(_) => drop(sys::kill_number(command, signal)),
    }
}

/// Signals that say something about the receiver, not to it.
fn is_own_fault(signal: i32) -> bool {
    [
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGFPE,
        libc::SIGILL,
        libc::SIGTRAP,
        libc::SIGABRT,
        libc::SIGSYS,
    ]
    .contains(&signal)
}
