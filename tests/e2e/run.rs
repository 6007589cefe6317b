//! `run` and `create`: exit codes, environment, user, names, the flags that shape the first process.

use caisson_tests::{IMAGE, Isolation, Test, cases};

fn exit_code_of_true(t: &Test) {
    t.run(&["--rm", IMAGE, "true"]).ok().prints("");
}

fn exit_code_of_false(t: &Test) {
    t.run(&["--rm", IMAGE, "false"]).code(1);
}

fn exit_code_of_the_shell(t: &Test) {
    t.run(&["--rm", IMAGE, "sh", "-c", "exit 37"]).code(37);
}

fn exit_code_of_a_signal(t: &Test) {
    t.run(&["--rm", "--init", IMAGE, "sh", "-c", "kill -TERM $$"])
        .code(143);
    t.run(&["--rm", "--init", IMAGE, "sh", "-c", "kill -KILL $$"])
        .code(137);
}

fn exit_code_127_when_not_found(t: &Test) {
    t.run(&["--rm", IMAGE, "no-such-program"])
        .code(127)
        .complains(&["no-such-program"]);
    t.run(&["--rm", IMAGE, "/no/such/program"])
        .code(127)
        .complains(&["no such file"]);
}

fn exit_code_126_when_not_executable(t: &Test) {
    t.run(&["--rm", IMAGE, "/etc/passwd"])
        .code(126)
        .complains(&["permission denied"]);
    t.run(&["--rm", IMAGE, "/etc"]).code(126);
}

fn exit_code_125_on_engine_errors(t: &Test) {
    t.run(&["--rm", "--memory=1", IMAGE, "true"]).code(125);
    t.run(&["--rm", "--no-such-flag", IMAGE, "true"])
        .code(125)
        .complains(&["no-such-flag"]);
    t.run(&["--rm", "--pull=never", "nobody/knows:this", "true"])
        .code(125)
        .complains(&["nobody/knows"]);
}

fn a_failed_start_leaves_a_created_container(t: &Test) {
    let name = t.unique("x");
    t.run(&["--name", &name, IMAGE, "no-such-program"])
        .code(127);
    assert_eq!(
        t.inspect(&name, "{{.State.Status}} {{.State.ExitCode}}"),
        "created 127"
    );
    t.cli(&["rm", &name]).ok();
}

fn output_streams_are_separate(t: &Test) {
    let outcome = t.run(&["--rm", IMAGE, "sh", "-c", "echo out; echo err >&2"]);
    outcome.ok().prints("out\n");
    assert_eq!(outcome.err(), "err\n");
}

fn output_without_newline_and_binary(t: &Test) {
    let outcome = t.run(&["--rm", IMAGE, "sh", "-c", r"printf 'a\000b\377c'"]);
    assert_eq!(outcome.ok().stdout, b"a\0b\xffc");
}

fn large_output_is_complete(t: &Test) {
    let outcome = t.run(&["--rm", IMAGE, "seq", "1", "300000"]);
    let text = outcome.ok().out();
    assert_eq!(text.lines().count(), 300_000);
    assert!(text.ends_with("\n300000\n"));
}

fn default_command_is_used(t: &Test) {
    t.run_with_input(&["--rm", "-i", IMAGE], b"echo from the default shell\n")
        .ok()
        .prints("from the default shell\n");
}

fn environment(t: &Test) {
    let file = t.file("env", "FROM_FILE=1\n# comment\nSPACED=a b c\nFROM_CLIENT\n");
    let file = file.display().to_string();
    let command = t.verb(
        "run",
        &[
            "--rm",
            "-e",
            "A=1",
            "--env",
            "B=x y",
            "--env-file",
            &file,
            "-e",
            "FROM_CLIENT",
            IMAGE,
            "env",
        ],
    );
    let mut command = t.command(command);
    command.env("FROM_CLIENT", "yes");
    let outcome = caisson_tests::client::run(command, b"");
    for line in [
        "A=1\n",
        "B=x y\n",
        "FROM_FILE=1\n",
        "SPACED=a b c\n",
        "FROM_CLIENT=yes\n",
        "PATH=/usr/local/sbin:",
        "HOME=/root\n",
        "HOSTNAME=",
    ] {
        outcome.ok().has(line);
    }
}

fn term_is_set_with_a_terminal_only(t: &Test) {
    t.run(&["--rm", IMAGE, "env"]).ok().lacks("TERM=");
    t.run(&["--rm", "-t", IMAGE, "env"]).ok().has("TERM=xterm");
}

fn working_directory(t: &Test) {
    assert_eq!(t.sh(&["-w", "/tmp"], "pwd"), "/tmp");
    assert_eq!(
        t.sh(&["--workdir", "/made/up/here"], "pwd"),
        "/made/up/here"
    );
    t.run(&["--rm", "-w", "relative", IMAGE, "pwd"])
        .code(125)
        .complains(&["absolute"]);
}

fn entrypoint(t: &Test) {
    t.run(&["--rm", "--entrypoint", "echo", IMAGE, "a", "b"])
        .ok()
        .prints("a b\n");
    t.run(&["--rm", "--entrypoint", "", IMAGE, "echo", "c"])
        .ok()
        .prints("c\n");
}

fn hostname_and_domain(t: &Test) {
    assert_eq!(
        t.sh(&["--hostname", "box"], "hostname; cat /etc/hostname"),
        "box\nbox"
    );
    let id = t.create(&[IMAGE, "hostname"]);
    t.cli(&["start", "-a", &id])
        .ok()
        .prints(&format!("{}\n", &id[..12]));
}

fn hosts_and_resolv_conf(t: &Test) {
    let hosts = t.sh(&["--add-host", "db:10.1.2.3"], "cat /etc/hosts");
    assert!(
        hosts.contains("127.0.0.1\tlocalhost") || hosts.contains("127.0.0.1 localhost"),
        "{hosts}"
    );
    assert!(
        hosts
            .lines()
            .any(|l| l.split_whitespace().eq(["10.1.2.3", "db"])),
        "{hosts}"
    );
    let resolv = t.sh(
        &[
            "--dns",
            "9.9.9.9",
            "--dns-search",
            "example.org",
            "--dns-option",
            "ndots:2",
        ],
        "cat /etc/resolv.conf",
    );
    for line in [
        "nameserver 9.9.9.9",
        "search example.org",
        "options ndots:2",
    ] {
        assert!(resolv.contains(line), "{resolv}");
    }
}

fn user_by_id_and_name(t: &Test) {
    assert_eq!(t.sh(&["-u", "1000"], "id -u; id -g"), "1000\n1000");
    assert_eq!(
        t.sh(&["-u", "toolbox"], "id -un; id -gn; echo $HOME"),
        "toolbox\ntoolbox\n/home/toolbox"
    );
    assert_eq!(t.sh(&["--user", "1234:2345"], "id -u; id -g"), "1234\n2345");
    assert_eq!(
        t.sh(&["--user", "nobody:users"], "id -un; id -gn"),
        "nobody\nusers"
    );
    assert_eq!(
        t.sh(
            &["-u", "1234", "--group-add", "users", "--group-add", "777"],
            "id -G"
        ),
        "0 100 777"
    );
}

fn user_that_does_not_exist(t: &Test) {
    t.run(&["--rm", "-u", "nosuchuser", IMAGE, "id"])
        .fails()
        .complains(&["nosuchuser"]);
    t.run(&["--rm", "-u", "99999999999", IMAGE, "id"]).fails();
    t.run(&["--rm", "-u", "-1", IMAGE, "id"]).fails();
}

fn names_are_unique(t: &Test) {
    let name = t.unique("taken");
    let id = t.create(&["--name", &name, IMAGE]);
    t.run(&["--name", &name, IMAGE, "true"])
        .code(125)
        .complains(&["already in use"]);
    t.cli(&["rm", &id]).ok();
    t.run(&["--rm", "--name", &name, IMAGE, "true"]).ok();
}

fn bad_names_are_refused(t: &Test) {
    for name in ["-x", "a b", "a/b", "ü", "x"] {
        t.run(&["--rm", &format!("--name={name}"), IMAGE, "true"])
            .code(125)
            .complains(&["invalid container name"]);
    }
}

fn containers_get_a_friendly_name(t: &Test) {
    let id = t.create(&[IMAGE]);
    let name = t.inspect(&id, "{{.Name}}");
    assert!(
        name.starts_with('/') && name.contains('_') && name.len() > 4,
        "{name}"
    );
}

fn labels(t: &Test) {
    let file = t.file("labels", "from.file=1\n# comment\n");
    let id = t.create(&[
        "-l",
        "a=1",
        "--label",
        "b",
        "--label-file",
        &file.display().to_string(),
        IMAGE,
    ]);
    let labels = &t.inspect_json(&id)["Config"]["Labels"];
    for (key, value) in [("a", "1"), ("b", ""), ("from.file", "1")] {
        assert_eq!(labels[key], value, "{labels}");
    }
}

fn cidfile(t: &Test) {
    let path = t.directory().join("cid");
    let path = path.display().to_string();
    let id = t.create(&["--cidfile", &path, IMAGE]);
    assert_eq!(
        std::fs::read_to_string(&path).expect("a cid file").trim(),
        id
    );
    t.run(&["--rm", "--cidfile", &path, IMAGE, "true"])
        .code(125)
        .complains(&["id file", "cid file"]);
}

fn rm_removes_at_the_end(t: &Test) {
    let name = t.unique("gone");
    t.run(&["--rm", "--name", &name, IMAGE, "true"]).ok();
    t.eventually("container is gone", || {
        t.cli(&["container", "inspect", &name]).code != 0
    });
    let id = t.start(&["--rm", IMAGE, "sleep", "0.2"]);
    t.eventually("detached container is gone", || {
        t.cli(&["container", "inspect", &id]).code != 0
    });
}

fn init_reaps_zombies(t: &Test) {
    let id = t.start_sh(
        &["--init"],
        "for i in 1 2 3; do sh -c 'sleep 0.1 & exit'; done; sleep 100",
    );
    std::thread::sleep(std::time::Duration::from_millis(600));
    let states = t.exec(&id, "cat /proc/[0-9]*/stat | cut -d' ' -f3");
    assert!(!states.contains('Z'), "zombies: {states}");
    assert_ne!(
        t.exec(&id, "cat /proc/1/comm"),
        "sh",
        "the first process is the user's own"
    );
}

fn init_forwards_signals(t: &Test) {
    let id = t.start_sh(
        &["--init"],
        "trap 'echo got it; exit 5' TERM; echo up; while :; do sleep 0.05; done",
    );
    t.eventually("it is up", || t.cli(&["logs", &id]).out().contains("up"));
    t.cli(&["stop", &id]).ok();
    assert_eq!(t.inspect(&id, "{{.State.ExitCode}}"), "5");
}

fn stop_signal_and_timeout(t: &Test) {
    let id = t.start_sh(
        &["--stop-signal", "USR1", "--stop-timeout", "30"],
        "trap 'exit 9' USR1; echo up; while :; do sleep 0.05; done",
    );
    t.eventually("it is up", || t.cli(&["logs", &id]).out().contains("up"));
    let outcome = t.cli(&["stop", &id]);
    outcome.ok();
    assert!(outcome.took.as_secs() < 10, "{}", outcome.dump());
    assert_eq!(t.inspect(&id, "{{.State.ExitCode}}"), "9");
}

fn start_attached_returns_the_exit_code(t: &Test) {
    let id = t.create(&[IMAGE, "sh", "-c", "echo hello; exit 3"]);
    t.cli(&["start", "-a", &id]).code(3).prints("hello\n");
    t.cli(&["start", "-a", &id]).code(3).prints("hello\n");
    t.cli(&["start", &id]).ok().prints(&format!("{id}\n"));
}

fn attach_selected_streams(t: &Test) {
    let outcome = t.run(&[
        "--rm",
        "-a",
        "stderr",
        IMAGE,
        "sh",
        "-c",
        "echo out; echo err >&2",
    ]);
    outcome.ok().prints("");
    assert_eq!(outcome.err(), "err\n");
}

fn isolation_is_recorded(t: &Test) {
    let id = t.create(&[IMAGE]);
    assert_eq!(
        t.inspect(&id, "{{.HostConfig.Isolation}}"),
        t.isolation.name()
    );
}

fn unknown_isolation_is_refused(t: &Test) {
    let outcome = t.cli(&["run", "--rm", "--isolation=glass", IMAGE, "true"]);
    outcome.code(125).complains(&["glass"]);
}

fn vm_isolation_never_falls_back(t: &Test) {
    let boot_id = "/proc/sys/kernel/random/boot_id";
    let outcome = t.cli(&["run", "--rm", "--isolation=vm", IMAGE, "cat", boot_id]);
    if outcome.code == 0 {
        let hosts = std::fs::read_to_string(boot_id).expect("procfs");
        assert_ne!(outcome.out(), hosts, "it ran on the host's kernel");
    } else {
        outcome
            .code(125)
            .complains(&["vm", "virtual machine", "kvm"]);
    }
}

fn what_is_not_there_yet_is_refused(t: &Test) {
    for (options, complaint) in [
        (["-p", "8080:80"].as_slice(), "port"),
        (&["-P"], "port"),
        (&["--network", "made-up"], "network"),
        (&["--link", "x:y"], "link"),
        (&["--gpus", "all"], "gpu"),
        (&["--runtime", "made-up"], "runtime"),
    ] {
        let outcome = t.run(&[&["--rm"], options, &[IMAGE, "echo", "ran"]].concat());
        outcome.code(125).lacks("ran").complains(&[complaint]);
    }
    assert_eq!(
        t.cli(&[
            "ps",
            "-aq",
            "--filter",
            &format!("label=caisson.case={}", t.name())
        ])
        .ok()
        .out(),
        ""
    );
}

fn the_daemon_can_insist_on_an_isolation(t: &Test) {
    let own = t.own_daemon(&[
        "--default-isolation=container",
        "--require-isolation=container",
    ]);
    own.cli(&["run", "--rm", IMAGE, "echo", "ran"])
        .ok()
        .prints("ran\n");
    let outcome = own.cli(&["run", "--rm", "--isolation=vm", IMAGE, "echo", "ran"]);
    outcome.code(125).lacks("ran").complains(&["isolation"]);
}

fn platform_must_match(t: &Test) {
    t.run(&[
        "--rm",
        "--platform",
        "linux/amd64",
        "--pull=never",
        IMAGE,
        "true",
    ])
    .ok();
}

fn uts_pid_ipc_of_the_host(t: &Test) {
    let own = |kind: &str| {
        std::fs::read_link(format!("/proc/self/ns/{kind}"))
            .expect("own namespaces")
            .display()
            .to_string()
    };
    for (flag, kind) in [
        ("--uts=host", "uts"),
        ("--pid=host", "pid"),
        ("--ipc=host", "ipc"),
        ("--network=host", "net"),
    ] {
        assert_eq!(
            t.sh(&[flag], &format!("readlink /proc/self/ns/{kind}")),
            own(kind),
            "{flag}"
        );
    }
    for kind in ["uts", "pid", "ipc", "net", "mnt"] {
        assert_ne!(
            t.sh(&[], &format!("readlink /proc/self/ns/{kind}")),
            own(kind),
            "{kind}"
        );
    }
}

fn pid_namespace_of_another_container(t: &Test) {
    let first = t.sleeper(&[]);
    let seen = t.sh(&["--pid", &format!("container:{first}")], "ps -o args");
    assert!(seen.contains("sleep 1000"), "{seen}");
    let second = t.sh(
        &["--network", &format!("container:{first}")],
        "readlink /proc/self/ns/net",
    );
    assert_eq!(second, t.exec(&first, "readlink /proc/self/ns/net"));
}

fn network_none_has_loopback_only(t: &Test) {
    assert_eq!(
        t.sh(
            &["--network", "none"],
            "ls /sys/class/net; cat /sys/class/net/lo/flags"
        ),
        "lo\n0x9"
    );
}

fn many_at_once(t: &Test) {
    // a microVM is a kernel's boot: ten of them at once strain a machine as much as a hundred containers
    let each = match t.isolation {
        Isolation::Container => 10,
        Isolation::Vm => 1,
    };
    let name = |worker, i| format!("{worker}-{i}");
    let outcomes = std::thread::scope(|scope| {
        let run = |worker| {
            (0..each)
                .map(|i| t.run(&["--rm", IMAGE, "echo", &name(worker, i)]))
                .collect::<Vec<_>>()
        };
        let workers: Vec<_> = (0..10).map(|w| scope.spawn(move || run(w))).collect();
        workers.into_iter().map(|w| w.join()).collect::<Vec<_>>()
    });
    for (worker, outcomes) in outcomes.into_iter().enumerate() {
        let outcomes = outcomes.unwrap_or_else(|_| panic!("worker {worker} failed"));
        for (i, outcome) in outcomes.iter().enumerate() {
            assert_eq!(outcome.ok().trimmed(), name(worker, i));
        }
    }
}

cases![
    exit_code_of_true,
    exit_code_of_false,
    exit_code_of_the_shell.core(),
    exit_code_of_a_signal,
    exit_code_127_when_not_found.core(),
    exit_code_126_when_not_executable,
    exit_code_125_on_engine_errors,
    a_failed_start_leaves_a_created_container,
    output_streams_are_separate.core(),
    output_without_newline_and_binary,
    large_output_is_complete,
    default_command_is_used,
    environment.core(),
    term_is_set_with_a_terminal_only,
    working_directory,
    entrypoint,
    hostname_and_domain.core(),
    hosts_and_resolv_conf.core(),
    user_by_id_and_name,
    user_that_does_not_exist,
    names_are_unique,
    bad_names_are_refused,
    containers_get_a_friendly_name,
    labels,
    cidfile,
    rm_removes_at_the_end.core(),
    init_reaps_zombies,
    init_forwards_signals,
    stop_signal_and_timeout,
    start_attached_returns_the_exit_code,
    attach_selected_streams,
    isolation_is_recorded.core().ours("it knows one isolation"),
    unknown_isolation_is_refused,
    vm_isolation_never_falls_back.container_only(),
    what_is_not_there_yet_is_refused.ours("it has them"),
    the_daemon_can_insist_on_an_isolation
        .ours("it knows one isolation")
        .container_only(),
    platform_must_match,
    uts_pid_ipc_of_the_host.container_only(),
    pid_namespace_of_another_container.container_only(),
    network_none_has_loopback_only.core(),
    many_at_once.alone(),
];
