//! Running guest kernels on hosts whose KVM emulates ring 0.
//!
//! On such a host (kvm_pvm; see docs/decisions/0008) user code runs natively and kernel code is interpreted by KVM's
//! instruction emulator, which refuses some instructions: they arrive as `KVM_EXIT_INTERNAL_ERROR`, suberror EMULATION,
//! with RIP on the instruction. This module completes them as the processor would and resumes the guest. Elsewhere the
//! probe finds nothing to do, no `Assist` is made, and none of this runs.
//!
//! One door: [`Assist::complete`] for a refused instruction, [`Assist::wrote_lstar`] and [`Assist::is_syscall`] /
//! [`Assist::enter_kernel`] for SYSCALL, which such a host mishandles (see `syscall`).
//!
//! Must not know: devices, the control socket, what is booted.

mod completed;
mod cpu;
mod instructions;
mod memory;
mod syscall;
mod xstate;

use kvm_ioctls::VcpuFd;
use vm_memory::GuestMemoryMmap;

use crate::error::{Error, Result};
use completed::Completion;
use cpu::{Cpu, Exception};

pub use syscall::{MSR_LSTAR, TRAP_PAGE};

/// What a virtual machine on such a host needs, shared by its vCPUs.
#[derive(Debug)]
pub struct Assist {
    layout: xstate::Layout,
}

/// The part that each vCPU has of its own.
#[derive(Debug, Default)]
pub struct VcpuAssist {
    gate: syscall::Gate,
}

impl Assist {
    /// Reads the processor's XSAVE layout.
    pub fn new() -> Self {
        Assist {
            layout: xstate::Layout::of_this_processor(),
        }
    }

    /// Completes the instruction at RIP, which KVM's emulator refused, or makes it fault as the processor would.
    pub fn complete(&self, fd: &mut VcpuFd, memory: &GuestMemoryMmap) -> Result<()> {
        let mut cpu = Cpu::load(fd, memory)?;
        let code = cpu.code();
        let mut decoder =
            iced_x86::Decoder::with_ip(64, &code, cpu.regs.rip, iced_x86::DecoderOptions::NONE);
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return Err(Error::Unassisted(format!(
                "{code:02x?} at {:#x} cannot be decoded",
                cpu.regs.rip
            )));
        }
        let next = instruction.next_ip();
        let done = Completion::of(instruction.mnemonic())
            .map(|how| instructions::complete(&mut cpu, &instruction, how, &self.layout));
        match done {
            Some(Ok(())) => cpu.regs.rip = next,
            Some(Err(Exception::Trap(vector))) => {
                cpu.regs.rip = next;
                cpu.inject(vector, None)?;
            }
            Some(Err(Exception::Fault { vector, error_code })) => cpu.inject(vector, error_code)?,
            Some(Err(Exception::Page {
                address,
                error_code,
            })) => {
                cpu.sregs.cr2 = address;
                cpu.inject(14, Some(error_code))?;
            }
            Some(Err(Exception::Host(error))) => return Err(error),
            None => {
                let mut text = String::new();
                iced_x86::Formatter::format(
                    &mut iced_x86::GasFormatter::new(),
                    &instruction,
                    &mut text,
                );
                return Err(Error::Unassisted(format!(
                    "{text} ({code:02x?}) at {:#x}",
                    cpu.regs.rip
                )));
            }
        }
        cpu.store()
    }

    /// The guest sets the address that SYSCALL enters at: put our gate in its place.
    pub fn wrote_lstar(
        &self,
        fd: &mut VcpuFd,
        memory: &GuestMemoryMmap,
        of: &mut VcpuAssist,
        entry: u64,
    ) -> Result<()> {
        of.gate.install(fd, memory, entry)
    }

    /// Whether a write to this guest-physical address is a SYSCALL on its way into the kernel.
    pub fn is_syscall(&self, address: u64) -> bool {
        address == TRAP_PAGE
    }

    /// Finishes a SYSCALL.
    pub fn enter_kernel(&self, fd: &mut VcpuFd, of: &mut VcpuAssist) -> Result<()> {
        of.gate.enter(fd)
    }
}
