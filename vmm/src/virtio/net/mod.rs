//! A network device (virtio 1.2, section 5.1) on a tap of the host.
//!
//! ```text
//! guest ═ tx queue ═▶ transmit ─ writev ─▶ tap ─ bridge ─ …
//! guest ◀═ rx queue ═ receive  ◀─ readv ── tap                 one thread, the guest's memory is read and written in place
//! ```
//!
//! Checksums and segmentation are left to whoever is last: the header before each frame says what is still to be done, and
//! goes through as it is.

mod queues;
mod receive;
mod sys;
mod tap;
#[cfg(test)]
mod tests;
mod transmit;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use caisson_protocol::parse_mac;
use caisson_protocol::vmm::{self, NetStats, VmStats};

use self::queues::{Host, Work};
use self::tap::Tap;
use super::chain::F_INDIRECT_DESC;
use super::rate::RateLimiter;
use super::{Activation, Device, F_EVENT_IDX};
use crate::error::{Error, Result};
use crate::worker::Worker;

const KIND: u32 = 1;
/// Receive, transmit.
const QUEUE_SIZES: [u16; 2] = [256, 256];
/// `struct virtio_net_hdr_v1`.
const HEADER_LEN: usize = 12;
/// An Ethernet header with a VLAN tag.
const ETHERNET_LEN: usize = 18;
/// The largest frame, with its header.
const FRAME_MAX: usize = HEADER_LEN + ETHERNET_LEN + 65_535;
/// What IPv4 needs.
const MTU_MIN: u16 = 68;

/// Feature bits (section 5.1.3). GUEST: the driver takes such frames; otherwise the device does.
mod features {
    pub const CSUM: u64 = 1 << 0;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const GUEST_UFO: u64 = 1 << 10;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const HOST_UFO: u64 = 1 << 14;
    pub const MRG_RXBUF: u64 = 1 << 15;
}

/// The device.
pub struct Net {
    /// `struct virtio_net_config` up to the MTU.
    config: [u8; 12],
    counters: Arc<Counters>,
    /// Here while the device is stopped, otherwise with the worker.
    host: Option<Host>,
    worker: Option<Worker<Work>>,
}

#[derive(Default)]
struct Counters {
    rx_packets: AtomicU64,
    rx_bytes: AtomicU64,
    tx_packets: AtomicU64,
    tx_bytes: AtomicU64,
    tx_dropped: AtomicU64,
}

impl Counters {
    fn received(&self, bytes: u64) {
        self.rx_packets.fetch_add(1, Relaxed);
        self.rx_bytes.fetch_add(bytes, Relaxed);
    }

    fn transmitted(&self, bytes: u64) {
        self.tx_packets.fetch_add(1, Relaxed);
        self.tx_bytes.fetch_add(bytes, Relaxed);
    }

    fn transmit_dropped(&self) {
        self.tx_dropped.fetch_add(1, Relaxed);
    }
}

impl Net {
    /// Opens the tap of a spec.
    pub fn open(spec: &vmm::Net) -> Result<Self> {
        Self::new(spec, Tap::open(&spec.tap)?)
    }

    /// The same, with a socket that keeps messages apart in the tap's place.
    pub fn on_socket(spec: &vmm::Net, socket: OwnedFd) -> Result<Self> {
        Self::new(spec, Tap::played_by(socket)?)
    }

    fn new(spec: &vmm::Net, tap: Tap) -> Result<Self> {
        let unicast = |mac: &[u8; 6]| mac[0] & 1 == 0;
        let mac = parse_mac(&spec.mac).filter(unicast).ok_or_else(|| {
            Error::Spec(format!(
                "the network device's address {:?}: it must be aa:bb:cc:dd:ee:ff, and not a group's",
                spec.mac
            ))
        })?;
        if spec.mtu < MTU_MIN {
            let reason = format!("an MTU of {}: at least {MTU_MIN} are needed", spec.mtu);
            return Err(Error::Spec(reason));
        }
        let mut config = [0; 12];
        config[..6].copy_from_slice(&mac);
        config[10..].copy_from_slice(&spec.mtu.to_le_bytes());
        let counters = Arc::<Counters>::default();
        let now = Instant::now();
        let rates = [spec.receive_rate, spec.transmit_rate].map(|rate| RateLimiter::new(rate, now));
        let host = Host::new(tap, spec.mtu, rates, counters.clone())
            .map_err(Error::io("a network device"))?;
        Ok(Net {
            config,
            counters,
            host: Some(host),
            worker: None,
        })
    }
}

impl Device for Net {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        F_EVENT_IDX
            | F_INDIRECT_DESC
            | features::CSUM
            | features::GUEST_CSUM
            | features::MTU
            | features::MAC
            | features::GUEST_TSO4
            | features::GUEST_TSO6
            | features::GUEST_UFO
            | features::HOST_TSO4
            | features::HOST_TSO6
            | features::HOST_UFO
            | features::MRG_RXBUF
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_config_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<()> {
        let Some(host) = self.host.take() else {
            return Err(Error::Internal("a network device's thread died".into()));
        };
        let work = Work { host, activation };
        self.worker = Some(Worker::spawn_loop("net", work, Work::run)?);
        Ok(())
    }

    fn stop(&mut self) -> Option<Activation> {
        let work = self.worker.take()?.stop()?;
        self.host = Some(work.host);
        Some(work.activation)
    }

    fn count(&self, stats: &mut VmStats) {
        let counters = &self.counters;
        stats.nets.push(NetStats {
            rx_packets: counters.rx_packets.load(Relaxed),
            rx_bytes: counters.rx_bytes.load(Relaxed),
            // the host's kernel drops, and counts, what finds no buffer
            rx_dropped: 0,
            tx_packets: counters.tx_packets.load(Relaxed),
            tx_bytes: counters.tx_bytes.load(Relaxed),
            tx_dropped: counters.tx_dropped.load(Relaxed),
        });
    }
}
