//! What a virtual machine costs the host, set against what its workload uses.
//!
//! ```text
//!   overhead = (VMM + its helpers + this shim) − workload         processor time and memory, as the host counts them
//! ```

use std::fs;

use caisson_jail::cgroup::Cgroup;
use caisson_protocol::{ResourceUse, Stats};

use super::machine::Machine;

/// Fills in the host's side of what the agent told.
pub fn account(stats: &mut Stats, machine: &Machine, cgroup: &Cgroup) {
    let workload = &mut stats.workload;
    // Without a limit of its own it may use what its machine has.
    workload
        .memory_limit_bytes
        .get_or_insert(machine.memory_bytes);
    let pids = cgroup.pids().unwrap_or_default();
    let own = std::process::id() as i32;
    let all: Vec<i32> = pids.iter().map(|p| p.as_raw()).chain([own]).collect();
    let mut memory = 0;
    let (mut user, mut system) = (0, 0);
    let mut seen = 0;
    for pid in &all {
        let read = |name| fs::read_to_string(format!("/proc/{pid}/{name}"));
        let (Ok(stat), Ok(rollup)) = (read("stat"), read("smaps_rollup")) else {
            continue;
        };
        let (u, s) = cpu_ticks(&stat).unwrap_or_default();
        user += u;
        system += s;
        memory += proportional_bytes(&rollup).unwrap_or(0);
        seen += 1;
    }
    let ns_per_tick = ns_per_tick();
    let total = (user + system) * ns_per_tick;
    let spent = total.saturating_sub(workload.cpu_total_ns.unwrap_or(0));
    let mut overhead = ResourceUse {
        cpu_total_ns: Some(spent),
        memory_bytes: Some(memory.saturating_sub(workload.memory_bytes.unwrap_or(0))),
        pids: Some(seen),
        ..ResourceUse::default()
    };
    overhead.memory_detail.insert("pss".into(), memory);
    if let Some(counters) = machine.stats() {
        let detail = &mut overhead.memory_detail;
        detail.insert("guest_resident".into(), counters.guest_resident_bytes);
        detail.insert("guest_balloon".into(), counters.balloon_bytes);
    }
    overhead
        .memory_detail
        .insert("guest_memory".into(), machine.memory_bytes);
    stats.overhead = overhead;
}

/// User and system time of a process, in ticks, from its `stat`: behind the name, which may hold anything.
fn cpu_ticks(stat: &str) -> Option<(u64, u64)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // The 14th and 15th of the line; the first behind the name is the 3rd.
    Some((fields.get(11)?.parse().ok()?, fields.get(12)?.parse().ok()?))
}

fn proportional_bytes(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|l| l.strip_prefix("Pss:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn ns_per_tick() -> u64 {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
    let ticks = ticks.ok().flatten().and_then(|t| u64::try_from(t).ok());
    1_000_000_000 / ticks.filter(|t| *t > 0).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_brackets_is_no_field() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 250 31 0 0 20 0 1 0 5";
        assert_eq!(cpu_ticks(stat), Some((250, 31)));
        assert_eq!(cpu_ticks("7 (x) S 1"), None);
    }

    #[test]
    fn this_process_has_used_something() {
        let rollup = fs::read_to_string("/proc/self/smaps_rollup").expect("readable");
        assert!(proportional_bytes(&rollup).is_some_and(|b| b > 4096));
    }
}
