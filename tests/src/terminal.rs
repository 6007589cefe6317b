//! A client on a pseudo terminal, as a person would use it: type, read, resize.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustix::termios::{Winsize, tcsetwinsize};

use crate::client::{Transcript, shown, wait};

/// A terminal with a client in it. The client is killed when this is dropped.
pub struct Terminal {
    master: File,
    child: Child,
    screen: Arc<Transcript>,
    read: usize,
}

impl Terminal {
    /// Opens a terminal of `rows` × `columns` and starts the client in it.
    pub fn start(command: Command, rows: u16, columns: u16) -> Self {
        let pty = nix::pty::openpty(None, None).expect("pseudo terminals are available");
        tcsetwinsize(&pty.master, size(rows, columns)).expect("a terminal has a size");
        // setsid(1) makes its standard input the controlling terminal, then executes the client in the same process
        let mut inner = Command::new("setsid");
        inner
            .arg("--ctty")
            .arg(command.get_program())
            .args(command.get_args())
            .env_clear();
        inner.envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        let end = |fd: &OwnedFd| Stdio::from(fd.try_clone().expect("descriptors are available"));
        inner
            .stdin(end(&pty.slave))
            .stdout(end(&pty.slave))
            .stderr(end(&pty.slave));
        let child = inner
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run {}: {e}", shown(&command)));
        drop((pty.slave, inner));
        let screen = Arc::<Transcript>::default();
        screen.follow(File::from(
            pty.master.try_clone().expect("descriptors are available"),
        ));
        Terminal {
            master: File::from(pty.master),
            child,
            screen,
            read: 0,
        }
    }

    /// Types.
    pub fn send(&mut self, keys: &str) {
        self.master
            .write_all(keys.as_bytes())
            .expect("terminal is open");
    }

    /// Waits until `text` appears after what was expected last.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        self.read = self
            .screen
            .expect_from(self.read, text, crate::patience(20));
    }

    /// Everything that was shown.
    pub fn shown(&self) -> String {
        self.screen.text()
    }

    /// Changes the terminal's size; the client gets `SIGWINCH`.
    pub fn resize(&self, rows: u16, columns: u16) {
        tcsetwinsize(&self.master, size(rows, columns)).expect("a terminal has a size");
    }

    /// The client's exit code, within 30 seconds.
    #[track_caller]
    pub fn exit_code(&mut self) -> i32 {
        match wait(&mut self.child, crate::patience(30)) {
            Some(code) => code,
            None => panic!("client did not end within 30 s; screen: {:?}", self.shown()),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
