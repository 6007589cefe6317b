//! Completing one instruction; here those that touch general registers, flags and a few bytes of memory.

use std::fs::File;
use std::io::Read;

use iced_x86::Instruction;

use super::completed::Completion;
use super::cpu::{
    Cpu, Exception, FLAG_AC, FLAG_CARRY, FLAG_ZERO, FLAGS_ARITHMETIC, GENERAL_PROTECTION,
};
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
        Completion::Wait => Ok(()),
        Completion::PopulationCount => popcnt(cpu, instruction),
        Completion::SegmentLimit => lsl(cpu, instruction),
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

/// The limit of a segment in the GDT, if it is one whose limit may be read (SDM 2A, LSL, table 3-54).
fn lsl(cpu: &mut Cpu, instruction: &Instruction) -> Result<(), Exception> {
    const LDT_SELECTOR: u64 = 4;
    let selector = cpu.operand(instruction, 1, 2)? & 0xffff;
    let at = selector & !7;
    let readable = selector & !3 != 0
        && selector & LDT_SELECTOR == 0
        && at + 7 <= u64::from(cpu.sregs.gdt.limit);
    let limit = if readable {
        descriptor_limit(cpu, cpu.sregs.gdt.base + at, selector)?
    } else {
        None
    };
    match limit {
        Some(limit) => {
            cpu.set(instruction.op0_register(), limit);
            set_flags(cpu, 0, FLAG_ZERO);
        }
        None => set_flags(cpu, FLAG_ZERO, 0),
    }
    Ok(())
}

fn descriptor_limit(cpu: &Cpu, address: u64, selector: u64) -> Result<Option<u64>, Exception> {
    let mut bytes = [0; 8];
    cpu.read(address, &mut bytes)?;
    let descriptor = u64::from_le_bytes(bytes);
    let kind = descriptor >> 40 & 0xf;
    let is_segment = descriptor >> 44 & 1 == 1;
    let conforming = is_segment && kind & 0xc == 0xc;
    let privilege = descriptor >> 45 & 3;
    let visible =
        conforming || (privilege >= u64::from(cpu.privilege()) && privilege >= selector & 3);
    if !visible || !(is_segment || matches!(kind, 2 | 9 | 11)) {
        return Ok(None);
    }
    let limit = (descriptor & 0xffff) | (descriptor >> 32 & 0xf_0000);
    let pages = descriptor >> 55 & 1 == 1;
    Ok(Some(if pages { limit << 12 | 0xfff } else { limit }))
}

fn random(cpu: &mut Cpu, instruction: &Instruction) -> Result<(), Exception> {
    let mut bytes = [0; 8];
    let mut source = File::open("/dev/urandom").map_err(Error::io("/dev/urandom"))?;
    source
        .read_exact(&mut bytes)
        .map_err(Error::io("/dev/urandom"))?;
    cpu.set(instruction.op0_register(), u64::from_le_bytes(bytes));
    set_flags(cpu, FLAGS_ARITHMETIC, FLAG_CARRY);
    Ok(())
}

/// Not atomic against other vCPUs' plain stores to the same 16 bytes: such a guest runs with the feature masked in CPUID
/// when it has several vCPUs, and its kernel then uses none.
fn cmpxchg16b(cpu: &mut Cpu, instruction: &Instruction) -> Result<(), Exception> {
    let address = cpu.address(instruction);
    if address & 15 != 0 {
        return Err(GENERAL_PROTECTION);
    }
    let mut bytes = [0; 16];
    cpu.read(address, &mut bytes)?;
    let found = u128::from_le_bytes(bytes);
    let expected = u128::from(cpu.regs.rdx) << 64 | u128::from(cpu.regs.rax);
    if found == expected {
        let new = u128::from(cpu.regs.rcx) << 64 | u128::from(cpu.regs.rbx);
        cpu.write(address, &new.to_le_bytes())?;
        set_flags(cpu, 0, FLAG_ZERO);
    } else {
        cpu.write(address, &bytes)?;
        cpu.regs.rax = found as u64;
        cpu.regs.rdx = (found >> 64) as u64;
        set_flags(cpu, FLAG_ZERO, 0);
    }
    Ok(())
}
