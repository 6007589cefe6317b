//! Entropy (virtio 1.2, section 5.4): fills whatever the guest offers with the host's random bytes.

use std::fs::File;
use std::io::Read;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::{Activation, Device, Interrupt};
use crate::error::{Error, Result};
use crate::worker::Worker;

const KIND: u32 = 4;
const QUEUE_SIZES: [u16; 1] = [64];
/// The most that one request is given.
const REQUEST_MAX: usize = 4096;

/// The device.
#[derive(Default)]
pub struct Rng {
    worker: Option<Worker>,
}

impl Device for Rng {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        super::F_EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<()> {
        let Activation {
            memory,
            mut queues,
            kicks,
            interrupt,
            ..
        } = activation;
        let source = File::open("/dev/urandom").map_err(Error::io("/dev/urandom"))?;
        let mut queue = queues.remove(0);
        self.worker = Some(Worker::spawn("rng", kicks, move |_| {
            serve(&mut queue, &memory, &interrupt, &source)
        })?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

fn serve(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    interrupt: &Interrupt,
    mut source: &File,
) -> Result<()> {
    let fault = |e: virtio_queue::Error| Error::Stopped(format!("the entropy queue: {e}"));
    loop {
        queue.disable_notification(memory).map_err(fault)?;
        while let Some(chain) = queue.pop_descriptor_chain(memory) {
            let head = chain.head_index();
            let mut given = 0;
            for descriptor in chain.writable() {
                let mut bytes = vec![0; (descriptor.len() as usize).min(REQUEST_MAX - given)];
                source
                    .read_exact(&mut bytes)
                    .map_err(Error::io("/dev/urandom"))?;
                if memory.write_slice(&bytes, descriptor.addr()).is_err() {
                    break;
                }
                given += bytes.len();
            }
            queue.add_used(memory, head, given as u32).map_err(fault)?;
            if queue.needs_notification(memory).map_err(fault)? {
                interrupt.used()?;
            }
        }
        if !queue.enable_notification(memory).map_err(fault)? {
            return Ok(());
        }
    }
}
