//! What the kernel contains and a guest on a host that emulates ring 0 does not reach, each with the reason.
//!
//! A row names functions where the reason holds for these alone: the same instruction elsewhere is a finding.

use iced_x86::{Instruction, Mnemonic};

/// One reason.
struct Row {
    mnemonics: &'static [Mnemonic],
    /// Empty: wherever it stands.
    functions: &'static [&'static str],
    reason: &'static str,
}

const ROWS: &[Row] = &[
    Row {
        mnemonics: &[Mnemonic::Rdtscp, Mnemonic::Invpcid],
        functions: &[],
        reason: "behind a processor feature that clearcpuid= takes away",
    },
    Row {
        mnemonics: &[Mnemonic::Xsaves64, Mnemonic::Xrstors64],
        functions: &[],
        reason: "behind the feature XSAVES, which clearcpuid= takes away",
    },
    Row {
        mnemonics: &[
            Mnemonic::Monitor,
            Mnemonic::Mwait,
            Mnemonic::Monitorx,
            Mnemonic::Mwaitx,
        ],
        functions: &[],
        reason: "KVM shows no MONITOR and no MONITORX in CPUID unless it is asked to",
    },
    Row {
        mnemonics: &[Mnemonic::Verw],
        functions: &[],
        reason: "mitigations=off",
    },
    Row {
        mnemonics: &[Mnemonic::Stgi],
        functions: &["cpu_emergency_disable_virtualization"],
        reason: "EFER.SVME is clear: no nested virtualization",
    },
    Row {
        mnemonics: &[Mnemonic::Clwb],
        functions: &["clean_cache_range"],
        reason: "no persistent memory",
    },
    Row {
        mnemonics: &[Mnemonic::Tilerelease, Mnemonic::Xgetbv],
        functions: &["fpu_idle_fpregs", "copy_fpstate_to_sigframe"],
        reason: "for AMX alone, whose state caisson-vmm asks no permission for",
    },
    Row {
        mnemonics: &[Mnemonic::Fnclex, Mnemonic::Emms, Mnemonic::Fild],
        functions: &["restore_fpregs_from_fpstate"],
        reason: "AMD processors before Zen (X86_BUG_FXSAVE_LEAK)",
    },
    Row {
        mnemonics: &[
            Mnemonic::Fld,
            Mnemonic::Fmul,
            Mnemonic::Fdiv,
            Mnemonic::Fsubp,
            Mnemonic::Fsubrp,
            Mnemonic::Fistp,
        ],
        functions: &["fpu__init_check_bugs"],
        reason: "called in 32-bit kernels only (arch_cpu_finalize_init)",
    },
    Row {
        mnemonics: &[Mnemonic::Ldmxcsr],
        functions: &["kernel_fpu_begin_mask"],
        reason: "nothing in this kernel computes with vector registers: neither RAID nor ciphers nor pipapo's AVX2",
    },
    Row {
        mnemonics: &[Mnemonic::Sysret],
        functions: &["entry_SYSRETL_compat_unsafe_stack"],
        reason: "32-bit SYSCALL does not exist on Intel processors, and such hosts with others are not known",
    },
    Row {
        mnemonics: &[Mnemonic::Ud1],
        functions: &["__SCT__", "__static_call_text_start"],
        reason: "a mark behind the jump of a static call's trampoline",
    },
];

/// Why an instruction is not reached, if that is known.
pub fn reason(instruction: &Instruction, function: &str) -> Option<&'static str> {
    let mnemonic = instruction.mnemonic();
    let row = ROWS.iter().find(|row| {
        let stands_there = |name: &&str| {
            function.starts_with(*name)
                && (name.starts_with("__SCT__") || function.split('.').next() == Some(*name))
        };
        row.mnemonics.contains(&mnemonic)
            && (row.functions.is_empty() || row.functions.iter().any(stands_there))
    })?;
    Some(row.reason)
}
