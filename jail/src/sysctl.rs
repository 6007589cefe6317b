//! Kernel parameters of a container's own namespaces.
//!
//! Only those a namespace keeps apart are accepted: any other would change the host.
//! Must not know: anything else.

use std::collections::HashMap;
use std::path::PathBuf;

use nix::sched::CloneFlags;

use crate::error::{Error, Result};
use crate::namespaces::{Plan, write_whole};

const IPC: &[&str] = &[
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

/// Checks that each parameter belongs to a namespace the container has for itself. Pure.
///
/// `shared`: joined ones that are the caller's own.
pub(crate) fn check(
    sysctls: &HashMap<String, String>,
    plan: &Plan,
    shared: CloneFlags,
) -> Result<()> {
    let private = |bit| plan.has(bit) && !shared.contains(bit);
    for name in sysctls.keys() {
        let path = checked_file(name)?;
        let (belongs, namespace) = if path.starts_with("net/") {
            (private(CloneFlags::CLONE_NEWNET), "network")
        } else if IPC.contains(&path.as_str()) || path.starts_with("fs/mqueue/") {
            (private(CloneFlags::CLONE_NEWIPC), "ipc")
        } else if path == "kernel/domainname" || path == "kernel/hostname" {
            (private(CloneFlags::CLONE_NEWUTS), "uts")
        } else {
            return Err(Error::invalid(format!(
                "sysctl {name:?} is not in a separate kernel namespace"
            )));
        };
        if !belongs {
            return Err(Error::invalid(format!(
                "sysctl {name:?} is not allowed without a private {namespace} namespace"
            )));
        }
    }
    Ok(())
}

/// Writes them through the host's /proc, which shows the calling process' namespaces.
pub(crate) fn apply(sysctls: &HashMap<String, String>) -> Result<()> {
    sysctls
        .iter()
        .try_for_each(|(name, value)| set_sysctl(name, value))
}

/// Sets a parameter of the caller's own namespaces, or of the kernel.
pub fn set_sysctl(name: &str, value: &str) -> Result<()> {
    let path = PathBuf::from("/proc/sys").join(checked_file(name)?);
    write_whole(&path, value.as_bytes(), "set sysctl")
}

fn checked_file(name: &str) -> Result<String> {
    let path = file(name);
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(Error::invalid(format!("sysctl {name:?} is not a name")));
    }
    Ok(path)
}

/// The file below /proc/sys. Names come with dots or with slashes; where a slash comes first, dots belong to the parts
/// (`net/ipv4/conf/eth0.1/x`).
fn file(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'/' => name.to_string(),
        _ => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(name: &str, bits: CloneFlags) -> bool {
        let mut plan = crate::namespaces::plan(&[]).expect("plans");
        plan.new = bits;
        check(
            &HashMap::from([(name.to_string(), "1".to_string())]),
            &plan,
            CloneFlags::empty(),
        )
        .is_ok()
    }

    #[test]
    fn only_namespaced_parameters_pass() {
        assert!(allowed("net.ipv4.ip_forward", CloneFlags::CLONE_NEWNET));
        assert!(allowed(
            "net/ipv4/conf/eth0.1/forwarding",
            CloneFlags::CLONE_NEWNET
        ));
        assert!(!allowed("net.ipv4.ip_forward", CloneFlags::CLONE_NEWIPC));
        assert!(allowed("kernel.shmmax", CloneFlags::CLONE_NEWIPC));
        assert!(allowed("fs.mqueue.msg_max", CloneFlags::CLONE_NEWIPC));
        for bad in [
            "kernel.core_pattern",
            "vm.swappiness",
            "net..x",
            "net.../x",
            "net/../kernel/core_pattern",
            "",
        ] {
            assert!(!allowed(bad, CloneFlags::all()), "{bad}");
        }
    }

    #[test]
    fn names_become_files() {
        assert_eq!(file("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(file("net/ipv4/conf/eth0.1/x"), "net/ipv4/conf/eth0.1/x");
        assert_eq!(file("net.ipv4.conf.eth0/1.x"), "net/ipv4/conf/eth0.1/x");
    }
}
