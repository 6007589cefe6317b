//! A device's thread: sleeps until one of its events is signalled, serves it, sleeps again; ends when dropped.

use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::error::{Error, Result};

const STOP: u64 = u64::MAX;

/// A running thread; dropping it stops the thread and waits for it.
pub struct Worker {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Calls `serve` with an event's number whenever that event is signalled. An error of `serve` ends the thread: the
    /// device is dead to its guest, the machine goes on.
    pub fn spawn(
        name: &str,
        events: Vec<EventFd>,
        mut serve: impl FnMut(usize) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let stop =
            EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::io("eventfd"))?;
        let epoll = Epoll::new().map_err(Error::io("epoll"))?;
        let watch = |event: &EventFd, token: u64| {
            let fd = std::os::fd::AsRawFd::as_raw_fd(event);
            epoll
                .ctl(
                    ControlOperation::Add,
                    fd,
                    EpollEvent::new(EventSet::IN, token),
                )
                .map_err(Error::io("epoll"))
        };
        watch(&stop, STOP)?;
        for (token, event) in events.iter().enumerate() {
            watch(event, token as u64)?;
        }
        let name = format!("caisson-{name}");
        let body = move || {
            let mut ready = [EpollEvent::default(); 8];
            loop {
                let count = match epoll.wait(-1, &mut ready) {
                    Ok(count) => count,
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(_) => return,
                };
                for token in ready[..count].iter().map(EpollEvent::data) {
                    if token == STOP {
                        return;
                    }
                    let _ = events[token as usize].read();
                    if let Err(error) = serve(token as usize) {
                        eprintln!(
                            "{}: {error}",
                            std::thread::current().name().unwrap_or("device")
                        );
                        return;
                    }
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(body)
            .map_err(Error::io("a device's thread"))?;
        Ok(Worker {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
