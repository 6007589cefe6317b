//! What the guest is told of its processor.

use std::arch::x86_64::__cpuid;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

const LEAF_FEATURES: u32 = 1;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_KVM_FEATURES: u32 = 0x4000_0001;
const LEAF_EXTENDED: u32 = 0x8000_0001;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const ECX_LZCNT: u32 = 1 << 5;
/// PV unhalt, PV IPI, yield: their hypercalls do not return on hosts that emulate ring 0.
const KVM_HYPERCALL_FEATURES: u32 = 1 << 7 | 1 << 11 | 1 << 13;

/// The leaves for vCPU `id` of `vcpus`, from what KVM supports.
pub fn for_vcpu(mut supported: CpuId, id: u8, vcpus: u8, assisted: bool) -> CpuId {
    for entry in supported.as_mut_slice() {
        match entry.function {
            LEAF_FEATURES => {
                entry.ecx |= ECX_HYPERVISOR | ECX_TSC_DEADLINE;
                entry.ebx = (entry.ebx & 0xffff) | u32::from(vcpus) << 16 | u32::from(id) << 24;
            }
            LEAF_TOPOLOGY => entry.edx = u32::from(id),
            // that KVM leaves out what its emulator cannot do; programs run on the processor, and those built for x86-64-v3
            // do not start without it
            LEAF_EXTENDED if assisted => entry.ecx |= __cpuid(LEAF_EXTENDED).ecx & ECX_LZCNT,
            LEAF_KVM_FEATURES if assisted => entry.eax &= !KVM_HYPERCALL_FEATURES,
            _ => {}
        }
    }
    supported
}

/// Leaves whose bits are features, with the registers that hold them (eax, ebx, ecx, edx) and the bits that say only what
/// the guest's kernel has switched on (OSXSAVE, OSPKE).
const FEATURES: [(u32, u32, [u32; 4]); 9] = [
    (1, 0, [0, 0, !(1 << 27), !0]),
    (7, 0, [0, !0, !(1 << 4), !0]),
    (7, 1, [!0, 0, 0, 0]),
    (0xd, 0, [!0, 0, 0, 0]),
    (0xd, 1, [!0, 0, 0, 0]),
    (0x8000_0001, 0, [0, 0, !0, !0]),
    (0x8000_0007, 0, [0, 0, 0, !0]),
    (0x8000_0008, 0, [0, !0, 0, 0]),
    (LEAF_KVM_FEATURES, 0, [!0, 0, 0, 0]),
];

/// What a guest that was shown `shown` would miss on a host that shows `here`; `None` when it misses nothing.
pub fn missing(here: &[kvm_cpuid_entry2], shown: &[kvm_cpuid_entry2]) -> Option<String> {
    let registers = |leaves: &[kvm_cpuid_entry2], leaf, index| {
        leaves
            .iter()
            .find(|e| e.function == leaf && e.index == index)
            .map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx])
    };
    if registers(here, 0, 0)[1..] != registers(shown, 0, 0)[1..] {
        return Some("another vendor's processor".into());
    }
    for (leaf, index, masks) in FEATURES {
        let (has, wants) = (registers(here, leaf, index), registers(shown, leaf, index));
        for (register, name) in ["eax", "ebx", "ecx", "edx"].iter().enumerate() {
            let lacks = wants[register] & masks[register] & !has[register];
            if lacks != 0 {
                return Some(format!("CPUID {leaf:#x}.{index}:{name} bits {lacks:#x}"));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, ecx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            ecx,
            ..kvm_cpuid_entry2::default()
        }
    }

    #[test]
    fn a_guest_may_move_to_a_host_with_more_features_and_to_no_other() {
        let (old, new) = ([leaf(1, 0b101)], [leaf(1, 0b111)]);
        assert_eq!(missing(&new, &old), None);
        assert_eq!(
            missing(&old, &new).as_deref(),
            Some("CPUID 0x1.0:ecx bits 0x2")
        );
        // OSXSAVE is the guest's own doing
        assert_eq!(missing(&old, &[leaf(1, 0b101 | 1 << 27)]), None);
        let other = [leaf(0, 7), leaf(1, 0b111)];
        assert!(
            missing(&other, &old)
                .expect("it differs")
                .contains("vendor")
        );
        assert!(missing(&[], &[leaf(0x8000_0001, 1)]).is_some());
    }
}
