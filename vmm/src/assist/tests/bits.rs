//! POPCNT, LSL, CMPXCHG16B, RDRAND, RDSEED, INT3, CLAC, STAC, FWAIT.

use super::*;

const CARRY: u64 = 1;
const ZERO: u64 = 1 << 6;
const AC: u64 = 1 << 18;
/// CF, PF, AF, ZF, SF, OF.
const ARITHMETIC: u64 = 0x8d5;

#[test]
fn popcnt_of_every_size_and_address_form() {
    let forms: &[&[u8]] = &[
        &[0x66, 0xf3, 0x0f, 0xb8, 0xc1],             // popcnt ax, cx
        &[0xf3, 0x0f, 0xb8, 0xc1],                   // popcnt eax, ecx
        &[0xf3, 0x48, 0x0f, 0xb8, 0xc1],             // popcnt rax, rcx
        &[0xf3, 0x4d, 0x0f, 0xb8, 0xc8],             // popcnt r9, r8
        &[0x66, 0xf3, 0x0f, 0xb8, 0x07],             // popcnt ax, [rdi]
        &[0xf3, 0x0f, 0xb8, 0x44, 0x77, 0x05],       // popcnt eax, [rdi+rsi*2+5]
        &[0xf3, 0x4e, 0x0f, 0xb8, 0x4c, 0xc7, 0x08], // popcnt r9, [rdi+r8*8+8]
        &[0xf3, 0x48, 0x0f, 0xb8, 0x05, 0, 0, 0, 0], // popcnt rax, [rip]
        &[0x67, 0xf3, 0x0f, 0xb8, 0x07],             // popcnt eax, [edi]
        &[0x67, 0xf3, 0x0f, 0xb8, 0x44, 0x3b, 0x02], // popcnt eax, [ebx+edi+2]
        &[0x64, 0xf3, 0x0f, 0xb8, 0x06],             // popcnt eax, fs:[rsi]
        &[0x65, 0xf3, 0x48, 0x0f, 0xb8, 0x06],       // popcnt rax, gs:[rsi]
        &[0xf3, 0x0f, 0xb8, 0x04, 0x24],             // popcnt eax, [rsp]
        &[0xf3, 0x48, 0x0f, 0xb8, 0x04, 0x25, 0x08, 0x00, 0x01, 0x00], // popcnt rax, [0x10008]
    ];
    for form in forms {
        for (value, flags) in [
            (0, 2),
            (0xffff_0000_8000_0001, 2 | ARITHMETIC),
            (u64::MAX, 2 | CARRY),
        ] {
            let start = Start::with(|s| {
                s.regs.rcx = value;
                s.regs.r8 = value & 7;
                s.regs.r9 = u64::MAX;
                s.regs.rax = 0xdead_beef_dead_beef;
                s.regs.rsi = 0x18;
                // upper halves that a 32-bit address leaves out
                s.regs.rbx = 0x5555_5555_0000_0010;
                s.regs.rflags = flags;
                s.bases = [DATA + 0x20, DATA + 0x800];
                if value == 0 {
                    s.data.fill(0);
                }
            });
            same(form, &start);
        }
    }
}

#[test]
fn a_32_bit_address_wraps_within_32_bits() {
    let start = Start::with(|s| {
        s.regs.rdi = 0xffff_ffff_ffff_fff0;
        s.regs.rbx = DATA + 0x20;
    });
    // popcnt eax, [edi+ebx]
    same(&[0x67, 0xf3, 0x0f, 0xb8, 0x04, 0x1f], &start);
}

/// SDM 2A, LSL. In user mode some hosts answer from a table of their own: there is nothing to compare with.
#[test]
fn lsl_of_every_kind_of_selector() {
    let forms: &[(&[u8], usize, u64)] = &[
        (&[0x66, 0x0f, 0x03, 0xc1], 0, 0xffff),   // lsl ax, cx
        (&[0x0f, 0x03, 0xc1], 0, 0xffff_ffff),    // lsl eax, ecx
        (&[0x48, 0x0f, 0x03, 0xc1], 0, u64::MAX), // lsl rax, rcx
        (&[0x0f, 0x03, 0x07], 0, 0xffff_ffff),    // lsl eax, [rdi]
        (&[0x4c, 0x0f, 0x03, 0xc9], 9, u64::MAX), // lsl r9, rcx
    ];
    for (selector, limit) in [
        // kernel code and data, user data and code, the task
        (0x08, Some(0xffff_ffff)),
        (0x10, Some(0xffff_ffff)),
        (0x1b, Some(0xffff_ffff)),
        (0x18, Some(0xffff_ffff)),
        (0x23, Some(0xffff_ffff)),
        (0x28, Some(0x67)),
        // a requested privilege level of 3 hides the kernel's
        (0x0b, None),
        (0x2b, None),
        // the task's upper half, null, beyond the table, a local table that there is none of
        (0x30, None),
        (0_u64, None),
        (3, None),
        (0x38, None),
        (0xfff8, None),
        (0x0f, None),
    ] {
        for (form, destination, mask) in forms {
            let old = 0x1234_5678_9abc_def0;
            let start = Start::with(|s| {
                s.regs.rcx = 0xffff_ffff_ffff_0000 | selector;
                (s.regs.rax, s.regs.r9) = (old, old);
                s.regs.rflags = 2 | (ARITHMETIC ^ ZERO);
                s.put(0, &(selector as u16).to_le_bytes());
            });
            let Some(end) = assisted(form, &start) else {
                return;
            };
            let context = format!("{form:02x?} of {selector:#x}");
            let kept = if *mask == 0xffff { old & !mask } else { 0 };
            let expected = limit.map_or(old, |limit| limit & mask | kept);
            assert_eq!(end.general[*destination], expected, "{context}");
            let zero = if limit.is_some() { ZERO } else { 0 };
            assert_eq!(end.flags, (ARITHMETIC ^ ZERO) | zero, "{context}");
        }
    }
}

/// SDM 2A, LAR.
#[test]
fn lar_of_every_kind_of_selector() {
    let forms: &[(&[u8], u64)] = &[
        (&[0x66, 0x0f, 0x02, 0xc1], 0xffff), // lar ax, cx
        (&[0x0f, 0x02, 0xc1], 0xffff_ffff),  // lar eax, ecx
        (&[0x0f, 0x02, 0x07], 0xffff_ffff),  // lar eax, [rdi]
    ];
    for (selector, rights) in [
        // kernel code and data, user data and code, the busy task
        (0x08, Some(0xa0_9b00)),
        (0x10, Some(0xc0_9300)),
        (0x1b, Some(0xc0_f300)),
        (0x23, Some(0xa0_fb00)),
        (0x28, Some(0x00_8b00)),
        // hidden by the requested privilege level, null, beyond the table, a local table that there is none of
        (0x0b, None),
        (0_u64, None),
        (0xfff8, None),
        (0x0f, None),
    ] {
        for (form, mask) in forms {
            let old = 0x1234_5678_9abc_def0;
            let start = Start::with(|s| {
                s.regs.rcx = 0xffff_ffff_ffff_0000 | selector;
                s.regs.rax = old;
                s.regs.rflags = 2 | (ARITHMETIC ^ ZERO);
                s.put(0, &(selector as u16).to_le_bytes());
            });
            let Some(end) = assisted(form, &start) else {
                return;
            };
            let context = format!("{form:02x?} of {selector:#x}");
            let kept = if *mask == 0xffff { old & !mask } else { 0 };
            let expected = rights.map_or(old, |rights: u64| rights & mask | kept);
            assert_eq!(end.general[0], expected, "{context}");
            let zero = if rights.is_some() { ZERO } else { 0 };
            assert_eq!(end.flags, (ARITHMETIC ^ ZERO) | zero, "{context}");
        }
    }
}

#[test]
fn cmpxchg16b_equal_and_not() {
    let forms: &[&[u8]] = &[
        &[0x48, 0x0f, 0xc7, 0x0f],             // cmpxchg16b [rdi]
        &[0xf0, 0x48, 0x0f, 0xc7, 0x0f],       // lock
        &[0xf0, 0x48, 0x0f, 0xc7, 0x4f, 0x10], // lock cmpxchg16b [rdi+16]
        &[0x65, 0x48, 0x0f, 0xc7, 0x0e],       // cmpxchg16b gs:[rsi], as in the kernel's allocator
    ];
    for form in forms {
        for off_by in [0, 1] {
            let start = Start::with(|s| {
                for at in [0, 16, 0x40] {
                    s.put(
                        at,
                        &0x1111_2222_3333_4444_5555_6666_7777_8888_u128.to_le_bytes(),
                    );
                }
                s.regs.rdx = 0x1111_2222_3333_4444;
                s.regs.rax = 0x5555_6666_7777_8888 + off_by;
                s.regs.rcx = 0xaaaa;
                s.regs.rbx = 0xbbbb;
                s.regs.rsi = 0x40;
                s.regs.rflags = 2 | ARITHMETIC ^ (ZERO * off_by);
                s.bases[1] = DATA;
            });
            let Some(end) = same(form, &start) else {
                return;
            };
            assert_eq!(end.flags & ZERO != 0, off_by == 0);
        }
    }
}

/// Another thread, in the place of another vCPU, exchanges the same 16 bytes: no exchange of either is lost.
#[test]
fn cmpxchg16b_is_atomic() {
    use vm_memory::GuestMemoryBackend;
    const TURNS: u64 = 3000;
    let start = Start::with(|s| s.put(0, &[0; 16]));
    let Some(mut machine) = machine(&start) else {
        return;
    };
    let memory = machine.memory.clone();
    let other = std::thread::spawn(move || {
        let slice = memory.get_slice(GuestAddress(DATA), 16).expect("memory");
        let mut done = 0;
        while done < TURNS {
            let now = super::super::sys::compare_exchange_16(&slice, 0, 0).expect("aligned");
            let new = now + (1 << 64);
            if super::super::sys::compare_exchange_16(&slice, now, new) == Some(now) {
                done += 1;
            }
        }
    });
    let assist = Assist::of_this_host();
    let mut done = 0;
    let mut expected = 0_u128;
    while done < TURNS {
        let mut start = start.clone();
        let new = expected + 1;
        (start.regs.rax, start.regs.rdx) = (expected as u64, (expected >> 64) as u64);
        (start.regs.rbx, start.regs.rcx) = (new as u64, (new >> 64) as u64);
        machine
            .prepare_user(&[0xf0, 0x48, 0x0f, 0xc7, 0x0f], &start.regs)
            .expect("prepared");
        adjust(&mut machine, &start, true);
        assist
            .complete(&mut machine.fd, &machine.memory)
            .expect("completed");
        let regs = machine.fd.get_regs().expect("regs");
        if regs.rflags & ZERO != 0 {
            done += 1;
            expected = new;
        } else {
            expected = u128::from(regs.rdx) << 64 | u128::from(regs.rax);
        }
    }
    other.join().expect("the other thread");
    let mut bytes = [0; 16];
    machine.read(DATA, &mut bytes).expect("data");
    assert_eq!(
        u128::from_le_bytes(bytes),
        u128::from(TURNS) << 64 | u128::from(TURNS)
    );
}

#[test]
fn random_numbers_set_carry_and_clear_the_rest() {
    for (form, mask) in [
        (&[0x66, 0x0f, 0xc7, 0xf0][..], 0xffff),
        (&[0x0f, 0xc7, 0xf0], 0xffff_ffff),
        (&[0x48, 0x0f, 0xc7, 0xf0], u64::MAX),
        (&[0x48, 0x0f, 0xc7, 0xf8], u64::MAX),
    ] {
        let old = 0xdead_beef_dead_beef;
        let start = Start::with(|s| {
            s.regs.rax = old;
            s.regs.rflags = 2 | ARITHMETIC ^ CARRY;
        });
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..4 {
            let Some(end) = assisted(form, &start) else {
                return;
            };
            assert_eq!((end.left, end.flags), (Left::Halted, CARRY), "{form:02x?}");
            let kept = if mask == 0xffff { old & !mask } else { 0 };
            assert_eq!(end.general[0] & !mask, kept, "{form:02x?}");
            seen.insert(end.general[0]);
        }
        assert!(seen.len() > 1, "{form:02x?}: {seen:x?}");
    }
}

#[test]
fn int3_traps_behind_itself() {
    let Some(end) = assisted(&[0xcc], &Start::default()) else {
        return;
    };
    assert!(
        matches!(end.left, Left::Exception { vector: 3, .. }),
        "{end:?}"
    );
    assert_eq!(end.rip, USER_CODE + 1);
}

#[test]
fn clac_and_stac_change_ac_alone() {
    for (form, ac) in [([0x0f, 0x01, 0xca], 0), ([0x0f, 0x01, 0xcb], AC)] {
        for before in [0, AC] {
            let start = Start::with(|s| s.regs.rflags = 2 | before | ARITHMETIC);
            let Some(end) = assisted(&form, &start) else {
                return;
            };
            assert_eq!(end.flags, ac | ARITHMETIC);
        }
    }
}

#[test]
fn fwait_delivers_what_is_pending() {
    const MONITOR: u64 = 1 << 1;
    const SWITCHED: u64 = 1 << 3;
    let state = |fsw: u16, fcw: u16| {
        let mut state = vec![0; 4096];
        state[..2].copy_from_slice(&fcw.to_le_bytes());
        state[2..4].copy_from_slice(&fsw.to_le_bytes());
        state[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        state[512] = 3;
        state
    };
    // nothing; a division by zero, masked; the same unmasked
    for (fsw, fcw, cr0, vector) in [
        (0, 0x37f, 0, None),
        (0x0004, 0x37f, 0, None),
        (0x8084, 0x37b, 0, Some(16)),
        (0, 0x37f, SWITCHED, Some(7)),
        // TS without MP: only other instructions of the coprocessor mind
        (0, 0x37f, SWITCHED | MONITOR, None),
    ] {
        let start = Start::with(|s| {
            s.xstate = Some(state(fsw, fcw));
            s.cr0 = cr0;
        });
        let Some(end) = assisted(&[0x9b], &start) else {
            return;
        };
        let seen = match end.left {
            Left::Exception { vector, .. } => Some(vector),
            _ => None,
        };
        assert_eq!(seen, vector, "fsw {fsw:#x} fcw {fcw:#x} cr0 {cr0:#x}");
        assert_eq!(end.rip, USER_CODE + u64::from(vector.is_none()));
        if cr0 == 0 {
            same(&[0x9b], &start);
        }
    }
}
