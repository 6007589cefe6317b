//! The vm isolation: a KVM microVM per sandbox, kept by a shim that relays to the agent inside of it.
//!
//! Finds the pieces a machine is made of and says what this host lacks; never falls back to a weaker wall. Must not know:
//! KVM, devices, what the guest is told; those are the shim's and the VMM's.

mod pieces;
mod probe;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use caisson_protocol::VmSetup;
pub use caisson_protocol::vmm::{EmulatedRing0, NativeRing0, Probe, Ring0, Unusable};

use crate::shim::Shims;
use crate::{
    Capabilities, Error, ErrorKind, Isolation, Result, RootfsForm, Runtime, Sandbox, SandboxId,
    SandboxSpec, Snapshot,
};
pub use pieces::Pieces;
pub use probe::probe;

/// Guest memory when nobody asks for more: the kernel, the agent and a small workload; one that is given less by its limit
/// still gets this much.
const MEMORY_BYTES: u64 = 512 << 20;

/// Where ring 0 is emulated every page that the guest's kernel prepares costs time.
const EMULATED_MEMORY_BYTES: u64 = 256 << 20;

/// What a daemon's settings say of virtual machines.
#[derive(Clone, Debug, Default)]
pub struct VmSettings {
    /// Guest memory of containers whose limit does not ask for more.
    pub memory_bytes: Option<u64>,
    /// Where the programs and the guest's files are, instead of in the usual places.
    pub pieces: Option<Pieces>,
    /// The shim, instead of the one in the usual places.
    pub shim: Option<PathBuf>,
}

/// Makes virtual machines.
pub struct VmRuntime {
    shims: Shims,
    exec_root: PathBuf,
    settings: VmSettings,
    capabilities: Capabilities,
}

impl VmRuntime {
    /// Uses `exec_root` (`/run/caisson`) for the sandboxes' directories. Whether this host can run virtual machines is found
    /// out when it is asked for one: what runs already can be recovered anywhere.
    pub fn open(exec_root: &Path, settings: VmSettings) -> Result<Self> {
        Ok(VmRuntime {
            shims: Shims::open(Isolation::Vm, exec_root, settings.shim.as_deref())?,
            exec_root: exec_root.to_path_buf(),
            settings,
            capabilities: Capabilities {
                isolation: Isolation::Vm,
                rootfs: RootfsForm::Block,
                share_host_namespaces: false,
                host_devices: false,
                snapshot: false,
                controllers: ["cpu", "cpuset", "io", "memory", "pids"]
                    .map(String::from)
                    .into(),
            },
        })
    }

    /// Why no virtual machine can run here now, if so.
    pub fn check(&self) -> Result<()> {
        let pieces = self.pieces()?;
        emulates_ring_0(&self.exec_root, &pieces.vmm).map(drop)
    }

    fn pieces(&self) -> Result<Pieces> {
        match &self.settings.pieces {
            Some(pieces) => Ok(pieces.clone()),
            None => Pieces::find(),
        }
    }
}

/// Whether this host's KVM emulates the guest's kernel code; an error where it runs no guests.
fn emulates_ring_0(exec_root: &Path, vmm: &Path) -> Result<bool> {
    match probe(exec_root, vmm)?.ring0 {
        Ring0::Native(_) => Ok(false),
        Ring0::Emulated(_) => Ok(true),
        Ring0::Unusable(Unusable { cause, fix }) => {
            let remedy = if fix.is_empty() {
                String::new()
            } else {
                format!("{fix}, or ")
            };
            Err(Error::new(
                ErrorKind::HostUnfit,
                format!(
                    "this host cannot run virtual machines: {cause}: {remedy}use --isolation=container"
                ),
            ))
        }
    }
}

#[async_trait]
impl Runtime for VmRuntime {
    fn isolation(&self) -> Isolation {
        Isolation::Vm
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn create(&self, id: &SandboxId, spec: SandboxSpec) -> Result<Arc<dyn Sandbox>> {
        let pieces = self.pieces()?;
        let (exec_root, vmm) = (self.exec_root.clone(), pieces.vmm.clone());
        let asked = tokio::task::spawn_blocking(move || emulates_ring_0(&exec_root, &vmm)).await;
        let emulated = asked.map_err(|e| Error::new(ErrorKind::HostUnfit, e.to_string()))??;
        let usual = if emulated {
            EMULATED_MEMORY_BYTES
        } else {
            MEMORY_BYTES
        };
        let setup = VmSetup {
            vmm: pieces.vmm,
            share_server: pieces.share_server,
            kernel: pieces.kernel,
            agent: pieces.agent,
            memory_bytes: self.settings.memory_bytes.unwrap_or(usual),
            emulated,
            copies: spec.copies.clone(),
        };
        self.shims.create(id, spec, Some(setup)).await
    }

    async fn restore(
        &self,
        _: &SandboxId,
        _: SandboxSpec,
        _: &Snapshot,
    ) -> Result<Arc<dyn Sandbox>> {
        let why = "virtual machines cannot be made from snapshots yet";
        Err(Error::new(ErrorKind::Invalid, why))
    }

    async fn recover(&self, id: &SandboxId) -> Result<Option<Arc<dyn Sandbox>>> {
        self.shims.recover(id).await
    }
}
