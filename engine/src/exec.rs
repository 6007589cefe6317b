//! Further processes in running containers: created, started (attached or not), looked at, resized.
//!
//! ```text
//!   created ──start──▶ running ──ends──▶ finished (kept while its container runs, five minutes at most otherwise)
//! ```
//!
//! Must not know: HTTP, how a process enters a sandbox.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use caisson_api as api;
use caisson_runtime::{Attach, ProcessId, Sandbox, Stdio, TtySize};

use crate::attachment::{Detach, Input, Target, detach_keys};
use crate::container::{Container, Dir, Message, Paused};
use crate::error::{Error, ErrorKind, Result};
use crate::options::{Attachment, ExecStartOptions};
use crate::records::View;
use crate::spec;
use crate::{Engine, Inner, names, rootfs};

const KEPT: Duration = Duration::from_secs(300);

/// All execs, by id.
#[derive(Default)]
pub(crate) struct Table(Mutex<HashMap<String, Arc<Exec>>>);

/// One exec.
pub(crate) struct Exec {
    id: String,
    container: String,
    request: api::ExecCreateBody,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    started: bool,
    running: bool,
    exit_code: Option<i64>,
    pid: i32,
    ended: Option<Instant>,
    sandbox: Option<Arc<dyn Sandbox>>,
}

impl Exec {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("nothing panics while it holds an exec's state")
    }
}

impl Table {
    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Exec>>> {
        self.0
            .lock()
            .expect("nothing panics while it holds the execs")
    }

    fn add(&self, exec: Exec) {
        let mut all = self.all();
        all.retain(|_, e| e.state().ended.is_none_or(|at| at.elapsed() < KEPT));
        all.insert(exec.id.clone(), Arc::new(exec));
    }

    fn get(&self, id: &str) -> Result<Arc<Exec>> {
        let all = self.all();
        if let Some(exec) = all.get(id) {
            return Ok(exec.clone());
        }
        let mut hits = all
            .iter()
            .filter(|(key, _)| !id.is_empty() && key.starts_with(id));
        match (hits.next(), hits.next()) {
            (Some((_, exec)), None) => Ok(exec.clone()),
            _ => Err(Error::not_found(format!("No such exec instance: {id}"))),
        }
    }

    /// Execs of a container that run or may run.
    pub(crate) fn of(&self, container: &str) -> Vec<String> {
        let mut ids: Vec<String> = self
            .all()
            .values()
            .filter(|e| e.container == container && e.state().ended.is_none())
            .map(|e| e.id.clone())
            .collect();
        ids.sort();
        ids
    }

    /// The container's processes are gone.
    pub(crate) fn container_ended(&self, container: &str) {
        for exec in self.all().values().filter(|e| e.container == container) {
            let mut state = exec.state();
            state.sandbox = None;
            if !state.started {
                state.ended = Some(Instant::now());
            }
        }
    }

    /// The container is gone.
    pub(crate) fn forget_container(&self, container: &str) {
        self.all().retain(|_, e| e.container != container);
    }
}

/// The process that a request means, in a container as it is.
pub(crate) async fn process(
    inner: &Arc<Inner>,
    view: &View,
    request: api::ExecCreateBody,
) -> Result<oci_spec::runtime::Process> {
    let (inner, id, definition) = (inner.clone(), view.id.clone(), view.definition.clone());
    let task = tokio::task::spawn_blocking(move || {
        let dir = Dir::new(&inner.config.data_root, &id);
        let layers = definition.layers.iter();
        let layers: Vec<_> = layers.map(|l| inner.config.data_root.join(l)).collect();
        // Of a disk nothing is seen from here: there the image's accounts count.
        let accounts = rootfs::accounts(&dir.upper(), &layers)?;
        let user = if request.user.is_empty() {
            &definition.config.user
        } else {
            &request.user
        };
        let identity = accounts.resolve(
            user,
            definition.host.group_add.as_deref().unwrap_or_default(),
        )?;
        let security = spec::security::Security::read(
            definition.host.security_opt.as_deref().unwrap_or_default(),
            definition.host.privileged,
        )?;
        spec::process::exec(
            &id,
            &definition.config,
            &definition.host,
            &request,
            &identity,
            &security,
            &inner.config.default_ulimits,
        )
    });
    task.await
        .map_err(|e| Error::internal(format!("preparing the exec failed: {e}")))?
}

impl Engine {
    /// `POST /containers/ID/exec`; answers the exec's id.
    pub async fn exec_create(
        &self,
        container: &str,
        request: api::ExecCreateBody,
    ) -> Result<String> {
        let container = self.inner.container(container)?;
        // Refuses what does not run or is paused.
        container
            .ask(|reply| Message::Sandbox {
                paused: Paused::Refused,
                reply,
            })
            .await?;
        if request.cmd.as_ref().is_none_or(Vec::is_empty) {
            return Err(Error::invalid("No exec command specified"));
        }
        detach_keys(Some(&request.detach_keys))?;
        if let Some(bad) = request
            .env
            .iter()
            .flatten()
            .find(|e| e.starts_with('=') || e.is_empty())
        {
            return Err(Error::invalid(format!(
                "invalid environment variable: {bad}"
            )));
        }
        let id = names::new_id();
        let command = request.cmd.as_deref().unwrap_or_default().join(" ");
        self.inner.container_event(
            &container.view(),
            &format!("exec_create: {command}"),
            &[("execID", id.clone())],
        );
        self.inner.execs.add(Exec {
            id: id.clone(),
            container: container.id.clone(),
            request,
            state: Mutex::default(),
        });
        Ok(id)
    }

    /// `POST /exec/ID/start`; `None` when detached.
    pub async fn exec_start(
        &self,
        exec: &str,
        options: ExecStartOptions,
    ) -> Result<Option<Attachment>> {
        let exec = self.inner.execs.get(exec)?;
        let container = self.inner.container(&exec.container)?;
        let sandbox = container
            .ask(|reply| Message::Sandbox {
                paused: Paused::Refused,
                reply,
            })
            .await?;
        {
            let mut state = exec.state();
            if state.started {
                let why = if state.running {
                    "is already running"
                } else {
                    "has already run"
                };
                return Err(Error::conflict(format!(
                    "Error: Exec command {} {why}",
                    exec.id
                )));
            }
            state.started = true;
            state.sandbox = Some(sandbox.clone());
        }
        match self.launch_exec(&exec, &container, sandbox, options).await {
            Ok(attachment) => Ok(attachment),
            Err(e) => {
                let mut state = exec.state();
                state.running = false;
                state.sandbox = None;
                state.ended = Some(Instant::now());
                state.exit_code = Some(match e.kind {
                    ErrorKind::CommandNotFound => 127,
                    _ => 126,
                });
                Err(e)
            }
        }
    }

    async fn launch_exec(
        &self,
        exec: &Arc<Exec>,
        container: &Arc<Container>,
        sandbox: Arc<dyn Sandbox>,
        options: ExecStartOptions,
    ) -> Result<Option<Attachment>> {
        let view = container.view();
        let request = &exec.request;
        let process = process(&self.inner, &view, request.clone()).await?;
        let id = ProcessId(exec.id.clone());
        let size = options
            .console_size
            .or_else(|| {
                let [rows, columns] = request.console_size?;
                Some((u16::try_from(rows).ok()?, u16::try_from(columns).ok()?))
            })
            .filter(|(rows, columns)| request.tty && *rows > 0 && *columns > 0)
            .map(|(rows, columns)| TtySize { rows, columns });
        let attached = !options.detach;
        let stdin = attached && request.attach_stdin;
        let stdio = Stdio {
            stdin,
            stdin_once: stdin,
            log: None,
        };
        sandbox.spawn(&id, process, stdio, size).await?;
        let streams = Attach {
            stdin,
            stdout: attached && request.attach_stdout,
            stderr: attached && request.attach_stderr,
        };
        let io = if attached {
            match sandbox.attach(&id, streams).await {
                Ok(io) => Some(io),
                Err(e) => {
                    let _ = sandbox.signal(&id, nix::libc::SIGKILL).await;
                    return Err(e.into());
                }
            }
        } else {
            None
        };
        {
            let mut state = exec.state();
            state.running = true;
        }
        let pid = sandbox.pid(&id).await.unwrap_or(0);
        exec.state().pid = pid;
        sandbox.start(&id).await?;
        let command = request.cmd.as_deref().unwrap_or_default().join(" ");
        self.inner.container_event(
            &view,
            &format!("exec_start: {command}"),
            &[("execID", exec.id.clone())],
        );
        let (inner, ended, watched) = (self.inner.clone(), exec.clone(), view.clone());
        let waiter = tokio::spawn(async move {
            let code = sandbox.wait(&id).await.map_or(137, |s| i64::from(s.code));
            {
                let mut state = ended.state();
                state.running = false;
                state.exit_code = Some(code);
                state.ended = Some(Instant::now());
                state.sandbox = None;
                state.pid = 0;
            }
            inner.container_event(
                &watched,
                "exec_die",
                &[("execID", ended.id.clone()), ("exitCode", code.to_string())],
            );
        });
        let Some(io) = io else { return Ok(None) };
        let detach = Detach::default();
        let keys = if request.tty {
            detach_keys(Some(&request.detach_keys))?
        } else {
            Vec::new()
        };
        let (inner, id) = (self.inner.clone(), exec.id.clone());
        let on_detach = move || inner.container_event(&view, "exec_detach", &[("execID", id)]);
        // The client asks for the exit code as soon as the output ends: let it be known by then.
        let output = detach.over(until_ended(io.output, waiter), on_detach);
        let input = io
            .input
            .map(|sink| Box::pin(Input::new(Target::Now(sink), keys, detach)) as _);
        Ok(Some(Attachment {
            tty: request.tty,
            output,
            input,
        }))
    }

    /// `GET /exec/ID/json`.
    pub async fn exec_inspect(&self, exec: &str) -> Result<api::ExecInspect> {
        let exec = self.inner.execs.get(exec)?;
        let request = &exec.request;
        let state = exec.state();
        let mut words = request.cmd.iter().flatten().cloned();
        Ok(api::ExecInspect {
            id: exec.id.clone(),
            running: state.running,
            exit_code: state.exit_code,
            process_config: api::ExecProcessConfig {
                tty: request.tty,
                entrypoint: words.next().unwrap_or_default(),
                arguments: words.collect(),
                privileged: Some(request.privileged),
                user: request.user.clone(),
            },
            open_stdin: request.attach_stdin,
            open_stderr: request.attach_stderr,
            open_stdout: request.attach_stdout,
            can_remove: state.ended.is_some(),
            container_id: exec.container.clone(),
            detach_keys: request.detach_keys.clone(),
            pid: i64::from(state.pid),
        })
    }

    /// `POST /exec/ID/resize`.
    pub async fn exec_resize(&self, exec: &str, size: TtySize) -> Result<()> {
        let exec = self.inner.execs.get(exec)?;
        let sandbox = {
            let state = exec.state();
            state.sandbox.clone().filter(|_| state.running)
        };
        let Some(sandbox) = sandbox else {
            return Err(Error::conflict(format!("exec {} is not running", exec.id)));
        };
        Ok(sandbox
            .resize_tty(&ProcessId(exec.id.clone()), size)
            .await?)
    }
}

/// Output whose end comes after the task's.
fn until_ended(
    output: crate::options::OutputStream,
    task: tokio::task::JoinHandle<()>,
) -> crate::options::OutputStream {
    use futures_util::StreamExt as _;
    const LONGEST: Duration = Duration::from_secs(5);
    let end = futures_util::stream::once(async move {
        // Something the exec left running may hold the output closed or open independently of its end: do not wait for ever.
        let _ = tokio::time::timeout(LONGEST, task).await;
        None
    })
    .filter_map(|nothing| async move { nothing });
    output.chain(end).boxed()
}
