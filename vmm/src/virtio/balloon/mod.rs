//! A balloon (virtio 1.2, section 5.5): memory that the guest lends to the host.
//!
//! ```text
//! SetBalloon ─▶ configuration: num_pages ─▶ the guest takes pages from itself ─▶ inflate queue: page numbers ─▶ discarded
//!                                             and back ◀───────────────────────  deflate queue: they fault in again
//! free page reporting: the guest says unasked what is free ────────────────────▶ reporting queue: ranges ─▶ discarded
//! ```
//!
//! The guest may take pages out again when it runs out of memory. What it says is believed only as far as it concerns its own
//! memory.

mod pages;
mod sys;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use caisson_protocol::vmm::VmStats;
use serde_json::{Value, json};
use vm_memory::GuestMemoryMmap;

use self::pages::PAGE;
use super::chain::{self, Chain};
use super::slices::Slices;
use super::{Activation, Changed, Command, Device, F_EVENT_IDX};
use crate::error::{Error, Result};
use crate::worker::Worker;

const KIND: u32 = 5;
/// The driver takes pages out again rather than to run out of memory.
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// It reports free pages unasked.
const F_REPORTING: u64 = 1 << 5;
const INFLATE: usize = 0;
/// Queues that are not offered are not counted.
const REPORTING: usize = 2;
const QUEUE_SIZES: [u16; 3] = [128, 128, 64];
const CHAIN_MAX: usize = 64;
/// Bytes of page numbers in one request: Linux sends 256 numbers.
const LIST_MAX: u64 = 16 << 10;
/// Where the driver writes how many pages it has handed over.
const ACTUAL: u64 = 4;

/// The device.
pub struct Balloon {
    memory_pages: u32,
    /// What the host asks for.
    target_pages: u32,
    /// What the guest says.
    actual_pages: Arc<AtomicU32>,
    worker: Option<Worker<Activation>>,
}

impl Balloon {
    /// An empty balloon for a guest with so much memory.
    pub fn new(memory_bytes: u64) -> Self {
        Balloon {
            memory_pages: u32::try_from(memory_bytes / PAGE).unwrap_or(u32::MAX),
            target_pages: 0,
            actual_pages: Arc::default(),
            worker: None,
        }
    }
}

impl Device for Balloon {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        F_EVENT_IDX | F_DEFLATE_ON_OOM | F_REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 8];
        config[..4].copy_from_slice(&self.target_pages.to_le_bytes());
        config[4..].copy_from_slice(&self.actual_pages.load(Relaxed).to_le_bytes());
        super::read_config_bytes(&config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL, Ok(pages)) = (offset, data.try_into()) {
            let pages = u32::from_le_bytes(pages).min(self.memory_pages);
            self.actual_pages.store(pages, Relaxed);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<()> {
        let kicks = activation.kick_all()?;
        let serve = |activation: &mut Activation, queue| {
            chain::turn(activation, queue, CHAIN_MAX, |chain, memory| {
                take(queue, chain, memory)
            })
        };
        self.worker = Some(Worker::spawn("balloon", kicks, activation, serve)?);
        Ok(())
    }

    fn stop(&mut self) -> Option<Activation> {
        self.worker.take()?.stop()
    }

    fn reset(&mut self) {
        drop(self.stop());
        self.actual_pages.store(0, Relaxed);
    }

    fn save(&self) -> Value {
        json!({ "target_pages": self.target_pages, "actual_pages": self.actual_pages.load(Relaxed) })
    }

    fn restore(&mut self, state: Value) -> Result<()> {
        let pages = |name: &str| {
            let pages = state.get(name).and_then(Value::as_u64);
            let pages = pages.and_then(|p| u32::try_from(p).ok());
            pages.filter(|p| *p <= self.memory_pages).ok_or_else(|| {
                Error::Snapshot(format!("it lacks the balloon's {name}, or has too many"))
            })
        };
        let (target, actual) = (pages("target_pages")?, pages("actual_pages")?);
        self.target_pages = target;
        self.actual_pages.store(actual, Relaxed);
        Ok(())
    }

    fn command(&mut self, command: &Command) -> Result<Changed> {
        let Command::SetBalloon(bytes) = command else {
            return Err(Error::NotThisDevice);
        };
        let pages = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX);
        if pages > self.memory_pages {
            let have = u64::from(self.memory_pages) * PAGE;
            return Err(Error::Refused(format!(
                "a balloon of {bytes} bytes: the guest has {have} bytes of memory"
            )));
        }
        self.target_pages = pages;
        Ok(Changed::Config)
    }

    fn count(&self, stats: &mut VmStats) {
        stats.balloon_bytes += u64::from(self.actual_pages.load(Relaxed)) * PAGE;
    }
}

fn take(queue: usize, chain: Chain, memory: &GuestMemoryMmap) -> Result<()> {
    match queue {
        INFLATE => {
            for run in pages::runs(&pages::list(memory, chain.readable, LIST_MAX)) {
                pages::discard_run(memory, run);
            }
        }
        REPORTING => pages::discard_ranges(Slices::new(&chain.writable, memory)?),
        // 1, deflate: its pages come back when the guest touches them
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::virtio::testing::{self, Driver, Part};

    const DEFLATE: usize = 1;

    const AT: u64 = 0x200_0000;

    fn filled(memory: &GuestMemoryMmap) {
        let page = vec![0xaa; 16 << 12];
        memory.write_slice(&page, GuestAddress(AT)).expect("memory");
    }

    /// Which of the 16 pages at `AT` still have something in them.
    fn kept(memory: &GuestMemoryMmap) -> Vec<u64> {
        let byte = |page: &u64| memory.read_obj::<u8>(GuestAddress(AT + page * PAGE));
        (0..16)
            .filter(|page| byte(page).expect("memory") != 0)
            .collect()
    }

    fn numbers(pages: &[u64]) -> Vec<u8> {
        let number = |page: &u64| ((AT / PAGE + page) as u32).to_le_bytes();
        pages.iter().flat_map(number).collect()
    }

    #[test]
    fn pages_in_the_balloon_are_given_to_the_host() {
        let memory = testing::memory();
        filled(&memory);
        let mut balloon = Balloon::new(64 << 20);
        let mut driver = Driver::new(&memory, &mut balloon);
        driver.request(INFLATE, &[Part::Readable(&numbers(&[3, 2, 1, 9, 10]))]);
        assert_eq!(kept(&memory), [0, 4, 5, 6, 7, 8, 11, 12, 13, 14, 15]);
        // not memory, not whole, not there
        let mut strange = u32::MAX.to_le_bytes().to_vec();
        strange.extend(0x000c_0000u32.to_le_bytes());
        strange.extend([1, 2]);
        driver.request(INFLATE, &[Part::Readable(&strange)]);
        driver.request(INFLATE, &[Part::Raw(GuestAddress(0), 60 << 20, 0)]);
        driver.request(DEFLATE, &[Part::Readable(&numbers(&[3, 2, 1, 9, 10]))]);
        assert_eq!(kept(&memory).len(), 11);
        memory
            .write_obj(1u8, GuestAddress(AT + PAGE))
            .expect("memory");
        assert_eq!(kept(&memory).len(), 12);
    }

    #[test]
    fn ranges_that_are_reported_as_free_are_given_to_the_host() {
        let memory = testing::memory();
        filled(&memory);
        let mut balloon = Balloon::new(64 << 20);
        let mut driver = Driver::new(&memory, &mut balloon);
        let range = |at, len| Part::Raw(GuestAddress(at), len, 2);
        driver.request(REPORTING, &[range(AT, 8192), range(AT + 4 * PAGE, 4096)]);
        assert_eq!(kept(&memory).len(), 13);
        // only what is whole: pages 8 and 9 of these
        driver.request(REPORTING, &[range(AT + 7 * PAGE + 1, 3 * 4096)]);
        assert_eq!(kept(&memory).len(), 11);
        driver.request(REPORTING, &[range(AT + 12 * PAGE + 10, 100)]);
        driver.request(REPORTING, &[range(u64::MAX - 4095, 4096)]);
        assert_eq!(kept(&memory).len(), 11);
    }

    #[test]
    fn the_host_sets_the_size_and_the_guest_says_how_far_it_came() {
        let mut balloon = Balloon::new(64 << 20);
        let changed = balloon.command(&Command::SetBalloon(5 << 20));
        assert_eq!(changed.expect("it fits"), Changed::Config);
        assert!(balloon.command(&Command::SetBalloon(65 << 20)).is_err());
        assert!(balloon.command(&Command::SetBalloon(u64::MAX)).is_err());
        let mut config = [0; 8];
        balloon.read_config(0, &mut config);
        assert_eq!(config, [0, 5, 0, 0, 0, 0, 0, 0]);
        let bytes = |balloon: &Balloon| {
            let mut stats = VmStats::default();
            balloon.count(&mut stats);
            stats.balloon_bytes
        };
        balloon.write_config(4, &100u32.to_le_bytes());
        balloon.write_config(0, &7u32.to_le_bytes());
        balloon.write_config(4, &[1]);
        assert_eq!(bytes(&balloon), 100 * PAGE);
        let mut restored = Balloon::new(64 << 20);
        restored.restore(balloon.save()).expect("it was saved");
        assert_eq!(
            (restored.target_pages, bytes(&restored)),
            (1280, 100 * PAGE)
        );
        assert!(Balloon::new(1 << 20).restore(balloon.save()).is_err());
        assert!(Balloon::new(1 << 20).restore(json!(7)).is_err());
        // more than there is
        balloon.write_config(4, &[0xff; 4]);
        assert_eq!(bytes(&balloon), 64 << 20);
    }
}
