//! The vm isolation: a KVM microVM per sandbox, kept by a shim that relays to the agent inside of it.
//!
//! Finds the pieces a machine is made of and says what this host lacks; never falls back to a weaker wall. Must not know:
//! KVM, devices, what the guest is told; those are the shim's and the VMM's.

mod pieces;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use caisson_protocol::VmSetup;

use crate::shim::Shims;
use crate::{
    Capabilities, Error, ErrorKind, Isolation, Result, RootfsForm, Runtime, Sandbox, SandboxId,
    SandboxSpec, Snapshot,
};
pub use pieces::Pieces;

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
    settings: VmSettings,
    capabilities: Capabilities,
}

impl VmRuntime {
    /// Uses `exec_root` (`/run/caisson`) for the sandboxes' directories. Whether this host can run virtual machines is found
    /// out when it is asked for one: what runs already can be recovered anywhere.
    pub fn open(exec_root: &Path, settings: VmSettings) -> Result<Self> {
        Ok(VmRuntime {
            shims: Shims::open(Isolation::Vm, exec_root, settings.shim.as_deref())?,
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
        self.pieces()?;
        check_kvm()
    }

    fn pieces(&self) -> Result<Pieces> {
        match &self.settings.pieces {
            Some(pieces) => Ok(pieces.clone()),
            None => Pieces::find(),
        }
    }
}

/// Whether `/dev/kvm` can be used at all.
fn check_kvm() -> Result<()> {
    let unfit = |why: String| Err(Error::new(ErrorKind::HostUnfit, why));
    match std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => unfit(
            "this host has no /dev/kvm: enable virtualization in the firmware and load kvm_intel or kvm_amd, or use \
             --isolation=container"
                .into(),
        ),
        Err(e) => unfit(format!(
            "/dev/kvm cannot be opened ({e}): run the daemon as root or as a member of the group kvm, or use --isolation=container"
        )),
    }
}

/// Whether this host's KVM emulates the guest's kernel code.
fn emulates_ring_0() -> bool {
    Path::new("/sys/module/kvm_pvm").exists()
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
        check_kvm()?;
        let pieces = self.pieces()?;
        let emulated = emulates_ring_0();
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
