//! The control socket: one connection, which the machine does not outlive (`protocol::vmm`).
//!
//! ```text
//! connection ─▶ requests ─▶ machine          poll ◀── the connection, a vCPU that ended
//!      ▲            └─ answers; `Wait` is answered when the machine has ended, and that is the end of the process
//! ```
//!
//! A machine that could not be built is one that has ended: `Wait` says why.

mod connection;

pub use connection::Connection;

use std::fs::File;
use std::os::fd::BorrowedFd;

use caisson_protocol::vmm::{
    VmEnd, VmmOutcome, VmmRequest, VmmRequestFrame, VmmResponse, VmmResponseFrame,
};
use caisson_protocol::{self as protocol, ErrorKind};
use rustix::event::{PollFd, PollFlags, poll};

use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::virtio::Command;

/// Answers requests until the end was told or the connection is gone; returns how the machine ended, if it did.
pub fn serve(mut connection: Connection, mut machine: Result<Machine>) -> Result<Option<VmEnd>> {
    let mut waiting = Vec::new();
    loop {
        while let Some(frame) = connection.next::<VmmRequestFrame>()? {
            let VmmRequestFrame { id, request } = frame;
            if request == VmmRequest::Wait {
                waiting.push(id);
                continue;
            }
            let outcome = match &mut machine {
                Ok(machine) => perform(machine, request, &mut connection),
                Err(error) => Err(Error::Refused(error.to_string())),
            };
            connection.send(&VmmResponseFrame {
                id,
                outcome: outcome.map_or_else(refusal, VmmOutcome::Ok),
            })?;
        }
        let end = match &mut machine {
            Ok(machine) => machine.end(),
            Err(error) => Some(VmEnd::Failed(error.to_string())),
        };
        if let Some(end) = &end
            && !waiting.is_empty()
        {
            for id in waiting {
                let outcome = VmmOutcome::Ok(VmmResponse::Ended(end.clone()));
                connection.send(&VmmResponseFrame { id, outcome })?;
            }
            return Ok(Some(end.clone()));
        }
        let event = machine.as_ref().ok().and_then(Machine::event);
        if wait(&connection, event)? && !connection.receive()? {
            return Ok(end);
        }
    }
}

/// Whether the connection has something; returns also when the machine has.
fn wait(connection: &Connection, event: Option<BorrowedFd<'_>>) -> Result<bool> {
    let mut fds = vec![PollFd::from_borrowed_fd(connection.fd(), PollFlags::IN)];
    fds.extend(event.map(|event| PollFd::from_borrowed_fd(event, PollFlags::IN)));
    match poll(&mut fds, None) {
        Ok(_) => Ok(!fds[0].revents().is_empty()),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(e) => Err(Error::io("poll")(e.into())),
    }
}

fn perform(
    machine: &mut Machine,
    request: VmmRequest,
    connection: &mut Connection,
) -> Result<VmmResponse> {
    match request {
        VmmRequest::Wait => {}
        VmmRequest::Pause => machine.pause()?,
        VmmRequest::Resume => machine.resume()?,
        VmmRequest::Snapshot => {
            let state = File::from(connection.descriptor()?);
            let memory = File::from(connection.descriptor()?);
            machine.snapshot(&state, &memory)?;
        }
        VmmRequest::Stats => return Ok(VmmResponse::Stats(Box::new(machine.stats()))),
        VmmRequest::SetBalloon(bytes) => machine.command(None, &Command::SetBalloon(bytes))?,
        VmmRequest::UpdateDisk(update) => {
            let file = File::from(connection.descriptor()?);
            let read_only = update.read_only;
            machine.command(Some(update.disk), &Command::UpdateDisk { file, read_only })?;
        }
        VmmRequest::LimitDisk(limit) => {
            machine.command(Some(limit.disk), &Command::LimitDisk(limit.rate))?;
        }
        VmmRequest::Stop => machine.stop(),
    }
    Ok(VmmResponse::Done)
}

fn refusal(error: Error) -> VmmOutcome {
    let kind = match error {
        Error::Refused(_) | Error::NotThisDevice => ErrorKind::Conflict,
        Error::Spec(_) => ErrorKind::Invalid,
        _ => ErrorKind::Internal,
    };
    VmmOutcome::Error(protocol::Error::new(kind, error.to_string()))
}
