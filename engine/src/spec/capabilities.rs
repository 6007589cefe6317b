//! Which capabilities a container holds: Docker's default set, `--cap-add`, `--cap-drop`, `--privileged`.
//!
//! Must not know: what the kernel of this host supports (the executor leaves out what it does not know).

use std::collections::BTreeSet;
use std::str::FromStr as _;

use oci_spec::runtime::Capability;

use crate::error::{Error, Result};

/// What Docker gives every container.
const DEFAULT: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// Every capability there is, in the kernel's order.
pub(crate) const ALL: [Capability; 41] = [
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

/// One entry of `--cap-add` or `--cap-drop`.
enum Entry {
    All,
    One(Capability),
}

fn parse(text: &str, flag: &str) -> Result<Entry> {
    let upper = text.trim().to_ascii_uppercase();
    if upper == "ALL" {
        return Ok(Entry::All);
    }
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    Capability::from_str(bare).map(Entry::One).map_err(|_| {
        Error::invalid(format!(
            "invalid {flag}: unknown capability: \"CAP_{bare}\""
        ))
    })
}

/// The bounding set. `ALL` on one side and names on the other compose as in Docker: names win over `ALL`.
pub(crate) fn bounding(
    add: &[String],
    drop: &[String],
    privileged: bool,
) -> Result<BTreeSet<CapabilityOrd>> {
    let read = |list: &[String], flag| -> Result<(bool, Vec<Capability>)> {
        let mut all = false;
        let mut names = Vec::new();
        for text in list {
            match parse(text, flag)? {
                Entry::All => all = true,
                Entry::One(c) => names.push(c),
            }
        }
        Ok((all, names))
    };
    let (add_all, added) = read(add, "CapAdd")?;
    let (drop_all, dropped) = read(drop, "CapDrop")?;
    if privileged {
        return Ok(ALL.into_iter().map(CapabilityOrd).collect());
    }
    let base: &[Capability] = match (add_all, drop_all) {
        (true, _) => &ALL,
        (false, true) => &[],
        (false, false) => &DEFAULT,
    };
    let mut set: BTreeSet<CapabilityOrd> = base.iter().copied().map(CapabilityOrd).collect();
    // `--cap-add ALL --cap-drop X` is all but X; `--cap-drop ALL --cap-add X` is X alone; the same name in both is held.
    for c in dropped {
        set.remove(&CapabilityOrd(c));
    }
    if !add_all {
        set.extend(added.into_iter().map(CapabilityOrd));
    }
    Ok(set)
}

/// A capability ordered as the kernel numbers it, so that specs are the same each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CapabilityOrd(pub Capability);

impl CapabilityOrd {
    fn number(self) -> usize {
        ALL.iter().position(|c| *c == self.0).unwrap_or(ALL.len())
    }
}

impl PartialOrd for CapabilityOrd {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for CapabilityOrd {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.number().cmp(&other.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(add: &[&str], drop: &[&str]) -> Vec<Capability> {
        let own = |l: &[&str]| l.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        bounding(&own(add), &own(drop), false)
            .unwrap()
            .into_iter()
            .map(|c| c.0)
            .collect()
    }

    #[test]
    fn adding_and_dropping_compose() {
        assert_eq!(set(&[], &[]).len(), 14);
        assert!(set(&["sys_admin"], &[]).contains(&Capability::SysAdmin));
        assert!(set(&["CAP_SYS_ADMIN"], &[]).contains(&Capability::SysAdmin));
        assert!(!set(&[], &["NET_RAW"]).contains(&Capability::NetRaw));
        assert_eq!(set(&["NET_RAW"], &["ALL"]), [Capability::NetRaw]);
        assert_eq!(set(&[], &["all"]), []);
        let all_but = set(&["ALL"], &["SYS_ADMIN"]);
        assert_eq!(all_but.len(), ALL.len() - 1);
        assert!(!all_but.contains(&Capability::SysAdmin));
    }

    #[test]
    fn nonsense_is_named() {
        let e = bounding(&["CAP_FLY".into()], &[], false).unwrap_err();
        assert_eq!(e.message, "invalid CapAdd: unknown capability: \"CAP_FLY\"");
        assert!(
            bounding(&[], &["FLY".into()], true).is_err(),
            "privileged does not hide nonsense"
        );
    }
}
