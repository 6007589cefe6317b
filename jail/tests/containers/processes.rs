//! What a process of a container is: its rights, limits, descriptors, terminal; and others beside it.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;

use caisson_jail::{ErrorKind, Gate, Root, Setup, Stdio, create};
use nix::sys::wait::waitpid;
use serde_json::{Value, json};

use crate::cell::{Cell, code, is_root, piped, read_all, said};
use crate::{exec_in, kill_and_collect};

#[test]
fn commands_that_cannot_run_say_why_as_docker_does() {
    if !is_root() {
        return;
    }
    let fails = |args: &[&str]| {
        let mut container = Cell::new("");
        container.spec["process"]["args"] = json!(args);
        std::fs::write(container.root().join("bin/noexec"), "#!/bin/sh\n").expect("write");
        std::fs::write(container.root().join("bin/noshell"), "#!/no/shell\n").expect("write");
        std::fs::set_permissions(
            container.root().join("bin/noshell"),
            std::fs::Permissions::from_mode(0o755),
        )
        .expect("chmod");
        std::fs::write(container.root().join("bin/garbage"), "\u{1}\u{2}").expect("write");
        std::fs::set_permissions(
            container.root().join("bin/garbage"),
            std::fs::Permissions::from_mode(0o755),
        )
        .expect("chmod");
        let error = container.run().expect_err("fails");
        assert!(!container.cgroup().pids().is_ok_and(|p| !p.is_empty()));
        (error.kind(), error.to_string())
    };
    use ErrorKind::{CommandNotExecutable, CommandNotFound};
    assert_eq!(
        fails(&["foo"]),
        (
            CommandNotFound,
            "exec: \"foo\": executable file not found in $PATH".into()
        )
    );
    assert_eq!(
        fails(&["/x"]),
        (
            CommandNotFound,
            "exec: \"/x\": stat /x: no such file or directory".into()
        )
    );
    assert_eq!(
        fails(&["/bin/noexec"]),
        (
            CommandNotExecutable,
            "exec: \"/bin/noexec\": permission denied".into()
        )
    );
    assert_eq!(
        fails(&["/etc"]),
        (
            CommandNotExecutable,
            "exec: \"/etc\": is a directory".into()
        )
    );
    assert_eq!(
        fails(&["garbage"]),
        (
            CommandNotExecutable,
            "exec: \"/bin/garbage\": exec format error".into()
        )
    );
    assert_eq!(
        fails(&["noshell"]),
        (
            CommandNotFound,
            "exec: \"/bin/noshell\": no such file or directory".into()
        )
    );
}

#[test]
fn capabilities_and_no_new_privs_are_those_of_the_spec() {
    if !is_root() {
        return;
    }
    let mut container = Cell::new("grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status");
    container.spec["process"]["capabilities"] = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
        "permitted": ["CAP_CHOWN", "CAP_KILL"],
        "effective": ["CAP_CHOWN"],
        "inheritable": ["CAP_KILL"],
        "ambient": ["CAP_KILL"],
    });
    container.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let text = said(&container);
    // As a user, exec keeps the ambient set only.
    assert!(text.contains("CapBnd:\t0000000000002021"), "{text}");
    assert!(
        text.contains("CapPrm:\t0000000000000020") && text.contains("CapEff:\t0000000000000020"),
        "{text}"
    );
    assert!(text.contains("CapAmb:\t0000000000000020"), "{text}");
    assert!(text.contains("NoNewPrivs:\t1"), "{text}");
    let mut container = Cell::new("grep -E '^Cap|NoNew' /proc/self/status");
    container.spec["process"]["capabilities"] = Value::Null;
    container.spec["process"]["noNewPrivileges"] = json!(false);
    let text = said(&container);
    assert!(
        text.contains("CapBnd:\t0000000000000000") && text.contains("CapEff:\t0000000000000000"),
        "{text}"
    );
    assert!(text.contains("NoNewPrivs:\t0"), "{text}");
}

#[test]
fn seccomp_denies_with_and_without_no_new_privs() {
    if !is_root() {
        return;
    }
    for no_new_privs in [true, false] {
        let mut container =
            Cell::new("mkdir /tmp/a || echo denied; grep ^Seccomp: /proc/self/status");
        container.spec["process"]["noNewPrivileges"] = json!(no_new_privs);
        container.spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
        });
        let text = said(&container);
        assert!(
            text.contains("denied") && text.contains("Seccomp:\t2"),
            "{text}"
        );
    }
}

#[test]
fn users_groups_umask_home_and_streams() {
    if !is_root() {
        return;
    }
    let mut container = Cell::new(
        "id -u; id -g; id -G; umask; echo $HOME; touch /tmp/f; stat -c %a /tmp/f; echo x > /dev/stdout",
    );
    std::fs::set_permissions(
        container.root().join("tmp"),
        std::fs::Permissions::from_mode(0o1777),
    )
    .expect("chmod");
    container.spec["process"]["user"] =
        json!({"uid": 1000, "gid": 1001, "additionalGids": [50, 1001], "umask": 0o077});
    assert_eq!(
        said(&container),
        "1000\n1001\n1001 50\n0077\n/home/web\n600\nx\n"
    );
    container.spec["process"]["user"] = json!({"uid": u32::MAX, "gid": 0});
    assert_eq!(
        container.run().expect_err("refused").kind(),
        ErrorKind::Invalid
    );
    assert_eq!(said(&Cell::new("umask; echo $HOME")), "0022\n/root\n");
}

#[test]
fn no_descriptor_leaks_and_no_working_directory_outside() {
    if !is_root() {
        return;
    }
    // A descriptor of ours without close-on-exec (CVE-2024-21626).
    let leak = File::open("/").expect("opens");
    nix::fcntl::fcntl(
        &leak,
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
    )
    .expect("fcntl");
    let text = said(&Cell::new("ls -l /proc/self/fd | grep -v '/proc/'"));
    let count = text.lines().filter(|l| l.contains("->")).count();
    assert_eq!(count, 3, "{text}");
    drop(leak);
    for cwd in [
        "/proc/self/fd/7",
        "/proc/self/fd/8",
        "/proc/self/fd/10",
        "/proc/1/cwd/..",
    ] {
        let mut container = Cell::new("pwd");
        container.spec["process"]["cwd"] = json!(cwd);
        if let Ok((text, code)) = container.run() {
            assert!(code != 0 || !text.contains("caisson"), "{cwd}: {text}");
            assert!(
                !text.contains(container.dir.path().to_str().expect("text")),
                "{cwd}: {text}"
            );
        }
    }
}

#[test]
fn the_working_directory_is_made_if_missing() {
    if !is_root() {
        return;
    }
    let mut container = Cell::new("pwd");
    container.spec["process"]["cwd"] = json!("/work/new");
    assert_eq!(said(&container), "/work/new\n");
}

#[test]
fn limits_scores_and_sysctls() {
    if !is_root() {
        return;
    }
    let mut container = Cell::new(
        "ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj; cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shm_rmid_forced",
    );
    // As a user: neither it nor, without CAP_SYS_RESOURCE, the caller may set another's limits.
    container.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    container.spec["process"]["rlimits"] =
        json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99}]);
    container.spec["process"]["oomScoreAdj"] = json!(321);
    container.spec["linux"]["sysctl"] =
        json!({"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"});
    assert_eq!(said(&container), "77\n99\n321\n1\n1\n");
    container.spec["linux"]["sysctl"] = json!({"kernel.core_pattern": "x"});
    assert_eq!(
        container.run().expect_err("refused").kind(),
        ErrorKind::Invalid
    );
}

#[test]
fn clocks_and_personality_are_the_containers_own() {
    if !is_root() {
        return;
    }
    let mut container = Cell::new("cat /proc/uptime; cat /proc/self/personality");
    container.spec["linux"]["namespaces"]
        .as_array_mut()
        .expect("list")
        .push(json!({"type": "time"}));
    container.spec["linux"]["timeOffsets"] =
        json!({"boottime": {"secs": 40_000_000, "nanosecs": 0}});
    container.spec["linux"]["personality"] = json!({"domain": "LINUX32"});
    let text = said(&container);
    let uptime: f64 = text
        .split(' ')
        .next()
        .and_then(|n| n.parse().ok())
        .expect("a number");
    assert!(uptime > 40_000_000.0, "{text}");
    assert!(text.contains("00000008"), "{text}");
    container.spec["linux"]["intelRdt"] = json!({"closID": "x"});
    assert_eq!(
        container.run().expect_err("not kept silently").kind(),
        ErrorKind::Invalid
    );
}

#[test]
fn preserved_descriptors_and_no_others_arrive() {
    if !is_root() {
        return;
    }
    let container = Cell::new("");
    let fails = create(Setup {
        id: &container.id,
        spec: &container.spec(),
        root: Root::FromSpec {
            bundle: container.dir.path().to_path_buf(),
        },
        stdio: piped().0,
        gate: Gate::Pipe,
        cgroup: &container.cgroup(),
        reaper: false,
        preserve_fds: 100_000,
        no_pivot: false,
        no_new_keyring: false,
        die_with_parent: true,
    });
    assert_eq!(fails.expect_err("not open").kind(), ErrorKind::Invalid);
}

#[test]
fn a_terminal_is_the_containers_own() {
    if !is_root() {
        return;
    }
    let container =
        Cell::new("tty; stty size; echo $(readlink /proc/self/fd/0); ls -l /dev/console; exit 4");
    let mut init = container
        .create(
            Stdio::Terminal {
                size: Some((33, 77)),
            },
            false,
        )
        .expect("creates");
    let master = init.console.take().expect("a master");
    init.start().expect("starts");
    let text = read_all(master);
    assert_eq!(
        code(waitpid(init.pid, None).expect("our child")),
        4,
        "{text}"
    );
    assert!(
        text.contains("/dev/pts/0") && text.contains("33 77") && text.contains("/dev/console"),
        "{text}"
    );
}

#[test]
fn the_reaper_collects_orphans_and_passes_signals_on() {
    if !is_root() {
        return;
    }
    let container = Cell::new(
        "trap 'echo got; exit 5' TERM; (sleep 0 &); sleep 0.2; ps; echo up $$; while :; do sleep 0.05; done",
    );
    let (stdio, read) = piped();
    let mut init = container.create(stdio, true).expect("creates");
    init.start().expect("starts");
    let mut text = String::new();
    let mut file = File::from(read);
    let mut buffer = [0u8; 4096];
    while !text.contains("up ") {
        let count = file.read(&mut buffer).expect("reads");
        assert!(count > 0, "it ended early: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    assert!(!text.contains("up 1\n"), "the command is not PID 1: {text}");
    assert!(!text.contains("Z "), "no zombie: {text}");
    nix::sys::signal::kill(init.pid, nix::sys::signal::Signal::SIGTERM).expect("kills");
    assert_eq!(code(waitpid(init.pid, None).expect("our child")), 5);
}

#[test]
fn exec_joins_everything_and_is_its_own_in_the_rest() {
    if !is_root() {
        return;
    }
    let container = Cell::new("sleep 60");
    let (stdio, _read) = piped();
    let mut init = container.create(stdio, false).expect("creates");
    init.start().expect("starts");
    let process = |script: &str, more: Value| {
        let mut process = json!({
            "user": {"uid": 1000, "gid": 5, "additionalGids": [7]},
            "args": ["sh", "-c", script],
            "env": ["PATH=/bin", "A=b"],
            "cwd": "/tmp",
        });
        for (key, value) in more.as_object().expect("an object") {
            process[key] = value.clone();
        }
        process
    };
    let script = "hostname; id -u; id -G; pwd; echo $A $HOME; ps | grep -c 'sleep 6[0]'; cat /proc/self/cgroup | head -1; grep CapBnd /proc/self/status; exit 9";
    let (text, code) = exec_in(&container, &init, process(script, json!({}))).expect("execs");
    assert_eq!(code, 9, "{text}");
    assert!(
        text.starts_with("jailed\n1000\n5 7\n/tmp\nb /home/web\n1\n"),
        "{text}"
    );
    assert!(
        text.contains("CapBnd:\t0000000000000000"),
        "an exec without capabilities has none: {text}"
    );
    let pids = container.cgroup().pids().expect("pids").len();
    assert_eq!(pids, 1, "the exec is gone again");

    let error =
        exec_in(&container, &init, process("", json!({"args": ["nope"]}))).expect_err("fails");
    assert_eq!(
        error.to_string(),
        "exec: \"nope\": executable file not found in $PATH"
    );
    let error =
        exec_in(&container, &init, process("", json!({"cwd": "/missing"}))).expect_err("fails");
    assert!(error.to_string().contains("/missing"), "{error}");
    kill_and_collect(&init);
    let error = exec_in(&container, &init, process("true", json!({}))).expect_err("it is over");
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
}
