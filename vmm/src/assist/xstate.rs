//! XSAVE, XSAVEOPT, XSAVEC and XRSTOR (Intel SDM 1, chapter 13), through KVM's copy of the state.
//!
//! ```text
//! 0    legacy: x87 (0–23, 32–159), MXCSR (24–31), SSE (160–415)
//! 512  XSTATE_BV   520  XCOMP_BV (bit 63: compacted)   528  reserved, zero
//! 576  the other components: at fixed offsets (standard), or one behind another (compacted)
//! ```

use std::arch::x86_64::__cpuid_count;

use iced_x86::{Instruction, Mnemonic};
use kvm_bindings::kvm_xsave;

use super::cpu::{CR0_TASK_SWITCHED, Cpu, DEVICE_NOT_AVAILABLE, Exception, GENERAL_PROTECTION};
use crate::error::Error;
use crate::sys;

const X87: usize = 0;
const SSE: usize = 1;
const AVX: usize = 2;
const COMPONENTS: usize = 20;
const HEADER: usize = 512;
const EXTENDED: usize = 576;
const COMPACTED: u64 = 1 << 63;
const MXCSR: usize = 24;
const MXCSR_DEFAULT: u32 = 0x1f80;
const FCW_DEFAULT: u16 = 0x37f;
/// `struct kvm_xsave`'s region.
const AREA: usize = 4096;

#[derive(Clone, Copy, Debug, Default)]
struct Component {
    offset: usize,
    size: usize,
    /// In the compacted form it begins at a multiple of 64.
    aligned: bool,
}

/// Where each state component lies.
#[derive(Debug)]
pub struct Layout([Component; COMPONENTS]);

impl Layout {
    /// From CPUID leaf 0xd.
    pub fn of_this_processor() -> Self {
        let mut components = [Component::default(); COMPONENTS];
        for (i, component) in components.iter_mut().enumerate().skip(2) {
            let leaf = __cpuid_count(0xd, i as u32);
            let (size, offset) = (leaf.eax as usize, leaf.ebx as usize);
            // supervisor components (ECX bit 0) have no place in XSAVE's image; what KVM's area cannot hold is never enabled
            if size > 0 && leaf.ecx & 1 == 0 && offset + size <= AREA {
                *component = Component {
                    offset,
                    size,
                    aligned: leaf.ecx & 2 != 0,
                };
            }
        }
        Layout(components)
    }

    /// The components from 2 on that `mask` names, with their offsets in the compacted form for `compact`.
    fn compacted(&self, compact: u64) -> impl Iterator<Item = (usize, usize, Component)> + '_ {
        let mut next = EXTENDED;
        (2..COMPONENTS).filter_map(move |i| {
            let component = self.0[i];
            if compact >> i & 1 == 0 || component.size == 0 {
                return None;
            }
            if component.aligned {
                next = next.next_multiple_of(64);
            }
            let at = next;
            next += component.size;
            Some((i, at, component))
        })
    }

    fn standard(&self) -> impl Iterator<Item = (usize, usize, Component)> + '_ {
        (2..COMPONENTS)
            .filter(|i| self.0[*i].size > 0)
            .map(|i| (i, self.0[i].offset, self.0[i]))
    }
}

/// The state as bytes, the components that the instruction is about (EDX:EAX and XCR0), and XCR0.
fn begin(cpu: &Cpu) -> Result<(Vec<u8>, u64, u64), Exception> {
    if cpu.sregs.cr0 & CR0_TASK_SWITCHED != 0 {
        return Err(DEVICE_NOT_AVAILABLE);
    }
    let xcrs = cpu.fd.get_xcrs().map_err(Error::kvm("KVM_GET_XCRS"))?;
    let xcr0 = xcrs
        .xcrs
        .iter()
        .take(xcrs.nr_xcrs as usize)
        .find(|x| x.xcr == 0)
        .map_or(1, |x| x.value);
    let asked = (cpu.regs.rdx << 32) | (cpu.regs.rax & 0xffff_ffff);
    let state = cpu.fd.get_xsave().map_err(Error::kvm("KVM_GET_XSAVE"))?;
    let bytes = state
        .region
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    Ok((bytes, asked & xcr0, xcr0))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(
        bytes[at..at + 8]
            .try_into()
            .expect("eight bytes were sliced"),
    )
}

fn mxcsr(state: &[u8]) -> u32 {
    let bytes = state[MXCSR..MXCSR + 4].try_into();
    u32::from_le_bytes(bytes.expect("four bytes were sliced"))
}

/// An address in an area, which may go on behind the end of the address space at its beginning.
fn inside(area: u64, at: usize) -> u64 {
    area.wrapping_add(at as u64)
}

/// XINUSE. Whether SSE is in its initial state is not tracked, which is a processor's choice (SDM 1, 13.6), and Intel's.
fn in_use(state: &[u8]) -> u64 {
    u64_at(state, HEADER) | 1 << SSE
}

fn has(mask: u64, component: usize) -> bool {
    mask >> component & 1 == 1
}

/// XSAVE, XSAVEOPT; with `compact` XSAVEC.
pub fn save(
    cpu: &mut Cpu,
    instruction: &Instruction,
    layout: &Layout,
    compact: bool,
) -> Result<(), Exception> {
    let to = cpu.address(instruction);
    if to & 63 != 0 {
        return Err(GENERAL_PROTECTION);
    }
    let (state, mask, _) = begin(cpu)?;
    let in_use = in_use(&state) & mask;
    let header = if compact {
        [in_use, mask | COMPACTED]
    } else {
        let mut old = [0; 8];
        cpu.writable(inside(to, HEADER), 8)?;
        cpu.read(inside(to, HEADER), &mut old)?;
        [(u64::from_le_bytes(old) & !mask) | in_use, 0]
    };
    let put =
        |at: usize, from: usize, size: usize| cpu.write(inside(to, at), &state[from..from + size]);
    // XSAVE writes initial components too, XSAVEC and XSAVEOPT leave them out: KVM's copy holds initial values
    let optimised = matches!(
        instruction.mnemonic(),
        Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64
    );
    let wanted = if compact || optimised { in_use } else { mask };
    if has(wanted, X87) {
        put(0, 0, MXCSR)?;
        put(32, 32, 128)?;
    }
    if has(mask, SSE) || (has(mask, AVX) && !compact) {
        put(MXCSR, MXCSR, 8)?;
    }
    if has(wanted, SSE) {
        put(160, 160, 256)?;
    }
    if compact {
        for (i, at, component) in layout.compacted(mask) {
            if has(wanted, i) {
                put(at, component.offset, component.size)?;
            }
        }
    } else {
        for (i, at, component) in layout.standard() {
            if has(wanted, i) {
                put(at, component.offset, component.size)?;
            }
        }
    }
    cpu.write(inside(to, HEADER), &header[0].to_le_bytes())?;
    if compact {
        cpu.write(inside(to, HEADER + 8), &header[1].to_le_bytes())?;
    }
    Ok(())
}

/// The checks of SDM 1, 13.8.1 and 13.8.2.
fn valid_header(header: &[u8], xcr0: u64) -> bool {
    let (given, compaction) = (u64_at(header, 0), u64_at(header, 8));
    let zero = |range: std::ops::Range<usize>| header[range].iter().all(|b| *b == 0);
    if compaction & COMPACTED == 0 {
        given & !xcr0 == 0 && zero(8..24)
    } else {
        compaction & !(xcr0 | COMPACTED) == 0 && given & !compaction == 0 && zero(16..64)
    }
}

/// The components that have their places in every format: x87, MXCSR, SSE. Of those in the mask the image has the given.
fn restore_legacy(
    state: &mut [u8],
    image: &[u8],
    (mask, given): (u64, u64),
    compacted: bool,
) -> Result<(), Exception> {
    if has(mask, X87) {
        if has(given, X87) {
            state[..MXCSR].copy_from_slice(&image[..MXCSR]);
            state[32..160].copy_from_slice(&image[32..160]);
        } else {
            state[..MXCSR].fill(0);
            state[32..160].fill(0);
            state[..2].copy_from_slice(&FCW_DEFAULT.to_le_bytes());
        }
    }
    let loads_mxcsr = if compacted {
        has(mask & given, SSE)
    } else {
        has(mask, SSE) || has(mask, AVX)
    };
    if loads_mxcsr {
        if mxcsr(image) & 0xffff_0000 != 0 {
            return Err(GENERAL_PROTECTION);
        }
        state[MXCSR..MXCSR + 4].copy_from_slice(&image[MXCSR..MXCSR + 4]);
    } else if compacted && has(mask, SSE) {
        state[MXCSR..MXCSR + 4].copy_from_slice(&MXCSR_DEFAULT.to_le_bytes());
    }
    if has(mask, SSE) {
        if has(given, SSE) {
            state[160..416].copy_from_slice(&image[160..416]);
        } else {
            state[160..416].fill(0);
        }
    }
    Ok(())
}

/// XRSTOR.
pub fn restore(cpu: &mut Cpu, instruction: &Instruction, layout: &Layout) -> Result<(), Exception> {
    let from = cpu.address(instruction);
    if from & 63 != 0 {
        return Err(GENERAL_PROTECTION);
    }
    let (mut state, mask, xcr0) = begin(cpu)?;
    let mut image = vec![0; EXTENDED];
    cpu.read(from, &mut image)?;
    let (given, compaction) = (u64_at(&image, HEADER), u64_at(&image, HEADER + 8));
    let compacted = compaction & COMPACTED != 0;
    if !valid_header(&image[HEADER..], xcr0) {
        return Err(GENERAL_PROTECTION);
    }
    restore_legacy(&mut state, &image, (mask, given), compacted)?;
    let places: Vec<_> = if compacted {
        layout.compacted(compaction).collect()
    } else {
        layout.standard().collect()
    };
    for (i, component) in layout.0.iter().enumerate().skip(2) {
        if component.size == 0 || !has(mask, i) {
            continue;
        }
        let into = &mut state[component.offset..component.offset + component.size];
        match places.iter().find(|(at, ..)| *at == i) {
            Some((_, at, _)) if has(given, i) => cpu.read(inside(from, *at), into)?,
            _ => into.fill(0),
        }
    }
    let in_use = (in_use(&state) & !mask) | (given & mask) | 1 << SSE;
    state[HEADER..HEADER + 8].copy_from_slice(&in_use.to_le_bytes());

    let mut xsave = kvm_xsave::default();
    for (word, bytes) in xsave.region.iter_mut().zip(state.chunks_exact(4)) {
        *word = u32::from_le_bytes(bytes.try_into().expect("chunks of four"));
    }
    sys::set_xsave(cpu.fd, &xsave)?;
    Ok(())
}
