//! Finding out what this host's KVM does with guest kernel code, by having it run a little.
//!
//! A throw-away machine ([`tiny`]) runs a counted loop against the clock, one instruction of each kind that KVM's emulator
//! is known to refuse, and a SYSCALL from user mode, under a watchdog: such a host was seen not to come back from some
//! instructions. Nothing stays behind.
//!
//! `caisson-vmm probe` prints the answer, a [`Probe`], as one line of JSON, and ends with status 0 whatever it is:
//!
//! ```text
//! {"ring0":{"native":{"instructions_per_second":2600000000}},"took_us":1900}
//! {"ring0":{"emulated":{"instructions_per_second":3700000,"refused":["xsave", …],"untried":[],"syscall":false}},"took_us":9000}
//! {"ring0":{"unusable":{"cause":"there is no /dev/kvm","fix":"modprobe kvm_intel || modprobe kvm_amd"}},"took_us":30}
//! ```

mod obstacles;
pub mod tiny;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use caisson_protocol::vmm::{AssistMode, EmulatedRing0, NativeRing0, Probe, Ring0, Unusable};
use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs};
use kvm_ioctls::Kvm;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::error::{Error, Result};
use tiny::{CODE, DATA, KERNEL_CODE, Left, Tiny, USER_DATA};

/// After this the host is taken for one that does not come back.
const WATCHDOG: Duration = Duration::from_secs(10);
/// `dec rcx; jnz`
const LOOP: [u8; 5] = [0x48, 0xff, 0xc9, 0x75, 0xfb];
/// Half a millisecond at the speed of an emulator.
const TURNS: u64 = 1000;

/// One instruction of each kind, the ones that no kernel can do without first. `rdi` points at zeros.
const INSTRUCTIONS: [(&str, &[u8]); 8] = [
    ("clac", &[0x0f, 0x01, 0xca]),
    ("xsave", &[0x0f, 0xae, 0x27]),
    ("cmpxchg16b", &[0x48, 0x0f, 0xc7, 0x0f]),
    ("int3", &[0xcc]),
    ("popcnt", &[0xf3, 0x0f, 0xb8, 0xc1]),
    ("lsl", &[0x0f, 0x03, 0xc1]),
    ("fwait", &[0x9b]),
    ("rdrand", &[0x0f, 0xc7, 0xf0]),
];
const SYSCALL: [u8; 2] = [0x0f, 0x05];
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;

/// Asks KVM. Instructions are tried until `budget` is used up (each refusal costs this kind of host a line in its log, and
/// that a millisecond): the verdict is there long before.
pub fn probe(budget: Duration) -> Probe {
    let began = Instant::now();
    let ring0 = watched(move |stop| ring0(began + budget, stop));
    Probe {
        ring0,
        took_us: began.elapsed().as_micros() as u64,
    }
}

/// Whether a machine on this host is to have the assist; `Auto` asks KVM.
pub fn needs_assist(mode: AssistMode) -> Result<bool> {
    match mode {
        AssistMode::On => Ok(true),
        AssistMode::Off => Ok(false),
        // the first refusal is answer enough
        AssistMode::Auto => match probe(Duration::from_millis(1)).ring0 {
            Ring0::Native(_) => Ok(false),
            Ring0::Emulated(_) => Ok(true),
            Ring0::Unusable(Unusable { cause, fix }) => Err(Error::NoVms { cause, fix }),
        },
    }
}

fn watched(body: impl FnOnce(Arc<AtomicBool>) -> Ring0 + Send + 'static) -> Ring0 {
    let stop = Arc::new(AtomicBool::new(false));
    if let Err(e) = register_signal_handler(SIGRTMIN(), on_kick) {
        return obstacles::unusable(format!("a signal handler: {e}"), "");
    }
    let (answer, answered) = mpsc::channel();
    let theirs = stop.clone();
    let thread = std::thread::spawn(move || drop(answer.send(body(theirs))));
    let ring0 = answered.recv_timeout(WATCHDOG).ok();
    stop.store(true, Ordering::Release);
    while !thread.is_finished() {
        let _ = thread.kill(SIGRTMIN());
        std::thread::sleep(Duration::from_micros(100));
    }
    let _ = thread.join();
    ring0.unwrap_or_else(|| {
        obstacles::unusable(
            format!("KVM did not come back from a few instructions in {WATCHDOG:?}"),
            "use another host or kernel, and report this one",
        )
    })
}

/// Interrupts KVM_RUN; that is all.
extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn ring0(deadline: Instant, stop: Arc<AtomicBool>) -> Ring0 {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(e) => return obstacles::opening(e.errno()),
    };
    if let Some(obstacle) = obstacles::missing(&kvm) {
        return obstacle;
    }
    match observe(&kvm, deadline, stop) {
        Ok(ring0) => ring0,
        Err(error) => obstacles::running(&error),
    }
}

fn observe(kvm: &Kvm, deadline: Instant, stop: Arc<AtomicBool>) -> Result<Ring0> {
    let mut machine = Tiny::new(kvm, 1, stop)?;
    let instructions_per_second = speed(&mut machine)?;
    let syscall = syscall_enters_the_kernel(&mut machine)?;
    let (mut refused, mut untried) = (Vec::new(), Vec::new());
    for (name, code) in INSTRUCTIONS {
        if Instant::now() >= deadline {
            untried.push(name.to_owned());
            continue;
        }
        let registers = kvm_regs {
            rdi: DATA,
            rax: 1,
            ..kvm_regs::default()
        };
        machine.prepare(code, &registers)?;
        if machine.go()? == Left::Refused {
            refused.push(name.to_owned());
        }
    }
    // The speed is told, but decides nothing: a processor in software, or a busy one, is as slow as an emulator for a moment.
    if refused.is_empty() && syscall {
        return Ok(Ring0::Native(NativeRing0 {
            instructions_per_second,
        }));
    }
    Ok(Ring0::Emulated(EmulatedRing0 {
        instructions_per_second,
        refused,
        untried,
        syscall,
    }))
}

/// Instructions in a second, without what entering and leaving the machine takes.
fn speed(machine: &mut Tiny) -> Result<u64> {
    let mut turns = |count: u64| -> Result<Duration> {
        let registers = kvm_regs {
            rcx: count,
            ..kvm_regs::default()
        };
        machine.prepare(&LOOP, &registers)?;
        let began = Instant::now();
        match machine.go()? {
            Left::Halted => Ok(began.elapsed()),
            other => Err(Error::Internal(format!(
                "a loop left the machine: {other:?}"
            ))),
        }
    };
    // the first entry pays for what KVM makes lazily; the shorter of two is the less disturbed
    turns(1)?;
    let empty = turns(1)?.min(turns(1)?);
    let full = turns(TURNS)?.min(turns(TURNS)?);
    let nanos = full.saturating_sub(empty).as_nanos().max(1) as u64;
    Ok(2 * TURNS * 1_000_000_000 / nanos)
}

fn syscall_enters_the_kernel(machine: &mut Tiny) -> Result<bool> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    };
    let star = u64::from(KERNEL_CODE) << 32 | u64::from(USER_DATA - 8) << 48;
    let msrs = Msrs::from_entries(&[entry(MSR_STAR, star), entry(MSR_LSTAR, CODE)])
        .map_err(|_| Error::Internal("two MSRs do not fit into a list of MSRs".into()))?;
    machine
        .fd
        .set_msrs(&msrs)
        .map_err(Error::kvm("KVM_SET_MSRS"))?;
    machine.prepare(&[], &kvm_regs::default())?;
    machine.prepare_user(&SYSCALL, &kvm_regs::default())?;
    Ok(machine.go()? == Left::Halted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The module that runs guests says what they run on.
    #[test]
    fn the_verdict_is_that_of_the_host() {
        let loaded = |module: &str| std::path::Path::new("/sys/module").join(module).exists();
        let ring0 = probe(Duration::from_secs(1)).ring0;
        match &ring0 {
            Ring0::Emulated(e) => {
                assert!(loaded("kvm_pvm"), "{ring0:?}");
                assert!(e.untried.is_empty() && !e.syscall, "{e:?}");
                assert!(e.refused.iter().any(|name| name == "cmpxchg16b"), "{e:?}");
                assert!(e.instructions_per_second > 10_000, "{e:?}");
            }
            Ring0::Native(_) => assert!(!loaded("kvm_pvm"), "{ring0:?}"),
            Ring0::Unusable(u) if !std::path::Path::new("/dev/kvm").exists() => {
                eprintln!("skipped: {}", u.cause);
            }
            Ring0::Unusable(_) => panic!("{ring0:?}"),
        }
    }

    #[test]
    fn what_hangs_is_cut_off() {
        let began = Instant::now();
        let ring0 = watched(|stop| {
            let (silent, _other) = std::os::unix::net::UnixStream::pair().expect("socketpair");
            while !stop.load(Ordering::Acquire) {
                let _ = std::io::Read::read(&mut &silent, &mut [0]);
            }
            unreachable!("the watchdog's answer comes first")
        });
        assert!(matches!(ring0, Ring0::Unusable(_)), "{ring0:?}");
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}
