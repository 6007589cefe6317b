//! A runtime in memory: sandboxes that do what a test tells them, and a ledger of what is left.
//!
//! The program's first argument says how a process behaves: `exit CODE` ends at once, `sleep` until it is killed, `term CODE`
//! until any signal, `missing` is not found.

#![allow(clippy::unwrap_used)] // as in every test; clippy does not see that this module is one

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use caisson_engine::runtime::*;
use oci_spec::runtime::{LinuxResources, Process};
use tokio::sync::watch;

type Exits = watch::Sender<Option<ExitStatus>>;

struct Proc {
    words: Vec<String>,
    started: bool,
    exit: Exits,
}

struct Inside {
    processes: BTreeMap<String, Proc>,
    paused: bool,
    destroyed: bool,
}

pub struct FakeSandbox {
    id: SandboxId,
    inside: Mutex<Inside>,
    ledger: Arc<Ledger>,
}

/// What happened, across daemons.
#[derive(Default)]
pub struct Ledger {
    sandboxes: Mutex<BTreeMap<String, Arc<FakeSandbox>>>,
    starts: Mutex<u32>,
    rootfs: Mutex<Vec<Rootfs>>,
}

impl Ledger {
    /// Sandboxes that were made and not destroyed.
    pub fn left(&self) -> usize {
        self.sandboxes.lock().unwrap().len()
    }
    /// Processes started so far.
    pub fn starts(&self) -> u32 {
        *self.starts.lock().unwrap()
    }
    /// The root file systems of all sandboxes so far.
    pub fn rootfs(&self) -> Vec<Rootfs> {
        self.rootfs.lock().unwrap().clone()
    }
    /// Ends the first process of a sandbox behind the engine's back.
    pub fn end(&self, id: &str, code: i32) {
        let sandbox = self.sandboxes.lock().unwrap().get(id).cloned().unwrap();
        sandbox.finish("init", code);
    }
}

pub struct FakeRuntime {
    capabilities: Capabilities,
    ledger: Arc<Ledger>,
}

impl FakeRuntime {
    pub fn over(ledger: &Arc<Ledger>, rootfs: RootfsForm) -> Arc<dyn Runtime> {
        Arc::new(FakeRuntime {
            capabilities: Capabilities {
                isolation: Isolation::Container,
                rootfs,
                share_host_namespaces: true,
                host_devices: true,
                snapshot: false,
                controllers: ["cpu", "cpuset", "io", "memory", "pids"]
                    .map(String::from)
                    .to_vec(),
            },
            ledger: ledger.clone(),
        })
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    fn isolation(&self) -> Isolation {
        Isolation::Container
    }
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
    async fn create(&self, id: &SandboxId, spec: SandboxSpec) -> Result<Arc<dyn Sandbox>> {
        self.ledger.rootfs.lock().unwrap().push(spec.rootfs);
        let mut all = self.ledger.sandboxes.lock().unwrap();
        if all.contains_key(&id.0) {
            return Err(Error::new(
                ErrorKind::Conflict,
                "two sandboxes of one container",
            ));
        }
        let inside = Inside {
            processes: BTreeMap::new(),
            paused: false,
            destroyed: false,
        };
        let sandbox = Arc::new(FakeSandbox {
            id: id.clone(),
            inside: Mutex::new(inside),
            ledger: self.ledger.clone(),
        });
        all.insert(id.0.clone(), sandbox.clone());
        Ok(sandbox)
    }
    async fn restore(
        &self,
        _: &SandboxId,
        _: SandboxSpec,
        _: &Snapshot,
    ) -> Result<Arc<dyn Sandbox>> {
        Err(Error::new(ErrorKind::HostUnfit, "no snapshots"))
    }
    async fn recover(&self, id: &SandboxId) -> Result<Option<Arc<dyn Sandbox>>> {
        Ok(self
            .ledger
            .sandboxes
            .lock()
            .unwrap()
            .get(&id.0)
            .map(|s| s.clone() as Arc<dyn Sandbox>))
    }
}

impl FakeSandbox {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap()
    }
    fn finish(&self, process: &str, code: i32) {
        let status = ExitStatus {
            code,
            oom_killed: false,
            at: SystemTime::now(),
        };
        if let Some(p) = self.inside().processes.get(process) {
            p.exit
                .send_if_modified(|s| s.is_none() && s.replace(status).is_none());
        }
    }
    fn unknown(id: &ProcessId) -> Error {
        Error::new(ErrorKind::NotFound, format!("no process {id}"))
    }
}

#[async_trait]
impl Sandbox for FakeSandbox {
    fn id(&self) -> &SandboxId {
        &self.id
    }
    async fn spawn(
        &self,
        id: &ProcessId,
        process: Process,
        _: Stdio,
        _: Option<TtySize>,
    ) -> Result<()> {
        let words = process.args().clone().unwrap_or_default();
        if words.first().is_some_and(|w| w == "missing") {
            return Err(Error::new(
                ErrorKind::CommandNotFound,
                "exec: \"missing\": executable file not found in $PATH",
            ));
        }
        let exit = watch::channel(None).0;
        self.inside().processes.insert(
            id.0.clone(),
            Proc {
                words,
                started: false,
                exit,
            },
        );
        Ok(())
    }
    async fn state(&self) -> Result<SandboxState> {
        let inside = self.inside();
        Ok(match inside.processes.get("init") {
            None => SandboxState::Created,
            Some(p) if !p.started => SandboxState::Held,
            Some(p) => match p.exit.borrow().clone() {
                Some(status) => SandboxState::Exited(status),
                None if inside.paused => SandboxState::Paused,
                None => SandboxState::Running,
            },
        })
    }
    async fn attach(&self, id: &ProcessId, _: Attach) -> Result<ProcessIo> {
        let mut exit = self
            .inside()
            .processes
            .get(&id.0)
            .ok_or_else(|| Self::unknown(id))?
            .exit
            .subscribe();
        let output = futures_util::stream::once(async move {
            let _ = exit.wait_for(Option::is_some).await;
            Ok(Output::Stdout(bytes::Bytes::from_static(b"bye")))
        });
        Ok(ProcessIo {
            output: Box::pin(output),
            input: None,
        })
    }
    async fn start(&self, id: &ProcessId) -> Result<()> {
        let words = {
            let mut inside = self.inside();
            let process = inside
                .processes
                .get_mut(&id.0)
                .ok_or_else(|| Self::unknown(id))?;
            process.started = true;
            process.words.clone()
        };
        *self.ledger.starts.lock().unwrap() += 1;
        if words[0] == "exit" {
            self.finish(&id.0, words[1].parse().unwrap());
        }
        Ok(())
    }
    async fn wait(&self, id: &ProcessId) -> Result<ExitStatus> {
        let mut exit = self
            .inside()
            .processes
            .get(&id.0)
            .ok_or_else(|| Self::unknown(id))?
            .exit
            .subscribe();
        let status = exit.wait_for(Option::is_some).await.map(|s| s.clone());
        status
            .ok()
            .flatten()
            .ok_or_else(|| Error::new(ErrorKind::Lost, "the sandbox is gone"))
    }
    async fn pid(&self, _: &ProcessId) -> Result<i32> {
        Ok(4242)
    }
    async fn signal(&self, id: &ProcessId, signal: i32) -> Result<()> {
        let words = self
            .inside()
            .processes
            .get(&id.0)
            .ok_or_else(|| Self::unknown(id))?
            .words
            .clone();
        match (words[0].as_str(), signal) {
            (_, 9) => self.finish(&id.0, 137),
            ("term", _) => self.finish(&id.0, words[1].parse().unwrap()),
            _ => {}
        }
        Ok(())
    }
    async fn resize_tty(&self, _: &ProcessId, _: TtySize) -> Result<()> {
        Ok(())
    }
    async fn pause(&self) -> Result<()> {
        self.inside().paused = true;
        Ok(())
    }
    async fn resume(&self) -> Result<()> {
        self.inside().paused = false;
        Ok(())
    }
    async fn update(&self, _: &LinuxResources) -> Result<()> {
        Ok(())
    }
    async fn stats(&self) -> Result<Stats> {
        Ok(Stats::default())
    }
    async fn processes(&self, _: &str) -> Result<ProcessTable> {
        Ok(ProcessTable {
            titles: vec!["PID".into()],
            rows: vec![vec!["4242".into()]],
        })
    }
    async fn stat_path(&self, path: &Path) -> Result<PathStat> {
        let name = path.display().to_string();
        Ok(PathStat {
            name,
            size: 3,
            mode: 0o100_644,
            mtime: SystemTime::now(),
            link_target: None,
        })
    }
    async fn read_path(&self, _: &Path) -> Result<TarStream> {
        Ok(Box::pin(&b"tar"[..]))
    }
    async fn export(&self) -> Result<TarStream> {
        Ok(Box::pin(&b"tar"[..]))
    }
    async fn changes(&self) -> Result<TarStream> {
        let mut tar = tar::Builder::new(Vec::new());
        for name in ["etc/.wh.passwd", "new"] {
            let mut header = tar::Header::new_ustar();
            header.set_size(0);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, &b""[..]).unwrap();
        }
        Ok(Box::pin(std::io::Cursor::new(tar.into_inner().unwrap())))
    }
    async fn write_path(&self, _: &Path, _: TarStream, _: WriteOptions) -> Result<()> {
        Ok(())
    }
    async fn snapshot(&self, _: &Path) -> Result<Snapshot> {
        Err(Error::new(ErrorKind::HostUnfit, "no snapshots"))
    }
    async fn destroy(&self, _: Duration) -> Result<()> {
        let names: Vec<String> = self.inside().processes.keys().cloned().collect();
        for name in names {
            self.finish(&name, 137);
        }
        self.inside().destroyed = true;
        self.ledger.sandboxes.lock().unwrap().remove(&self.id.0);
        Ok(())
    }
}
