//! The MP table (Intel MultiProcessor Specification 1.4): tells a guest without ACPI of its CPUs and its I/O APIC.

use vm_memory::{Bytes, GuestMemoryMmap};

use super::MP_TABLE;
use crate::error::{Error, Result};

const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
const APIC_VERSION: u8 = 0x14;
const IRQS: u8 = 24;

/// Writes the table for `vcpus` CPUs, whose APIC ids are their numbers.
pub fn write(memory: &GuestMemoryMmap, vcpus: u8) -> Result<()> {
    memory
        .write_slice(&table(vcpus), MP_TABLE)
        .map_err(|e| Error::Kernel(e.to_string()))
}

fn table(vcpus: u8) -> Vec<u8> {
    let io_apic_id = vcpus;
    let mut entries: Vec<u8> = Vec::new();
    let mut count: u16 = 0;
    let mut push = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for id in 0..vcpus {
        let flags = 1 | if id == 0 { 2 } else { 0 };
        // processor: type, APIC id, version, flags, signature, features (FPU, APIC), reserved
        let mut entry = vec![0, id, APIC_VERSION, flags];
        entry.extend_from_slice(&0x600_u32.to_le_bytes());
        entry.extend_from_slice(&0x201_u32.to_le_bytes());
        entry.extend_from_slice(&[0; 8]);
        push(&entry);
    }
    push(&[1, 0, b'I', b'S', b'A', b' ', b' ', b' ']);
    let address = IO_APIC.to_le_bytes();
    push(&[
        2,
        io_apic_id,
        APIC_VERSION,
        1,
        address[0],
        address[1],
        address[2],
        address[3],
    ]);
    for irq in 0..IRQS {
        push(&[3, 0, 0, 0, 0, irq, io_apic_id, irq]);
    }
    push(&[4, 3, 0, 0, 0, 0, 0, 0]);
    push(&[4, 1, 0, 0, 0, 0, 0xff, 1]);

    let mut header = Vec::with_capacity(44);
    header.extend_from_slice(b"PCMP");
    header.extend_from_slice(&((44 + entries.len()) as u16).to_le_bytes());
    header.extend_from_slice(&[4, 0]);
    header.extend_from_slice(b"CAISSON ");
    header.extend_from_slice(b"000000000000");
    header.extend_from_slice(&[0; 6]);
    header.extend_from_slice(&count.to_le_bytes());
    header.extend_from_slice(&LOCAL_APIC.to_le_bytes());
    header.extend_from_slice(&[0; 4]);
    header[7] = checksum(&[&header, &entries]);

    // the floating pointer, then the table
    let mut all = Vec::new();
    all.extend_from_slice(b"_MP_");
    all.extend_from_slice(&(MP_TABLE.0 as u32 + 16).to_le_bytes());
    all.extend_from_slice(&[1, 4, 0, 0, 0, 0, 0, 0]);
    all[10] = checksum(&[&all]);
    all.extend_from_slice(&header);
    all.extend_from_slice(&entries);
    all
}

fn checksum(parts: &[&[u8]]) -> u8 {
    parts
        .iter()
        .flat_map(|p| p.iter())
        .fold(0_u8, |sum, b| sum.wrapping_add(*b))
        .wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_zero_and_every_cpu_is_listed() {
        let table = table(4);
        assert_eq!(table[..16].iter().fold(0_u8, |s, b| s.wrapping_add(*b)), 0);
        assert_eq!(table[16..].iter().fold(0_u8, |s, b| s.wrapping_add(*b)), 0);
        assert_eq!(table[..4], *b"_MP_");
        assert_eq!(
            u16::from_le_bytes([table[20], table[21]]) as usize,
            table.len() - 16
        );
        let ids: Vec<u8> = (0..4).map(|i| table[16 + 44 + i * 20 + 1]).collect();
        assert_eq!(ids, [0, 1, 2, 3]);
    }
}
