//! SYSCALL on a host that delivers it wrongly.
//!
//! There, SYSCALL from user mode jumps to LSTAR with CS, CPL and RFLAGS as they were: the guest takes a fetch fault in user
//! mode. So LSTAR is pointed at a gate that user mode may execute:
//!
//! ```text
//! 0xffff_ffff_ff60_0000  GATE  mov byte [TRAP], 0     user-executable, in a page of its own of guest memory
//! 0xffff_ffff_ff60_1000  TRAP  → guest-physical TRAP_PAGE, which is no memory: an MMIO exit, that is, us
//! ```
//!
//! Both live in the slot of the legacy vsyscall page, which the guest is told not to use (`vsyscall=none`). On the exit we
//! do what the processor should have done: load CS and SS from STAR, mask RFLAGS with SFMASK, continue at the real entry.
//!
//! A program can jump to the gate by itself. That must be worth no more than a SYSCALL: RCX is whatever it says, which the
//! kernel checks on return as it must anyway; R11, from which SYSRET takes RFLAGS, is cut down to the bits that user mode
//! can set with POPF.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_segment};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::{Error, Result};

const GATE: u64 = 0xffff_ffff_ff60_0000;
/// A page of low guest memory that the memory map keeps from the guest.
const GATE_PAGE: u64 = 0xe_0000;
/// The guest-physical address whose writing is a SYSCALL.
pub const TRAP_PAGE: u64 = 0xd000_0000;
/// `mov byte ptr [0xffffffffff601000], 0; ud2`
const GATE_CODE: [u8; 10] = [0xc6, 0x04, 0x25, 0x00, 0x10, 0x60, 0xff, 0x00, 0x0f, 0x0b];

const MSR_STAR: u32 = 0xc000_0081;
/// The MSR that says where SYSCALL enters.
pub const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_SFMASK: u32 = 0xc000_0084;

const PTE_PRESENT_USER: u64 = 0x25;
const PTE_TRAP: u64 = 0x67 | 0x18 | 1 << 63;
const PTE_USER: u64 = 4;
const PTE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// CF PF AF ZF SF TF DF OF AC ID: what POPF at CPL 3 can change.
const FLAGS_OF_USER: u64 = 0x24_0dd5;
const FLAG_ALWAYS: u64 = 2;
const FLAG_INTERRUPTS: u64 = 1 << 9;

/// One vCPU's way into its kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    entry: u64,
}

impl Gate {
    /// A gate that is in place already.
    pub fn installed(entry: u64) -> Self {
        Gate { entry }
    }

    /// The kernel's entry.
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// Remembers the kernel's entry, makes the gate in the guest's page tables, points LSTAR at it.
    pub fn install(&mut self, fd: &mut VcpuFd, memory: &GuestMemoryMmap, entry: u64) -> Result<()> {
        self.entry = entry;
        let fault = |e: vm_memory::GuestMemoryError| Error::Kernel(format!("its page tables: {e}"));
        let sregs = fd.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?;
        let mut table = sregs.cr3 & PTE_ADDRESS;
        for shift in [39, 30, 21] {
            let at = GuestAddress(table + (GATE >> shift & 0x1ff) * 8);
            let entry: u64 = memory.read_obj(at).map_err(fault)?;
            if entry & 1 == 0 {
                return Err(Error::Kernel(
                    "it has no fixmap: boot it with vsyscall=none on this host".into(),
                ));
            }
            memory.write_obj(entry | PTE_USER, at).map_err(fault)?;
            table = entry & PTE_ADDRESS;
        }
        let at = table + (GATE >> 12 & 0x1ff) * 8;
        memory
            .write_obj(GATE_PAGE | PTE_PRESENT_USER, GuestAddress(at))
            .map_err(fault)?;
        memory
            .write_obj(TRAP_PAGE | PTE_TRAP, GuestAddress(at + 8))
            .map_err(fault)?;
        memory
            .write_slice(&GATE_CODE, GuestAddress(GATE_PAGE))
            .map_err(fault)?;
        write_msr(fd, MSR_LSTAR, GATE)
    }

    /// Does what SYSCALL does (SDM 2B, SYSCALL), for a vCPU that stands behind the gate.
    pub fn enter(&self, fd: &mut VcpuFd) -> Result<()> {
        let mut regs = fd.get_regs().map_err(Error::kvm("KVM_GET_REGS"))?;
        let mut sregs = fd.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?;
        let (star, mask) = (read_msr(fd, MSR_STAR)?, read_msr(fd, MSR_SFMASK)?);
        let selector = (star >> 32) as u16 & !3;
        let segment = kvm_segment {
            limit: 0xffff_ffff,
            present: 1,
            s: 1,
            g: 1,
            ..kvm_segment::default()
        };
        sregs.cs = kvm_segment {
            selector,
            type_: 11,
            l: 1,
            ..segment
        };
        sregs.ss = kvm_segment {
            selector: selector + 8,
            type_: 3,
            db: 1,
            ..segment
        };
        regs.r11 = (regs.r11 & FLAGS_OF_USER) | FLAG_ALWAYS | FLAG_INTERRUPTS;
        regs.rflags = (regs.r11 & !mask) | FLAG_ALWAYS;
        regs.rip = self.entry;
        fd.set_sregs(&sregs).map_err(Error::kvm("KVM_SET_SREGS"))?;
        fd.set_regs(&regs).map_err(Error::kvm("KVM_SET_REGS"))
    }
}

fn read_msr(fd: &VcpuFd, index: u32) -> Result<u64> {
    let mut msrs = Msrs::from_entries(&[kvm_msr_entry {
        index,
        ..Default::default()
    }])
    .map_err(too_many)?;
    fd.get_msrs(&mut msrs).map_err(Error::kvm("KVM_GET_MSRS"))?;
    Ok(msrs.as_slice()[0].data)
}

fn write_msr(fd: &VcpuFd, index: u32, data: u64) -> Result<()> {
    let msrs = Msrs::from_entries(&[kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }])
    .map_err(too_many)?;
    fd.set_msrs(&msrs)
        .map_err(Error::kvm("KVM_SET_MSRS"))
        .map(drop)
}

fn too_many<E>(_: E) -> Error {
    Error::Stopped("one MSR does not fit into a list of MSRs".into())
}
