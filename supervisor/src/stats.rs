//! Counters of the workload, from its cgroup, and of the supervisor itself.

use std::fs;

use caisson_protocol::{BlockUse, Error, INIT, NetworkUse, ResourceUse, Response, Stats};

use crate::jail_error;
use crate::supervisor::Supervisor;

impl Supervisor {
    pub(crate) fn stats(&self) -> Result<Response, Error> {
        let sandbox = self.made()?;
        let workload = workload(&sandbox.cgroup)?;
        let init = self.processes.get(INIT).filter(|p| !p.is_over());
        let networks = match init {
            // A process that ends meanwhile has no interfaces any more.
            Some(init) => caisson_jail::proc_net_stats(init.pid).unwrap_or_default(),
            None => Default::default(),
        };
        let networks = networks
            .into_iter()
            .map(|(name, n)| {
                let counters = NetworkUse {
                    rx_bytes: n.rx_bytes,
                    rx_packets: n.rx_packets,
                    rx_errors: n.rx_errors,
                    rx_dropped: n.rx_dropped,
                    tx_bytes: n.tx_bytes,
                    tx_packets: n.tx_packets,
                    tx_errors: n.tx_errors,
                    tx_dropped: n.tx_dropped,
                };
                (name, counters)
            })
            .collect();
        Ok(Response::Stats(Box::new(Stats {
            workload,
            overhead: overhead(),
            networks,
        })))
    }
}

fn workload(cgroup: &caisson_jail::cgroup::Cgroup) -> Result<ResourceUse, Error> {
    let counters = cgroup.stats().map_err(jail_error)?;
    let block = counters.block.into_iter().map(|b| BlockUse {
        major: b.major,
        minor: b.minor,
        read_bytes: b.read_bytes,
        write_bytes: b.write_bytes,
        read_ops: b.read_ops,
        write_ops: b.write_ops,
    });
    Ok(ResourceUse {
        cpu_total_ns: counters.cpu_total_ns,
        cpu_user_ns: counters.cpu_user_ns,
        cpu_system_ns: counters.cpu_system_ns,
        cpu_periods: counters.cpu_periods,
        cpu_throttled_periods: counters.cpu_throttled_periods,
        cpu_throttled_ns: counters.cpu_throttled_ns,
        memory_bytes: counters.memory_bytes,
        memory_peak_bytes: counters.memory_peak_bytes,
        memory_limit_bytes: counters.memory_limit_bytes,
        memory_detail: counters.memory_detail,
        memory_failures: counters.memory_failures,
        pids: counters.pids,
        pids_limit: counters.pids_limit,
        block: block.collect(),
    })
}

/// What this process costs: its processor time and memory, where what all shims share counts in proportion.
fn overhead() -> ResourceUse {
    let mut own = ResourceUse {
        pids: Some(1),
        ..ResourceUse::default()
    };
    if let Ok(usage) = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF) {
        let ns = |t: nix::sys::time::TimeVal| {
            t.tv_sec() as u64 * 1_000_000_000 + t.tv_usec() as u64 * 1_000
        };
        let (user, system) = (ns(usage.user_time()), ns(usage.system_time()));
        own.cpu_user_ns = Some(user);
        own.cpu_system_ns = Some(system);
        own.cpu_total_ns = Some(user + system);
    }
    if let Ok(rollup) = fs::read_to_string("/proc/self/smaps_rollup") {
        for (ours, theirs) in [("rss", "Rss"), ("pss", "Pss"), ("anonymous", "Anonymous")] {
            if let Some(bytes) = kibibytes(&rollup, theirs) {
                own.memory_detail.insert(ours.into(), bytes);
            }
        }
        own.memory_bytes = own.memory_detail.get("pss").copied();
    }
    own
}

/// A `Name:   123 kB` line in bytes.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()
        .map(|n| n * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_supervisor_has_a_size_and_a_name_that_begins_another_is_not_mistaken_for_it() {
        let text = "Pss_Dirty:  4 kB\nPss:       12 kB\n";
        assert_eq!(kibibytes(text, "Pss"), Some(12 * 1024));
        assert_eq!(kibibytes(text, "Rss"), None);
        assert!(overhead().memory_bytes.is_some_and(|b| b > 4096));
    }
}
