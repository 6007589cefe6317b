//! SYSCALL on a host that delivers it wrongly.
//!
//! There, SYSCALL from user mode jumps to LSTAR with CS and CPL as they were: the guest takes a fetch fault in user
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
//! A program can jump to the gate by itself, or write to the trap page from anywhere. That is worth nothing that a SYSCALL
//! is not: the write counts only if it is the gate's own, made in user mode's 64-bit segment, and if there is a SYSCALL
//! instruction in front of RCX, that is, if the program could have jumped there instead; otherwise it is the page fault that
//! it would be elsewhere. R11, from which SYSRET takes RFLAGS, is cut down to what user mode can set with POPF.

use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_segment};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileMemory};

use super::PAGE_FAULT;
use super::cpu::Cpu;
use crate::error::{Error, Result};

const GATE: u64 = 0xffff_ffff_ff60_0000;
/// A page of low guest memory that the memory map keeps from the guest.
const GATE_PAGE: u64 = 0xe_0000;
/// The guest-physical address whose writing is a SYSCALL.
pub const TRAP_PAGE: u64 = 0xd000_0000;
/// `mov byte ptr [0xffffffffff601000], 0; ud2`
const GATE_CODE: [u8; 10] = [0xc6, 0x04, 0x25, 0x00, 0x10, 0x60, 0xff, 0x00, 0x0f, 0x0b];

/// Where the instruction of the gate that writes ends.
const GATE_WRITTEN: u64 = GATE + 8;
const SYSCALL: [u8; 2] = [0x0f, 0x05];

const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_SFMASK: u32 = 0xc000_0084;
/// The MSRs of SYSCALL: the first, how many, and a bit for each that is not ours to see (CSTAR).
pub const MSRS: (u32, u32, u8) = (MSR_STAR, 4, 0b0100);

const PTE_PRESENT_USER: u64 = 0x25;
const PTE_TRAP: u64 = 0x67 | 0x18 | 1 << 63;
const PTE_USER: u64 = 4;
const PTE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// CF PF AF ZF SF TF DF OF NT AC ID: what POPF at CPL 3 can change.
const FLAGS_OF_USER: u64 = 0x24_4dd5;
const FLAG_ALWAYS: u64 = 2;
const FLAG_INTERRUPTS: u64 = 1 << 9;
/// The first address that is none of user mode's.
const USER_END: u64 = 1 << 47;

/// One vCPU's way into its kernel: what its kernel has put into the MSRs of SYSCALL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    star: u64,
    entry: u64,
    mask: u64,
}

impl Gate {
    /// The kernel writes one of [`MSRS`].
    pub fn wrote(
        &mut self,
        fd: &mut VcpuFd,
        memory: &GuestMemoryMmap,
        msr: u32,
        value: u64,
    ) -> Result<()> {
        match msr {
            MSR_STAR => self.star = value,
            MSR_SFMASK => self.mask = value,
            MSR_LSTAR => {
                self.entry = value;
                install(fd, memory)?;
                return write_msr(fd, MSR_LSTAR, GATE);
            }
            _ => {}
        }
        write_msr(fd, msr, value)
    }

    /// Does what SYSCALL does (SDM 2B, SYSCALL), for a vCPU that has written to the trap page.
    pub fn enter(&self, fd: &mut VcpuFd, memory: &GuestMemoryMmap) -> Result<()> {
        let mut cpu = Cpu::load(fd, memory)?;
        if cpu.privilege() != 3 {
            // the kernel itself: to it the page is no memory
            return Ok(());
        }
        if !is_syscall(&cpu) {
            const USER_WRITE_PROTECTED: u32 = 7;
            cpu.sregs.cr2 = GATE + 0x1000;
            cpu.inject(PAGE_FAULT, Some(USER_WRITE_PROTECTED))?;
            return cpu.store();
        }
        (cpu.sregs.cs, cpu.sregs.ss) = segments(self.star);
        cpu.regs.r11 = (cpu.regs.r11 & FLAGS_OF_USER) | FLAG_ALWAYS | FLAG_INTERRUPTS;
        cpu.regs.rflags = (cpu.regs.r11 & !self.mask) | FLAG_ALWAYS;
        cpu.regs.rip = self.entry;
        cpu.store()
    }
}

/// CS and SS of the kernel, as the guest wrote them into STAR.
fn segments(star: u64) -> (kvm_segment, kvm_segment) {
    let selector = (star >> 32) as u16 & !3;
    let segment = kvm_segment {
        limit: 0xffff_ffff,
        present: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let code = kvm_segment {
        selector,
        type_: 11,
        l: 1,
        ..segment
    };
    let stack = kvm_segment {
        // no carry goes into what is beside it
        selector: selector.wrapping_add(8),
        type_: 3,
        db: 1,
        ..segment
    };
    (code, stack)
}

/// Whether a vCPU that has written to the trap page comes from a SYSCALL instruction.
fn is_syscall(cpu: &Cpu) -> bool {
    let at_the_gate = cpu.regs.rip == GATE || cpu.regs.rip == GATE_WRITTEN;
    if !at_the_gate || cpu.sregs.cs.l != 1 || !(2..USER_END).contains(&cpu.regs.rcx) {
        return false;
    }
    let mut code = [0; 2];
    // its page may be gone by now, by another vCPU's doing: then nobody can return to it
    cpu.read(cpu.regs.rcx - 2, &mut code).is_err() || code == SYSCALL
}

/// Makes the gate in the guest's page tables.
fn install(fd: &VcpuFd, memory: &GuestMemoryMmap) -> Result<()> {
    let fault = |e: vm_memory::GuestMemoryError| Error::Kernel(format!("its page tables: {e}"));
    let sregs = fd.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?;
    let mut table = sregs.cr3 & PTE_ADDRESS;
    for shift in [39, 30, 21] {
        let at = GuestAddress(table + (GATE >> shift & 0x1ff) * 8);
        let slice = memory.get_slice(at, 8).map_err(fault)?;
        let place: &AtomicU64 = slice
            .get_atomic_ref(0)
            .map_err(|e| Error::Kernel(format!("its page tables: {e}")))?;
        let entry = place.load(Ordering::Acquire);
        if entry & 1 == 0 {
            return Err(Error::Kernel(
                "it has no fixmap: boot it with vsyscall=none on this host".into(),
            ));
        }
        place.fetch_or(PTE_USER, Ordering::AcqRel);
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
        .map_err(fault)
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
    Error::Internal("one MSR does not fit into a list of MSRs".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_star_has_its_segments() {
        let (code, stack) = segments(0x0023_0010_0000_0000);
        assert_eq!((code.selector, stack.selector), (0x10, 0x18));
        let (code, stack) = segments(u64::MAX);
        assert_eq!((code.selector, stack.selector), (0xfffc, 4));
    }
}
