//! One vCPU's registers while an instruction is completed by hand.
//!
//! Where KVM offers it (`KVM_CAP_SYNC_REGS`) they come with the exit and go with the next entry, in the page that the vCPU
//! shares with us: no system call reads or writes them.

use iced_x86::{Instruction, OpKind, Register};
use kvm_bindings::{KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, kvm_regs, kvm_sregs};
use kvm_ioctls::{Cap, Kvm, SyncReg, VcpuFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};

use super::memory::{Access, translate};
use super::sys;
use crate::error::{Error, Result};

/// Why an instruction did not simply complete.
#[derive(Debug)]
pub enum Exception {
    /// Delivered after the instruction (`int3`).
    Trap(u8),
    /// Delivered instead of it.
    Fault { vector: u8, error_code: Option<u32> },
    /// An address with bits that no page table has: #SS when the operand is on the stack, #GP otherwise.
    NonCanonical,
    /// #PF at an address, with the error code of Intel SDM 3A 4.7.
    Page { address: u64, error_code: u32 },
    /// The host failed.
    Host(Error),
}

impl From<Error> for Exception {
    fn from(error: Error) -> Self {
        Exception::Host(error)
    }
}

/// #GP(0).
pub const GENERAL_PROTECTION: Exception = Exception::Fault {
    vector: 13,
    error_code: Some(0),
};

/// #NM.
pub const DEVICE_NOT_AVAILABLE: Exception = Exception::Fault {
    vector: 7,
    error_code: None,
};
/// #MF.
pub const FLOATING_POINT: Exception = Exception::Fault {
    vector: 16,
    error_code: None,
};

pub const CR0_MONITOR_COPROCESSOR: u64 = 1 << 1;
pub const CR0_TASK_SWITCHED: u64 = 1 << 3;

pub const FLAG_CARRY: u64 = 1;
pub const FLAG_ZERO: u64 = 1 << 6;
pub const FLAG_AC: u64 = 1 << 18;
/// CF, PF, AF, ZF, SF, OF.
pub const FLAGS_ARITHMETIC: u64 = 0x8d5;

pub struct Cpu<'a> {
    pub fd: &'a mut VcpuFd,
    pub memory: &'a GuestMemoryMmap,
    pub regs: kvm_regs,
    pub sregs: kvm_sregs,
    loaded: kvm_sregs,
    synced: bool,
}

/// Whether KVM can have a vCPU's registers come with each exit.
pub fn can_synchronise() -> bool {
    Kvm::new().is_ok_and(|kvm| {
        let offered = kvm.check_extension_int(Cap::SyncRegs);
        let wanted = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
        offered > 0 && offered as u32 & wanted == wanted
    })
}

/// Has them come from now on.
pub fn synchronise(fd: &mut VcpuFd) {
    fd.set_sync_valid_reg(SyncReg::Register);
    fd.set_sync_valid_reg(SyncReg::SystemRegister);
}

impl<'a> Cpu<'a> {
    pub fn load(fd: &'a mut VcpuFd, memory: &'a GuestMemoryMmap) -> Result<Self> {
        let synced = fd.get_kvm_run().kvm_valid_regs != 0;
        let (regs, sregs) = if synced {
            let sync = fd.sync_regs();
            (sync.regs, sync.sregs)
        } else {
            let regs = fd.get_regs().map_err(Error::kvm("KVM_GET_REGS"))?;
            let sregs = fd.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?;
            (regs, sregs)
        };
        Ok(Cpu {
            fd,
            memory,
            regs,
            sregs,
            loaded: sregs,
            synced,
        })
    }

    /// Gives the registers back to the vCPU, from its next entry on.
    pub fn store(self) -> Result<()> {
        let system = self.sregs != self.loaded;
        if self.synced {
            self.fd.sync_regs_mut().regs = self.regs;
            self.fd.set_sync_dirty_reg(SyncReg::Register);
            if system {
                self.fd.sync_regs_mut().sregs = self.sregs;
                self.fd.set_sync_dirty_reg(SyncReg::SystemRegister);
            }
            return Ok(());
        }
        if system {
            self.fd
                .set_sregs(&self.sregs)
                .map_err(Error::kvm("KVM_SET_SREGS"))?;
        }
        self.fd
            .set_regs(&self.regs)
            .map_err(Error::kvm("KVM_SET_REGS"))
    }

    /// The privilege level: 0 for the kernel.
    pub fn privilege(&self) -> u8 {
        self.sregs.ss.dpl
    }

    /// Up to 15 bytes at RIP; fewer when the next page is not there.
    pub fn code(&self) -> Vec<u8> {
        let at = match self.bitness() {
            64 => self.regs.rip,
            _ => self.sregs.cs.base.wrapping_add(self.regs.rip) & 0xffff_ffff,
        };
        let mut bytes = vec![0; 15];
        let first = (0x1000 - (at & 0xfff)).min(15) as usize;
        if self.read(at, &mut bytes).is_err() {
            bytes.truncate(first);
            if self.read(at, &mut bytes).is_err() {
                bytes.clear();
            }
        }
        bytes
    }

    /// Queues an exception.
    pub fn inject(&mut self, vector: u8, error_code: Option<u32>) -> Result<()> {
        let mut events = self
            .fd
            .get_vcpu_events()
            .map_err(Error::kvm("KVM_GET_VCPU_EVENTS"))?;
        events.exception.injected = 1;
        events.exception.nr = vector;
        events.exception.has_error_code = u8::from(error_code.is_some());
        events.exception.error_code = error_code.unwrap_or(0);
        events.flags = 0;
        self.fd
            .set_vcpu_events(&events)
            .map_err(Error::kvm("KVM_SET_VCPU_EVENTS"))
    }

    /// 64, 32 or 16: what the code segment says.
    pub fn bitness(&self) -> u32 {
        match (self.sregs.cs.l, self.sregs.cs.db) {
            (1, _) => 64,
            (_, 1) => 32,
            _ => 16,
        }
    }

    /// A general register; 32-bit names give the low half.
    pub fn get(&self, register: Register) -> u64 {
        let full = match self.slot(register) {
            Some(value) => value,
            None => return 0,
        };
        match register.size() {
            4 => full & 0xffff_ffff,
            2 => full & 0xffff,
            1 => full & 0xff,
            _ => full,
        }
    }

    /// Sets a general register; a 32-bit write clears the upper half, a 16-bit write keeps the rest (SDM 1, 3.4.1.1).
    pub fn set(&mut self, register: Register, value: u64) {
        let size = register.size();
        let Some(slot) = self.slot_mut(register) else {
            return;
        };
        *slot = match size {
            8 => value,
            4 => value & 0xffff_ffff,
            2 => (*slot & !0xffff) | (value & 0xffff),
            _ => (*slot & !0xff) | (value & 0xff),
        };
    }

    fn slot(&self, register: Register) -> Option<u64> {
        let r = &self.regs;
        Some(match register.full_register() {
            Register::RAX => r.rax,
            Register::RCX => r.rcx,
            Register::RDX => r.rdx,
            Register::RBX => r.rbx,
            Register::RSP => r.rsp,
            Register::RBP => r.rbp,
            Register::RSI => r.rsi,
            Register::RDI => r.rdi,
            Register::R8 => r.r8,
            Register::R9 => r.r9,
            Register::R10 => r.r10,
            Register::R11 => r.r11,
            Register::R12 => r.r12,
            Register::R13 => r.r13,
            Register::R14 => r.r14,
            Register::R15 => r.r15,
            _ => return None,
        })
    }

    fn slot_mut(&mut self, register: Register) -> Option<&mut u64> {
        let r = &mut self.regs;
        Some(match register.full_register() {
            Register::RAX => &mut r.rax,
            Register::RCX => &mut r.rcx,
            Register::RDX => &mut r.rdx,
            Register::RBX => &mut r.rbx,
            Register::RSP => &mut r.rsp,
            Register::RBP => &mut r.rbp,
            Register::RSI => &mut r.rsi,
            Register::RDI => &mut r.rdi,
            Register::R8 => &mut r.r8,
            Register::R9 => &mut r.r9,
            Register::R10 => &mut r.r10,
            Register::R11 => &mut r.r11,
            Register::R12 => &mut r.r12,
            Register::R13 => &mut r.r13,
            Register::R14 => &mut r.r14,
            Register::R15 => &mut r.r15,
            _ => return None,
        })
    }

    /// The linear address of an instruction's memory operand.
    pub fn address(&self, instruction: &Instruction) -> u64 {
        let operand = (0..instruction.op_count())
            .find(|i| instruction.op_kind(*i) == OpKind::Memory)
            .unwrap_or(0);
        instruction
            .virtual_address(operand, 0, |register, _, _| {
                Some(match register {
                    Register::FS => self.sregs.fs.base,
                    Register::GS => self.sregs.gs.base,
                    Register::CS | Register::DS | Register::ES | Register::SS => 0,
                    Register::RIP => self.regs.rip,
                    other => self.get(other),
                })
            })
            .unwrap_or(0)
    }

    /// The value of a register or memory operand of `size` bytes, at most 8.
    pub fn operand(
        &self,
        instruction: &Instruction,
        index: u32,
        size: usize,
    ) -> Result<u64, Exception> {
        if instruction.op_kind(index) == OpKind::Register {
            return Ok(self.get(instruction.op_register(index)));
        }
        let mut bytes = [0; 8];
        self.read(self.address(instruction), &mut bytes[..size])?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads guest memory by linear address.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Exception> {
        self.read_as(Access::Read, address, into)
    }

    /// Reads one of the processor's own tables, which it may whatever the privilege level is.
    pub fn read_system(&self, address: u64, into: &mut [u8]) -> Result<(), Exception> {
        self.read_as(Access::System, address, into)
    }

    fn read_as(&self, access: Access, address: u64, into: &mut [u8]) -> Result<(), Exception> {
        let mut done = 0;
        while done < into.len() {
            let at = address.wrapping_add(done as u64);
            let chunk = ((0x1000 - (at & 0xfff)) as usize).min(into.len() - done);
            let physical = translate(self, at, access)?;
            vm_memory::Bytes::read_slice(self.memory, &mut into[done..done + chunk], physical)
                .map_err(|_| GENERAL_PROTECTION)?;
            done += chunk;
        }
        Ok(())
    }

    /// Faults unless all of a range may be written.
    pub fn writable(&self, address: u64, len: usize) -> Result<(), Exception> {
        let mut done = 0;
        while done < len as u64 {
            let at = address.wrapping_add(done);
            translate(self, at, Access::Write)?;
            done += 0x1000 - (at & 0xfff);
        }
        Ok(())
    }

    /// Writes guest memory by linear address: all of it, or nothing and a fault.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<(), Exception> {
        self.writable(address, from.len())?;
        let mut done = 0;
        while done < from.len() {
            let at = address.wrapping_add(done as u64);
            let chunk = ((0x1000 - (at & 0xfff)) as usize).min(from.len() - done);
            let physical = translate(self, at, Access::Write)?;
            vm_memory::Bytes::write_slice(self.memory, &from[done..done + chunk], physical)
                .map_err(|_| GENERAL_PROTECTION)?;
            done += chunk;
        }
        Ok(())
    }

    /// Replaces the 16 bytes at a multiple of 16 by `new` if they are `expected`, in one step that other vCPUs cannot
    /// come between; returns what was there.
    pub fn compare_exchange_16(
        &self,
        address: u64,
        expected: u128,
        new: u128,
    ) -> Result<u128, Exception> {
        let physical = translate(self, address, Access::Write)?;
        let slice = self.memory.get_slice(physical, 16);
        let slice = slice.map_err(|_| GENERAL_PROTECTION)?;
        sys::compare_exchange_16(&slice, expected, new).ok_or(GENERAL_PROTECTION)
    }
}
