//! Standard streams, terminals, logs.

use std::time::Duration;

use caisson_runtime::*;
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;

use crate::bench::*;

crate::contract! {
    several_attachments_see_everything, attaching_late_sees_the_rest, attaching_after_the_end_ends_at_once,
    stdin_reaches_the_process, stdin_once_closes, stdin_stays_open_without_once, a_terminal_has_a_size,
    a_terminal_takes_input, one_stream_only, a_background_child_does_not_hold_the_wait, the_log_is_complete,
    an_unfinished_line_is_logged_at_the_end, a_client_that_leaves_does_not_harm, no_stdin_is_dev_null,
    log_rotation_keeps_the_end, destroy_does_not_cut_a_slow_client_short,
    output_without_reader_or_log_is_discarded, a_log_that_cannot_be_opened_is_an_error,
}

fn interactive(once: bool) -> Stdio {
    Stdio {
        stdin: true,
        stdin_once: once,
        log: None,
    }
}

async fn several_attachments_see_everything(bench: &Bench) {
    let sandbox = bench.create().await;
    let init = ProcessId::init();
    sandbox
        .spawn(
            &init,
            sh("seq 1 1000; seq 1 1000 >&2"),
            Stdio::default(),
            None,
        )
        .await
        .expect("spawned");
    let mut attachments = Vec::new();
    for _ in 0..5 {
        attachments.push(tokio::spawn(collect(
            sandbox.attach(&init, OUTPUTS).await.expect("attached"),
        )));
    }
    sandbox.start(&init).await.expect("started");
    let expected: String = (1..=1000).map(|n| format!("{n}\n")).collect();
    for attachment in attachments {
        let collected = attachment.await.expect("collected");
        assert_eq!(collected.out(), expected);
        assert_eq!(collected.stderr, expected.as_bytes());
    }
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn one_stream_only(bench: &Bench) {
    let sandbox = bench.create().await;
    let init = ProcessId::init();
    sandbox
        .spawn(&init, sh("echo out; echo err >&2"), Stdio::default(), None)
        .await
        .expect("spawned");
    let only = Attach {
        stdin: false,
        stdout: false,
        stderr: true,
    };
    let io = sandbox.attach(&init, only).await.expect("attached");
    assert!(io.input.is_none());
    sandbox.start(&init).await.expect("started");
    let collected = collect(io).await;
    assert_eq!(
        (collected.out().as_str(), &collected.stderr[..]),
        ("", &b"err\n"[..])
    );
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn attaching_late_sees_the_rest(bench: &Bench) {
    let sandbox = bench.create().await;
    let init = ProcessId::init();
    sandbox
        .spawn(
            &init,
            sh("echo early; read x; echo late"),
            interactive(true),
            None,
        )
        .await
        .expect("spawned");
    let mut first = sandbox.attach(&init, OUTPUTS).await.expect("attached");
    sandbox.start(&init).await.expect("started");
    first.output.next().await.expect("output").expect("output");
    let mut second = sandbox.attach(&init, ALL).await.expect("attached");
    second
        .input
        .as_mut()
        .expect("input")
        .write_all(b"go\n")
        .await
        .expect("written");
    assert_eq!(collect(second).await.out(), "late\n");
    assert_eq!(collect(first).await.out(), "late\n");
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn attaching_after_the_end_ends_at_once(bench: &Bench) {
    let sandbox = bench.running("echo gone").await;
    let init = ProcessId::init();
    sandbox.wait(&init).await.expect("ended");
    let io = sandbox.attach(&init, ALL).await.expect("attached");
    let collected = tokio::time::timeout(Duration::from_secs(5), collect(io))
        .await
        .expect("at once");
    assert_eq!(collected.out(), "");
    assert_eq!(
        sandbox
            .attach(&ProcessId("x".into()), ALL)
            .await
            .err()
            .expect("unknown")
            .kind,
        ErrorKind::NotFound
    );
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn stdin_reaches_the_process(bench: &Bench) {
    let sandbox = bench.create().await;
    let init = ProcessId::init();
    sandbox
        .spawn(&init, process(&["cat"]), interactive(true), None)
        .await
        .expect("spawned");
    let io = sandbox.attach(&init, ALL).await.expect("attached");
    sandbox.start(&init).await.expect("started");
    let data: Vec<u8> = (0..5_000_000u32).map(|n| (n % 251) as u8).collect();
    let ProcessIo { output, input } = io;
    let mut input = input.expect("input");
    let sent = data.clone();
    let sending = tokio::spawn(async move {
        input.write_all(&sent).await.expect("written");
        input.shutdown().await.expect("shut down");
    });
    let collected = collect(ProcessIo {
        output,
        input: None,
    })
    .await;
    sending.await.expect("sent");
    assert!(
        collected.stdout == data,
        "{} of {} bytes",
        collected.stdout.len(),
        data.len()
    );
    assert_eq!(sandbox.wait(&init).await.expect("ended").code, 0);
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn stdin_once_closes(bench: &Bench) {
    let sandbox = bench.create().await;
    let init = ProcessId::init();
    sandbox
        .spawn(&init, process(&["cat"]), interactive(true), None)
        .await
        .expect("spawned");
    let mut io = sandbox.attach(&init, ALL).await.expect("attached");
    let watcher = sandbox.attach(&init, OUTPUTS).await.expect("attached");
    sandbox.start(&init).await.expect("started");
    io.input
        .as_mut()
        .expect("input")
        .write_all(b"last words")
        .await
        .expect("written");
    // The client vanishes without a word: what it had sent arrives, then the end.
    drop(io);
    assert_eq!(collect(watcher).await.out(), "last words");
    assert_eq!(sandbox.wait(&init).await.expect("ended").code, 0);
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn stdin_stays_open_without_once(bench: &Bench) {
    let sandbox = bench.create().await;
    let init = ProcessId::init();
    sandbox
        .spawn(
            &init,
            sh("read a; echo $a; read b; echo $b"),
            interactive(false),
            None,
        )
        .await
        .expect("spawned");
    let watcher = sandbox.attach(&init, OUTPUTS).await.expect("attached");
    sandbox.start(&init).await.expect("started");
    for word in ["one\n", "two\n"] {
        let mut io = sandbox.attach(&init, ALL).await.expect("attached");
        let mut input = io.input.take().expect("input");
        input.write_all(word.as_bytes()).await.expect("written");
        input.shutdown().await.expect("shut down");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(collect(watcher).await.out(), "one\ntwo\n");
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn no_stdin_is_dev_null(bench: &Bench) {
    let (output, status) = bench.run("cat; readlink /proc/self/fd/0").await;
    assert_eq!((output.out().as_str(), status.code), ("/dev/null\n", 0));
}

async fn a_terminal_has_a_size(bench: &Bench) {
    let sandbox = bench.create().await;
    let init = ProcessId::init();
    let size = Some(TtySize {
        rows: 33,
        columns: 101,
    });
    let script = "stty size; read x; stty size; test -t 0 && test -t 1 && test -t 2 && echo tty";
    sandbox
        .spawn(&init, with_terminal(sh(script)), interactive(true), size)
        .await
        .expect("spawned");
    let mut io = sandbox.attach(&init, ALL).await.expect("attached");
    sandbox.start(&init).await.expect("started");
    let mut seen = String::new();
    while !seen.contains("33 101") {
        match io.output.next().await.expect("output").expect("output") {
            Output::Stdout(bytes) => seen += &String::from_utf8_lossy(&bytes),
            Output::Stderr(_) => panic!("a terminal has one output"),
        }
    }
    sandbox
        .resize_tty(
            &init,
            TtySize {
                rows: 24,
                columns: 80,
            },
        )
        .await
        .expect("resized");
    io.input
        .as_mut()
        .expect("input")
        .write_all(b"go\n")
        .await
        .expect("written");
    let rest = collect(io).await.out();
    assert!(
        rest.contains("24 80\r\n") && rest.contains("tty\r\n"),
        "{rest:?}"
    );
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");

    let sandbox = bench.running("sleep 1000").await;
    let error = sandbox
        .resize_tty(
            &init,
            TtySize {
                rows: 1,
                columns: 1,
            },
        )
        .await
        .expect_err("no terminal");
    assert_eq!(error.kind, ErrorKind::Conflict);
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn a_terminal_takes_input(bench: &Bench) {
    let sandbox = bench.running("sleep 1000").await;
    let id = ProcessId("shell".into());
    sandbox
        .spawn(
            &id,
            with_terminal(process(&["sh", "-i"])),
            interactive(true),
            None,
        )
        .await
        .expect("spawned");
    let mut io = sandbox.attach(&id, ALL).await.expect("attached");
    sandbox.start(&id).await.expect("started");
    let mut input = io.input.take().expect("input");
    input
        .write_all(b"echo $((6 * 7))\n")
        .await
        .expect("written");
    // Control-C ends a foreground process, not the shell.
    input.write_all(b"sleep 1000\n").await.expect("written");
    bench.moment(300).await;
    input.write_all(b"\x03").await.expect("written");
    bench.moment(100).await;
    input.write_all(b"exit 6\n").await.expect("written");
    let output = collect(io).await.out();
    assert!(output.contains("42\r\n"), "{output:?}");
    assert_eq!(sandbox.wait(&id).await.expect("ended").code, 6);
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn a_background_child_does_not_hold_the_wait(bench: &Bench) {
    let sandbox = bench.running("sleep 1000").await;
    let id = ProcessId("e".into());
    sandbox
        .spawn(&id, sh("(sleep 1000) & echo done"), Stdio::default(), None)
        .await
        .expect("spawned");
    let io = sandbox.attach(&id, OUTPUTS).await.expect("attached");
    sandbox.start(&id).await.expect("started");
    let status = tokio::time::timeout(Duration::from_secs(1), sandbox.wait(&id))
        .await
        .expect("at once");
    assert_eq!(status.expect("ended").code, 0);
    let collected = tokio::time::timeout(Duration::from_secs(5), collect(io))
        .await
        .expect("after the grace");
    assert_eq!(collected.out(), "done\n");
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn the_log_is_complete(bench: &Bench) {
    let sandbox = bench.create().await;
    let init = ProcessId::init();
    let log = bench.log_path(sandbox.id());
    sandbox
        .spawn(&init, sh("seq 1 100000; echo err >&2"), log_to(&log), None)
        .await
        .expect("spawned");
    sandbox.start(&init).await.expect("started");
    sandbox.wait(&init).await.expect("ended");
    // Complete the moment that the wait returns.
    let expected: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    assert!(logged(&log, "stdout") == expected);
    assert_eq!(logged(&log, "stderr"), "err\n");
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn an_unfinished_line_is_logged_at_the_end(bench: &Bench) {
    let sandbox = bench.create().await;
    let init = ProcessId::init();
    let log = bench.log_path(sandbox.id());
    sandbox
        .spawn(&init, sh("echo -n unfinished"), log_to(&log), None)
        .await
        .expect("spawned");
    sandbox.start(&init).await.expect("started");
    sandbox.wait(&init).await.expect("ended");
    assert_eq!(logged(&log, "stdout"), "unfinished");
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn log_rotation_keeps_the_end(bench: &Bench) {
    let sandbox = bench.create().await;
    let init = ProcessId::init();
    let path = bench.log_path(sandbox.id());
    let log = LogFile {
        path: path.clone(),
        max_size_bytes: Some(100_000),
        max_files: 3,
    };
    let stdio = Stdio {
        log: Some(log),
        ..Stdio::default()
    };
    sandbox
        .spawn(&init, sh("seq 1 20000"), stdio, None)
        .await
        .expect("spawned");
    sandbox.start(&init).await.expect("started");
    sandbox.wait(&init).await.expect("ended");
    let numbered = |n: u32| std::path::PathBuf::from(format!("{}.{n}", path.display()));
    let kept: String = [numbered(2), numbered(1), path.clone()]
        .iter()
        .map(|p| logged(p, "stdout"))
        .collect();
    let everything: String = (1..=20_000).map(|n| format!("{n}\n")).collect();
    assert!(everything.ends_with(&kept) && kept.len() > 10_000);
    assert!(!numbered(3).exists());
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn a_log_that_cannot_be_opened_is_an_error(bench: &Bench) {
    let sandbox = bench.create().await;
    let log = bench.dir.path().join("no/such/dir.log");
    let error = sandbox
        .spawn(&ProcessId::init(), sh("true"), log_to(&log), None)
        .await
        .expect_err("no directory");
    assert!(error.message.contains("dir.log"), "{error}");
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn a_client_that_leaves_does_not_harm(bench: &Bench) {
    let sandbox = bench.create().await;
    let init = ProcessId::init();
    sandbox
        .spawn(&init, sh("yes | head -c 20000000"), Stdio::default(), None)
        .await
        .expect("spawned");
    let leaver = sandbox.attach(&init, OUTPUTS).await.expect("attached");
    let stayer = tokio::spawn(collect(
        sandbox.attach(&init, OUTPUTS).await.expect("attached"),
    ));
    sandbox.start(&init).await.expect("started");
    // It reads nothing, so the process stalls; when it goes, the process goes on.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(
        sandbox.state().await.expect("a state"),
        SandboxState::Running
    );
    drop(leaver);
    assert_eq!(stayer.await.expect("collected").stdout.len(), 20_000_000);
    assert_eq!(sandbox.wait(&init).await.expect("ended").code, 0);
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn destroy_does_not_cut_a_slow_client_short(bench: &Bench) {
    let sandbox = bench.create().await;
    let init = ProcessId::init();
    sandbox
        .spawn(
            &init,
            sh("yes | head -c 1000000; echo end >&2"),
            Stdio::default(),
            None,
        )
        .await
        .expect("spawned");
    let io = sandbox.attach(&init, OUTPUTS).await.expect("attached");
    sandbox.start(&init).await.expect("started");
    sandbox.wait(&init).await.expect("ended");
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
    let collected = collect(io).await;
    assert_eq!(
        (collected.stdout.len(), &collected.stderr[..]),
        (1_000_000, &b"end\n"[..])
    );
}

async fn output_without_reader_or_log_is_discarded(bench: &Bench) {
    let sandbox = bench.running("yes | head -c 50000000").await;
    assert_eq!(
        sandbox.wait(&ProcessId::init()).await.expect("ended").code,
        0
    );
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}
