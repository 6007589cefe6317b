//! starting the daemon on demand: `caisson run …` just works on a machine where nothing listens yet.
//!
//! ```text
//! connect fails ─▶ root? ─no─▶ explain
//!                   │yes
//!                   ▼
//!        flock /run/caisson.start.lock  (two commands at once start one daemon; the loser finds the socket answering)
//!                   ▼
//!        answering now? ─yes─▶ done
//!                   │no
//!                   ▼
//!        spawn `caisson daemon`, own session, output to the log ─▶ poll the socket ≤ 20 s ─▶ failed: show the log's tail
//! ```

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

/// Set for a daemon started on demand: it begins a session of its own before anything else.
pub const OWN_SESSION: &str = "CAISSON_OWN_SESSION";
const READY_WITHIN: Duration = Duration::from_secs(20);
const POLL_EVERY: Duration = Duration::from_millis(5);
const LOG_PATHS: [&str; 2] = ["/var/log/caisson.log", "/run/caisson/daemon.log"];

/// Makes sure that a daemon answers at `socket`; on return it accepts connections.
pub async fn ensure_daemon(socket: &Path) -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err(format!(
            "no daemon answers at {}, and starting one needs root.\nStart it with: sudo caisson daemon",
            socket.display()
        ));
    }
    let socket = socket.to_owned();
    tokio::task::spawn_blocking(move || start_once(&socket))
        .await
        .map_err(|e| format!("starting the daemon was interrupted: {e}"))?
}

/// Whether a daemon serves requests there: a socket that only accepts may belong to one that is about to fail.
fn answers(socket: &Path) -> bool {
    let ping = || -> std::io::Result<bool> {
        let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(READY_WITHIN))?;
        stream.write_all(b"GET /_ping HTTP/1.1\r\nHost: caisson\r\nConnection: close\r\n\r\n")?;
        let mut status = [0u8; 12];
        stream.read_exact(&mut status)?;
        Ok(&status == b"HTTP/1.1 200")
    };
    ping().unwrap_or(false)
}

fn start_once(socket: &Path) -> Result<(), String> {
    let lock_path = PathBuf::from(format!(
        "{}.start.lock",
        socket.with_extension("").display()
    ));
    let lock_file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .map_err(|e| format!("could not open {}: {e}", lock_path.display()))?;
    let _lock = Flock::lock(lock_file, FlockArg::LockExclusive)
        .map_err(|(_, e)| format!("could not lock {}: {e}", lock_path.display()))?;
    if answers(socket) {
        return Ok(());
    }
    let (log, log_path) = open_log()?;
    let log_start = log.metadata().map(|m| m.len()).unwrap_or(0);
    let mut child = spawn(&log)?;
    let started = Instant::now();
    loop {
        if answers(socket) {
            return Ok(());
        }
        if let Some(status) = child
            .try_wait()
            .map_err(|e| format!("could not watch the daemon: {e}"))?
        {
            return Err(format!(
                "the daemon did not start ({status}). The end of {}:\n{}",
                log_path.display(),
                tail(&log_path, log_start)
            ));
        }
        if started.elapsed() > READY_WITHIN {
            return Err(format!(
                "the daemon (pid {}) was started but does not answer at {} within {} s. The end of {}:\n{}",
                child.id(),
                socket.display(),
                READY_WITHIN.as_secs(),
                log_path.display(),
                tail(&log_path, log_start)
            ));
        }
        std::thread::sleep(POLL_EVERY);
    }
}

fn open_log() -> Result<(File, PathBuf), String> {
    let mut reasons = Vec::new();
    for path in LOG_PATHS {
        if let Some(parent) = Path::new(path).parent() {
            // Opening below says what is wrong if this failed.
            let _ = std::fs::create_dir_all(parent);
        }
        match OpenOptions::new().create(true).append(true).open(path) {
            Ok(file) => return Ok((file, path.into())),
            Err(e) => reasons.push(format!("{path}: {e}")),
        }
    }
    Err(format!(
        "could not open a log for the daemon ({})",
        reasons.join("; ")
    ))
}

fn spawn(log: &File) -> Result<Child, String> {
    let executable = std::env::current_exe()
        .map_err(|e| format!("could not find the caisson executable: {e}"))?;
    let output = |file: &File| file.try_clone().map(Stdio::from).map_err(|e| e.to_string());
    // The child makes itself a session leader first thing (see `main`), so that no terminal's fate is its own.
    Command::new(&executable)
        .arg("daemon")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(output(log)?)
        .stderr(output(log)?)
        .env(OWN_SESSION, "1")
        .spawn()
        .map_err(|e| format!("could not start {} daemon: {e}", executable.display()))
}

/// The last lines written to the log since `from`.
fn tail(path: &Path, from: u64) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(from.max(length.saturating_sub(4096))))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) if text.trim().is_empty() => "  (empty)".to_owned(),
        Ok(text) => {
            let lines: Vec<&str> = text.lines().collect();
            let last = &lines[lines.len().saturating_sub(12)..];
            last.iter()
                .map(|l| format!("  {l}"))
                .collect::<Vec<_>>()
                .join("\n")
        }
        Err(e) => format!("  (unreadable: {e})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answered_ping_counts_as_a_daemon() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let socket = directory.path().join("s");
        assert!(!answers(&socket), "nothing there");
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
        let server = std::thread::spawn(move || {
            for reply in [
                &b""[..],
                b"HTTP/1.1 500 Oops\r\n\r\n",
                b"HTTP/1.1 200 OK\r\n\r\nOK",
            ] {
                let (mut stream, _) = listener.accept().expect("a client");
                let mut request = [0u8; 16];
                stream.read_exact(&mut request).expect("a request");
                stream.write_all(reply).expect("sent");
            }
        });
        assert!(!answers(&socket), "accepted and closed");
        assert!(!answers(&socket), "an error");
        assert!(answers(&socket), "a daemon");
        server.join().expect("served");
    }

    #[test]
    fn the_tail_shows_what_this_start_wrote() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), "old\nnew one\nnew two\n").expect("written");
        assert_eq!(tail(file.path(), 4), "  new one\n  new two");
        assert_eq!(tail(file.path(), 20), "  (empty)");
        assert!(tail(Path::new("/nonexistent/x"), 0).starts_with("  (unreadable"));
    }
}
