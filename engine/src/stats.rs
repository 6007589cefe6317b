//! `GET /containers/ID/stats` and `/top`.
//!
//! Must not know: cgroups; where a number comes from.

use std::sync::Arc;
use std::time::Duration;

use caisson_api as api;
use caisson_runtime::{BlockUse, ResourceUse, Stats};
use futures_util::StreamExt as _;

use crate::container::{Container, Message, Paused};
use crate::error::Result;
use crate::options::StatsOptions;
use crate::records::View;
use crate::{Engine, Feed};

const EVERY: Duration = Duration::from_secs(1);

impl Engine {
    /// `GET /containers/ID/top`.
    pub async fn top(&self, id: &str, ps_args: &str) -> Result<api::TopResponse> {
        let container = self.inner.container(id)?;
        let sandbox = container
            .ask(|reply| Message::Sandbox {
                paused: Paused::Allowed,
                reply,
            })
            .await?;
        let table = sandbox.processes(ps_args).await?;
        self.inner.container_event(&container.view(), "top", &[]);
        Ok(api::TopResponse {
            processes: table.rows,
            titles: table.titles,
        })
    }

    /// `GET /containers/ID/stats`: one item, or one a second. A container that does not run gives empty numbers.
    pub async fn stats(
        &self,
        id: &str,
        options: StatsOptions,
    ) -> Result<Feed<api::ContainerStats>> {
        let container = self.inner.container(id)?;
        if !options.stream {
            let mut first = None;
            if !options.one_shot && container.view().state.status.is_up() {
                first = Some(sample(&container).await);
                tokio::time::sleep(EVERY).await;
            }
            let mut now = sample(&container).await;
            if let Some(first) = first {
                now.preread = first.read;
                now.precpu_stats = first.cpu_stats;
            }
            return Ok(futures_util::stream::iter([now]).boxed());
        }
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let begin: (_, _, Option<api::ContainerStats>) = (container, ticks, None);
        let stream =
            futures_util::stream::unfold(begin, |(container, mut ticks, before)| async move {
                ticks.tick().await;
                if container.view().removed {
                    return None;
                }
                let mut now = sample(&container).await;
                if let Some(before) = before {
                    now.preread = before.read;
                    now.precpu_stats = before.cpu_stats;
                }
                Some((now.clone(), (container, ticks, Some(now))))
            });
        Ok(stream.boxed())
    }
}

async fn sample(container: &Arc<Container>) -> api::ContainerStats {
    let view = container.view();
    if !view.state.status.is_up() {
        return empty(&view);
    }
    let paused = Paused::Allowed;
    let Ok(sandbox) = container
        .ask(|reply| Message::Sandbox { paused, reply })
        .await
    else {
        return empty(&view);
    };
    match sandbox.stats().await {
        Ok(stats) => to_api(&view, &stats, system_cpu_ns(), cpus_online()),
        // It has ended in between.
        Err(_) => empty(&view),
    }
}

fn empty(view: &View) -> api::ContainerStats {
    api::ContainerStats {
        name: format!("/{}", view.name),
        id: view.id.clone(),
        ..api::ContainerStats::default()
    }
}

fn to_api(view: &View, stats: &Stats, system_cpu_ns: u64, online_cpus: u32) -> api::ContainerStats {
    let w = &stats.workload;
    api::ContainerStats {
        read: api::Timestamp::now(),
        pids_stats: api::PidsStats {
            current: w.pids.unwrap_or(0),
            limit: w.pids_limit.unwrap_or(0),
        },
        blkio_stats: blkio(&w.block),
        cpu_stats: api::CpuStats {
            cpu_usage: api::CpuUsage {
                total_usage: w.cpu_total_ns.unwrap_or(0),
                usage_in_kernelmode: w.cpu_system_ns.unwrap_or(0),
                usage_in_usermode: w.cpu_user_ns.unwrap_or(0),
                percpu_usage: Vec::new(),
            },
            system_cpu_usage: system_cpu_ns,
            online_cpus,
            throttling_data: api::ThrottlingData {
                periods: w.cpu_periods.unwrap_or(0),
                throttled_periods: w.cpu_throttled_periods.unwrap_or(0),
                throttled_time: w.cpu_throttled_ns.unwrap_or(0),
            },
        },
        memory_stats: memory(w),
        name: format!("/{}", view.name),
        id: view.id.clone(),
        networks: stats
            .networks
            .iter()
            .filter(|(name, _)| *name != "lo")
            .map(|(name, n)| {
                let n = api::NetworkStats {
                    rx_bytes: n.rx_bytes,
                    rx_packets: n.rx_packets,
                    rx_errors: n.rx_errors,
                    rx_dropped: n.rx_dropped,
                    tx_bytes: n.tx_bytes,
                    tx_packets: n.tx_packets,
                    tx_errors: n.tx_errors,
                    tx_dropped: n.tx_dropped,
                };
                (name.clone(), n)
            })
            .collect(),
        overhead: Some(api::OverheadStats {
            memory_bytes: stats.overhead.memory_bytes.unwrap_or(0),
            cpu_total_ns: stats.overhead.cpu_total_ns.unwrap_or(0),
        }),
        ..api::ContainerStats::default()
    }
}

fn memory(w: &ResourceUse) -> api::MemoryStats {
    api::MemoryStats {
        usage: w.memory_bytes.unwrap_or(0),
        max_usage: w.memory_peak_bytes.unwrap_or(0),
        stats: w.memory_detail.clone(),
        failcnt: w.memory_failures.unwrap_or(0),
        limit: w.memory_limit_bytes.unwrap_or_else(host_memory_bytes),
    }
}

fn blkio(devices: &[BlockUse]) -> api::BlkioStats {
    let entry = |d: &BlockUse, op: &str, value| api::BlkioEntry {
        major: d.major,
        minor: d.minor,
        op: op.into(),
        value,
    };
    let bytes = devices
        .iter()
        .flat_map(|d| {
            [
                entry(d, "read", d.read_bytes),
                entry(d, "write", d.write_bytes),
            ]
        })
        .collect();
    let ops = devices
        .iter()
        .flat_map(|d| [entry(d, "read", d.read_ops), entry(d, "write", d.write_ops)])
        .collect();
    api::BlkioStats {
        io_service_bytes_recursive: Some(bytes),
        io_serviced_recursive: Some(ops),
        ..api::BlkioStats::default()
    }
}

fn cpus_online() -> u32 {
    u32::try_from(std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
        .unwrap_or(1)
}

fn host_memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok())
        .map_or(0, |kib| kib << 10)
}

/// CPU time of the whole host since boot: what a container's share is measured against.
fn system_cpu_ns() -> u64 {
    const TICKS_PER_SECOND: u64 = 100;
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: u64 = text
        .lines()
        .next()
        .and_then(|l| l.strip_prefix("cpu "))
        .map(|l| {
            l.split_ascii_whitespace()
                .take(7)
                .filter_map(|n| n.parse::<u64>().ok())
                .sum()
        })
        .unwrap_or(0);
    ticks.saturating_mul(1_000_000_000 / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_arrive_where_docker_has_them() {
        let stats = Stats {
            workload: ResourceUse {
                cpu_total_ns: Some(5),
                memory_bytes: Some(7),
                memory_limit_bytes: Some(9),
                pids: Some(3),
                block: vec![BlockUse {
                    major: 8,
                    minor: 1,
                    read_bytes: 11,
                    write_ops: 2,
                    ..BlockUse::default()
                }],
                ..ResourceUse::default()
            },
            networks: [
                ("lo".to_string(), Default::default()),
                ("eth0".to_string(), Default::default()),
            ]
            .into(),
            ..Stats::default()
        };
        let s = to_api(&crate::test_support::view("running"), &stats, 100, 2);
        assert_eq!(
            (
                s.cpu_stats.cpu_usage.total_usage,
                s.cpu_stats.system_cpu_usage
            ),
            (5, 100)
        );
        assert_eq!(
            (
                s.memory_stats.usage,
                s.memory_stats.limit,
                s.pids_stats.current
            ),
            (7, 9, 3)
        );
        assert_eq!(
            s.blkio_stats.io_service_bytes_recursive.unwrap()[0].value,
            11
        );
        assert_eq!(s.networks.keys().collect::<Vec<_>>(), ["eth0"]);
    }

    #[test]
    fn the_host_is_readable() {
        assert!(host_memory_bytes() > 0 && system_cpu_ns() > 0);
    }
}
