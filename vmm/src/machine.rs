//! One microVM: memory, interrupt controller, devices, vCPUs.
//!
//! ```text
//! guest-physical   0xc000_0000  one page for each virtio device     0xd000_0000  the assist's trap page
//!                  0xfec0_0000  I/O APIC                            0xfee0_0000  local APICs
//! interrupts       4 serial     5, 6, 7, 9 … 23  virtio devices
//! ```

use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_mp_state};
use kvm_ioctls::{
    IoEventAddress, Kvm, MsrExitReason, MsrFilterDefaultAction, MsrFilterRange,
    MsrFilterRangeFlags, VmFd,
};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::assist::{Assist, MSR_LSTAR};
use crate::boot::{self, Boot};
use crate::bus::Bus;
use crate::error::{Error, Result};
use crate::ports::Ports;
use crate::serial::{Console, Line};
use crate::vcpu::{Ended, Exits, Shared, Vcpu};
use crate::virtio::{self, Device, Interrupt, MMIO_LEN, QUEUE_NOTIFY, Transport};
use crate::{cpuid, memory, sys};

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
    pub console: Box<dyn Write + Send>,
    /// On hosts that need it.
    pub assist: Option<Assist>,
}

/// A machine with a kernel in it.
pub struct Machine {
    shared: Arc<Shared>,
    vcpus: Vec<Vcpu>,
    built: Instant,
    _vm: VmFd,
}

impl Machine {
    /// Builds the machine and loads the kernel.
    pub fn new(plan: Plan) -> Result<Self> {
        let built = Instant::now();
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

        let console = Console::new(Line(interrupt_line(&vm, SERIAL_IRQ)?), plan.console);
        let mut bus = Bus::default();
        let mut command_line = plan.command_line.to_owned();
        for (slot, device) in plan.devices.into_iter().enumerate() {
            let (start, irq) = attach_device(&vm, &mut bus, &memory, slot, device)?;
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
            stop: AtomicBool::new(false),
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
            shared,
            vcpus,
            built,
            _vm: vm,
        })
    }

    /// Exit counters, which go on counting.
    pub fn exits(&self) -> &Exits {
        &self.shared.exits
    }

    /// Since the machine began to be built.
    pub fn age(&self) -> Duration {
        self.built.elapsed()
    }

    /// Runs the guest to its end.
    pub fn run(&mut self) -> Result<Ended> {
        register_signal_handler(SIGRTMIN(), on_kick).map_err(|e| Error::Stopped(e.to_string()))?;
        let (ended, first) = mpsc::channel();
        let mut threads: Vec<JoinHandle<()>> = Vec::new();
        for (id, mut vcpu) in self.vcpus.drain(..).enumerate() {
            let ended = ended.clone();
            let body = move || drop(ended.send(vcpu.run()));
            let thread = std::thread::Builder::new()
                .name(format!("caisson-vcpu{id}"))
                .spawn(body);
            threads.push(thread.map_err(Error::io("a vCPU's thread"))?);
        }
        drop(ended);
        let how = first.recv().unwrap_or(Ok(Ended::Stopped));
        self.shared.stop.store(true, Ordering::Release);
        for thread in threads {
            // a thread between its look at `stop` and KVM_RUN misses one kick
            while !thread.is_finished() {
                let _ = thread.kill(SIGRTMIN());
                std::thread::sleep(Duration::from_millis(1));
            }
            let _ = thread.join();
        }
        how
    }
}

/// Interrupts KVM_RUN; that is all.
extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

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
) -> Result<(u64, u32)> {
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
    bus.add(start, virtio::MMIO_LEN, Arc::new(transport));
    Ok((start, irq))
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
