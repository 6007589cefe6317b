//! The file that says which process is the daemon. It stays locked while the daemon lives, so that a stale one is known for
//! what it is even when its process id was given to someone else.

use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

/// Our locked pid file; removed on drop.
pub struct PidFile {
    path: PathBuf,
    _locked: Flock<std::fs::File>,
}

impl PidFile {
    /// Writes our process id; fails when another daemon holds the file.
    pub fn create(path: &Path) -> Result<Self, String> {
        let failed = |what: &str, e: &dyn std::fmt::Display| {
            format!("cannot {what} the pid file {}: {e}", path.display())
        };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|e| failed("make the directory of", &e))?;
        }
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|e| failed("open", &e))?;
        let mut locked = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => locked,
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut owner = String::new();
                // Only to say more in the message.
                let _ = file.read_to_string(&mut owner);
                return Err(format!(
                    "another daemon (pid {}) holds {}: stop it, or give this one its own --pidfile, --exec-root, --data-root and -H",
                    owner.trim(),
                    path.display()
                ));
            }
            Err((_, e)) => return Err(failed("lock", &e)),
        };
        locked.set_len(0).map_err(|e| failed("write", &e))?;
        locked.rewind().map_err(|e| failed("write", &e))?;
        write!(locked, "{}", std::process::id()).map_err(|e| failed("write", &e))?;
        Ok(PidFile {
            path: path.to_owned(),
            _locked: locked,
        })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // A leftover is recognised as stale by its missing lock.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_daemon_at_a_time_and_stale_files_do_not_matter() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("run/caisson.pid");
        std::fs::create_dir_all(path.parent().expect("has one")).expect("mkdir");
        std::fs::write(&path, "999999 and more").expect("write");
        let first = PidFile::create(&path).expect("stale file");
        assert_eq!(
            std::fs::read_to_string(&path).expect("readable"),
            std::process::id().to_string()
        );
        let refused = PidFile::create(&path).err().expect("held");
        assert!(
            refused.contains(&std::process::id().to_string()),
            "{refused}"
        );
        drop(first);
        assert!(!path.exists());
        PidFile::create(&path).expect("free again");
    }
}
