//! What hosts that emulate ring 0 execute beyond upstream's emulator.
//!
//! Seen on such a host (kvm_pvm, 2026-07): each form was placed at CPL 0 in a guest of one page, between its start and an
//! `out`; it either reached the `out`, or raised the exception that it should (`ud2`), or came back as
//! `KVM_EXIT_INTERNAL_ERROR`. IRETQ, SWAPGS and SYSRET were seen in the guest's kernel itself, which returns to user mode.

use iced_x86::Mnemonic;

const SEEN: &[Mnemonic] = &[
    Mnemonic::Iretq,
    Mnemonic::Lfence,
    Mnemonic::Mfence,
    Mnemonic::Rdfsbase,
    Mnemonic::Rdgsbase,
    Mnemonic::Serialize,
    Mnemonic::Sfence,
    Mnemonic::Swapgs,
    Mnemonic::Sysretq,
    Mnemonic::Tpause,
    Mnemonic::Ud2,
    Mnemonic::Wrfsbase,
    Mnemonic::Wrgsbase,
];

/// Whether such a host executes it.
pub fn executes(mnemonic: Mnemonic) -> bool {
    SEEN.contains(&mnemonic)
}
