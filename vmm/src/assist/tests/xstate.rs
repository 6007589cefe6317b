//! XSAVE, XSAVEOPT, XSAVEC, XRSTOR.

use super::*;

const XSAVE: &[u8] = &[0x48, 0x0f, 0xae, 0x27];
const XSAVEOPT: &[u8] = &[0x48, 0x0f, 0xae, 0x37];
const XSAVEC: &[u8] = &[0x48, 0x0f, 0xc7, 0x27];
const XRSTOR: &[u8] = &[0x48, 0x0f, 0xae, 0x2f];
const HEADER: usize = 512;

/// An XSAVE image in standard form with `in_use` components, none of them in its initial state.
pub fn image(in_use: u64) -> Vec<u8> {
    let mut image: Vec<u8> = (0..4096).map(|i| (i % 251) as u8 | 1).collect();
    image[..24].copy_from_slice(&[
        0x7f, 0x02, 0, 0x38, 0xff, 0, 0x11, 0x02, 1, 2, 3, 4, 5, 6, 0, 0, 6, 5, 4, 3, 2, 1, 0, 0,
    ]);
    // without SSE there is no MXCSR of its own
    let mxcsr: u32 = if in_use & 2 == 0 { 0x1f80 } else { 0x1f00 };
    image[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    image[28..32].copy_from_slice(&0xffff_u32.to_le_bytes());
    for register in 0..8 {
        image[32 + register * 16 + 10..48 + register * 16].fill(0);
    }
    image[416..576].fill(0);
    image[HEADER..HEADER + 8].copy_from_slice(&in_use.to_le_bytes());
    image
}

/// The masks of EDX:EAX: none, each alone, pairs, all, and more than there is (but nothing that a processor may have
/// switched on for programs of some hosts: AMX).
fn masks() -> Vec<u64> {
    let all = xcr0();
    let masks = [0, 1, 2, 3, 4, 5, 6, 7, 0xe0, 0xe4, 0xe6, all];
    let masks = masks.into_iter().filter(|mask| mask & !all == 0);
    masks.chain([all | 1 << 40]).collect()
}

fn ask(start: &mut Start, mask: u64) {
    start.regs.rax = 0xffff_ffff_0000_0000 | mask & 0xffff_ffff;
    start.regs.rdx = mask >> 32;
}

#[test]
fn saving_every_mask_of_every_state() {
    let states = [0, 1, 2, 3, 4, 6, xcr0() & 0xe0, xcr0()];
    for code in [XSAVE, XSAVEOPT, XSAVEC] {
        for in_use in states {
            for mask in masks() {
                let start = Start::with(|s| {
                    s.xstate = Some(image(in_use));
                    ask(s, mask);
                });
                eprintln!("{code:02x?} state {in_use:#x} mask {mask:#x}");
                // a processor may take state for in use that is as after INIT (Intel SDM 1, 13.6), and does after some
                // switches of context: one of several tries must agree
                let mut tries = (0..8).map(|_| compared(code, &start));
                let mut last = tries.next().expect("a try");
                while let (Some(Err(_)), Some(next)) = (&last, tries.next()) {
                    last = next;
                }
                match last {
                    None => return,
                    Some(Err(difference)) => panic!("{difference}"),
                    Some(Ok(_)) => {}
                }
            }
        }
    }
}

fn restored(start: &Start) -> bool {
    let (Some(native), Some(assisted)) = (natively(XRSTOR, start), assisted(XRSTOR, start)) else {
        return false;
    };
    assert_eq!(native.left, assisted.left);
    // what was loaded before a fault is the processor's choice
    if native.left != Left::Halted {
        return true;
    }
    for (name, range) in [
        ("x87", 0..24),
        ("MXCSR", 24..28),
        ("x87 registers", 32..160),
        ("SSE", 160..416),
        ("in use", HEADER..HEADER + 8),
        ("AVX and others", 576..2696),
    ] {
        assert_eq!(
            native.xstate[range.clone()],
            assisted.xstate[range],
            "{name}"
        );
    }
    true
}

#[test]
fn restoring_every_mask_of_the_standard_form() {
    for given in [0, 1, 2, 3, 4, 6, 7, xcr0()] {
        for mask in masks() {
            let start = Start::with(|s| {
                let mut before = image(xcr0());
                before[160] ^= 0x80;
                before[24..28].copy_from_slice(&0x1e80_u32.to_le_bytes());
                s.xstate = Some(before);
                s.put(0, &image(given));
                ask(s, mask);
            });
            eprintln!("standard, given {given:#x} mask {mask:#x}");
            if !restored(&start) {
                return;
            }
        }
    }
}

#[test]
fn restoring_every_mask_of_the_compacted_form() {
    let all = xcr0();
    for compaction in [0, 1, 2, 3, 4, 6, 7, all & 0xe2, all] {
        for given in [0, compaction & 1, compaction & 6, compaction] {
            for mask in masks() {
                let start = Start::with(|s| {
                    let mut before = image(all);
                    before[24..28].copy_from_slice(&0x1e80_u32.to_le_bytes());
                    s.xstate = Some(before);
                    s.put(0, &image(given));
                    s.put(HEADER + 8, &(compaction | 1 << 63).to_le_bytes());
                    ask(s, mask);
                });
                eprintln!("compacted {compaction:#x}, given {given:#x} mask {mask:#x}");
                if !restored(&start) {
                    return;
                }
            }
        }
    }
}

#[test]
fn what_was_saved_is_restored() {
    for (save, compact) in [(XSAVE, false), (XSAVEOPT, false), (XSAVEC, true)] {
        let start = Start::with(|s| {
            s.xstate = Some(image(xcr0()));
            s.data.fill(0);
            ask(s, xcr0());
        });
        let Some(saved) = assisted(save, &start) else {
            return;
        };
        let start = Start::with(|s| {
            s.put(0, &saved.data);
            ask(s, xcr0());
        });
        let Some(back) = assisted(XRSTOR, &start) else {
            return;
        };
        assert_eq!(back.left, Left::Halted);
        let range = 576..if xcr0() & 4 != 0 { 832 } else { 576 };
        assert_eq!(back.xstate[range.clone()], image(7)[range], "{compact}");
        // all but MXCSR_MASK
        assert_eq!(back.xstate[..28], image(7)[..28]);
        assert_eq!(back.xstate[32..416], image(7)[32..416]);
    }
}

#[test]
fn headers_that_are_refused() {
    let all = xcr0();
    let cases: &[(&str, usize, u64)] = &[
        ("a component that is off", 0, 1 << 62),
        ("a component that is off, compacted", 8, 1 << 63 | 1 << 62),
        ("a form that is none", 8, 1),
        ("given but not in the compacted form", 8, 1 << 63 | 1),
        ("reserved bytes", 16, 1),
        ("reserved bytes further on", 24, 1),
        ("the last reserved bytes", 56, 1 << 63),
    ];
    for (what, at, value) in cases {
        for compacted in [false, true] {
            let start = Start::with(|s| {
                s.xstate = Some(image(all));
                s.put(0, &image(all & 3));
                if compacted {
                    s.put(HEADER + 8, &(all | 1 << 63).to_le_bytes());
                }
                s.put(HEADER + at, &value.to_le_bytes());
                ask(s, xcr0());
            });
            eprintln!("{what}, compacted {compacted}");
            if !restored(&start) {
                return;
            }
        }
    }
    // MXCSR's reserved bits, where it is loaded and where not
    for given in [0, 1, 2, 3] {
        for compacted in [false, true] {
            for mask in [1, 2, 4 & all, 7 & all] {
                let start = Start::with(|s| {
                    s.xstate = Some(image(all));
                    s.put(0, &image(given));
                    s.put(24, &0x8000_1f80_u32.to_le_bytes());
                    if compacted {
                        s.put(HEADER + 8, &(all | 1 << 63).to_le_bytes());
                    }
                    ask(s, mask);
                });
                eprintln!("MXCSR, given {given:#x} mask {mask:#x} compacted {compacted}");
                if !restored(&start) {
                    return;
                }
            }
        }
    }
}

#[test]
fn an_area_at_the_end_of_the_address_space_goes_on_at_its_beginning() {
    for code in [XSAVE, XSAVEOPT, XSAVEC] {
        // no component: all that is written is the header, 512 bytes on
        let start = Start::with(|s| s.regs.rdi = 0_u64.wrapping_sub(64));
        let Some(end) = assisted(code, &start) else {
            return;
        };
        assert_eq!(end.left, Left::Halted, "{code:02x?}");
    }
}
