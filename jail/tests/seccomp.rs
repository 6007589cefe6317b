//! Seccomp filters in this machine's kernel: a child installs one and makes the call.

#![allow(unsafe_code)] // CommandExt::pre_exec and system calls by number

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

use caisson_jail::seccomp::compile;
use serde_json::{Value, json};

/// Exit status of a child that installs the profile, makes the system call, and exits with its errno (0: it succeeded).
fn child(profile: &Value, nr: libc::c_long, args: [u64; 3]) -> ExitStatus {
    let profile = serde_json::from_value(profile.clone()).expect("profile parses");
    let filter = compile(&profile).expect("compiles");
    let mut command = Command::new("/bin/true");
    // SAFETY: between fork and exit only system calls are made.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
                libc::_exit(100);
            }
            if let Err(errno) = filter.install() {
                libc::_exit(200 + errno as i32 % 50);
            }
            let result = libc::syscall(nr, args[0], args[1], args[2]);
            libc::_exit(if result < 0 {
                *libc::__errno_location()
            } else {
                0
            });
        });
        command
            .spawn()
            .and_then(|mut child| child.wait())
            .expect("child")
    }
}

fn code(profile: &Value, nr: libc::c_long, args: [u64; 3]) -> i32 {
    let status = child(profile, nr, args);
    status.code().unwrap_or_else(|| panic!("{status:?}"))
}

/// Everything works except these rules.
fn except(rules: Value) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules})
}

#[test]
fn errno_is_what_the_caller_sees() {
    let profile =
        except(json!([{"names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 42}]));
    assert_eq!(code(&profile, libc::SYS_getppid, [0; 3]), 42);
    assert_eq!(code(&profile, libc::SYS_getpid, [0; 3]), 0);
    let plain = except(json!([{"names": ["getppid"], "action": "SCMP_ACT_ERRNO"}]));
    assert_eq!(code(&plain, libc::SYS_getppid, [0; 3]), libc::EPERM);
}

#[test]
fn killing_and_trapping() {
    for (action, signal) in [
        ("SCMP_ACT_KILL", libc::SIGSYS),
        ("SCMP_ACT_KILL_PROCESS", libc::SIGSYS),
        ("SCMP_ACT_TRAP", libc::SIGSYS),
    ] {
        let profile = except(json!([{"names": ["getppid"], "action": action}]));
        let status = child(&profile, libc::SYS_getppid, [0; 3]);
        assert_eq!(status.signal(), Some(signal), "{action}: {status:?}");
    }
}

#[test]
fn arguments_are_compared_by_the_kernel_too() {
    let socket = |op: &str| {
        except(
            json!([{"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 97,
            "args": [{"index": 0, "value": libc::AF_UNIX, "op": op}]}]),
        )
    };
    let open = |profile: &Value, family: i32| {
        code(
            profile,
            libc::SYS_socket,
            [family.cast_unsigned().into(), libc::SOCK_DGRAM as u64, 0],
        )
    };
    assert_eq!(open(&socket("SCMP_CMP_EQ"), libc::AF_UNIX), 97);
    assert_eq!(open(&socket("SCMP_CMP_EQ"), libc::AF_INET), 0);
    assert_eq!(open(&socket("SCMP_CMP_NE"), libc::AF_UNIX), 0);
    assert_eq!(open(&socket("SCMP_CMP_NE"), libc::AF_INET), 97);
}

#[test]
fn a_list_of_what_is_allowed() {
    let profile = json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{"names": ["exit_group", "getpid", "rseq"], "action": "SCMP_ACT_ALLOW"}]});
    assert_eq!(code(&profile, libc::SYS_getpid, [0; 3]), 0);
    assert_eq!(code(&profile, libc::SYS_getppid, [0; 3]), libc::EPERM);
    // Newer than rseq, which is the highest that the profile names.
    assert_eq!(code(&profile, 450, [0; 3]), libc::ENOSYS);
    assert_eq!(code(&profile, -1, [0; 3]), libc::ENOSYS);
}

#[test]
fn flags_are_taken_by_the_kernel() {
    for flags in [
        json!([]),
        json!(["SECCOMP_FILTER_FLAG_LOG"]),
        json!([
            "SECCOMP_FILTER_FLAG_TSYNC",
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW"
        ]),
    ] {
        let mut profile = except(json!([{"names": ["getppid"], "action": "SCMP_ACT_ERRNO"}]));
        profile["flags"] = flags;
        assert_eq!(
            code(&profile, libc::SYS_getppid, [0; 3]),
            libc::EPERM,
            "{profile}"
        );
    }
}
