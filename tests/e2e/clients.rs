//! Other clients of the same API: docker-py, the older docker CLI; and what our own command line adds.

use std::process::Command;

use caisson_tests::case::Clients;
use caisson_tests::{IMAGE, Test, cases, client};

fn docker_py(t: &Test) {
    let mut probe = Command::new("/usr/bin/python3");
    probe.args(["-c", "import docker"]);
    if !std::path::Path::new("/usr/bin/python3").exists() || client::run(probe, b"").code != 0 {
        t.skip("no docker-py: apt-get install python3-docker");
    }
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", include_str!("docker_py.py")]);
    command.args([t.daemon.host().as_str(), IMAGE, t.isolation.name()]);
    command.env("REFERENCE", if t.is_reference() { "1" } else { "" });
    let outcome = client::run(command, b"");
    outcome.ok().has("all fine");
}

fn old_client_runs_the_basics(t: &Test) {
    t.run(&["--rm", IMAGE, "sh", "-c", "echo out; exit 3"])
        .code(3)
        .prints("out\n");
    t.run_with_input(&["--rm", "-i", IMAGE, "cat"], b"through\n")
        .ok()
        .prints("through\n");
    let id = t.start_sh(&[], "echo logged; sleep 1000");
    t.eventually("logs", || t.cli(&["logs", &id]).ok().out() == "logged\n");
    t.cli(&["exec", &id, "echo", "exec"]).ok().prints("exec\n");
    t.cli(&["ps", "--no-trunc"]).ok().has(&id);
    t.cli(&["stats", "--no-stream", &id]).ok().has("MEM USAGE");
    t.cli(&["stop", "-t", "0", &id]).ok();
    t.cli(&["wait", &id]).ok().prints("137\n");
    t.cli(&["rm", &id]).ok();
    t.cli(&["images"]).ok().has("caisson/toolbox");
    t.cli(&["version"]).ok().has("Server");
    t.cli(&["info"]).ok().has("Kernel Version");
}

fn old_client_has_a_terminal(t: &Test) {
    let mut terminal = t.terminal_run(&["--rm", "-it", IMAGE]);
    terminal.expect("/ # ");
    terminal.send("stty size; exit 4\n");
    terminal.expect("24 80");
    assert_eq!(terminal.exit_code(), 4);
}

fn help_names_every_verb(t: &Test) {
    let outcome = t.cli(&["--help"]);
    for verb in "run create start stop restart kill rm ps exec attach logs cp diff commit export rename update wait top stats port pause unpause inspect pull push tag images rmi save load import history login logout system version info events daemon doctor".split(' ') {
        assert!(outcome.ok().out().split_whitespace().any(|word| word == verb), "no {verb} in --help");
    }
}

fn completions(t: &Test) {
    for shell in ["bash", "zsh", "fish"] {
        t.cli(&["completion", shell]).ok().has("caisson");
    }
}

fn doctor_says_what_and_how(t: &Test) {
    let outcome = t.cli(&["doctor"]);
    outcome.has("overlay").has("cgroup");
}

fn contexts(t: &Test) {
    let own = t.own_daemon(&[]);
    let raw = |arguments: &[&str]| {
        let mut command = Command::new(caisson_tests::target::binary("caisson"));
        command
            .args(arguments)
            .env("HOME", own.daemon.home())
            .env_remove("DOCKER_HOST");
        client::run(command, b"")
    };
    raw(&[
        "context",
        "create",
        "mine",
        "--docker",
        &format!("host={}", own.daemon.host()),
    ])
    .ok();
    raw(&["context", "ls"]).ok().has("mine");
    raw(&[
        "--context",
        "mine",
        "run",
        "--rm",
        IMAGE,
        "echo",
        "by context",
    ])
    .ok()
    .prints("by context\n");
    raw(&["context", "use", "mine"]).ok();
    raw(&["run", "--rm", IMAGE, "echo", "by default"])
        .ok()
        .prints("by default\n");
    raw(&["context", "rm", "-f", "mine"]).ok();
}

fn docker_host_variable(t: &Test) {
    let mut command = Command::new(caisson_tests::target::binary("caisson"));
    command
        .args(["run", "--rm", IMAGE, "echo", "by variable"])
        .env("DOCKER_HOST", t.daemon.host())
        .env("HOME", t.daemon.home());
    client::run(command, b"").ok().prints("by variable\n");
}

cases![
    docker_py.clients(Clients::Native),
    old_client_runs_the_basics.clients(Clients::Old),
    old_client_has_a_terminal.clients(Clients::Old),
    help_names_every_verb.clients(Clients::Caisson),
    completions.clients(Clients::Caisson),
    doctor_says_what_and_how.clients(Clients::Caisson),
    contexts.clients(Clients::Caisson),
    docker_host_variable.clients(Clients::Caisson),
];
