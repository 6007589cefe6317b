//! Entropy (virtio 1.2, section 5.4): fills whatever the guest offers with the host's random bytes.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use virtio_queue::QueueT;

use super::chain::{self, Popped, broken};
use super::{Activation, Device};
use crate::error::{Error, Result};
use crate::worker::Worker;

const KIND: u32 = 4;
const QUEUE_SIZES: [u16; 1] = [64];
/// Buffers of one request.
const DESCRIPTORS_MAX: usize = 64;
/// The most that one request is given.
const REQUEST_MAX: usize = 4096;

/// The device.
pub struct Rng {
    source: Arc<File>,
    worker: Option<Worker<Work>>,
}

struct Work {
    source: Arc<File>,
    activation: Activation,
}

impl Rng {
    /// Opens the host's random bytes.
    pub fn new() -> Result<Self> {
        let source = File::open("/dev/urandom").map_err(Error::io("/dev/urandom"))?;
        Ok(Rng {
            source: Arc::new(source),
            worker: None,
        })
    }
}

impl Device for Rng {
    fn kind(&self) -> u32 {
        KIND
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn activate(&mut self, activation: Activation) -> Result<()> {
        let kicks = activation.kick_all()?;
        let work = Work {
            source: self.source.clone(),
            activation,
        };
        self.worker = Some(Worker::spawn("rng", kicks, work, Work::serve)?);
        Ok(())
    }

    fn stop(&mut self) -> Option<Activation> {
        Some(self.worker.take()?.stop()?.activation)
    }
}

impl Work {
    fn serve(&mut self, queue: usize) -> Result<()> {
        let Activation {
            memory,
            queues,
            interrupt,
            ..
        } = &mut self.activation;
        let Some(queue) = queues.get_mut(queue).filter(|q| q.ready()) else {
            return Ok(());
        };
        loop {
            queue.disable_notification(&*memory).map_err(broken)?;
            while let Some(popped) = chain::pop(queue, memory, DESCRIPTORS_MAX)? {
                let (head, given) = match popped {
                    Popped::Malformed(head) => (head, 0),
                    Popped::Chain(chain) => {
                        let mut bytes = [0; REQUEST_MAX];
                        let wanted = chain.writable.len().min(REQUEST_MAX as u64) as usize;
                        self.source
                            .read_exact(&mut bytes[..wanted])
                            .map_err(Error::io("/dev/urandom"))?;
                        (chain.head, chain.writable.write(memory, &bytes[..wanted]))
                    }
                };
                if chain::give_back(queue, memory, head, given as u32)? {
                    interrupt.used()?;
                }
            }
            if !queue.enable_notification(&*memory).map_err(broken)? {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;
    use crate::virtio::testing::{self, Driver, Part};

    #[test]
    fn offered_buffers_are_filled_and_a_stop_keeps_what_waits() {
        let memory = testing::memory();
        let mut rng = Rng::new().expect("/dev/urandom");
        let mut driver = Driver::new(&memory, &mut rng);
        let used = driver.request(0, &[Part::Writable(64), Part::Writable(64)]);
        assert_eq!(used.len, 128);
        assert_ne!(used.written[..64], used.written[64..]);
        assert!(driver.interrupted());

        let activation = rng.stop().expect("it was active");
        assert!(rng.stop().is_none());
        let head = driver.offer(0, &[Part::Writable(16)]);
        driver.kick(0);
        assert_eq!(driver.try_used(0), None);
        rng.activate(activation).expect("it goes on");
        assert_eq!(driver.used(0).head, head);
    }

    #[test]
    fn a_buffer_outside_memory_is_used_with_nothing_in_it() {
        let memory = testing::memory();
        let mut rng = Rng::new().expect("/dev/urandom");
        let mut driver = Driver::new(&memory, &mut rng);
        let used = driver.request(0, &[Part::Raw(GuestAddress(u64::MAX - 8), 64, 2)]);
        assert_eq!(used.len, 0);
        let used = driver.request(0, &[Part::Writable(8)]);
        assert_eq!(used.len, 8);
    }
}
