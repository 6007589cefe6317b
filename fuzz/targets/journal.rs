//! What the agent of a hostile guest says on a process' journal: the shim writes it into the log and into an exit record.
//! Whatever it is, the log's files hold whole lines of JSON and keep their limits.

#![no_main]

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use caisson_fuzz::seeds;
use caisson_protocol::{FrameDecoder, LogFile, Stream, chunk_header};
use caisson_shim::json_log::JsonLog;
use caisson_shim::vm::journal::Journal;
use caisson_shim::vm::processes::Processes;
use libfuzzer_sys::fuzz_target;

const PROCESS: &str = "init";
const LIMIT: u64 = 1000;
const FILES: u32 = 3;

fuzz_target!(init: seeds::plant(journals()), |data: &[u8]| run(data));

fn run(data: &[u8]) {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let path = dir.path().join("log");
    let file = LogFile {
        path,
        max_size_bytes: Some(LIMIT),
        max_files: FILES,
    };
    let log = JsonLog::open(&file).expect("a log");
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let agent = {
        let bytes = data.to_vec();
        let mut ours = ours;
        std::thread::spawn(move || {
            // a shim that has hung up listens to nothing
            let _ = ours.write_all(&bytes);
            let _ = ours.shutdown(Shutdown::Write);
            let _ = ours.read_to_end(&mut Vec::new());
        })
    };
    let processes = Arc::new(Processes::new(dir.path()));
    let handle = theirs.try_clone().expect("a socket");
    processes.add(PROCESS, handle).expect("nothing has ended");
    if let Ok(journal) = Journal::open(PROCESS, Some(log), (theirs, FrameDecoder::default())) {
        let told = journal.keep(PROCESS, &processes);
        assert_eq!(told, processes.status(PROCESS).is_some());
    }
    drop(processes);
    agent.join().expect("a thread");
    let names = fs::read_dir(dir.path()).expect("a directory");
    let logs: Vec<_> = names
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.file_stem().is_some_and(|stem| stem == "log"))
        .collect();
    assert!(logs.len() <= FILES as usize);
    logs.iter().for_each(|log| check(log));
}

fn check(log: &Path) {
    let content = fs::read(log).expect("a log");
    assert!(content.is_empty() || content.ends_with(b"\n"));
    let lines: Vec<_> = content.split_inclusive(|byte| *byte == b'\n').collect();
    assert!(content.len() as u64 <= LIMIT || lines.len() == 1);
    for line in lines {
        let line: serde_json::Value = serde_json::from_slice(line).expect("a line of JSON");
        assert!(line["log"].as_str().is_some_and(|text| !text.is_empty()));
    }
}

/// The answer to the request for the journal, then output, then the end.
fn journals() -> Vec<Vec<u8>> {
    let chunk = |stream, bytes: &[u8]| [&chunk_header(stream, bytes.len())[..], bytes].concat();
    let answer = seeds::frame(br#"{"id":1,"outcome":{"ok":"done"}}"#);
    let exited = br#"{"ok":{"exited":{"code":3,"oom_killed":false,"at":{"secs_since_epoch":1,"nanos_since_epoch":2}}}}"#;
    let ended = [
        chunk(Stream::Stdout, b""),
        chunk(Stream::Stderr, b""),
        chunk(Stream::Status, exited),
    ]
    .concat();
    let said = [
        chunk(Stream::Stdout, b"hello\n"),
        chunk(
            Stream::Stderr,
            "half a line, \u{2028}<\"\u{1f600}".as_bytes(),
        ),
        chunk(Stream::Stdout, b"\xf0\x9f\x98 \x1b[0m\r\n\n"),
        chunk(Stream::Stdout, &[b'x'; 900]),
        chunk(Stream::Stdout, &[b'\n'; 20]),
    ]
    .concat();
    let refused = seeds::frame(
        br#"{"id":1,"outcome":{"error":{"kind":"not_found","message":"no process"}}}"#,
    );
    vec![
        [&answer[..], &said, &ended].concat(),
        [&answer[..], &ended, &said].concat(),
        refused,
    ]
}
