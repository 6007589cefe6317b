//! The end of the guest: what is written is on its disks, then the machine is reset, which is how a microVM ends.

use std::sync::mpsc;
use std::time::Duration;

use rustix::system::{RebootCommand, reboot};

/// A file system that does not finish (its server on the host may be gone) does not keep the guest alive for longer.
const SYNC_LIMIT: Duration = Duration::from_secs(5);

/// Resets the machine. Returns only if the kernel refuses, and then says why.
pub fn reset() -> rustix::io::Errno {
    let (done, synced) = mpsc::channel();
    let thread = std::thread::Builder::new().spawn(move || {
        rustix::fs::sync();
        let _ = done.send(());
    });
    if thread.is_ok() && synced.recv_timeout(SYNC_LIMIT).is_err() {
        tracing::error!("the disks take too long: what was not written yet is lost");
    }
    match reboot(RebootCommand::Restart) {
        Ok(()) => rustix::io::Errno::INVAL,
        Err(errno) => errno,
    }
}
