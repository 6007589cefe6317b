//! Putting a Linux kernel into guest memory and a vCPU at its first instruction.
//!
//! The 64-bit boot protocol (Documentation/x86/boot.rst, "64-bit BOOT PROTOCOL"): an uncompressed ELF, long mode already
//! on, `rsi` at `boot_params`. Nothing in the guest decompresses or relocates anything.
//!
//! ```text
//! 0x0000_0500  GDT                     0x0000_9000  page tables: 4 GiB identity, 2 MiB pages (6 pages)
//! 0x0000_7000  boot_params             0x0002_0000  command line
//! 0x0000_8ff0  boot stack              0x0003_0000  setup_data: the random seed
//! 0x0009_fc00  MP table                0x0010_0000  the kernel, at its ELF addresses
//! ```

pub mod assisted;
mod mptable;
mod params;
mod registers;

pub use registers::boot_registers;

use std::fs::File;
use std::os::fd::AsFd;

use linux_loader::loader::{KernelLoader, elf::Elf};
use vm_memory::{Address, GuestAddress, GuestMemoryMmap};

use crate::error::{Error, Result};

const GDT: GuestAddress = GuestAddress(0x500);
const BOOT_PARAMS: GuestAddress = GuestAddress(0x7000);
const BOOT_STACK: u64 = 0x8ff0;
const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
const SETUP_DATA: GuestAddress = GuestAddress(0x3_0000);
const MP_TABLE: GuestAddress = GuestAddress(0x9_fc00);
const HIGH_RAM: GuestAddress = GuestAddress(0x10_0000);
/// The kernel's own limit (COMMAND_LINE_SIZE on x86).
const COMMAND_LINE_MAX: usize = 2048;

/// What is booted.
pub struct Boot<'a> {
    /// An ELF `vmlinux`.
    pub kernel: &'a File,
    /// An initial file system (cpio), if any.
    pub initramfs: Option<&'a File>,
    /// The kernel's command line.
    pub command_line: &'a str,
    /// vCPUs that the guest is told of.
    pub vcpus: u8,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

/// Writes kernel, initial file system, command line and tables; returns the kernel's entry point.
pub fn load(memory: &GuestMemoryMmap, boot: &Boot) -> Result<GuestAddress> {
    let mut kernel = boot
        .kernel
        .as_fd()
        .try_clone_to_owned()
        .map(File::from)
        .map_err(Error::io("the kernel"))?;
    let loaded = Elf::load(memory, None, &mut kernel, Some(HIGH_RAM))
        .map_err(|e| Error::Kernel(format!("{e}: an uncompressed ELF vmlinux is needed")))?;
    if boot.command_line.len() >= COMMAND_LINE_MAX {
        return Err(Error::Kernel(format!(
            "the command line is longer than {COMMAND_LINE_MAX} bytes"
        )));
    }
    let initramfs = boot
        .initramfs
        .map(|file| params::load_initramfs(memory, file, boot.memory_bytes))
        .transpose()?;
    params::write(memory, boot, initramfs)?;
    mptable::write(memory, boot.vcpus)?;
    if loaded.kernel_end > boot.memory_bytes {
        return Err(Error::Kernel(format!(
            "it ends at {:#x}, beyond the guest's memory",
            loaded.kernel_end
        )));
    }
    Ok(GuestAddress(loaded.kernel_load.raw_value()))
}
