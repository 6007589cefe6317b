//! Counters of a container's network interfaces.
//!
//! Must not know: who made the interfaces.

use std::collections::BTreeMap;

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Result};

/// Counters of one interface since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the fields say it
pub struct NetStats {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// The interfaces a process sees, loopback excepted, by name.
pub fn proc_net_stats(pid: Pid) -> Result<BTreeMap<String, NetStats>> {
    let path = format!("/proc/{pid}/net/dev");
    Ok(parse(
        &std::fs::read_to_string(&path).step_at("read", &path)?,
    ))
}

/// `name: bytes packets errs drop fifo frame compressed multicast` and the same eight for sending.
fn parse(text: &str) -> BTreeMap<String, NetStats> {
    text.lines()
        .filter_map(|line| {
            let (name, numbers) = line.split_once(':')?;
            let n: Vec<u64> = numbers
                .split_whitespace()
                .map_while(|n| n.parse().ok())
                .collect();
            let name = name.trim();
            if name == "lo" || n.len() < 12 {
                return None;
            }
            let stats = NetStats {
                rx_bytes: n[0],
                rx_packets: n[1],
                rx_errors: n[2],
                rx_dropped: n[3],
                tx_bytes: n[8],
                tx_packets: n[9],
                tx_errors: n[10],
                tx_dropped: n[11],
            };
            Some((name.to_string(), stats))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_where_the_kernel_puts_them() {
        let text = "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 10 1 0 0 0 0 0 0 10 1 0 0 0 0 0 0
  eth0: 100 2 3 4 0 0 0 0 500 6 7 8 0 0 0 0
";
        let stats = parse(text);
        assert_eq!(stats.len(), 1);
        let eth0 = stats["eth0"];
        assert_eq!(
            (
                eth0.rx_bytes,
                eth0.rx_dropped,
                eth0.tx_bytes,
                eth0.tx_dropped
            ),
            (100, 4, 500, 8)
        );
    }
}
