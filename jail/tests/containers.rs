//! Real containers, as root: each test makes one in a root of busybox and asks it what it sees.
//!
//! They print why and pass when not run as root.

mod cell;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use caisson_jail::{Error, ErrorKind, Exec, Gate, Init, Root, Setup, Stdio, create, exec};
use cell::{Cell, alone, code, is_root, piped, read_all, said};
use nix::sys::wait::waitpid;
use serde_json::{Value, json};

/// Runs an exec to its end.
fn exec_in(container: &Cell, init: &Init, process: Value) -> Result<(String, i32), Error> {
    let (spec, cgroup) = (container.spec(), container.cgroup());
    let process = serde_json::from_value(process).expect("a process");
    let (stdio, read) = piped();
    let alone = alone();
    let held = exec(Exec {
        init_pid: init.pid,
        spec: &spec,
        process: &process,
        stdio,
        cgroup: &cgroup,
        preserve_fds: 0,
        hold: false,
    })?;
    drop(alone);
    let text = read_all(read);
    Ok((text, code(waitpid(held.pid, None).expect("our child"))))
}

fn kill_and_collect(init: &Init) {
    let _ = nix::sys::signal::kill(init.pid, nix::sys::signal::Signal::SIGKILL);
    let _ = waitpid(init.pid, None);
}

/// Ids and inodes of what must not change on the host.
fn host_mounts() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo")
}

#[test]
fn it_is_alone_in_its_namespaces() {
    if !is_root() {
        return;
    }
    let text = said(&Cell::new(
        "echo pid=$$; hostname; ip addr show lo; ls /; readlink /proc/self/ns/net; cat /proc/1/cgroup",
    ));
    assert!(text.contains("pid=1\njailed\n"), "{text}");
    assert!(text.contains("UP") && text.contains("127.0.0.1"), "{text}");
    assert!(
        !text.contains("/caisson-jailtest"),
        "the cgroup namespace hides the path: {text}"
    );
    let ours = std::fs::read_link("/proc/self/ns/net").expect("link");
    assert!(!text.contains(ours.to_str().expect("text")));
}

#[test]
fn the_exit_code_is_the_commands() {
    if !is_root() {
        return;
    }
    assert_eq!(Cell::new("exit 7").run().expect("runs").1, 7);
    assert_eq!(
        Cell::new("kill -9 $$; sleep 1; exit 3")
            .run_with(true)
            .expect("runs")
            .1,
        137
    );
}

#[test]
fn nothing_stays_mounted_on_the_host_and_no_cgroup_after_removal() {
    if !is_root() {
        return;
    }
    let before = host_mounts();
    let container = Cell::new("true");
    said(&container);
    container.cgroup().remove().expect("removes");
    assert!(!container.cgroup().exists());
    assert_eq!(host_mounts(), before);
}

#[test]
fn a_container_that_cannot_be_made_leaves_nothing() {
    if !is_root() {
        return;
    }
    let before = host_mounts();
    let mut container = Cell::new("true");
    container.mount(json!({"destination": "/x", "type": "bind", "source": "/nowhere/at/all", "options": ["rbind"]}));
    let error = container.run().expect_err("fails");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    assert!(!container.cgroup().exists());
    assert_eq!(host_mounts(), before);
}

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
fn devices_links_masks_and_read_only_paths() {
    if !is_root() {
        return;
    }
    let text = said(&Cell::new(
        "for d in null zero full random urandom tty; do stat -c '%n %t:%T %a' /dev/$d; done; readlink /dev/fd; readlink /dev/ptmx; \
         cat /proc/keys | wc -c; ls /sys/firmware | wc -l; stat -c %t:%T /proc/interrupts; \
         (echo 1 > /proc/sys/kernel/hostname) 2>&1; mount | grep -E ' /(proc/sys|sys) '; echo ok > /dev/null && echo written",
    ));
    for line in [
        "/dev/null 1:3 666",
        "/dev/full 1:7 666",
        "/dev/tty 5:0 666",
        "/proc/self/fd\n",
        "pts/ptmx\n",
        "written",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(text.contains("\n0\n0\n1:3\n"), "masked: {text}");
    assert!(text.contains("Read-only file system"), "{text}");
    assert!(
        text.lines()
            .any(|l| l.contains(" /proc/sys ") && l.contains("(ro,nosuid,nodev,noexec")),
        "{text}"
    );
}

#[test]
fn mounts_have_their_options() {
    if !is_root() {
        return;
    }
    let host = tempfile::tempdir().expect("dir");
    std::fs::create_dir(host.path().join("sub")).expect("mkdir");
    std::fs::write(host.path().join("file"), "text").expect("write");
    let mut container = Cell::new(
        "cat /f; touch /ro/x; touch /rw/made && echo wrote; mount | grep -E ' (/ro|/rw|/t) '; stat -c %a /t; touch /t/x; cat /up/kept; ls /deep/er",
    );
    std::fs::create_dir(container.root().join("up")).expect("mkdir");
    std::fs::write(container.root().join("up/kept"), "image\n").expect("write");
    let source = host.path().to_str().expect("text").to_string();
    container.mount(json!({"destination": "/f", "type": "bind", "source": format!("{source}/file"), "options": ["rbind", "ro"]}));
    container.mount(json!({"destination": "/ro", "type": "bind", "source": source, "options": ["rbind", "rro", "nosuid", "rprivate"]}));
    container.mount(json!({"destination": "/rw", "type": "bind", "source": source, "options": ["bind", "noexec"]}));
    container.mount(json!({"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["ro", "size=64k", "mode=1710"]}));
    container.mount(
        json!({"destination": "/up", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}),
    );
    container.mount(json!({"destination": "/deep/er/est", "type": "bind", "source": source, "options": ["bind"]}));
    let (text, _) = container.run().expect("runs");
    assert!(text.starts_with("text"), "{text}");
    assert!(
        text.contains("touch: /ro/x: Read-only file system"),
        "{text}"
    );
    assert!(
        text.contains("wrote") && host.path().join("made").exists(),
        "{text}"
    );
    assert!(
        text.lines()
            .any(|l| l.contains(" /ro ") && l.contains("ro,nosuid")),
        "{text}"
    );
    assert!(
        text.lines()
            .any(|l| l.contains(" /rw ") && l.contains("noexec")),
        "{text}"
    );
    assert!(
        text.contains("1710") && text.contains("touch: /t/x: Read-only file system"),
        "{text}"
    );
    assert!(text.contains("image\n") && text.contains("est\n"), "{text}");
}

#[test]
fn a_recursive_read_only_bind_covers_what_is_mounted_below() {
    if !is_root() {
        return;
    }
    let mut container = Cell::new(
        "touch /mnt/below/x; mount | grep /mnt/below; mount | grep -c ' on /other/below .*(rw'",
    );
    // /sys of the host has mounts below it: any tree with a submount will do. /dev/shm is one.
    container.mount(json!({"destination": "/mnt", "type": "bind", "source": "/dev", "options": ["rbind", "rro"]}));
    container.spec["process"]["args"] = json!(["/bin/sh", "-c", "touch /mnt/shm/x; touch /mnt/x"]);
    let (text, _) = container.run().expect("runs");
    assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
}

#[test]
fn symlinks_of_the_image_lead_nowhere_outside() {
    if !is_root() {
        return;
    }
    let host = tempfile::tempdir().expect("dir");
    let outside = host.path().join("outside");
    std::fs::create_dir(&outside).expect("mkdir");
    // A mount destination through a link to a host path, a /dev that is a link (CVE-2026-41579), a masked path that is one.
    let mut container = Cell::new("ls /data; ls -d /dev/null");
    symlink(&outside, container.root().join("data")).expect("symlink");
    container
        .mount(json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": []}));
    let (text, code) = container.run().expect("runs");
    assert_eq!(code, 0, "{text}");
    assert!(
        std::fs::read_dir(&outside).expect("reads").next().is_none(),
        "nothing was made on the host"
    );

    let container = Cell::new("true");
    std::fs::remove_dir(container.root().join("dev")).expect("rmdir");
    symlink(&outside, container.root().join("dev")).expect("symlink");
    let _ = container.run();
    assert!(
        std::fs::read_dir(&outside).expect("reads").next().is_none(),
        "no device was made on the host"
    );

    let container = Cell::new("true");
    std::fs::remove_dir(container.root().join("proc")).expect("rmdir");
    symlink("/tmp", container.root().join("proc")).expect("symlink");
    let error = container
        .run()
        .expect_err("a proc that is a link (CVE-2019-19921)");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

#[test]
fn proc_cannot_be_mounted_over() {
    if !is_root() {
        return;
    }
    let mut container = Cell::new("true");
    container.mount(json!({"destination": "/proc/self/attr", "type": "tmpfs", "source": "tmpfs", "options": []}));
    assert_eq!(
        container.run().expect_err("refused").kind(),
        ErrorKind::Invalid
    );
    let mut container = Cell::new("true");
    container.mount(json!({"destination": "/proc/sys/kernel", "type": "bind", "source": "/tmp", "options": ["bind"]}));
    assert_eq!(
        container.run().expect_err("refused").kind(),
        ErrorKind::Invalid
    );
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
fn a_read_only_root_is_read_only() {
    if !is_root() {
        return;
    }
    let mut container =
        Cell::new("touch /x; touch /dev/shm/x && echo shm; touch /dev/y && echo dev");
    container.spec["root"]["readonly"] = json!(true);
    let (text, _) = container.run().expect("runs");
    assert!(
        text.contains("touch: /x: Read-only file system")
            && text.contains("shm")
            && text.contains("dev"),
        "{text}"
    );
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

#[test]
fn hooks_run_where_and_when_they_should() {
    if !is_root() {
        return;
    }
    let mut container = Cell::new("echo main; cat /mark");
    let log = container.dir.path().join("log");
    let hook = |name: &str| json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("(echo {name} $(hostname) $(grep -o '\"status\":\"[a-z]*\"')) >> {}", log.display())], "env": ["PATH=/bin:/usr/bin"]}]);
    let mark = container.root().join("mark");
    container.spec["hooks"] = json!({
        "prestart": hook("prestart"),
        "createRuntime": hook("createRuntime"),
        "createContainer": [{"path": "/bin/sh", "args": ["sh", "-c", format!("hostname > {}", mark.display())], "env": ["PATH=/bin:/usr/bin"]}],
        "startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "echo started in $(hostname) >> /mark"], "env": ["PATH=/bin"]}],
        "poststart": hook("poststart"),
    });
    let text = said(&container);
    assert_eq!(text, "main\njailed\nstarted in jailed\n");
    let log = std::fs::read_to_string(&log).expect("a log");
    let lines: Vec<&str> = log.lines().collect();
    assert!(
        lines[0].starts_with("prestart ")
            && lines[0].contains("creating")
            && !lines[0].contains("jailed"),
        "{log}"
    );
    assert!(
        lines[1].starts_with("createRuntime ")
            && lines[2].starts_with("poststart ")
            && lines[2].contains("running"),
        "{log}"
    );
    container.spec["hooks"] = json!({"createRuntime": [{"path": "/bin/false"}]});
    let error = container.run().expect_err("a failing hook stops it");
    assert!(matches!(error, Error::Hook { .. }), "{error}");
    assert!(!container.cgroup().exists());
}

#[test]
fn a_user_namespace_maps_root_away() {
    if !is_root() {
        return;
    }
    let host = tempfile::tempdir().expect("dir");
    std::fs::set_permissions(host.path(), std::fs::Permissions::from_mode(0o700)).expect("chmod");
    std::fs::write(host.path().join("f"), "seen").expect("write");
    std::fs::set_permissions(
        host.path().join("f"),
        std::fs::Permissions::from_mode(0o644),
    )
    .expect("chmod");
    let mut container = Cell::new(
        "id -u; cat /proc/self/uid_map; echo x > /dev/null && echo null; cat /f; hostname; ls -ln /f; mount | grep -c cgroup",
    );
    container.spec["linux"]["namespaces"]
        .as_array_mut()
        .expect("list")
        .push(json!({"type": "user"}));
    container.spec["linux"]["uidMappings"] =
        json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
    container.spec["linux"]["gidMappings"] =
        json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
    container.mount(json!({"destination": "/f", "type": "bind", "source": host.path().join("f"), "options": ["rbind"]}));
    // The image belongs to the mapped root.
    for path in ["", "bin", "etc", "proc", "sys", "dev", "tmp"] {
        std::os::unix::fs::chown(container.root().join(path), Some(100000), Some(100000))
            .expect("chown");
    }
    let text = said(&container);
    assert!(
        text.starts_with("0\n") && text.contains("100000") && text.contains("null\nseen"),
        "{text}"
    );
    assert!(text.contains("jailed"), "{text}");
    container.spec["process"]["user"] = json!({"uid": 70000, "gid": 0});
    assert_eq!(
        container.run().expect_err("not mapped").kind(),
        ErrorKind::Invalid
    );
}

#[test]
fn namespaces_are_joined_by_path() {
    if !is_root() {
        return;
    }
    let first = Cell::new("sleep 60");
    let (stdio, _read) = piped();
    let mut init = first.create(stdio, false).expect("creates");
    init.start().expect("starts");
    for kinds in [&["network", "ipc", "uts"][..], &["pid", "network"][..]] {
        let mut second = Cell::new("hostname; readlink /proc/self/ns/net; echo $$");
        for namespace in second.spec["linux"]["namespaces"]
            .as_array_mut()
            .expect("list")
        {
            let kind = namespace["type"].as_str().expect("text").to_string();
            if kinds.contains(&kind.as_str()) {
                let file = if kind == "network" { "net" } else { &kind };
                namespace["path"] = json!(format!("/proc/{}/ns/{file}", init.pid));
            }
        }
        second.spec["hostname"] = json!("second");
        let text = said(&second);
        let theirs = std::fs::read_link(format!("/proc/{}/ns/net", init.pid)).expect("link");
        assert!(text.contains(theirs.to_str().expect("text")), "{text}");
        assert_eq!(text.ends_with("\n1\n"), !kinds.contains(&"pid"), "{text}");
    }
    kill_and_collect(&init);
}

#[test]
fn a_dropped_init_dies_and_a_dead_caller_takes_it_along() {
    if !is_root() {
        return;
    }
    let container = Cell::new("sleep 60");
    let (stdio, _read) = piped();
    let init = container.create(stdio, false).expect("creates");
    let pid = init.pid;
    drop(init);
    assert_eq!(code(waitpid(pid, None).expect("our child")), 1);
}

#[test]
fn the_fifo_gate_releases_across_processes() {
    if !is_root() {
        return;
    }
    let container = Cell::new("echo released");
    let fifo = container.dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).expect("fifo");
    let (spec, cgroup) = (container.spec(), container.cgroup());
    let make = |stdio| {
        let _alone = alone();
        create(Setup {
            id: &container.id,
            spec: &spec,
            root: Root::FromSpec {
                bundle: container.dir.path().to_path_buf(),
            },
            stdio,
            gate: Gate::Fifo(fifo.clone()),
            cgroup: &cgroup,
            reaper: false,
            preserve_fds: 0,
            no_pivot: false,
            no_new_keyring: false,
            die_with_parent: false,
        })
        .expect("creates")
    };
    let (stdio, read) = piped();
    let Init { pid, pidfd, .. } = make(stdio);
    caisson_jail::release_fifo(&fifo, &pidfd).expect("releases");
    assert_eq!(read_all(read), "released\n");
    assert_eq!(code(waitpid(pid, None).expect("our child")), 0);
    assert!(!fifo.exists());
    // One that died waiting is reported, not waited for.
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).expect("fifo");
    let (stdio, _read) = piped();
    let init = make(stdio);
    nix::sys::signal::kill(init.pid, nix::sys::signal::Signal::SIGKILL).expect("kills");
    let error = caisson_jail::release_fifo(&fifo, &init.pidfd).expect_err("it is dead");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let _ = waitpid(init.pid, None);
}

#[test]
fn no_pivot_works_too() {
    if !is_root() {
        return;
    }
    let container = Cell::new("ls /proc/1/root/; cat /proc/mounts");
    let (spec, cgroup) = (container.spec(), container.cgroup());
    let (stdio, read) = piped();
    let held = alone();
    let mut init = create(Setup {
        id: &container.id,
        spec: &spec,
        root: Root::Mounted(container.root()),
        stdio,
        gate: Gate::Pipe,
        cgroup: &cgroup,
        reaper: false,
        preserve_fds: 0,
        no_pivot: true,
        no_new_keyring: true,
        die_with_parent: true,
    })
    .expect("creates");
    drop(held);
    init.start().expect("starts");
    let text = read_all(read);
    assert_eq!(
        code(waitpid(init.pid, None).expect("our child")),
        0,
        "{text}"
    );
    assert!(text.contains("bin\n") && !text.contains("work\n"), "{text}");
}

#[test]
fn overlays_of_120_layers_mount() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("dir");
    // Upper and work cannot be on an overlay themselves: a tmpfs of our own, where /tmp might be one.
    let layers: Vec<PathBuf> = (0..120)
        .map(|n| {
            let layer = dir.path().join(format!("layer-{n:03}-{}", "x".repeat(64)));
            std::fs::create_dir(&layer).expect("mkdir");
            std::fs::write(layer.join(format!("f{n}")), n.to_string()).expect("write");
            std::fs::write(layer.join("top"), n.to_string()).expect("write");
            layer
        })
        .collect();
    for name in ["upper", "work", "merged"] {
        std::fs::create_dir(dir.path().join(name)).expect("mkdir");
    }
    let at = |name: &str| dir.path().join(name);
    caisson_jail::mount_overlay(&layers, &at("upper"), &at("work"), &at("merged"), None)
        .expect("mounts");
    let merged = at("merged");
    let check = || -> Result<(), std::io::Error> {
        assert_eq!(
            std::fs::read_to_string(merged.join("top"))?,
            "0",
            "the first layer is the topmost"
        );
        assert_eq!(std::fs::read_to_string(merged.join("f119"))?, "119");
        std::fs::write(merged.join("new"), "n")?;
        assert!(at("upper").join("new").exists());
        Ok(())
    };
    let checked = check();
    nix::mount::umount2(&merged, nix::mount::MntFlags::MNT_DETACH).expect("unmounts");
    checked.expect("reads and writes");
}

#[test]
fn overlays_can_be_idmapped() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("dir");
    for name in ["lower", "own/upper", "own/work", "merged"] {
        std::fs::create_dir_all(dir.path().join(name)).expect("mkdir");
    }
    std::fs::write(dir.path().join("lower/f"), "x").expect("write");
    let at = |name: &str| dir.path().join(name);
    let map = |host: u32| {
        vec![
            serde_json::from_value(json!({"containerID": 0, "hostID": host, "size": 65536}))
                .expect("a map"),
        ]
    };
    let maps = caisson_jail::IdMappings {
        uids: map(100000),
        gids: map(200000),
    };
    let made = caisson_jail::mount_overlay(
        &[at("lower")],
        &at("own/upper"),
        &at("own/work"),
        &at("merged"),
        Some(&maps),
    );
    match made {
        Err(e) if e.kind() == ErrorKind::HostUnfit => eprintln!("skipped: {e}"),
        Err(e) => panic!("{e}"),
        Ok(()) => {
            use std::os::unix::fs::MetadataExt;
            let seen = std::fs::metadata(at("merged").join("f")).map(|m| (m.uid(), m.gid()));
            nix::mount::umount2(&at("merged"), nix::mount::MntFlags::MNT_DETACH).expect("unmounts");
            assert_eq!(seen.expect("stat"), (100000, 200000));
            assert!(
                !host_mounts().contains(dir.path().to_str().expect("text")),
                "nothing stays mounted"
            );
        }
    }
}
