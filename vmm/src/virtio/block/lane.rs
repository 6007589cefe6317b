//! One queue of a disk and the thread that serves it.
//!
//! ```text
//! pop ─▶ malformed: back with nothing ─▶ limiter says wait: unpop, set the timer, sleep
//!    └─▶ parse ─▶ perform, synchronously ─▶ give back ─▶ interrupt, when the guest wants one
//! ```
//!
//! Nothing is in flight between two requests, so a stop leaves all that is not done in the queue.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use super::Shared;
use super::request::{Request, SEGMENTS_MAX};
use crate::error::{Error, Result};
use crate::timing::{self, Phase};
use crate::virtio::Interrupt;
use crate::virtio::chain::{self, Popped};
use crate::worker::Worker;

/// A header and a status around the data.
const DESCRIPTORS_MAX: usize = SEGMENTS_MAX as usize + 2;

/// What the thread owns.
pub struct Lane {
    pub queue: Queue,
    pub kick: EventFd,
    pub memory: GuestMemoryMmap,
    pub interrupt: Interrupt,
    pub shared: Arc<Shared>,
}

impl Lane {
    /// Serves the queue until it is stopped.
    pub fn spawn(self, name: &str) -> Result<Worker<Lane>> {
        Worker::<Lane>::spawn_loop(name, self, |lane, stop| lane.run(stop))
    }

    fn run(&mut self, stop: &EventFd) -> Result<()> {
        let mut timer = TimerFd::new().map_err(|e| Error::io("timerfd")(e.into()))?;
        let epoll = Epoll::new().map_err(Error::io("epoll"))?;
        let watched = [stop.as_raw_fd(), self.kick.as_raw_fd(), timer.as_raw_fd()];
        const STOP: u64 = 0;
        const KICK: u64 = 1;
        for (token, fd) in watched.into_iter().enumerate() {
            let event = EpollEvent::new(EventSet::IN, token as u64);
            epoll
                .ctl(ControlOperation::Add, fd, event)
                .map_err(Error::io("epoll"))?;
        }
        let mut ready = [EpollEvent::default(); 3];
        // requests may have been waiting since before the activation
        let mut waits = self.serve(stop)?;
        loop {
            if let Some(wait) = waits {
                timer
                    .reset(wait, None)
                    .map_err(|e| Error::io("timerfd")(e.into()))?;
            }
            let count = match epoll.wait(-1, &mut ready) {
                Ok(count) => count,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Error::io("epoll")(e)),
            };
            for token in ready[..count].iter().map(EpollEvent::data) {
                match token {
                    STOP => return Ok(()),
                    KICK => drop(self.kick.read()),
                    // the timer; it has run out, so this does not block
                    _ => drop(timer.wait()),
                }
            }
            waits = self.serve(stop)?;
        }
    }

    /// Does what waits in the queue; returns early when it is to stop, and with a time when the limiter says so.
    fn serve(&mut self, stop: &EventFd) -> Result<Option<Duration>> {
        let Lane {
            queue,
            memory,
            interrupt,
            shared,
            ..
        } = self;
        loop {
            queue
                .disable_notification(&*memory)
                .map_err(chain::broken)?;
            while let Some(popped) = chain::pop(queue, memory, DESCRIPTORS_MAX)? {
                let (head, written) = match popped {
                    Popped::Malformed(head) => (head, 0),
                    Popped::Chain(chain) => {
                        let head = chain.head;
                        let request = Request::parse(chain, memory);
                        let bytes = request.as_ref().map_or(0, Request::bytes);
                        if let Err(wait) = shared.limiter().take(bytes, Instant::now()) {
                            shared.counters.throttle();
                            chain::unpop(queue);
                            return Ok(Some(wait));
                        }
                        let perform = |request: Request| {
                            let disk = shared.disk();
                            request.perform(memory, &disk, &shared.serial, &shared.counters)
                        };
                        (head, request.map_or(0, perform))
                    }
                };
                timing::reached(Phase::Root);
                if chain::give_back(queue, memory, head, written)? {
                    interrupt.used()?;
                }
                if stop.read().is_ok() {
                    // the loop around has to see it as well
                    stop.write(1).map_err(Error::io("eventfd"))?;
                    return Ok(None);
                }
            }
            if !queue.enable_notification(&*memory).map_err(chain::broken)? {
                return Ok(None);
            }
        }
    }
}
