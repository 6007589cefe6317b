//! What the shim leaves on disk for the daemon that comes later. The files are those of `protocol::layout`.
//!
//! They outlive the shim, not the machine: what they tell of is gone with the machine, and the exec root is usually in
//! memory anyway. So they appear complete, by a rename, but nobody waits for a disk (up to 15 ms per container, measured).

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use caisson_protocol::layout::{EXITS, RECORD, ShimRecord, exit_record};
use caisson_protocol::{ExitStatus, GENERATION};

/// Notes what is needed to clean up after this shim.
pub fn write_shim_record(dir: &Path, cgroups_path: &Path) -> io::Result<()> {
    let record = ShimRecord {
        generation: GENERATION,
        pid: std::process::id() as i32,
        cgroups_path: cgroups_path.to_path_buf(),
    };
    replace(&dir.join(RECORD), &serde_json::to_vec(&record)?)
}

/// Reads what a shim noted; `None` when it did not come that far.
pub fn read_shim_record(dir: &Path) -> io::Result<Option<ShimRecord>> {
    match fs::read(dir.join(RECORD)) {
        Ok(json) => Ok(Some(serde_json::from_slice(&json)?)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Notes how a process ended.
pub fn write_exit(dir: &Path, process: &str, status: &ExitStatus) -> io::Result<()> {
    match fs::create_dir(dir.join(EXITS)) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    replace(&exit_record(dir, process), &serde_json::to_vec(status)?)
}

/// Forgets how a process ended.
pub fn remove_exit(dir: &Path, process: &str) -> io::Result<()> {
    match fs::remove_file(exit_record(dir, process)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A file appears complete or not at all.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn records_are_read_as_they_were_written() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(read_shim_record(dir.path()).expect("readable").is_none());
        write_shim_record(dir.path(), Path::new("/caisson/x")).expect("written");
        let record = read_shim_record(dir.path())
            .expect("readable")
            .expect("there");
        assert_eq!(
            (record.pid, record.cgroups_path.as_path()),
            (std::process::id() as i32, Path::new("/caisson/x"))
        );

        let status = ExitStatus {
            code: 3,
            oom_killed: false,
            at: SystemTime::now(),
        };
        write_exit(dir.path(), "init", &status).expect("written");
        let json = fs::read(exit_record(dir.path(), "init")).expect("there");
        assert_eq!(
            serde_json::from_slice::<ExitStatus>(&json).expect("JSON"),
            status
        );
        remove_exit(dir.path(), "init").expect("removed");
        remove_exit(dir.path(), "init").expect("twice");
        assert_eq!(
            fs::read_dir(dir.path().join(EXITS)).expect("there").count(),
            0
        );
    }
}
