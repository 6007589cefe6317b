//! `caisson-agent`: process 1 of a guest, `supervisor` and `jail` behind a vsock.
//!
//! ```text
//!   kernel ─▶ boot ─▶ listen on vsock port AGENT_PORT ─▶ Hello to the host's AGENT_PORT: ready
//!                          └─▶ Supervisor ⇄ protocol;  guest.rs is its host:
//!                                 adapt   what the spec says of the host's kernel, for this one      translate, resources
//!                                 mount   clock, entropy, shares, files, network, disks              surroundings, network, disks
//!                              destroyed, or could not be made ─▶ disks written ─▶ reset: the VM ends
//! ```
//!
//! It executes the OCI spec with the very code that `caisson-shim` uses on the host. When it cannot go on it ends, and with
//! it the kernel (panic), which the VMM reports with the last lines of the console.
//!
//! Public is what the fuzzer drives: what becomes of a spec.
//!
//! Must not know: Docker, images, tokio, what runs outside of the guest.

#![deny(unsafe_op_in_unsafe_fn)]

mod boot;
mod console;
mod disks;
mod guest;
mod netlink;
mod network;
mod power;
pub mod resources;
mod surroundings;
#[allow(unsafe_code)]
mod sys;
pub mod translate;

use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use caisson_protocol::{AGENT_PORT, GENERATION, Hello, encode};
use caisson_supervisor::Supervisor;
use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockListener, VsockStream};

/// The program.
pub fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("caisson-agent is the first process of a guest; it cannot be started otherwise");
        return ExitCode::FAILURE;
    }
    let devices = boot::mount_devices();
    console::install();
    let mut failures = boot::run();
    failures.extend(devices.err());
    for failure in &failures {
        tracing::error!("{failure}");
    }
    match serve(failures) {
        Ok(()) => {
            let errno = power::reset();
            tracing::error!("the machine cannot be reset: {errno}");
        }
        Err(error) => tracing::error!("{error}"),
    }
    // Process 1 ends: the kernel panics, and the VMM shows what was said here.
    ExitCode::FAILURE
}

/// Serves one sandbox, from its creation to its end.
fn serve(failures: Vec<String>) -> Result<(), String> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, AGENT_PORT)
        .map_err(|e| format!("cannot listen on vsock port {AGENT_PORT}: {e}"))?;
    let guest = guest::Guest::new(failures);
    let supervisor = Supervisor::new(OwnedFd::from(listener), Box::new(guest))
        .map_err(|e| format!("cannot set up the event loop: {e}"))?;
    // Nobody may be waiting for it, and the host can find out by connecting.
    if let Err(error) = say_hello() {
        tracing::warn!("the host is not told that the agent is ready: {error}");
    }
    supervisor
        .run()
        .map_err(|e| format!("the event loop failed: {e}"))
}

fn say_hello() -> std::io::Result<()> {
    let mut host = VsockStream::connect_with_cid_port(VMADDR_CID_HOST, AGENT_PORT)?;
    let hello = Hello {
        generation: GENERATION,
        version: env!("CARGO_PKG_VERSION").into(),
        pid: None,
    };
    host.write_all(&encode(&hello).map_err(std::io::Error::other)?)
}
