//! When the phases of the boot were reached. One process is one microVM, so there is one list of them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use caisson_protocol::vmm::BootTimes;

/// A phase, reached once; the fields of [`BootTimes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The first vCPU enters the guest.
    Built,
    /// A driver has taken its device.
    Drivers,
    /// The first disk was read.
    Root,
    /// The agent connected to the host.
    Agent,
}

static BEGIN: OnceLock<Instant> = OnceLock::new();
/// Microseconds since the beginning, and one more: 0 is "not yet".
static REACHED: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
static PRINT: AtomicBool = AtomicBool::new(false);
static EXITS: AtomicU64 = AtomicU64::new(0);
static EXITS_AT_AGENT: AtomicU64 = AtomicU64::new(0);

/// The process begins.
pub fn begin() {
    BEGIN.get_or_init(Instant::now);
}

/// From now on each phase is printed when it is reached, as a line of JSON on standard error.
pub fn print() {
    PRINT.store(true, Ordering::Relaxed);
}

/// A vCPU left the guest.
pub fn count_exit() {
    EXITS.fetch_add(1, Ordering::Relaxed);
}

/// A phase is reached; later calls change nothing and cost one load.
pub fn reached(phase: Phase) {
    let at = &REACHED[phase as usize];
    if at.load(Ordering::Relaxed) != 0 {
        return;
    }
    let now = BEGIN.get_or_init(Instant::now).elapsed().as_micros() as u64 + 1;
    let first = at
        .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed)
        .is_ok();
    let exits = EXITS.load(Ordering::Relaxed);
    if first && phase == Phase::Agent {
        EXITS_AT_AGENT.store(exits, Ordering::Relaxed);
    }
    if first && PRINT.load(Ordering::Relaxed) {
        let name = match phase {
            Phase::Built => "built",
            Phase::Drivers => "drivers",
            Phase::Root => "root",
            Phase::Agent => "agent",
        };
        let at_us = now - 1;
        eprintln!(r#"{{"phase":"{name}","at_us":{at_us},"exits":{exits}}}"#);
    }
}

/// What has been reached so far.
pub fn times() -> BootTimes {
    let at = |phase: Phase| {
        REACHED[phase as usize]
            .load(Ordering::Relaxed)
            .checked_sub(1)
    };
    let agent_us = at(Phase::Agent);
    BootTimes {
        built_us: at(Phase::Built),
        drivers_us: at(Phase::Drivers),
        root_us: at(Phase::Root),
        agent_us,
        agent_exits: agent_us.map(|_| EXITS_AT_AGENT.load(Ordering::Relaxed)),
    }
}
