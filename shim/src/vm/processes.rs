//! The sandbox' processes as the shim knows them: how they ended, and who waits for that.
//!
//! ```text
//!   spawned ──▶ (journal) ── its status comes, or the machine ends ──▶ exit record written ──▶ every wait answered
//! ```

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use caisson_protocol::{Error, ExitStatus, INIT, Response};
use caisson_supervisor::MAX_ENDED_EXECS;

use super::client::Client;
use crate::records;

/// A client that has so many waits outstanding is not listening.
const MAX_WAITERS: usize = 4096;

/// All of them.
pub struct Processes {
    dir: PathBuf,
    all: Mutex<All>,
    changed: Condvar,
}

#[derive(Default)]
struct All {
    by_id: BTreeMap<String, Process>,
    /// Ended execs, oldest first.
    ended: Vec<String>,
    /// The machine has ended: nothing begins any more.
    closed: bool,
}

struct Process {
    status: Option<ExitStatus>,
    waiters: Vec<(Arc<Client>, u64)>,
    /// Its journal, to be hung up on; gone when it has ended.
    journal: Option<UnixStream>,
}

impl Processes {
    /// None yet; exit records go below `dir`.
    pub fn new(dir: &Path) -> Self {
        Processes {
            dir: dir.to_path_buf(),
            all: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// A process has been set up.
    pub fn add(&self, id: &str, journal: UnixStream) -> Result<(), Error> {
        let mut all = self.lock();
        if all.closed {
            return Err(Error::conflict("the container's virtual machine has ended"));
        }
        let process = Process {
            status: None,
            waiters: Vec::new(),
            journal: Some(journal),
        };
        all.by_id.insert(id.to_string(), process);
        Ok(())
    }

    /// A process could not be started: it never was. Whoever waits is told why.
    pub fn remove(&self, id: &str, error: &Error) {
        let Some(process) = self.lock().by_id.remove(id) else {
            return;
        };
        if let Some(journal) = process.journal {
            let _ = journal.shutdown(Shutdown::Both);
        }
        for (client, request) in process.waiters {
            client.answer(request, Err(error.clone()));
        }
    }

    /// Answers now or when it ends.
    pub fn wait(&self, id: &str, client: &Arc<Client>, request: u64) {
        let answer = {
            let mut all = self.lock();
            match all.by_id.get_mut(id) {
                None => Err(Error::not_found(format!("no process {id} in this sandbox"))),
                Some(process) => match &process.status {
                    Some(status) => Ok(Response::Exited(status.clone())),
                    None => {
                        process.waiters.retain(|(client, _)| !client.is_gone());
                        if process.waiters.len() < MAX_WAITERS {
                            process.waiters.push((Arc::clone(client), request));
                            return;
                        }
                        Err(Error::conflict(format!("too many wait for process {id}")))
                    }
                },
            }
        };
        client.answer(request, answer);
    }

    /// Whether there is or was such a process.
    pub fn knows(&self, id: &str) -> bool {
        self.lock().by_id.contains_key(id)
    }

    /// How it ended, if it has.
    pub fn status(&self, id: &str) -> Option<ExitStatus> {
        self.lock().by_id.get(id).and_then(|p| p.status.clone())
    }

    /// Waits for its end, but not longer than this.
    pub fn status_within(&self, id: &str, timeout: Duration) -> Option<ExitStatus> {
        let running = |all: &mut All| all.by_id.get(id).is_some_and(|p| p.status.is_none());
        let result = self
            .changed
            .wait_timeout_while(self.lock(), timeout, running);
        let all = result.unwrap_or_else(PoisonError::into_inner).0;
        all.by_id.get(id).and_then(|p| p.status.clone())
    }

    /// A process has ended; only the first word counts. The record is there before anyone is told.
    pub fn exited(&self, id: &str, code: i32, oom_killed: bool) {
        let status = ExitStatus {
            code: code.clamp(0, 255),
            oom_killed,
            at: SystemTime::now(),
        };
        let mut forgotten = Vec::new();
        let waiters = {
            let mut all = self.lock();
            let Some(process) = all.by_id.get_mut(id).filter(|p| p.status.is_none()) else {
                return;
            };
            // Under the lock: nobody sees the status before the record is there.
            if let Err(error) = records::write_exit(&self.dir, id, &status) {
                tracing::error!(process = id, code = status.code, %error, "an exit record cannot be written");
            }
            process.status = Some(status.clone());
            let waiters = std::mem::take(&mut process.waiters);
            if id != INIT {
                all.ended.push(id.to_string());
                while all.ended.len() > MAX_ENDED_EXECS {
                    forgotten.push(all.ended.remove(0));
                }
                for id in &forgotten {
                    all.by_id.remove(id);
                }
            }
            waiters
        };
        self.changed.notify_all();
        for id in forgotten {
            if let Err(error) = records::remove_exit(&self.dir, &id) {
                tracing::warn!(process = id, %error, "an exit record cannot be removed");
            }
        }
        for (client, request) in waiters {
            client.answer(request, Ok(Response::Exited(status.clone())));
        }
    }

    /// A journal has ended.
    pub fn journal_ended(&self, id: &str) {
        if let Some(process) = self.lock().by_id.get_mut(id) {
            process.journal = None;
        }
        self.changed.notify_all();
    }

    /// The machine has ended: so has everything in it, once the journals are read to their ends.
    pub fn all_ended(&self, oom_killed: bool, patience: Duration) {
        let unread = |all: &mut All| all.by_id.values().any(|p| p.journal.is_some());
        let mut all = self.lock();
        all.closed = true;
        let result = self.changed.wait_timeout_while(all, patience, unread);
        let living: Vec<String> = {
            let all = result.unwrap_or_else(PoisonError::into_inner).0;
            let living = all.by_id.iter().filter(|(_, p)| p.status.is_none());
            living.map(|(id, _)| id.clone()).collect()
        };
        for id in living {
            self.exited(&id, 137, oom_killed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
