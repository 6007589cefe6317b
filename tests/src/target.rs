//! What is under test: our engine, or the reference whose behaviour ours is measured by.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The engine under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Ours.
    Caisson,
    /// Debian's dockerd, to validate the cases themselves.
    Dockerd,
}

impl Target {
    /// From `CAISSON_TEST_TARGET`; ours by default.
    pub fn from_environment() -> Self {
        match std::env::var("CAISSON_TEST_TARGET").as_deref() {
            Ok("dockerd") => Target::Dockerd,
            Ok("caisson") | Ok("") | Err(_) => Target::Caisson,
            Ok(other) => panic!("CAISSON_TEST_TARGET={other}: use caisson or dockerd"),
        }
    }

    /// The command that starts the daemon on directories of its own.
    pub fn daemon_command(self, root: &Path, socket: &Path) -> Command {
        let mut command = match self {
            Target::Caisson => {
                let mut command = Command::new(binary("caisson"));
                command.arg("daemon");
                command
            }
            Target::Dockerd => {
                let mut command = Command::new("dockerd");
                command.args(["--iptables=false", "--ip6tables=false", "--bridge=none"]);
                command.arg("--pidfile").arg(root.join("pid"));
                command
            }
        };
        command.arg("--data-root").arg(root.join("data"));
        command.arg("--exec-root").arg(root.join("exec"));
        command
            .arg("-H")
            .arg(format!("unix://{}", socket.display()));
        command
    }
}

/// One of our programs: in `CAISSON_BIN_DIR`, or beside this test program (`target/debug/deps/e2e-… → target/debug`).
pub fn binary(name: &str) -> PathBuf {
    if let Some(directory) = std::env::var_os("CAISSON_BIN_DIR") {
        return PathBuf::from(directory).join(name);
    }
    let own = std::env::current_exe().expect("a running program has a path");
    own.ancestors()
        .nth(2)
        .expect("test programs live in target/PROFILE/deps")
        .join(name)
}

/// Whether a program is on `PATH`.
pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|d| d.join(program))
        .find(|p| p.is_file())
}
