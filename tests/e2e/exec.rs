//! `exec`: further processes in a running container.

use caisson_tests::{IMAGE, Test, cases};

fn output_and_exit_code(t: &Test) {
    let id = t.sleeper(&[]);
    let outcome = t.cli(&["exec", &id, "sh", "-c", "echo out; echo err >&2; exit 9"]);
    outcome.code(9).prints("out\n");
    assert_eq!(outcome.err(), "err\n");
}

fn not_found_and_not_executable(t: &Test) {
    let id = t.sleeper(&[]);
    let not_found = if t.is_reference() { 126 } else { 127 }; // dockerd says 127 from version 25 on
    t.cli(&["exec", &id, "no-such-program"]).code(not_found);
    t.cli(&["exec", &id, "/etc/passwd"]).code(126);
}

fn killed_by_a_signal(t: &Test) {
    let id = t.sleeper(&[]);
    t.cli(&["exec", &id, "sh", "-c", "kill -9 $$"]).code(137);
}

fn stdin(t: &Test) {
    let id = t.sleeper(&[]);
    t.cli_with_input(&["exec", "-i", &id, "tr", "a-z", "A-Z"], b"exec\n")
        .ok()
        .prints("EXEC\n");
    t.cli_with_input(&["exec", &id, "cat"], b"unread\n")
        .ok()
        .prints("");
}

fn environment_user_and_directory(t: &Test) {
    let id = t.sleeper(&["-e", "FROM_RUN=1", "-w", "/usr"]);
    t.cli(&[
        "exec",
        "-e",
        "MORE=2",
        &id,
        "sh",
        "-c",
        "echo $FROM_RUN $MORE $PWD",
    ])
    .ok()
    .prints("1 2 /usr\n");
    t.cli(&[
        "exec",
        "-u",
        "toolbox",
        "-w",
        "/tmp",
        &id,
        "sh",
        "-c",
        "id -un; pwd; echo $HOME",
    ])
    .ok()
    .prints("toolbox\n/tmp\n/home/toolbox\n");
    t.cli(&["exec", "-u", "1234:2345", &id, "sh", "-c", "id -u; id -g"])
        .ok()
        .prints("1234\n2345\n");
}

fn same_namespaces_and_cgroup(t: &Test) {
    let id = t.sleeper(&[]);
    let seen = t.exec(&id, "for n in pid mnt uts ipc net cgroup; do a=$(readlink /proc/1/ns/$n); b=$(readlink /proc/self/ns/$n); test $a = $b || echo $n differs; done; diff /proc/1/cgroup /proc/self/cgroup && echo same");
    assert_eq!(seen, "same");
}

fn detached(t: &Test) {
    let id = t.sleeper(&[]);
    t.cli(&["exec", "-d", &id, "sh", "-c", "echo written > /file"])
        .ok();
    t.eventually("it ran", || {
        t.cli(&["exec", &id, "cat", "/file"]).out() == "written\n"
    });
}

fn terminal(t: &Test) {
    let id = t.sleeper(&[]);
    let mut terminal = t.terminal(&["exec", "-it", &id, "sh"]);
    terminal.expect("/ # ");
    terminal.send("tty; stty size\n");
    terminal.expect("/dev/pts/");
    terminal.expect("24 80");
    terminal.send("exit 3\n");
    assert_eq!(terminal.exit_code(), 3);
}

fn terminal_detaches(t: &Test) {
    let id = t.sleeper(&[]);
    let mut terminal = t.terminal(&[
        "exec",
        "-it",
        "--detach-keys",
        "ctrl-e,e",
        &id,
        "sh",
        "-c",
        "echo hi; sleep 777",
    ]);
    terminal.expect("hi");
    terminal.send("\x05e");
    terminal.exit_code();
    assert!(t.exec(&id, "ps -o args").contains("sleep 777"));
}

fn privileged(t: &Test) {
    let id = t.sleeper(&[]);
    assert_eq!(
        t.exec(&id, "grep CapEff /proc/self/status | cut -f2"),
        "00000000a80425fb"
    );
    let caps = t.cli(&[
        "exec",
        "--privileged",
        &id,
        "sh",
        "-c",
        "grep CapEff /proc/self/status | cut -f2",
    ]);
    assert!(
        u64::from_str_radix(&caps.ok().trimmed(), 16).is_ok_and(|bits| bits > 0x1_ffff_ffff),
        "{}",
        caps.dump()
    );
}

fn stopped_container_refuses(t: &Test) {
    let id = t.create(&[IMAGE]);
    t.cli(&["exec", &id, "true"])
        .code(1)
        .complains(&["is not running"]);
}

fn ends_with_the_container(t: &Test) {
    let id = t.sleeper(&[]);
    let mut client = t.background(&["exec", &id, "sh", "-c", "echo up; sleep 1000"]);
    client.expect("up");
    t.cli(&["kill", &id]).ok();
    assert_eq!(client.exit_code(), 137);
}

fn does_not_reach_the_logs(t: &Test) {
    let id = t.sleeper(&[]);
    t.cli(&["exec", &id, "echo", "not logged"]).ok();
    t.cli(&["logs", &id]).ok().prints("");
}

fn many_at_once(t: &Test) {
    let id = t.sleeper(&[]);
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let id = &id;
            scope.spawn(move || {
                for i in 0..5 {
                    let text = format!("{worker}-{i}");
                    t.cli(&["exec", id, "echo", &text])
                        .ok()
                        .prints(&format!("{text}\n"));
                }
            });
        }
    });
    assert_eq!(
        t.inspect(&id, "{{if .ExecIDs}}{{len .ExecIDs}}{{else}}0{{end}}"),
        "0"
    );
}

cases![
    output_and_exit_code.core(),
    not_found_and_not_executable,
    killed_by_a_signal,
    stdin,
    environment_user_and_directory,
    same_namespaces_and_cgroup.core(),
    detached,
    terminal,
    terminal_detaches,
    privileged
        .container_only()
        .ours("its runc cannot raise capabilities in exec here"),
    stopped_container_refuses,
    ends_with_the_container,
    does_not_reach_the_logs,
    many_at_once,
];
