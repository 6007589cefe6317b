//! The only `unsafe` of the vm half: what a child does between fork and exec.

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use caisson_jail::cgroup::{Entrance, Unified};
use nix::sys::signal::Signal;

/// Has the command's child die with this thread, enter a cgroup, and keep these descriptors, under the same numbers. The
/// thread that spawns it must live as long as the process.
pub fn prepare_child(command: &mut Command, entrance: Entrance, keep: Vec<RawFd>) {
    let parent = nix::unistd::getpid();
    let prepare = move || -> io::Result<()> {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        if nix::unistd::getppid() != parent {
            return Err(nix::errno::Errno::ESRCH.into());
        }
        entrance.enter(Unified::Outside)?;
        for fd in &keep {
            // SAFETY: F_SETFD touches no memory; the descriptor is the child's own copy.
            nix::errno::Errno::result(unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) })?;
        }
        Ok(())
    };
    // SAFETY: `prepare` calls only prctl, getppid, write and fcntl, neither allocates nor takes a lock: allowed in the child
    // of a program with threads.
    unsafe { command.pre_exec(prepare) };
}
