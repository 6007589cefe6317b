//! Compiles an OCI seccomp profile to one classic BPF program and installs it.
//!
//! [`compile`] before the fork, [`Filter::install`] in the child, as late as possible: after `no_new_privs` was set, or while
//! `CAP_SYS_ADMIN` is still effective.
//!
//! ```text
//! profile ──rules──▶ per architecture: sorted ranges of system call numbers, each with a verdict ──assemble──▶ BPF
//!
//! load arch ─▶ one of ours? ─▶ load nr ─▶ binary search ─▶ return VERDICT
//!                 │ no                                 └▶ compare arguments ─▶ return VERDICT
//!                 ▼
//!              kill thread
//! ```
//!
//! What a profile means, where the OCI spec leaves it open, is what runc with libseccomp makes of it:
//! - A rule's argument conditions must all hold; when one argument has two conditions, any one of all of them is enough.
//! - Of several rules for one system call an unconditional one decides alone, the first of them; otherwise the first in the
//!   list whose conditions hold. A rule with the default action says nothing.
//! - Names that an architecture does not have are ignored there.
//! - When the default action denies, numbers above the highest that any rule names on that architecture give `ENOSYS`: the
//!   profile's author did not know them, and C libraries fall back only on that error.
//! - The native architecture always counts; others not listed, x32 among them, kill the thread.
//! - Without `flags` the program gets `SECCOMP_FILTER_FLAG_SPEC_ALLOW`; an empty list means none.

mod assemble;
mod rules;
mod sys;
mod table;

use nix::errno::Errno;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag};

use crate::Result;

/// An error of a seccomp profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum Error {
    #[error(
        "seccomp profile: {what} hands system calls to a listening process, which is not supported; use another action"
    )]
    Listener { what: &'static str },
    #[error("seccomp profile: rule for {syscall:?}: argument index {index} is not between 0 and 5")]
    ArgumentIndex { syscall: String, index: usize },
    #[error("seccomp profile: errno {errno} is not between 0 and 4095")]
    Errno { errno: u32 },
    #[error(
        "seccomp profile: it takes {instructions} instructions, the kernel allows 4096; use fewer conditions or architectures"
    )]
    TooLong { instructions: usize },
    #[error(
        "seccomp profiles cannot be compiled for this processor architecture ({cpu}) yet; use seccomp=unconfined"
    )]
    Cpu { cpu: &'static str },
}

impl Error {
    /// The class of this error.
    pub fn kind(&self) -> crate::ErrorKind {
        match self {
            Error::Cpu { .. } => crate::ErrorKind::HostUnfit,
            _ => crate::ErrorKind::Invalid,
        }
    }
}

impl From<Error> for crate::Error {
    fn from(e: Error) -> crate::Error {
        crate::Error::Seccomp {
            kind: e.kind(),
            message: e.to_string(),
        }
    }
}

/// One instruction: `struct sock_filter` (include/uapi/linux/filter.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Distance of a jump when the condition holds.
    pub jump_true: u8,
    /// Distance of a jump when it does not.
    pub jump_false: u8,
    /// Operand.
    pub k: u32,
}

/// A compiled profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    program: Vec<Instruction>,
    flags: u32,
}

/// Compiles a profile for this machine.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter> {
    Ok(compile_for(profile, table::Cpu::native()?)?)
}

fn compile_for(profile: &LinuxSeccomp, cpu: table::Cpu) -> Result<Filter, Error> {
    let plan = rules::plan(profile, cpu)?;
    Ok(Filter {
        program: assemble::program(&plan)?,
        flags: flags(profile)?,
    })
}

fn flags(profile: &LinuxSeccomp) -> Result<u32, Error> {
    // include/uapi/linux/seccomp.h
    let Some(flags) = profile.flags() else {
        return Ok(1 << 2);
    };
    flags.iter().try_fold(0, |bits, flag| {
        Ok(bits
            | match flag {
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 1 << 0,
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => 1 << 1,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => 1 << 2,
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                    return Err(Error::Listener {
                        what: "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
                    });
                }
            })
    })
}

/// What the program returns for an action (`SECCOMP_RET_*`).
fn verdict(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, Error> {
    use LinuxSeccompAction::{
        ScmpActAllow, ScmpActErrno, ScmpActKill, ScmpActKillProcess, ScmpActKillThread, ScmpActLog,
        ScmpActNotify, ScmpActTrace, ScmpActTrap,
    };
    let data = || match errno {
        None => Ok(libc::EPERM.cast_unsigned()),
        Some(errno @ 0..=4095) => Ok(errno),
        Some(errno) => Err(Error::Errno { errno }),
    };
    Ok(match action {
        ScmpActKill | ScmpActKillThread => libc::SECCOMP_RET_KILL_THREAD,
        ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        ScmpActTrap => libc::SECCOMP_RET_TRAP,
        ScmpActErrno => libc::SECCOMP_RET_ERRNO | data()?,
        ScmpActTrace => libc::SECCOMP_RET_TRACE | data()?,
        ScmpActLog => libc::SECCOMP_RET_LOG,
        ScmpActAllow => libc::SECCOMP_RET_ALLOW,
        ScmpActNotify => {
            return Err(Error::Listener {
                what: "SCMP_ACT_NOTIFY",
            });
        }
    })
}

impl Filter {
    /// The program, for reading.
    pub fn program(&self) -> &[Instruction] {
        &self.program
    }

    /// Installs it for the calling thread (for all threads with the TSYNC flag). Allocates nothing: callable after fork.
    /// `EACCES`: neither `no_new_privs` nor `CAP_SYS_ADMIN`; `EINVAL`: the kernel lacks seccomp or one of the flags.
    pub fn install(&self) -> std::result::Result<(), Errno> {
        sys::install(&self.program, self.flags)
    }
}

#[cfg(test)]
mod tests;
