//! A virtual machine of one vCPU and a few pages that is thrown away: long mode, no interrupt controller, no devices.
//!
//! ```text
//! guest-physical = linear, pages of 4 KiB, 2 MiB in all
//! 0x1000  page tables (4)     0x6000  IDT: every vector leads to a `hlt` of its own
//! 0x5000  GDT                 0x7000  those `hlt`s      0x8000  kernel code      0xa000  end of the kernel's stack
//! 0x5800  TSS                 0x10000  data             0x20000 user code        0x22000 end of the user's stack
//! ```
//!
//! Code ends with `hlt`, which leaves the machine. Data is the kernel's and the user's, readable and writable.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcr,
    kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::{Error, Result};
use crate::sys;

const SIZE: usize = 2 << 20;
const PML4: u64 = 0x1000;
/// One entry of 8 bytes for each page.
pub const PAGE_TABLE: u64 = 0x4000;
const GDT: u64 = 0x5000;
const TSS: u64 = 0x5800;
const IDT: u64 = 0x6000;
const HANDLERS: u64 = 0x7000;
/// Where kernel code goes.
pub const CODE: u64 = 0x8000;
const STACK: u64 = 0xa000;
/// Where data goes.
pub const DATA: u64 = 0x1_0000;
/// Where user code goes.
pub const USER_CODE: u64 = 0x2_0000;
/// The end of its stack.
pub const USER_STACK: u64 = 0x2_2000;

const HLT: u8 = 0xf4;
const PAGE: u64 = 0x1000;
const PTE_KERNEL: u64 = 0x63;
const PTE_USER: u64 = 0x67;

/// The kernel's code segment; its data segment follows.
pub const KERNEL_CODE: u16 = 0x08;
/// The user's code segment as SYSRET computes it: data first.
pub const USER_DATA: u16 = 0x18 | 3;
const USER_CODE_SELECTOR: u16 = 0x20 | 3;
const TASK: u16 = 0x28;

/// PE, MP, ET, NE, WP, PG.
const CR0: u64 = 0x8001_0033;
/// PAE, OSFXSR, OSXMMEXCPT, OSXSAVE.
const CR4: u64 = 0x4_0620;
/// SCE, LME, LMA, NXE.
const EFER: u64 = 0xd01;
const PAGE_FAULT: u8 = 14;

/// How a piece of code left the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// It halted by itself.
    Halted,
    /// This exception came.
    Exception {
        vector: u8,
        error_code: u64,
        address: u64,
    },
    /// KVM could not emulate the instruction at RIP.
    Refused,
    /// Three faults in one another.
    Shutdown,
    /// Anything else.
    Other,
}

/// The machine.
pub struct Tiny {
    /// Its vCPU.
    pub fd: VcpuFd,
    /// Its memory.
    pub memory: GuestMemoryMmap,
    start: kvm_sregs,
    events: kvm_vcpu_events,
    stop: Arc<AtomicBool>,
    _vm: VmFd,
}

impl Tiny {
    /// Builds it. `xcr0` is what XSETBV would have set; a signal ends a run once `stop` is set.
    pub fn new(kvm: &Kvm, xcr0: u64, stop: Arc<AtomicBool>) -> Result<Self> {
        let vm = kvm.create_vm().map_err(Error::kvm("KVM_CREATE_VM"))?;
        let memory = crate::memory::reserve(SIZE as u64)?;
        sys::set_memory(&vm, &memory)?;
        let fd = vm.create_vcpu(0).map_err(Error::kvm("KVM_CREATE_VCPU"))?;
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?;
        fd.set_cpuid2(&cpuid)
            .map_err(Error::kvm("KVM_SET_CPUID2"))?;
        write_tables(&memory)?;
        let mut start = fd.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?;
        set_system_registers(&mut start);
        let mut xcrs = kvm_xcrs {
            nr_xcrs: 1,
            ..Default::default()
        };
        xcrs.xcrs[0] = kvm_xcr {
            xcr: 0,
            value: xcr0,
            ..Default::default()
        };
        fd.set_xcrs(&xcrs).map_err(Error::kvm("KVM_SET_XCRS"))?;
        let events = fd
            .get_vcpu_events()
            .map_err(Error::kvm("KVM_GET_VCPU_EVENTS"))?;
        Ok(Tiny {
            fd,
            memory,
            start,
            events,
            stop,
            _vm: vm,
        })
    }

    /// Puts kernel code into place and the vCPU in front of it; `registers` keeps what it says except RIP and, when they
    /// are zero, RSP and RFLAGS.
    pub fn prepare(&mut self, code: &[u8], registers: &kvm_regs) -> Result<()> {
        self.place(CODE, code, registers, self.start, STACK)
    }

    /// The same for user code.
    pub fn prepare_user(&mut self, code: &[u8], registers: &kvm_regs) -> Result<()> {
        let mut sregs = self.start;
        sregs.cs = segment(USER_CODE_SELECTOR, 11, 3, true);
        sregs.ss = segment(USER_DATA, 3, 3, false);
        self.place(USER_CODE, code, registers, sregs, USER_STACK)
    }

    /// CS and SS of privilege level 0.
    #[cfg(test)]
    pub fn kernel_segments() -> (kvm_segment, kvm_segment) {
        let code = segment(KERNEL_CODE, 11, 0, true);
        (code, segment(KERNEL_CODE + 8, 3, 0, false))
    }

    fn place(
        &mut self,
        at: u64,
        code: &[u8],
        registers: &kvm_regs,
        sregs: kvm_sregs,
        stack: u64,
    ) -> Result<()> {
        let mut bytes = code.to_vec();
        bytes.push(HLT);
        self.write(at, &bytes)?;
        let mut regs = *registers;
        regs.rip = at;
        if regs.rsp == 0 {
            regs.rsp = stack;
        }
        if regs.rflags == 0 {
            regs.rflags = 2;
        }
        self.fd
            .set_vcpu_events(&self.events)
            .map_err(Error::kvm("KVM_SET_VCPU_EVENTS"))?;
        self.fd
            .set_sregs(&sregs)
            .map_err(Error::kvm("KVM_SET_SREGS"))?;
        self.fd.set_regs(&regs).map_err(Error::kvm("KVM_SET_REGS"))
    }

    /// Runs until the code leaves the machine.
    pub fn go(&mut self) -> Result<Left> {
        let left = loop {
            match self.fd.run() {
                Ok(VcpuExit::Hlt) => break Left::Halted,
                Ok(VcpuExit::InternalError) => break Left::Refused,
                Ok(VcpuExit::Shutdown) => break Left::Shutdown,
                Ok(_) => break Left::Other,
                Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
                    if self.stop.load(Ordering::Acquire) {
                        return Err(Error::Internal("the watchdog ended it".into()));
                    }
                }
                Err(e) => return Err(Error::kvm("KVM_RUN")(e)),
            }
        };
        if left != Left::Halted {
            return Ok(left);
        }
        let regs = self.fd.get_regs().map_err(Error::kvm("KVM_GET_REGS"))?;
        if !(HANDLERS..HANDLERS + PAGE).contains(&regs.rip) {
            return Ok(left);
        }
        let vector = ((regs.rip - HANDLERS) / 16) as u8;
        let mut error_code = [0; 8];
        if has_error_code(vector) {
            self.read(regs.rsp, &mut error_code)?;
        }
        let address = if vector == PAGE_FAULT {
            self.fd
                .get_sregs()
                .map_err(Error::kvm("KVM_GET_SREGS"))?
                .cr2
        } else {
            0
        };
        Ok(Left::Exception {
            vector,
            error_code: u64::from_le_bytes(error_code),
            address,
        })
    }

    /// Writes guest memory.
    pub fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.memory
            .write_slice(bytes, GuestAddress(at))
            .map_err(outside)
    }

    /// Reads guest memory.
    pub fn read(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        self.memory
            .read_slice(bytes, GuestAddress(at))
            .map_err(outside)
    }
}

fn outside(e: vm_memory::GuestMemoryError) -> Error {
    Error::Internal(format!("the throw-away machine's memory: {e}"))
}

fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17)
}

fn segment(selector: u16, type_: u8, dpl: u8, code: bool) -> kvm_segment {
    kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_,
        dpl,
        present: 1,
        s: 1,
        l: u8::from(code),
        db: u8::from(!code),
        g: 1,
        ..kvm_segment::default()
    }
}

fn set_system_registers(sregs: &mut kvm_sregs) {
    sregs.gdt = kvm_dtable {
        base: GDT,
        limit: 0x37,
        ..Default::default()
    };
    sregs.idt = kvm_dtable {
        base: IDT,
        limit: 0x1ff,
        ..Default::default()
    };
    sregs.cs = segment(KERNEL_CODE, 11, 0, true);
    sregs.ss = segment(KERNEL_CODE + 8, 3, 0, false);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs) = (sregs.ss, sregs.ss, sregs.ss, sregs.ss);
    sregs.tr = kvm_segment {
        base: TSS,
        limit: 0x67,
        selector: TASK,
        type_: 11,
        present: 1,
        ..kvm_segment::default()
    };
    sregs.cr3 = PML4;
    sregs.cr0 = CR0;
    sregs.cr4 = CR4;
    sregs.efer = EFER;
}

fn write_tables(memory: &GuestMemoryMmap) -> Result<()> {
    let put = |at: u64, value: u64| memory.write_obj(value, GuestAddress(at)).map_err(outside);
    for level in 0..3 {
        put(PML4 + level * PAGE, (PML4 + (level + 1) * PAGE) | PTE_USER)?;
    }
    for page in 0..512 {
        let at = page * PAGE;
        let rights = if at < DATA { PTE_KERNEL } else { PTE_USER };
        put(PAGE_TABLE + page * 8, at | rights)?;
    }
    let gdt = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x0000_8b00_0000_0067 | TSS << 16,
        0,
    ];
    for (i, descriptor) in gdt.iter().enumerate() {
        put(GDT + i as u64 * 8, *descriptor)?;
    }
    put(TSS + 4, STACK)?;
    for vector in 0..32 {
        let handler = HANDLERS + vector * 16;
        put(
            IDT + vector * 16,
            handler | u64::from(KERNEL_CODE) << 16 | 0x8e00 << 32,
        )?;
        put(IDT + vector * 16 + 8, 0)?;
        put(handler, u64::from(HLT))?;
    }
    Ok(())
}
