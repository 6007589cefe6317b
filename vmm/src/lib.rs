//! `caisson-vmm`: one process, one microVM.
//!
//! ```text
//! caisson-vmm --control FD     the spec and requests come over an inherited socket: how the shim runs it (protocol::vmm)
//! caisson-vmm run SPEC.json    the same machine by hand; its console is standard output
//! caisson-vmm probe            what this host's KVM does
//!
//! main ─▶ launch ─▶ resource, devices ─▶ virtio/, serial
//!   │        └────▶ machine ─▶ memory, boot ─▶ what the first vCPU finds
//!   │                  ├─▶ bus, ports ─▶ virtio/, serial
//!   │                  └─▶ crew ─▶ vcpu (one thread each) ─▶ assist (only where the host needs it)
//!   └─▶ control: requests to the machine, until its end
//! ```
//!
//! The status it ends with: 0 the guest powered off or it was told to stop, 1 it could not run or crashed, 3 its kernel
//! panicked; a signal: SIGSYS when a thread of it did what its filter forbids.
//!
//! Public is what the fuzzer drives: devices behind their registers, refused instructions, the state of a snapshot.
//!
//! Must not know: OCI, Docker, image formats, tokio.

pub mod assist;
mod boot;
pub mod bus;
mod confine;
pub mod console_log;
mod control;
mod cpuid;
mod crew;
mod devices;
pub mod error;
mod launch;
mod machine;
mod memory;
mod ports;
mod probe;
mod resource;
mod serial;
pub mod snapshot;
mod sys;
mod timing;
mod vcpu;
pub mod virtio;
mod worker;

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use caisson_protocol::vmm::{Confinement, VmEnd, VmSpec};
use clap::Parser;
use rustix::event::{PollFd, PollFlags, poll};

use confine::Role;
use console_log::ConsoleLog;
use control::Connection;
use error::{Error, Result};
use machine::Machine;
use worker::Entry;

/// Run a microVM.
#[derive(Parser)]
#[command(
    name = "caisson-vmm",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// An inherited socket over which the spec and requests come
    #[arg(long, required = true, value_name = "FD")]
    control: Option<i32>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Run one machine to its end; its console is standard output unless the spec names another
    Run {
        /// A file with the machine's spec
        spec: PathBuf,
        /// Print where the boot's time went, as JSON lines on standard error
        #[arg(long)]
        boot_timing: bool,
    },
    /// Find out what this host's KVM does with guest kernel code; prints one line of JSON
    Probe {
        /// Try instructions for so long at most
        #[arg(long, default_value_t = 8)]
        budget_ms: u64,
    },
}

/// The program.
pub fn main() -> ExitCode {
    timing::begin();
    sys::one_heap();
    resource::make_room();
    let arguments = Arguments::parse();
    let end = match (arguments.command, arguments.control) {
        (Some(Command::Probe { budget_ms }), _) => print_probe(budget_ms),
        (Some(Command::Run { spec, boot_timing }), _) => run(&spec, boot_timing),
        (None, Some(control)) => obey(control),
        (None, None) => Err(Error::Spec("there is none: give --control or run".into())),
    };
    match end {
        // nobody is left to be told of the end
        Ok(None) | Ok(Some(VmEnd::Reset | VmEnd::Stopped)) => ExitCode::SUCCESS,
        Ok(Some(VmEnd::Panicked(said))) => {
            eprintln!("caisson-vmm: the guest's kernel panicked: {said}");
            ExitCode::from(3)
        }
        Ok(Some(VmEnd::Failed(why))) => {
            eprintln!("caisson-vmm: {why}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("caisson-vmm: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print_probe(budget_ms: u64) -> Result<Option<VmEnd>> {
    let probe = probe::probe(Duration::from_millis(budget_ms));
    let line = serde_json::to_string(&probe).map_err(|e| Error::Internal(e.to_string()))?;
    println!("{line}");
    Ok(None)
}

/// `--control`: everything comes over the socket.
fn obey(control: i32) -> Result<Option<VmEnd>> {
    let socket = UnixStream::from(resource::adopt("the control socket", control)?);
    let mut connection = Connection::new(socket)?;
    let spec = loop {
        match connection.next::<VmSpec>() {
            Ok(Some(spec)) => break Ok(spec),
            Ok(None) if connection.receive()? => {}
            Ok(None) => return Err(Error::Spec("the control connection ended before it".into())),
            Err(error) => break Err(error),
        }
    };
    let machine = spec.and_then(|spec| {
        confine::close_others(control, &spec)?;
        let mut machine = launch::launch(&spec, None)?;
        begin(&mut machine, spec.confinement.as_ref())?;
        Ok(machine)
    });
    control::serve(connection, machine)
}

/// `run`: a machine by hand.
fn run(path: &Path, boot_timing: bool) -> Result<Option<VmEnd>> {
    let named = |why: String| Error::Spec(format!("{}: {why}", path.display()));
    let file = File::open(path).map_err(|e| named(e.to_string()))?;
    let mut spec: VmSpec = serde_json::from_reader(file).map_err(|e| named(e.to_string()))?;
    spec.boot_timing |= boot_timing;
    let stdout = std::os::fd::AsFd::as_fd(&std::io::stdout())
        .try_clone_to_owned()
        .map_err(Error::io("standard output"))?;
    let console = ConsoleLog::new(Some(File::from(stdout)), u64::MAX, true)?;
    let mut machine = launch::launch(&spec, Some(console))?;
    begin(&mut machine, spec.confinement.as_ref())?;
    let end = loop {
        if let Some(end) = machine.end() {
            break end;
        }
        if let Some(event) = machine.event() {
            let mut fds = [PollFd::from_borrowed_fd(event, PollFlags::IN)];
            // an interruption is as good as news
            let _ = poll(&mut fds, None);
        }
    };
    if spec.boot_timing {
        let stats = serde_json::to_string(&machine.stats());
        eprintln!("{}", stats.map_err(|e| Error::Internal(e.to_string()))?);
    }
    Ok(Some(end))
}

/// Confines the process, makes its threads and lets the guest run.
fn begin(machine: &mut Machine, confinement: Option<&Confinement>) -> Result<()> {
    let entry = |role: Role| -> Entry {
        match confinement {
            Some(_) => Arc::new(move || confine::install(role)),
            None => Arc::new(|| Ok(())),
        }
    };
    if let Some(confinement) = confinement {
        confine::confine(confinement)?;
    }
    machine.muster(&entry(Role::Vcpu), &entry(Role::Device))?;
    if confinement.is_some() {
        worker::seal();
        confine::install(Role::Control)?;
    }
    machine.resume()
}
