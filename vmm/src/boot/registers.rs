//! The registers with which the first vCPU enters a 64-bit kernel, and the tables they point at.

use kvm_bindings::{kvm_fpu, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::{BOOT_PARAMS, BOOT_STACK, GDT, PAGE_TABLES};
use crate::error::{Error, Result};

const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;
const CR0_PE_PG: u64 = 0x8000_0001;
const CR4_PAE: u64 = 0x20;
const EFER_LME_LMA: u64 = 0x500;
const PAGE: u64 = 0x1000;

/// Null, unused, code, data, task.
const DESCRIPTORS: [u64; 5] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x008f_8b00_0000_ffff,
];

/// Sets the boot vCPU up to run `entry`.
pub fn boot_registers(vcpu: &VcpuFd, memory: &GuestMemoryMmap, entry: GuestAddress) -> Result<()> {
    write_tables(memory).map_err(|e| Error::Kernel(e.to_string()))?;
    let mut sregs = vcpu.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?;
    sregs.gdt.base = GDT.0;
    sregs.gdt.limit = (DESCRIPTORS.len() * 8 - 1) as u16;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cs = segment(CODE, 11, 1, 0);
    sregs.ds = segment(DATA, 3, 0, 1);
    (sregs.es, sregs.fs, sregs.gs, sregs.ss) = (sregs.ds, sregs.ds, sregs.ds, sregs.ds);
    sregs.tr = kvm_segment {
        s: 0,
        ..segment(TASK, 11, 0, 0)
    };
    sregs.cr3 = PAGE_TABLES.0;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 |= CR0_PE_PG;
    sregs.efer |= EFER_LME_LMA;
    vcpu.set_sregs(&sregs)
        .map_err(Error::kvm("KVM_SET_SREGS"))?;

    let regs = kvm_regs {
        rflags: 2,
        rip: entry.0,
        rsp: BOOT_STACK,
        rbp: BOOT_STACK,
        rsi: BOOT_PARAMS.0,
        ..kvm_regs::default()
    };
    vcpu.set_regs(&regs).map_err(Error::kvm("KVM_SET_REGS"))?;
    let fpu = kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..kvm_fpu::default()
    };
    vcpu.set_fpu(&fpu).map_err(Error::kvm("KVM_SET_FPU"))
}

fn write_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    for (i, descriptor) in DESCRIPTORS.iter().enumerate() {
        memory.write_obj(*descriptor, GDT.unchecked_add(i as u64 * 8))?;
    }
    // one PML4, one PDPT, four page directories of 2 MiB pages: 4 GiB, identity
    let (pml4, pdpt, directories) = (
        PAGE_TABLES,
        PAGE_TABLES.unchecked_add(PAGE),
        PAGE_TABLES.unchecked_add(2 * PAGE),
    );
    memory.write_obj(pdpt.0 | 3, pml4)?;
    for gib in 0..4 {
        let directory = directories.unchecked_add(gib * PAGE);
        memory.write_obj(directory.0 | 3, pdpt.unchecked_add(gib * 8))?;
        for page in 0..512 {
            let entry = (gib << 30) | (page << 21) | 0x83;
            memory.write_obj(entry, directory.unchecked_add(page * 8))?;
        }
    }
    Ok(())
}

fn segment(selector: u16, type_: u8, l: u8, db: u8) -> kvm_segment {
    kvm_segment {
        limit: 0xf_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        l,
        db,
        g: 1,
        ..kvm_segment::default()
    }
}
