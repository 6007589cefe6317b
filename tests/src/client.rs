//! The command lines that drive an engine, run to their end or in the background.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::target::{binary, on_path};

/// How long a client may take before the case fails.
pub const TIMEOUT_S: u64 = 60;

/// A command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cli {
    /// Ours.
    Caisson,
    /// The newest stock docker CLI on this machine.
    Docker,
    /// Another, older stock docker CLI (Debian's, where a newer one is first on `PATH`).
    OldDocker,
}

impl Cli {
    /// Its name in test names.
    pub fn name(self) -> &'static str {
        match self {
            Cli::Caisson => "caisson",
            Cli::Docker => "docker",
            Cli::OldDocker => "old_docker",
        }
    }

    /// Where it is, or why a test with it must be skipped.
    pub fn locate(self) -> Result<PathBuf, String> {
        let missing =
            || "no docker command line on this machine: apt-get install docker.io".to_string();
        match self {
            Cli::Caisson => Ok(binary("caisson")),
            Cli::Docker => on_path("docker").ok_or_else(missing),
            Cli::OldDocker => {
                let debian = PathBuf::from("/usr/bin/docker");
                match on_path("docker") {
                    Some(first) if first != debian && debian.exists() => Ok(debian),
                    Some(_) => Err("only one docker command line on this machine".into()),
                    None => Err(missing()),
                }
            }
        }
    }

    /// A command that talks to `host`, with a home directory of its own.
    pub fn command(self, host: &str, home: &std::path::Path) -> Command {
        let mut command = Command::new(self.locate().unwrap_or_else(|reason| panic!("{reason}")));
        command.env_clear();
        for name in ["PATH", "LANG"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .env("HOME", home)
            .env("TERM", "xterm")
            .arg("-H")
            .arg(host);
        command
    }
}

/// How a client ended.
pub struct Outcome {
    /// The command, for messages.
    pub command: String,
    /// Exit code; 128+n when signal n ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// How long it took.
    pub took: Duration,
}

impl Outcome {
    /// Standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Standard output without surrounding white space.
    pub fn trimmed(&self) -> String {
        self.out().trim().to_string()
    }

    /// Everything, for a failure message.
    pub fn dump(&self) -> String {
        let clip = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            let mut end = text.len().min(4000);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text[..end].to_string()
        };
        format!(
            "$ {}\n(exit {}, {:?})\n--- stdout\n{}\n--- stderr\n{}",
            self.command,
            self.code,
            self.took,
            clip(&self.stdout),
            clip(&self.stderr)
        )
    }

    /// Fails the case unless the exit code is `code`.
    #[track_caller]
    pub fn code(&self, code: i32) -> &Self {
        assert!(
            self.code == code,
            "expected exit code {code}\n{}",
            self.dump()
        );
        self
    }

    /// Fails the case unless it succeeded.
    #[track_caller]
    pub fn ok(&self) -> &Self {
        self.code(0)
    }

    /// Fails the case unless it failed.
    #[track_caller]
    pub fn fails(&self) -> &Self {
        assert!(self.code != 0, "expected a failure\n{}", self.dump());
        self
    }

    /// Fails the case unless standard output is exactly this.
    #[track_caller]
    pub fn prints(&self, text: &str) -> &Self {
        assert!(
            self.out() == text,
            "expected standard output {text:?}\n{}",
            self.dump()
        );
        self
    }

    /// Fails the case unless standard output contains this.
    #[track_caller]
    pub fn has(&self, text: &str) -> &Self {
        assert!(
            self.out().contains(text),
            "expected {text:?} in standard output\n{}",
            self.dump()
        );
        self
    }

    /// Fails the case if standard output contains this.
    #[track_caller]
    pub fn lacks(&self, text: &str) -> &Self {
        assert!(
            !self.out().contains(text),
            "unexpected {text:?} in standard output\n{}",
            self.dump()
        );
        self
    }

    /// Fails the case unless standard error contains one of these, letter case ignored.
    #[track_caller]
    pub fn complains(&self, texts: &[&str]) -> &Self {
        let err = self.err().to_lowercase();
        let found = texts.iter().any(|text| err.contains(&text.to_lowercase()));
        assert!(
            found,
            "expected one of {texts:?} in standard error\n{}",
            self.dump()
        );
        self
    }
}

/// A command as a user would type it.
pub fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|part| {
            let text = part.to_string_lossy();
            if text.is_empty() || text.contains([' ', '\n', '"', '\'', '$']) {
                format!("{text:?}")
            } else {
                text.into_owned()
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs a command to its end with `input` on its standard input.
pub fn run(command: Command, input: &[u8]) -> Outcome {
    run_within(command, input, crate::patience(TIMEOUT_S))
}

/// Like [`run`], with a time limit of its own.
#[track_caller]
pub fn run_within(mut command: Command, input: &[u8], limit: Duration) -> Outcome {
    let text = shown(&command);
    let began = Instant::now();
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if input.is_empty() {
        Stdio::null()
    } else {
        Stdio::piped()
    });
    let mut child = command
        .spawn()
        .unwrap_or_else(|e| panic!("cannot run {text}: {e}"));
    let feeder = child.stdin.take().map(|mut pipe| {
        let input = input.to_vec();
        std::thread::spawn(move || {
            let _ = pipe.write_all(&input); // the other side may stop reading: its exit code tells
        })
    });
    let stdout = drain(child.stdout.take().expect("piped"));
    let stderr = drain(child.stderr.take().expect("piped"));
    let code = wait(&mut child, limit);
    let timed_out = code.is_none();
    if timed_out {
        let _ = child.kill();
        let _ = child.wait();
    }
    let outcome = Outcome {
        command: text,
        code: code.unwrap_or(-1),
        stdout: stdout.join().expect("reader does not panic"),
        stderr: stderr.join().expect("reader does not panic"),
        took: began.elapsed(),
    };
    if let Some(feeder) = feeder {
        let _ = feeder.join();
    }
    assert!(
        !timed_out,
        "did not end within {limit:?}\n{}",
        outcome.dump()
    );
    outcome
}

fn drain(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

/// The exit code, or `None` when it still runs after `limit`.
pub fn wait(child: &mut Child, limit: Duration) -> Option<i32> {
    use std::os::unix::process::ExitStatusExt;
    let until = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait().expect("our own child can be waited for") {
            return Some(
                status
                    .code()
                    .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            );
        }
        if Instant::now() >= until {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Text that grows while a test waits for something to appear in it.
#[derive(Default)]
pub struct Transcript {
    state: Mutex<(Vec<u8>, bool)>,
    grown: Condvar,
}

impl Transcript {
    /// Copies everything from `source` until its end.
    pub fn follow(self: &Arc<Self>, mut source: impl Read + Send + 'static) {
        let this = self.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 65536];
            loop {
                let count = source.read(&mut buffer).unwrap_or(0); // a closed terminal reads as an error
                let mut state = this.state.lock().expect("no panic while held");
                state.0.extend_from_slice(&buffer[..count]);
                state.1 |= count == 0;
                this.grown.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
    }

    /// Everything so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.state.lock().expect("no panic while held").0).into_owned()
    }

    /// Waits until `text` appears at or after byte `from` and returns the position behind it.
    #[track_caller]
    pub fn expect_from(&self, from: usize, text: &str, limit: Duration) -> usize {
        let until = Instant::now() + limit;
        let mut state = self.state.lock().expect("no panic while held");
        loop {
            let seen = &state.0[from.min(state.0.len())..];
            if let Some(at) = seen
                .windows(text.len())
                .position(|window| window == text.as_bytes())
            {
                return from + at + text.len();
            }
            let now = Instant::now();
            if state.1 || now >= until {
                let why = if state.1 {
                    "the output ended"
                } else {
                    "waited too long"
                };
                let seen = String::from_utf8_lossy(seen).into_owned();
                drop(state);
                panic!("expected {text:?}, but {why}; seen: {seen:?}");
            }
            state = self
                .grown
                .wait_timeout(state, until - now)
                .expect("no panic while held")
                .0;
        }
    }
}

/// A client that keeps running while the test goes on. Killed when dropped.
pub struct Background {
    child: Child,
    command: String,
    stdin: Option<std::process::ChildStdin>,
    /// Its standard output.
    pub stdout: Arc<Transcript>,
    /// Its standard error.
    pub stderr: Arc<Transcript>,
}

impl Background {
    /// Starts it.
    pub fn start(mut command: Command) -> Self {
        let text = shown(&command);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run {text}: {e}"));
        let (stdout, stderr) = (Arc::<Transcript>::default(), Arc::<Transcript>::default());
        stdout.follow(child.stdout.take().expect("piped"));
        stderr.follow(child.stderr.take().expect("piped"));
        Background {
            stdin: child.stdin.take(),
            child,
            command: text,
            stdout,
            stderr,
        }
    }

    /// Waits for `text` on standard output.
    #[track_caller]
    pub fn expect(&self, text: &str) {
        self.stdout.expect_from(0, text, crate::patience(20));
    }

    /// Writes to its standard input.
    pub fn send(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("standard input is still open");
        stdin
            .write_all(text.as_bytes())
            .and_then(|()| stdin.flush())
            .expect("client reads its standard input");
    }

    /// Closes its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, signal).expect("client is still there");
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child
            .try_wait()
            .expect("our own child can be waited for")
            .is_none()
    }

    /// Its exit code, within 30 seconds.
    #[track_caller]
    pub fn exit_code(&mut self) -> i32 {
        self.stdin = None;
        match wait(&mut self.child, crate::patience(30)) {
            Some(code) => code,
            None => panic!(
                "did not end within 30 s: {}\n--- stdout\n{}\n--- stderr\n{}",
                self.command,
                self.stdout.text(),
                self.stderr.text()
            ),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Appends arguments; a convenience for building commands in one expression.
pub fn with<S: AsRef<OsStr>>(
    mut command: Command,
    arguments: impl IntoIterator<Item = S>,
) -> Command {
    command.args(arguments);
    command
}
