//! Building a machine, from a kernel or from a snapshot: what KVM is given, in the order in which it wants it.

use std::fs::File;
use std::sync::Arc;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_mp_state};
use kvm_ioctls::{
    IoEventAddress, Kvm, MsrExitReason, MsrFilterDefaultAction, MsrFilterRange,
    MsrFilterRangeFlags, VcpuFd, VmFd,
};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::{Machine, State};
use crate::assist::{Assist, MSRS};
use crate::boot::{self, Boot};
use crate::bus::Bus;
use crate::console_log::ConsoleLog;
use crate::error::{Error, Result};
use crate::ports::Ports;
use crate::serial::{Console, Line};
use crate::snapshot::{self, Pagemap, unfit};
use crate::vcpu::{Exits, Shared, Vcpu};
use crate::virtio::{self, Device, Interrupt, MMIO_LEN, QUEUE_NOTIFY, Transport, TransportState};
use crate::{cpuid, memory, sys};

/// KVM keeps three pages of its own here; below the APICs, in the gap for devices.
const TSS_ADDRESS: usize = 0xfffb_d000;
const DEVICES_START: u64 = memory::MMIO_GAP_START;
const SERIAL_IRQ: u32 = 4;
/// Lines that no ISA device of the machine uses.
const DEVICE_IRQS: [u32; 18] = [
    5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23,
];

/// Each takes 40 bytes of the kernel's command line, which has 2048.
const DEVICES_MAX: usize = 36;

/// What to build.
pub struct Plan<'a> {
    /// What is in it at first.
    pub origin: Origin<'a>,
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

/// Where a machine comes from.
pub enum Origin<'a> {
    /// A kernel is booted.
    Kernel {
        /// An ELF `vmlinux`.
        image: &'a File,
        /// An initial file system (cpio), if any.
        initramfs: Option<&'a File>,
        /// The kernel's command line, without the devices.
        command_line: &'a str,
    },
    /// A paused machine goes on.
    Snapshot {
        /// Checked against the spec already.
        state: Box<snapshot::State>,
        /// Its memory.
        memory: &'a File,
    },
}

/// How a vCPU begins.
enum Begin {
    Boot(GuestAddress),
    Restore(Vec<snapshot::VcpuState>),
}

impl Machine {
    /// Builds the machine. Nothing of the guest runs yet.
    pub fn new(plan: Plan) -> Result<Self> {
        let kvm = Kvm::new().map_err(Error::NoKvm)?;
        let vm = kvm.create_vm().map_err(Error::kvm("KVM_CREATE_VM"))?;
        // memory before the interrupt controller: the other order costs a grace period of 8 ms
        let memory = match &plan.origin {
            Origin::Kernel { .. } => memory::reserve(plan.memory_bytes)?,
            Origin::Snapshot { memory, .. } => snapshot::map(memory, plan.memory_bytes)?,
        };
        sys::set_memory(&vm, &memory)?;
        create_chips(&vm)?;
        if plan.assist.is_some() {
            watch_syscall_msrs(&vm)?;
        }
        let mut bus = Bus::default();
        let mut places = Vec::new();
        for (slot, device) in plan.devices.into_iter().enumerate() {
            places.push(attach_device(&vm, &mut bus, &memory, slot, device)?);
        }
        let line = Line(interrupt_line(&vm, SERIAL_IRQ)?);
        let out = Box::new(plan.console.clone());
        let (begin, serial) = match plan.origin {
            Origin::Kernel {
                image,
                initramfs,
                command_line,
            } => {
                let boot = Boot {
                    kernel: image,
                    initramfs,
                    command_line: &with_devices(command_line, &places),
                    vcpus: plan.vcpus,
                    memory_bytes: plan.memory_bytes,
                };
                let entry = boot::load(&memory, &boot)?;
                (Begin::Boot(entry), Console::new(line, out))
            }
            Origin::Snapshot { state, .. } => {
                restore_devices(&places, state.devices)?;
                state.chips.restore(&vm)?;
                let serial = Console::restored(line, out, &state.serial)?;
                (Begin::Restore(state.vcpus), serial)
            }
        };
        let shared = Arc::new(Shared {
            bus,
            ports: Ports::new(serial),
            assist: plan.assist,
            memory,
            msrs: kvm
                .get_msr_index_list()
                .map_err(Error::kvm("KVM_GET_MSR_INDEX_LIST"))?
                .as_slice()
                .to_vec(),
            exits: Exits::default(),
        });
        let vcpus = make_vcpus(&kvm, &vm, plan.vcpus, &begin, &shared)?;
        let transports: Vec<_> = places.into_iter().map(|p| p.transport).collect();
        Ok(Machine {
            state: State::Built(vcpus),
            shared,
            disks: (0..transports.len())
                .filter(|i| transports[*i].kind() == virtio::BLOCK)
                .collect(),
            transports,
            console: plan.console,
            pagemap: Pagemap::open()?,
            vm,
        })
    }
}

fn create_chips(vm: &VmFd) -> Result<()> {
    vm.set_tss_address(TSS_ADDRESS)
        .map_err(Error::kvm("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip()
        .map_err(Error::kvm("KVM_CREATE_IRQCHIP"))?;
    let pit = kvm_bindings::kvm_pit_config {
        flags: kvm_bindings::KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    vm.create_pit2(pit).map_err(Error::kvm("KVM_CREATE_PIT2"))
}

fn restore_devices(places: &[Place], saved: Vec<TransportState>) -> Result<()> {
    if saved.len() != places.len() {
        return Err(unfit(format!(
            "it has {} devices, the spec {}",
            saved.len(),
            places.len()
        )));
    }
    for (place, saved) in places.iter().zip(saved) {
        place.transport.restore(saved)?;
    }
    Ok(())
}

fn make_vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    count: u8,
    begin: &Begin,
    shared: &Arc<Shared>,
) -> Result<Vec<Vcpu>> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?;
    let assisted = shared.assist.is_some();
    let make = |id: u8| {
        let fd = vm
            .create_vcpu(u64::from(id))
            .map_err(Error::kvm("KVM_CREATE_VCPU"))?;
        let shown = cpuid::for_vcpu(supported.clone(), id, count, assisted);
        begin_vcpu(fd, id, &shown, begin, shared)
    };
    (0..count).map(make).collect()
}

fn begin_vcpu(
    fd: VcpuFd,
    id: u8,
    shown: &CpuId,
    begin: &Begin,
    shared: &Arc<Shared>,
) -> Result<Vcpu> {
    let entry = match begin {
        Begin::Restore(states) => {
            let state = states
                .get(usize::from(id))
                .ok_or_else(|| unfit("a vCPU is missing"))?;
            if let Some(what) = cpuid::missing(shown.as_slice(), &state.cpuid) {
                return Err(unfit(format!(
                    "its guest was shown a processor feature that this host lacks: {what}"
                )));
            }
            state.restore(&fd)?;
            return Ok(Vcpu::restored(fd, shared.clone(), state));
        }
        Begin::Boot(entry) => *entry,
    };
    fd.set_cpuid2(shown).map_err(Error::kvm("KVM_SET_CPUID2"))?;
    if id == 0 {
        boot::boot_registers(&fd, &shared.memory, entry)?;
    } else {
        let waits = kvm_mp_state {
            mp_state: kvm_bindings::KVM_MP_STATE_UNINITIALIZED,
        };
        fd.set_mp_state(waits)
            .map_err(Error::kvm("KVM_SET_MP_STATE"))?;
    }
    Ok(Vcpu::new(fd, shared.clone(), shown.as_slice()))
}

/// A device in its place.
struct Place {
    start: u64,
    irq: u32,
    transport: Arc<Transport>,
}

fn with_devices(command_line: &str, places: &[Place]) -> String {
    let mut line = command_line.to_owned();
    for Place { start, irq, .. } in places {
        line.push_str(&format!(
            " virtio_mmio.device={MMIO_LEN:#x}@{start:#x}:{irq}"
        ));
    }
    line
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
    memory: &GuestMemoryMmap,
    slot: usize,
    device: Box<dyn Device>,
) -> Result<Place> {
    if slot >= DEVICES_MAX {
        return Err(Error::Spec(format!(
            "there are more than {DEVICES_MAX} devices"
        )));
    }
    // drivers of virtio devices share lines: each looks at its own device's status
    let irq = DEVICE_IRQS[slot % DEVICE_IRQS.len()];
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
    Ok(Place {
        start,
        irq,
        transport,
    })
}

/// Has KVM leave writes of SYSCALL's MSRs to us.
fn watch_syscall_msrs(vm: &VmFd) -> Result<()> {
    let cap = kvm_bindings::kvm_enable_cap {
        cap: kvm_bindings::KVM_CAP_X86_USER_SPACE_MSR,
        args: [u64::from(MsrExitReason::Filter.bits()), 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&cap)
        .map_err(Error::kvm("KVM_ENABLE_CAP(X86_USER_SPACE_MSR)"))?;
    let (base, msr_count, allowed) = MSRS;
    let denied = MsrFilterRange {
        flags: MsrFilterRangeFlags::WRITE,
        base,
        msr_count,
        bitmap: &[allowed],
    };
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[denied])
        .map_err(Error::kvm("KVM_X86_SET_MSR_FILTER"))
}
