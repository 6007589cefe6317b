//! Walking the guest's page tables as the processor would (Intel SDM 3A 4.5): with permissions, and with faults that the
//! guest's kernel can handle. `KVM_TRANSLATE` tells neither.

use vm_memory::{Bytes, GuestAddress};

use super::cpu::{Cpu, Exception, GENERAL_PROTECTION};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const CR0_WRITE_PROTECT: u64 = 1 << 16;
const CR4_LA57: u64 = 1 << 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

/// The guest-physical address behind a linear one, or the fault that the access raises. Sets accessed and dirty bits.
pub fn translate(cpu: &Cpu, address: u64, access: Access) -> Result<GuestAddress, Exception> {
    let user = cpu.privilege() == 3;
    let write = access == Access::Write;
    let fault = |present: bool| Exception::Page {
        address,
        error_code: u32::from(present) | u32::from(write) << 1 | u32::from(user) << 2,
    };
    let levels = if cpu.sregs.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
    let unused = 64 - (12 + 9 * levels);
    if (((address << unused) as i64) >> unused) as u64 != address {
        return Err(GENERAL_PROTECTION);
    }
    let mut table = cpu.sregs.cr3 & ADDRESS;
    let mut allowed = WRITABLE | USER;
    for level in (0..levels).rev() {
        let shift = 12 + 9 * level;
        let at = GuestAddress(table + ((address >> shift) & 0x1ff) * 8);
        let entry: u64 = cpu.memory.read_obj(at).map_err(|_| fault(false))?;
        if entry & PRESENT == 0 {
            return Err(fault(false));
        }
        allowed &= entry;
        let leaf = level == 0 || (entry & LARGE != 0 && level <= 2);
        let mut marked = entry | ACCESSED;
        if leaf {
            let may_write =
                allowed & WRITABLE != 0 || (!user && cpu.sregs.cr0 & CR0_WRITE_PROTECT == 0);
            if (user && allowed & USER == 0) || (write && !may_write) {
                return Err(fault(true));
            }
            if write {
                marked |= DIRTY;
            }
        }
        if marked != entry {
            cpu.memory.write_obj(marked, at).map_err(|_| fault(false))?;
        }
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
