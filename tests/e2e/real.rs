//! Images that none of us wrote: a Debian, a Python, a Redis, made from Debian's packages by `cargo xtask images`.

use caisson_tests::{Test, cases, client, fixture};

/// Loads a real image once per daemon, or skips.
fn image(t: &Test, name: &str) -> String {
    let reference = format!("{name}:latest");
    let archive = fixture::real_image(name).unwrap_or_else(|reason| t.skip(&reason));
    static LOADING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one_at_a_time = LOADING
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    if t.cli(&["image", "inspect", &reference]).code != 0 {
        let load = t.command(["load", "-i", &archive.display().to_string()]);
        client::run_within(load, b"", caisson_tests::patience(180))
            .ok()
            .has(&reference);
    }
    reference
}

fn debian_release(t: &Test) {
    let debian = image(t, "debian");
    t.run(&["--rm", &debian, "cat", "/etc/os-release"])
        .ok()
        .has("Debian GNU/Linux");
    t.run(&["--rm", "debian", "dpkg", "-l", "libc6"])
        .ok()
        .has("GNU C Library");
}

fn debian_interactive_bash(t: &Test) {
    let debian = image(t, "debian");
    let mut terminal = t.terminal_run(&["--rm", "-it", "--hostname", "bookworm", &debian, "bash"]);
    terminal.expect("root@bookworm:/# ");
    terminal.send("for i in 1 2 3; do echo \"line $i of ${BASH_VERSION%%.*}\"; done\n");
    terminal.expect("\nline 3 of ");
    terminal.send("su nobody -s /bin/bash -c 'id -un; stty size'\n");
    terminal.expect("nobody\r\n24 80\r\n");
    terminal.send("sleep 100\n");
    t.settle(300);
    terminal.send("\x1a");
    terminal.expect("Stopped");
    terminal.send("jobs; fg\n");
    terminal.expect("Stopped");
    terminal.expect("\nsleep 100\r\n");
    terminal.send("\x03");
    terminal.expect("^C");
    terminal.send("exit 5\n");
    assert_eq!(terminal.exit_code(), 5);
}

fn debian_as_another_user(t: &Test) {
    let debian = image(t, "debian");
    let script = "id; touch /tmp/mine; ls -l /tmp/mine; test -w /etc || echo not mine";
    t.run(&["--rm", "-u", "daemon", &debian, "bash", "-c", script])
        .ok()
        .has("uid=1(daemon)")
        .has("not mine");
}

fn debian_package_tools_work(t: &Test) {
    // dpkg-divert and friends need chown, setgid bits, hard links and fsync in the overlay to work
    let debian = image(t, "debian");
    let script = "set -e; cd /tmp; mkdir -p p/DEBIAN p/usr/share/x; echo hi > p/usr/share/x/y
        printf 'Package: x\\nVersion: 1\\nArchitecture: all\\nMaintainer: a <a@b>\\nDescription: x\\n' > p/DEBIAN/control
        dpkg-deb --root-owner-group -b p x.deb >/dev/null; dpkg -i x.deb >/dev/null; cat /usr/share/x/y; dpkg -r x >/dev/null; test ! -e /usr/share/x/y; echo removed";
    t.run(&["--rm", &debian, "bash", "-c", script])
        .ok()
        .has("hi\nremoved\n");
}

fn python_computes(t: &Test) {
    let python = image(t, "python");
    t.run(&["--rm", &python, "python3", "-c", "print(sum(range(10**6)))"])
        .ok()
        .prints("499999500000\n");
    let script = "import os, threading, subprocess
print(os.getpid(), os.cpu_count() > 0, subprocess.check_output(['echo', 'child']).decode().strip())
ts = [threading.Thread(target=lambda: None) for _ in range(20)]
[t.start() for t in ts]; [t.join() for t in ts]
print('threads joined')";
    t.run_with_input(&["--rm", "-i", &python, "python3", "-"], script.as_bytes())
        .ok()
        .prints("1 True child\nthreads joined\n");
    t.run(&["--rm", &python, "python3", "-c", "raise SystemExit(9)"])
        .code(9);
}

fn python_serves_over_loopback(t: &Test) {
    let python = image(t, "python");
    let script = "import socket, threading
s = socket.create_server(('127.0.0.1', 8000))
threading.Thread(target=lambda: s.accept()[0].sendall(b'hello over loopback')).start()
c = socket.create_connection(('127.0.0.1', 8000)); print(c.recv(100).decode())";
    t.run(&["--rm", &python, "python3", "-c", script])
        .ok()
        .prints("hello over loopback\n");
}

fn redis_answers_while_logs_follow(t: &Test) {
    let redis = image(t, "redis");
    let id = t.start(&[&redis]);
    let logs = t.background(&["logs", "-f", &id]);
    logs.expect("Ready to accept connections");
    let ask = |words: &[&str]| {
        t.cli(&[&["exec", &id, "redis-cli"], words].concat())
            .ok()
            .trimmed()
    };
    assert_eq!(ask(&["ping"]), "PONG");
    assert_eq!(ask(&["set", "key", "a value"]), "OK");
    assert_eq!(ask(&["get", "key"]), "a value");
    assert_eq!(ask(&["bgsave"]), "Background saving started");
    logs.expect("Background saving terminated with success");
    let bench = t.cli(&[
        "exec",
        &id,
        "redis-benchmark",
        "-q",
        "-n",
        "2000",
        "-t",
        "set,get",
        "-P",
        "16",
    ]);
    bench.ok().has("GET:");
    t.cli(&["restart", &id]).ok();
    t.eventually("it answers again, with its data", || {
        let answer = t.cli(&["exec", &id, "redis-cli", "get", "key"]);
        answer.code == 0 && answer.trimmed() == "a value"
    });
    t.cli(&["stop", &id]).ok();
    logs.expect("Redis is now ready to exit, bye bye");
    assert_eq!(t.inspect(&id, "{{.State.ExitCode}}"), "0");
}

fn redis_on_the_hosts_loopback(t: &Test) {
    let redis = image(t, "redis");
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("a port")
        .port();
    let id = t.start(&[
        "--network=host",
        &redis,
        "redis-server",
        "--port",
        &port.to_string(),
    ]);
    t.eventually("it answers on the host", || {
        use std::io::{Read, Write};
        let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) else {
            return false;
        };
        let mut answer = [0; 7];
        stream
            .write_all(b"PING\r\n")
            .and_then(|()| stream.read_exact(&mut answer))
            .is_ok()
            && &answer == b"+PONG\r\n"
    });
    t.cli(&["stop", &id]).ok();
}

fn save_and_load_keep_a_real_image(t: &Test) {
    let debian = image(t, "debian");
    let own = t.own_daemon(&[]);
    let path = t.directory().join("debian.tar").display().to_string();
    t.cli(&["save", "-o", &path, &debian]).ok();
    own.cli(&["load", "-i", &path]).ok();
    let count =
        "find / -xdev -type f | wc -l; find / -xdev -perm /6000 | sort | xargs ls -l | sha256sum";
    let (here, there) = (
        t.run(&["--rm", &debian, "sh", "-c", count]),
        own.run(&["--rm", &debian, "sh", "-c", count]),
    );
    let lines = |o: &caisson_tests::Outcome| o.ok().out().lines().last().map(str::to_string);
    assert_eq!(lines(&here), lines(&there));
}

cases![
    debian_release.core(),
    debian_interactive_bash.through_both(),
    debian_as_another_user,
    debian_package_tools_work,
    python_computes.through_both(),
    python_serves_over_loopback,
    redis_answers_while_logs_follow.through_both(),
    redis_on_the_hosts_loopback.container_only(),
    save_and_load_keep_a_real_image.clients(caisson_tests::case::Clients::Native),
];
