//! What this executor can do on this kernel, as the OCI runtime spec's features document.
//!
//! Must not know: any container.

use serde_json::{Value, json};

use crate::{capabilities, cgroup, lsm};

/// The newest OCI runtime spec this crate follows.
pub const SPEC_VERSION: &str = "1.2.0";

/// The features document.
pub fn features() -> Value {
    let controllers = cgroup::available_controllers().unwrap_or_default();
    let unified = rustix::fs::statfs("/sys/fs/cgroup")
        .is_ok_and(|fs| fs.f_type as u64 == CGROUP2_SUPER_MAGIC);
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": [
            "async", "atime", "bind", "defaults", "dev", "diratime", "dirsync", "exec", "idmap", "iversion", "lazytime",
            "loud", "mand", "noatime", "nodev", "nodiratime", "noexec", "noiversion", "nolazytime", "nomand", "norelatime",
            "nostrictatime", "nosuid", "nosymfollow", "private", "ratime", "rbind", "rdev", "rdiratime", "relatime",
            "remount", "rexec", "ridmap", "rnoatime", "rnodev", "rnodiratime", "rnoexec", "rnorelatime", "rnostrictatime",
            "rnosuid", "rnosymfollow", "ro", "rprivate", "rrelatime", "rro", "rrw", "rshared", "rslave", "rstrictatime",
            "rsuid", "rsymfollow", "runbindable", "rw", "shared", "silent", "slave", "strictatime", "suid", "symfollow",
            "sync", "tmpcopyup", "unbindable"
        ],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities::known(),
            "cgroup": {
                "v1": !unified,
                "v2": unified || !controllers.is_empty(),
                "systemd": false,
                "systemdUser": false,
                "rdma": controllers.iter().any(|c| c == "rdma"),
            },
            "seccomp": { "enabled": true },
            "apparmor": { "enabled": lsm::apparmor_enabled() },
            "selinux": { "enabled": lsm::selinux_enabled() },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": true } },
        },
        "annotations": {},
    })
}

/// linux/magic.h
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;
