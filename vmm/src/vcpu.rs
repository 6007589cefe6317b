//! One vCPU: entering the guest, and doing what its exits ask for.
//!
//! ```text
//! begins paused ─ Resume ─▶ in the guest ⇄ exits ─ Pause ─▶ paused
//!                               └─ Stop, or the guest's end ─▶ Ended
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};

use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::GuestMemoryMmap;

use crate::assist::{Assist, VcpuAssist};
use crate::bus::Bus;
use crate::error::{Error, Result};
use crate::ports::{Effect, Ports};
use crate::snapshot::VcpuState;
use crate::{sys, timing};

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
    /// The MSRs that make up a vCPU's state.
    pub msrs: Vec<u32>,
    /// Counters.
    pub exits: Exits,
}

/// What a vCPU's thread is told.
pub enum Order {
    /// Leave the guest; answered when nothing of an exit is left to be done.
    Pause(SyncSender<()>),
    /// Say your state; while paused.
    Save(SyncSender<Result<VcpuState>>),
    /// Go on.
    Resume,
    /// Leave the guest for good.
    Stop,
}

/// Where a vCPU's thread finds its orders.
pub struct Orders {
    /// They wait here.
    pub queue: Receiver<Order>,
    /// Set behind each order; looked at before each entry into the guest.
    pub called: Arc<AtomicBool>,
}

/// A vCPU, ready to run.
pub struct Vcpu {
    fd: VcpuFd,
    shared: Arc<Shared>,
    cpuid: Vec<kvm_cpuid_entry2>,
    assist: VcpuAssist,
}

enum Turn {
    Again,
    Interrupted,
    Ended(Ended),
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
    timing::count_exit();
}

impl Vcpu {
    /// Takes over a vCPU whose registers are set and that was given these leaves.
    pub fn new(mut fd: VcpuFd, shared: Arc<Shared>, cpuid: &[kvm_cpuid_entry2]) -> Self {
        if let Some(assist) = &shared.assist {
            assist.attach(&mut fd);
        }
        Vcpu {
            fd,
            shared,
            cpuid: cpuid.to_vec(),
            assist: VcpuAssist::default(),
        }
    }

    /// Takes over a vCPU whose registers are those of a snapshot.
    pub fn restored(fd: VcpuFd, shared: Arc<Shared>, state: &VcpuState) -> Self {
        Vcpu {
            assist: state.assist,
            ..Vcpu::new(fd, shared, &state.cpuid)
        }
    }

    /// Runs until the guest ends or the order to stop.
    pub fn run(&mut self, orders: &Orders) -> Result<Ended> {
        if let Some(ended) = self.paused(orders) {
            return Ok(ended);
        }
        timing::reached(timing::Phase::Built);
        loop {
            if orders.called.swap(false, Ordering::AcqRel)
                && let Some(ended) = self.obey(orders)?
            {
                return Ok(ended);
            }
            if let Turn::Ended(how) = self.enter_once()? {
                return Ok(how);
            }
        }
    }

    fn obey(&mut self, orders: &Orders) -> Result<Option<Ended>> {
        while let Ok(order) = orders.queue.try_recv() {
            match order {
                Order::Pause(done) => {
                    if let Some(ended) = self.settle()? {
                        return Ok(Some(ended));
                    }
                    let _ = done.send(());
                    if let Some(ended) = self.paused(orders) {
                        return Ok(Some(ended));
                    }
                }
                Order::Resume | Order::Save(_) => {}
                Order::Stop => return Ok(Some(Ended::Stopped)),
            }
        }
        Ok(None)
    }

    /// Waits until it may go on, or is to end.
    fn paused(&mut self, orders: &Orders) -> Option<Ended> {
        loop {
            match orders.queue.recv() {
                Ok(Order::Pause(done)) => drop(done.send(())),
                Ok(Order::Save(answer)) => drop(answer.send(self.save())),
                Ok(Order::Resume) => {
                    // a guest with the PV clock is told that it stood still; others have nothing to be told
                    let _ = self.fd.kvmclock_ctrl();
                    return None;
                }
                Ok(Order::Stop) | Err(_) => return Some(Ended::Stopped),
            }
        }
    }

    /// Has KVM finish the instruction whose exit was served last: its registers change only at the next entry.
    fn settle(&mut self) -> Result<Option<Ended>> {
        self.fd.set_kvm_immediate_exit(1);
        let how = loop {
            match self.enter_once()? {
                Turn::Again => {}
                Turn::Interrupted => break None,
                Turn::Ended(how) => break Some(how),
            }
        };
        self.fd.set_kvm_immediate_exit(0);
        Ok(how)
    }

    fn save(&self) -> Result<VcpuState> {
        VcpuState::save(&self.fd, &self.cpuid, &self.shared.msrs, self.assist)
    }

    fn enter_once(&mut self) -> Result<Turn> {
        let shared = &self.shared;
        match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                count(&shared.exits.io);
                if shared.ports.write(port, data) == Effect::Reset {
                    return Ok(Turn::Ended(Ended::Reset));
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
                        assist.enter_kernel(&mut self.fd, &shared.memory, &mut self.assist)?;
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
                let write = (exit.index, exit.data);
                if let Some(assist) = &shared.assist {
                    assist.wrote_msr(&mut self.fd, &shared.memory, &mut self.assist, write)?;
                }
            }
            Ok(VcpuExit::InternalError) => self.internal_error()?,
            Ok(VcpuExit::Shutdown) => {
                let regs = self.fd.get_regs().map_err(Error::kvm("KVM_GET_REGS"))?;
                return Err(Error::TripleFault { rip: regs.rip });
            }
            Ok(other) => return Err(Error::Stopped(format!("{other:?}"))),
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
                return Ok(Turn::Interrupted);
            }
            Err(e) => {
                return Err(Error::Kvm {
                    call: "KVM_RUN",
                    source: e,
                });
            }
        }
        Ok(Turn::Again)
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
