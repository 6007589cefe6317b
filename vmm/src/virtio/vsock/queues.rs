//! The device's thread: moves packets between the guest's queues and the muxer.
//!
//! ```text
//! tx queue ──▶ header, checked ──▶ Muxer::take          a full muxer leaves them in the queue
//! rx queue ◀── header and data ◀── Muxer::give            no buffer: hosts' sockets are not read
//! event queue ◀── TRANSPORT_RESET, once, after a restore
//! ```

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::{ControlOperation, EpollEvent};
use vmm_sys_util::eventfd::EventFd;

use super::muxer::Muxer;
use super::packet::{HEADER_LEN, Header};
use super::receive::Receiver;
use crate::error::{Error, Result};
use crate::virtio::chain::{self, Popped};
use crate::virtio::slices::Slices;
use crate::virtio::used;
use crate::virtio::{Activation, Interrupt};

const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
/// The token of the worker's stop; the kicks have their queues' numbers.
const STOP: u64 = 3;
/// Packets in one direction before the other one, and the hosts, get a turn.
const TURN: usize = 256;
/// Descriptors of a packet: Linux uses one or two.
const CHAIN_MAX: usize = 64;
/// How often to look whether the driver has answered: the kick for it may be suppressed.
const LOOK_AGAIN_MS: i32 = 5;
/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`.
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

/// What the device's thread owns.
pub struct Work {
    /// The connections.
    pub muxer: Muxer,
    /// Memory, queues, kicks, interrupt.
    pub activation: Activation,
    /// Whether the guest knows that its connections are gone.
    pub restored: Restored,
}

/// After a restore. A connection that began before the driver has dropped the old ones would be dropped with them, so the
/// host's clients wait until it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restored {
    /// The guest is to be told.
    Untold,
    /// It was, when the driver had made so many event buffers available; it gives this one back when it is done.
    Told {
        /// The event queue's available index.
        available: u16,
        /// A driver that gives nothing back is waited for until then.
        until: Instant,
    },
    /// Nothing is to be done (any more).
    Done,
}

impl Work {
    /// Serves until `stop` is signalled.
    pub fn run(&mut self, stop: &EventFd) -> Result<()> {
        let stop = (stop, STOP);
        self.activation
            .watch(self.muxer.epoll(), stop, || ControlOperation::Add)?;
        let served = self.serve();
        self.activation
            .watch(self.muxer.epoll(), stop, || ControlOperation::Delete)?;
        served
    }

    fn serve(&mut self) -> Result<()> {
        let memory = self.activation.memory.clone();
        let mut receiver = Receiver::new(&memory);
        let served = self.serve_with(&mut receiver);
        if let Some(queue) = self.activation.queues.get_mut(RX) {
            receiver.finish(queue);
        }
        served
    }

    fn serve_with(&mut self, receiver: &mut Receiver) -> Result<()> {
        if self.restored == Restored::Done {
            // here, not at the activation: a vCPU's thread may not accept
            self.muxer.open(Instant::now());
        }
        // whoever waits for a connection from the guest is known before the guest's packets are looked at
        for _ in 0..2 * TURN {
            match self.wait(Some(0))? {
                Woken::Stop => return Ok(()),
                Woken::Nothing => break,
                Woken::Events => {}
            }
        }
        loop {
            let more = self.turn(receiver)?;
            let timeout_ms = match self.muxer.alarm() {
                _ if more => Some(0),
                _ if matches!(self.restored, Restored::Told { .. }) => Some(LOOK_AGAIN_MS),
                Some(alarm) => {
                    let left = alarm.saturating_duration_since(Instant::now());
                    Some(left.as_millis().min(60_000) as i32 + 1)
                }
                None => None,
            };
            if let Woken::Stop = self.wait(timeout_ms)? {
                return Ok(());
            }
            self.muxer.expire(Instant::now());
        }
    }

    fn wait(&mut self, timeout_ms: Option<i32>) -> Result<Woken> {
        let mut events = [EpollEvent::default(); 64];
        let count = match self
            .muxer
            .epoll()
            .wait(timeout_ms.unwrap_or(-1), &mut events)
        {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(Woken::Events),
            Err(e) => return Err(Error::io("the vsock device's epoll")(e)),
        };
        let now = Instant::now();
        for event in &events[..count] {
            match event.data() {
                STOP => return Ok(Woken::Stop),
                token @ ..STOP => drop(self.activation.kicks[token as usize].read()),
                token => self.muxer.happened(token, event.event_set(), now),
            }
        }
        Ok(if count == 0 {
            Woken::Nothing
        } else {
            Woken::Events
        })
    }

    /// Moves what can be moved; whether there was more than fits into one turn.
    fn turn(&mut self, receiver: &mut Receiver) -> Result<bool> {
        match self.restored {
            Restored::Untold => self.tell_transport_reset()?,
            Restored::Told { available, until } => self.look_for_answer(available, until)?,
            Restored::Done => {}
        }
        let more_tx = self.transmit()?;
        let more_rx = self.receive(receiver)?;
        Ok(more_tx || more_rx)
    }

    /// Packets for the guest; whether some are left although there may be buffers for them, or refusals that have left made
    /// room for packets of the guest.
    fn receive(&mut self, receiver: &mut Receiver) -> Result<bool> {
        let Activation {
            memory,
            queues,
            interrupt,
            ..
        } = &mut self.activation;
        let Some(queue) = queues.get_mut(RX).filter(|q| q.ready()) else {
            return Ok(false);
        };
        let was_full = self.muxer.is_full();
        let before = queue.next_used();
        let used = receiver.turn(queue, &mut self.muxer, TURN)?;
        if used::wants_interrupt(queue, memory, before)? {
            interrupt.used()?;
        }
        Ok(used >= TURN || (was_full && !self.muxer.is_full()))
    }

    /// The guest's packets; whether some are left although they could be taken.
    fn transmit(&mut self) -> Result<bool> {
        let Activation {
            memory,
            queues,
            interrupt,
            ..
        } = &mut self.activation;
        let Some(queue) = queues.get_mut(TX).filter(|q| q.ready()) else {
            return Ok(false);
        };
        let mut taken = 0;
        while taken < TURN && !self.muxer.is_full() {
            let Some(chain) = chain::pop(queue, memory, CHAIN_MAX)? else {
                if queue.enable_notification(memory).map_err(chain::broken)? {
                    continue;
                }
                break;
            };
            taken += 1;
            let head = match chain {
                Popped::Chain(chain) => {
                    let mut header = Slices::new(&chain.readable, memory)?;
                    let payload = header.split_off(HEADER_LEN);
                    let mut bytes = [0; HEADER_LEN];
                    if header.copy_to(&mut bytes) == HEADER_LEN {
                        self.muxer.take(&Header::parse(&bytes), payload);
                    }
                    chain.head
                }
                Popped::Malformed(head) => head,
            };
            queue.add_used(memory, head, 0).map_err(chain::broken)?;
        }
        if taken > 0 {
            notify(queue, memory, interrupt)?;
        }
        Ok(taken == TURN)
    }

    fn look_for_answer(&mut self, available: u16, until: Instant) -> Result<()> {
        let Activation { memory, queues, .. } = &self.activation;
        let now = Instant::now();
        let answered = match queues.get(EVENT) {
            Some(queue) => {
                let index = queue.avail_idx(memory, Ordering::Acquire);
                index.map_err(chain::broken)?.0 != available
            }
            None => true,
        };
        if answered || now >= until {
            self.restored = Restored::Done;
            self.muxer.open(now);
        }
        Ok(())
    }

    fn tell_transport_reset(&mut self) -> Result<()> {
        let Activation {
            memory,
            queues,
            interrupt,
            ..
        } = &mut self.activation;
        let Some(queue) = queues.get_mut(EVENT).filter(|q| q.ready()) else {
            return Ok(());
        };
        while let Some(chain) = chain::pop(queue, memory, CHAIN_MAX)? {
            let (head, len) = match chain {
                Popped::Chain(chain) => {
                    let written = chain.writable.write(memory, &TRANSPORT_RESET);
                    (chain.head, written)
                }
                Popped::Malformed(head) => (head, 0),
            };
            queue
                .add_used(memory, head, len as u32)
                .map_err(chain::broken)?;
            if len == TRANSPORT_RESET.len() {
                let available = queue.avail_idx(memory, Ordering::Acquire);
                self.restored = Restored::Told {
                    available: available.map_err(chain::broken)?.0,
                    until: Instant::now() + PATIENCE,
                };
                return notify(queue, memory, interrupt);
            }
        }
        Ok(())
    }
}

enum Woken {
    Stop,
    Nothing,
    Events,
}

fn notify(queue: &mut Queue, memory: &GuestMemoryMmap, interrupt: &Interrupt) -> Result<()> {
    if queue.needs_notification(memory).map_err(chain::broken)? {
        interrupt.used()?;
    }
    Ok(())
}
