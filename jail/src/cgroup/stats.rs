//! What a cgroup has used, read from its control files. A missing controller leaves its numbers `None`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::Error;
use super::files;

/// CPU, memory, process and disk counters of a cgroup and all below it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// CPU time in nanoseconds.
    pub cpu_total_ns: Option<u64>,
    /// Of it in user mode.
    pub cpu_user_ns: Option<u64>,
    /// Of it in kernel mode.
    pub cpu_system_ns: Option<u64>,
    /// CPU bandwidth periods.
    pub cpu_periods: Option<u64>,
    /// Periods in which it was throttled.
    pub cpu_throttled_periods: Option<u64>,
    /// For how long it was throttled, nanoseconds.
    pub cpu_throttled_ns: Option<u64>,
    /// Bytes in use, page cache included.
    pub memory_bytes: Option<u64>,
    /// Highest value of `memory_bytes`.
    pub memory_peak_bytes: Option<u64>,
    /// The limit; `None` when unlimited.
    pub memory_limit_bytes: Option<u64>,
    /// Swap in use.
    pub swap_bytes: Option<u64>,
    /// `memory.stat` as the kernel gives it.
    pub memory_detail: BTreeMap<String, u64>,
    /// How often an allocation hit the limit.
    pub memory_failures: Option<u64>,
    /// Processes that the kernel killed for want of memory.
    pub oom_kills: Option<u64>,
    /// Processes and threads now.
    pub pids: Option<u64>,
    /// Their limit; `None` when unlimited.
    pub pids_limit: Option<u64>,
    /// Per block device.
    pub block: Vec<BlockStats>,
}

/// Counters of one block device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct BlockStats {
    pub major: u64,
    pub minor: u64,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub read_ops: u64,
    pub write_ops: u64,
}

/// v1 `cpu` and `cpuacct` (which may be one directory or two).
pub fn cpu_v1(cpu: Option<&Path>, cpuacct: Option<&Path>, stats: &mut Stats) -> Result<(), Error> {
    if let Some(dir) = cpu {
        bandwidth(dir, "throttled_time", 1, stats)?;
    }
    if let Some(dir) = cpuacct {
        stats.cpu_total_ns = files::read_number(&dir.join("cpuacct.usage"))?;
        stats.cpu_user_ns = files::read_number(&dir.join("cpuacct.usage_user"))?;
        stats.cpu_system_ns = files::read_number(&dir.join("cpuacct.usage_sys"))?;
        if stats.cpu_user_ns.is_none() {
            // Linux before 4.7: USER_HZ ticks, 100 a second on every architecture that we know.
            let ticks = |key| -> Result<_, Error> {
                Ok(files::read_key(&dir.join("cpuacct.stat"), key)?
                    .map(|t| t.saturating_mul(10_000_000)))
            };
            stats.cpu_user_ns = ticks("user")?;
            stats.cpu_system_ns = ticks("system")?;
        }
    }
    Ok(())
}

/// v2 `cpu.stat`, which is there without the controller too, then with times only.
pub fn cpu_v2(dir: &Path, stats: &mut Stats) -> Result<(), Error> {
    let pairs: BTreeMap<_, _> = files::read_pairs(&dir.join("cpu.stat"))?
        .into_iter()
        .collect();
    let ns = |key: &str| pairs.get(key).map(|us| us.saturating_mul(1000));
    stats.cpu_total_ns = ns("usage_usec");
    stats.cpu_user_ns = ns("user_usec");
    stats.cpu_system_ns = ns("system_usec");
    bandwidth(dir, "throttled_usec", 1000, stats)
}

fn bandwidth(
    dir: &Path,
    throttled: &str,
    ns_per_unit: u64,
    stats: &mut Stats,
) -> Result<(), Error> {
    for (key, value) in files::read_pairs(&dir.join("cpu.stat"))? {
        match key.as_str() {
            "nr_periods" => stats.cpu_periods = Some(value),
            "nr_throttled" => stats.cpu_throttled_periods = Some(value),
            key if key == throttled => {
                stats.cpu_throttled_ns = Some(value.saturating_mul(ns_per_unit))
            }
            _ => {}
        }
    }
    Ok(())
}

/// v1 `memory`.
pub fn memory_v1(dir: &Path, stats: &mut Stats) -> Result<(), Error> {
    stats.memory_bytes = files::read_number(&dir.join("memory.usage_in_bytes"))?;
    stats.memory_peak_bytes = files::read_number(&dir.join("memory.max_usage_in_bytes"))?;
    // Unlimited is the largest multiple of the page size that an i64 holds.
    stats.memory_limit_bytes = files::read_number(&dir.join("memory.limit_in_bytes"))?
        .filter(|&l| l < (i64::MAX as u64) / 65536 * 65536);
    // When swap is not allowed the bound of both is met first, and counts by itself.
    let failures = files::read_number(&dir.join("memory.failcnt"))?;
    let with_swap = files::read_number(&dir.join("memory.memsw.failcnt"))?;
    stats.memory_failures = failures.map(|n| n + with_swap.unwrap_or(0));
    stats.memory_detail = files::read_pairs(&dir.join("memory.stat"))?
        .into_iter()
        .collect();
    stats.swap_bytes = files::read_number(&dir.join("memory.memsw.usage_in_bytes"))?
        .map(|both| both.saturating_sub(stats.memory_bytes.unwrap_or(0)));
    stats.oom_kills = oom_kills_v1(dir)?;
    Ok(())
}

/// v2 `memory`.
pub fn memory_v2(dir: &Path, stats: &mut Stats) -> Result<(), Error> {
    stats.memory_bytes = files::read_number(&dir.join("memory.current"))?;
    stats.memory_peak_bytes = files::read_number(&dir.join("memory.peak"))?;
    stats.memory_limit_bytes = files::read_number(&dir.join("memory.max"))?;
    stats.swap_bytes = files::read_number(&dir.join("memory.swap.current"))?;
    stats.memory_detail = files::read_pairs(&dir.join("memory.stat"))?
        .into_iter()
        .collect();
    stats.memory_failures = files::read_key(&dir.join("memory.events"), "max")?;
    stats.oom_kills = oom_kills_v2(dir)?;
    Ok(())
}

/// v1 counts each cgroup for itself: summed over all below.
pub fn oom_kills_v1(dir: &Path) -> Result<Option<u64>, Error> {
    let Some(mut sum) = files::read_key(&dir.join("memory.oom_control"), "oom_kill")? else {
        return Ok(None);
    };
    for child in files::children(dir)? {
        sum += oom_kills_v1(&child)?.unwrap_or(0);
    }
    Ok(Some(sum))
}

/// v2 counts what happens below, too.
pub fn oom_kills_v2(dir: &Path) -> Result<Option<u64>, Error> {
    files::read_key(&dir.join("memory.events"), "oom_kill")
}

/// `pids`, the same on both versions.
pub fn pids(dir: &Path, stats: &mut Stats) -> Result<(), Error> {
    stats.pids = files::read_number(&dir.join("pids.current"))?;
    stats.pids_limit = files::read_number(&dir.join("pids.max"))?;
    Ok(())
}

/// v1 `blkio`: of the scheduler where it counts, of the throttling layer otherwise.
pub fn block_v1(dir: &Path, stats: &mut Stats) -> Result<(), Error> {
    for prefix in ["blkio.bfq.io", "blkio.io", "blkio.throttle.io"] {
        let text =
            |what: &str| files::read_if_there(&dir.join(format!("{prefix}_{what}_recursive")));
        let (bytes, operations) = (text("service_bytes")?, text("serviced")?);
        stats.block = parse_block_v1(&bytes.unwrap_or_default(), &operations.unwrap_or_default());
        if !stats.block.is_empty() {
            break;
        }
    }
    Ok(())
}

/// v2 `io`.
pub fn block_v2(dir: &Path, stats: &mut Stats) -> Result<(), Error> {
    stats.block = parse_block_v2(&files::read_if_there(&dir.join("io.stat"))?.unwrap_or_default());
    Ok(())
}

/// Lines `MAJOR:MINOR OPERATION NUMBER` and a last line `Total NUMBER`.
fn parse_block_v1(bytes: &str, operations: &str) -> Vec<BlockStats> {
    let mut devices: BTreeMap<(u64, u64), BlockStats> = BTreeMap::new();
    for (text, is_bytes) in [(bytes, true), (operations, false)] {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(device), Some(what), Some(value)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            let (Some((major, minor)), Ok(value)) = (parse_device(device), value.parse()) else {
                continue;
            };
            let entry = devices.entry((major, minor)).or_insert(BlockStats {
                major,
                minor,
                ..BlockStats::default()
            });
            match (what, is_bytes) {
                ("Read", true) => entry.read_bytes = value,
                ("Write", true) => entry.write_bytes = value,
                ("Read", false) => entry.read_ops = value,
                ("Write", false) => entry.write_ops = value,
                _ => {}
            }
        }
    }
    devices.into_values().collect()
}

/// Lines `MAJOR:MINOR rbytes=N wbytes=N rios=N wios=N …`.
fn parse_block_v2(text: &str) -> Vec<BlockStats> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (major, minor) = parse_device(words.next()?)?;
            let mut entry = BlockStats {
                major,
                minor,
                ..BlockStats::default()
            };
            let mut any = false;
            for (key, value) in words.filter_map(|w| w.split_once('=')) {
                let Ok(value) = value.parse() else { continue };
                any = true;
                match key {
                    "rbytes" => entry.read_bytes = value,
                    "wbytes" => entry.write_bytes = value,
                    "rios" => entry.read_ops = value,
                    "wios" => entry.write_ops = value,
                    _ => {}
                }
            }
            any.then_some(entry)
        })
        .collect()
}

fn parse_device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(major: u64, minor: u64, numbers: [u64; 4]) -> BlockStats {
        let [read_bytes, write_bytes, read_ops, write_ops] = numbers;
        BlockStats {
            major,
            minor,
            read_bytes,
            write_bytes,
            read_ops,
            write_ops,
        }
    }

    #[test]
    fn block_counters_of_v1() {
        let bytes = "8:0 Read 4096\n8:0 Write 8192\n8:0 Sync 1\n254:1 Write 5\nTotal 12293\n";
        let operations = "8:0 Read 1\n8:0 Write 2\n254:1 Write 3\nTotal 6\n";
        assert_eq!(
            parse_block_v1(bytes, operations),
            [block(8, 0, [4096, 8192, 1, 2]), block(254, 1, [0, 5, 0, 3])]
        );
    }

    #[test]
    fn block_counters_of_v2_leave_out_devices_without_numbers() {
        let text = "8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0\n8:0 \n253:0 \n";
        assert_eq!(
            parse_block_v2(text),
            [block(8, 16, [1459200, 314773504, 192, 353])]
        );
    }

    #[test]
    fn files_of_v2() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let put =
            |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("write");
        put(
            "cpu.stat",
            "usage_usec 7\nuser_usec 4\nsystem_usec 3\nnr_periods 9\nnr_throttled 2\nthrottled_usec 5\n",
        );
        put("memory.current", "4096\n");
        put("memory.max", "max\n");
        put("memory.stat", "anon 1\ninactive_file 2\n");
        put(
            "memory.events",
            "low 0\nhigh 0\nmax 11\noom 3\noom_kill 2\n",
        );
        let mut stats = Stats::default();
        cpu_v2(dir.path(), &mut stats).expect("cpu");
        memory_v2(dir.path(), &mut stats).expect("memory");
        pids(dir.path(), &mut stats).expect("pids");
        assert_eq!(
            (stats.cpu_total_ns, stats.cpu_user_ns, stats.cpu_system_ns),
            (Some(7000), Some(4000), Some(3000))
        );
        assert_eq!(
            (
                stats.cpu_periods,
                stats.cpu_throttled_periods,
                stats.cpu_throttled_ns
            ),
            (Some(9), Some(2), Some(5000))
        );
        assert_eq!(
            (
                stats.memory_bytes,
                stats.memory_limit_bytes,
                stats.memory_peak_bytes
            ),
            (Some(4096), None, None)
        );
        assert_eq!(
            (stats.memory_failures, stats.oom_kills, stats.pids),
            (Some(11), Some(2), None)
        );
        assert_eq!(stats.memory_detail["inactive_file"], 2);
    }
}
