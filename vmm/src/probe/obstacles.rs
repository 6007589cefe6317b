//! Why KVM cannot be used here, and what its user can do about that.

use caisson_protocol::vmm::{Ring0, Unusable};
use kvm_ioctls::{Cap, Kvm};

use crate::error::Error;

const API_VERSION: i32 = 12;

/// What a machine is built with.
const NEEDED: [(Cap, &str); 9] = [
    (Cap::UserMemory, "user memory"),
    (Cap::SetTssAddr, "KVM_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_SET_CPUID2"),
    (Cap::Irqchip, "an interrupt controller in the kernel"),
    (Cap::Pit2, "a timer (PIT) in the kernel"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::VcpuEvents, "KVM_GET_VCPU_EVENTS"),
    (Cap::Xcrs, "KVM_GET_XCRS"),
];

pub fn unusable(cause: impl Into<String>, fix: impl Into<String>) -> Ring0 {
    Ring0::Unusable(Unusable {
        cause: cause.into(),
        fix: fix.into(),
    })
}

/// /dev/kvm did not open.
pub fn opening(errno: i32) -> Ring0 {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag: &str| {
        flags
            .lines()
            .find(|line| line.starts_with("flags"))
            .is_some_and(|line| line.split_whitespace().any(|word| word == flag))
    };
    judge_opening(errno, has("vmx"), has("svm"))
}

fn judge_opening(errno: i32, vmx: bool, svm: bool) -> Ring0 {
    match (errno, vmx, svm) {
        (libc::ENOENT | libc::ENODEV | libc::ENXIO, true, _) => unusable(
            "there is no /dev/kvm, though the processor has VMX",
            "modprobe kvm_intel",
        ),
        (libc::ENOENT | libc::ENODEV | libc::ENXIO, _, true) => unusable(
            "there is no /dev/kvm, though the processor has SVM",
            "modprobe kvm_amd",
        ),
        (libc::ENOENT | libc::ENODEV | libc::ENXIO, ..) => unusable(
            "there is no /dev/kvm, and the processor shows neither vmx nor svm",
            "switch virtualization on in the firmware; on a cloud machine choose one with nested virtualization or bare \
             metal; in a container, pass the device in: --device /dev/kvm",
        ),
        (libc::EACCES | libc::EPERM, ..) => unusable(
            "/dev/kvm may not be opened by this user",
            "usermod -aG kvm $USER and log in again, or run as root",
        ),
        (other, ..) => unusable(
            format!("/dev/kvm: {}", std::io::Error::from_raw_os_error(other)),
            "see dmesg for what KVM says",
        ),
    }
}

/// Something that machines are built with is not there.
pub fn missing(kvm: &Kvm) -> Option<Ring0> {
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Some(unusable(
            format!("KVM speaks version {version} of its interface, not {API_VERSION}"),
            "use a kernel newer than 2.6.22",
        ));
    }
    let lacking: Vec<_> = NEEDED
        .iter()
        .filter(|(cap, _)| !kvm.check_extension(*cap))
        .collect();
    if lacking.is_empty() {
        return None;
    }
    let names: Vec<&str> = lacking.iter().map(|(_, name)| *name).collect();
    Some(unusable(
        format!("this host's KVM lacks {}", names.join(", ")),
        "use a kernel with all of KVM (mainline has these since 2.6.36), or a host that does not filter it",
    ))
}

/// The throw-away machine could not be built or run.
pub fn running(error: &Error) -> Ring0 {
    let busy = matches!(error, Error::Kvm { source, .. } if source.errno() == libc::EBUSY);
    let fix = if busy {
        "end the other hypervisor that holds the processor (VirtualBox, VMware), or unload its modules"
    } else {
        "see dmesg for what KVM says; limits of memory and of locked memory may be too low"
    };
    unusable(format!("a small VM could not be run: {error}"), fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(ring0: Ring0) -> (String, String) {
        match ring0 {
            Ring0::Unusable(u) => (u.cause, u.fix),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_obstacle_names_its_cause_and_its_fix() {
        assert_eq!(
            said(judge_opening(libc::ENOENT, true, false)).1,
            "modprobe kvm_intel"
        );
        assert_eq!(
            said(judge_opening(libc::ENOENT, false, true)).1,
            "modprobe kvm_amd"
        );
        assert!(
            said(judge_opening(libc::ENOENT, false, false))
                .1
                .contains("firmware")
        );
        assert!(
            said(judge_opening(libc::EACCES, true, false))
                .1
                .contains("usermod")
        );
        let busy = Error::kvm("KVM_CREATE_VM")(kvm_ioctls::Error::new(libc::EBUSY));
        let (cause, fix) = said(running(&busy));
        assert!(cause.contains("KVM_CREATE_VM"), "{cause}");
        assert!(fix.contains("hypervisor"), "{fix}");
    }
}
