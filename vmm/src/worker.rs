//! Threads of devices. A [`Worker`] owns what its device works with; stopping it hands that back.
//!
//! ```text
//! prepare(n) ─▶ n threads wait in the pool ─▶ Worker::spawn: one takes a job ─▶ stop(): the job's state comes back,
//!                                             the thread waits in the pool again
//! ```
//!
//! Threads are made before the process confines itself: afterwards none of its threads may make another, so [`seal`]
//! turns a spawn beyond the prepared ones into an error. A new thread's first act is the given entry: its system call
//! filter.

use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::error::{Error, Result};

const STOP: u64 = u64::MAX;
/// Much of a device's work has its buffers on the heap.
const STACK_BYTES: usize = 256 << 10;

/// The first act of a thread: its system call filter.
pub type Entry = Arc<dyn Fn() -> Result<()> + Send + Sync>;

/// Work, which returns how its result is delivered: behind the thread's return to the pool, so that whoever has the result
/// finds the thread there.
type Job = Box<dyn FnOnce() -> Delivery + Send>;
type Delivery = Box<dyn FnOnce() + Send>;

struct Pool {
    waiting: Vec<Sender<Job>>,
    sealed: bool,
}

static POOL: Mutex<Pool> = Mutex::new(Pool {
    waiting: Vec::new(),
    sealed: false,
});

/// Makes `count` threads that wait for work; each calls `entry` first.
pub fn prepare(count: usize, entry: &Entry) -> Result<()> {
    for _ in 0..count {
        let sender = start(Some(entry.clone()))?;
        pool().waiting.push(sender);
    }
    Ok(())
}

/// From now on no thread is made.
pub fn seal() {
    pool().sealed = true;
}

fn pool() -> std::sync::MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread that waits for jobs; returns when it is ready, that is, behind its entry.
fn start(entry: Option<Entry>) -> Result<Sender<Job>> {
    let (sender, jobs) = channel::<Job>();
    let (ready, is_ready) = sync_channel(1);
    let again = sender.clone();
    let body = move || {
        let entered = entry.map_or(Ok(()), |entry| entry());
        let failed = entered.is_err();
        let _ = ready.send(entered);
        if failed {
            return;
        }
        while let Ok(job) = jobs.recv() {
            let deliver = job();
            name_thread("idle");
            pool().waiting.push(again.clone());
            deliver();
        }
    };
    std::thread::Builder::new()
        .name("caisson-idle".into())
        .stack_size(STACK_BYTES)
        .spawn(body)
        .map_err(Error::io("a device's thread"))?;
    is_ready
        .recv()
        .unwrap_or_else(|_| Err(Error::Internal("a device's thread died".into())))?;
    Ok(sender)
}

fn name_thread(name: &str) {
    // 15 bytes and a zero are kept
    let mut name = format!("caisson-{name}").into_bytes();
    name.truncate(15);
    name.push(0);
    crate::sys::name_thread(&name);
}

/// A running thread that owns a `T`; dropping it stops the thread and waits for it.
pub struct Worker<T> {
    stop: EventFd,
    state: Receiver<T>,
}

impl<T: Send + 'static> Worker<T> {
    /// Calls `serve` with an event's number whenever that event is signalled. An error of `serve` ends the work: the
    /// device is dead to its guest, the machine goes on.
    pub fn spawn(
        name: &str,
        events: Vec<EventFd>,
        state: T,
        mut serve: impl FnMut(&mut T, usize) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let epoll = Epoll::new().map_err(Error::io("epoll"))?;
        for (token, event) in events.iter().enumerate() {
            watch(&epoll, event, token as u64)?;
        }
        Self::spawn_loop(name, state, move |state, stop| {
            watch(&epoll, stop, STOP)?;
            let mut ready = [EpollEvent::default(); 8];
            loop {
                let count = match epoll.wait(-1, &mut ready) {
                    Ok(count) => count,
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(e) => return Err(Error::io("epoll")(e)),
                };
                for token in ready[..count].iter().map(EpollEvent::data) {
                    if token == STOP {
                        return Ok(());
                    }
                    let _ = events[token as usize].read();
                    serve(state, token as usize)?;
                }
            }
        })
    }

    /// Runs `body`, which has a loop of its own and returns soon after the event is signalled (it need not read it).
    pub fn spawn_loop(
        name: &str,
        mut state: T,
        body: impl FnOnce(&mut T, &EventFd) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let stop =
            EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::io("eventfd"))?;
        let stopped = stop.try_clone().map_err(Error::io("eventfd"))?;
        let (back, receiver) = sync_channel(1);
        let name = name.to_owned();
        let job: Job = Box::new(move || {
            name_thread(&name);
            if let Err(error) = body(&mut state, &stopped) {
                eprintln!("caisson-vmm: device {name}: {error}");
            }
            // nobody waits for the state of a worker that was dropped
            Box::new(move || drop(back.send(state))) as Delivery
        });
        let waiting = {
            let mut pool = pool();
            let waiting = pool.waiting.pop();
            if waiting.is_none() && pool.sealed {
                return Err(Error::Internal(
                    "a device asks for more threads than it announced".into(),
                ));
            }
            waiting
        };
        let thread = waiting.map_or_else(|| start(None), Ok)?;
        thread
            .send(job)
            .map_err(|_| Error::Internal("a device's thread died".into()))?;
        Ok(Worker {
            stop,
            state: receiver,
        })
    }
}

impl<T> Worker<T> {
    /// Stops the thread after what it is doing; hands back what it owned. `None` when the thread died of a bug.
    pub fn stop(self) -> Option<T> {
        self.halt()
    }

    fn halt(&self) -> Option<T> {
        let _ = self.stop.write(1);
        self.state.recv().ok()
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.halt();
    }
}

fn watch(epoll: &Epoll, event: &EventFd, token: u64) -> Result<()> {
    let fd = std::os::fd::AsRawFd::as_raw_fd(event);
    let interest = EpollEvent::new(EventSet::IN, token);
    epoll
        .ctl(ControlOperation::Add, fd, interest)
        .map_err(Error::io("epoll"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_worker_hands_back_what_it_owned_and_its_thread_works_again() {
        for round in 0..3 {
            let event = EventFd::new(libc::EFD_NONBLOCK).expect("eventfd");
            let kick = event.try_clone().expect("eventfd");
            let (served, was_served) = channel();
            let worker = Worker::spawn("test", vec![event], round, move |state, token| {
                *state += 10;
                served.send(token).expect("the test listens");
                Ok(())
            })
            .expect("a worker");
            kick.write(1).expect("eventfd");
            assert_eq!(was_served.recv(), Ok(0));
            assert_eq!(worker.stop(), Some(round + 10));
        }
    }

    #[test]
    fn a_worker_that_failed_still_hands_back_what_it_owned() {
        let event = EventFd::new(libc::EFD_NONBLOCK).expect("eventfd");
        event.write(1).expect("eventfd");
        let worker = Worker::spawn("test", vec![event], 7, |_, _| {
            Err(Error::Internal("on purpose".into()))
        })
        .expect("a worker");
        assert_eq!(worker.stop(), Some(7));
    }
}
