//! One vCPU and the thread that runs it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::GuestMemoryMmap;

use crate::assist::{Assist, MSR_LSTAR, VcpuAssist};
use crate::bus::Bus;
use crate::error::{Error, Result};
use crate::ports::{Effect, Ports};
use crate::sys;

const EMULATION_FAILED: u32 = 1;

/// How the guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It reset itself, which is how it powers off.
    Reset,
    /// The machine was told to stop.
    Stopped,
}

/// Exits of all vCPUs, by reason.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Exits {
    pub io: AtomicU64,
    pub mmio: AtomicU64,
    /// Instructions that the assist completed.
    pub assisted: AtomicU64,
    /// SYSCALLs that it forwarded.
    pub syscalls: AtomicU64,
}

/// What every vCPU shares.
pub struct Shared {
    /// Devices in memory.
    pub bus: Bus,
    /// Devices at ports.
    pub ports: Ports,
    /// On hosts that need it.
    pub assist: Option<Assist>,
    /// The guest's memory.
    pub memory: GuestMemoryMmap,
    /// Counters.
    pub exits: Exits,
    /// Set when the vCPUs are to leave the guest for good.
    pub stop: AtomicBool,
}

/// A vCPU, ready to run.
pub struct Vcpu {
    fd: VcpuFd,
    shared: Arc<Shared>,
    assist: VcpuAssist,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Vcpu {
    /// Takes over a vCPU whose registers are set.
    pub fn new(fd: VcpuFd, shared: Arc<Shared>) -> Self {
        Vcpu {
            fd,
            shared,
            assist: VcpuAssist::default(),
        }
    }

    /// Runs until the guest ends or the machine is stopped.
    pub fn run(&mut self) -> Result<Ended> {
        let shared = self.shared.clone();
        loop {
            if shared.stop.load(Ordering::Acquire) {
                return Ok(Ended::Stopped);
            }
            match self.fd.run() {
                Ok(VcpuExit::IoOut(port, data)) => {
                    count(&shared.exits.io);
                    if shared.ports.write(port, data)? == Effect::Reset {
                        return Ok(Ended::Reset);
                    }
                }
                Ok(VcpuExit::IoIn(port, data)) => {
                    count(&shared.exits.io);
                    shared.ports.read(port, data);
                }
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    match shared.assist.as_ref().filter(|a| a.is_syscall(address)) {
                        Some(assist) => {
                            count(&shared.exits.syscalls);
                            assist.enter_kernel(&mut self.fd, &mut self.assist)?;
                        }
                        None => {
                            count(&shared.exits.mmio);
                            shared.bus.write(address, data);
                        }
                    }
                }
                Ok(VcpuExit::MmioRead(address, data)) => {
                    count(&shared.exits.mmio);
                    shared.bus.read(address, data);
                }
                Ok(VcpuExit::X86Wrmsr(exit)) => {
                    *exit.error = 0;
                    let (index, value) = (exit.index, exit.data);
                    if let Some(assist) = shared.assist.as_ref().filter(|_| index == MSR_LSTAR) {
                        assist.wrote_lstar(
                            &mut self.fd,
                            &shared.memory,
                            &mut self.assist,
                            value,
                        )?;
                    }
                }
                Ok(VcpuExit::InternalError) => self.internal_error()?,
                Ok(VcpuExit::Shutdown) => {
                    let regs = self.fd.get_regs().map_err(Error::kvm("KVM_GET_REGS"))?;
                    return Err(Error::TripleFault { rip: regs.rip });
                }
                Ok(other) => return Err(Error::Stopped(format!("{other:?}"))),
                Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {}
                Err(e) => {
                    return Err(Error::Kvm {
                        call: "KVM_RUN",
                        source: e,
                    });
                }
            }
        }
    }

    fn internal_error(&mut self) -> Result<()> {
        let suberror = sys::internal_suberror(&mut self.fd);
        match &self.shared.assist {
            Some(assist) if suberror == EMULATION_FAILED => {
                count(&self.shared.exits.assisted);
                assist.complete(&mut self.fd, &self.shared.memory)
            }
            _ => Err(Error::Stopped(format!(
                "KVM_EXIT_INTERNAL_ERROR, suberror {suberror}"
            ))),
        }
    }
}
