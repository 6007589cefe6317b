//! Running guest kernels on hosts whose KVM emulates ring 0.
//!
//! On such a host (kvm_pvm; see docs/decisions/0008) user code runs natively and kernel code is interpreted by KVM's
//! instruction emulator, which refuses some instructions: they arrive as `KVM_EXIT_INTERNAL_ERROR`, suberror EMULATION,
//! with RIP on the instruction. This module completes them as the processor would and resumes the guest. Elsewhere the
//! probe finds nothing to do, no `Assist` is made, and none of this runs.
//!
//! One door: [`Assist::complete`] for a refused instruction, [`Assist::wrote_msr`] and [`Assist::is_syscall`] /
//! [`Assist::enter_kernel`] for SYSCALL, which such a host mishandles (see `syscall`).
//!
//! Must not know: devices, the control socket, what is booted.

mod completed;
mod cpu;
mod instructions;
mod memory;
mod sys;
mod syscall;
#[cfg(test)]
mod tests;
mod xstate;

use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind, Register};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryMmap;

use crate::error::{Error, Result};
use completed::Completion;
use cpu::{Cpu, Exception};
use syscall::TRAP_PAGE;

pub use syscall::MSRS;

/// What a virtual machine on such a host needs, shared by its vCPUs.
#[derive(Debug)]
pub struct Assist {
    layout: xstate::Layout,
    synchronises: bool,
}

/// The part that each vCPU has of its own. A snapshot keeps it as it is, for a vCPU whose MSRs and memory are restored too:
/// the gate itself is in the guest's memory and in LSTAR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuAssist {
    gate: syscall::Gate,
}

impl Assist {
    /// Reads the processor's XSAVE layout, and asks KVM what it offers.
    pub fn of_this_host() -> Self {
        Assist {
            layout: xstate::Layout::of_this_processor(),
            synchronises: cpu::can_synchronise(),
        }
    }

    /// Prepares a new vCPU.
    pub fn attach(&self, fd: &mut VcpuFd) {
        if self.synchronises {
            cpu::synchronise(fd);
        }
    }

    /// Completes the instruction at RIP, which KVM's emulator refused, or makes it fault as the processor would.
    pub fn complete(&self, fd: &mut VcpuFd, memory: &GuestMemoryMmap) -> Result<()> {
        let mut cpu = Cpu::load(fd, memory)?;
        let code = cpu.code();
        let (bitness, rip) = (cpu.bitness(), cpu.regs.rip);
        let mut decoder = Decoder::with_ip(bitness, &code, rip, DecoderOptions::NONE);
        let instruction = decoder.decode();
        let done = match Completion::of(instruction.mnemonic()) {
            _ if cpu.privilege() == 3 => Err(refused_to_user(&cpu, &instruction)),
            Some(how) => instructions::complete(&mut cpu, &instruction, how, &self.layout),
            None => return Err(unknown(&cpu, &instruction, &code)),
        };
        match done {
            Ok(()) => cpu.regs.rip = instruction.next_ip(),
            Err(Exception::Trap(vector)) => {
                cpu.regs.rip = instruction.next_ip();
                cpu.inject(vector, None)?;
            }
            Err(Exception::Fault { vector, error_code }) => cpu.inject(vector, error_code)?,
            Err(Exception::NonCanonical) => {
                let on_stack = instruction.memory_segment() == Register::SS;
                cpu.inject(if on_stack { STACK } else { GENERAL }, Some(0))?;
            }
            Err(Exception::Page {
                address,
                error_code,
            }) => {
                cpu.sregs.cr2 = address;
                cpu.inject(PAGE_FAULT, Some(error_code))?;
            }
            Err(Exception::Host(error)) => return Err(error),
        }
        cpu.store()
    }

    /// The guest writes one of [`MSRS`], which KVM has left to us.
    pub fn wrote_msr(
        &self,
        fd: &mut VcpuFd,
        memory: &GuestMemoryMmap,
        of: &mut VcpuAssist,
        (msr, value): (u32, u64),
    ) -> Result<()> {
        of.gate.wrote(fd, memory, msr, value)
    }

    /// Whether a write to this guest-physical address may be a SYSCALL on its way into the kernel.
    pub fn is_syscall(&self, address: u64) -> bool {
        address & !0xfff == TRAP_PAGE
    }

    /// Finishes a SYSCALL, or whatever else has written there.
    pub fn enter_kernel(
        &self,
        fd: &mut VcpuFd,
        memory: &GuestMemoryMmap,
        of: &mut VcpuAssist,
    ) -> Result<()> {
        of.gate.enter(fd, memory)
    }
}

const INVALID_OPCODE: u8 = 6;
const STACK: u8 = 12;
const GENERAL: u8 = 13;
const PAGE_FAULT: u8 = 14;

/// The fault of a program whose instruction is here because its operand is no memory: that of a page which is not for it.
fn refused_to_user(cpu: &Cpu, instruction: &Instruction) -> Exception {
    const PROTECTION_OF_USER: u32 = 5;
    const WRITE: u32 = 2;
    let memory = |i: u32| i < instruction.op_count() && instruction.op_kind(i) == OpKind::Memory;
    if !(0..5).any(memory) {
        return Exception::Fault {
            vector: INVALID_OPCODE,
            error_code: None,
        };
    }
    Exception::Page {
        address: cpu.address(instruction),
        error_code: PROTECTION_OF_USER | if memory(0) { WRITE } else { 0 },
    }
}

fn unknown(cpu: &Cpu, instruction: &Instruction, code: &[u8]) -> Error {
    let mut text = String::new();
    iced_x86::Formatter::format(&mut iced_x86::GasFormatter::new(), instruction, &mut text);
    Error::Unassisted(format!("{text} ({code:02x?}) at {:#x}", cpu.regs.rip))
}
