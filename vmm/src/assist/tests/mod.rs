//! Each completed instruction in a tiny guest: what the assist makes of it at privilege level 0 is compared with what the
//! processor makes of the same bytes, registers and memory in user mode, which runs natively on every host.
//!
//! On a host whose KVM refuses the instruction the guest runs into it; elsewhere the assist is called for a vCPU that
//! stands in front of it.

mod bits;
mod faults;
mod xstate;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kvm_bindings::{kvm_regs, kvm_xsave};
use kvm_ioctls::Kvm;
use vm_memory::{Bytes, GuestAddress};

use super::Assist;
use crate::probe::tiny::{DATA, Left, PAGE_TABLE, Tiny, USER_CODE, USER_STACK};

const PAGE: u64 = 0x1000;
/// The data pages that are compared.
const DATA_BYTES: usize = 4 * PAGE as usize;
const FLAGS: u64 = 0x4_0cd5;
const USER_FAULT: u64 = 4;

/// What an instruction begins with.
#[derive(Clone)]
struct Start {
    regs: kvm_regs,
    data: Vec<u8>,
    /// Page table entries, by linear address.
    pages: Vec<(u64, u64)>,
    /// FS and GS base.
    bases: [u64; 2],
    /// Bits of CR0 that are turned over.
    cr0: u64,
    xstate: Option<Vec<u8>>,
}

/// What it ends with.
#[derive(Debug, PartialEq, Eq)]
struct End {
    left: Left,
    rip: u64,
    flags: u64,
    general: [u64; 16],
    data: Vec<u8>,
    xstate: Vec<u8>,
}

impl Default for Start {
    fn default() -> Self {
        let regs = kvm_regs {
            rsp: USER_STACK - 256,
            rflags: 2,
            rdi: DATA,
            ..kvm_regs::default()
        };
        Start {
            regs,
            data: (0..DATA_BYTES).map(|i| (i * 7 + i / 256) as u8).collect(),
            pages: Vec::new(),
            bases: [0; 2],
            cr0: 0,
            xstate: None,
        }
    }
}

impl Start {
    fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut start = Start::default();
        change(&mut start);
        start
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.data[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// XCR0 of the tiny guests: all that both this processor and KVM have of x87, SSE, AVX and AVX-512.
fn xcr0() -> u64 {
    let leaf = std::arch::x86_64::__cpuid_count(0xd, 0);
    u64::from(leaf.eax) & 0xe7
}

/// `None`, with the reason printed, where there is no KVM.
fn machine(start: &Start) -> Option<Tiny> {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(e) => {
            eprintln!("skipped: /dev/kvm: {e}");
            return None;
        }
    };
    let machine = Tiny::new(&kvm, xcr0(), Arc::new(AtomicBool::new(false))).expect("a machine");
    machine.write(DATA, &start.data).expect("data");
    for (address, entry) in &start.pages {
        let at = GuestAddress(PAGE_TABLE + address / PAGE * 8);
        machine.memory.write_obj(*entry, at).expect("page table");
    }
    if let Some(state) = &start.xstate {
        let mut xsave = kvm_xsave::default();
        for (word, bytes) in xsave.region.iter_mut().zip(state.chunks_exact(4)) {
            *word = u32::from_le_bytes(bytes.try_into().expect("four"));
        }
        crate::sys::set_xsave(&machine.fd, &xsave).expect("KVM_SET_XSAVE");
    }
    Some(machine)
}

fn adjust(machine: &mut Tiny, start: &Start, privileged: bool) {
    let mut sregs = machine.fd.get_sregs().expect("sregs");
    if privileged {
        let kernel = Tiny::kernel_segments();
        (sregs.cs, sregs.ss) = kernel;
    }
    (sregs.fs.base, sregs.gs.base) = (start.bases[0], start.bases[1]);
    sregs.cr0 ^= start.cr0;
    machine.fd.set_sregs(&sregs).expect("sregs");
}

fn end(machine: &Tiny, left: Left, length: usize) -> End {
    let regs = machine.fd.get_regs().expect("regs");
    let frame = |index: u64| {
        let skip = match left {
            Left::Exception { vector, .. } => u64::from(matches!(vector, 8 | 10..=14 | 17)),
            _ => 0,
        };
        let at = GuestAddress(regs.rsp + (skip + index) * 8);
        machine.memory.read_obj::<u64>(at).expect("a frame")
    };
    let last = USER_CODE + length as u64;
    let (mut left, rip, rflags, rsp) = match left {
        Left::Halted => (left, regs.rip - 1, regs.rflags, regs.rsp),
        _ => (left, frame(0), frame(2), frame(3)),
    };
    // a program's `hlt` is a fault
    if rip == last && matches!(left, Left::Exception { vector: 13, .. }) {
        left = Left::Halted;
    }
    if let Left::Exception {
        vector: 14,
        error_code,
        ..
    } = &mut left
    {
        *error_code |= USER_FAULT;
    }
    let r = &regs;
    let mut data = vec![0; DATA_BYTES];
    machine.read(DATA, &mut data).expect("data");
    let state = machine.fd.get_xsave().expect("xsave");
    End {
        left,
        rip,
        flags: rflags & FLAGS,
        general: [
            r.rax, r.rcx, r.rdx, r.rbx, rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
            r.r13, r.r14, r.r15,
        ],
        data,
        xstate: state.region.iter().flat_map(|w| w.to_le_bytes()).collect(),
    }
}

/// In user mode, by the processor.
fn natively(code: &[u8], start: &Start) -> Option<End> {
    let mut machine = machine(start)?;
    machine.prepare_user(code, &start.regs).expect("prepared");
    adjust(&mut machine, start, false);
    let left = machine.go().expect("run");
    Some(end(&machine, left, code.len()))
}

/// At privilege level 0, its first instruction by the assist.
fn assisted(code: &[u8], start: &Start) -> Option<End> {
    let assist = Assist::of_this_host();
    let mut machine = machine(start)?;
    let prepare = |machine: &mut Tiny| {
        machine.prepare_user(code, &start.regs).expect("prepared");
        adjust(machine, start, true);
    };
    prepare(&mut machine);
    assist.attach(&mut machine.fd);
    if machine.go().expect("run") != Left::Refused {
        machine = self::machine(start)?;
        prepare(&mut machine);
    }
    assist
        .complete(&mut machine.fd, &machine.memory)
        .expect("completed");
    let left = machine.go().expect("run");
    Some(end(&machine, left, code.len()))
}

/// Both, which must agree; what they agree on.
#[track_caller]
fn same(code: &[u8], start: &Start) -> Option<End> {
    let agreed = compared(code, start)?;
    Some(agreed.unwrap_or_else(|difference| panic!("{code:02x?}: {difference}")))
}

/// Both: what they agree on, or what they do not.
fn compared(code: &[u8], start: &Start) -> Option<Result<End, String>> {
    let (native, assisted) = (natively(code, start)?, assisted(code, start)?);
    if assisted.left != native.left {
        return Some(Err(format!(
            "{:?}, natively {:?}",
            assisted.left, native.left
        )));
    }
    let of = |end: &End| {
        format!(
            "RIP {:#x}, {:x?}, flags {:#x}",
            end.rip, end.general, end.flags
        )
    };
    if of(&assisted) != of(&native) {
        return Some(Err(format!("{}, natively {}", of(&assisted), of(&native))));
    }
    let first = (0..DATA_BYTES).find(|i| assisted.data[*i] != native.data[*i]);
    Some(match first {
        None => Ok(native),
        Some(i) => {
            let range = i & !15..(i & !15) + 16;
            Err(format!(
                "memory at {i:#x}: {:02x?}, natively {:02x?}",
                &assisted.data[range.clone()],
                &native.data[range]
            ))
        }
    })
}
