//! Opening the engine: directories, the lock against a second daemon, the database, and every container found again.
//!
//! ```text
//!  record says      sandbox found        what happens
//!  running/paused   running/paused       taken over as it is
//!  running/paused   exited               exit code taken, policy applies
//!  running/paused   none                 lost (the host was restarted): exit code 255, policy applies
//!  any other        any                  the sandbox is a leftover: destroyed
//!  (no record)      directory            left by a create that did not finish: deleted
//! ```

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use caisson_api as api;
use caisson_runtime::{ExitStatus, ProcessId, Runtimes, Sandbox, SandboxId, SandboxState};

use crate::container::{self, Container, Dir, Intent, Message};
use crate::db::{Db, Row};
use crate::error::{Error, ErrorKind, Result};
use crate::events::Events;
use crate::images::Images;
use crate::options::Config;
use crate::records::{self, State, Status, View};
use crate::restart::Policy;
use crate::{Engine, Inner, Registry, spec};

/// Held as long as the engine lives.
pub(crate) struct Lock(#[allow(dead_code)] File);

impl Lock {
    fn take(dir: &Path) -> Result<Lock> {
        let path = dir.join("engine.lock");
        let fail = |e: &std::io::Error| Error::io(format!("cannot lock {}", path.display()), e);
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| fail(&e))?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                return Err(Error::conflict(format!(
                    "another caisson daemon (pid {}) uses {}: stop it, or choose other directories with --data-root and --exec-root",
                    holder.trim(),
                    dir.display()
                )));
            }
            Err(e) => return Err(fail(&e.into())),
        }
        let write = || {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        let mut write = write;
        write().map_err(|e| fail(&e))?;
        Ok(Lock(file))
    }
}

pub(crate) async fn open(config: Config, runtimes: Runtimes) -> Result<Engine> {
    let idmap = match config.userns_remap.as_deref() {
        None | Some("") => None,
        Some(remap) => {
            let read = |path| std::fs::read_to_string(path).unwrap_or_default();
            Some(spec::idmap::find(
                remap,
                &read("/etc/subuid"),
                &read("/etc/subgid"),
            )?)
        }
    };
    for (name, soft, hard) in &config.default_ulimits {
        spec::resources::rlimit(name, *soft, *hard)?;
    }
    crate::logs::Driver::read(&api::LogConfig {
        driver: config.log_driver.clone(),
        config: config.log_opts.clone(),
    })?;
    let required = config.require_isolation.unwrap_or(config.default_isolation);
    if let Err(e) = runtimes.get(required) {
        return Err(Error::not_implemented(format!(
            "isolation {required} is asked for by the daemon's options, but is not available: {e}"
        )));
    }
    let task = tokio::task::spawn_blocking(move || {
        let locks = prepare_dirs(&config)?;
        let db = Db::open(&config.data_root.join("caisson.db"))?;
        let images = Images::open(&config)?;
        Ok::<_, Error>((config, locks, db, images))
    });
    let (config, locks, db, images) = task
        .await
        .map_err(|e| Error::internal(format!("opening the engine failed: {e}")))??;
    let image_source = Arc::new(images.clone());
    let inner = Arc::new(Inner {
        config,
        db,
        runtimes,
        images,
        image_source,
        events: Events::new(),
        execs: crate::exec::Table::default(),
        registry: std::sync::Mutex::new(Registry::default()),
        idmap,
        host_cgroup_v2: Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
        _locks: locks,
    });
    let engine = Engine { inner };
    engine.recover_all().await?;
    Ok(engine)
}

/// Makes the directories and takes the locks. Blocks.
fn prepare_dirs(config: &Config) -> Result<Vec<Lock>> {
    use std::os::unix::fs::DirBuilderExt as _;
    let make = |path: PathBuf, mode: u32| {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(&path)
            .map_err(|e| Error::io(format!("cannot create {}", path.display()), &e))
    };
    make(config.data_root.clone(), 0o711)?;
    make(config.exec_root.clone(), 0o711)?;
    let mut locks = vec![Lock::take(&config.data_root)?];
    if config.exec_root != config.data_root {
        locks.push(Lock::take(&config.exec_root)?);
    }
    make(config.data_root.join("containers"), 0o711)?;
    Ok(locks)
}

/// What became of a container while no daemon was there.
enum Found {
    /// It runs.
    Up(Arc<dyn Sandbox>, bool),
    /// It ended; its sandbox is still to be destroyed.
    Ended(Option<Arc<dyn Sandbox>>, ExitStatus),
    /// Nothing to see.
    Nothing,
}

impl Engine {
    async fn recover_all(&self) -> Result<()> {
        let rows = self.inner.db.all().await?;
        self.inner.delete_unknown_dirs(&rows).await;
        let recovered =
            futures_util::future::join_all(rows.into_iter().map(|row| self.recover(row))).await;
        let mut restarts = Vec::new();
        for result in recovered {
            match result {
                Ok(Some(container)) => restarts.push(container),
                Ok(None) => {}
                Err(e) => tracing::error!(error = %e, "a container could not be found again"),
            }
        }
        for container in restarts {
            tokio::spawn(async move {
                if let Err(e) = container.ask(|reply| Message::Start { reply }).await {
                    tracing::error!(container = container.id, error = %e, "the container could not be started again");
                }
            });
        }
        Ok(())
    }

    /// Answers the container when its policy wants it started.
    async fn recover(&self, row: Row) -> Result<Option<Arc<Container>>> {
        let inner = &self.inner;
        let (definition, mut state) = match records::from_row(&row) {
            Ok(both) => both,
            Err(e) => {
                // Its name stays taken and its files stay: nothing is lost to an unreadable record.
                let _ = inner.registry().index.reserve(&row.name, &row.id);
                return Err(e);
            }
        };
        let before = state.clone();
        let found = find(inner, &row.id, &definition, &state).await;
        let was_up = before.status.is_up();
        let mut sandbox = None;
        let mut pid = 0;
        match found {
            Found::Up(found, paused) => {
                state.status = if paused {
                    Status::Paused
                } else {
                    Status::Running
                };
                pid = found.pid(&ProcessId::init()).await.unwrap_or(0);
                sandbox = Some(found);
            }
            Found::Ended(leftover, status) => {
                take_exit(&mut state, &status);
                inner
                    .db
                    .set_state(row.id.clone(), records::to_json(&state)?)
                    .await?;
                if let Some(leftover) = leftover
                    && let Err(e) = leftover.destroy(Duration::ZERO).await
                {
                    tracing::error!(container = row.id, error = %e, "an ended sandbox could not be destroyed");
                }
            }
            Found::Nothing => {
                if was_up {
                    // The host went down: Docker says 255 then.
                    state.status = Status::Exited;
                    if before.status != Status::Restarting {
                        state.exit_code = 255;
                        state.finished_at = api::Timestamp::now();
                    }
                }
            }
        }
        let down = sandbox.is_none();
        if was_up && down {
            inner
                .db
                .set_state(row.id.clone(), records::to_json(&state)?)
                .await?;
        }
        let view = View {
            id: row.id.clone(),
            name: row.name.clone(),
            definition: Arc::new(definition),
            exits: u64::from(!state.finished_at.is_zero()),
            state,
            pid,
            health: None,
            removed: false,
        };
        inner.registry().index.reserve(&view.name, &view.id)?;
        let policy = &view.definition.host.restart_policy;
        let policy = Policy::parse(&policy.name, policy.maximum_retry_count).unwrap_or(Policy::No);
        let (auto_remove, status, code, stopped) = (
            view.definition.host.auto_remove,
            view.state.status,
            view.state.exit_code,
            view.state.stopped_by_user,
        );
        let unfinished = status == Status::Removing || status == Status::Dead;
        let ended_unseen = was_up && down && before.status != Status::Restarting;
        let shown = view.clone();
        let container = container::spawn(inner, view, sandbox);
        inner
            .registry()
            .containers
            .insert(row.id.clone(), container.clone());
        if ended_unseen {
            inner.container_event(&shown, "die", &[("exitCode", code.to_string())]);
        }
        if unfinished || (auto_remove && was_up && down) {
            // A removal that did not finish, or one that `--rm` owes.
            let result = container
                .ask(|reply| Message::Remove { force: true, reply })
                .await;
            if let Err(e) = result {
                tracing::error!(container = row.id, error = %e, "the container could not be removed");
            }
            return Ok(None);
        }
        let again =
            down && status != Status::Created && policy.on_daemon_start(stopped, was_up, code);
        Ok(again.then_some(container))
    }
}

fn take_exit(state: &mut State, status: &ExitStatus) {
    state.status = Status::Exited;
    state.exit_code = status.code;
    state.oom_killed = status.oom_killed;
    state.finished_at = status.at.into();
}

/// Asks again a few times: on a host that has just come up or is very busy, an answer may be late, and a container that runs
/// must not be given up for that.
async fn patiently<T, F>(ask: impl Fn() -> F) -> Result<T, caisson_runtime::Error>
where
    F: Future<Output = Result<T, caisson_runtime::Error>>,
{
    const TRIES: u32 = 5;
    let mut pause = Duration::from_millis(50);
    for _ in 1..TRIES {
        match ask().await {
            Err(e) => tracing::debug!(error = %e, "asking again"),
            answered => return answered,
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    ask().await
}

async fn find(inner: &Inner, id: &str, definition: &records::Definition, state: &State) -> Found {
    let Some(runtime) = inner.runtimes.for_recovery(definition.isolation) else {
        return Found::Nothing;
    };
    let sandbox_id = SandboxId(id.into());
    let sandbox = match patiently(|| runtime.recover(&sandbox_id)).await {
        Ok(Some(sandbox)) => sandbox,
        Ok(None) => return Found::Nothing,
        Err(e) => {
            tracing::error!(container = id, error = %e, "the sandbox could not be looked for");
            return Found::Nothing;
        }
    };
    let up = state.status.is_up();
    match patiently(|| sandbox.state()).await {
        Ok(SandboxState::Running) if up => Found::Up(sandbox, false),
        Ok(SandboxState::Paused) if up => Found::Up(sandbox, true),
        Ok(SandboxState::Exited(status)) if up => Found::Ended(Some(sandbox), status),
        other => {
            // Created or held when the daemon died, or running while the record says otherwise: nobody waits for it.
            if let Err(e) = other {
                tracing::warn!(container = id, error = %e, "the sandbox does not answer: it is destroyed");
            }
            if let Err(e) = sandbox.destroy(Duration::ZERO).await {
                tracing::error!(container = id, error = %e, "a leftover sandbox could not be destroyed");
            }
            Found::Nothing
        }
    }
}

impl Inner {
    /// Directories of containers that no record knows: a create was cut short.
    async fn delete_unknown_dirs(&self, rows: &[Row]) {
        let known: HashSet<&str> = rows.iter().map(|r| r.id.as_str()).collect();
        let Ok(entries) = std::fs::read_dir(self.config.data_root.join("containers")) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let ours = name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
            if ours && !known.contains(name) {
                for runtime in self.runtimes.all() {
                    if let Ok(Some(sandbox)) = runtime.recover(&SandboxId(name.into())).await {
                        let _ = sandbox.destroy(Duration::ZERO).await;
                    }
                }
                tracing::info!(
                    container = name,
                    "deleting what a create that did not finish left"
                );
                if let Err(e) = self.delete_dir(entry.path()).await {
                    tracing::error!(error = %e, "a leftover directory could not be deleted");
                }
            }
        }
    }

    /// Deletes a container's directory, whatever is in it; nothing to do when it is not there.
    pub(crate) async fn delete_dir(&self, path: PathBuf) -> Result<()> {
        let task = tokio::task::spawn_blocking(move || {
            let fail =
                |e: std::io::Error| Error::io(format!("cannot delete {}", path.display()), &e);
            match std::fs::remove_dir_all(&path) {
                Ok(()) => Ok(()),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
                Err(e) => Err(fail(e)),
            }
        });
        task.await
            .map_err(|e| Error::internal(format!("deleting failed: {e}")))?
    }
}

impl Engine {
    /// Stops containers unless they are to live on, then ends every task.
    pub(crate) async fn close(&self) {
        let containers: Vec<Arc<Container>> =
            self.inner.registry().containers.values().cloned().collect();
        if !self.inner.config.live_restore {
            let timeout = Some(self.inner.config.shutdown_timeout);
            let stops = containers.iter().filter(|c| c.view().state.status.is_up()).map(|c| async move {
                let signal = crate::signals::parse(&c.view().definition.config.stop_signal).unwrap_or(nix::libc::SIGTERM);
                if let Err(e) = crate::lifecycle::bring_down(c, signal, timeout, Intent::Shutdown).await
                    && e.kind != ErrorKind::NotFound
                {
                    tracing::error!(container = c.id, error = %e, "the container could not be stopped");
                }
            });
            futures_util::future::join_all(stops).await;
        }
        for container in containers {
            let (done, ended) = tokio::sync::oneshot::channel();
            container.tell(Message::Quit { done });
            let _ = ended.await;
        }
        if let Err(e) = self.inner.db.checkpoint().await {
            tracing::error!(error = %e, "the database could not be written");
        }
    }
}

/// Where a container's files are, for inspect.
pub(crate) fn dir_of(inner: &Inner, id: &str) -> Dir {
    Dir::new(&inner.config.data_root, id)
}
