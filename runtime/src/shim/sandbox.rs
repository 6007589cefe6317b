//! One sandbox, seen from the daemon.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use caisson_protocol::layout::{EXITS, RECORD, ShimRecord, exit_record};
use caisson_protocol::{
    DestroyRequest, PathRequest, ProcessRequest, ProcessesRequest, Request, ResizeRequest,
    Response, SignalRequest, SpawnRequest, UpdateRequest, View, WritePathRequest,
};
use oci_spec::runtime::{LinuxResources, Process};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::watch;

use super::control::{Control, open_stream};
use super::program::ShimProgram;
use super::{launch, stream, unexpected};
use crate::{
    Attach, Error, ErrorKind, ExitStatus, Isolation, PathStat, ProcessId, ProcessIo, ProcessTable,
    Result, Sandbox, SandboxId, SandboxState, Snapshot, Stats, Stdio, TarStream, TtySize,
    WriteOptions,
};

/// How long the shim may take to end after it has released everything. It takes longer only while a client has not read
/// what the processes wrote, and then goes on without us.
const SHIM_END: Duration = Duration::from_secs(2);

/// How long the shim may take to kill and release everything before it is taken for stuck. It gives up itself much sooner.
const SHIM_STUCK: Duration = Duration::from_secs(30);

/// The same where a guest writes its disks and resets first, which what is written there depends on.
const VM_STUCK: Duration = Duration::from_secs(75);

/// How soon a broken connection to a living shim is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// One sandbox.
pub(super) struct ShimSandbox {
    inner: Arc<Inner>,
}

struct Inner {
    id: SandboxId,
    isolation: Isolation,
    dir: PathBuf,
    control: Control,
    program: Arc<ShimProgram>,
    /// One wait per process, shared by everyone who waits.
    waits: Mutex<HashMap<ProcessId, Wait>>,
    /// Exit records of a sandbox that has been destroyed.
    ended: Mutex<Option<BTreeMap<ProcessId, ExitStatus>>>,
    /// Only one clean-up at a time.
    cleaning: tokio::sync::Mutex<()>,
}

type Wait = watch::Receiver<Option<Result<ExitStatus>>>;

impl ShimSandbox {
    pub(super) fn new(
        id: SandboxId,
        isolation: Isolation,
        dir: PathBuf,
        program: Arc<ShimProgram>,
    ) -> Self {
        let control = Control::new(dir.clone());
        let inner = Inner {
            id,
            isolation,
            dir,
            control,
            program,
            waits: Mutex::default(),
            ended: Mutex::default(),
            cleaning: tokio::sync::Mutex::default(),
        };
        ShimSandbox {
            inner: Arc::new(inner),
        }
    }

    /// A request that is answered with `Done`.
    pub(super) async fn order(&self, request: Request) -> Result<()> {
        match self.inner.control.call(request).await? {
            Response::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }
}

impl Inner {
    /// Waits until the process has ended, whatever happens to connections and to the shim.
    async fn wait(&self, process: &ProcessId) -> Result<ExitStatus> {
        loop {
            match self.control.call(Request::Wait(named(process))).await {
                Ok(Response::Exited(status)) => return Ok(status),
                Ok(other) => return Err(unexpected(&other)),
                Err(error) if error.kind == ErrorKind::Lost => {
                    if let Some(status) = self.known_exit(process) {
                        return Ok(status);
                    }
                    if self.control.is_gone().await {
                        return self.exit_after_loss(process, error).await;
                    }
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The shim is gone: makes sure that nothing of it stays, then says how the process ended. Whatever was running has
    /// been killed.
    async fn exit_after_loss(&self, process: &ProcessId, lost: Error) -> Result<ExitStatus> {
        let _one = self.cleaning.lock().await;
        if let Some(status) = self.known_exit(process) {
            return Ok(status);
        }
        if !self.dir.join(RECORD).exists() || !self.control.is_gone().await {
            return Err(lost);
        }
        tracing::warn!(container = %self.id, isolation = %self.isolation, "the shim was killed: cleaning up after it");
        launch::clean_up(&self.program, &self.dir).await?;
        let init = self.known_exit(&ProcessId::init());
        let status = self
            .known_exit(process)
            .or(init.map(|init| ExitStatus { code: 137, ..init }));
        status.ok_or(lost)
    }

    /// What the exit records say: those of a destroyed sandbox are in memory.
    fn known_exit(&self, process: &ProcessId) -> Option<ExitStatus> {
        match &*lock(&self.ended) {
            Some(ended) => ended.get(process).cloned(),
            None => read_exit(&exit_record(&self.dir, &process.0)),
        }
    }

    fn keep_exits(&self) {
        let records = std::fs::read_dir(self.dir.join(EXITS))
            .into_iter()
            .flatten()
            .flatten();
        let mut ended = BTreeMap::new();
        for record in records {
            let path = record.path();
            if path.extension().is_some_and(|e| e == "json")
                && let (Some(name), Some(status)) = (path.file_stem(), read_exit(&path))
            {
                ended.insert(ProcessId(name.to_string_lossy().into_owned()), status);
            }
        }
        lock(&self.ended).get_or_insert(ended);
    }
}

fn read_exit(path: &Path) -> Option<ExitStatus> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

#[async_trait]
impl Sandbox for ShimSandbox {
    fn id(&self) -> &SandboxId {
        &self.inner.id
    }

    async fn spawn(
        &self,
        id: &ProcessId,
        process: Process,
        stdio: Stdio,
        size: Option<TtySize>,
    ) -> Result<()> {
        let spec = raw("process", &process)?;
        let request = Request::Spawn(SpawnRequest {
            process: id.0.clone(),
            spec,
            stdio,
            size,
        });
        match self.inner.control.call(request).await? {
            Response::Pid(_) => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn state(&self) -> Result<SandboxState> {
        match self.inner.control.call(Request::State).await {
            Ok(Response::State(state)) => Ok(state),
            Ok(other) => Err(unexpected(&other)),
            Err(error) if error.kind == ErrorKind::Lost => {
                let no_record = !self.inner.dir.join(RECORD).exists();
                match self.inner.exit_after_loss(&ProcessId::init(), error).await {
                    Ok(status) => Ok(SandboxState::Exited(status)),
                    // It never came to be, or it has been destroyed.
                    Err(_) if no_record => Err(Error::new(
                        ErrorKind::NotFound,
                        format!("no sandbox {}", self.inner.id),
                    )),
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    async fn attach(&self, id: &ProcessId, streams: Attach) -> Result<ProcessIo> {
        stream::attach(&self.inner.dir, id, streams).await
    }

    async fn start(&self, id: &ProcessId) -> Result<()> {
        self.order(Request::Start(named(id))).await
    }

    async fn wait(&self, id: &ProcessId) -> Result<ExitStatus> {
        if let Some(status) = lock(&self.inner.ended)
            .as_ref()
            .and_then(|ended| ended.get(id).cloned())
        {
            return Ok(status);
        }
        let mut wait = {
            let mut waits = lock(&self.inner.waits);
            match waits
                .get(id)
                .filter(|wait| wait.has_changed().is_ok() || wait.borrow().is_some())
            {
                Some(wait) => wait.clone(),
                None => {
                    let (sender, receiver) = watch::channel(None);
                    waits.insert(id.clone(), receiver.clone());
                    let (inner, id) = (Arc::clone(&self.inner), id.clone());
                    tokio::spawn(async move {
                        let result = inner.wait(&id).await;
                        // Only an end is for ever; an error may be different next time.
                        if result.is_err() {
                            lock(&inner.waits).remove(&id);
                        }
                        let _ = sender.send(Some(result));
                    });
                    receiver
                }
            }
        };
        let result = wait
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|value| value.clone());
        result.unwrap_or_else(|| Err(Error::new(ErrorKind::Internal, "the wait was abandoned")))
    }

    async fn pid(&self, id: &ProcessId) -> Result<i32> {
        match self.inner.control.call(Request::Pid(named(id))).await? {
            Response::Pid(pid) => Ok(pid),
            other => Err(unexpected(&other)),
        }
    }

    async fn signal(&self, id: &ProcessId, signal: i32) -> Result<()> {
        self.order(Request::Signal(SignalRequest {
            process: id.0.clone(),
            signal,
        }))
        .await
    }

    async fn resize_tty(&self, id: &ProcessId, size: TtySize) -> Result<()> {
        self.order(Request::Resize(ResizeRequest {
            process: id.0.clone(),
            size,
        }))
        .await
    }

    async fn pause(&self) -> Result<()> {
        self.order(Request::Pause).await
    }

    async fn resume(&self) -> Result<()> {
        self.order(Request::Resume).await
    }

    async fn update(&self, limits: &LinuxResources) -> Result<()> {
        let resources = raw("resources", limits)?;
        self.order(Request::Update(UpdateRequest { resources }))
            .await
    }

    async fn stats(&self) -> Result<Stats> {
        match self.inner.control.call(Request::Stats).await? {
            Response::Stats(stats) => Ok(*stats),
            other => Err(unexpected(&other)),
        }
    }

    async fn processes(&self, ps_args: &str) -> Result<ProcessTable> {
        match self
            .inner
            .control
            .call(Request::Processes(ProcessesRequest {
                ps_args: ps_args.into(),
            }))
            .await?
        {
            Response::Processes(table) => Ok(table),
            other => Err(unexpected(&other)),
        }
    }

    async fn stat_path(&self, path: &Path) -> Result<PathStat> {
        let request = Request::StatPath(PathRequest {
            path: path.into(),
            view: View::Processes,
        });
        match open_stream(&self.inner.dir, request).await? {
            (Response::PathStat(stat), ..) => Ok(stat),
            (other, ..) => Err(unexpected(&other)),
        }
    }

    async fn read_path(&self, path: &Path) -> Result<TarStream> {
        let request = Request::ReadPath(PathRequest {
            path: path.into(),
            view: View::Processes,
        });
        stream::read_tar(&self.inner.dir, request).await
    }

    async fn export(&self) -> Result<TarStream> {
        let request = Request::ReadPath(PathRequest {
            path: "/".into(),
            view: View::Rootfs,
        });
        stream::read_tar(&self.inner.dir, request).await
    }

    async fn changes(&self) -> Result<TarStream> {
        let request = Request::ReadPath(PathRequest {
            path: "/".into(),
            view: View::Changes,
        });
        stream::read_tar(&self.inner.dir, request).await
    }

    async fn write_path(&self, path: &Path, tar: TarStream, options: WriteOptions) -> Result<()> {
        stream::write_tar(
            &self.inner.dir,
            WritePathRequest {
                path: path.into(),
                options,
            },
            tar,
        )
        .await
    }

    async fn snapshot(&self, _: &Path) -> Result<Snapshot> {
        let why = match self.inner.isolation {
            Isolation::Container => {
                "a container cannot be saved with its memory and processes; ask for the vm isolation to take snapshots"
            }
            Isolation::Vm => "snapshots of running virtual machines are not available yet",
        };
        Err(Error::new(ErrorKind::Invalid, why))
    }

    async fn destroy(&self, grace: Duration) -> Result<()> {
        let inner = &self.inner;
        if lock(&inner.ended).is_some() {
            return Ok(());
        }
        let record: Option<ShimRecord> = std::fs::read(inner.dir.join(RECORD))
            .ok()
            .and_then(|json| serde_json::from_slice(&json).ok());
        let shim = record.and_then(|record| launch::open_pid(record.pid));
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let destroyed = self.order(Request::Destroy(DestroyRequest { grace_ms }));
        let stuck = match inner.isolation {
            Isolation::Container => SHIM_STUCK,
            Isolation::Vm => VM_STUCK,
        };
        match tokio::time::timeout(grace.saturating_add(stuck), destroyed).await {
            Ok(Ok(())) => {
                if let Some(shim) = shim {
                    let _ = tokio::time::timeout(SHIM_END, launch::ended(shim)).await;
                }
            }
            Ok(Err(error)) if error.kind == ErrorKind::Lost => {
                let _one = inner.cleaning.lock().await;
                if lock(&inner.ended).is_some() {
                    return Ok(());
                }
                // Whether it was killed or another `destroy` was quicker: idempotent.
                if inner.dir.exists() {
                    if !inner.control.is_gone().await {
                        return Err(error);
                    }
                    launch::clean_up(&inner.program, &inner.dir).await?;
                }
            }
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                let _one = inner.cleaning.lock().await;
                tracing::error!(container = %inner.id, isolation = %inner.isolation, "the shim does not answer: killing it");
                // It still listens, so the process of that number is it.
                if let Some(shim) = shim
                    && !inner.control.is_gone().await
                {
                    launch::kill(shim).await;
                }
                launch::clean_up(&inner.program, &inner.dir).await?;
            }
        }
        inner.keep_exits();
        for complaint in launch::complaints(&inner.dir) {
            tracing::error!(container = %inner.id, isolation = %inner.isolation, "its shim said: {complaint}");
        }
        launch::remove_dir(&inner.dir).await
    }
}

fn named(process: &ProcessId) -> ProcessRequest {
    ProcessRequest {
        process: process.0.clone(),
    }
}

fn raw(what: &str, value: &impl Serialize) -> Result<Box<RawValue>> {
    serde_json::to_string(value)
        .and_then(RawValue::from_string)
        .map_err(|e| {
            Error::new(
                ErrorKind::Invalid,
                format!("the OCI {what} cannot be written: {e}"),
            )
        })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
