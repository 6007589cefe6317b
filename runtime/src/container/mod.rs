//! The container isolation: one `caisson-shim` per sandbox, spoken to over `protocol`.
//!
//! Owns the sandboxes' directories (`protocol::layout`) below the exec root and the shims' coming and going. Must not
//! know: namespaces, mounts, cgroups; those are the shim's.
//!
//! ```text
//!   create    mkdir DIR ─▶ listen on DIR/shim.sock ─▶ start the shim with it ─▶ Create
//!   recover   DIR? ─▶ somebody answers on DIR/shim.sock: go on with it
//!                  └▶ nobody: `caisson-shim --cleanup`, the exit record tells how it ended
//!   destroy   Destroy (or --cleanup) ─▶ the shim is gone ─▶ rm -r DIR
//! ```
//!
//! Shims are nobody's children to keep: they outlive the daemon. While it lives the daemon reaps them.

mod capabilities;
mod control;
mod launch;
mod program;
mod sandbox;
mod stream;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use caisson_protocol::{CreateRequest, Request, Response};
use serde_json::value::RawValue;

use crate::{
    Capabilities, Error, ErrorKind, Isolation, Result, Runtime, Sandbox, SandboxId, SandboxSpec,
    Snapshot,
};
use control::Control;
use launch::Launch;
use program::ShimProgram;
use sandbox::ContainerSandbox;

/// Makes containers.
pub struct ContainerRuntime {
    sandboxes: PathBuf,
    program: Arc<ShimProgram>,
    capabilities: Capabilities,
}

impl ContainerRuntime {
    /// Uses `exec_root` (`/run/caisson`) for the sandboxes' directories. Finds the shim: `CAISSON_SHIM`, beside the
    /// running program, in `../libexec/caisson`; it is read once, so that an upgrade on disk does not mix versions.
    pub fn open(exec_root: &Path) -> Result<Self> {
        Self::with_program(exec_root, ShimProgram::find()?)
    }

    /// The same with a shim that the caller names.
    pub fn open_with_shim(exec_root: &Path, shim: &Path) -> Result<Self> {
        Self::with_program(exec_root, ShimProgram::open(shim)?)
    }

    fn with_program(exec_root: &Path, program: ShimProgram) -> Result<Self> {
        let sandboxes = exec_root.join("sandboxes");
        launch::make_private_dir_all(&sandboxes)
            .map_err(|e| failed(&format!("cannot make {}", sandboxes.display()), &e))?;
        Ok(ContainerRuntime {
            sandboxes,
            program: Arc::new(program),
            capabilities: capabilities::of_this_host(),
        })
    }

    /// The directory of a sandbox; its id becomes a file name, so it may not be just anything.
    fn dir_of(&self, id: &SandboxId) -> Result<PathBuf> {
        let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_');
        if id.0.is_empty() || id.0.len() > 128 || !id.0.bytes().all(plain) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{:?} cannot be a sandbox' id", id.0),
            ));
        }
        Ok(self.sandboxes.join(&id.0))
    }
}

#[async_trait]
impl Runtime for ContainerRuntime {
    fn isolation(&self) -> Isolation {
        Isolation::Container
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn create(&self, id: &SandboxId, spec: SandboxSpec) -> Result<Arc<dyn Sandbox>> {
        let dir = self.dir_of(id)?;
        let oci = serde_json::to_string(&spec.oci).and_then(RawValue::from_string);
        let oci = oci.map_err(|e| {
            Error::new(
                ErrorKind::Invalid,
                format!("the OCI spec cannot be written: {e}"),
            )
        })?;
        let request = Request::Create(CreateRequest {
            id: id.0.clone(),
            spec: oci,
            rootfs: spec.rootfs,
            reaper: spec.reaper,
            guest: None,
        });

        let launch = Launch::start(&self.program, dir.clone()).await?;
        let control = Control::new(dir.clone());
        match control.call(request).await {
            Ok(Response::Done) => {}
            Ok(other) => return Err(launch.undo(unexpected(&other)).await),
            Err(error) => return Err(launch.undo(error).await),
        }
        launch.succeed();
        Ok(Arc::new(ContainerSandbox::new(
            id.clone(),
            dir,
            control,
            Arc::clone(&self.program),
        )))
    }

    async fn restore(
        &self,
        _: &SandboxId,
        _: SandboxSpec,
        _: &Snapshot,
    ) -> Result<Arc<dyn Sandbox>> {
        Err(no_snapshots())
    }

    async fn recover(&self, id: &SandboxId) -> Result<Option<Arc<dyn Sandbox>>> {
        let dir = self.dir_of(id)?;
        if !tokio::fs::try_exists(&dir)
            .await
            .map_err(|e| failed(&format!("cannot look at {}", dir.display()), &e))?
        {
            return Ok(None);
        }
        let control = Control::new(dir.clone());
        let sandbox = Arc::new(ContainerSandbox::new(
            id.clone(),
            dir,
            control,
            Arc::clone(&self.program),
        ));
        match sandbox.state().await {
            Ok(_) => Ok(Some(sandbox)),
            // A daemon died while it made the sandbox: there never was one.
            Err(error) if matches!(error.kind, ErrorKind::Conflict | ErrorKind::NotFound) => {
                sandbox.destroy(std::time::Duration::ZERO).await?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

fn no_snapshots() -> Error {
    let why = "a container cannot be saved with its memory and processes; ask for the vm isolation to take snapshots";
    Error::new(ErrorKind::Invalid, why)
}

fn failed(what: &str, source: &io::Error) -> Error {
    Error::new(ErrorKind::Internal, format!("{what}: {source}"))
}

fn unexpected(response: &Response) -> Error {
    Error::new(
        ErrorKind::Internal,
        format!("the shim gave an answer to another question: {response:?}"),
    )
}
