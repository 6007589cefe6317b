//! The agent in a real guest: `caisson-vmm` boots it, the test speaks `protocol` over the VMM's vsock socket.
//!
//! Needs `/dev/kvm`, busybox-static the VMM and what `cargo xtask build` leaves in `target/debug/guest`.

mod client;
mod machine;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use caisson_protocol::vmm::VmEnd;
use caisson_protocol::{
    CreateRequest, DestroyRequest, Error, ErrorKind, GuestFile, GuestSetup, Outcome, PathRequest,
    ProcessRequest, ProcessesRequest, Request, Response, Rootfs, SandboxState, SignalRequest,
    SpawnRequest, Stdio, Stream, TtySize, UpdateRequest, View, WriteOptions, WritePathRequest,
};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use client::{Chunks, Everything};
use machine::{Machine, Pieces};

const HOSTS: &str = "127.0.0.1 localhost in-a-guest\n";
const MEMORY_LIMIT: u64 = 16 << 20;

/// One machine at a time: two share two processors badly.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn raw(value: &Value) -> Box<RawValue> {
    RawValue::from_string(value.to_string()).expect("json")
}

fn spec() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "hostname": "boxed",
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
            {"destination": "/etc/hosts", "type": "bind", "source": "/run/caisson/files/0", "options": ["rbind"]},
        ],
        "linux": {
            "cgroupsPath": "/docker/abc",
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"},
                           {"type": "network", "path": "/proc/4711/ns/net"}],
            "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0", "kernel.shmmax": "1048576"},
            "resources": {
                "memory": {"limit": MEMORY_LIMIT},
                "pids": {"limit": 64},
                "cpu": {"cpus": "0-63"},
                "devices": [{"allow": false, "access": "rwm"}],
            },
            "devices": [{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}],
        },
    })
}

fn process(args: &[&str], terminal: bool) -> Value {
    json!({
        "terminal": terminal,
        "user": {"uid": 0, "gid": 0},
        "args": args,
        "env": ["PATH=/bin"],
        "cwd": "/",
        "apparmorProfile": "docker-default",
        "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
    })
}

fn create_request() -> Request {
    Request::Create(CreateRequest {
        id: "boxed".into(),
        spec: raw(&spec()),
        rootfs: Rootfs::Block {
            lower: "/dev/vdb".into(),
            upper: "/dev/vdc".into(),
        },
        reaper: false,
        guest: Some(GuestSetup {
            now: SystemTime::now(),
            entropy: vec![7; 64],
            shares: Vec::new(),
            files: vec![GuestFile {
                path: "/run/caisson/files/0".into(),
                mode: 0o644,
                content: HOSTS.into(),
            }],
            interfaces: Vec::new(),
        }),
        vm: None,
    })
}

fn named(process: &str) -> ProcessRequest {
    ProcessRequest {
        process: process.into(),
    }
}

/// Makes a process, held, and its journal.
fn spawn(
    machine: &Machine,
    id: &str,
    process: &Value,
    stdin: bool,
    size: Option<TtySize>,
) -> Result<Chunks, Error> {
    let mut client = machine.client();
    client.ask(Request::Spawn(SpawnRequest {
        process: id.into(),
        spec: raw(process),
        stdio: Stdio {
            stdin,
            stdin_once: false,
            log: None,
        },
        size,
    }))?;
    let journal = machine.client().journal(id, stdin);
    client.ask(Request::Start(named(id)))?;
    Ok(journal)
}

/// Runs a command beside the first process, to its end.
fn run(machine: &Machine, id: &str, args: &[&str]) -> Everything {
    let _timed = Timed::new(id);
    let journal = spawn(machine, id, &process(args, false), false, None).expect("starts");
    let all = journal.read_all();
    assert!(all.stderr.is_empty(), "{all:?}");
    all
}

/// Says how long something took.
struct Timed<'a>(&'a str, Instant);

impl<'a> Timed<'a> {
    fn new(what: &'a str) -> Self {
        Timed(what, Instant::now())
    }
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        eprintln!("{}: {:?}", self.0, self.1.elapsed());
    }
}

fn done(result: Result<Response, Error>) {
    assert_eq!(result, Ok(Response::Done));
}

fn files_of(tar: &[u8]) -> Vec<(PathBuf, Vec<u8>)> {
    tar::Archive::new(tar)
        .entries()
        .expect("an archive")
        .map(|entry| {
            let mut entry = entry.expect("an entry");
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("content");
            (entry.path().expect("a path").into_owned(), content)
        })
        .collect()
}

fn read_path(machine: &Machine, path: &str, view: View) -> Vec<(PathBuf, Vec<u8>)> {
    let request = Request::ReadPath(PathRequest {
        path: path.into(),
        view,
    });
    let all = machine
        .client()
        .become_chunks(request)
        .expect("a transfer")
        .read_all();
    assert_eq!(all.status, Some(Outcome::Ok(Response::Done)));
    files_of(&all.stdout)
}

/// The superblock says that it was unmounted and its journal needs no replay (fs/ext4/ext4.h).
fn is_clean(scratch: &[u8]) -> bool {
    let superblock = &scratch[1024..2048];
    let state = u16::from_le_bytes([superblock[58], superblock[59]]);
    state & 1 == 1 && superblock[96] & 0x04 == 0
}

#[test]
fn a_container_lives_behind_the_wall_and_its_end_is_the_machines() {
    let _turn = turn();
    let Some(pieces) = Pieces::find() else { return };
    let mut machine = Machine::start(&pieces);
    eprintln!("booted in {:?}", machine.booted_in);
    let mut control = machine.client();
    let early = control.ask(Request::State).expect_err("no sandbox yet");
    assert_eq!(early.kind, ErrorKind::Conflict);

    {
        let _timed = Timed::new("create");
        done(control.ask(create_request()));
    }
    let script = "while read line; do echo got $line; done; exit 7";
    let first = process(&["sh", "-c", script], false);
    let timed = Timed::new("init");
    let mut init = spawn(&machine, "init", &first, true, None).expect("starts");
    drop(timed);
    assert_eq!(
        control.ask(Request::State),
        Ok(Response::State(SandboxState::Running))
    );
    init.send(b"hello\n");
    let chunk = init.next().expect("output");
    assert_eq!(
        (chunk.stream, &chunk.bytes[..]),
        (Stream::Stdout, &b"got hello\n"[..])
    );

    what_it_sees(&machine);
    how_its_processes_end(&machine);
    terminals(&machine);
    much_output(&machine);
    files(&machine);
    limits(&machine, &mut control);
    garbage_is_hung_up_on(&machine);

    let _timed = Timed::new("destroy");
    done(control.ask(Request::Destroy(DestroyRequest { grace_ms: 0 })));
    drop((control, init));
    assert_eq!(machine.end(), VmEnd::Reset, "{}", machine.console());
    let scratch = std::fs::read(machine.path("scratch.ext4")).expect("the disk");
    assert!(is_clean(&scratch), "the scratch disk was not unmounted");
    let console = machine.console();
    let complaints = console.lines().filter(|l| l.contains("caisson-agent:"));
    let others = complaints.filter(|l| !l.contains("a client is hung up on"));
    assert_eq!(others.collect::<Vec<_>>(), Vec::<&str>::new());
}

/// Namespaces, files, kernel parameters: the guest's spec, adapted.
fn what_it_sees(machine: &Machine) {
    let facts = [
        ("cat /proc/1/comm", "sh"),
        ("cat /etc/hosts", HOSTS.trim_end()),
        ("cat /etc/from-image", "of the image"),
        ("cat /proc/self/oom_score_adj", "0"),
        ("cat /proc/self/cgroup", "0::/"),
        ("cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
        ("cat /proc/sys/kernel/shmmax", "1048576"),
        ("cat /sys/fs/cgroup/memory.max", "16777216"),
        ("hostname", "boxed"),
        ("stat -c '%a %u %g' /", "755 0 0"),
        ("ulimit -n", "1048576"),
        ("test -e /dev/sda; echo $?", "1"),
        ("echo /sys/class/net/*", "/sys/class/net/lo"),
    ];
    let (commands, answers): (Vec<&str>, Vec<&str>) = facts.into_iter().unzip();
    let script = format!(
        "{}; echo x > /tmp/now; stat -c %Y /tmp/now",
        commands.join(";")
    );
    let all = run(machine, "facts", &["sh", "-c", &script]);
    assert_eq!(all.exit_code(), Some(0));
    let text = all.text();
    let mut lines = text.lines();
    for (command, answer) in commands.iter().zip(answers) {
        assert_eq!(lines.next(), Some(answer), "{command}");
    }
    let theirs: u64 = lines
        .next()
        .and_then(|seconds| seconds.parse().ok())
        .expect("seconds");
    let ours = SystemTime::UNIX_EPOCH
        .elapsed()
        .expect("after 1970")
        .as_secs();
    assert!(ours.abs_diff(theirs) < 60, "{ours} {theirs}");
}

fn how_its_processes_end(machine: &Machine) {
    let missing = spawn(
        machine,
        "missing",
        &process(&["nothing"], false),
        false,
        None,
    )
    .err()
    .expect("no such program");
    assert_eq!(missing.kind, ErrorKind::CommandNotFound);

    let sleeper = spawn(
        machine,
        "sleeper",
        &process(&["sleep", "1000"], false),
        false,
        None,
    )
    .expect("starts");
    let mut client = machine.client();
    done(client.ask(Request::Signal(SignalRequest {
        process: "sleeper".into(),
        signal: 15,
    })));
    let waited = client.ask(Request::Wait(named("sleeper")));
    assert!(matches!(waited, Ok(Response::Exited(status)) if status.code == 143));
    assert_eq!(sleeper.read_all().exit_code(), Some(143));
    let orphan = run(machine, "orphan", &["sh", "-c", "(sleep 0.1 &) ; exit 3"]);
    assert_eq!(orphan.exit_code(), Some(3));
}

fn terminals(machine: &Machine) {
    let size = TtySize {
        rows: 40,
        columns: 100,
    };
    let asks = process(&["stty", "size"], true);
    let journal = spawn(machine, "tty", &asks, true, Some(size)).expect("starts");
    assert_eq!(journal.read_all().text(), "40 100\r\n");
}

/// More than any buffer on the way holds, read slowly at first.
fn much_output(machine: &Machine) {
    let writes = process(
        &["dd", "if=/dev/zero", "bs=64k", "count=48", "status=none"],
        false,
    );
    let journal = spawn(machine, "much", &writes, false, None).expect("starts");
    std::thread::sleep(std::time::Duration::from_millis(300));
    let all = journal.read_all();
    assert_eq!((all.stdout.len(), all.exit_code()), (3 << 20, Some(0)));
}

fn files(machine: &Machine) {
    let mut archive = tar::Builder::new(Vec::new());
    let content = vec![b'x'; 2 << 20];
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o640);
    archive
        .append_data(&mut header, "brought", &content[..])
        .expect("an entry");
    let archive = archive.into_inner().expect("an archive");
    let request = Request::WritePath(WritePathRequest {
        path: "/home".into(),
        options: WriteOptions::default(),
    });
    let mut chunks = machine.client().become_chunks(request).expect("a transfer");
    chunks.send(&archive);
    chunks.end_input();
    assert_eq!(chunks.read_all().status, Some(Outcome::Ok(Response::Done)));

    let got = read_path(machine, "/home/brought", View::Processes);
    assert_eq!(got, [(PathBuf::from("brought"), content)]);
    run(machine, "remove", &["rm", "/etc/from-image"]);
    let names: Vec<PathBuf> = read_path(machine, "/", View::Changes)
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    for name in ["home/brought", "etc/.wh.from-image"] {
        assert!(names.contains(&PathBuf::from(name)), "{name}: {names:?}");
    }
    let stat = machine.client().ask(Request::StatPath(PathRequest {
        path: "/nowhere".into(),
        view: View::Processes,
    }));
    assert_eq!(stat.expect_err("not there").kind, ErrorKind::NotFound);
}

fn limits(machine: &Machine, control: &mut client::Client) {
    let greedy = process(
        &["dd", "if=/dev/zero", "of=/dev/null", "bs=40M", "count=1"],
        false,
    );
    let journal = spawn(machine, "greedy", &greedy, false, None).expect("starts");
    match journal.read_all().status {
        Some(Outcome::Ok(Response::Exited(status))) => {
            assert_eq!((status.code, status.oom_killed), (137, true));
        }
        other => panic!("{other:?}"),
    }
    let Ok(Response::Stats(stats)) = control.ask(Request::Stats) else {
        panic!("no stats");
    };
    assert_eq!(stats.workload.memory_limit_bytes, Some(MEMORY_LIMIT));
    assert!(stats.workload.cpu_total_ns > Some(0) && stats.workload.pids >= Some(1));
    assert!(stats.networks.is_empty(), "{:?}", stats.networks);

    let more = json!({"memory": {"limit": 2 * MEMORY_LIMIT}, "cpu": {"cpus": "5"}});
    done(control.ask(Request::Update(UpdateRequest {
        resources: raw(&more),
    })));
    assert_eq!(
        run(machine, "raised", &["cat", "/sys/fs/cgroup/memory.max"]).text(),
        "33554432\n"
    );

    done(control.ask(Request::Pause));
    assert_eq!(
        control.ask(Request::State),
        Ok(Response::State(SandboxState::Paused))
    );
    done(control.ask(Request::Resume));
    let processes = control.ask(Request::Processes(ProcessesRequest {
        ps_args: String::new(),
    }));
    let Ok(Response::Processes(table)) = processes else {
        panic!("{processes:?}");
    };
    assert_eq!(table.rows.len(), 1, "{table:?}");
}

fn garbage_is_hung_up_on(machine: &Machine) {
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 64],
        &[5, 0, 0, 0, b'n', b'u', b'l', b'l', b'!'],
    ] {
        let mut stream = machine.connect();
        stream.write_all(garbage).expect("written");
        let mut rest = Vec::new();
        // Reset or closed, at once.
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{rest:?}");
    }
    assert!(machine.client().ask(Request::State).is_ok());
}

#[test]
fn a_damaged_image_is_named_and_ends_the_machine() {
    let _turn = turn();
    let Some(pieces) = Pieces::find() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("image.erofs"), vec![0x5a; 1 << 20]).expect("an image");
    let mut machine = Machine::start_on(&pieces, dir);
    let mut client = machine.client();
    let error = client.ask(create_request()).expect_err("no file system");
    for part in ["/dev/vdb", "erofs"] {
        assert!(error.message.contains(part), "{error}");
    }
    drop(client);
    assert_eq!(machine.end(), VmEnd::Reset, "{}", machine.console());
}
