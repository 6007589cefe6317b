//! Seccomp profiles in Docker's form, resolved to OCI's for one container: its capabilities, this architecture, this kernel.
//!
//! Docker's form is OCI's with conditions: `archMap` instead of `architectures`, and `includes` / `excludes` of capabilities,
//! architectures (Go's names) and a least kernel version at each rule. A profile in OCI's form passes unchanged. The default
//! profile is `seccomp-default.json` beside this file.
//!
//! Must not know: how a profile is executed, and on which side of which wall.

use std::collections::HashSet;
use std::str::FromStr;

use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSyscall,
};
use serde::{Deserialize, Deserializer};

use crate::{Error, Result};

const DEFAULT: &str = include_str!("seccomp-default.json");

/// Docker's default profile for a process with this bounding set.
pub fn default_profile(bounding: &HashSet<Capability>) -> Result<LinuxSeccomp> {
    let profile = load_profile(DEFAULT, bounding)?;
    profile.ok_or_else(|| {
        Error::new(
            crate::ErrorKind::Internal,
            "the built-in seccomp profile is empty",
        )
    })
}

/// The content of a user's profile, in Docker's or OCI's form. `None`: it has neither a default action nor rules, which
/// Docker takes as "no filter".
pub fn load_profile(json: &str, bounding: &HashSet<Capability>) -> Result<Option<LinuxSeccomp>> {
    let machine = Machine {
        arch: native(),
        kernel: kernel_version(&nix::sys::utsname::uname().map_or_else(
            |_| String::new(),
            |name| name.release().to_string_lossy().into_owned(),
        ))
        .unwrap_or((0, 0)),
        bounding,
    };
    resolve(json, &machine)
}

/// What a profile's conditions are about.
struct Machine<'a> {
    /// Go's name of the architecture, and libseccomp's.
    arch: (&'static str, Option<Arch>),
    kernel: (u32, u32),
    bounding: &'a HashSet<Capability>,
}

fn native() -> (&'static str, Option<Arch>) {
    match std::env::consts::ARCH {
        "x86_64" => ("amd64", Some(Arch::ScmpArchX86_64)),
        "aarch64" => ("arm64", Some(Arch::ScmpArchAarch64)),
        "riscv64" => ("riscv64", Some(Arch::ScmpArchRiscv64)),
        "s390x" => ("s390x", Some(Arch::ScmpArchS390x)),
        "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", Some(Arch::ScmpArchPpc64le)),
        "loongarch64" => ("loong64", Some(Arch::ScmpArchLoongarch64)),
        other => (other, None),
    }
}

/// A list that may be absent or `null`.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    #[serde(default)]
    default_action: Option<LinuxSeccompAction>,
    default_errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "list")]
    architectures: Vec<Arch>,
    #[serde(default, deserialize_with = "list")]
    arch_map: Vec<ArchFamily>,
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    listener_path: Option<String>,
    listener_metadata: Option<String>,
    #[serde(default, deserialize_with = "list")]
    syscalls: Vec<Rule>,
}

/// Names are text because only those of this machine need to be known.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchFamily {
    architecture: String,
    #[serde(default, deserialize_with = "list")]
    sub_architectures: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    /// Of profiles before Docker 1.12.
    #[serde(default)]
    name: String,
    #[serde(default, deserialize_with = "list")]
    names: Vec<String>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "list")]
    args: Vec<LinuxSeccompArg>,
    #[serde(default)]
    includes: Option<Condition>,
    #[serde(default)]
    excludes: Option<Condition>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Condition {
    #[serde(default, deserialize_with = "list")]
    caps: Vec<String>,
    #[serde(default, deserialize_with = "list")]
    arches: Vec<String>,
    #[serde(default)]
    min_kernel: Option<String>,
}

fn resolve(json: &str, machine: &Machine<'_>) -> Result<Option<LinuxSeccomp>> {
    let invalid = |why: String| Error::invalid(format!("seccomp profile: {why}"));
    let profile: Profile =
        serde_json::from_str(json).map_err(|e| invalid(format!("cannot be read: {e}")))?;
    let Some(default_action) = profile.default_action else {
        if profile.syscalls.is_empty() {
            return Ok(None);
        }
        return Err(invalid("it has rules but no defaultAction".into()));
    };
    if !profile.architectures.is_empty() && !profile.arch_map.is_empty() {
        return Err(invalid(
            "it has both architectures and archMap: leave one out".into(),
        ));
    }
    let mut architectures = profile.architectures;
    let (_, native) = machine.arch;
    if let Some(family) = profile
        .arch_map
        .iter()
        .find(|family| native.is_some() && Arch::from_str(&family.architecture).ok() == native)
    {
        architectures.extend(native);
        for name in &family.sub_architectures {
            architectures.push(
                Arch::from_str(name)
                    .map_err(|_| invalid(format!("unknown architecture {name:?}")))?,
            );
        }
    }
    let mut syscalls = Vec::new();
    for rule in profile.syscalls {
        let holds = |condition: &Option<Condition>, included| match condition {
            Some(condition) => condition.holds(machine, included).map_err(invalid),
            None => Ok(included),
        };
        if !holds(&rule.includes, true)? || holds(&rule.excludes, false)? {
            continue;
        }
        let names = match (rule.name.as_str(), rule.names) {
            ("", names) => names,
            (name, names) if names.is_empty() => vec![name.to_owned()],
            (name, _) => {
                return Err(invalid(format!(
                    "the rule for {name:?} has both name and names: leave one out"
                )));
            }
        };
        let mut syscall = LinuxSyscall::default();
        syscall
            .set_names(names)
            .set_action(rule.action)
            .set_errno_ret(rule.errno_ret)
            .set_args((!rule.args.is_empty()).then_some(rule.args));
        syscalls.push(syscall);
    }
    let mut resolved = LinuxSeccomp::default();
    resolved
        .set_default_action(default_action)
        .set_default_errno_ret(profile.default_errno_ret)
        .set_architectures((!architectures.is_empty()).then_some(architectures))
        .set_flags(profile.flags)
        .set_listener_path(profile.listener_path.map(Into::into))
        .set_listener_metadata(profile.listener_metadata)
        .set_syscalls(Some(syscalls));
    Ok(Some(resolved))
}

impl Condition {
    /// To be included all of a condition has to hold, and all capabilities have to be there; to be excluded any of it is
    /// enough.
    fn holds(&self, machine: &Machine<'_>, included: bool) -> Result<bool, String> {
        let has = |name: &String| {
            let short = name.strip_prefix("CAP_").unwrap_or(name);
            Capability::from_str(short).is_ok_and(|cap| machine.bounding.contains(&cap))
        };
        let arch = self.arches.iter().any(|arch| arch == machine.arch.0);
        let kernel = match &self.min_kernel {
            None => None,
            Some(text) => match kernel_version(text) {
                Some(least) => Some(machine.kernel >= least),
                None => return Err(format!("minKernel {text:?} is not a version such as 4.8")),
            },
        };
        Ok(if included {
            self.caps.iter().all(has) && (self.arches.is_empty() || arch) && kernel != Some(false)
        } else {
            self.caps.iter().any(has) || arch || kernel == Some(true)
        })
    }
}

/// `6.1.0-13-amd64` → (6, 1)
fn kernel_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.splitn(3, '.').map(|part| {
        let digits = part
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(part.len());
        part[..digits].parse().ok()
    });
    Some((numbers.next()??, numbers.next().unwrap_or(Some(0))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxSeccompOperator;

    /// Docker's default capabilities.
    fn usual() -> HashSet<Capability> {
        use Capability as C;
        [
            C::Chown,
            C::DacOverride,
            C::Fsetid,
            C::Fowner,
            C::Mknod,
            C::NetRaw,
            C::Setgid,
            C::Setuid,
            C::Setfcap,
            C::Setpcap,
            C::NetBindService,
            C::SysChroot,
            C::Kill,
            C::AuditWrite,
        ]
        .into()
    }

    fn on(
        arch: (&'static str, Option<Arch>),
        kernel: (u32, u32),
        bounding: &HashSet<Capability>,
        json: &str,
    ) -> LinuxSeccomp {
        let machine = Machine {
            arch,
            kernel,
            bounding,
        };
        resolve(json, &machine)
            .expect("good profile")
            .expect("not empty")
    }

    fn amd64(bounding: &HashSet<Capability>) -> LinuxSeccomp {
        on(
            ("amd64", Some(Arch::ScmpArchX86_64)),
            (6, 1),
            bounding,
            DEFAULT,
        )
    }

    /// What becomes of a call whose first argument is `first`, others 0: "allow" or the errno.
    fn ask(profile: &LinuxSeccomp, name: &str, first: u64) -> String {
        for rule in profile.syscalls().iter().flatten() {
            let matches = rule.args().iter().flatten().all(|arg| {
                let value = if arg.index() == 0 { first } else { 0 };
                match arg.op() {
                    LinuxSeccompOperator::ScmpCmpEq => value == arg.value(),
                    LinuxSeccompOperator::ScmpCmpNe => value != arg.value(),
                    LinuxSeccompOperator::ScmpCmpLt => value < arg.value(),
                    LinuxSeccompOperator::ScmpCmpGt => value > arg.value(),
                    LinuxSeccompOperator::ScmpCmpMaskedEq => {
                        value & arg.value() == arg.value_two().unwrap_or(0)
                    }
                    other => panic!("{other:?} is not in the default profile"),
                }
            });
            if matches && rule.names().iter().any(|n| n == name) {
                return match rule.action() {
                    LinuxSeccompAction::ScmpActAllow => "allow".into(),
                    LinuxSeccompAction::ScmpActErrno => rule.errno_ret().unwrap_or(1).to_string(),
                    other => panic!("{other:?} is not in the default profile"),
                };
            }
        }
        profile.default_errno_ret().unwrap_or(1).to_string()
    }

    const CLONE_THREAD_FLAGS: u64 = 0x003d_0f00;

    #[test]
    fn ordinary_programs_run() {
        let profile = amd64(&usual());
        for name in [
            "read",
            "write",
            "openat",
            "execve",
            "execveat",
            "mmap",
            "futex",
            "epoll_wait",
            "accept4",
            "fork",
            "vfork",
            "rseq",
            "statx",
            "getrandom",
            "memfd_create",
            "pidfd_open",
            "close_range",
            "openat2",
            "faccessat2",
            "landlock_create_ruleset",
            "arch_prctl",
            "ptrace",
            "process_vm_readv",
            "chroot",
            "mknod",
            "setuid",
            "capset",
            "prctl",
            "seccomp",
            "sendfile",
            "copy_file_range",
            "io_setup",
            "io_submit",
            "inotify_init1",
            "timerfd_create",
            "cachestat",
            "mseal",
            "socketcall",
        ] {
            assert_eq!(ask(&profile, name, 0), "allow", "{name}");
        }
        for family in [1, 2, 10, 16, 17] {
            assert_eq!(ask(&profile, "socket", family), "allow", "family {family}");
        }
        assert_eq!(ask(&profile, "clone", CLONE_THREAD_FLAGS), "allow");
        assert_eq!(ask(&profile, "clone", 17), "allow", "fork");
        assert_eq!(ask(&profile, "personality", 0xffff_ffff), "allow");
        assert_eq!(
            profile.architectures().as_deref(),
            Some([Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32].as_slice())
        );
    }

    #[test]
    fn the_kernel_is_out_of_reach() {
        let profile = amd64(&usual());
        for name in [
            "mount",
            "umount2",
            "unshare",
            "setns",
            "pivot_root",
            "bpf",
            "perf_event_open",
            "keyctl",
            "add_key",
            "request_key",
            "userfaultfd",
            "io_uring_setup",
            "io_uring_enter",
            "io_uring_register",
            "init_module",
            "finit_module",
            "delete_module",
            "kexec_load",
            "kexec_file_load",
            "reboot",
            "swapon",
            "swapoff",
            "iopl",
            "ioperm",
            "acct",
            "quotactl",
            "settimeofday",
            "clock_settime",
            "open_by_handle_at",
            "fsopen",
            "fsmount",
            "move_mount",
            "open_tree",
            "mount_setattr",
            "open_tree_attr",
            "kcmp",
            "pidfd_getfd",
            "process_madvise",
            "sethostname",
            "syslog",
            "vhangup",
            "fanotify_init",
            "lookup_dcookie",
            "mbind",
            "nfsservctl",
            "uselib",
            "ustat",
            "sysfs",
            "vm86",
            "no_such_call",
        ] {
            assert_eq!(ask(&profile, name, 0), "1", "{name}");
        }
        // Fall back to clone, please.
        assert_eq!(ask(&profile, "clone3", 0), "38");
        for namespace in [
            0x20000u64,
            0x200_0000,
            0x400_0000,
            0x800_0000,
            0x1000_0000,
            0x2000_0000,
            0x4000_0000,
        ] {
            assert_eq!(
                ask(&profile, "clone", namespace | 17),
                "1",
                "{namespace:#x}"
            );
        }
        for family in [38, 40] {
            assert_eq!(ask(&profile, "socket", family), "1", "family {family}");
        }
        assert_eq!(
            ask(&profile, "personality", 0x40000),
            "1",
            "ADDR_NO_RANDOMIZE"
        );
    }

    #[test]
    fn capabilities_open_their_calls() {
        let with = |cap| {
            let mut caps = usual();
            caps.insert(cap);
            amd64(&caps)
        };
        let admin = with(Capability::SysAdmin);
        for name in ["mount", "unshare", "setns", "clone3", "bpf", "fsopen"] {
            assert_eq!(ask(&admin, name, 0), "allow", "{name}");
        }
        assert_eq!(ask(&admin, "clone", 0x1000_0000), "allow");
        assert_eq!(ask(&admin, "keyctl", 0), "1");
        assert_eq!(ask(&with(Capability::SysTime), "clock_settime", 0), "allow");
        assert_eq!(ask(&with(Capability::SysModule), "init_module", 0), "allow");
        assert_eq!(ask(&with(Capability::Bpf), "bpf", 0), "allow");
        let without = amd64(&HashSet::new());
        assert_eq!(ask(&without, "chroot", 0), "1");
    }

    #[test]
    fn kernels_and_architectures_matter() {
        let amd64 = ("amd64", Some(Arch::ScmpArchX86_64));
        assert_eq!(ask(&on(amd64, (4, 7), &usual(), DEFAULT), "ptrace", 0), "1");
        assert_eq!(
            ask(&on(amd64, (4, 8), &usual(), DEFAULT), "ptrace", 0),
            "allow"
        );
        assert_eq!(
            ask(&on(amd64, (5, 0), &usual(), DEFAULT), "ptrace", 0),
            "allow"
        );
        let arm = on(
            ("arm64", Some(Arch::ScmpArchAarch64)),
            (6, 1),
            &usual(),
            DEFAULT,
        );
        assert_eq!(ask(&arm, "arch_prctl", 0), "1");
        assert_eq!(ask(&arm, "set_tls", 0), "allow");
        assert_eq!(
            arm.architectures().as_deref(),
            Some([Arch::ScmpArchAarch64, Arch::ScmpArchArm].as_slice())
        );
        let s390 = on(
            ("s390x", Some(Arch::ScmpArchS390x)),
            (6, 1),
            &usual(),
            DEFAULT,
        );
        let clone: Vec<_> = s390
            .syscalls()
            .iter()
            .flatten()
            .filter(|r| r.names() == &["clone"])
            .map(|r| r.args().as_ref().map(|args| args[0].index()))
            .collect();
        assert_eq!(clone, [Some(1)]);
        assert_eq!(kernel_version("6.1.0-13-amd64"), Some((6, 1)));
        assert_eq!(kernel_version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(kernel_version("5-rc1"), Some((5, 0)));
        assert_eq!(kernel_version("x"), None);
    }

    #[test]
    fn users_files() {
        let load = |json: &str| load_profile(json, &usual());
        assert_eq!(load("{}").expect("empty"), None);
        let oci = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],"flags":["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO","errnoRet":13,"args":[{"index":1,"value":2,"valueTwo":3,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#;
        let wanted: LinuxSeccomp = serde_json::from_str(oci).expect("parses");
        assert_eq!(load(oci).expect("OCI's form"), Some(wanted));
        let old = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"mkdir","action":"SCMP_ACT_ERRNO","args":null}]}"#;
        assert_eq!(
            ask(&load(old).expect("old form").expect("rules"), "mkdir", 0),
            "1"
        );
        for (bad, part) in [
            ("{", "cannot be read"),
            (r#"{"defaultAction":"NONSENSE"}"#, "NONSENSE"),
            (
                r#"{"syscalls":[{"names":["a"],"action":"SCMP_ACT_ALLOW"}]}"#,
                "defaultAction",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","names":["b"],"action":"SCMP_ACT_ALLOW"}]}"#,
                "name and names",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],"archMap":[{"architecture":"SCMP_ARCH_X86_64"}]}"#,
                "archMap",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["b"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"new"}}]}"#,
                "minKernel",
            ),
        ] {
            let error = load(bad).expect_err(bad);
            assert_eq!(error.kind, crate::ErrorKind::Invalid);
            assert!(error.message.contains(part), "{}", error.message);
        }
    }

    #[test]
    fn podmans_default_is_understood() {
        let Ok(json) = std::fs::read_to_string("/usr/share/containers/seccomp.json") else {
            println!("skipped: no /usr/share/containers/seccomp.json");
            return;
        };
        let profile = load_profile(&json, &usual()).expect("good").expect("rules");
        assert_eq!(ask(&profile, "read", 0), "allow");
        assert_eq!(ask(&profile, "kexec_load", 0), "1");
    }
}
