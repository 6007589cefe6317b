//! `logs` and the log options.

use caisson_tests::{IMAGE, Test, cases};

fn ended(t: &Test, options: &[&str], script: &str) -> String {
    let id = t.start_sh(options, script);
    t.cli(&["wait", &id]).ok();
    id
}

fn both_streams(t: &Test) {
    let id = ended(t, &[], "echo out; echo err >&2");
    let outcome = t.cli(&["logs", &id]);
    outcome.ok().prints("out\n");
    assert_eq!(outcome.err(), "err\n");
}

fn tail(t: &Test) {
    let id = ended(t, &[], "seq 1 10000");
    t.cli(&["logs", "--tail", "3", &id])
        .ok()
        .prints("9998\n9999\n10000\n");
    t.cli(&["logs", "-n", "0", &id]).ok().prints("");
    assert_eq!(
        t.cli(&["logs", "--tail", "all", &id])
            .ok()
            .out()
            .lines()
            .count(),
        10_000
    );
}

fn timestamps(t: &Test) {
    let id = ended(t, &[], "echo line");
    let line = t.cli(&["logs", "-t", &id]).ok().trimmed();
    let (time, text) = line.split_once(' ').expect("a time and a line");
    assert!(
        time.len() >= 30 && time.ends_with('Z') && time.as_bytes()[10] == b'T',
        "{line}"
    );
    assert_eq!(text, "line");
}

fn since_and_until(t: &Test) {
    let id = ended(t, &[], "echo first; sleep 1.2; echo second");
    let stamped = t.cli(&["logs", "-t", &id]).ok().out();
    let second = stamped
        .lines()
        .nth(1)
        .and_then(|l| l.split(' ').next())
        .expect("two lines");
    t.cli(&["logs", "--since", second, &id])
        .ok()
        .prints("second\n");
    t.cli(&["logs", "--since", "1h", &id])
        .ok()
        .prints("first\nsecond\n");
    let between = format!("{}Z", &second[..19]); // the beginning of that second
    t.cli(&["logs", "--until", &between, &id])
        .ok()
        .prints("first\n");
}

fn follow_until_the_end(t: &Test) {
    let id = t.start_sh(&[], "for i in 1 2 3; do echo line $i; sleep 0.2; done");
    t.cli(&["logs", "-f", &id])
        .ok()
        .prints("line 1\nline 2\nline 3\n");
}

fn follow_a_quiet_container(t: &Test) {
    let id = t.start_sh(&["-i"], "echo start; read x; echo more $x; sleep 1000");
    let client = t.background(&["logs", "-f", "--tail", "1", &id]);
    client.expect("start");
    let mut attached = t.background(&["attach", &id]);
    attached.send("words\n");
    client.expect("more words");
}

fn follow_of_an_ended_container_returns(t: &Test) {
    let id = ended(t, &[], "echo over");
    t.cli(&["logs", "-f", &id]).ok().prints("over\n");
}

fn created_container_has_none(t: &Test) {
    let id = t.create(&[IMAGE]);
    t.cli(&["logs", &id]).ok().prints("");
}

fn terminal_output_is_raw(t: &Test) {
    let id = ended(t, &["-t"], "echo a; echo b >&2");
    t.cli(&["logs", &id]).ok().prints("a\r\nb\r\n");
}

fn partial_and_long_lines(t: &Test) {
    let id = ended(
        t,
        &[],
        "head -c 100000 /dev/zero | tr '\\0' x; echo; printf tail",
    );
    let text = t.cli(&["logs", &id]).ok().out();
    assert_eq!(text.len(), 100_000 + 1 + 4);
    assert!(text.ends_with("x\ntail"));
}

fn bytes_that_are_not_text(t: &Test) {
    let id = ended(t, &[], r"printf 'a\377b\n\001\033[0m<&>\n'");
    let text = t.cli(&["logs", &id]).ok().out();
    assert!(text.contains("\u{1}\u{1b}[0m<&>\n"), "{text:?}");
}

fn rotation_keeps_the_newest(t: &Test) {
    let id = ended(
        t,
        &["--log-opt", "max-size=10k", "--log-opt", "max-file=2"],
        "seq 1 5000",
    );
    let text = t.cli(&["logs", &id]).ok().out();
    assert!(text.ends_with("\n5000\n"), "the newest line is there");
    assert!(
        text.lines().count() < 1000,
        "older lines are gone: {}",
        text.lines().count()
    );
    let lines: Vec<u32> = text.lines().filter_map(|l| l.parse().ok()).collect();
    assert!(
        lines.windows(2).all(|w| w[1] == w[0] + 1),
        "no line is missing in what is left"
    );
}

fn no_log_driver(t: &Test) {
    let id = ended(t, &["--log-driver", "none"], "echo unseen");
    t.cli(&["logs", &id])
        .fails()
        .complains(&["does not support reading"]);
}

fn unknown_log_driver(t: &Test) {
    t.run(&["--rm", "--log-driver", "carrier-pigeon", IMAGE, "true"])
        .code(125)
        .complains(&["carrier-pigeon"]);
}

fn logs_of_several_runs_are_kept(t: &Test) {
    let id = ended(t, &[], "echo again");
    t.cli(&["start", &id]).ok();
    t.cli(&["wait", &id]).ok();
    t.cli(&["logs", &id]).ok().prints("again\nagain\n");
}

fn follow_survives_a_burst(t: &Test) {
    let id = t.start_sh(&["-i"], "read x; seq 1 100000; echo end");
    let client = t.background(&["logs", "-f", &id]);
    t.settle(300);
    t.cli_with_input(&["attach", &id], b"go\n").ok();
    client.expect("\n100000\nend\n");
    assert_eq!(client.stdout.text().lines().count(), 100_001);
}

cases![
    both_streams.core(),
    tail,
    timestamps,
    since_and_until,
    follow_until_the_end,
    follow_a_quiet_container,
    follow_of_an_ended_container_returns,
    created_container_has_none,
    terminal_output_is_raw,
    partial_and_long_lines,
    bytes_that_are_not_text,
    rotation_keeps_the_newest,
    no_log_driver,
    unknown_log_driver,
    logs_of_several_runs_are_kept,
    follow_survives_a_burst,
];
