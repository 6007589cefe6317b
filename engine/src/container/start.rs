//! Starting: from the record to a running first process, undone completely when any step fails.
//!
//! ```text
//! look up (mounts, devices, accounts, joined containers) → spec → Runtime::create → spawn → attach the waiting → start → record
//! ```

use std::sync::Arc;
use std::time::Duration;

use caisson_api as api;
use caisson_runtime::{
    LogFile, ProcessId, Rootfs, Runtime, Sandbox, SandboxId, SandboxSpec, Stdio, TtySize,
};

use super::actor::Actor;
use super::{Dir, Message};
use crate::Inner;
use crate::admission::no_such_isolation;
use crate::error::{Error, ErrorKind, Result};
use crate::logs;
use crate::records::{Definition, Status, View};
use crate::spec::namespaces::{Choice, Ipc, Namespaces};
use crate::spec::security::{Seccomp, Security};
use crate::spec::{self, Joined, OwnFiles, Plan, devices, files, mounts};
use crate::{disk, rootfs, wall};

/// Destroys a sandbox unless the start succeeded.
struct Undo(Option<Arc<dyn Sandbox>>);

impl Undo {
    async fn now(mut self) {
        if let Some(sandbox) = self.0.take()
            && let Err(e) = sandbox.destroy(Duration::ZERO).await
        {
            tracing::error!(sandbox = %sandbox.id(), error = %e, "a sandbox that failed to start could not be destroyed");
        }
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if let Some(sandbox) = self.0.take() {
            tokio::spawn(async move {
                let _ = sandbox.destroy(Duration::ZERO).await;
            });
        }
    }
}

impl Actor {
    /// Starts the container; on failure the record says why and nothing is left.
    pub(super) async fn start(&mut self) -> Result<()> {
        self.reset_state_for_start();
        self.run += 1;
        self.ending = None;
        match self.launch().await {
            Ok(()) => Ok(()),
            Err(e) => {
                let e = explain(e, &self.view.definition);
                self.pending.clear();
                self.view.state.exit_code = match e.kind {
                    ErrorKind::CommandNotFound => 127,
                    ErrorKind::CommandNotExecutable => 126,
                    _ => 128,
                };
                self.view.state.error.clone_from(&e.message);
                if self.view.state.status == Status::Restarting {
                    self.view.exits += 1;
                    self.view.state.status = Status::Exited;
                    self.view.state.finished_at = api::Timestamp::now();
                }
                self.save_state_or_log().await;
                self.publish();
                Err(e)
            }
        }
    }

    async fn launch(&mut self) -> Result<()> {
        let runtime = self
            .runtime
            .clone()
            .ok_or_else(|| no_such_isolation(self.view.definition.isolation))?;
        let (sandbox_spec, stdio, size) = prepare(&self.inner, &self.view).await?;
        let process = sandbox_spec
            .oci
            .process()
            .clone()
            .ok_or_else(|| Error::internal("the specification has no process"))?;
        let id = SandboxId(self.view.id.clone());
        let init = ProcessId::init();
        let sandbox = runtime.create(&id, sandbox_spec).await?;
        let undo = Undo(Some(sandbox.clone()));
        let started = async {
            sandbox.spawn(&init, process, stdio, size).await?;
            self.connect_pending(&*sandbox).await;
            // The record says that it runs before it does: a crash in between finds a held process and ends it.
            self.view.state.status = Status::Running;
            self.view.state.started_at = api::Timestamp::now();
            self.view.state.finished_at = api::Timestamp::default();
            self.view.state.exit_code = 0;
            self.save_state().await?;
            self.view.pid = sandbox.pid(&init).await?;
            sandbox.start(&init).await?;
            Ok::<(), Error>(())
        }
        .await;
        if let Err(e) = started {
            undo.now().await;
            self.view.pid = 0;
            if self.view.state.status == Status::Running {
                self.view.state.status =
                    if self.view.exits > 0 || !self.view.state.finished_at.is_zero() {
                        Status::Exited
                    } else {
                        Status::Created
                    };
            }
            return Err(e);
        }
        let mut undo = undo;
        undo.0 = None;
        self.adopt(sandbox);
        self.event("start", &[]);
        Ok(())
    }

    /// Takes a sandbox whose first process runs: watches for its end, probes its health.
    pub(super) fn adopt(&mut self, sandbox: Arc<dyn Sandbox>) {
        self.sandbox = Some(sandbox.clone());
        let check = crate::health::Check::read(&self.view.definition.config);
        self.health = crate::health::Machine::new(check.as_ref());
        self.view.health = self.health.report();
        self.publish();
        self.start_probes();
        let (mailbox, run) = (self.mailbox.clone(), self.run);
        tokio::spawn(async move {
            let status = sandbox.wait(&ProcessId::init()).await.map_err(Error::from);
            if let Some(mailbox) = mailbox.upgrade() {
                let _ = mailbox.send(Message::Exited { run, status });
            }
        });
    }
}

/// Docker's clients read exit codes 126 and 127 out of the message: it must hold the words they look for.
fn explain(e: Error, definition: &Definition) -> Error {
    let words: &[&str] = match e.kind {
        ErrorKind::CommandNotFound => &["executable file not found", "no such file or directory"],
        ErrorKind::CommandNotExecutable => &["permission denied", "is a directory"],
        _ => return e,
    };
    if words.iter().any(|w| e.message.contains(w)) {
        return e;
    }
    let message = match e.kind {
        ErrorKind::CommandNotFound => {
            format!(
                "exec: \"{}\": executable file not found in $PATH ({})",
                definition.path, e.message
            )
        }
        _ => format!(
            "exec: \"{}\": permission denied ({})",
            definition.path, e.message
        ),
    };
    Error { message, ..e }
}

/// Everything that a sandbox is made of.
pub(super) async fn prepare(
    inner: &Arc<Inner>,
    view: &View,
) -> Result<(SandboxSpec, Stdio, Option<TtySize>)> {
    let namespaces = Namespaces::read(&view.definition.host)?;
    let dir = Dir::new(&inner.config.data_root, &view.id);
    let shared = joined(inner, &namespaces, dir.own_files())?;
    let rootfs = disk::rootfs(inner, view).await?;
    let (inner, view) = (inner.clone(), view.clone());
    let task =
        tokio::task::spawn_blocking(move || assemble(&inner, &view, &namespaces, shared, rootfs));
    task.await
        .map_err(|e| Error::internal(format!("preparing the container failed: {e}")))?
}

fn assemble(
    inner: &Inner,
    view: &View,
    namespaces: &Namespaces,
    shared: Shared,
    rootfs: Rootfs,
) -> Result<(SandboxSpec, Stdio, Option<TtySize>)> {
    let definition = &view.definition;
    let dir = Dir::new(&inner.config.data_root, &view.id);
    let host = &definition.host;
    let mut config = std::borrow::Cow::Borrowed(&definition.config);
    if let Some(hostname) = shared.hostname {
        config.to_mut().hostname = hostname;
    }
    let config = config.as_ref();
    let (joined, own) = (shared.joined, shared.files);
    let security = Security::read(
        host.security_opt.as_deref().unwrap_or_default(),
        host.privileged,
    )?;
    let mounts = mounts::requested(host)?;
    for mount in &mounts {
        mount.prepare()?;
    }
    let devices = if host.privileged {
        let mut all = devices::host_devices();
        for mapping in host.resources.devices.iter().flatten() {
            all.extend(devices::HostDevice::look(mapping)?);
        }
        all
    } else {
        let mut all = Vec::new();
        for mapping in host.resources.devices.iter().flatten() {
            all.extend(devices::HostDevice::look(mapping)?);
        }
        all
    };
    // Of a disk nothing is seen from here: there the image's accounts count.
    let accounts = rootfs::accounts(&dir.upper(), &disk::layers(inner, view))?;
    let identity = accounts.resolve(&config.user, host.group_add.as_deref().unwrap_or_default())?;
    if namespaces.network == Choice::Host {
        refresh_host_files(host, &own)?;
    }
    let bounding = spec::capabilities::bounding(
        host.cap_add.as_deref().unwrap_or_default(),
        host.cap_drop.as_deref().unwrap_or_default(),
        host.privileged,
    )?;
    let seccomp = match &security.seccomp {
        Seccomp::Unconfined => None,
        Seccomp::Default => crate::seccomp_for(None, &bounding)?,
        Seccomp::Profile(json) => crate::seccomp_for(Some(json), &bounding)?,
    };
    let [rows, columns] = host.console_size;
    let console_size = match (u16::try_from(rows), u16::try_from(columns)) {
        (Ok(rows), Ok(columns)) if rows > 0 && columns > 0 => Some((rows, columns)),
        _ => None,
    };
    let mut args = vec![definition.path.clone()];
    args.extend(definition.args.iter().cloned());
    let cgroup_parent = match host.resources.cgroup_parent.as_str() {
        "" => inner.config.cgroup_parent.as_deref().unwrap_or(""),
        parent => parent,
    };
    let oci = spec::build(&Plan {
        id: &view.id,
        config,
        host,
        args,
        namespaces,
        security: &security,
        seccomp,
        mounts: &mounts,
        identity,
        joined,
        devices: &devices,
        idmap: definition.idmap,
        files: Some(&own),
        default_ulimits: &inner.config.default_ulimits,
        default_shm_size_bytes: inner.config.default_shm_size_bytes,
        cgroup_parent,
        cgroup_v2: inner.cgroup_v2(view.definition.isolation),
        console_size,
    })?;
    let stdio = Stdio {
        stdin: config.open_stdin,
        stdin_once: config.stdin_once,
        log: log_file(host, &dir)?,
    };
    let size = console_size
        .filter(|_| config.tty)
        .map(|(rows, columns)| TtySize { rows, columns });
    let reaper = host.init.unwrap_or(inner.config.init) && namespaces.pid == Choice::Own;
    Ok((
        SandboxSpec {
            oci,
            rootfs,
            reaper,
            copies: vec![own.hosts, own.hostname, own.resolv_conf],
        },
        stdio,
        size,
    ))
}

/// With the host's network the host's own names count, as they are at the start.
fn refresh_host_files(host: &api::HostConfig, own: &OwnFiles) -> Result<()> {
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let write = |path: &std::path::Path, text: &str| {
        std::fs::write(path, text)
            .map_err(|e| Error::io(format!("cannot write {}", path.display()), &e))
    };
    write(&own.hosts, &files::hosts_of_host(&hosts, host)?)?;
    let resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    write(&own.resolv_conf, &files::resolv_conf(&resolv, host))
}

fn log_file(host: &api::HostConfig, dir: &Dir) -> Result<Option<LogFile>> {
    Ok(logs::Driver::read(&host.log_config)?
        .rotation()
        .map(|(max_size_bytes, max_files)| LogFile {
            path: dir.log(),
            max_size_bytes,
            max_files,
        }))
}

/// What a container gets from those whose namespaces it joins.
struct Shared {
    joined: Joined,
    /// A shared network shares the files about it.
    files: OwnFiles,
    /// And the host name that is in them.
    hostname: Option<String>,
}

/// They must run.
fn joined(inner: &Inner, namespaces: &Namespaces, own: OwnFiles) -> Result<Shared> {
    let view_of = |choice: &Choice| -> Result<Option<Arc<View>>> {
        let Choice::Container(name) = choice else {
            return Ok(None);
        };
        let view = inner.container(name)?.view();
        wall::check_joined(name, view.definition.isolation)?;
        if !matches!(view.state.status, Status::Running | Status::Paused) || view.pid == 0 {
            return Err(Error::conflict(format!(
                "cannot join network of a non running container: container {name} is not running"
            )));
        }
        Ok(Some(view))
    };
    let network = view_of(&namespaces.network)?;
    let ipc = match &namespaces.ipc {
        Ipc::Shared(choice) => view_of(choice)?,
        Ipc::Own | Ipc::NoShm => None,
    };
    let (files, hostname) = match &network {
        Some(view) => (
            Dir::new(&inner.config.data_root, &view.id).own_files(),
            Some(spec::files::hostname(&view.definition.config, &view.id)),
        ),
        None => (own, None),
    };
    let pid_of = |view: Option<Arc<View>>| view.map(|v| v.pid);
    let joined = Joined {
        network: pid_of(network),
        pid: pid_of(view_of(&namespaces.pid)?),
        ipc: pid_of(ipc),
    };
    Ok(Shared {
        joined,
        files,
        hostname,
    })
}

/// A sandbox for copying files: the same root file system, nothing joined, no process.
pub(super) async fn create_idle(
    inner: &Arc<Inner>,
    runtime: &Arc<dyn Runtime>,
    view: &View,
) -> Result<Arc<dyn Sandbox>> {
    let config = api::ContainerConfig {
        hostname: "idle".into(),
        ..api::ContainerConfig::default()
    };
    let host = api::HostConfig {
        readonly_rootfs: false,
        ..api::HostConfig::default()
    };
    let namespaces = Namespaces::read(&host)?;
    let security = Security::read(&[], false)?;
    let oci = spec::build(&Plan {
        id: &view.id,
        config: &config,
        host: &host,
        args: vec!["none".into()],
        namespaces: &namespaces,
        security: &security,
        seccomp: None,
        mounts: &[],
        identity: spec::accounts::Accounts::default().resolve("", &[])?,
        joined: Joined::default(),
        devices: &[],
        idmap: view.definition.idmap,
        files: None,
        default_ulimits: &[],
        default_shm_size_bytes: inner.config.default_shm_size_bytes,
        cgroup_parent: inner.config.cgroup_parent.as_deref().unwrap_or(""),
        cgroup_v2: inner.cgroup_v2(view.definition.isolation),
        console_size: None,
    })?;
    let rootfs = disk::rootfs(inner, view).await?;
    Ok(runtime
        .create(
            &SandboxId(view.id.clone()),
            SandboxSpec {
                oci,
                rootfs,
                reaper: false,
                copies: Vec::new(),
            },
        )
        .await?)
}
