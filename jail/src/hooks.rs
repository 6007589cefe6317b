//! Runs the spec's hooks: programs given the container's state on stdin at fixed points of its life.
//!
//! Must not know: when; its callers do (`process.rs`, `init.rs`, and the command line for poststop).

use std::io::{Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use oci_spec::runtime::{Hook, Hooks, Spec};
use serde_json::json;

use crate::error::{Error, Result, errno_text};

/// How much of a failed hook's stderr is reported.
const HOOK_STDERR_BYTES: u64 = 4096;

/// A point in a container's life at which hooks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    /// In the caller's namespaces, before the root is entered (deprecated, used by dockerd for its network).
    Prestart,
    /// The same place, right after.
    CreateRuntime,
    /// In the container's namespaces, before the root is entered.
    CreateContainer,
    /// In the container, just before its command.
    StartContainer,
    /// In the caller's namespaces, after the command was started.
    Poststart,
    /// In the caller's namespaces, after the container was deleted.
    Poststop,
}

impl HookKind {
    /// The spec's name.
    pub fn name(self) -> &'static str {
        match self {
            HookKind::Prestart => "prestart",
            HookKind::CreateRuntime => "createRuntime",
            HookKind::CreateContainer => "createContainer",
            HookKind::StartContainer => "startContainer",
            HookKind::Poststart => "poststart",
            HookKind::Poststop => "poststop",
        }
    }

    /// The container's status at that point, as its state says.
    fn status(self) -> &'static str {
        match self {
            HookKind::Prestart | HookKind::CreateRuntime | HookKind::CreateContainer => "creating",
            HookKind::StartContainer => "created",
            HookKind::Poststart => "running",
            HookKind::Poststop => "stopped",
        }
    }
}

/// The hooks of one kind.
pub(crate) fn list(spec: &Spec, kind: HookKind) -> &[Hook] {
    let Some(hooks) = spec.hooks().as_ref() else {
        return &[];
    };
    match kind {
        HookKind::Prestart => prestart(hooks),
        HookKind::CreateRuntime => hooks.create_runtime(),
        HookKind::CreateContainer => hooks.create_container(),
        HookKind::StartContainer => hooks.start_container(),
        HookKind::Poststart => hooks.poststart(),
        HookKind::Poststop => hooks.poststop(),
    }
    .as_deref()
    .unwrap_or_default()
}

#[allow(deprecated)] // dockerd and nerdctl still send it
fn prestart(hooks: &Hooks) -> &Option<Vec<Hook>> {
    hooks.prestart()
}

/// Runs the hooks of one kind, in order, stopping at the first that fails.
pub fn run_hooks(
    spec: &Spec,
    kind: HookKind,
    id: &str,
    pid: Option<Pid>,
    bundle: &Path,
) -> Result<()> {
    let hooks = list(spec, kind);
    if hooks.is_empty() {
        return Ok(());
    }
    let mut state = json!({
        "ociVersion": spec.version(),
        "id": id,
        "status": kind.status(),
        "bundle": bundle,
    });
    if let Some(pid) = pid {
        state["pid"] = pid.as_raw().into();
    }
    if let Some(annotations) = spec.annotations() {
        state["annotations"] = json!(annotations);
    }
    let state = state.to_string();
    for (index, hook) in hooks.iter().enumerate() {
        run(hook, &state).map_err(|why| Error::Hook {
            kind: kind.name().into(),
            index,
            why,
        })?;
    }
    Ok(())
}

fn run(hook: &Hook, state: &str) -> std::result::Result<(), String> {
    let args = hook.args().as_deref().unwrap_or_default();
    let mut command = Command::new(hook.path());
    if let Some((name, rest)) = args.split_first() {
        command.arg0(name).args(rest);
    }
    command.env_clear();
    for variable in hook.env().iter().flatten() {
        if let Some((name, value)) = variable.split_once('=') {
            command.env(name, value);
        }
    }
    let what = hook.path().display();
    // A file, not a pipe: a chatty hook never blocks, and one that leaves a daemon behind does not make us wait for it.
    let said = rustix::fs::memfd_create("hook-stderr", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|e| format!("{what}: memfd_create: {e}"))?;
    let mut said = std::fs::File::from(said);
    let stderr = said.try_clone().map_err(|e| format!("{what}: {e}"))?;
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(stderr);
    let mut child = command.spawn().map_err(|e| {
        format!(
            "{what}: {}",
            errno_text(e.raw_os_error().unwrap_or(libc::EIO))
        )
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook may ignore its input. The state fits in the pipe, so this does not block.
        let _ = stdin.write_all(state.as_bytes());
    }
    let deadline = hook
        .timeout()
        .and_then(|s| u64::try_from(s).ok())
        .map(|s| Instant::now() + Duration::from_secs(s));
    let status = match deadline {
        None => child.wait().map_err(|e| e.to_string())?,
        Some(deadline) => loop {
            if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
                break status;
            }
            if Instant::now() >= deadline {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!(
                    "{what}: timed out after {}s",
                    hook.timeout().unwrap_or_default()
                ));
            }
            std::thread::sleep(Duration::from_millis(2));
        },
    };
    if status.success() {
        return Ok(());
    }
    let mut stderr = Vec::new();
    let _ = said.rewind();
    let _ = said.take(HOOK_STDERR_BYTES).read_to_end(&mut stderr);
    let stderr = String::from_utf8_lossy(&stderr);
    Err(format!("{what}: {status}, stderr: {}", stderr.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(hooks: serde_json::Value) -> Spec {
        serde_json::from_value(json!({
            "ociVersion": "1.0.2",
            "hooks": hooks,
            "annotations": {"a": "b"},
        }))
        .expect("a spec")
    }

    #[test]
    fn state_is_given_and_env_is_only_the_hooks() {
        let dir = tempfile::tempdir().expect("dir");
        let out = dir.path().join("out");
        let script = format!("(cat; echo; env) > {}", out.display());
        let spec = spec(
            json!({"poststop": [{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["ONLY=this"]}]}),
        );
        run_hooks(
            &spec,
            HookKind::Poststop,
            "c1",
            Some(Pid::from_raw(7)),
            Path::new("/b"),
        )
        .expect("runs");
        let text = std::fs::read_to_string(out).expect("written");
        let state: serde_json::Value =
            serde_json::from_str(text.lines().next().expect("a line")).expect("json");
        assert_eq!(state["status"], "stopped");
        assert_eq!(state["pid"], 7);
        assert_eq!(state["annotations"]["a"], "b");
        assert!(text.contains("ONLY=this") && !text.contains("CARGO"));
    }

    #[test]
    fn failures_and_timeouts_are_reported_with_what_the_hook_said() {
        let failing = spec(
            json!({"prestart": [{"path": "/bin/sh", "args": ["sh", "-c", "echo why >&2; exit 3"]}]}),
        );
        let error = run_hooks(&failing, HookKind::Prestart, "c", None, Path::new("/"))
            .expect_err("fails")
            .to_string();
        assert!(
            error.contains("prestart hook #0") && error.contains("why") && error.contains('3'),
            "{error}"
        );
        let slow = spec(
            json!({"poststart": [{"path": "/bin/sleep", "args": ["sleep", "30"], "timeout": 1}]}),
        );
        let start = Instant::now();
        let error = run_hooks(&slow, HookKind::Poststart, "c", None, Path::new("/"))
            .expect_err("fails")
            .to_string();
        assert!(
            error.contains("timed out") && start.elapsed() < Duration::from_secs(5),
            "{error}"
        );
    }
}
