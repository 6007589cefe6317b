//! `cargo xtask kernel-coverage`: does the guest's kernel contain an instruction that nobody would execute?
//!
//! On hosts whose KVM emulates ring 0, each instruction of the kernel is executed by KVM's emulator (`emulator`: what
//! upstream's executes), by what such hosts add to it (`HOST`), or by the assist (its own list, read from its source).
//! This tool disassembles every executable section and every replacement that the kernel may patch into itself, and sorts
//! each distinct form into one of those, or into what cannot be reached there (`UNREACHED`, with the reason).
//! What is left fails the check.
//!
//! Must not know: how instructions are completed.

mod elf;
mod emulator;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic};

use elf::Elf;

#[path = "../../../vmm/src/assist/completed.rs"]
mod completed;

/// Who executes a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// KVM's emulator.
    Emulator,
    /// The host's additions to it.
    Host,
    /// `vmm/src/assist`.
    Assist,
    /// Nobody, for this reason.
    Unreached(&'static str),
    /// Nobody.
    Nobody,
}

/// One distinct instruction form.
pub struct Form {
    pub by: By,
    pub count: usize,
    /// Where it is first: a function, or the replacement of an instruction in it.
    pub first: String,
    pub example: String,
}
