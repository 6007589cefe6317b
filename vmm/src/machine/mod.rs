//! One microVM: memory, interrupt controller, devices, vCPUs.
//!
//! ```text
//! guest-physical   0xc000_0000  one page for each virtio device     0xd000_0000  the assist's trap page
//!                  0xfec0_0000  I/O APIC                            0xfee0_0000  local APICs
//! interrupts       4 serial     5, 6, 7, 9 … 23  virtio devices
//! ```

mod build;

pub use build::{Origin, Plan};

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use caisson_protocol::vmm::{VmEnd, VmStats};
use kvm_ioctls::VmFd;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::console_log::ConsoleLog;
use crate::crew::Crew;
use crate::error::{Error, Result};
use crate::snapshot::{self, Chips, Pagemap};
use crate::timing;
use crate::vcpu::{Ended, Shared, Vcpu};
use crate::virtio::{Command, Transport};
use crate::worker::{self, Entry};

/// A machine with a guest in it.
pub struct Machine {
    state: State,
    shared: Arc<Shared>,
    /// In the order of the devices.
    transports: Vec<Arc<Transport>>,
    disks: Vec<usize>,
    console: ConsoleLog,
    pagemap: Pagemap,
    vm: VmFd,
}

enum State {
    /// Nothing runs yet.
    Built(Vec<Vcpu>),
    Running(Crew),
    Paused(Crew),
    Ended(VmEnd),
}

impl Machine {
    /// Makes every thread that the machine will have, each of which calls its role's entry first. The guest does not run
    /// yet.
    pub fn muster(&mut self, vcpu: &Entry, device: &Entry) -> Result<()> {
        if let State::Built(vcpus) = &mut self.state {
            let vcpus = std::mem::take(vcpus);
            let workers = self.transports.iter().map(|t| t.workers()).sum();
            worker::prepare(workers, device)?;
            self.state = State::Paused(Crew::muster(vcpus, vcpu)?);
        }
        Ok(())
    }

    /// Every vCPU leaves the guest, every device stops behind what it has begun.
    pub fn pause(&mut self) -> Result<()> {
        match self.take() {
            State::Running(crew) => {
                crew.pause();
                for transport in &self.transports {
                    transport.pause();
                }
                self.state = State::Paused(crew);
                Ok(())
            }
            other => self.refuse(other, "it is not running"),
        }
    }

    /// Goes on, or begins.
    pub fn resume(&mut self) -> Result<()> {
        match self.take() {
            State::Paused(crew) => {
                for transport in &self.transports {
                    transport.resume();
                }
                crew.resume();
                self.state = State::Running(crew);
                Ok(())
            }
            other => self.refuse(other, "it is not paused"),
        }
    }

    /// Writes a paused machine into two files.
    pub fn snapshot(&self, state: &File, memory: &File) -> Result<()> {
        let State::Paused(crew) = &self.state else {
            return Err(Error::Refused("it is not paused".into()));
        };
        snapshot::State {
            memory_bytes: self.shared.memory.iter().map(|r| r.len()).sum(),
            assisted: self.shared.assist.is_some(),
            vcpus: crew.save()?,
            chips: Chips::save(&self.vm)?,
            serial: self.shared.ports.serial(),
            devices: self.transports.iter().map(|t| t.save()).collect(),
        }
        .write(state)?;
        self.pagemap.write(&self.shared.memory, memory)
    }

    /// Ends it.
    pub fn stop(&mut self) {
        match self.take() {
            State::Ended(end) => self.state = State::Ended(end),
            _ => self.finish(VmEnd::Stopped),
        }
    }

    /// Readable when the guest has ended and [`Machine::end`] will say so; `None` when it does not run.
    pub fn event(&self) -> Option<BorrowedFd<'_>> {
        match &self.state {
            State::Running(crew) | State::Paused(crew) => Some(crew.event()),
            State::Built(_) | State::Ended(_) => None,
        }
    }

    /// How it ended, if it has.
    pub fn end(&mut self) -> Option<VmEnd> {
        let how = match &self.state {
            State::Ended(end) => return Some(end.clone()),
            State::Running(crew) | State::Paused(crew) => crew.ended()?,
            State::Built(_) => return None,
        };
        // panic=-1 restarts as an orderly end does: the kernel's last words make the difference
        let end = match (how, self.console.panic()) {
            (Ok(Ended::Reset), None) => VmEnd::Reset,
            (Ok(Ended::Stopped), _) => VmEnd::Stopped,
            (Ok(Ended::Reset), Some(said)) => VmEnd::Panicked(said),
            (Err(error), None) => VmEnd::Failed(error.to_string()),
            (Err(error), Some(said)) => VmEnd::Failed(format!("{error}, after: {said}")),
        };
        self.finish(end.clone());
        Some(end)
    }

    /// Counters.
    pub fn stats(&self) -> VmStats {
        let exits = &self.shared.exits;
        let mut stats = VmStats {
            exits_io: exits.io.load(Ordering::Relaxed),
            exits_mmio: exits.mmio.load(Ordering::Relaxed),
            exits_assisted: exits.assisted.load(Ordering::Relaxed),
            exits_syscall: exits.syscalls.load(Ordering::Relaxed),
            guest_resident_bytes: self.pagemap.resident_bytes(&self.shared.memory),
            console_dropped_bytes: self.console.dropped_bytes(),
            boot: timing::times(),
            ..VmStats::default()
        };
        for transport in &self.transports {
            transport.count(&mut stats);
        }
        stats
    }

    /// Passes a command to the device that it is for; `disk` counts disks.
    pub fn command(&mut self, disk: Option<u16>, command: &Command) -> Result<()> {
        if let Some(disk) = disk {
            let Some(at) = self.disks.get(usize::from(disk)) else {
                return Err(Error::Refused(format!(
                    "there is no disk {disk}; there are {}",
                    self.disks.len()
                )));
            };
            return self.transports[*at].command(command);
        }
        let is_other = |error: &Error| matches!(error, Error::NotThisDevice);
        self.transports
            .iter()
            .map(|transport| transport.command(command))
            .find(|how| !how.as_ref().is_err_and(is_other))
            .unwrap_or_else(|| Err(Error::Refused("this machine has no such device".into())))
    }

    fn take(&mut self) -> State {
        std::mem::replace(&mut self.state, State::Built(Vec::new()))
    }

    fn refuse(&mut self, state: State, why: &str) -> Result<()> {
        self.state = state;
        Err(Error::Refused(why.into()))
    }

    fn finish(&mut self, end: VmEnd) {
        // a crew that goes stops its threads; devices go behind them
        self.state = State::Ended(end);
        for transport in &self.transports {
            transport.pause();
        }
    }
}
