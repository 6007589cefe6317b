//! the checks: each judges one fact. Pure functions of [`Machine`].

use caisson_runtime::Ring0;

use super::machine::{Cgroups, Daemon, Machine};
use super::{Finding, Verdict};

type Check = fn(&Machine) -> Finding;

/// In the order they are shown.
pub const ALL: &[Check] = &[
    root,
    kernel,
    namespaces,
    user_namespaces,
    overlay,
    seccomp,
    cgroups,
    mounts,
    idmap,
    companions,
    data_root,
    space,
    inotify,
    keys,
    open_files,
    nft,
    kvm,
    vm_pieces,
    tun,
    socket,
];

fn finding(
    check: &'static str,
    verdict: Verdict,
    found: impl Into<String>,
    why: &'static str,
    fix: impl Into<String>,
) -> Finding {
    let fix = if verdict == Verdict::Ok {
        String::new()
    } else {
        fix.into()
    };
    Finding {
        check,
        verdict,
        found: found.into(),
        why,
        fix,
    }
}

fn bytes(n: u64) -> String {
    match n {
        n if n >= 1 << 30 => format!("{:.1} GiB", n as f64 / f64::from(1 << 30)),
        n => format!("{:.1} MiB", n as f64 / f64::from(1 << 20)),
    }
}

fn root(m: &Machine) -> Finding {
    let (verdict, found) = if m.root {
        (Verdict::Ok, "root")
    } else {
        (Verdict::Warning, "not root")
    };
    finding(
        "user",
        verdict,
        found,
        "starting the daemon needs root, and some checks can only be answered for root",
        "sudo caisson doctor",
    )
}

fn kernel(m: &Machine) -> Finding {
    let (major, minor, text) = &m.kernel;
    let verdict = match (*major, *minor) {
        v if v >= (5, 10) => Verdict::Ok,
        v if v >= (5, 6) => Verdict::Warning,
        _ => Verdict::Failure,
    };
    finding(
        "kernel",
        verdict,
        format!("Linux {text}"),
        "paths in containers are resolved with openat2 (5.6); 5.10 is the oldest kernel with long-term support that is tested",
        "install a newer kernel from your distribution, e.g.: apt-get install linux-image-amd64 && reboot",
    )
}

fn namespaces(m: &Machine) -> Finding {
    let missing: Vec<&str> = ["mnt", "pid", "net", "uts", "ipc", "cgroup"]
        .into_iter()
        .filter(|n| !m.namespaces.iter().any(|h| h == n))
        .collect();
    let (verdict, found) = if missing.is_empty() {
        (Verdict::Ok, m.namespaces.join(", "))
    } else {
        (Verdict::Failure, format!("missing: {}", missing.join(", ")))
    };
    finding(
        "namespaces",
        verdict,
        found,
        "a container is a process in namespaces of its own",
        "use a kernel built with CONFIG_NAMESPACES and all of CONFIG_{UTS,IPC,PID,NET}_NS and CONFIG_CGROUPS",
    )
}

fn user_namespaces(m: &Machine) -> Finding {
    let there = m.namespaces.iter().any(|n| n == "user");
    let limit = m.sysctl("user/max_user_namespaces");
    let (verdict, found) = match (there, limit) {
        (false, _) => (Verdict::Warning, "not in this kernel".to_owned()),
        (true, Some(0)) => (
            Verdict::Warning,
            "switched off (user.max_user_namespaces = 0)".to_owned(),
        ),
        (true, _) => (Verdict::Ok, "available".to_owned()),
    };
    finding(
        "user namespaces",
        verdict,
        found,
        "needed for --userns and for containers without a privileged root",
        "sysctl -w user.max_user_namespaces=28633",
    )
}

fn overlay(m: &Machine) -> Finding {
    let there = m.filesystems.iter().any(|f| f == "overlay");
    let module =
        std::path::Path::new(&format!("/lib/modules/{}/kernel/fs/overlayfs", m.kernel.2)).exists();
    let (verdict, found) = match (there, module) {
        (true, _) => (Verdict::Ok, "available"),
        (false, true) => (Verdict::Warning, "a module that is not loaded"),
        (false, false) => (Verdict::Failure, "not in this kernel"),
    };
    finding(
        "overlayfs",
        verdict,
        found,
        "image layers are stacked with it instead of copied",
        "modprobe overlay && echo overlay > /etc/modules-load.d/overlay.conf",
    )
}

fn seccomp(m: &Machine) -> Finding {
    let (verdict, found) = if m.seccomp_actions.iter().any(|a| a == "errno") {
        (Verdict::Ok, m.seccomp_actions.join(" "))
    } else {
        (Verdict::Failure, "no seccomp filters".to_owned())
    };
    finding(
        "seccomp",
        verdict,
        found,
        "the default profile keeps dangerous system calls from containers; without it only --security-opt seccomp=unconfined runs",
        "use a kernel built with CONFIG_SECCOMP_FILTER=y",
    )
}

fn cgroups(m: &Machine) -> Finding {
    let wanted = ["cpu", "memory", "pids", "cpuset"];
    let missing = |have: &[String]| -> Vec<&str> {
        wanted
            .into_iter()
            .filter(|w| !have.iter().any(|h| h == w))
            .collect()
    };
    let (verdict, found) = match &m.cgroups {
        Cgroups::None => (Verdict::Failure, "not mounted".to_owned()),
        Cgroups::V1(have) | Cgroups::V2(have) => {
            let version = if matches!(m.cgroups, Cgroups::V2(_)) {
                2
            } else {
                1
            };
            let lacking = missing(have);
            match (lacking.is_empty(), version) {
                (false, _) => (
                    Verdict::Warning,
                    format!("version {version}, without: {}", lacking.join(", ")),
                ),
                (true, 2) => (Verdict::Ok, format!("version 2 ({})", have.join(" "))),
                (true, _) => (
                    Verdict::Ok,
                    format!("version 1 ({}); version 2 is preferred", have.join(" ")),
                ),
            }
        }
    };
    finding(
        "cgroups",
        verdict,
        found,
        "limits (-m, --cpus, --pids-limit), stats and pause are made of them",
        "boot with systemd.unified_cgroup_hierarchy=1 cgroup_enable=memory, or mount them: mount -t cgroup2 none /sys/fs/cgroup",
    )
}

fn mounts(m: &Machine) -> Finding {
    let (verdict, found) = match &m.new_mount_api {
        Ok(()) => (Verdict::Ok, "fsopen, fsmount, move_mount work".to_owned()),
        Err(e) if !m.root => (
            Verdict::Warning,
            format!("could not be tried without root ({e})"),
        ),
        Err(e) => (Verdict::Warning, format!("refused: {e}")),
    };
    finding(
        "new mount API",
        verdict,
        found,
        "mounts are prepared detached and placed by descriptor, which no symlink in an image can divert",
        "use kernel 5.2 or newer; inside another container, allow fsopen in its seccomp profile and give it CAP_SYS_ADMIN",
    )
}

fn idmap(m: &Machine) -> Finding {
    let (verdict, found) = if m.mount_setattr {
        (Verdict::Ok, "available")
    } else {
        (Verdict::Warning, "not in this kernel")
    };
    finding(
        "id-mapped mounts",
        verdict,
        found,
        "--userns without copying images needs them",
        "use kernel 5.12 or newer",
    )
}

fn companions(m: &Machine) -> Finding {
    let missing: Vec<&str> = m
        .beside
        .iter()
        .filter(|(_, there)| !there)
        .map(|(n, _)| *n)
        .collect();
    let (verdict, found) = match missing.as_slice() {
        [] => (
            Verdict::Ok,
            "caisson-shim and caisson-oci are beside caisson".to_owned(),
        ),
        some if some.contains(&"caisson-shim") => {
            (Verdict::Failure, format!("missing: {}", missing.join(", ")))
        }
        _ => (Verdict::Warning, format!("missing: {}", missing.join(", "))),
    };
    finding(
        "companion programs",
        verdict,
        found,
        "each container is kept by a caisson-shim, found beside the caisson executable",
        "install all three executables into one directory: cargo build --release && install target/release/caisson{,-shim,-oci} /usr/local/bin/",
    )
}

fn data_root(m: &Machine) -> Finding {
    let why = "layers need a file system that overlayfs accepts below and above: d_type, extended attributes, not overlay itself, not a network";
    let fix = format!(
        "choose a directory on ext4, xfs or btrfs: caisson daemon --data-root DIRECTORY (now {})",
        m.data_root.display()
    );
    let Some(place) = &m.data_place else {
        return finding(
            "data root",
            Verdict::Failure,
            format!("{} has no existing parent", m.data_root.display()),
            why,
            fix,
        );
    };
    let verdict = match place.kind.as_str() {
        "ext4" | "xfs" | "btrfs" | "f2fs" | "zfs" | "bcachefs" | "ext3" => Verdict::Ok,
        "tmpfs" | "ramfs" => Verdict::Warning,
        "overlay" | "nfs" | "nfs4" | "cifs" | "vfat" | "exfat" | "9p" | "squashfs" | "iso9660"
        | "ecryptfs" => Verdict::Failure,
        _ => Verdict::Warning,
    };
    finding(
        "data root",
        verdict,
        format!("{} is on {}", place.directory.display(), place.kind),
        why,
        fix,
    )
}

fn space(m: &Machine) -> Finding {
    let Some(place) = &m.data_place else {
        return finding(
            "disk space",
            Verdict::Warning,
            "unknown",
            "images and containers take space",
            "create the data root",
        );
    };
    let few_inodes = place.free_inodes.is_some_and(|n| n < 10_000);
    let verdict = match place.free_bytes {
        n if n < 64 << 20 => Verdict::Failure,
        n if n < 2 << 30 => Verdict::Warning,
        _ if few_inodes => Verdict::Warning,
        _ => Verdict::Ok,
    };
    let inodes = place
        .free_inodes
        .map_or_else(String::new, |n| format!(", {n} inodes"));
    finding(
        "disk space",
        verdict,
        format!(
            "{} free{inodes} at {}",
            bytes(place.free_bytes),
            place.directory.display()
        ),
        "unpacking an image that does not fit fails half way",
        "caisson system prune -a, or move the data root to a larger disk",
    )
}

fn at_least(
    m: &Machine,
    check: &'static str,
    names: &[(&'static str, u64)],
    why: &'static str,
) -> Finding {
    let low: Vec<String> = names
        .iter()
        .filter_map(|(name, least)| {
            m.sysctl(name)
                .filter(|v| v < least)
                .map(|v| format!("{} = {v}", name.replace('/', ".")))
        })
        .collect();
    let fix: Vec<String> = names
        .iter()
        .map(|(name, least)| format!("sysctl -w {}={least}", name.replace('/', ".")))
        .collect();
    match low.is_empty() {
        true => {
            let all: Vec<String> = names
                .iter()
                .filter_map(|(n, _)| {
                    m.sysctl(n)
                        .map(|v| format!("{} = {v}", n.replace('/', ".")))
                })
                .collect();
            finding(check, Verdict::Ok, all.join(", "), why, "")
        }
        false => finding(check, Verdict::Warning, low.join(", "), why, fix.join("\n")),
    }
}

fn inotify(m: &Machine) -> Finding {
    at_least(
        m,
        "inotify",
        &[
            ("fs/inotify/max_user_instances", 128),
            ("fs/inotify/max_user_watches", 65_536),
        ],
        "programs that watch files share one limit across all containers of a user",
    )
}

fn keys(m: &Machine) -> Finding {
    at_least(
        m,
        "kernel keys",
        &[("kernel/keys/maxkeys", 200)],
        "each container may take a session keyring",
    )
}

fn open_files(m: &Machine) -> Finding {
    let verdict = if m.open_files >= 1024 {
        Verdict::Ok
    } else {
        Verdict::Warning
    };
    finding(
        "open files",
        verdict,
        m.open_files.to_string(),
        "the daemon holds a few descriptors for each running container",
        "ulimit -n 65536, or LimitNOFILE=1048576 in the service",
    )
}

fn nft(m: &Machine) -> Finding {
    let (verdict, found) = match &m.nft {
        Some(path) => (Verdict::Ok, path.display().to_string()),
        None => (Verdict::Warning, "not installed".to_owned()),
    };
    finding(
        "nft",
        verdict,
        found,
        "bridge networks and published ports are rules of nftables",
        "apt-get install nftables",
    )
}

/// Thousands, millions, billions.
fn speed(instructions_per_second: u64) -> String {
    match instructions_per_second {
        n if n >= 1_000_000_000 => format!("{:.1} billion", n as f64 / 1e9),
        n if n >= 1_000_000 => format!("{:.1} million", n as f64 / 1e6),
        n => format!("{} thousand", n / 1000),
    }
}

fn kvm(m: &Machine) -> Finding {
    const WHY: &str =
        "--isolation=vm runs each container in a KVM virtual machine; containers do not need it";
    match &m.vms.ring0 {
        Ok(Ring0::Native(native)) => finding(
            "kvm",
            Verdict::Ok,
            format!(
                "guest kernels run on the processor ({} instructions/s)",
                speed(native.instructions_per_second)
            ),
            WHY,
            "",
        ),
        Ok(Ring0::Emulated(emulated)) => finding(
            "kvm",
            Verdict::Warning,
            format!(
                "usable; this host's KVM emulates guest kernels ({} instructions/s), refuses {}{}: caisson-vmm helps it out",
                speed(emulated.instructions_per_second),
                emulated.refused.join(", "),
                if emulated.syscall {
                    ""
                } else {
                    ", misdelivers SYSCALL"
                },
            ),
            "programs in a VM run at full speed here, but its kernel does not: booting takes seconds, system calls are slow",
            "nothing is broken; for full speed use a machine whose processor shows vmx or svm (bare metal, or nested virtualization)",
        ),
        Ok(Ring0::Unusable(unusable)) => finding(
            "kvm",
            Verdict::Unavailable,
            unusable.cause.clone(),
            WHY,
            unusable.fix.clone(),
        ),
        Err(e) => finding(
            "kvm",
            Verdict::Unavailable,
            e.clone(),
            WHY,
            "make /dev/kvm usable (modprobe kvm_intel || modprobe kvm_amd; usermod -aG kvm $USER) and install caisson-vmm",
        ),
    }
}

fn vm_pieces(m: &Machine) -> Finding {
    let (verdict, found) = match &m.vms.pieces {
        Ok(()) => (
            Verdict::Ok,
            "caisson-vmm, the guest's kernel and agent are there".to_owned(),
        ),
        Err(e) => (Verdict::Unavailable, e.clone()),
    };
    finding(
        "vm pieces",
        verdict,
        found,
        "a microVM is run by caisson-vmm and boots a kernel and an agent of caisson's own",
        "cargo xtask build && cargo xtask kernel, then install their results beside caisson",
    )
}

fn tun(m: &Machine) -> Finding {
    let (verdict, found) = match &m.vms.tun {
        Ok(()) => (Verdict::Ok, "/dev/net/tun opens".to_owned()),
        Err(e) if !m.root => (Verdict::Warning, e.clone()),
        Err(e) => (Verdict::Unavailable, e.clone()),
    };
    finding(
        "tun",
        verdict,
        found,
        "a microVM's network card is a tap device",
        "modprobe tun; where that is built in: mkdir -p /dev/net && mknod -m 0666 /dev/net/tun c 10 200",
    )
}

fn socket(m: &Machine) -> Finding {
    let path = m
        .socket
        .as_ref()
        .map(|p| p.display().to_string())
        .unwrap_or_default();
    let (verdict, found) = match &m.daemon {
        Daemon::Answers => (Verdict::Ok, format!("a daemon answers at {path}")),
        Daemon::NoSocket if m.root => (
            Verdict::Ok,
            format!("no daemon at {path} yet; the first command starts one"),
        ),
        Daemon::NoSocket => (
            Verdict::Warning,
            format!("no daemon at {path}, and only root can start one"),
        ),
        Daemon::Dead(e) => (Verdict::Warning, format!("{path}: {e}")),
        Daemon::Remote => (Verdict::Ok, "the daemon is on another machine".to_owned()),
    };
    finding(
        "daemon",
        verdict,
        found,
        "every command is a request to the daemon",
        "sudo caisson daemon, or see its log: tail /var/log/caisson.log",
    )
}

#[cfg(test)]
mod tests {
    use caisson_runtime::{EmulatedRing0, NativeRing0, Unusable};

    use super::super::machine::Vms;
    use super::*;

    fn healthy() -> Machine {
        let names = |n: &[&str]| n.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        Machine {
            root: true,
            kernel: (6, 1, "6.1.0".into()),
            filesystems: names(&["overlay", "ext4"]),
            namespaces: names(&["mnt", "pid", "net", "uts", "ipc", "cgroup", "user"]),
            seccomp_actions: names(&["kill", "errno", "allow"]),
            cgroups: Cgroups::V2(names(&["cpu", "memory", "pids", "cpuset"])),
            new_mount_api: Ok(()),
            mount_setattr: true,
            vms: Vms {
                pieces: Ok(()),
                ring0: Ok(Ring0::Native(NativeRing0 {
                    instructions_per_second: 1 << 31,
                })),
                tun: Ok(()),
            },
            nft: Some("/usr/sbin/nft".into()),
            data_root: "/var/lib/caisson".into(),
            data_place: Some(super::super::machine::Place {
                directory: "/var/lib".into(),
                kind: "ext4".into(),
                free_bytes: 10 << 30,
                free_inodes: Some(1 << 20),
            }),
            sysctls: vec![
                ("fs/inotify/max_user_instances", Some(128)),
                ("fs/inotify/max_user_watches", Some(65_536)),
                ("kernel/keys/maxkeys", Some(200)),
            ],
            socket: Some("/run/caisson.sock".into()),
            daemon: Daemon::Answers,
            beside: vec![("caisson-shim", true), ("caisson-oci", true)],
            open_files: 1024,
        }
    }

    fn verdicts(m: &Machine) -> Vec<(&'static str, Verdict)> {
        ALL.iter()
            .map(|c| c(m))
            .filter(|f| f.verdict != Verdict::Ok)
            .map(|f| (f.check, f.verdict))
            .collect()
    }

    #[test]
    fn a_healthy_machine_has_nothing_to_fix() {
        assert_eq!(verdicts(&healthy()), []);
    }

    #[test]
    fn each_ailment_is_told_with_its_fix() {
        type Harm = fn(&mut Machine);
        let cases: Vec<(Harm, &str, Verdict)> = vec![
            (
                |m| m.kernel = (4, 19, "4.19".into()),
                "kernel",
                Verdict::Failure,
            ),
            (|m| m.filesystems.clear(), "overlayfs", Verdict::Failure),
            (|m| m.seccomp_actions.clear(), "seccomp", Verdict::Failure),
            (|m| m.cgroups = Cgroups::None, "cgroups", Verdict::Failure),
            (
                |m| m.cgroups = Cgroups::V1(vec!["cpu".into()]),
                "cgroups",
                Verdict::Warning,
            ),
            (
                |m| {
                    m.vms.ring0 = Ok(Ring0::Unusable(Unusable {
                        cause: "there is no /dev/kvm".into(),
                        fix: "modprobe kvm_intel".into(),
                    }));
                },
                "kvm",
                Verdict::Unavailable,
            ),
            (
                |m| {
                    m.vms.ring0 = Ok(Ring0::Emulated(EmulatedRing0 {
                        instructions_per_second: 3_000_000,
                        refused: vec!["xsave".into()],
                        untried: Vec::new(),
                        syscall: false,
                    }));
                },
                "kvm",
                Verdict::Warning,
            ),
            (
                |m| m.vms.pieces = Err("no caisson-vmm".into()),
                "vm pieces",
                Verdict::Unavailable,
            ),
            (
                |m| m.vms.tun = Err("no such device".into()),
                "tun",
                Verdict::Unavailable,
            ),
            (|m| m.nft = None, "nft", Verdict::Warning),
            (
                |m| m.beside[0].1 = false,
                "companion programs",
                Verdict::Failure,
            ),
            (
                |m| m.data_place.as_mut().expect("there").free_bytes = 1,
                "disk space",
                Verdict::Failure,
            ),
            (
                |m| m.data_place.as_mut().expect("there").kind = "overlay".into(),
                "data root",
                Verdict::Failure,
            ),
            (|m| m.sysctls[0].1 = Some(8), "inotify", Verdict::Warning),
            (
                |m| m.namespaces.retain(|n| n != "pid"),
                "namespaces",
                Verdict::Failure,
            ),
        ];
        for (harm, check, verdict) in cases {
            let mut machine = healthy();
            harm(&mut machine);
            assert_eq!(verdicts(&machine), [(check, verdict)]);
            let finding = ALL
                .iter()
                .map(|c| c(&machine))
                .find(|f| f.verdict != Verdict::Ok)
                .expect("found above");
            assert!(
                !finding.fix.is_empty() && !finding.why.is_empty(),
                "{check}"
            );
            assert_eq!(
                super::super::exit_code(&[finding]),
                u8::from(verdict == Verdict::Failure)
            );
        }
    }
}
