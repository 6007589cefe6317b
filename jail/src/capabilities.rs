//! Capabilities: the five sets of a process, applied in the order the kernel demands.
//!
//! bounding (needs CAP_SETPCAP) → change of user with KEEPCAPS → effective, permitted, inheritable → ambient.
//! Must not know: users, seccomp.

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

use crate::error::{Context, Error, Result};
use crate::sys;

/// The highest capability of capabilities(7): CAP_CHECKPOINT_RESTORE.
const LAST_KNOWN: u32 = 40;

/// The five sets as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sets {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

/// Reads the sets of a spec. Pure. A process without any gets none.
pub(crate) fn plan(capabilities: Option<&LinuxCapabilities>) -> Sets {
    let Some(spec) = capabilities else {
        return Sets::default();
    };
    let bits = |set: &Option<Capabilities>| {
        set.iter()
            .flatten()
            .fold(0u64, |all, c| all | 1 << number(*c))
    };
    let mut sets = Sets {
        bounding: bits(spec.bounding()),
        effective: bits(spec.effective()),
        permitted: bits(spec.permitted()),
        inheritable: bits(spec.inheritable()),
        ambient: bits(spec.ambient()),
    };
    // The kernel keeps ambient within permitted ∩ inheritable; runc and crun drop the others too.
    sets.ambient &= sets.permitted & sets.inheritable;
    sets
}

/// Takes everything else out of the bounding set.
pub(crate) fn bound(sets: &Sets) -> Result<()> {
    for cap in 0..64 {
        if sets.bounding & (1 << cap) != 0 {
            continue;
        }
        match sys::capability::drop_from_bounding_set(cap) {
            Ok(()) => {}
            // Past the last capability this kernel has.
            Err(nix::errno::Errno::EINVAL) => break,
            Err(e) => return Err(Error::sys("drop capability from the bounding set", e)),
        }
    }
    Ok(())
}

/// Applies the other four sets.
pub(crate) fn apply(sets: &Sets) -> Result<()> {
    let have = sys::capability::permitted().step("read capabilities")?;
    let missing = sets.permitted & !have;
    if let Some(cap) = (0..64).find(|cap| missing & (1 << cap) != 0) {
        // An older kernel, or a caller that lacks it: never silently less than asked for... but runc and Docker do grant the
        // rest, and profiles name capabilities newer than the kernel. Unknown to the kernel is skipped, withheld is an error.
        if let Ok(true) = sys::capability::in_bounding_set(cap) {
            return Err(Error::HostUnfit {
                need: format!("grant capability {}", name(cap)),
                why: "the caller does not have it: run as root outside a restricted sandbox".into(),
            });
        }
    }
    let (permitted, effective) = (sets.permitted & have, sets.effective & have);
    sys::capability::set(
        effective & permitted,
        permitted,
        sets.inheritable & permitted,
    )
    .step("set capabilities")?;
    match sys::capability::clear_ambient() {
        Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
        Err(e) => return Err(Error::sys("clear ambient capabilities", e)),
    }
    let ambient = sets.ambient & permitted & sets.inheritable;
    for cap in (0..64).filter(|cap| ambient & (1 << cap) != 0) {
        sys::capability::raise_ambient(cap).step("raise ambient capability")?;
    }
    Ok(())
}

/// The names of the capabilities this kernel has, for `features`.
pub(crate) fn known() -> Vec<String> {
    (0..=LAST_KNOWN)
        .filter(|cap| sys::capability::in_bounding_set(*cap).is_ok())
        .map(name)
        .collect()
}

fn name(cap: u32) -> String {
    (0..=LAST_KNOWN)
        .zip(ALL)
        .find(|(n, _)| *n == cap)
        .map(|(_, c)| format!("CAP_{}", c.to_string().trim_start_matches("CAP_")))
        .unwrap_or_else(|| format!("#{cap}"))
}

fn number(capability: Capability) -> u32 {
    ALL.iter()
        .position(|c| *c == capability)
        .expect("ALL lists every capability of oci-spec") as u32
}

/// In the kernel's order (linux/capability.h).
const ALL: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxCapabilitiesBuilder;

    #[test]
    fn numbers_are_the_kernels() {
        assert_eq!(number(Capability::Chown), 0);
        assert_eq!(number(Capability::SysAdmin), 21);
        assert_eq!(number(Capability::Setfcap), 31);
        assert_eq!(number(Capability::CheckpointRestore), 40);
        assert_eq!(name(13), "CAP_NET_RAW");
    }

    #[test]
    fn ambient_stays_within_permitted_and_inheritable() {
        let set = |caps: &[Capability]| caps.iter().copied().collect::<Capabilities>();
        let spec = LinuxCapabilitiesBuilder::default()
            .permitted(set(&[Capability::Chown, Capability::Kill]))
            .inheritable(set(&[Capability::Kill]))
            .ambient(set(&[
                Capability::Chown,
                Capability::Kill,
                Capability::SysAdmin,
            ]))
            .build()
            .expect("caps");
        assert_eq!(plan(Some(&spec)).ambient, 1 << 5);
        assert_eq!(plan(None), Sets::default());
    }
}
