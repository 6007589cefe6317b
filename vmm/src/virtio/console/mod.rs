//! A console (virtio 1.2, section 5.3), one port, output only: `/dev/hvc0`. Linux hands over up to 16 bytes at once and leaves
//! the guest once for them, where the serial port costs two exits a byte.

use std::io::Write;

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::chain::{self, Buffers, Popped};
use super::{Activation, Device, Interrupt};
use crate::console_log::ConsoleLog;
use crate::error::{Error, Result};
use crate::worker::Worker;

const KIND: u32 = 3;
/// Receive, which is never answered, and transmit.
const QUEUE_SIZES: [u16; 2] = [16, 64];
const TRANSMIT: usize = 1;
const CHAIN_MAX: usize = 64;
/// Chains before the thread looks whether it is to stop.
const TURN: usize = 64;
/// The most that one chain is read of; Linux sends a page at most.
const WRITE_MAX: u64 = 64 << 10;

/// The device.
pub struct Console {
    log: ConsoleLog,
    worker: Option<Worker<(Work, Vec<EventFd>)>>,
}

struct Work {
    log: ConsoleLog,
    memory: GuestMemoryMmap,
    queues: Vec<Queue>,
    interrupt: Interrupt,
    features: u64,
    /// Signalled for another turn.
    again: EventFd,
}

impl Console {
    /// A console that writes to `log`.
    pub fn new(log: ConsoleLog) -> Self {
        Console { log, worker: None }
    }
}

impl Device for Console {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        super::F_EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// Size and ports come with features that are not offered.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<()> {
        let Activation {
            memory,
            queues,
            kicks,
            interrupt,
            features,
        } = activation;
        let Some(kick) = kicks.get(TRANSMIT) else {
            return Err(Error::Stopped("a console without its queues".into()));
        };
        // what was offered before the activation has no kick any more
        kick.write(1).map_err(Error::io("a device's kick"))?;
        let work = Work {
            log: self.log.clone(),
            memory,
            queues,
            interrupt,
            features,
            again: kick.try_clone().map_err(Error::io("a device's kick"))?,
        };
        let serve = |work: &mut Work, event| match event {
            TRANSMIT => work.serve(),
            _ => Ok(()),
        };
        self.worker = Some(Worker::spawn("console", kicks, work, serve)?);
        Ok(())
    }

    fn stop(&mut self) -> Option<Activation> {
        let (work, kicks) = self.worker.take()?.stop()?;
        Some(Activation {
            memory: work.memory,
            queues: work.queues,
            kicks,
            interrupt: work.interrupt,
            features: work.features,
        })
    }
}

impl Work {
    fn serve(&mut self) -> Result<()> {
        let Some(queue) = self.queues.get_mut(TRANSMIT).filter(|q| q.ready()) else {
            return Ok(());
        };
        let mut interrupt = false;
        let mut taken = 0;
        while taken < TURN {
            let Some(popped) = chain::pop(queue, &self.memory, CHAIN_MAX)? else {
                let more = queue.enable_notification(&self.memory);
                if more.map_err(chain::broken)? {
                    continue;
                }
                break;
            };
            taken += 1;
            let head = match popped {
                Popped::Chain(chain) => {
                    write(&mut self.log, &self.memory, chain.readable);
                    chain.head
                }
                Popped::Malformed(head) => head,
            };
            interrupt |= chain::give_back(queue, &self.memory, head, 0)?;
        }
        if interrupt {
            self.interrupt.used()?;
        }
        if taken == TURN {
            self.again.write(1).map_err(Error::io("a device's kick"))?;
        }
        Ok(())
    }
}

fn write(log: &mut ConsoleLog, memory: &GuestMemoryMmap, mut output: Buffers) {
    let mut left = output.len().min(WRITE_MAX);
    let mut piece = [0; 4096];
    while left > 0 {
        let len = left.min(piece.len() as u64);
        left -= len;
        let Some(front) = output.take_front(len) else {
            return;
        };
        let piece = &mut piece[..len as usize];
        if !front.read(memory, piece) || log.write_all(piece).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use vm_memory::GuestAddress;

    use super::*;
    use crate::virtio::testing::{self, Driver, Part};

    #[test]
    fn output_reaches_the_log_and_a_flood_of_it_ends_at_the_limit() {
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let out = File::from(OwnedFd::from(writer));
        let log = ConsoleLog::new(Some(out), 1000, false).expect("a log");
        let memory = testing::memory();
        let mut console = Console::new(log.clone());
        let mut driver = Driver::new(&memory, &mut console);
        driver.request(
            1,
            &[Part::Readable(b"Kernel "), Part::Readable(b"panic - ")],
        );
        driver.request(1, &[Part::Raw(GuestAddress(u64::MAX - 8), 64, 0)]);
        driver.request(1, &[Part::Readable(b"no init")]);
        assert_eq!(log.panic().as_deref(), Some("Kernel panic - no init"));

        let activation = console.stop().expect("it was active");
        driver.offer(1, &[Part::Readable(&[b'x'; 10_000])]);
        console.activate(activation).expect("it goes on");
        driver.used(1);
        assert_eq!(log.dropped_bytes(), 10_000 + 22 - 1000);
        // one chain may be as long as the guest likes: no more than its beginning is read
        driver.request(1, &[Part::Raw(GuestAddress(0), 32 << 20, 0)]);
        assert_eq!(log.dropped_bytes(), 10_000 + 22 - 1000 + WRITE_MAX);
        for _ in 0..300 {
            driver.offer(1, &[Part::Readable(b"y")]);
            driver.kick(1);
            driver.used(1);
        }
        drop((console, driver, log));
        let mut read = String::new();
        reader.read_to_string(&mut read).expect("a pipe");
        assert!(read.starts_with("Kernel panic - no initxxx"), "{read}");
        assert_eq!(read.len(), 1000);
    }
}
