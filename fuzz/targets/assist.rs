//! Instructions that KVM refuses, completed by the VMM: whatever the code, the registers and the page tables of a guest are.
//! Needs /dev/kvm, whose vCPU keeps the registers; the guest is never entered.
//!
//! ```text
//! guest-physical = linear   0x1000 page tables (4)   0x5000 GDT   0x8000 code   0x1_0000 data   2 MiB in all
//! ```

#![no_main]

use std::cell::RefCell;

use caisson_fuzz::input::Input;
use caisson_fuzz::seeds;
use caisson_vmm::assist::{Assist, VcpuAssist};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MEMORY: usize = 2 << 20;
const TABLES: u64 = 0x1000;
const PAGE_TABLE: u64 = 0x4000;
const GDT: u64 = 0x5000;
const CODE: u64 = 0x8000;
const DATA: u64 = 0x1_0000;
const PRESENT: u64 = 0x67;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;

fuzz_target!(init: seeds::plant(instructions()), |data: &[u8]| run(data));

thread_local! {
    static MACHINE: RefCell<Option<Machine>> = RefCell::new(Machine::new());
}

struct Machine {
    fd: VcpuFd,
    start: kvm_sregs,
    assist: Assist,
    _vm: VmFd,
}

impl Machine {
    /// `None` where there is no KVM: then nothing is tried.
    fn new() -> Option<Self> {
        let kvm = Kvm::new().ok()?;
        let vm = kvm.create_vm().ok()?;
        let fd = vm.create_vcpu(0).ok()?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).ok()?;
        fd.set_cpuid2(&cpuid).ok()?;
        let mut start = fd.get_sregs().ok()?;
        start.cs = segment(8, 11, 1);
        start.ss = segment(16, 3, 0);
        (start.cr0, start.cr3, start.cr4) = (0x8001_0033, TABLES, 0x4_0620);
        start.efer = 0xd01;
        (start.gdt.base, start.gdt.limit) = (GDT, 0xfff);
        Some(Machine {
            fd,
            start,
            assist: Assist::of_this_host(),
            _vm: vm,
        })
    }
}

fn segment(selector: u16, type_: u8, l: u8) -> kvm_segment {
    kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        db: 1 - l,
        s: 1,
        l,
        g: 1,
        ..kvm_segment::default()
    }
}

fn run(data: &[u8]) {
    MACHINE.with_borrow_mut(|machine| {
        if let Some(machine) = machine {
            attempt(machine, &mut Input::new(data));
        }
    });
}

/// A byte that says what is unusual, the instruction, the registers that are not what they usually are, the data.
fn attempt(machine: &mut Machine, input: &mut Input) {
    let unusual = input.u8();
    let length = input.u8() % 16;
    let code = input.bytes(length.into());
    let memory = memory();
    memory
        .write_slice(code, GuestAddress(CODE))
        .expect("memory");
    let mut regs = kvm_regs {
        rip: CODE,
        rsp: DATA + 0x800,
        rdi: DATA,
        rax: u64::MAX,
        rdx: u64::MAX,
        rflags: 2,
        ..kvm_regs::default()
    };
    let mut sregs = machine.start;
    if unusual & 1 != 0 {
        (regs.rax, regs.rdx, regs.rcx) = (input.u64(), input.u64(), input.u64());
        (regs.rdi, regs.rsi, regs.rbp) = (input.u64(), input.u64(), input.u64());
    }
    if unusual & 2 != 0 {
        (regs.rip, regs.r8) = (input.u64(), input.u64());
        (sregs.fs.base, sregs.gs.base) = (input.u64(), input.u64());
    }
    if unusual & 4 != 0 {
        (sregs.cr0, sregs.cr4) = (sregs.cr0 ^ input.u64(), sregs.cr4 ^ input.u64());
        sregs.cr3 ^= input.u64();
        (sregs.gdt.base, sregs.gdt.limit) = (input.u64(), input.u16());
    }
    if unusual & 8 != 0 {
        (sregs.cs.l, sregs.cs.db) = (input.u8() & 1, input.u8() & 1);
        sregs.cs.base = input.u64();
    }
    if unusual & 16 != 0 {
        (sregs.cs.dpl, sregs.ss.dpl) = (3, 3);
    }
    if unusual & 32 != 0 {
        for _ in 0..input.u8() % 8 {
            let (at, entry) = (u64::from(input.u16()) % 0x800, input.u64());
            memory
                .write_obj(entry, GuestAddress(TABLES + at * 8))
                .expect("memory");
        }
    }
    let mut gate = VcpuAssist::default();
    let fd = &mut machine.fd;
    if fd.set_sregs(&sregs).is_err() || fd.set_regs(&regs).is_err() {
        return;
    }
    if unusual & 64 != 0 {
        for msr in [STAR, LSTAR] {
            let value = (msr, input.u64());
            let _ = machine.assist.wrote_msr(fd, &memory, &mut gate, value);
        }
        let _ = machine.assist.enter_kernel(fd, &memory, &mut gate);
    }
    memory
        .write_slice(input.rest(), GuestAddress(DATA))
        .expect("an input is shorter than the data");
    let _ = machine.assist.complete(fd, &memory);
}

/// Every page is where it is, and everybody's; a GDT of a few descriptors.
fn memory() -> GuestMemoryMmap {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
    for table in [TABLES, TABLES + 0x1000, TABLES + 0x2000] {
        memory
            .write_obj((table + 0x1000) | PRESENT, GuestAddress(table))
            .expect("memory");
    }
    let entries = (0..512u64).flat_map(|page| (page << 12 | PRESENT).to_le_bytes());
    memory
        .write_slice(&entries.collect::<Vec<_>>(), GuestAddress(PAGE_TABLE))
        .expect("memory");
    let descriptors = [0u64, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    for (at, descriptor) in descriptors.iter().enumerate() {
        memory
            .write_obj(*descriptor, GuestAddress(GDT + at as u64 * 8))
            .expect("memory");
    }
    memory
}

/// Each that is completed, as a kernel uses it and as a program does.
fn instructions() -> Vec<Vec<u8>> {
    let codes: [&[u8]; 16] = [
        &[0xcc],                               // int3
        &[0x0f, 0x01, 0xca],                   // clac
        &[0x0f, 0x01, 0xcb],                   // stac
        &[0x9b],                               // fwait
        &[0xf3, 0x48, 0x0f, 0xb8, 0x07],       // popcnt rax, [rdi]
        &[0x65, 0xf3, 0x48, 0x0f, 0xb8, 0x06], // popcnt rax, gs:[rsi]
        &[0x0f, 0x03, 0xc1],                   // lsl eax, ecx
        &[0x0f, 0x02, 0x07],                   // lar eax, [rdi]
        &[0x48, 0x0f, 0xc7, 0xf0],             // rdrand rax
        &[0x48, 0x0f, 0xc7, 0xf8],             // rdseed rax
        &[0xf0, 0x48, 0x0f, 0xc7, 0x0f],       // lock cmpxchg16b [rdi]
        &[0x48, 0x0f, 0xae, 0x27],             // xsave64 [rdi]
        &[0x48, 0x0f, 0xae, 0x37],             // xsaveopt64 [rdi]
        &[0x48, 0x0f, 0xc7, 0x27],             // xsavec64 [rdi]
        &[0x48, 0x0f, 0xae, 0x2f],             // xrstor64 [rdi]
        &[0x0f, 0x05],                         // syscall
    ];
    let seed = |unusual: u8, code: &[u8]| {
        let start = [&[unusual, code.len() as u8], code].concat();
        let registers = 0x1_0040u64.to_le_bytes().repeat(10);
        // the header of an XSAVE area: x87 and SSE, in the standard form
        let mut area = vec![0; 1024];
        area[512] = 3;
        [start, registers, area].concat()
    };
    let each = codes
        .iter()
        .flat_map(|code| [0, 1, 2, 16, 64].map(|unusual| seed(unusual, code)));
    each.collect()
}
