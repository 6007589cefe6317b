//! The shims: one `caisson-shim` process per sandbox, spoken to over `protocol`, whichever wall it keeps.
//!
//! Owns the sandboxes' directories (`protocol::layout`) below the exec root and the shims' coming and going. Must not
//! know: namespaces, mounts, cgroups, virtual machines; those are the shim's.
//!
//! ```text
//!   create    mkdir DIR ─▶ listen on DIR/shim.sock ─▶ start the shim with it ─▶ Create
//!   recover   DIR? ─▶ somebody answers on DIR/shim.sock: go on with it
//!                  └▶ nobody: `caisson-shim --cleanup`, the exit record tells how it ended
//!   destroy   Destroy (or --cleanup) ─▶ the shim is gone ─▶ rm -r DIR
//! ```
//!
//! Shims are nobody's children to keep: they outlive the daemon. While it lives the daemon reaps them.

mod control;
mod launch;
mod program;
mod sandbox;
mod stream;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use caisson_protocol::{CreateRequest, Request, Response, VmSetup};
use serde_json::value::RawValue;

use crate::{Error, ErrorKind, Isolation, Result, Sandbox, SandboxId, SandboxSpec};
use launch::Launch;
use program::ShimProgram;
use sandbox::ShimSandbox;

/// The shims of one isolation.
pub(crate) struct Shims {
    isolation: Isolation,
    sandboxes: PathBuf,
    program: Arc<ShimProgram>,
}

impl Shims {
    /// Uses `exec_root` (`/run/caisson`) for the sandboxes' directories. The shim is the one named, or found: `CAISSON_SHIM`,
    /// beside the running program, in `../libexec/caisson`; it is read once, so that an upgrade on disk does not mix versions.
    pub(crate) fn open(
        isolation: Isolation,
        exec_root: &Path,
        shim: Option<&Path>,
    ) -> Result<Self> {
        let program = match shim {
            Some(path) => ShimProgram::open(path)?,
            None => ShimProgram::find()?,
        };
        let sandboxes = exec_root.join("sandboxes");
        launch::make_private_dir_all(&sandboxes)
            .map_err(|e| failed(&format!("cannot make {}", sandboxes.display()), &e))?;
        Ok(Shims {
            isolation,
            sandboxes,
            program: Arc::new(program),
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

    fn sandbox(&self, id: &SandboxId, dir: PathBuf) -> ShimSandbox {
        ShimSandbox::new(id.clone(), self.isolation, dir, Arc::clone(&self.program))
    }

    /// Starts a shim and has it make the sandbox; on `Err` nothing is left. `vm` is for the shim of a virtual machine.
    pub(crate) async fn create(
        &self,
        id: &SandboxId,
        spec: SandboxSpec,
        vm: Option<VmSetup>,
    ) -> Result<Arc<dyn Sandbox>> {
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
            vm: vm.map(Box::new),
        });

        let launch = Launch::start(&self.program, self.isolation, dir.clone()).await?;
        let sandbox = self.sandbox(id, dir);
        if let Err(error) = sandbox.order(request).await {
            return Err(launch.undo(error).await);
        }
        launch.succeed();
        Ok(Arc::new(sandbox))
    }

    /// Finds a sandbox again; `None` when there is nothing of it.
    pub(crate) async fn recover(&self, id: &SandboxId) -> Result<Option<Arc<dyn Sandbox>>> {
        let dir = self.dir_of(id)?;
        if !tokio::fs::try_exists(&dir)
            .await
            .map_err(|e| failed(&format!("cannot look at {}", dir.display()), &e))?
        {
            return Ok(None);
        }
        let sandbox = Arc::new(self.sandbox(id, dir));
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

fn failed(what: &str, source: &io::Error) -> Error {
    Error::new(ErrorKind::Internal, format!("{what}: {source}"))
}

fn unexpected(response: &Response) -> Error {
    Error::new(
        ErrorKind::Internal,
        format!("the shim gave an answer to another question: {response:?}"),
    )
}
