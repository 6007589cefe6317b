//! What bounds one process rather than a cgroup: resource limits, the OOM score, scheduling and I/O classes, personality.
//!
//! The OOM score, and limits that raise a hard one, are set from outside, by the caller, who has the rights a user namespace
//! takes away; the rest by the process on itself.
//! Must not know: cgroups.

use std::path::PathBuf;

use nix::errno::Errno;
use nix::unistd::Pid;
use oci_spec::runtime::{
    IOPriorityClass, LinuxPersonalityDomain, LinuxSchedulerFlag, LinuxSchedulerPolicy, PosixRlimit,
    PosixRlimitType, Process, Scheduler, Spec,
};

use crate::error::{Context, Error, Result};
use crate::namespaces::write_whole;
use crate::sys::{self, SchedAttr};

/// Sets this process' resource limits as far as it may by itself; returns the places in the list of those that must be set
/// from outside, because they raise a hard limit.
pub(crate) fn lower_own(process: &Process) -> Vec<usize> {
    let list = process.rlimits().iter().flatten().enumerate();
    list.filter(|(_, limit)| set(Pid::from_raw(0), limit).is_err())
        .map(|(index, _)| index)
        .collect()
}

/// Sets, of a held process, the resource limits it could not set itself, and the OOM score.
pub(crate) fn apply_from_outside(pid: Pid, process: &Process, limits: &[usize]) -> Result<()> {
    let list = process.rlimits().as_deref().unwrap_or_default();
    for limit in limits.iter().filter_map(|index| list.get(*index)) {
        let to = format!("set {} to {}:{}", limit.typ(), limit.soft(), limit.hard());
        set(pid, limit).map_err(|e| match e {
            Errno::EPERM => Error::HostUnfit {
                need: to,
                why: "the hard limit of the caller is lower and it may not raise it (CAP_SYS_RESOURCE)".into(),
            },
            e => Error::sys(to, e),
        })?;
    }
    if let Some(score) = process.oom_score_adj() {
        let path = PathBuf::from(format!("/proc/{pid}/oom_score_adj"));
        write_whole(&path, score.to_string().as_bytes(), "set the OOM score in")?;
    }
    Ok(())
}

fn set(pid: Pid, limit: &PosixRlimit) -> std::result::Result<(), Errno> {
    sys::set_rlimit_of(pid, resource(limit.typ()), limit.soft(), limit.hard())
}

/// Sets what a process sets on itself.
pub(crate) fn apply_to_self(process: &Process, spec: &Spec) -> Result<()> {
    if let Some(io) = process.io_priority() {
        let class = match io.class() {
            IOPriorityClass::IoprioClassRt => 1,
            IOPriorityClass::IoprioClassBe => 2,
            IOPriorityClass::IoprioClassIdle => 3,
        };
        let level = i32::try_from(io.priority())
            .ok()
            .filter(|level| (0..8).contains(level))
            .ok_or_else(|| {
                Error::invalid(format!("I/O priority {} is not within 0-7", io.priority()))
            })?;
        sys::set_io_priority(class, level).step("set the I/O priority")?;
    }
    if let Some(scheduler) = process.scheduler() {
        sys::set_scheduler(sched_attr(scheduler)?).step("set the scheduler")?;
    }
    if let Some(personality) = spec.linux().as_ref().and_then(|l| l.personality().as_ref()) {
        // linux/personality.h
        let persona = match personality.domain() {
            LinuxPersonalityDomain::PerLinux => 0x0000,
            LinuxPersonalityDomain::PerLinux32 => 0x0008,
        };
        sys::set_personality(persona).step("set the personality")?;
    }
    Ok(())
}

fn resource(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

/// linux/sched.h and linux/sched/types.h. Pure.
fn sched_attr(scheduler: &Scheduler) -> Result<SchedAttr> {
    let policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let flags = scheduler.flags().iter().flatten().fold(0u64, |all, flag| {
        all | match flag {
            LinuxSchedulerFlag::SchedResetOnFork => 0x01,
            LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
            LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
            LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
            LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
            LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
        }
    });
    let priority = u32::try_from(scheduler.priority().unwrap_or(0))
        .map_err(|_| Error::invalid("scheduler.priority is negative"))?;
    Ok(SchedAttr {
        size: 0,
        policy,
        flags,
        nice: scheduler.nice().unwrap_or(0),
        priority,
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
    })
}
