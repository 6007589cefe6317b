//! Operands that are not there, not for writing, not aligned, not addresses.

use super::*;

const USER: u64 = 0x67;
const READ_ONLY: u64 = 0x65;
const POPCNT_RDI: &[u8] = &[0xf3, 0x48, 0x0f, 0xb8, 0x07];
const CMPXCHG16B_RDI: &[u8] = &[0x48, 0x0f, 0xc7, 0x0f];
const XSAVE_RDI: &[u8] = &[0x48, 0x0f, 0xae, 0x27];
const XSAVEC_RDI: &[u8] = &[0x48, 0x0f, 0xc7, 0x27];
const XRSTOR_RDI: &[u8] = &[0x48, 0x0f, 0xae, 0x2f];

fn page_fault(end: &End) -> (u64, u64) {
    match end.left {
        Left::Exception {
            vector: 14,
            error_code,
            address,
        } => (error_code, address),
        _ => panic!("{:?}", end.left),
    }
}

#[test]
fn a_page_that_is_not_there() {
    for code in [
        POPCNT_RDI,
        CMPXCHG16B_RDI,
        XSAVE_RDI,
        XSAVEC_RDI,
        XRSTOR_RDI,
    ] {
        let start = Start::with(|s| {
            s.pages = vec![(DATA, 0)];
            s.regs.rax = 7;
        });
        same_but_for_a_partial_write(code, &start);
    }
}

#[test]
fn a_page_that_is_not_for_writing() {
    for (code, writes) in [
        (POPCNT_RDI, false),
        (CMPXCHG16B_RDI, true),
        (XSAVE_RDI, true),
        (XSAVEC_RDI, true),
    ] {
        let start = Start::with(|s| {
            s.pages = vec![(DATA, DATA | READ_ONLY)];
            s.regs.rax = 7;
        });
        let Some(end) = same_but_for_a_partial_write(code, &start) else {
            return;
        };
        assert_eq!(end.left == Left::Halted, !writes);
        if writes {
            assert_eq!(page_fault(&end).0, 7);
        }
    }
}

#[test]
fn without_write_protection_the_kernel_writes_where_programs_may_not() {
    const WRITE_PROTECT: u64 = 1 << 16;
    let start = Start::with(|s| {
        s.pages = vec![(DATA, DATA | READ_ONLY)];
        s.cr0 = WRITE_PROTECT;
        s.put(0, &[0; 16]);
        s.regs.rbx = 0x77;
    });
    let Some(end) = assisted(CMPXCHG16B_RDI, &start) else {
        return;
    };
    assert_eq!((end.left, end.data[0]), (Left::Halted, 0x77));
}

/// The second page is the one that faults, whatever was read of the first.
#[test]
fn across_a_page_boundary() {
    let second = DATA + PAGE;
    for code in [POPCNT_RDI, XSAVE_RDI, XSAVEC_RDI, XRSTOR_RDI] {
        for gone in [false, true] {
            let start = Start::with(|s| {
                s.regs.rdi = if code == POPCNT_RDI {
                    second - 4
                } else {
                    second - 128
                };
                s.regs.rax = 7;
                // an image that can be loaded, and whose state is written
                let at = (s.regs.rdi - DATA) as usize;
                let image = super::xstate::image(7);
                s.put(at, &image[..1024]);
                s.xstate = Some(image);
                s.pages = vec![(second, if gone { 0 } else { second | USER })];
            });
            let Some(end) = same_but_for_a_partial_write(code, &start) else {
                return;
            };
            if gone {
                let (error_code, address) = page_fault(&end);
                assert_eq!(error_code & 1, 0);
                assert_eq!(address & !0xfff, second);
            } else {
                assert_eq!(end.left, Left::Halted);
            }
        }
    }
}

/// What a faulting store has written before it faulted is the processor's choice, and so is the byte whose address CR2
/// holds.
fn same_but_for_a_partial_write(code: &[u8], start: &Start) -> Option<End> {
    let (native, assisted) = (natively(code, start)?, assisted(code, start)?);
    match (native.left, assisted.left) {
        (Left::Halted, Left::Halted) => assert_eq!(native.data, assisted.data),
        (Left::Exception { vector: 14, .. }, Left::Exception { vector: 14, .. }) => {
            let ((code_a, at_a), (code_b, at_b)) = (page_fault(&native), page_fault(&assisted));
            assert_eq!(
                (code_a, at_a & !0xfff),
                (code_b, at_b & !0xfff),
                "{code:02x?}"
            );
        }
        other => panic!("{code:02x?}: {other:?}"),
    }
    assert_eq!(native.rip, assisted.rip);
    assert_eq!(native.general, assisted.general);
    Some(assisted)
}

#[test]
fn misaligned() {
    for (code, off_by) in [
        (CMPXCHG16B_RDI, 8),
        (XSAVE_RDI, 32),
        (XSAVEC_RDI, 16),
        (XRSTOR_RDI, 1),
    ] {
        let start = Start::with(|s| {
            s.regs.rdi += off_by;
            s.regs.rax = 7;
        });
        let Some(end) = same(code, &start) else {
            return;
        };
        assert!(matches!(
            end.left,
            Left::Exception {
                vector: 13,
                error_code: 0,
                ..
            }
        ));
    }
}

/// #GP, on the stack #SS (SDM 1, 3.3.7.1). Some hosts have another fault for programs.
#[test]
fn an_address_that_is_none() {
    let hole = 0x0000_8000_0000_0000;
    for (code, vector) in [
        (POPCNT_RDI, 13),
        (CMPXCHG16B_RDI, 13),
        (XSAVE_RDI, 13),
        (XRSTOR_RDI, 13),
        (&[0xf3, 0x48, 0x0f, 0xb8, 0x45, 0x00][..], 12), // popcnt rax, [rbp]
        (&[0x48, 0x0f, 0xc7, 0x4d, 0x00], 12),           // cmpxchg16b [rbp]
    ] {
        let start = Start::with(|s| {
            (s.regs.rdi, s.regs.rbp) = (hole, hole);
            s.regs.rax = 7;
        });
        let Some(end) = assisted(code, &start) else {
            return;
        };
        assert!(
            matches!(end.left, Left::Exception { vector: v, error_code: 0, .. } if v == vector),
            "{code:02x?}: {:?}",
            end.left
        );
    }
}

/// Accessed and dirty are set as the processor sets them.
#[test]
fn accessed_and_dirty() {
    for (code, marks) in [(POPCNT_RDI, 0x20), (CMPXCHG16B_RDI, 0x60)] {
        let start = Start::with(|s| s.pages = vec![(DATA, DATA | 7)]);
        let Some(mut machine) = machine(&start) else {
            return;
        };
        machine.prepare_user(code, &start.regs).expect("prepared");
        adjust(&mut machine, &start, true);
        Assist::of_this_host()
            .complete(&mut machine.fd, &machine.memory)
            .expect("completed");
        let at = GuestAddress(PAGE_TABLE + DATA / PAGE * 8);
        let entry: u64 = machine.memory.read_obj(at).expect("entry");
        assert_eq!(entry & 0x60, marks, "{code:02x?}");
    }
}

/// A program whose store to something that is no memory cannot be emulated faults; its machine goes on.
#[test]
fn a_refused_instruction_of_a_program_is_its_own_fault() {
    let nowhere = 0xd000_0000_u64;
    let start = Start::with(|s| {
        s.pages = vec![(DATA, nowhere | USER)];
        s.regs.rax = 7;
    });
    for code in [&[0xc5, 0xfe, 0x7f, 0x07][..], XSAVE_RDI, CMPXCHG16B_RDI] {
        let Some(mut machine) = machine(&start) else {
            return;
        };
        let assist = Assist::of_this_host();
        assist.attach(&mut machine.fd);
        machine.prepare_user(code, &start.regs).expect("prepared");
        adjust(&mut machine, &start, false);
        let left = machine.go().expect("run");
        if left != Left::Refused {
            eprintln!("skipped: this host emulates {code:02x?}: {left:?}");
            continue;
        }
        assist
            .complete(&mut machine.fd, &machine.memory)
            .expect("completed");
        let left = machine.go().expect("run");
        let end = end(&machine, left, code.len());
        assert_eq!(page_fault(&end), (7, DATA), "{code:02x?}");
        assert_eq!(end.rip, USER_CODE);
    }
}
