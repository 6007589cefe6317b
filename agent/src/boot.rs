//! From a bare kernel to a system that containers can run in.
//!
//! ```text
//!   root (EROFS, read-only)     /proc /sys /dev /run /tmp: empty directories of the image, each mounted over here
//!   /sys/fs/cgroup              cgroup v2, the only hierarchy
//! ```
//!
//! What every container mounts for itself (devpts, mqueue, shm) is not mounted here. A step that fails does not stop the
//! others: it is said on the console, and again to whoever asks for a sandbox.

use std::fs;
use std::path::Path;

use caisson_jail::set_sysctl;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

/// A file system of the kernel's own.
struct FileSystem {
    target: &'static str,
    kind: &'static str,
    flags: MsFlags,
    options: Option<&'static str>,
}

const NO_SUID_DEV_EXEC: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

/// In this order. The console's messages need /dev.
const FILE_SYSTEMS: [FileSystem; 6] = [
    FileSystem {
        target: "/dev",
        kind: "devtmpfs",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        options: Some("mode=755"),
    },
    FileSystem {
        target: "/proc",
        kind: "proc",
        flags: NO_SUID_DEV_EXEC,
        options: None,
    },
    FileSystem {
        target: "/sys",
        kind: "sysfs",
        flags: NO_SUID_DEV_EXEC,
        options: None,
    },
    // A container cannot lift its own limits although it sees its cgroup's files.
    FileSystem {
        target: "/sys/fs/cgroup",
        kind: "cgroup2",
        flags: NO_SUID_DEV_EXEC,
        options: Some("nsdelegate,memory_recursiveprot"),
    },
    FileSystem {
        target: "/run",
        kind: "tmpfs",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        options: Some("mode=755"),
    },
    FileSystem {
        target: "/tmp",
        kind: "tmpfs",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        options: Some("mode=1777"),
    },
];

/// What a distribution sets for the containers of a host, where it differs from the kernel's default.
const SYSCTLS: [(&str, &str); 7] = [
    ("fs.file-max", "9223372036854775807"),
    ("fs.nr_open", "1073741816"),
    ("fs.protected_hardlinks", "1"),
    ("fs.protected_symlinks", "1"),
    ("fs.protected_fifos", "1"),
    ("fs.protected_regular", "2"),
    ("kernel.pid_max", "4194304"),
];

/// Open files of a container whose spec does not say.
const OPEN_FILES: u64 = 1 << 20;

/// Mounts `/dev`, for the console's sake before anything else.
pub fn mount_devices() -> Result<(), String> {
    mount_one(&FILE_SYSTEMS[0])
}

/// Everything else. What failed, for people.
pub fn run() -> Vec<String> {
    let mut failures = Vec::new();
    let mut note = |result: Result<(), String>| failures.extend(result.err());
    for file_system in &FILE_SYSTEMS[1..] {
        note(mount_one(file_system));
    }
    for (name, value) in SYSCTLS {
        note(set_sysctl(name, value).map_err(|e| e.to_string()));
    }
    // Containers do not inherit it: the supervisor gives them 0 or what their spec says.
    note(
        fs::write("/proc/self/oom_score_adj", "-1000")
            .map_err(|e| format!("cannot protect the agent from the out-of-memory killer: {e}")),
    );
    for (what, resource, limit) in [
        ("open files", Resource::RLIMIT_NOFILE, OPEN_FILES),
        ("processes", Resource::RLIMIT_NPROC, RLIM_INFINITY),
    ] {
        note(
            setrlimit(resource, limit, limit)
                .map_err(|e| format!("cannot set the limit of {what}: {e}")),
        );
    }
    note(nix::unistd::sethostname("caisson").map_err(|e| format!("cannot set the host name: {e}")));
    note(crate::network::raise_loopback().map_err(|e| e.to_string()));
    failures
}

fn mount_one(file_system: &FileSystem) -> Result<(), String> {
    let FileSystem {
        target,
        kind,
        flags,
        options,
    } = file_system;
    match mount(
        Some(*kind),
        Path::new(target),
        Some(*kind),
        *flags,
        *options,
    ) {
        // The kernel may have mounted it already (CONFIG_DEVTMPFS_MOUNT).
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(Errno::ENODEV) => Err(format!("this guest kernel has no {kind}")),
        Err(e) => Err(format!("cannot mount {kind} at {target}: {e}")),
    }
}
