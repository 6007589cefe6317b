//! the facts the checks are about, read once. No judgement here.

use std::path::{Path, PathBuf};

use caisson_runtime::{Pieces, Ring0};

/// Where a daemon that is told nothing else keeps the verdict on KVM.
const EXEC_ROOT: &str = "/run/caisson";

/// How cgroups are mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cgroups {
    /// None at all.
    None,
    /// Version 1, or both: the controllers found.
    V1(Vec<String>),
    /// The unified hierarchy: the controllers found.
    V2(Vec<String>),
}

/// What this host makes of virtual machines.
#[derive(Clone, Debug)]
pub struct Vms {
    /// What is missing of what they are made of.
    pub pieces: Result<(), String>,
    /// What KVM does with guest kernels; an error when it could not be asked.
    pub ring0: Result<Ring0, String>,
    /// Whether `/dev/net/tun` opens.
    pub tun: Result<(), String>,
}

/// Whether a daemon answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// Something accepts connections.
    Answers,
    /// No socket there.
    NoSocket,
    /// A socket that nobody serves, or that we may not open.
    Dead(String),
    /// Not looked at: the daemon is elsewhere.
    Remote,
}

/// Everything the checks look at.
pub struct Machine {
    /// Whether we are root; many things can only be told by root.
    pub root: bool,
    /// Major and minor kernel version, and the text.
    pub kernel: (u32, u32, String),
    /// Names in /proc/filesystems.
    pub filesystems: Vec<String>,
    /// Names in /proc/self/ns.
    pub namespaces: Vec<String>,
    /// The kernel's seccomp actions; empty without seccomp filters.
    pub seccomp_actions: Vec<String>,
    /// Mounted cgroups.
    pub cgroups: Cgroups,
    /// Whether `fsopen` is there (and not denied).
    pub new_mount_api: Result<(), String>,
    /// Whether `mount_setattr` is there: id-mapped mounts.
    pub mount_setattr: bool,
    /// Virtual machines.
    pub vms: Vms,
    /// Where `nft` is.
    pub nft: Option<PathBuf>,
    /// The data root asked about.
    pub data_root: PathBuf,
    /// The nearest directory of it that exists, its file system's name, free and total bytes, free inodes.
    pub data_place: Option<Place>,
    /// Limits under /proc/sys, by path.
    pub sysctls: Vec<(&'static str, Option<u64>)>,
    /// The socket and who serves it.
    pub socket: Option<PathBuf>,
    /// Whether a daemon answers there.
    pub daemon: Daemon,
    /// Whether caisson-shim and caisson-oci are beside this executable.
    pub beside: Vec<(&'static str, bool)>,
    /// Soft limit of open files.
    pub open_files: u64,
}

/// A file system that would hold the data root.
pub struct Place {
    /// The directory looked at.
    pub directory: PathBuf,
    /// The file system's type.
    pub kind: String,
    /// Bytes free.
    pub free_bytes: u64,
    /// Inodes free, if the file system counts them.
    pub free_inodes: Option<u64>,
}

/// Limits that are too low by default on some machines.
pub const SYSCTLS: [&str; 6] = [
    "fs/inotify/max_user_instances",
    "fs/inotify/max_user_watches",
    "kernel/keys/maxkeys",
    "kernel/pid_max",
    "user/max_user_namespaces",
    "kernel/unprivileged_userns_clone",
];

impl Machine {
    /// Reads everything; what cannot be read counts as absent.
    pub fn read(data_root: &Path, socket: Option<&Path>) -> Self {
        let words = |path: &str| -> Vec<String> {
            std::fs::read_to_string(path)
                .unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned)
                .collect()
        };
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_default()
            .trim()
            .to_owned();
        let mut numbers = release.split(['.', '-']).map(|n| n.parse().unwrap_or(0));
        let kernel = (
            numbers.next().unwrap_or(0),
            numbers.next().unwrap_or(0),
            release,
        );
        let filesystems = std::fs::read_to_string("/proc/filesystems")
            .unwrap_or_default()
            .lines()
            .filter_map(|l| l.split_whitespace().last().map(str::to_owned))
            .collect();
        let namespaces = std::fs::read_dir("/proc/self/ns")
            .map(|d| {
                d.flatten()
                    .map(|e| e.file_name().to_string_lossy().into_owned())
                    .collect()
            })
            .unwrap_or_default();
        let beside = |name: &'static str| {
            let here = std::env::current_exe().ok().map(|e| e.with_file_name(name));
            (name, here.is_some_and(|p| p.exists()))
        };
        Machine {
            root: nix::unistd::geteuid().is_root(),
            kernel,
            filesystems,
            namespaces,
            seccomp_actions: words("/proc/sys/kernel/seccomp/actions_avail"),
            cgroups: cgroups(),
            new_mount_api: new_mount_api(),
            mount_setattr: mount_setattr(),
            vms: vms(),
            nft: std::env::var_os("PATH")
                .map(|p| std::env::split_paths(&p).collect::<Vec<_>>())
                .unwrap_or_default()
                .into_iter()
                .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
                .map(|d| d.join("nft"))
                .find(|p| p.exists()),
            data_root: data_root.to_owned(),
            data_place: place(data_root),
            sysctls: SYSCTLS
                .iter()
                .map(|name| {
                    (
                        *name,
                        std::fs::read_to_string(format!("/proc/sys/{name}"))
                            .ok()
                            .and_then(|t| t.trim().parse().ok()),
                    )
                })
                .collect(),
            socket: socket.map(Path::to_owned),
            daemon: daemon(socket),
            beside: vec![beside("caisson-shim"), beside("caisson-oci")],
            open_files: rustix::process::getrlimit(rustix::process::Resource::Nofile)
                .current
                .unwrap_or(u64::MAX),
        }
    }

    /// One limit's value.
    pub fn sysctl(&self, name: &str) -> Option<u64> {
        self.sysctls
            .iter()
            .find(|(n, _)| *n == name)
            .and_then(|(_, v)| *v)
    }
}

fn cgroups() -> Cgroups {
    let unified = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
    if let Ok(controllers) = unified {
        return Cgroups::V2(controllers.split_whitespace().map(str::to_owned).collect());
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut controllers: Vec<String> = mounts
        .lines()
        .filter_map(|l| {
            let fields: Vec<&str> = l.split(' ').collect();
            (fields.get(2) == Some(&"cgroup"))
                .then(|| fields.get(3).copied().unwrap_or("").to_owned())
        })
        .flat_map(|options| options.split(',').map(str::to_owned).collect::<Vec<_>>())
        .filter(|o| {
            !["rw", "nosuid", "nodev", "noexec", "relatime", "xattr"].contains(&o.as_str())
                && !o.contains('=')
        })
        .collect();
    controllers.sort();
    controllers.dedup();
    if controllers.is_empty() {
        Cgroups::None
    } else {
        Cgroups::V1(controllers)
    }
}

fn new_mount_api() -> Result<(), String> {
    use rustix::mount::{FsOpenFlags, fsopen};
    match fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(_) => Ok(()),
        Err(e) => Err(e.to_string()),
    }
}

fn mount_setattr() -> bool {
    // The call exists from 5.12 on; what it can do is only known with a mount at hand.
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split(['.', '-'])
        .map(|n| n.trim().parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (5, 12)
}

/// KVM is asked by a throw-away machine, if nobody has since the boot.
fn vms() -> Vms {
    let opens = |path: &str| {
        let open = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path);
        open.map(drop).map_err(|e| format!("{path}: {e}"))
    };
    let pieces = Pieces::find();
    // the first piece that is missing may be another one than the program that asks
    let vmm = pieces
        .as_ref()
        .map_or_else(|_| Pieces::vmm(), |p| Some(p.vmm.clone()));
    let ring0 = match vmm {
        Some(vmm) => caisson_runtime::probe(Path::new(EXEC_ROOT), &vmm)
            .map(|probe| probe.ring0)
            .map_err(|e| e.message),
        None => opens("/dev/kvm")
            .and_then(|()| Err("/dev/kvm opens; without caisson-vmm nothing more is known".into())),
    };
    Vms {
        pieces: pieces.map(drop).map_err(|e| e.message),
        ring0,
        tun: opens("/dev/net/tun"),
    }
}

fn daemon(socket: Option<&Path>) -> Daemon {
    let Some(path) = socket else {
        return Daemon::Remote;
    };
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Daemon::Answers,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Daemon::NoSocket,
        Err(e) => Daemon::Dead(e.to_string()),
    }
}

/// The file system type at a directory, from the mount table: the longest mount point that holds it.
fn filesystem_of(directory: &Path) -> String {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut best = (0, String::new());
    for line in table.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (Some(point), Some(kind)) = (fields.get(1), fields.get(2)) else {
            continue;
        };
        let point = point.replace("\\040", " ");
        if directory.starts_with(&point) && point.len() >= best.0 {
            best = (point.len(), (*kind).to_owned());
        }
    }
    best.1
}

fn place(data_root: &Path) -> Option<Place> {
    let directory = data_root
        .ancestors()
        .find(|p| p.is_dir())?
        .canonicalize()
        .ok()?;
    let stat = rustix::fs::statvfs(&directory).ok()?;
    Some(Place {
        kind: filesystem_of(&directory),
        free_bytes: stat.f_bavail * stat.f_frsize,
        free_inodes: (stat.f_files > 0).then_some(stat.f_favail),
        directory,
    })
}
