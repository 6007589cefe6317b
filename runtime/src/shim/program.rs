//! The shim's program file, read once.
//!
//! Shims run from a sealed memory file where the kernel allows it: immutable, so nothing inside a container can write to
//! it through `/proc/PID/exe`, and shared by all of them. Otherwise from the opened file on disk.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::{Error, ErrorKind, Result};

const NAME: &str = "caisson-shim";

/// The shim's program file.
pub(super) struct ShimProgram {
    file: OwnedFd,
    path: PathBuf,
}

impl ShimProgram {
    /// Finds and opens it.
    pub(super) fn find() -> Result<Self> {
        let candidates = candidates(
            std::env::var_os("CAISSON_SHIM").map(PathBuf::from),
            std::env::current_exe().ok(),
        );
        let Some(path) = candidates.iter().find(|p| p.is_file()) else {
            let looked: Vec<String> = candidates.iter().map(|p| p.display().to_string()).collect();
            return Err(Error::new(
                ErrorKind::HostUnfit,
                format!(
                    "the program {NAME} is missing, looked for at {}: install it beside caisson or name it in CAISSON_SHIM",
                    looked.join(", ")
                ),
            ));
        };
        Self::open(path)
    }

    /// Opens it where it is said to be.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let open = || -> io::Result<OwnedFd> {
            let mut disk = File::open(path)?;
            match sealed_copy(&mut disk) {
                Ok(copy) => Ok(copy),
                Err(error) => {
                    tracing::info!(%error, "no sealed copy of the shim: it runs from its file");
                    Ok(disk.into())
                }
            }
        };
        match open() {
            Ok(file) => Ok(ShimProgram {
                file,
                path: path.to_path_buf(),
            }),
            Err(e) => Err(super::failed(
                &format!("cannot open {}", path.display()),
                &e,
            )),
        }
    }

    /// A command that runs it with nothing inherited but what is asked for. No `pre_exec`: the child must be made without
    /// copying the daemon.
    pub(super) fn command(&self, dir: &Path) -> Command {
        let mut command = Command::new(format!("/proc/self/fd/{}", self.file.as_fd().as_raw_fd()));
        command
            .arg0(NAME)
            .arg("--dir")
            .arg(dir)
            .env_clear()
            .current_dir("/");
        command.env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        );
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// Where it was found.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Where the shim may be, best first. A place that the user names is the only one.
fn candidates(named: Option<PathBuf>, current_exe: Option<PathBuf>) -> Vec<PathBuf> {
    if let Some(named) = named {
        return vec![named];
    }
    let Some(dir) = current_exe.as_deref().and_then(Path::parent) else {
        return Vec::new();
    };
    let mut candidates = vec![dir.join(NAME)];
    if let Some(prefix) = dir.parent() {
        candidates.push(prefix.join("libexec/caisson").join(NAME));
        // cargo puts test programs one directory below the others.
        if dir.file_name().is_some_and(|name| name == "deps") {
            candidates.push(prefix.join(NAME));
        }
    }
    candidates
}

fn sealed_copy(disk: &mut File) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let executable = MFdFlags::from_bits_retain(0x10); // MFD_EXEC, Linux 6.3
    let memory = match memfd_create(c"caisson-shim", flags | executable) {
        Err(nix::errno::Errno::EINVAL) => memfd_create(c"caisson-shim", flags)?,
        other => other?,
    };
    let mut memory = File::from(memory);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match disk.read(&mut buffer)? {
            0 => break,
            n => memory.write_all(&buffer[..n])?,
        }
    }
    disk.rewind()?;
    let seals = SealFlag::F_SEAL_SEAL
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(seals))?;
    // Opened again for reading only: a file that is open for writing cannot be executed.
    let readable = File::open(format!("/proc/self/fd/{}", memory.as_raw_fd()))?;
    Ok(readable.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_shim_is_the_only_one_and_the_usual_places_follow_the_program() {
        let exe = Some(PathBuf::from("/usr/bin/caisson"));
        assert_eq!(
            candidates(Some("/x/shim".into()), exe.clone()),
            [PathBuf::from("/x/shim")]
        );
        assert_eq!(
            candidates(None, exe),
            [
                PathBuf::from("/usr/bin/caisson-shim"),
                PathBuf::from("/usr/libexec/caisson/caisson-shim")
            ]
        );
    }

    #[test]
    fn the_copy_runs_and_cannot_be_written_to() {
        let mut disk = File::open("/bin/true").expect("a program");
        let copy = sealed_copy(&mut disk).expect("a copy");
        let program = ShimProgram {
            file: copy,
            path: "/bin/true".into(),
        };
        assert!(
            program
                .command(Path::new("/"))
                .status()
                .expect("runs")
                .success()
        );
        let again = std::fs::OpenOptions::new()
            .write(true)
            .open(format!("/proc/self/fd/{}", program.file.as_raw_fd()));
        assert!(again.is_err() || again.is_ok_and(|mut f| f.write_all(b"x").is_err()));
    }
}
