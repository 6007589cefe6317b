//! Completing one instruction; here those that touch general registers, flags and a few bytes of memory.

use iced_x86::Instruction;

use super::completed::Completion;
use super::cpu::{
    CR0_MONITOR_COPROCESSOR, CR0_TASK_SWITCHED, Cpu, DEVICE_NOT_AVAILABLE, Exception, FLAG_AC,
    FLAG_CARRY, FLAG_ZERO, FLAGS_ARITHMETIC, FLOATING_POINT, GENERAL_PROTECTION,
};
use super::sys;
use super::xstate::{self, Layout};
use crate::error::Error;

const BREAKPOINT: u8 = 3;

/// Completes an instruction.
pub fn complete(
    cpu: &mut Cpu,
    instruction: &Instruction,
    how: Completion,
    layout: &Layout,
) -> Result<(), Exception> {
    match how {
        Completion::Breakpoint => Err(Exception::Trap(BREAKPOINT)),
        Completion::ClearAc => {
            cpu.regs.rflags &= !FLAG_AC;
            Ok(())
        }
        Completion::SetAc => {
            cpu.regs.rflags |= FLAG_AC;
            Ok(())
        }
        Completion::Wait => wait(cpu),
        Completion::PopulationCount => popcnt(cpu, instruction),
        Completion::SegmentLimit => describe(cpu, instruction, &[2, 9, 11], limit),
        Completion::AccessRights => describe(cpu, instruction, &[2, 9, 11, 12], access_rights),
        Completion::Random => random(cpu, instruction),
        Completion::CompareExchange16 => cmpxchg16b(cpu, instruction),
        Completion::Save => xstate::save(cpu, instruction, layout, false),
        Completion::SaveCompacted => xstate::save(cpu, instruction, layout, true),
        Completion::Restore => xstate::restore(cpu, instruction, layout),
    }
}

fn set_flags(cpu: &mut Cpu, clear: u64, set: u64) {
    cpu.regs.rflags = (cpu.regs.rflags & !clear) | set;
}

fn popcnt(cpu: &mut Cpu, instruction: &Instruction) -> Result<(), Exception> {
    let value = cpu.operand(instruction, 1, instruction.op0_register().size())?;
    cpu.set(instruction.op0_register(), u64::from(value.count_ones()));
    set_flags(
        cpu,
        FLAGS_ARITHMETIC,
        if value == 0 { FLAG_ZERO } else { 0 },
    );
    Ok(())
}

/// FWAIT: delivers the floating-point exception that is pending, if one is (SDM 2A, WAIT).
fn wait(cpu: &Cpu) -> Result<(), Exception> {
    const ERROR_SUMMARY: u16 = 1 << 7;
    const SWITCHED: u64 = CR0_MONITOR_COPROCESSOR | CR0_TASK_SWITCHED;
    if cpu.sregs.cr0 & SWITCHED == SWITCHED {
        return Err(DEVICE_NOT_AVAILABLE);
    }
    let fpu = cpu.fd.get_fpu().map_err(Error::kvm("KVM_GET_FPU"))?;
    if fpu.fsw & ERROR_SUMMARY != 0 {
        return Err(FLOATING_POINT);
    }
    Ok(())
}

/// LSL and LAR: what `tell` says of a descriptor in the GDT or LDT, if it is of a segment, or of one of the system `types`
/// that may be asked about, and visible (SDM 2A, LSL, table 3-54; LAR, table 3-53).
fn describe(
    cpu: &mut Cpu,
    instruction: &Instruction,
    types: &[u64],
    tell: fn(u64) -> u64,
) -> Result<(), Exception> {
    const LDT_SELECTOR: u64 = 4;
    let selector = cpu.operand(instruction, 1, 2)? & 0xffff;
    let at = selector & !7;
    let (ldt, gdt) = (&cpu.sregs.ldt, &cpu.sregs.gdt);
    let table = if selector & LDT_SELECTOR == 0 {
        Some((gdt.base, u64::from(gdt.limit)))
    } else {
        (ldt.unusable == 0 && ldt.present == 1).then_some((ldt.base, u64::from(ldt.limit)))
    };
    let found = match table {
        Some((base, limit)) if selector & !3 != 0 && at + 7 <= limit => {
            visible(cpu, base.wrapping_add(at), selector, types)?
        }
        _ => None,
    };
    match found {
        Some(descriptor) => {
            cpu.set(instruction.op0_register(), tell(descriptor));
            set_flags(cpu, 0, FLAG_ZERO);
        }
        None => set_flags(cpu, FLAG_ZERO, 0),
    }
    Ok(())
}

fn visible(
    cpu: &Cpu,
    address: u64,
    selector: u64,
    types: &[u64],
) -> Result<Option<u64>, Exception> {
    let mut bytes = [0; 8];
    cpu.read_system(address, &mut bytes)?;
    let descriptor = u64::from_le_bytes(bytes);
    let kind = descriptor >> 40 & 0xf;
    let is_segment = descriptor >> 44 & 1 == 1;
    let conforming = is_segment && kind & 0xc == 0xc;
    let privilege = descriptor >> 45 & 3;
    let visible =
        conforming || (privilege >= u64::from(cpu.privilege()) && privilege >= selector & 3);
    Ok((visible && (is_segment || types.contains(&kind))).then_some(descriptor))
}

fn limit(descriptor: u64) -> u64 {
    let limit = (descriptor & 0xffff) | (descriptor >> 32 & 0xf_0000);
    let pages = descriptor >> 55 & 1 == 1;
    if pages { limit << 12 | 0xfff } else { limit }
}

fn access_rights(descriptor: u64) -> u64 {
    descriptor >> 32 & 0xf0_ff00
}

fn random(cpu: &mut Cpu, instruction: &Instruction) -> Result<(), Exception> {
    let mut bytes = [0; 8];
    sys::random(&mut bytes).map_err(Error::io("getrandom"))?;
    cpu.set(instruction.op0_register(), u64::from_le_bytes(bytes));
    set_flags(cpu, FLAGS_ARITHMETIC, FLAG_CARRY);
    Ok(())
}

fn cmpxchg16b(cpu: &mut Cpu, instruction: &Instruction) -> Result<(), Exception> {
    let address = cpu.address(instruction);
    if address & 15 != 0 {
        return Err(GENERAL_PROTECTION);
    }
    let expected = u128::from(cpu.regs.rdx) << 64 | u128::from(cpu.regs.rax);
    let new = u128::from(cpu.regs.rcx) << 64 | u128::from(cpu.regs.rbx);
    let found = cpu.compare_exchange_16(address, expected, new)?;
    if found == expected {
        set_flags(cpu, 0, FLAG_ZERO);
    } else {
        cpu.regs.rax = found as u64;
        cpu.regs.rdx = (found >> 64) as u64;
        set_flags(cpu, FLAG_ZERO, 0);
    }
    Ok(())
}
