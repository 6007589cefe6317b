//! The guest's kernel: which source, which options and why, how it is built, where the result lies.
//!
//! One image for every VM: an uncompressed ELF `vmlinux` (a decompressor would run in the guest at each boot), without
//! modules, ACPI or PCI. The options are fragments in `config/`, one concern each, with the reason beside each group; what
//! no fragment names is off (`allnoconfig`). Few and small changes to the source are in `patches/`, each with its reason.
//! The result is cached by everything it depends on:
//!
//! ```text
//! OUT/guest-kernel/<first 16 hex of sha256(source, patches, fragments, compiler)>/
//!   vmlinux      ELF, stripped of debugging symbols
//!   config       the configuration that was built, checked against the fragments
//!   System.map   symbols, for sampling and for the coverage check of the emulation assist
//! ```
//!
//! Must not know: who boots it.

mod build;
mod config;
mod error;
mod patches;
mod source;

pub use build::{Kernel, build, find};
pub use config::{Mismatch, check, fragments};
pub use error::{Error, Result};
pub use patches::patches;
pub use source::{Origin, Source};
