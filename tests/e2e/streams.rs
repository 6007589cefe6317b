//! Standard streams and terminals: pipes, attach, detach keys, resize, signals from the keyboard.

use std::time::Duration;

use caisson_tests::{IMAGE, Test, cases, fixture};
use nix::sys::signal::Signal;

fn stdin_reaches_the_process(t: &Test) {
    t.run_with_input(&["--rm", "-i", IMAGE, "tr", "a-z", "A-Z"], b"hello\n")
        .ok()
        .prints("HELLO\n");
}

fn stdin_is_empty_without_interactive(t: &Test) {
    t.run_with_input(&["--rm", IMAGE, "cat"], b"unread")
        .ok()
        .prints("");
}

fn fifty_megabytes_through_cat(t: &Test) {
    let mut input = Vec::with_capacity(50 << 20);
    let mut state = 1_u64;
    while input.len() < 50 << 20 {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        input.extend_from_slice(&state.to_le_bytes());
    }
    let outcome = t.run_with_input(&["--rm", "-i", IMAGE, "cat"], &input);
    assert_eq!(outcome.ok().stdout.len(), input.len(), "bytes came back");
    assert!(outcome.stdout == input, "the bytes differ");
    let sum = t.run_with_input(&["--rm", "-i", IMAGE, "sha256sum"], &input);
    assert_eq!(
        sum.ok().trimmed().split(' ').next(),
        Some(fixture::sha256(&input).as_str())
    );
}

fn client_ends_although_stdin_stays_open(t: &Test) {
    let mut client = t.background_run(&["--rm", "-i", IMAGE, "echo", "done"]);
    client.expect("done");
    t.eventually("client ends", || !client.is_running());
}

fn slow_reader_loses_nothing(t: &Test) {
    let mut client = t.background_run(&["--rm", IMAGE, "sh", "-c", "seq 1 200000; echo end"]);
    assert_eq!(client.exit_code(), 0);
    client.expect("\n200000\nend\n");
}

fn interactive_shell(t: &Test) {
    let mut terminal = t.terminal_run(&["--rm", "-it", IMAGE]);
    terminal.expect("/ # ");
    terminal.send("echo $((6*7))\n");
    terminal.expect("\n42\r\n");
    terminal.send("tty; test -t 0 && test -t 1 && test -t 2 && echo all three\n");
    terminal.expect("/dev/pts/0");
    terminal.expect("\nall three\r\n");
    terminal.send("exit 7\n");
    assert_eq!(terminal.exit_code(), 7);
}

fn terminal_without_stdin(t: &Test) {
    t.run(&["--rm", "-t", IMAGE, "sh", "-c", "echo a; echo b >&2"])
        .ok()
        .prints("a\r\nb\r\n");
}

fn terminal_refuses_piped_stdin(t: &Test) {
    t.run_with_input(&["--rm", "-it", IMAGE, "cat"], b"x")
        .fails()
        .complains(&["not a tty", "not a terminal"]);
}

fn resize_is_seen_inside(t: &Test) {
    let mut terminal = t.terminal_run(&["--rm", "-it", IMAGE]);
    terminal.expect("/ # ");
    let see = |terminal: &mut caisson_tests::Terminal, want: &str| {
        for _ in 0..40 {
            terminal.send("echo size=$(stty size)=\n");
            terminal.expect("\nsize=");
            std::thread::sleep(Duration::from_millis(50));
            if terminal.shown().contains(&format!("\nsize={want}=")) {
                return;
            }
        }
        panic!("size never became {want}: {}", terminal.shown());
    };
    see(&mut terminal, "24 80");
    terminal.resize(50, 132);
    see(&mut terminal, "50 132");
    terminal.send("exit\n");
    assert_eq!(terminal.exit_code(), 0);
}

fn ctrl_c_interrupts_the_foreground(t: &Test) {
    let mut terminal = t.terminal_run(&["--rm", "-it", IMAGE]);
    terminal.expect("/ # ");
    terminal.send("sleep 1000\n");
    t.settle(300);
    terminal.send("\x03");
    terminal.expect("/ # ");
    terminal.send("echo status $?\n");
    terminal.expect("\nstatus 130\r\n");
    // the prompt: only then the shell reads keys; before, the terminal itself takes the end of input
    terminal.expect("/ # ");
    terminal.send("\x04");
    assert_eq!(terminal.exit_code(), 0);
}

fn detach_keys_leave_it_running(t: &Test) {
    let name = t.unique("d");
    let mut terminal = t.terminal_run(&["-it", "--name", &name, IMAGE]);
    terminal.expect("/ # ");
    terminal.send("\x10");
    std::thread::sleep(Duration::from_millis(100));
    terminal.send("\x11");
    assert_eq!(terminal.exit_code(), 0);
    assert_eq!(t.inspect(&name, "{{.State.Running}}"), "true");

    let mut again = t.terminal(&["attach", &name]);
    again.send("echo back again\n");
    again.expect("\nback again\r\n");
    again.send("exit 4\n");
    assert_eq!(again.exit_code(), 4);
}

fn other_detach_keys(t: &Test) {
    let name = t.unique("d");
    let mut terminal =
        t.terminal_run(&["-it", "--detach-keys", "ctrl-x,z", "--name", &name, IMAGE]);
    terminal.expect("/ # ");
    terminal.send("\x18");
    std::thread::sleep(Duration::from_millis(100));
    terminal.send("z");
    assert_eq!(terminal.exit_code(), 0);
    assert_eq!(t.inspect(&name, "{{.State.Running}}"), "true");
}

fn half_typed_detach_keys_reach_the_process(t: &Test) {
    let mut terminal = t.terminal_run(&[
        "--rm",
        "-it",
        IMAGE,
        "sh",
        "-c",
        "stty raw -echo; echo ready; head -c 2 | od -An -tx1",
    ]);
    terminal.expect("ready");
    terminal.send("\x10");
    std::thread::sleep(Duration::from_millis(100));
    terminal.send("a");
    terminal.expect("10 61");
    assert_eq!(terminal.exit_code(), 0);
}

fn attach_sees_output_and_exit_code(t: &Test) {
    let id = t.start_sh(&["-i"], "read line; echo got $line; exit 6");
    let mut client = t.background(&["attach", &id]);
    client.send("a line\n");
    client.expect("got a line");
    assert_eq!(client.exit_code(), 6);
}

fn attach_without_stdin(t: &Test) {
    let id = t.start_sh(&["-i"], "read line; echo got $line");
    let mut client = t.background(&["attach", "--no-stdin", &id]);
    t.settle(300);
    t.cli_with_input(&["attach", &id], b"other\n").ok();
    client.expect("got other");
    assert_eq!(client.exit_code(), 0);
}

fn attach_to_a_stopped_container_fails(t: &Test) {
    let id = t.create(&[IMAGE]);
    t.cli(&["attach", &id])
        .code(1)
        .complains(&["stopped container"]);
}

fn several_clients_see_the_same(t: &Test) {
    let id = t.start_sh(&["-i"], "read line; echo heard $line");
    let first = t.background(&["attach", "--no-stdin", &id]);
    let second = t.background(&["attach", "--no-stdin", &id]);
    t.settle(300);
    t.cli_with_input(&["attach", &id], b"news\n").ok();
    first.expect("heard news");
    second.expect("heard news");
}

fn signals_are_proxied(t: &Test) {
    let mut client = t.background_run(&[
        "--rm",
        IMAGE,
        "sh",
        "-c",
        "trap 'echo int; exit 12' INT; echo up; while :; do sleep 0.05; done",
    ]);
    client.expect("up");
    client.signal(Signal::SIGINT);
    client.expect("int");
    assert_eq!(client.exit_code(), 12);
}

fn signals_are_not_proxied_when_asked(t: &Test) {
    let name = t.unique("s");
    let client = t.background_run(&[
        "--sig-proxy=false",
        "--name",
        &name,
        IMAGE,
        "sh",
        "-c",
        "trap 'exit 12' TERM; echo up; while :; do sleep 0.05; done",
    ]);
    client.expect("up");
    client.signal(Signal::SIGTERM);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(t.inspect(&name, "{{.State.Running}}"), "true");
}

fn a_killed_client_does_not_kill_the_container(t: &Test) {
    let name = t.unique("k");
    let client = t.background_run(&[
        "-i",
        "--name",
        &name,
        IMAGE,
        "sh",
        "-c",
        "echo up; sleep 1000",
    ]);
    client.expect("up");
    client.signal(Signal::SIGKILL);
    drop(client);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(t.inspect(&name, "{{.State.Running}}"), "true");
}

cases![
    stdin_reaches_the_process.core(),
    stdin_is_empty_without_interactive,
    fifty_megabytes_through_cat,
    client_ends_although_stdin_stays_open,
    slow_reader_loses_nothing,
    interactive_shell.core(),
    terminal_without_stdin,
    terminal_refuses_piped_stdin,
    resize_is_seen_inside.core(),
    ctrl_c_interrupts_the_foreground,
    detach_keys_leave_it_running,
    other_detach_keys,
    half_typed_detach_keys_reach_the_process,
    attach_sees_output_and_exit_code,
    attach_without_stdin,
    attach_to_a_stopped_container_fails,
    several_clients_see_the_same,
    signals_are_proxied,
    signals_are_not_proxied_when_asked,
    a_killed_client_does_not_kill_the_container,
];
