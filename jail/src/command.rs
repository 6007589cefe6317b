//! Finds a container's command as execvp would, and says why not in the words of Docker and runc.
//!
//! Runs inside the container, as its user, in its working directory.
//! Must not know: how it is executed.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, FileType};
use rustix::io::Errno;

use crate::error::{Error, Result, errno_text};

/// Where a command may be, in order. Pure. A name with a slash is taken as it is; empty entries mean the working directory.
pub(crate) fn candidates(name: &str, env: &[String]) -> Vec<PathBuf> {
    if name.contains('/') {
        return vec![PathBuf::from(name)];
    }
    let path = env
        .iter()
        .rev()
        .find_map(|e| e.strip_prefix("PATH="))
        .unwrap_or_default();
    path.split(':')
        .map(|dir| {
            if dir.is_empty() {
                Path::new(".").join(name)
            } else {
                Path::new(dir).join(name)
            }
        })
        .collect()
}

/// Finds the file to execute.
pub(crate) fn find(name: &str, env: &[String]) -> Result<PathBuf> {
    let quoted = format!("{name:?}");
    if name.is_empty() {
        return Err(Error::CommandNotFound(format!(
            "{quoted}: executable file not found in $PATH"
        )));
    }
    let explicit = name.contains('/');
    let mut refused = None;
    for path in candidates(name, env) {
        match check(&path) {
            Ok(()) => return Ok(path),
            Err(e) if explicit => {
                let text = errno_text(e.raw_os_error());
                return Err(match e {
                    Errno::NOENT | Errno::NOTDIR => {
                        Error::CommandNotFound(format!("{quoted}: stat {name}: {text}"))
                    }
                    _ => Error::CommandNotExecutable(format!("{quoted}: {text}")),
                });
            }
            // Like a shell: a later directory may have a usable one, else the first refusal is reported.
            Err(Errno::ACCESS) => refused = refused.or(Some(path)),
            Err(_) => {}
        }
    }
    Err(match refused {
        Some(_) => Error::CommandNotExecutable(format!("{quoted}: permission denied")),
        None => Error::CommandNotFound(format!("{quoted}: executable file not found in $PATH")),
    })
}

fn check(path: &Path) -> Result<(), Errno> {
    let stat = rustix::fs::stat(path)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            rustix::fs::accessat(rustix::fs::CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
                // No x bit for anyone: access(2) refuses that even root.
                .map_err(|e| if e == Errno::NOSYS { Errno::ACCESS } else { e })
        }
        FileType::Directory => Err(Errno::ISDIR),
        _ => Err(Errno::ACCESS),
    }
}

/// What a failed execve of a file that was found means.
pub(crate) fn exec_failed(path: &Path, errno: nix::errno::Errno) -> Error {
    let text = format!("{:?}: {}", path.to_string_lossy(), errno_text(errno as i32));
    match errno {
        // The file is there: its interpreter or loader is not.
        nix::errno::Errno::ENOENT => Error::CommandNotFound(text),
        nix::errno::Errno::E2BIG | nix::errno::Errno::ENOMEM => Error::sys_at("exec", path, errno),
        _ => Error::CommandNotExecutable(text),
    }
}

/// Strings for execve.
pub(crate) fn c_strings(strings: &[String], what: &str) -> Result<Vec<CString>> {
    strings
        .iter()
        .map(|s| {
            CString::new(s.as_str())
                .map_err(|_| Error::invalid(format!("{what} contains a NUL byte: {s:?}")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use std::os::unix::fs::PermissionsExt;

    fn env(path: &str) -> Vec<String> {
        vec![format!("PATH={path}")]
    }

    #[test]
    fn the_last_path_counts_and_empty_entries_are_here() {
        let env = ["PATH=/a".to_string(), "PATH=/b::/c".to_string()];
        assert_eq!(
            candidates("x", &env),
            [Path::new("/b/x"), Path::new("./x"), Path::new("/c/x")]
        );
        assert_eq!(candidates("./x", &env), [Path::new("./x")]);
    }

    #[test]
    fn messages_are_those_users_know() {
        let missing = find("foo", &env("/nowhere")).expect_err("missing");
        assert_eq!(
            missing.to_string(),
            "exec: \"foo\": executable file not found in $PATH"
        );
        let missing = find("/nowhere/foo", &[]).expect_err("missing");
        assert_eq!(
            missing.to_string(),
            "exec: \"/nowhere/foo\": stat /nowhere/foo: no such file or directory"
        );
        assert_eq!(missing.kind(), ErrorKind::CommandNotFound);
        let directory = find("/etc", &[]).expect_err("a directory");
        assert_eq!(directory.to_string(), "exec: \"/etc\": is a directory");
        assert_eq!(directory.kind(), ErrorKind::CommandNotExecutable);
    }

    #[test]
    fn a_refused_file_hides_no_usable_one_later() {
        let (a, b) = (
            tempfile::tempdir().expect("dir"),
            tempfile::tempdir().expect("dir"),
        );
        for (dir, mode) in [(&a, 0o644), (&b, 0o755)] {
            let file = dir.path().join("tool");
            std::fs::write(&file, "").expect("write");
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("chmod");
        }
        let both = format!("{}:{}", a.path().display(), b.path().display());
        assert_eq!(
            find("tool", &env(&both)).expect("found"),
            b.path().join("tool")
        );
        let only = find("tool", &env(&a.path().display().to_string())).expect_err("refused");
        assert_eq!(only.to_string(), "exec: \"tool\": permission denied");
        assert_eq!(only.kind(), ErrorKind::CommandNotExecutable);
    }
}
