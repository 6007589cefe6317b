//! What the guest is told of its processor.

use kvm_bindings::CpuId;

const LEAF_FEATURES: u32 = 1;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_KVM_FEATURES: u32 = 0x4000_0001;
const ECX_CX16: u32 = 1 << 13;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
/// PV unhalt, PV IPI, yield: their hypercalls do not return on hosts that emulate ring 0.
const KVM_HYPERCALL_FEATURES: u32 = 1 << 7 | 1 << 11 | 1 << 13;

/// The leaves for vCPU `id` of `vcpus`, from what KVM supports.
pub fn for_vcpu(mut supported: CpuId, id: u8, vcpus: u8, assisted: bool) -> CpuId {
    for entry in supported.as_mut_slice() {
        match entry.function {
            LEAF_FEATURES => {
                entry.ecx |= ECX_HYPERVISOR | ECX_TSC_DEADLINE;
                if assisted {
                    entry.ecx &= !ECX_CX16;
                }
                entry.ebx = (entry.ebx & 0xffff) | u32::from(vcpus) << 16 | u32::from(id) << 24;
            }
            LEAF_TOPOLOGY => entry.edx = u32::from(id),
            LEAF_KVM_FEATURES if assisted => entry.eax &= !KVM_HYPERCALL_FEATURES,
            _ => {}
        }
    }
    supported
}
