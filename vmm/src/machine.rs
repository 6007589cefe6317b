//! One microVM: memory, interrupt controller, devices, vCPUs.
//!
//! ```text
//! guest-physical   0xc000_0000  one page for each virtio device     0xd000_0000  the assist's trap page
//!                  0xfec0_0000  I/O APIC                            0xfee0_0000  local APICs
//! interrupts       4 serial     5, 6, 7, 9 … 23  virtio devices
//! ```

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use caisson_protocol::vmm::{VmEnd, VmStats};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_mp_state};
use kvm_ioctls::{
    IoEventAddress, Kvm, MsrExitReason, MsrFilterDefaultAction, MsrFilterRange,
    MsrFilterRangeFlags, VmFd,
};
use vmm_sys_util::eventfd::EventFd;

use crate::assist::{Assist, MSR_LSTAR};
use crate::boot::{self, Boot};
use crate::bus::Bus;
use crate::console_log::ConsoleLog;
use crate::crew::Crew;
use crate::error::{Error, Result};
use crate::ports::Ports;
use crate::serial::{Console, Line};
use crate::vcpu::{Ended, Exits, Shared, Vcpu};
use crate::virtio::{self, Command, Device, Interrupt, MMIO_LEN, QUEUE_NOTIFY, Transport};
use crate::worker::{self, Entry};
use crate::{cpuid, memory, sys, timing};

/// KVM keeps three pages of its own here; below the APICs, in the gap for devices.
const TSS_ADDRESS: usize = 0xfffb_d000;
const DEVICES_START: u64 = memory::MMIO_GAP_START;
const SERIAL_IRQ: u32 = 4;
/// Lines that no ISA device of the machine uses.
const DEVICE_IRQS: [u32; 18] = [
    5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23,
];

/// What to build.
pub struct Plan<'a> {
    /// An ELF `vmlinux`.
    pub kernel: &'a File,
    /// An initial file system (cpio), if any.
    pub initramfs: Option<&'a File>,
    /// The kernel's command line, without the devices.
    pub command_line: &'a str,
    /// vCPUs.
    pub vcpus: u8,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// The devices, in the order in which the guest sees them.
    pub devices: Vec<Box<dyn Device>>,
    /// Where the serial console goes.
    pub console: ConsoleLog,
    /// On hosts that need it.
    pub assist: Option<Assist>,
}

/// A machine with a kernel in it.
pub struct Machine {
    state: State,
    shared: Arc<Shared>,
    /// In the order of the devices.
    transports: Vec<Arc<Transport>>,
    disks: Vec<usize>,
    console: ConsoleLog,
    _vm: VmFd,
}

enum State {
    /// Nothing runs yet.
    Built(Vec<Vcpu>),
    Running(Crew),
    Paused(Crew),
    Ended(VmEnd),
}

impl Machine {
    /// Builds the machine and loads the kernel.
    pub fn new(plan: Plan) -> Result<Self> {
        let kvm = Kvm::new().map_err(Error::NoKvm)?;
        let vm = kvm.create_vm().map_err(Error::kvm("KVM_CREATE_VM"))?;
        // memory before the interrupt controller: the other order costs a grace period of 8 ms
        let memory = memory::reserve(plan.memory_bytes)?;
        sys::set_memory(&vm, &memory)?;
        vm.set_tss_address(TSS_ADDRESS)
            .map_err(Error::kvm("KVM_SET_TSS_ADDR"))?;
        vm.create_irq_chip()
            .map_err(Error::kvm("KVM_CREATE_IRQCHIP"))?;
        let pit = kvm_bindings::kvm_pit_config {
            flags: kvm_bindings::KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        vm.create_pit2(pit).map_err(Error::kvm("KVM_CREATE_PIT2"))?;
        let assisted = plan.assist.is_some();
        if assisted {
            watch_lstar(&vm)?;
        }

        let line = Line(interrupt_line(&vm, SERIAL_IRQ)?);
        let console = Console::new(line, Box::new(plan.console.clone()));
        let mut transports = Vec::new();
        let mut bus = Bus::default();
        let mut command_line = plan.command_line.to_owned();
        for (slot, device) in plan.devices.into_iter().enumerate() {
            let (start, irq, transport) = attach_device(&vm, &mut bus, &memory, slot, device)?;
            transports.push(transport);
            command_line.push_str(&format!(
                " virtio_mmio.device={:#x}@{start:#x}:{irq}",
                MMIO_LEN
            ));
        }
        let boot = Boot {
            kernel: plan.kernel,
            initramfs: plan.initramfs,
            command_line: &command_line,
            vcpus: plan.vcpus,
            memory_bytes: plan.memory_bytes,
        };
        let entry = boot::load(&memory, &boot)?;

        let supported: CpuId = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?;
        let shared = Arc::new(Shared {
            bus,
            ports: Ports::new(console),
            assist: plan.assist,
            memory,
            exits: Exits::default(),
        });
        let mut vcpus = Vec::new();
        for id in 0..plan.vcpus {
            let fd = vm
                .create_vcpu(u64::from(id))
                .map_err(Error::kvm("KVM_CREATE_VCPU"))?;
            let shown = cpuid::for_vcpu(supported.clone(), id, plan.vcpus, assisted);
            fd.set_cpuid2(&shown)
                .map_err(Error::kvm("KVM_SET_CPUID2"))?;
            if id == 0 {
                boot::boot_registers(&fd, &shared.memory, entry)?;
            } else {
                let waits = kvm_mp_state {
                    mp_state: kvm_bindings::KVM_MP_STATE_UNINITIALIZED,
                };
                fd.set_mp_state(waits)
                    .map_err(Error::kvm("KVM_SET_MP_STATE"))?;
            }
            vcpus.push(Vcpu::new(fd, shared.clone()));
        }
        Ok(Machine {
            state: State::Built(vcpus),
            shared,
            disks: (0..transports.len())
                .filter(|i| transports[*i].kind() == virtio::BLOCK)
                .collect(),
            transports,
            console: plan.console,
            _vm: vm,
        })
    }

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
            guest_resident_bytes: memory::resident_bytes(&self.shared.memory),
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

fn interrupt_line(vm: &VmFd, irq: u32) -> Result<EventFd> {
    let line =
        EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::io("eventfd"))?;
    vm.register_irqfd(&line, irq)
        .map_err(Error::kvm("KVM_IRQFD"))?;
    Ok(line)
}

fn attach_device(
    vm: &VmFd,
    bus: &mut Bus,
    memory: &vm_memory::GuestMemoryMmap,
    slot: usize,
    device: Box<dyn Device>,
) -> Result<(u64, u32, Arc<Transport>)> {
    let irq = *DEVICE_IRQS
        .get(slot)
        .ok_or_else(|| Error::Stopped(format!("more than {} devices", DEVICE_IRQS.len())))?;
    let start = DEVICES_START + slot as u64 * MMIO_LEN;
    let interrupt = Interrupt::new(interrupt_line(vm, irq)?);
    let mut kicks = Vec::new();
    for queue in 0..device.queue_sizes().len() {
        let kick =
            EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::io("eventfd"))?;
        vm.register_ioevent(
            &kick,
            &IoEventAddress::Mmio(start + QUEUE_NOTIFY),
            queue as u32,
        )
        .map_err(Error::kvm("KVM_IOEVENTFD"))?;
        kicks.push(kick);
    }
    let transport = Transport::new(device, memory.clone(), Arc::new(kicks), interrupt);
    let transport = Arc::new(transport);
    bus.add(start, MMIO_LEN, transport.clone());
    Ok((start, irq, transport))
}

/// Has KVM hand writes of LSTAR to us.
fn watch_lstar(vm: &VmFd) -> Result<()> {
    let cap = kvm_bindings::kvm_enable_cap {
        cap: kvm_bindings::KVM_CAP_X86_USER_SPACE_MSR,
        args: [u64::from(MsrExitReason::Filter.bits()), 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&cap)
        .map_err(Error::kvm("KVM_ENABLE_CAP(X86_USER_SPACE_MSR)"))?;
    let denied = MsrFilterRange {
        flags: MsrFilterRangeFlags::WRITE,
        base: MSR_LSTAR,
        msr_count: 1,
        bitmap: &[0],
    };
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[denied])
        .map_err(Error::kvm("KVM_X86_SET_MSR_FILTER"))
}
