//! What KVM's instruction emulator executes in 64-bit mode.
//!
//! Derived by reading Linux 6.1, `arch/x86/kvm/emulate.c`: `opcode_table`, `twobyte_table`, `opcode_map_0f_38` and the
//! groups they lead to; entries marked `N` or `No64` there are absent here, and so is what has an entry but no body
//! (`monitor`, `rdtscp`, `vmrun`, …) or a body that gives up in long mode (`int3`, `int n`, `iret`, CMPXCHG16B).

use std::ops::RangeInclusive;

use iced_x86::{EncodingKind, Instruction, MandatoryPrefix, OpCodeTableKind, OpKind};

/// Which operand a row is about, where the emulator tells them apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operand {
    Any,
    Memory,
    Register,
}

/// A range of opcodes in one of the opcode maps.
struct Row {
    map: OpCodeTableKind,
    opcodes: RangeInclusive<u32>,
    /// The values of ModRM.reg; empty for all.
    reg: &'static [i32],
    /// Mandatory prefixes; empty for all.
    prefixes: &'static [MandatoryPrefix],
    operand: Operand,
}

const ONE: OpCodeTableKind = OpCodeTableKind::Normal;
const TWO: OpCodeTableKind = OpCodeTableKind::T0F;
const THREE: OpCodeTableKind = OpCodeTableKind::T0F38;

const fn row(map: OpCodeTableKind, opcodes: RangeInclusive<u32>) -> Row {
    Row {
        map,
        opcodes,
        reg: &[],
        prefixes: &[],
        operand: Operand::Any,
    }
}

const fn group(map: OpCodeTableKind, opcode: u32, reg: &'static [i32], operand: Operand) -> Row {
    Row {
        reg,
        operand,
        ..row(map, opcode..=opcode)
    }
}

const fn vector(
    opcodes: RangeInclusive<u32>,
    prefixes: &'static [MandatoryPrefix],
    operand: Operand,
) -> Row {
    Row {
        prefixes,
        operand,
        ..row(TWO, opcodes)
    }
}

const NP_66: &[MandatoryPrefix] = &[
    MandatoryPrefix::None,
    MandatoryPrefix::PNP,
    MandatoryPrefix::P66,
];

const ROWS: &[Row] = &[
    // add, or, adc, sbb, and, sub, xor, cmp: six forms each
    row(ONE, 0x00..=0x05),
    row(ONE, 0x08..=0x0d),
    row(ONE, 0x10..=0x15),
    row(ONE, 0x18..=0x1d),
    row(ONE, 0x20..=0x25),
    row(ONE, 0x28..=0x2d),
    row(ONE, 0x30..=0x35),
    row(ONE, 0x38..=0x3d),
    // push, pop
    row(ONE, 0x50..=0x5f),
    // movsxd; push, imul with an immediate; ins, outs
    row(ONE, 0x63..=0x63),
    row(ONE, 0x68..=0x6f),
    // jcc; group 1; test, xchg; mov
    row(ONE, 0x70..=0x81),
    row(ONE, 0x83..=0x8c),
    // lea; mov to a segment register; pop to memory
    group(ONE, 0x8d, &[], Operand::Memory),
    row(ONE, 0x8e..=0x8e),
    group(ONE, 0x8f, &[0], Operand::Any),
    // xchg with rax (nop, pause); cbw, cwd; pushf, popf, sahf, lahf
    row(ONE, 0x90..=0x99),
    row(ONE, 0x9c..=0x9f),
    // mov with an absolute address; movs, cmps; test; stos, lods, scas; mov with an immediate
    row(ONE, 0xa0..=0xbf),
    // shifts; ret; mov with an immediate; enter, leave, ret far
    row(ONE, 0xc0..=0xc3),
    group(ONE, 0xc6, &[0], Operand::Any),
    group(ONE, 0xc7, &[0], Operand::Any),
    row(ONE, 0xc8..=0xcb),
    // shifts; xlat
    row(ONE, 0xd0..=0xd3),
    row(ONE, 0xd7..=0xd7),
    // fnstcw, fninit, fnstsw
    group(ONE, 0xd9, &[7], Operand::Memory),
    row(ONE, 0xdbe3..=0xdbe3),
    group(ONE, 0xdd, &[7], Operand::Memory),
    // loop, jcxz; in, out; call, jmp; in, out
    row(ONE, 0xe0..=0xe9),
    row(ONE, 0xeb..=0xef),
    // hlt, cmc; groups 3, 4, 5; clc, stc, cli, sti, cld, std
    row(ONE, 0xf4..=0xfd),
    group(ONE, 0xfe, &[0, 1], Operand::Any),
    group(ONE, 0xff, &[0, 1, 2, 3, 4, 5, 6], Operand::Any),
    // group 6: sldt, str, lldt, ltr; group 7: sgdt, sidt, lgdt, lidt, smsw, lmsw, invlpg; hypercalls; xsetbv
    group(TWO, 0x00, &[0, 1, 2, 3], Operand::Any),
    group(TWO, 0x01, &[0, 1, 2, 3, 7], Operand::Memory),
    group(TWO, 0x01, &[4, 6], Operand::Any),
    row(TWO, 0x01c1..=0x01c1),
    row(TWO, 0x01d1..=0x01d1),
    row(TWO, 0x01d9..=0x01d9),
    // syscall, clts; invd, wbinvd; prefetchw
    row(TWO, 0x05..=0x06),
    row(TWO, 0x08..=0x09),
    row(TWO, 0x0d..=0x0d),
    // movups, movupd
    vector(0x10..=0x11, NP_66, Operand::Any),
    // prefetch and reserved nops
    row(TWO, 0x18..=0x19),
    row(TWO, 0x1c..=0x1f),
    // mov with control and debug registers
    row(TWO, 0x20..=0x23),
    // movaps, movapd, movntps, movntpd
    vector(0x28..=0x29, NP_66, Operand::Any),
    vector(0x2b..=0x2b, NP_66, Operand::Memory),
    // wrmsr, rdtsc, rdmsr, rdpmc, sysenter, sysexit; cmovcc
    row(TWO, 0x30..=0x35),
    row(TWO, 0x40..=0x4f),
    // movq, movdqa, movdqu
    vector(
        0x6f..=0x6f,
        &[
            MandatoryPrefix::None,
            MandatoryPrefix::PNP,
            MandatoryPrefix::P66,
            MandatoryPrefix::PF3,
        ],
        Operand::Any,
    ),
    vector(
        0x7f..=0x7f,
        &[
            MandatoryPrefix::None,
            MandatoryPrefix::PNP,
            MandatoryPrefix::P66,
            MandatoryPrefix::PF3,
        ],
        Operand::Any,
    ),
    // jcc, setcc; push, pop fs; cpuid; bt; shld; push, pop gs; bts; shrd
    row(TWO, 0x80..=0xa5),
    row(TWO, 0xa8..=0xa9),
    row(TWO, 0xab..=0xad),
    // fxsave, fxrstor; clflush, clflushopt
    group(TWO, 0xae, &[0, 1], Operand::Memory),
    Row {
        prefixes: NP_66,
        ..group(TWO, 0xae, &[7], Operand::Memory)
    },
    // imul; cmpxchg; lss; btr; lfs, lgs; movzx
    row(TWO, 0xaf..=0xb7),
    // bt, bts, btr, btc with an immediate; btc; bsf, bsr; movsx
    group(TWO, 0xba, &[4, 5, 6, 7], Operand::Any),
    row(TWO, 0xbb..=0xbb),
    // (F3 BC, TZCNT, runs as BSF: the kernel writes it as `rep bsf` and where they agree)
    row(TWO, 0xbc..=0xbc),
    Row {
        prefixes: NP_66,
        ..row(TWO, 0xbd..=0xbd)
    },
    row(TWO, 0xbe..=0xbf),
    // xadd; movnti; cmpxchg8b; rdpid; bswap
    row(TWO, 0xc0..=0xc1),
    group(TWO, 0xc3, &[], Operand::Memory),
    Row {
        prefixes: &[MandatoryPrefix::None, MandatoryPrefix::PNP],
        ..group(TWO, 0xc7, &[1], Operand::Memory)
    },
    Row {
        prefixes: &[MandatoryPrefix::PF3],
        ..group(TWO, 0xc7, &[7], Operand::Register)
    },
    row(TWO, 0xc8..=0xcf),
    // movntdq
    vector(0xe7..=0xe7, &[MandatoryPrefix::P66], Operand::Memory),
    // movbe
    Row {
        operand: Operand::Memory,
        prefixes: NP_66,
        ..row(THREE, 0xf0..=0xf1)
    },
];

/// Whether KVM's emulator of Linux 6.1 executes this instruction.
pub fn executes(instruction: &Instruction) -> bool {
    let code = instruction.op_code();
    // CMPXCHG16B shares its opcode with CMPXCHG8B
    let gives_up = instruction.mnemonic() == iced_x86::Mnemonic::Cmpxchg16b;
    if code.encoding() != EncodingKind::Legacy || gives_up {
        return false;
    }
    let memory = (0..instruction.op_count()).any(|i| is_memory(instruction.op_kind(i)));
    ROWS.iter().any(|row| {
        row.map == code.table()
            && row.opcodes.contains(&code.op_code())
            && (row.reg.is_empty() || row.reg.contains(&code.group_index()))
            && (row.prefixes.is_empty() || row.prefixes.contains(&code.mandatory_prefix()))
            && match row.operand {
                Operand::Any => true,
                Operand::Memory => memory,
                Operand::Register => !memory,
            }
    })
}

fn is_memory(kind: OpKind) -> bool {
    kind == OpKind::Memory
}
