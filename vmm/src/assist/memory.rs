//! Walking the guest's page tables as the processor would (Intel SDM 3A 4.5): with permissions, and with faults that the
//! guest's kernel can handle. `KVM_TRANSLATE` tells neither.

use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileMemory};

use super::cpu::{Cpu, Exception, FLAG_AC};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const CR0_WRITE_PROTECT: u64 = 1 << 16;
const CR4_LA57: u64 = 1 << 12;
const CR4_SMAP: u64 = 1 << 21;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    /// The processor reads a table of its own.
    System,
}

/// The guest-physical address behind a linear one, or the fault that the access raises. Sets accessed and dirty bits.
pub fn translate(cpu: &Cpu, address: u64, access: Access) -> Result<GuestAddress, Exception> {
    let user = cpu.privilege() == 3 && access != Access::System;
    let write = access == Access::Write;
    let fault = |present: bool| Exception::Page {
        address,
        error_code: u32::from(present) | u32::from(write) << 1 | u32::from(user) << 2,
    };
    let levels = if cpu.sregs.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
    let unused = 64 - (12 + 9 * levels);
    if (((address << unused) as i64) >> unused) as u64 != address {
        return Err(Exception::NonCanonical);
    }
    let mut table = cpu.sregs.cr3 & ADDRESS;
    let mut allowed = WRITABLE | USER;
    for level in (0..levels).rev() {
        let shift = 12 + 9 * level;
        let at = GuestAddress(table + ((address >> shift) & 0x1ff) * 8);
        let slice = cpu.memory.get_slice(at, 8).map_err(|_| fault(false))?;
        let place: &AtomicU64 = slice.get_atomic_ref(0).map_err(|_| fault(false))?;
        // another vCPU may change the entry meanwhile: its accessed and dirty bits are set in what it is, or not at all
        let (entry, leaf) = loop {
            let entry = place.load(Ordering::Acquire);
            if entry & PRESENT == 0 {
                return Err(fault(false));
            }
            let leaf = level == 0 || (entry & LARGE != 0 && level <= 2);
            let mut marked = entry | ACCESSED;
            if leaf {
                if !may(cpu, allowed & entry, access) {
                    return Err(fault(true));
                }
                if write {
                    marked |= DIRTY;
                }
            }
            let swap =
                || place.compare_exchange(entry, marked, Ordering::AcqRel, Ordering::Relaxed);
            if marked == entry || swap().is_ok() {
                break (entry, leaf);
            }
        };
        allowed &= entry;
        if leaf {
            let offset = (1_u64 << shift) - 1;
            return Ok(GuestAddress(
                (entry & ADDRESS & !offset) | (address & offset),
            ));
        }
        table = entry & ADDRESS;
    }
    Err(fault(false))
}

/// Whether a page whose entries allow `rights` on every level may be accessed.
fn may(cpu: &Cpu, rights: u64, access: Access) -> bool {
    let user = cpu.privilege() == 3 && access != Access::System;
    let (of_user, writable) = (rights & USER != 0, rights & WRITABLE != 0);
    let prevented =
        !user && of_user && cpu.sregs.cr4 & CR4_SMAP != 0 && cpu.regs.rflags & FLAG_AC == 0;
    let unprotected = !user && cpu.sregs.cr0 & CR0_WRITE_PROTECT == 0;
    (of_user || !user) && !prevented && (access != Access::Write || writable || unprotected)
}
