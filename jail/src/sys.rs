//! Every `unsafe` of this crate: system calls that neither rustix nor nix wraps the way a container executor needs them.
//!
//! Each function is safe to call from a single-threaded process; nothing here decides anything.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::unistd::Pid;

type Sys<T> = std::result::Result<T, Errno>;

/// linux/sched.h; libc's constant has overflowed its type.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// Which side of [`clone3`] we are on.
pub(crate) enum Cloned {
    Child,
    Parent { pid: Pid, pidfd: OwnedFd },
}

/// fork(2) with namespaces, a pidfd and, on cgroup v2, straight into a cgroup.
///
/// The caller must be single-threaded (or the other threads must hold no lock the child needs): the child goes on with
/// ordinary Rust. Where a sandbox hides clone3 (ENOSYS), clone(2) serves unless `cgroup` is asked for.
pub(crate) fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Sys<Cloned> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain data for which all-zero is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    // A sibling (CLONE_PARENT) inherits the exit signal of its parent and must not name one.
    let exit_signal = if flags & libc::CLONE_PARENT as u64 != 0 {
        0
    } else {
        libc::SIGCHLD as u64
    };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = exit_signal;
    if let Some(dir) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = dir.as_raw_fd() as u64;
    }
    // SAFETY: args lives across the call and its pidfd points at a local; without CLONE_VM the child has its own copy of
    // this stack.
    let mut pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const args,
            size_of::<libc::clone_args>(),
        )
    };
    if pid < 0 && Errno::last() == Errno::ENOSYS && cgroup.is_none() {
        let legacy = flags | libc::CLONE_PIDFD as u64 | exit_signal;
        // SAFETY: as above; a null stack means the child continues on its copy of ours.
        pid = unsafe {
            libc::syscall(
                libc::SYS_clone,
                legacy,
                0usize,
                &raw mut pidfd,
                0usize,
                0usize,
            )
        };
    }
    match pid {
        -1 => Err(Errno::last()),
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: the kernel has just given us this descriptor; nobody else knows it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent {
                pid: Pid::from_raw(pid as i32),
                pidfd,
            })
        }
    }
}

/// fork(2) through libc, which puts its own locks in order: what a caller with several threads needs. `None` in the child.
pub(crate) fn fork() -> Sys<Option<Pid>> {
    // SAFETY: the child only goes on with what libc's fork handlers have made usable; see is_threaded's callers.
    match Errno::result(unsafe { libc::fork() })? {
        0 => Ok(None),
        pid => Ok(Some(Pid::from_raw(pid))),
    }
}

/// Whether this process has more than one thread: /proc/self/task has a link for each beside its own two.
pub(crate) fn is_threaded() -> bool {
    rustix::fs::stat("/proc/self/task").is_ok_and(|task| task.st_nlink > 3)
}

/// Ends the process at once: no destructors, no atexit. What a forked child must use.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Attributes for [`mount_setattr`] (linux/mount.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MountAttr {
    pub set: u64,
    pub clear: u64,
    pub propagation: u64,
    pub userns_fd: u64,
}

/// mount_setattr(2) on the mount a descriptor refers to; `recursive` covers the mounts below it.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attr: &MountAttr) -> Sys<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated empty string, attr a live struct of the size given.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    Errno::result(rc).map(drop)
}

/// Marks every descriptor from `first` up close-on-exec.
pub(crate) fn cloexec_from(first: u32) -> Sys<()> {
    const CLOSE_RANGE_CLOEXEC: u32 = 1 << 2;
    // SAFETY: close_range with CLOEXEC only sets flags.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) };
    Errno::result(rc).map(drop)
}

/// Closes every descriptor in `first..=last`. Only for a child that is about to exec or that owns no `OwnedFd` in the range
/// it will use again.
pub(crate) fn close_range(first: u32, last: u32) -> Sys<()> {
    // SAFETY: the callers (reaper, pausing helpers) leak every OwnedFd in the range by never returning.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) };
    Errno::result(rc).map(drop)
}

/// execveat(2) of the file a descriptor refers to. Returns only on failure.
pub(crate) fn execveat_fd(fd: BorrowedFd<'_>, args: &[CString], env: &[CString]) -> Errno {
    let argv = pointers(args);
    let envp = pointers(env);
    // SAFETY: argv and envp are NULL-terminated arrays of pointers to NUL-terminated strings that live across the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Errno::last()
}

/// execve(2). Returns only on failure.
pub(crate) fn execve(path: &CStr, args: &[CString], env: &[CString]) -> Errno {
    let argv = pointers(args);
    let envp = pointers(env);
    // SAFETY: as in execveat_fd.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    Errno::last()
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|s| s.as_ptr())
        .chain(std::iter::once(std::ptr::null()))
        .collect()
}

/// Opens the other end of a pty from its master, whatever is mounted at /dev/pts (TIOCGPTPEER).
pub(crate) fn pty_peer(master: BorrowedFd<'_>) -> Sys<OwnedFd> {
    // SAFETY: TIOCGPTPEER takes open flags by value and returns a new descriptor.
    let fd = unsafe {
        libc::ioctl(
            master.as_raw_fd(),
            libc::TIOCGPTPEER as _,
            libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC,
        )
    };
    let fd = Errno::result(fd)?;
    // SAFETY: fresh from the kernel.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Unlocks a pty's slave (TIOCSPTLCK).
pub(crate) fn pty_unlock(master: BorrowedFd<'_>) -> Sys<()> {
    let unlocked: libc::c_int = 0;
    // SAFETY: the ioctl reads one int.
    Errno::result(unsafe {
        libc::ioctl(
            master.as_raw_fd(),
            libc::TIOCSPTLCK as _,
            &raw const unlocked,
        )
    })
    .map(drop)
}

/// Makes a terminal the controlling one of this session.
pub(crate) fn set_controlling_tty(tty: BorrowedFd<'_>) -> Sys<()> {
    // SAFETY: takes an int by value.
    Errno::result(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSCTTY as _, 0) }).map(drop)
}

/// Sets a terminal's size.
pub(crate) fn set_window_size(tty: BorrowedFd<'_>, rows: u16, columns: u16) -> Sys<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the ioctl reads one winsize.
    Errno::result(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSWINSZ as _, &raw const size) })
        .map(drop)
}

/// Makes `pgrp` the foreground process group of a terminal.
pub(crate) fn set_foreground(tty: BorrowedFd<'_>, pgrp: Pid) -> Sys<()> {
    // SAFETY: plain values.
    Errno::result(unsafe { libc::tcsetpgrp(tty.as_raw_fd(), pgrp.as_raw()) }).map(drop)
}

/// Brings the interface `lo` of this network namespace up.
pub(crate) fn loopback_up() -> Sys<()> {
    // SAFETY: plain values.
    let fd = Errno::result(unsafe {
        libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)
    })?;
    // SAFETY: fresh from the kernel.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: ifreq is plain data for which all-zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the ioctl reads one ifreq.
    Errno::result(unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw const request,
        )
    })
    .map(drop)
}

/// Joins a new session keyring, with a name or without.
pub(crate) fn join_session_keyring(name: Option<&CStr>) -> Sys<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    let name = name.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: the name is null or NUL-terminated and live.
    let rc = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name, 0, 0, 0) };
    Errno::result(rc).map(drop)
}

/// ioprio_set(2) for this process.
pub(crate) fn set_io_priority(class: i32, priority: i32) -> Sys<()> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    // SAFETY: plain values.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_ioprio_set,
            IOPRIO_WHO_PROCESS,
            0,
            (class << 13) | priority,
        )
    };
    Errno::result(rc).map(drop)
}

/// The argument of sched_setattr(2), its first version (linux/sched/types.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SchedAttr {
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// sched_setattr(2) for this process.
pub(crate) fn set_scheduler(attr: SchedAttr) -> Sys<()> {
    let attr = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        ..attr
    };
    // SAFETY: attr is live and says its own size.
    Errno::result(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) })
        .map(drop)
}

/// personality(2).
pub(crate) fn set_personality(persona: u64) -> Sys<()> {
    // SAFETY: plain value.
    Errno::result(unsafe { libc::personality(persona as libc::c_ulong) }).map(drop)
}

/// Sets a resource limit of another process.
pub(crate) fn set_rlimit_of(pid: Pid, resource: u32, soft: u64, hard: u64) -> Sys<()> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: the new limit is live; the old one is not asked for.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            pid.as_raw(),
            resource,
            &raw const limit,
            std::ptr::null::<libc::rlimit64>(),
        )
    };
    Errno::result(rc).map(drop)
}

/// Drops supplementary groups to exactly `groups`.
pub(crate) fn set_groups(groups: &[u32]) -> Sys<()> {
    // SAFETY: pointer and length describe one slice of gid_t.
    Errno::result(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) }).map(drop)
}

/// Clears or raises one capability: the capability system calls.
pub(crate) mod capability {
    use super::{Errno, Sys};

    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;

    /// Replaces the three classic sets of this thread; bit n is capability n.
    pub(crate) fn set(effective: u64, permitted: u64, inheritable: u64) -> Sys<()> {
        let header = Header {
            version: VERSION_3,
            pid: 0,
        };
        let half = |shift: u32| Data {
            effective: (effective >> shift) as u32,
            permitted: (permitted >> shift) as u32,
            inheritable: (inheritable >> shift) as u32,
        };
        let data = [half(0), half(32)];
        // SAFETY: version 3 reads a header and two data structs; all are live.
        Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })
            .map(drop)
    }

    /// This thread's permitted set.
    pub(crate) fn permitted() -> Sys<u64> {
        let header = Header {
            version: VERSION_3,
            pid: 0,
        };
        let mut data = [Data::default(); 2];
        // SAFETY: version 3 writes two data structs.
        Errno::result(unsafe {
            libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr())
        })?;
        Ok(u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32)
    }

    /// Whether a capability is in the bounding set; EINVAL when the kernel does not know it.
    pub(crate) fn in_bounding_set(cap: u32) -> Sys<bool> {
        // SAFETY: plain values.
        Errno::result(unsafe {
            libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(cap), 0, 0, 0)
        })
        .map(|v| v == 1)
    }

    /// Removes a capability from the bounding set.
    pub(crate) fn drop_from_bounding_set(cap: u32) -> Sys<()> {
        // SAFETY: plain values.
        Errno::result(unsafe {
            libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(cap), 0, 0, 0)
        })
        .map(drop)
    }

    /// Empties the ambient set.
    pub(crate) fn clear_ambient() -> Sys<()> {
        // SAFETY: plain values.
        let rc = unsafe {
            libc::prctl(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong,
                0,
                0,
                0,
            )
        };
        Errno::result(rc).map(drop)
    }

    /// Adds a capability to the ambient set.
    pub(crate) fn raise_ambient(cap: u32) -> Sys<()> {
        // SAFETY: plain values.
        let rc = unsafe {
            libc::prctl(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong,
                libc::c_ulong::from(cap),
                0,
                0,
            )
        };
        Errno::result(rc).map(drop)
    }
}

/// A prctl(2) that takes one number.
fn prctl1(option: libc::c_int, value: libc::c_ulong) -> Sys<()> {
    // SAFETY: the options used below take one number and no pointer.
    Errno::result(unsafe { libc::prctl(option, value, 0, 0, 0) }).map(drop)
}

/// Lets /proc/PID/cmdline show `text` instead of what this program was called with. Needs CAP_SYS_RESOURCE on the host.
pub(crate) fn show_as(text: &'static CStr) -> Sys<()> {
    let bytes = text.to_bytes_with_nul();
    let start = bytes.as_ptr() as libc::c_ulong;
    let bounds = [
        (libc::PR_SET_MM_ARG_START, start),
        (
            libc::PR_SET_MM_ARG_END,
            start + bytes.len() as libc::c_ulong,
        ),
    ];
    let set = |(which, address): (libc::c_int, libc::c_ulong)| {
        // SAFETY: the kernel notes an address inside `text`, which is never unmapped; nothing is written there.
        Errno::result(unsafe { libc::prctl(libc::PR_SET_MM, which, address, 0, 0) }).map(drop)
    };
    // The start must never lie behind the end: which goes first depends on where the old ones are.
    let [first, last] = bounds;
    match set(first) {
        Err(Errno::EINVAL) => {
            set(last)?;
            set(first)
        }
        other => {
            other?;
            set(last)
        }
    }
}

/// PR_SET_KEEPCAPS.
pub(crate) fn keep_caps(on: bool) -> Sys<()> {
    prctl1(libc::PR_SET_KEEPCAPS, libc::c_ulong::from(on))
}

/// PR_SET_DUMPABLE: whether /proc/PID of this process belongs to its user and may be traced.
pub(crate) fn set_dumpable(on: bool) -> Sys<()> {
    prctl1(libc::PR_SET_DUMPABLE, libc::c_ulong::from(on))
}

/// PR_SET_NO_NEW_PRIVS.
pub(crate) fn no_new_privs() -> Sys<()> {
    prctl1(libc::PR_SET_NO_NEW_PRIVS, 1)
}

/// PR_SET_PDEATHSIG.
pub(crate) fn signal_on_parent_death(signal: i32) -> Sys<()> {
    prctl1(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong)
}

/// Resets every signal's disposition to the default and unblocks all of them: what a program expects after execve.
pub(crate) fn default_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL is always a valid disposition; the kernel refuses the signals it must.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an initialised empty set, live across the call.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Blocks every signal: the state in which [`wait_signal`] takes them one by one.
pub(crate) fn block_all_signals() {
    // SAFETY: an initialised full set, live across the call.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
    }
}

/// Waits for any blocked signal and returns its number.
pub(crate) fn wait_signal() -> Sys<i32> {
    // SAFETY: an initialised full set; the info is not asked for.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        Errno::result(libc::sigwaitinfo(&raw const all, std::ptr::null_mut()))
    }
}

/// The type of a namespace descriptor (`CLONE_NEW*`), or why it is none.
pub(crate) fn namespace_type(fd: BorrowedFd<'_>) -> Sys<i32> {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: the ioctl takes no argument.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE as _) })
}

/// Whether a descriptor number is open in this process.
pub(crate) fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD only queries.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Clears close-on-exec of an inherited descriptor number.
pub(crate) fn keep_on_exec(fd: RawFd) -> Sys<()> {
    // SAFETY: F_SETFD changes a flag only.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }).map(drop)
}

/// Puts `from` at one of the standard descriptors 0, 1, 2 without close-on-exec.
pub(crate) fn put_at(from: BorrowedFd<'_>, to: RawFd) -> Sys<()> {
    if from.as_raw_fd() == to {
        return keep_on_exec(to);
    }
    // SAFETY: `to` is one of 0, 1, 2, which no OwnedFd of this crate owns.
    Errno::result(unsafe { libc::dup2(from.as_raw_fd(), to) }).map(drop)
}

/// Takes ownership of a descriptor that was just received in a control message.
pub(crate) fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel made this number for us in recvmsg; nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Marks one descriptor number close-on-exec.
pub(crate) fn set_cloexec(fd: RawFd) -> Sys<()> {
    // SAFETY: F_SETFD changes a flag only.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) }).map(drop)
}

/// kill(2) with any signal number.
pub(crate) fn kill_number(pid: Pid, signal: i32) -> Sys<()> {
    // SAFETY: plain values.
    Errno::result(unsafe { libc::kill(pid.as_raw(), signal) }).map(drop)
}
