//! The crate's only `unsafe`: forking a worker.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::{ForkResult, Pid, fork};

/// Runs `work` in a child process which keeps the standard streams and `keep`, dies with its parent, and whose exit code
/// is what `work` returns.
pub(crate) fn fork_worker(keep: &[BorrowedFd<'_>], work: impl FnOnce() -> i32) -> nix::Result<Pid> {
    let parent = nix::unistd::getpid();
    // SAFETY: the supervisor is single-threaded, so the child may do whatever its parent could; no lock is held by a
    // thread that does not exist in the child.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let code = catch_unwind(AssertUnwindSafe(|| {
                let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
                if nix::unistd::getppid() != parent {
                    return 1;
                }
                let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
                if close_all_but(keep).is_err() {
                    return 1;
                }
                work()
            }))
            .unwrap_or(101);
            // SAFETY: ends the child without running the parent's exit handlers or destructors.
            unsafe { libc::_exit(code) }
        }
    }
}

fn close_all_but(keep: &[BorrowedFd<'_>]) -> nix::Result<()> {
    let mut kept: Vec<u32> = keep
        .iter()
        .map(|fd| fd.as_raw_fd() as u32)
        .filter(|&fd| fd > 2)
        .collect();
    kept.sort_unstable();
    kept.dedup();
    let mut first = 3;
    for fd in kept {
        close_range(first, fd - 1)?;
        first = fd + 1;
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> nix::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: closes descriptors of a child that is about to run only `work`, which was told which ones remain; the
    // owners of the others are the parent's objects and never dropped here.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    nix::errno::Errno::result(result).map(drop)
}

/// Takes a descriptor that the kernel has just handed out.
pub(crate) fn own(raw: RawFd) -> OwnedFd {
    // SAFETY: callers pass what accept4 returned: open, and known to nobody else.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

/// How much a pipe or terminal holds.
pub(crate) fn readable_bytes(fd: BorrowedFd<'_>) -> nix::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int to the pointer, which is valid for the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &mut count) };
    nix::errno::Errno::result(result)?;
    Ok(count.max(0) as usize)
}

/// The next ended child and its exit code in the shell's manner, if there is one now. Real-time signals included, which
/// `nix` cannot name.
pub(crate) fn wait_any() -> nix::Result<Option<(Pid, i32)>> {
    let mut status: libc::c_int = 0;
    // SAFETY: the kernel writes one int to the pointer, which is valid for the call.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
    match nix::errno::Errno::result(pid)? {
        0 => Ok(None),
        pid if libc::WIFSIGNALED(status) => {
            Ok(Some((Pid::from_raw(pid), 128 + libc::WTERMSIG(status))))
        }
        pid => Ok(Some((Pid::from_raw(pid), libc::WEXITSTATUS(status)))),
    }
}

/// Sends a signal by number, real-time ones included.
pub(crate) fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> nix::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed and means what kill(2) would send; no memory is touched.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            no_info,
            0,
        )
    };
    nix::errno::Errno::result(result).map(drop)
}
