//! The container isolation: namespaces and cgroups on the host's kernel, kept by a shim that runs the processes itself.

mod capabilities;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;

use crate::shim::Shims;
use crate::{
    Capabilities, Error, ErrorKind, Isolation, Result, Runtime, Sandbox, SandboxId, SandboxSpec,
    Snapshot,
};

/// Makes containers.
pub struct ContainerRuntime {
    shims: Shims,
    capabilities: Capabilities,
}

impl ContainerRuntime {
    /// Uses `exec_root` (`/run/caisson`) for the sandboxes' directories. Finds the shim: `CAISSON_SHIM`, beside the
    /// running program, in `../libexec/caisson`.
    pub fn open(exec_root: &Path) -> Result<Self> {
        Self::with_shim(exec_root, None)
    }

    /// The same with a shim that the caller names.
    pub fn open_with_shim(exec_root: &Path, shim: &Path) -> Result<Self> {
        Self::with_shim(exec_root, Some(shim))
    }

    fn with_shim(exec_root: &Path, shim: Option<&Path>) -> Result<Self> {
        Ok(ContainerRuntime {
            shims: Shims::open(Isolation::Container, exec_root, shim)?,
            capabilities: capabilities::of_this_host(),
        })
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
        self.shims.create(id, spec, None).await
    }

    async fn restore(
        &self,
        _: &SandboxId,
        _: SandboxSpec,
        _: &Snapshot,
    ) -> Result<Arc<dyn Sandbox>> {
        let why =
            "a container cannot be made from a snapshot: it would need its memory and processes";
        Err(Error::new(ErrorKind::Invalid, why))
    }

    async fn recover(&self, id: &SandboxId) -> Result<Option<Arc<dyn Sandbox>>> {
        self.shims.recover(id).await
    }
}
