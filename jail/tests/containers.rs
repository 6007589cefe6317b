//! Real containers, as root: each test makes one in a root of busybox and asks it what it sees.
//!
//! They print why and pass when not run as root.

mod cell;
#[path = "containers/files.rs"]
mod files;
#[path = "containers/processes.rs"]
mod processes;

use std::os::unix::fs::PermissionsExt;

use caisson_jail::{Error, ErrorKind, Exec, Gate, Init, Root, Setup, create, exec};
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
