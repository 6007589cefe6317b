//! `boot_params`: memory map, command line, initial file system, random seed.

use std::fs::File;
use std::os::fd::AsFd;

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{BOOT_PARAMS, Boot, COMMAND_LINE, HIGH_RAM, MP_TABLE, SETUP_DATA};
use crate::error::{Error, Result};
use crate::memory::{MMIO_GAP_END, MMIO_GAP_START};
use crate::sys::{BootParams, SetupSeed};

const E820_RAM: u32 = 1;
const SETUP_RNG_SEED: u32 = 9;
const SEED_BYTES: usize = 32;

/// Copies an initial file system to the end of low memory; returns its address and length.
pub fn load_initramfs(
    memory: &GuestMemoryMmap,
    file: &File,
    memory_bytes: u64,
) -> Result<(GuestAddress, u64)> {
    let len = file.metadata().map_err(Error::io("the initramfs"))?.len();
    let low_end = memory_bytes.min(MMIO_GAP_START);
    let start = low_end
        .checked_sub(len)
        .map(|a| a & !0xfff)
        .filter(|a| *a > HIGH_RAM.0);
    let start = start.ok_or_else(|| {
        Error::Kernel("the initramfs does not fit into the guest's memory".into())
    })?;
    let mut file = file
        .as_fd()
        .try_clone_to_owned()
        .map(File::from)
        .map_err(Error::io("the initramfs"))?;
    memory
        .read_exact_volatile_from(GuestAddress(start), &mut file, len as usize)
        .map_err(|e| Error::Kernel(format!("the initramfs: {e}")))?;
    Ok((GuestAddress(start), len))
}

/// Writes `boot_params`, the command line and the seed.
pub fn write(
    memory: &GuestMemoryMmap,
    boot: &Boot,
    initramfs: Option<(GuestAddress, u64)>,
) -> Result<()> {
    let fault = |e: vm_memory::GuestMemoryError| Error::Kernel(e.to_string());
    let mut line = boot.command_line.as_bytes().to_vec();
    line.push(0);
    memory.write_slice(&line, COMMAND_LINE).map_err(fault)?;

    let mut seed = SetupSeed {
        kind: SETUP_RNG_SEED,
        len: SEED_BYTES as u32,
        ..SetupSeed::default()
    };
    let mut random = File::open("/dev/urandom").map_err(Error::io("/dev/urandom"))?;
    std::io::Read::read_exact(&mut random, &mut seed.seed).map_err(Error::io("/dev/urandom"))?;
    memory.write_obj(seed, SETUP_DATA).map_err(fault)?;

    let (image, size) = initramfs.unwrap_or((GuestAddress(0), 0));
    let mut params = boot_params {
        hdr: setup_header {
            type_of_loader: 0xff,
            boot_flag: 0xaa55,
            header: 0x5372_6448,
            kernel_alignment: 0x0100_0000,
            cmd_line_ptr: COMMAND_LINE.0 as u32,
            cmdline_size: line.len() as u32,
            ramdisk_image: image.0 as u32,
            ramdisk_size: size as u32,
            setup_data: SETUP_DATA.0,
            ..setup_header::default()
        },
        ..boot_params::default()
    };
    let map = memory_map(boot.memory_bytes);
    params.e820_entries = map.len() as u8;
    params.e820_table[..map.len()].copy_from_slice(&map);
    memory
        .write_obj(BootParams(params), BOOT_PARAMS)
        .map_err(fault)
}

fn memory_map(memory_bytes: u64) -> Vec<boot_e820_entry> {
    let ram = |start: u64, end: u64| boot_e820_entry {
        addr: start,
        size: end - start,
        r#type: E820_RAM,
    };
    let mut map = vec![
        ram(0, MP_TABLE.0),
        ram(HIGH_RAM.0, memory_bytes.min(MMIO_GAP_START)),
    ];
    if memory_bytes > MMIO_GAP_START {
        map.push(ram(
            MMIO_GAP_END,
            MMIO_GAP_END + memory_bytes - MMIO_GAP_START,
        ));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_map_covers_what_the_guest_has_and_leaves_the_gap_out() {
        let sum = |bytes| memory_map(bytes).iter().map(|e| e.size).sum::<u64>();
        let hole = HIGH_RAM.0 - MP_TABLE.0;
        assert_eq!(sum(256 << 20), (256 << 20) - hole);
        assert_eq!(memory_map(256 << 20).len(), 2);
        assert_eq!(sum(8 << 30), (8 << 30) - hole);
        let high = memory_map(8 << 30)[2];
        assert_eq!({ high.addr }, MMIO_GAP_END);
    }
}
