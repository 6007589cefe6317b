//! What is remembered of a container between commands.
//!
//! ```text
//! ROOT/ID/state.json   Record, written once init is held; absent while creating
//! ROOT/ID/spec.json    the spec as it was at create
//! ROOT/ID/exec.fifo    there until start
//! ```
//! The directory is made exclusively: that is what makes an id unique. Files appear by rename.
//! Must not know: how a container is made.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use caisson_jail::cgroup::Cgroup;
use nix::unistd::Pid;
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

/// runc's words, which its callers look for.
pub const DOES_NOT_EXIST: &str = "container does not exist";

/// A container's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    /// As `state` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

/// What is written once a container's init exists.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub pid: i32,
    /// Field 22 of /proc/PID/stat: with the pid it names one process of this boot.
    pub start_ticks: u64,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    /// RFC 3339, UTC.
    pub created: String,
    pub cgroups_path: PathBuf,
}

/// All containers of one root.
pub struct Store {
    root: PathBuf,
}

/// One container's directory.
pub struct Entry {
    pub id: String,
    dir: PathBuf,
}

impl Store {
    pub fn new(root: &Path) -> Store {
        Store {
            root: root.to_path_buf(),
        }
    }

    /// Claims an id.
    pub fn claim(&self, id: &str) -> Result<Entry> {
        check_id(id)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.root)
            .with_context(|| format!("create state directory {}", self.root.display()))?;
        let dir = self.root.join(id);
        match fs::DirBuilder::new().mode(0o711).create(&dir) {
            Ok(()) => Ok(Entry { id: id.into(), dir }),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                bail!("container with given ID already exists")
            }
            Err(e) => Err(e).with_context(|| format!("create state directory {}", dir.display())),
        }
    }

    /// Finds a container.
    pub fn find(&self, id: &str) -> Result<Entry> {
        check_id(id)?;
        let dir = self.root.join(id);
        if !dir.is_dir() {
            bail!(DOES_NOT_EXIST);
        }
        Ok(Entry { id: id.into(), dir })
    }

    /// Every container, by id.
    pub fn all(&self) -> Result<Vec<Entry>> {
        let listing = match fs::read_dir(&self.root) {
            Ok(listing) => listing,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e).with_context(|| format!("read {}", self.root.display())),
        };
        let mut entries: Vec<Entry> = listing
            .flatten()
            .filter(|entry| entry.path().is_dir())
            .filter_map(|entry| {
                Some(Entry {
                    id: entry.file_name().into_string().ok()?,
                    dir: entry.path(),
                })
            })
            .collect();
        entries.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(entries)
    }
}

impl Entry {
    /// Where the start FIFO is.
    pub fn fifo(&self) -> PathBuf {
        self.dir.join("exec.fifo")
    }

    /// Makes the start FIFO, writable by whatever user init has become.
    pub fn make_fifo(&self) -> Result<PathBuf> {
        use nix::sys::stat::Mode;
        let path = self.fifo();
        let old = nix::sys::stat::umask(Mode::empty());
        let made = nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o622));
        nix::sys::stat::umask(old);
        made.with_context(|| format!("create {}", path.display()))?;
        Ok(path)
    }

    /// Remembers the spec's text.
    pub fn save_spec(&self, text: &[u8]) -> Result<()> {
        self.save("spec.json", text)
    }

    /// The spec as it was at create.
    pub fn spec(&self) -> Result<Spec> {
        let path = self.dir.join("spec.json");
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))
    }

    /// Remembers init.
    pub fn save_record(&self, record: &Record) -> Result<()> {
        self.save("state.json", &serde_json::to_vec(record)?)
    }

    /// Init, `None` while the container is being created.
    pub fn record(&self) -> Result<Option<Record>> {
        let path = self.dir.join("state.json");
        match fs::read(&path) {
            Ok(text) => Ok(Some(
                serde_json::from_slice(&text)
                    .with_context(|| format!("parse {}", path.display()))?,
            )),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("read {}", path.display())),
        }
    }

    /// On a tmpfs that a crash takes away: no fsync.
    fn save(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let (path, temporary) = (self.dir.join(name), self.dir.join(format!(".{name}")));
        let write = || -> std::io::Result<()> {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(bytes)?;
            fs::rename(&temporary, &path)
        };
        write().with_context(|| format!("write {}", path.display()))
    }

    /// The cgroup it has, or was to have.
    pub fn cgroup(&self, record: Option<&Record>) -> Result<Cgroup> {
        let path = match record {
            Some(record) => record.cgroups_path.clone(),
            None => cgroups_path(&self.spec()?, &self.id),
        };
        Ok(Cgroup::new(&path)?)
    }

    /// Its status now.
    pub fn status(&self, record: Option<&Record>) -> Result<Status> {
        let Some(record) = record else {
            return Ok(Status::Creating);
        };
        if record.open_init().is_none() {
            return Ok(Status::Stopped);
        }
        if self.fifo().exists() {
            return Ok(Status::Created);
        }
        let frozen = self.cgroup(Some(record))?.is_frozen().unwrap_or(false);
        Ok(if frozen {
            Status::Paused
        } else {
            Status::Running
        })
    }

    /// Forgets the container.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e).with_context(|| format!("remove {}", self.dir.display())),
        }
    }
}

impl Record {
    /// Describes a held init.
    pub fn new(pid: Pid, bundle: &Path, spec: &Spec, cgroups_path: &Path) -> Result<Record> {
        let start_ticks = start_ticks(pid)
            .ok_or_else(|| anyhow!("the container's process ended while it was created"))?;
        let rootfs = spec
            .root()
            .as_ref()
            .map(|root| bundle.join(root.path()))
            .unwrap_or_default();
        Ok(Record {
            pid: pid.as_raw(),
            start_ticks,
            bundle: bundle.to_path_buf(),
            rootfs,
            created: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Nanos, true),
            cgroups_path: cgroups_path.to_path_buf(),
        })
    }

    /// Opens init if it is still alive and the very process that was recorded.
    pub fn open_init(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(self.pid);
        let pidfd = caisson_jail::open_process(pid).ok()?;
        (start_ticks(pid) == Some(self.start_ticks)).then_some(pidfd)
    }
}

/// The cgroup of a spec.
pub fn cgroups_path(spec: &Spec, id: &str) -> PathBuf {
    let given = spec
        .linux()
        .as_ref()
        .and_then(|l| l.cgroups_path().clone())
        .filter(|p| !p.as_os_str().is_empty());
    given.unwrap_or_else(|| Path::new("/caisson").join(id))
}

/// When a process that is neither gone nor a zombie was started.
fn start_ticks(pid: Pid) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything: go on after the last one.
    let mut fields = stat.get(stat.rfind(')')? + 2..)?.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// runc's rule for ids.
fn check_id(id: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if id.is_empty() || id == "." || id == ".." || !id.chars().all(good) {
        bail!("invalid container ID format");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_cannot_leave_the_root() {
        for bad in ["", ".", "..", "a/b", "../x", "a b", "é"] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
        assert!(check_id("a.b-c_d+1").is_ok());
    }

    #[test]
    fn an_id_can_be_claimed_once_and_records_survive() {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::new(dir.path());
        let entry = store.claim("c1").expect("claims");
        assert!(
            store
                .claim("c1")
                .is_err_and(|e| e.to_string().contains("already exists"))
        );
        assert!(entry.record().expect("reads").is_none());
        assert_eq!(entry.status(None).expect("status"), Status::Creating);
        let record = Record {
            pid: std::process::id() as i32,
            start_ticks: start_ticks(Pid::this()).expect("alive"),
            bundle: "/b".into(),
            rootfs: "/b/r".into(),
            created: "t".into(),
            cgroups_path: "/caisson/c1".into(),
        };
        entry.save_record(&record).expect("saves");
        assert!(
            entry
                .record()
                .expect("reads")
                .expect("there")
                .open_init()
                .is_some()
        );
        let stale = Record {
            start_ticks: record.start_ticks + 1,
            ..record
        };
        assert!(stale.open_init().is_none(), "a reused pid is not init");
        entry.remove().expect("removes");
        assert!(
            store
                .find("c1")
                .is_err_and(|e| e.to_string() == DOES_NOT_EXIST)
        );
    }
}
