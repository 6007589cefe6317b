//! One process and the ends of its standard streams that are ours.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

use caisson_jail::Init;
use caisson_protocol::{Error, ExitStatus, Stdio, Stream, TtySize};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::EpollFlags;
use nix::unistd::Pid;

use crate::host::{Log, LogStream};
use crate::input::Input;
use crate::poller::{Poller, Token, Watched};

/// Names a connection.
pub(crate) type ConnectionId = u64;

/// The two output streams, by index.
pub(crate) const OUTPUTS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

/// Where a process is in its life.
pub(crate) enum State {
    /// Set up, waiting before `execve`.
    Held,
    Running,
    Exited(ExitStatus),
}

/// One process.
pub(crate) struct Process {
    pub(crate) id: Rc<str>,
    pub(crate) pid: Pid,
    pub(crate) init: Init,
    pub(crate) state: State,
    pub(crate) terminal: Option<OwnedFd>,
    /// Standard output and standard error; gone once they have ended.
    pub(crate) outputs: [Option<Watched>; 2],
    /// No attachment takes more at the moment: the outputs are not read.
    pub(crate) stalled: bool,
    pub(crate) input: Input,
    pub(crate) stdin_once: bool,
    pub(crate) attachments: Vec<ConnectionId>,
    pub(crate) log: Option<Box<dyn Log>>,
    /// Who waits for its end: connection and request.
    pub(crate) waiters: Vec<(ConnectionId, u64)>,
    /// When its attachments are ended although its output is still open.
    pub(crate) cut_at: Option<Instant>,
    /// Out-of-memory kills that the sandbox had seen before it.
    pub(crate) oom_kills_before: u64,
}

impl Process {
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::Exited(_))
    }

    /// How it ended, once it has.
    pub(crate) fn exit_status(&self) -> Option<&ExitStatus> {
        match &self.state {
            State::Exited(status) => Some(status),
            State::Held | State::Running => None,
        }
    }

    /// Starts or stops listening to its outputs.
    pub(crate) fn listen(&mut self, on: bool) {
        self.stalled = !on;
        let interest = if on {
            EpollFlags::EPOLLIN
        } else {
            EpollFlags::empty()
        };
        for output in self.outputs.iter_mut().flatten() {
            if let Err(error) = output.set_interest(interest) {
                tracing::error!(process = %self.id, %error, "its output cannot be watched");
            }
        }
    }

    pub(crate) fn tokens(&self) -> impl Iterator<Item = Token> {
        self.outputs
            .iter()
            .flatten()
            .map(Watched::token)
            .chain(self.input.token())
            .collect::<Vec<_>>()
            .into_iter()
    }

    pub(crate) fn resize(&self, size: TtySize) -> Result<(), Error> {
        let Some(terminal) = &self.terminal else {
            return Err(Error::conflict(format!(
                "process {} has no terminal to resize",
                self.id
            )));
        };
        let size = rustix::termios::Winsize {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(terminal, size)
            .map_err(|e| Error::failed("cannot resize the terminal", e))
    }
}

/// How a stream of the protocol is called in a log.
pub(crate) fn log_stream(stream: Stream) -> LogStream {
    if stream == Stream::Stderr {
        LogStream::Stderr
    } else {
        LogStream::Stdout
    }
}

/// Our ends of the streams of a process that is being made.
pub(crate) struct Ends {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

/// Makes the streams of a process: its ends, as `jail` wants them, and ours.
pub(crate) fn open_streams(
    stdio: &Stdio,
    terminal: bool,
    size: Option<TtySize>,
) -> Result<(caisson_jail::Stdio, Ends), Error> {
    if terminal {
        let size = size.map(|s| (s.rows, s.columns));
        let ends = Ends {
            stdin: None,
            stdout: None,
            stderr: None,
        };
        return Ok((caisson_jail::Stdio::Terminal { size }, ends));
    }
    let (stdin, our_stdin) = if stdio.stdin {
        let (reading, writing) = pipe()?;
        (reading, Some(writing))
    } else {
        let null = nix::fcntl::open(
            "/dev/null",
            OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            nix::sys::stat::Mode::empty(),
        );
        (
            null.map_err(|e| Error::failed("cannot open /dev/null", e))?,
            None,
        )
    };
    let (our_stdout, stdout) = pipe()?;
    let (our_stderr, stderr) = pipe()?;
    let ends = Ends {
        stdin: our_stdin,
        stdout: Some(our_stdout),
        stderr: Some(our_stderr),
    };
    Ok((
        caisson_jail::Stdio::Fds {
            stdin,
            stdout,
            stderr,
        },
        ends,
    ))
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|e| Error::failed("cannot make a pipe", e))
}

/// Puts our ends, or the terminal, into the loop's care.
pub(crate) fn watch_streams(
    poller: &mut Poller,
    ends: Ends,
    terminal: Option<&OwnedFd>,
    stdin: bool,
) -> std::io::Result<([Option<Watched>; 2], Input)> {
    let mut watch = |fd: OwnedFd| -> std::io::Result<Watched> {
        set_nonblocking(&fd)?;
        Ok(poller.watch(fd))
    };
    let copy = |fd: &OwnedFd| fd.as_fd().try_clone_to_owned();
    match terminal {
        Some(terminal) => {
            let input = if stdin {
                Input::new(watch(copy(terminal)?)?)
            } else {
                Input::none()
            };
            Ok(([Some(watch(copy(terminal)?)?), None], input))
        }
        None => {
            let input = ends
                .stdin
                .map(&mut watch)
                .transpose()?
                .map_or_else(Input::none, Input::new);
            Ok((
                [
                    ends.stdout.map(&mut watch).transpose()?,
                    ends.stderr.map(&mut watch).transpose()?,
                ],
                input,
            ))
        }
    }
}

pub(crate) fn set_nonblocking(fd: &impl AsFd) -> std::io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
