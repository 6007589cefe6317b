//! The threads of the vCPUs, led by one: all of them run, or all are paused.
//!
//! Whoever leads never touches a vCPU: it sends orders and kicks the thread out of the guest until the order is answered (a
//! thread between its look at its orders and KVM_RUN misses a kick).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::error::{Error, Result};
use crate::snapshot::VcpuState;
use crate::vcpu::{Ended, Order, Orders, Vcpu};
use crate::worker::Entry;

const KICK_AGAIN: Duration = Duration::from_millis(1);

/// The threads.
pub struct Crew {
    members: Vec<Member>,
    ended: Receiver<Result<Ended>>,
    event: OwnedFd,
}

struct Member {
    orders: Sender<Order>,
    called: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Crew {
    /// A thread for each vCPU, paused. Each calls `entry` first.
    pub fn muster(vcpus: Vec<Vcpu>, entry: &Entry) -> Result<Self> {
        register_signal_handler(SIGRTMIN(), on_kick)
            .map_err(|e| Error::Internal(format!("a signal handler: {e}")))?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| Error::io("eventfd")(e.into()))?;
        let (sender, ended) = channel();
        let (ready, entered) = sync_channel(vcpus.len());
        let mut members = Vec::new();
        for (id, mut vcpu) in vcpus.into_iter().enumerate() {
            let (orders, queue) = channel();
            let called = Arc::new(AtomicBool::new(false));
            let my_orders = Orders {
                queue,
                called: called.clone(),
            };
            let (sender, ready, entry) = (sender.clone(), ready.clone(), entry.clone());
            let event = event.try_clone().map_err(Error::io("eventfd"))?;
            let body = move || {
                let failed = {
                    let how = entry();
                    let failed = how.is_err();
                    let _ = ready.send(how);
                    failed
                };
                if failed {
                    return;
                }
                let how = vcpu.run(&my_orders);
                let _ = sender.send(how);
                // the counter cannot be full: each thread adds one
                let _ = rustix::io::write(&event, &1_u64.to_ne_bytes());
            };
            let thread = std::thread::Builder::new()
                .name(format!("caisson-vcpu{id}"))
                .spawn(body)
                .map_err(Error::io("a vCPU's thread"))?;
            members.push(Member {
                orders,
                called,
                thread,
            });
        }
        for _ in &members {
            entered
                .recv()
                .unwrap_or_else(|_| Err(Error::Internal("a vCPU's thread died".into())))?;
        }
        Ok(Crew {
            members,
            ended,
            event,
        })
    }

    /// Readable when a vCPU has ended.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// How the first vCPU that ended did, if one has.
    pub fn ended(&self) -> Option<Result<Ended>> {
        self.ended.try_recv().ok()
    }

    /// Into the guest.
    pub fn resume(&self) {
        for member in &self.members {
            // a thread that has ended has no use for it
            let _ = member.orders.send(Order::Resume);
        }
    }

    /// Out of the guest; returns when every vCPU is.
    pub fn pause(&self) {
        let answers: Vec<_> = self
            .members
            .iter()
            .map(|member| {
                let (done, answer) = sync_channel(1);
                member.call(Order::Pause(done));
                answer
            })
            .collect();
        for (member, answer) in self.members.iter().zip(answers) {
            while answer.recv_timeout(KICK_AGAIN) == Err(RecvTimeoutError::Timeout) {
                member.kick();
            }
        }
    }

    /// The state of each vCPU; all are paused.
    pub fn save(&self) -> Result<Vec<VcpuState>> {
        let save = |member: &Member| {
            let (answer, state) = sync_channel(1);
            let _ = member.orders.send(Order::Save(answer));
            state
                .recv()
                .unwrap_or_else(|_| Err(Error::Refused("a vCPU has ended".into())))
        };
        self.members.iter().map(save).collect()
    }

    /// Out of the guest for good; returns when every thread has ended.
    pub fn stop(&mut self) {
        for member in &self.members {
            member.call(Order::Stop);
        }
        for member in self.members.drain(..) {
            while !member.thread.is_finished() {
                member.kick();
                std::thread::sleep(KICK_AGAIN);
            }
            let _ = member.thread.join();
        }
    }
}

impl Member {
    fn call(&self, order: Order) {
        let _ = self.orders.send(order);
        self.called.store(true, Ordering::Release);
        self.kick();
    }

    fn kick(&self) {
        let _ = self.thread.kill(SIGRTMIN());
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Interrupts KVM_RUN; that is all.
extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
