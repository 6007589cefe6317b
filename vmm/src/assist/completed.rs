//! Which instructions the assist completes: the one list that its code and `cargo xtask kernel-coverage` read.
//!
//! Must not know: how. It is compiled into both programs, so it uses nothing but the decoder.

use iced_x86::Mnemonic;

/// A kind of completion; instructions that differ only in operand size share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Completion {
    Breakpoint,
    ClearAc,
    SetAc,
    Wait,
    PopulationCount,
    SegmentLimit,
    AccessRights,
    Random,
    CompareExchange16,
    Save,
    SaveCompacted,
    Restore,
}

impl Completion {
    /// How an instruction is completed, if it is.
    pub fn of(mnemonic: Mnemonic) -> Option<Self> {
        Some(match mnemonic {
            Mnemonic::Int3 => Self::Breakpoint,
            Mnemonic::Clac => Self::ClearAc,
            Mnemonic::Stac => Self::SetAc,
            Mnemonic::Wait => Self::Wait,
            Mnemonic::Popcnt => Self::PopulationCount,
            Mnemonic::Lsl => Self::SegmentLimit,
            Mnemonic::Lar => Self::AccessRights,
            Mnemonic::Rdrand | Mnemonic::Rdseed => Self::Random,
            Mnemonic::Cmpxchg16b => Self::CompareExchange16,
            Mnemonic::Xsave | Mnemonic::Xsave64 | Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64 => {
                Self::Save
            }
            Mnemonic::Xsavec | Mnemonic::Xsavec64 => Self::SaveCompacted,
            Mnemonic::Xrstor | Mnemonic::Xrstor64 => Self::Restore,
            _ => return None,
        })
    }
}
