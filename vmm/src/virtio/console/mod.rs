//! A console (virtio 1.2, section 5.3), one port, output only: `/dev/hvc0`. Linux hands over up to 16 bytes at once and leaves
//! the guest once for them, where the serial port costs two exits a byte.

use std::io::Write;

use vm_memory::GuestMemoryMmap;

use super::chain::{self, Buffers};
use super::{Activation, Device};
use crate::console_log::ConsoleLog;
use crate::error::Result;
use crate::worker::Worker;

const KIND: u32 = 3;
/// Receive, which is never answered, and transmit.
const QUEUE_SIZES: [u16; 2] = [16, 64];
const TRANSMIT: usize = 1;
const CHAIN_MAX: usize = 64;
/// The most that one chain is read of; Linux sends a page at most.
const WRITE_MAX: u64 = 64 << 10;

/// The device.
pub struct Console {
    log: ConsoleLog,
    worker: Option<Worker<Work>>,
}

struct Work {
    log: ConsoleLog,
    activation: Activation,
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

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn activate(&mut self, activation: Activation) -> Result<()> {
        let kicks = activation.kick_all()?;
        let work = Work {
            log: self.log.clone(),
            activation,
        };
        self.worker = Some(Worker::spawn("console", kicks, work, Work::serve)?);
        Ok(())
    }

    fn stop(&mut self) -> Option<Activation> {
        Some(self.worker.take()?.stop()?.activation)
    }
}

impl Work {
    fn serve(&mut self, queue: usize) -> Result<()> {
        let Work { log, activation } = self;
        match queue {
            TRANSMIT => chain::turn(activation, queue, CHAIN_MAX, |chain, memory| {
                write(log, memory, chain.readable);
                Ok(())
            }),
            _ => Ok(()),
        }
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
