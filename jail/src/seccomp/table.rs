//! System call architectures: which a processor can run, their audit numbers, names to numbers.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use oci_spec::runtime::Arch;

use super::Error;

/// Numbers by name. Built for every filter, so a cheap hash; the names that meet it are few and no secret.
pub type Numbers = HashMap<&'static str, u32, BuildHasherDefault<Fnv>>;

/// Fowler, Noll, Vo: FNV-1a.
pub struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

fn fill(entries: impl Iterator<Item = (&'static str, u32)>) -> Numbers {
    let mut numbers = Numbers::with_capacity_and_hasher(512, BuildHasherDefault::default());
    numbers.extend(entries);
    numbers
}

/// A family of architectures that one kernel serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cpu {
    /// x86-64, i386, x32.
    X86_64,
    /// 64-bit and 32-bit Arm.
    Aarch64,
    /// 64-bit RISC-V.
    Riscv64,
    /// Little-endian 64-bit POWER.
    Ppc64le,
    /// 64-bit IBM Z.
    S390x,
    /// 64-bit LoongArch.
    Loongarch64,
}

/// One system call architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Abi {
    X86_64,
    X86,
    /// Shares [`Abi::X86_64`]'s audit number; its numbers have [`X32_BIT`].
    X32,
    Aarch64,
    Arm,
    Riscv64,
    Ppc64le,
    S390x,
    Loongarch64,
}

/// Marks an x32 system call number (`__X32_SYSCALL_BIT`).
pub const X32_BIT: u32 = 0x4000_0000;

/// Arm's private system calls begin here (`__ARM_NR_BASE`).
pub const ARM_PRIVATE: u32 = 0x0f_0000;

impl Cpu {
    /// The one this program is compiled for.
    pub fn native() -> Result<Cpu, Error> {
        Ok(match std::env::consts::ARCH {
            "x86_64" => Cpu::X86_64,
            "aarch64" => Cpu::Aarch64,
            "riscv64" => Cpu::Riscv64,
            "powerpc64" if cfg!(target_endian = "little") => Cpu::Ppc64le,
            "s390x" => Cpu::S390x,
            "loongarch64" => Cpu::Loongarch64,
            cpu => return Err(Error::Cpu { cpu }),
        })
    }

    /// What its kernel calls native.
    pub fn abi(self) -> Abi {
        match self {
            Cpu::X86_64 => Abi::X86_64,
            Cpu::Aarch64 => Abi::Aarch64,
            Cpu::Riscv64 => Abi::Riscv64,
            Cpu::Ppc64le => Abi::Ppc64le,
            Cpu::S390x => Abi::S390x,
            Cpu::Loongarch64 => Abi::Loongarch64,
        }
    }

    /// What the profile's architecture is here; `None` when no program of it can run.
    pub fn find(self, arch: Arch) -> Option<Abi> {
        Some(match (self, arch) {
            (cpu, Arch::ScmpArchNative) => cpu.abi(),
            (Cpu::X86_64, Arch::ScmpArchX86_64) => Abi::X86_64,
            (Cpu::X86_64, Arch::ScmpArchX86) => Abi::X86,
            (Cpu::X86_64, Arch::ScmpArchX32) => Abi::X32,
            (Cpu::Aarch64, Arch::ScmpArchAarch64) => Abi::Aarch64,
            (Cpu::Aarch64, Arch::ScmpArchArm) => Abi::Arm,
            (Cpu::Riscv64, Arch::ScmpArchRiscv64) => Abi::Riscv64,
            (Cpu::Ppc64le, Arch::ScmpArchPpc64le) => Abi::Ppc64le,
            (Cpu::S390x, Arch::ScmpArchS390x) => Abi::S390x,
            (Cpu::Loongarch64, Arch::ScmpArchLoongarch64) => Abi::Loongarch64,
            _ => return None,
        })
    }
}

impl Abi {
    /// `AUDIT_ARCH_*` (include/uapi/linux/audit.h).
    pub fn audit(self) -> u32 {
        match self {
            Abi::X86_64 | Abi::X32 => 0xc000_003e,
            Abi::X86 => 0x4000_0003,
            Abi::Aarch64 => 0xc000_00b7,
            Abi::Arm => 0x4000_0028,
            Abi::Riscv64 => 0xc000_00f3,
            Abi::Ppc64le => 0xc000_0015,
            Abi::S390x => 0x8000_0016,
            Abi::Loongarch64 => 0xc000_0102,
        }
    }

    /// Whether arguments have 32 bits only.
    pub fn is_32_bit(self) -> bool {
        matches!(self, Abi::X86 | Abi::Arm)
    }

    /// Offset in `struct seccomp_data` of the upper half of argument `index`; the lower half is the other one.
    pub fn high_word(self, index: usize) -> u32 {
        let offset = 16 + 8 * index as u32;
        if self == Abi::S390x {
            offset
        } else {
            offset + 4
        }
    }

    /// … of the lower half.
    pub fn low_word(self, index: usize) -> u32 {
        let offset = 16 + 8 * index as u32;
        if self == Abi::S390x {
            offset + 4
        } else {
            offset
        }
    }

    /// All its system calls, numbers by name.
    pub fn numbers(self) -> Numbers {
        macro_rules! all {
            ($module:ident, $limit:expr) => {
                fill((0..$limit).filter_map(|nr| {
                    let name = syscalls::$module::Sysno::new(nr)?.name();
                    Some((name.strip_prefix("r#").unwrap_or(name), nr as u32))
                }))
            };
        }
        let mut numbers = match self {
            Abi::X86_64 => all!(x86_64, 1024),
            Abi::X86 => all!(x86, 1024),
            Abi::X32 => x32(all!(x86_64, 1024)),
            Abi::Aarch64 => all!(aarch64, 1024),
            Abi::Arm => all!(arm, 1024),
            Abi::Riscv64 => all!(riscv64, 1024),
            Abi::Ppc64le => all!(powerpc64, 1024),
            Abi::S390x => all!(s390x, 1024),
            Abi::Loongarch64 => all!(loongarch64, 1024),
        };
        if self == Abi::Arm {
            let private = [
                "breakpoint",
                "cacheflush",
                "usr26",
                "usr32",
                "set_tls",
                "get_tls",
            ];
            numbers.extend(private.into_iter().zip(ARM_PRIVATE + 1..));
        }
        // Newer than the `syscalls` crate; the same on every architecture (arch/*/tools/syscall*.tbl).
        for (name, nr) in NEWEST {
            if self != Abi::X32 {
                numbers.entry(name).or_insert(nr);
            } else {
                numbers.entry(name).or_insert(nr | X32_BIT);
            }
        }
        numbers
    }

    /// The system calls that i386's `socketcall` and `ipc` also reach: the multiplexer and its first argument.
    pub fn multiplexed(self, name: &str) -> Option<(&'static str, u64)> {
        if self != Abi::X86 {
            return None;
        }
        // include/uapi/linux/net.h SYS_*, include/uapi/linux/ipc.h
        let socket = [
            "socket",
            "bind",
            "connect",
            "listen",
            "accept",
            "getsockname",
            "getpeername",
            "socketpair",
            "send",
            "recv",
            "sendto",
            "recvfrom",
            "shutdown",
            "setsockopt",
            "getsockopt",
            "sendmsg",
            "recvmsg",
            "accept4",
            "recvmmsg",
            "sendmmsg",
        ];
        if let Some(i) = socket.iter().position(|s| *s == name) {
            return Some(("socketcall", i as u64 + 1));
        }
        let ipc = [
            ("semop", 1),
            ("semget", 2),
            ("semctl", 3),
            ("semtimedop", 4),
            ("msgsnd", 11),
            ("msgrcv", 12),
            ("msgget", 13),
            ("msgctl", 14),
            ("shmat", 21),
            ("shmdt", 22),
            ("shmget", 23),
            ("shmctl", 24),
        ];
        ipc.iter()
            .find(|(n, _)| *n == name)
            .map(|(_, call)| ("ipc", *call))
    }
}

/// Linux 6.11 to 6.18.
const NEWEST: [(&str, u32); 7] = [
    ("setxattrat", 463),
    ("getxattrat", 464),
    ("listxattrat", 465),
    ("removexattrat", 466),
    ("open_tree_attr", 467),
    ("file_getattr", 468),
    ("file_setattr", 469),
];

/// x32 has x86-64's numbers with a bit set, except for calls whose structures differ (arch/x86/entry/syscalls/syscall_64.tbl).
fn x32(x86_64: Numbers) -> Numbers {
    const OWN: [&str; 36] = [
        "rt_sigaction",
        "rt_sigreturn",
        "ioctl",
        "readv",
        "writev",
        "recvfrom",
        "sendmsg",
        "recvmsg",
        "execve",
        "ptrace",
        "rt_sigpending",
        "rt_sigtimedwait",
        "rt_sigqueueinfo",
        "sigaltstack",
        "timer_create",
        "mq_notify",
        "kexec_load",
        "waitid",
        "set_robust_list",
        "get_robust_list",
        "vmsplice",
        "move_pages",
        "preadv",
        "pwritev",
        "rt_tgsigqueueinfo",
        "recvmmsg",
        "sendmmsg",
        "process_vm_readv",
        "process_vm_writev",
        "setsockopt",
        "getsockopt",
        "io_setup",
        "io_submit",
        "execveat",
        "preadv2",
        "pwritev2",
    ];
    const ABSENT: [&str; 11] = [
        "uselib",
        "_sysctl",
        "create_module",
        "get_kernel_syms",
        "query_module",
        "nfsservctl",
        "set_thread_area",
        "get_thread_area",
        "epoll_ctl_old",
        "epoll_wait_old",
        "vserver",
    ];
    let mut numbers = fill(
        x86_64
            .into_iter()
            .filter(|(name, _)| !ABSENT.contains(name))
            .map(|(name, nr)| (name, nr | X32_BIT)),
    );
    numbers.extend(OWN.into_iter().zip((512..).map(|nr| nr | X32_BIT)));
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_everybody_knows() {
        let of = |abi: Abi, name: &str| abi.numbers().get(name).copied();
        assert_eq!(of(Abi::X86_64, "read"), Some(0));
        assert_eq!(of(Abi::X86_64, "clone3"), Some(435));
        assert_eq!(of(Abi::X86_64, "io_uring_setup"), Some(425));
        assert_eq!(of(Abi::X86, "socketcall"), Some(102));
        assert_eq!(of(Abi::X86, "break"), Some(17));
        assert_eq!(of(Abi::X32, "read"), Some(X32_BIT));
        assert_eq!(of(Abi::X32, "execve"), Some(X32_BIT + 520));
        assert_eq!(of(Abi::X32, "pwritev2"), Some(X32_BIT + 547));
        assert_eq!(of(Abi::Aarch64, "read"), Some(63));
        assert_eq!(of(Abi::Aarch64, "open"), None);
        assert_eq!(of(Abi::Arm, "set_tls"), Some(0xf0005));
        assert_eq!(of(Abi::X86_64, "no_such_call"), None);
    }
}
