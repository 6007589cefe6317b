//! The device's thread: takes turns at receiving and transmitting, and sleeps until there is something to do.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use virtio_queue::QueueT;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::receive::Receiver;
use super::tap::Tap;
use super::{Counters, transmit};
use crate::error::{Error, Result};
use crate::virtio::Activation;
use crate::virtio::chain;
use crate::virtio::rate::RateLimiter;
use crate::virtio::used;

/// Frames in one direction before the other gets its turn.
pub const TURN: usize = 64;

/// Tokens: the kicks have their queues' numbers.
const STOP: u64 = 2;
const TAP: u64 = 3;

/// When to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// At once: the turn is over, the work is not.
    Now,
    /// When something has happened.
    Event,
    /// Then, or when something has happened.
    At(Instant),
}

/// What lives as long as the device.
pub struct Host {
    tap: Tap,
    mtu: u16,
    epoll: Epoll,
    receive_rate: RateLimiter,
    transmit_rate: RateLimiter,
    counters: Arc<Counters>,
}

/// What the thread owns.
pub struct Work {
    /// The host's side.
    pub host: Host,
    /// The guest's.
    pub activation: Activation,
}

impl Host {
    /// Watches the tap.
    pub fn new(
        tap: Tap,
        mtu: u16,
        [receive_rate, transmit_rate]: [RateLimiter; 2],
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let interest = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        let event = EpollEvent::new(interest, TAP);
        epoll.ctl(ControlOperation::Add, tap.file().as_raw_fd(), event)?;
        Ok(Host {
            tap,
            mtu,
            epoll,
            receive_rate,
            transmit_rate,
            counters,
        })
    }
}

/// What has happened, besides kicks.
#[derive(Default)]
struct Woken {
    stopped: bool,
    /// The tap may have a frame.
    readable: bool,
    /// It may have room for one.
    writable: bool,
}

impl Host {
    fn wait(&self, kicks: &[EventFd], timeout_ms: i32) -> Result<Woken> {
        let mut events = [EpollEvent::default(); 4];
        let count = match self.epoll.wait(timeout_ms, &mut events) {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            Err(e) => return Err(Error::io("a network device's epoll")(e)),
        };
        let mut woken = Woken::default();
        for event in &events[..count] {
            match event.data() {
                STOP => woken.stopped = true,
                TAP => {
                    woken.readable |= event.event_set() != EventSet::OUT;
                    woken.writable |= event.event_set() != EventSet::IN;
                }
                token @ ..STOP => drop(kicks[token as usize].read()),
                _ => {}
            }
        }
        Ok(woken)
    }
}

impl Work {
    /// Serves until `stop` is signalled.
    pub fn run(&mut self, stop: &EventFd) -> Result<()> {
        let stop = (stop, STOP);
        self.activation
            .watch(&self.host.epoll, stop, || ControlOperation::Add)?;
        let served = self.serve();
        self.activation
            .watch(&self.host.epoll, stop, || ControlOperation::Delete)?;
        served
    }

    fn serve(&mut self) -> Result<()> {
        let Work { host, activation } = self;
        let Activation {
            memory,
            queues,
            kicks,
            interrupt,
            features,
        } = activation;
        let [rx, tx] = &mut queues[..] else {
            return Err(Error::Queue("a network device has two".into()));
        };
        if !rx.ready() || !tx.ready() {
            return Err(Error::Queue("it is not set up".into()));
        }
        let offload = host.tap.set_offload(*features);
        offload.map_err(Error::io("TUNSETOFFLOAD"))?;
        let mut receiver = Receiver::new(memory, *features, host.mtu);
        let mut writable = true;
        let served = loop {
            let before = rx.next_used();
            let received = receiver.turn(rx, &host.tap, &mut host.receive_rate, &host.counters);
            let received_any = used::wants_interrupt(rx, memory, before)?;
            let transmitted = transmit::turn(
                tx,
                memory,
                &host.tap,
                &mut writable,
                &mut host.transmit_rate,
                &host.counters,
            );
            // one interrupt for both directions
            if tx.needs_notification(memory).map_err(chain::broken)? || received_any {
                interrupt.used()?;
            }
            let (received, transmitted) = match (received, transmitted) {
                (Ok(received), Ok(transmitted)) => (received, transmitted),
                (Err(error), _) | (_, Err(error)) => break Err(error),
            };
            let woken = match host.wait(kicks, timeout_ms(received, transmitted)) {
                Ok(woken) => woken,
                Err(error) => break Err(error),
            };
            receiver.readable |= woken.readable;
            writable |= woken.writable;
            if woken.stopped {
                break Ok(());
            }
        };
        let before = rx.next_used();
        receiver.finish(rx)?;
        if used::wants_interrupt(rx, memory, before)? {
            interrupt.used()?;
        }
        served
    }
}

fn timeout_ms(received: Next, transmitted: Next) -> i32 {
    let wait = |next| match next {
        Next::Now => 0,
        Next::Event => -1,
        Next::At(at) => {
            let left = at.saturating_duration_since(Instant::now());
            left.as_millis().min(1000) as i32 + 1
        }
    };
    match (wait(received), wait(transmitted)) {
        (-1, wait) | (wait, -1) => wait,
        (one, other) => one.min(other),
    }
}
