//! The generation is frozen: `schema/GENERATION/*.json` holds a sample of every message, every optional field filled.
//!
//! Red when a message was added, removed or renamed; when a field was removed, renamed, retyped or made compulsory. Adding an
//! optional field stays green. After a deliberate change: bump `GENERATION`, then `CAISSON_BLESS=1 cargo test -p caisson-protocol`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use caisson_protocol::*;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use serde_json::value::RawValue;

fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.into()).expect("valid JSON")
}

fn status() -> ExitStatus {
    ExitStatus {
        code: 137,
        oom_killed: true,
        at: SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 5),
    }
}

fn process() -> ProcessRequest {
    ProcessRequest {
        process: "init".into(),
    }
}

fn requests() -> Vec<Request> {
    let size = TtySize {
        rows: 24,
        columns: 80,
    };
    vec![
        Request::Create(CreateRequest {
            id: "abc".into(),
            spec: raw(r#"{"ociVersion":"1.2.0"}"#),
            rootfs: Rootfs::Overlay {
                lower: vec!["/l".into()],
                upper: "/u".into(),
                work: "/w".into(),
            },
            reaper: true,
            guest: None,
            vm: None,
        }),
        Request::Spawn(SpawnRequest {
            process: "init".into(),
            spec: raw(r#"{"args":["true"]}"#),
            stdio: Stdio {
                stdin: true,
                stdin_once: true,
                log: Some(LogFile {
                    path: "/log".into(),
                    max_size_bytes: Some(1),
                    max_files: 2,
                }),
            },
            size: Some(size),
        }),
        Request::Start(process()),
        Request::Wait(process()),
        Request::Pid(process()),
        Request::Signal(SignalRequest {
            process: "init".into(),
            signal: 15,
        }),
        Request::Resize(ResizeRequest {
            process: "init".into(),
            size,
        }),
        Request::State,
        Request::Pause,
        Request::Resume,
        Request::Update(UpdateRequest {
            resources: raw(r#"{"pids":{"limit":3}}"#),
        }),
        Request::Stats,
        Request::Processes(ProcessesRequest {
            ps_args: "-ef".into(),
        }),
        Request::Destroy(DestroyRequest { grace_ms: 10 }),
        Request::Attach(AttachRequest {
            process: "init".into(),
            streams: Attach {
                stdin: true,
                stdout: true,
                stderr: false,
            },
            journal: false,
        }),
        Request::StatPath(PathRequest {
            path: "/etc".into(),
            view: View::Processes,
        }),
        Request::ReadPath(PathRequest {
            path: "/etc".into(),
            view: View::Rootfs,
        }),
        Request::WritePath(WritePathRequest {
            path: "/etc".into(),
            options: WriteOptions {
                no_overwrite_dir_non_dir: true,
                keep_ownership: true,
            },
        }),
    ]
}

fn guest() -> GuestSetup {
    GuestSetup {
        now: SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 5),
        entropy: vec![1, 2],
        shares: vec![Share {
            tag: "s0".into(),
            target: "/run/s0".into(),
            read_only: true,
        }],
        files: vec![GuestFile {
            path: "/run/f0".into(),
            mode: 0o644,
            content: b"x".to_vec(),
        }],
        interfaces: vec![Interface {
            name: "eth0".into(),
            mac: "02:00:00:00:00:01".into(),
            mtu: 1500,
            addresses: vec!["10.0.0.2/24".into()],
            routes: vec![Route {
                destination: "0.0.0.0/0".into(),
                gateway: Some("10.0.0.1".into()),
            }],
        }],
    }
}

fn resource_use() -> ResourceUse {
    ResourceUse {
        cpu_total_ns: Some(1),
        cpu_user_ns: Some(2),
        cpu_system_ns: Some(3),
        cpu_periods: Some(4),
        cpu_throttled_periods: Some(5),
        cpu_throttled_ns: Some(6),
        memory_bytes: Some(7),
        memory_peak_bytes: Some(8),
        memory_limit_bytes: Some(9),
        memory_detail: BTreeMap::from([("cache".into(), 10)]),
        memory_failures: Some(11),
        pids: Some(12),
        pids_limit: Some(13),
        block: vec![BlockUse {
            major: 8,
            minor: 0,
            read_bytes: 1,
            write_bytes: 2,
            read_ops: 3,
            write_ops: 4,
        }],
    }
}

fn responses() -> Vec<Response> {
    vec![
        Response::Done,
        Response::Pid(7),
        Response::Exited(status()),
        Response::State(SandboxState::Exited(status())),
        Response::Stats(Box::new(Stats {
            workload: resource_use(),
            overhead: resource_use(),
            networks: BTreeMap::from([("eth0".into(), NetworkUse::default())]),
        })),
        Response::Processes(ProcessTable {
            titles: vec!["PID".into()],
            rows: vec![vec!["1".into()]],
        }),
        Response::PathStat(PathStat {
            name: "etc".into(),
            size: 1,
            mode: 0o40755,
            mtime: SystemTime::UNIX_EPOCH,
            link_target: Some("/x".into()),
        }),
    ]
}

/// Adding a variant without a sample does not compile.
fn request_name(request: &Request) -> &'static str {
    match request {
        Request::Create(_) => "create",
        Request::Spawn(_) => "spawn",
        Request::Start(_) => "start",
        Request::Wait(_) => "wait",
        Request::Pid(_) => "pid",
        Request::Signal(_) => "signal",
        Request::Resize(_) => "resize",
        Request::State => "state",
        Request::Pause => "pause",
        Request::Resume => "resume",
        Request::Update(_) => "update",
        Request::Stats => "stats",
        Request::Processes(_) => "processes",
        Request::Destroy(_) => "destroy",
        Request::Attach(_) => "attach",
        Request::StatPath(_) => "stat_path",
        Request::ReadPath(_) => "read_path",
        Request::WritePath(_) => "write_path",
    }
}

fn response_name(response: &Response) -> &'static str {
    match response {
        Response::Done => "done",
        Response::Pid(_) => "pid",
        Response::Exited(_) => "exited",
        Response::State(_) => "state",
        Response::Stats(_) => "stats",
        Response::Processes(_) => "processes",
        Response::PathStat(_) => "path_stat",
    }
}

/// Every leaf of `old` is in `new` with the same value.
fn assert_kept(name: &str, path: &str, old: &Value, new: &Value) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in old {
                let Some(kept) = new.get(key) else {
                    panic!("{name}: {path}/{key} is gone")
                };
                assert_kept(name, &format!("{path}/{key}"), value, kept);
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (i, (old, new)) in old.iter().zip(new).enumerate() {
                assert_kept(name, &format!("{path}/{i}"), old, new);
            }
        }
        _ => assert_eq!(old, new, "{name}: {path} changed"),
    }
}

fn schema_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("schema")
        .join(GENERATION.to_string())
}

fn check<T: Serialize + DeserializeOwned>(name: &str, sample: &T, seen: &mut Vec<String>) {
    let file = schema_dir().join(format!("{name}.json"));
    seen.push(format!("{name}.json"));
    if std::env::var_os("CAISSON_BLESS").is_some() {
        std::fs::create_dir_all(schema_dir()).expect("schema directory");
        std::fs::write(
            &file,
            serde_json::to_string_pretty(sample).expect("serializable") + "\n",
        )
        .expect("schema written");
    }
    let text = std::fs::read_to_string(&file).unwrap_or_else(|e| {
        panic!(
            "{name} is new in generation {GENERATION} ({e}): a new message takes a new generation"
        )
    });
    let parsed: T = serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("{name}: the frozen message is refused: {e}"));
    let old: Value = serde_json::from_str(&text).expect("JSON");
    let again: Value =
        serde_json::from_str(&serde_json::to_string(&parsed).expect("serializable")).expect("JSON");
    assert_kept(name, "", &old, &again);
    let sent: Value =
        serde_json::from_str(&serde_json::to_string(sample).expect("serializable")).expect("JSON");
    assert_kept(name, "", &old, &sent);
}

#[test]
fn no_message_of_the_generation_has_changed() {
    let mut seen = Vec::new();
    check(
        "hello",
        &Hello {
            generation: GENERATION,
            version: "0.1.0".into(),
            pid: Some(1),
        },
        &mut seen,
    );
    for request in requests() {
        let name = format!("request-{}", request_name(&request));
        check(&name, &RequestFrame { id: 1, request }, &mut seen);
    }
    for response in responses() {
        let name = format!("response-{}", response_name(&response));
        check(
            &name,
            &ResponseFrame {
                id: 1,
                outcome: Outcome::Ok(response),
            },
            &mut seen,
        );
    }
    for state in [
        SandboxState::Created,
        SandboxState::Held,
        SandboxState::Running,
        SandboxState::Paused,
    ] {
        let name = format!("state-{}", format!("{state:?}").to_lowercase());
        check(&name, &state, &mut seen);
    }
    for kind in [
        ErrorKind::NotFound,
        ErrorKind::Invalid,
        ErrorKind::Conflict,
        ErrorKind::CommandNotFound,
        ErrorKind::CommandNotExecutable,
        ErrorKind::HostUnfit,
        ErrorKind::Lost,
        ErrorKind::Internal,
    ] {
        let name = format!("error-{}", format!("{kind:?}").to_lowercase());
        check(
            &name,
            &ResponseFrame {
                id: 1,
                outcome: Outcome::Error(Error::new(kind, "why")),
            },
            &mut seen,
        );
    }
    check(
        "rootfs-directory",
        &Rootfs::Directory("/r".into()),
        &mut seen,
    );
    check(
        "rootfs-block",
        &Rootfs::Block {
            lower: "/dev/vdb".into(),
            upper: "/dev/vdc".into(),
        },
        &mut seen,
    );
    check("guest", &guest(), &mut seen);
    check("view-changes", &View::Changes, &mut seen);
    check(
        "attach-journal",
        &AttachRequest {
            process: "init".into(),
            streams: Attach {
                stdin: false,
                stdout: true,
                stderr: true,
            },
            journal: true,
        },
        &mut seen,
    );

    let mut frozen: Vec<String> = std::fs::read_dir(schema_dir())
        .expect("schema directory")
        .map(|e| e.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    frozen.sort();
    seen.sort();
    assert_eq!(frozen, seen, "a message of the generation is gone");
}

#[test]
fn unknown_fields_are_ignored() {
    let json = r#"{"generation":1,"version":"9","from_the_future":{"a":1}}"#;
    assert_eq!(
        serde_json::from_str::<Hello>(json)
            .expect("tolerant")
            .version,
        "9"
    );
}
