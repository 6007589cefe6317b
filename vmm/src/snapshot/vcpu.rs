//! One vCPU's state.

use kvm_bindings::{
    CpuId, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::unfit;
use crate::assist::VcpuAssist;
use crate::error::{Error, Result};
use crate::sys;

const TSC: u32 = 0x10;
const TSC_DEADLINE: u32 = 0x6e0;
/// Without these the guest would run wrongly: SYSENTER, PAT, STAR … KERNEL_GS_BASE, the PV clock.
const NEEDED: [std::ops::RangeInclusive<u32>; 5] = [
    TSC..=TSC,
    0x174..=0x176,
    0x277..=0x277,
    0xc000_0081..=0xc000_0084,
    0xc000_0100..=0xc000_0103,
];
/// What two oscillators of the same kind may differ by, in millionths: what KVM itself tolerates.
const TSC_TOLERANCE_PPM: u64 = 250;

/// The state of a vCPU.
#[derive(Default, Serialize, Deserialize)]
pub struct VcpuState {
    /// What the guest was shown.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
    tsc_khz: u32,
    /// What the assist knows of it.
    pub assist: VcpuAssist,
}

impl VcpuState {
    /// Reads it from a vCPU that is paused and settled; of `msrs`, the ones it has. `cpuid` is what it was given: KVM may say
    /// something else (hosts that emulate ring 0 do).
    pub fn save(
        fd: &VcpuFd,
        cpuid: &[kvm_cpuid_entry2],
        msrs: &[u32],
        assist: VcpuAssist,
    ) -> Result<Self> {
        // the order matters: KVM_GET_MP_STATE takes pending INITs and SIPIs in
        let mp_state = fd.get_mp_state().map_err(Error::kvm("KVM_GET_MP_STATE"))?;
        let mut state = VcpuState {
            mp_state,
            regs: fd.get_regs().map_err(Error::kvm("KVM_GET_REGS"))?,
            sregs: fd.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?,
            xsave: fd.get_xsave().map_err(Error::kvm("KVM_GET_XSAVE"))?,
            xcrs: fd.get_xcrs().map_err(Error::kvm("KVM_GET_XCRS"))?,
            debug_regs: fd
                .get_debug_regs()
                .map_err(Error::kvm("KVM_GET_DEBUGREGS"))?,
            lapic: fd.get_lapic().map_err(Error::kvm("KVM_GET_LAPIC"))?,
            msrs: read_msrs(fd, msrs)?,
            cpuid: cpuid.to_vec(),
            events: fd
                .get_vcpu_events()
                .map_err(Error::kvm("KVM_GET_VCPU_EVENTS"))?,
            // not every KVM says it
            tsc_khz: fd.get_tsc_khz().unwrap_or(0),
            assist,
        };
        // a deadline that has passed reads as none: let it pass again
        let tsc = state.msrs.iter().find(|m| m.index == TSC).map(|m| m.data);
        for msr in state.msrs.iter_mut().filter(|m| m.index == TSC_DEADLINE) {
            if let (0, Some(tsc)) = (msr.data, tsc) {
                msr.data = tsc;
            }
        }
        Ok(state)
    }

    /// Puts it into a new vCPU.
    pub fn restore(&self, fd: &VcpuFd) -> Result<()> {
        let cpuid = CpuId::from_entries(&self.cpuid).map_err(|e| unfit(format!("{e:?}")))?;
        fd.set_cpuid2(&cpuid)
            .map_err(Error::kvm("KVM_SET_CPUID2"))?;
        self.restore_tsc_rate(fd)?;
        fd.set_mp_state(self.mp_state)
            .map_err(Error::kvm("KVM_SET_MP_STATE"))?;
        fd.set_sregs(&self.sregs)
            .map_err(Error::kvm("KVM_SET_SREGS"))?;
        fd.set_xcrs(&self.xcrs)
            .map_err(Error::kvm("KVM_SET_XCRS"))?;
        sys::set_xsave(fd, &self.xsave)?;
        fd.set_debug_regs(&self.debug_regs)
            .map_err(Error::kvm("KVM_SET_DEBUGREGS"))?;
        fd.set_regs(&self.regs)
            .map_err(Error::kvm("KVM_SET_REGS"))?;
        fd.set_lapic(&self.lapic)
            .map_err(Error::kvm("KVM_SET_LAPIC"))?;
        // a deadline is compared with the counter, so it comes last
        let is_last = |msr: &&kvm_msr_entry| msr.index == TSC_DEADLINE;
        let first = self.msrs.iter().filter(|msr| !is_last(msr));
        for msr in first.chain(self.msrs.iter().filter(is_last)) {
            write_msr(fd, *msr)?;
        }
        fd.set_vcpu_events(&self.events)
            .map_err(Error::kvm("KVM_SET_VCPU_EVENTS"))
    }

    fn restore_tsc_rate(&self, fd: &VcpuFd) -> Result<()> {
        let here = fd.get_tsc_khz().unwrap_or(0);
        let tolerated = u64::from(here) * TSC_TOLERANCE_PPM / 1_000_000;
        if self.tsc_khz == 0 || u64::from(self.tsc_khz.abs_diff(here)) <= tolerated {
            return Ok(());
        }
        fd.set_tsc_khz(self.tsc_khz).map_err(|_| {
            unfit(format!(
                "its time stamp counter runs at {} kHz, this host's at {here}, and this host cannot scale it",
                self.tsc_khz
            ))
        })
    }
}

/// KVM stops at the first that it does not let read.
fn read_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>> {
    let mut read = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let entries: Vec<kvm_msr_entry> = rest
            .iter()
            .map(|index| kvm_msr_entry {
                index: *index,
                ..kvm_msr_entry::default()
            })
            .collect();
        let mut msrs = Msrs::from_entries(&entries).map_err(|e| unfit(format!("{e:?}")))?;
        let count = fd.get_msrs(&mut msrs).map_err(Error::kvm("KVM_GET_MSRS"))?;
        read.extend_from_slice(&msrs.as_slice()[..count]);
        rest = rest.get(count + 1..).unwrap_or_default();
    }
    Ok(read)
}

fn write_msr(fd: &VcpuFd, entry: kvm_msr_entry) -> Result<()> {
    let msrs = Msrs::from_entries(&[entry]).map_err(|e| unfit(format!("{e:?}")))?;
    let written = fd.set_msrs(&msrs).map_err(Error::kvm("KVM_SET_MSRS"))? == 1;
    // many can be read and not written: constants, and what the host's KVM has switched off
    if !written && NEEDED.iter().any(|range| range.contains(&entry.index)) {
        return Err(unfit(format!(
            "this host's KVM does not take its MSR {:#x} = {:#x}",
            entry.index, entry.data
        )));
    }
    Ok(())
}
