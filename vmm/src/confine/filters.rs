//! One system call filter for each role of a thread. Anything else kills the process with SIGSYS, which whoever started it
//! sees.
//!
//! None can open a path, connect, execute, make a process or a thread, or make memory executable.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::error::{Error, Result};

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The first thread: the control socket, snapshots.
    Control,
    /// Runs a vCPU, starts and resets devices.
    Vcpu,
    /// Works for a device.
    Device,
}

/// Filters the calling thread from now on.
pub fn install(role: Role) -> Result<()> {
    let program = compile(role, SeccompAction::KillProcess)?;
    seccompiler::apply_filter(&program).map_err(|e| refused(&e))
}

fn refused(error: &dyn std::fmt::Display) -> Error {
    Error::Internal(format!("the system call filter: {error}"))
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// What memory allocation, threads, channels, time and dying need.
const EVERYONE: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
];

/// What activating, stopping and commanding a device takes: that happens in threads of any role, and a device may begin its
/// work at once.
const DEVICES: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
];

const CONTROL: &[i64] = &[
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    libc::SYS_mincore,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
];

const DEVICE: &[i64] = &[
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_lseek,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_timerfd_gettime,
];

// linux/kvm.h; the type of all is 0xae
const KVM_RUN: u64 = 0xae80;
/// Reading and writing a vCPU's state: what saving it takes, and the assist.
const VCPU_REQUESTS: &[u64] = &[
    KVM_RUN,
    0x8090_ae81, // GET_REGS
    0x4090_ae82, // SET_REGS
    0x8138_ae83, // GET_SREGS
    0x4138_ae84, // SET_SREGS
    0xc008_ae88, // GET_MSRS
    0x4008_ae89, // SET_MSRS
    0x81a0_ae8c, // GET_FPU
    0x41a0_ae8d, // SET_FPU
    0x8400_ae8e, // GET_LAPIC
    0x8004_ae98, // GET_MP_STATE
    0x8040_ae9f, // GET_VCPU_EVENTS
    0x4040_aea0, // SET_VCPU_EVENTS
    0x8080_aea1, // GET_DEBUGREGS
    0x4080_aea2, // SET_DEBUGREGS
    0xaea3,      // GET_TSC_KHZ
    0x9000_aea4, // GET_XSAVE
    0x5000_aea5, // SET_XSAVE
    0x8188_aea6, // GET_XCRS
    0x4188_aea7, // SET_XCRS
    0xaead,      // KVMCLOCK_CTRL
    0x9000_aecf, // GET_XSAVE2
];
/// What devices ask of their descriptors.
const DEVICE_REQUESTS: [u64; 3] = [
    0x8008_1272, // BLKGETSIZE64: a disk whose file is a block device
    0x5421,      // FIONBIO: a connection that was accepted
    0x4004_54d0, // TUNSETOFFLOAD: what the driver of a network device negotiated
];
/// Reading a machine's state.
const MACHINE_REQUESTS: &[u64] = &[
    0xc208_ae62, // GET_IRQCHIP
    0x8070_ae9f, // GET_PIT2
    0x8030_ae7c, // GET_CLOCK
];

fn compile(role: Role, otherwise: SeccompAction) -> Result<BpfProgram> {
    let rules = rules(role).map_err(|e| refused(&e))?;
    let filter = SeccompFilter::new(rules, otherwise, SeccompAction::Allow, TargetArch::x86_64)
        .map_err(|e| refused(&e))?;
    filter
        .try_into()
        .map_err(|e: seccompiler::BackendError| refused(&e))
}

fn rules(role: Role) -> Result<Rules, seccompiler::BackendError> {
    let mut rules = Rules::new();
    let mut allow = |calls: &[i64]| {
        for call in calls {
            rules.insert(*call, Vec::new());
        }
    };
    allow(EVERYONE);
    allow(DEVICES);
    match role {
        Role::Control => allow(CONTROL),
        Role::Vcpu => {}
        Role::Device => allow(DEVICE),
    }
    let not_executable = vec![masked(2, libc::PROT_EXEC as u64, 0)?];
    rules.insert(libc::SYS_mmap, not_executable.clone());
    rules.insert(libc::SYS_mprotect, not_executable);
    // signals to itself only: a vCPU is kicked so, and abort() ends so
    let own = rustix::process::getpid().as_raw_nonzero().get() as u64;
    rules.insert(libc::SYS_tgkill, vec![equal(0, own)?]);
    rules.insert(libc::SYS_prctl, vec![equal(0, libc::PR_SET_NAME as u64)?]);
    let fcntl = [
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_GETFL,
        libc::F_SETFL,
    ];
    rules.insert(libc::SYS_fcntl, any(1, fcntl.map(|f| f as u64))?);
    // fstat of an open file, as C libraries and Rust spell it
    let empty_path = libc::AT_EMPTY_PATH as u64;
    for (call, flags) in [(libc::SYS_newfstatat, 3), (libc::SYS_statx, 2)] {
        rules.insert(call, vec![masked(flags, empty_path, empty_path)?]);
    }
    let requests = match role {
        Role::Control => MACHINE_REQUESTS,
        Role::Vcpu => VCPU_REQUESTS,
        Role::Device => &[],
    };
    let requests = requests.iter().copied().chain(DEVICE_REQUESTS);
    rules.insert(libc::SYS_ioctl, any(1, requests)?);
    Ok(rules)
}

fn equal(argument: u8, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(
        argument,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Eq,
        value,
    )?])
}

fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(
        argument,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::MaskedEq(mask),
        value,
    )?])
}

fn any(
    argument: u8,
    values: impl IntoIterator<Item = u64>,
) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    values.into_iter().map(|v| equal(argument, v)).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{ErrorKind, Read};
    use std::net::TcpStream;
    use std::os::unix::net::UnixStream;
    use std::process::Command;

    use super::*;

    const ROLES: [Role; 3] = [Role::Control, Role::Vcpu, Role::Device];

    /// Runs `body` in a thread of its own under the role's filter, which fails with EPERM instead of killing.
    fn under<T: Send + 'static>(role: Role, body: impl FnOnce() -> T + Send + 'static) -> T {
        let denied = SeccompAction::Errno(libc::EPERM as u32);
        let program = compile(role, denied).expect("a filter");
        std::thread::spawn(move || {
            seccompiler::apply_filter(&program).expect("seccomp");
            body()
        })
        .join()
        .expect("the thread")
    }

    #[test]
    fn no_role_opens_connects_executes_or_makes_threads() {
        for role in ROLES {
            let (open, connect, tcp, exec, thread) = under(role, || {
                (
                    File::open("/dev/null").map(drop),
                    UnixStream::connect("/nowhere").map(drop),
                    TcpStream::connect("127.0.0.1:1").map(drop),
                    Command::new("/bin/true").spawn().map(drop),
                    std::thread::Builder::new().spawn(|| {}).map(drop),
                )
            });
            for (what, how) in [
                ("open", open),
                ("connect", connect),
                ("tcp", tcp),
                ("exec", exec),
                ("thread", thread),
            ] {
                let error = how.expect_err(what);
                assert_eq!(
                    error.kind(),
                    ErrorKind::PermissionDenied,
                    "{role:?}: {what}"
                );
            }
        }
    }

    #[test]
    fn no_role_makes_memory_executable_or_signals_another_process() {
        for role in ROLES {
            let (mapped, signalled) = under(role, || {
                (
                    crate::sys::map_executable(),
                    rustix::process::kill_process(
                        rustix::process::Pid::INIT,
                        rustix::process::Signal::CONT,
                    ),
                )
            });
            assert_eq!(
                mapped.map_err(|e| e.kind()),
                Err(ErrorKind::PermissionDenied)
            );
            assert_eq!(signalled, Err(rustix::io::Errno::PERM));
        }
    }

    #[test]
    fn a_device_reads_writes_and_allocates() {
        let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
        let text = under(Role::Device, move || {
            std::io::Write::write_all(&mut writer, &[b'x'; 4]).expect("a pipe");
            drop(writer);
            let mut text = String::with_capacity(8 << 20);
            reader.read_to_string(&mut text).expect("a pipe");
            text
        });
        assert_eq!(text, "xxxx");
    }

    #[test]
    fn a_request_that_a_role_does_not_need_is_refused() {
        let kvm = match kvm_ioctls::Kvm::new() {
            Ok(kvm) => kvm,
            Err(error) => return println!("skipped: /dev/kvm: {error}"),
        };
        for role in ROLES {
            let error = under(role, || kvm_ioctls::Kvm::new().err()).expect("no open");
            assert_eq!(error.errno(), libc::EPERM);
        }
        let fd = kvm.create_vm().expect("a VM");
        let error = under(Role::Vcpu, move || fd.create_vcpu(0).err()).expect("no vCPU");
        assert_eq!(error.errno(), libc::EPERM);
    }
}
