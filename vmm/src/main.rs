//! `caisson-vmm`: one process, one microVM.
//!
//! So far it boots a kernel on memory, vCPUs, a serial console and an entropy device, also on hosts whose KVM emulates
//! ring 0 (`assist`, which `probe` asks for). The devices that a container needs (block, network, vsock), the control socket and the jail around
//! this process come with `--isolation=vm`.
//!
//! ```text
//! main ─▶ machine ─▶ memory, boot ─▶ what the first vCPU finds
//!            ├─▶ bus, ports ─▶ virtio/, serial
//!            └─▶ vcpu (one thread each) ─▶ assist (only where the host needs it)
//! ```
//!
//! Must not know: OCI, Docker, image formats, tokio.

mod assist;
mod boot;
mod bus;
mod cpuid;
mod devices;
mod error;
mod machine;
mod memory;
mod ports;
mod probe;
// what devices use before the control socket does
#[allow(dead_code)]
mod resource;
mod serial;
mod sys;
#[allow(dead_code)]
mod timing;
mod vcpu;
#[allow(dead_code)]
mod virtio;
#[allow(dead_code)]
mod worker;

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use caisson_protocol::vmm::{AssistMode, Resource, VmSpec};
use clap::Parser;

/// Boot a Linux kernel in a microVM; its serial console is standard output.
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
    /// An uncompressed ELF vmlinux
    #[arg(long, required = true)]
    kernel: Option<PathBuf>,
    /// An initial file system (cpio)
    #[arg(long)]
    initramfs: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, default_value = "console=ttyS0 reboot=k panic=-1")]
    command_line: String,
    /// Memory in MiB
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(16..=1 << 20))]
    memory_mib: u64,
    /// vCPUs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    vcpus: u8,
    /// Complete the instructions that this host's KVM refuses: auto (where it emulates ring 0), on, off
    #[arg(long, default_value = "auto", value_parser = assist_mode)]
    assist: AssistMode,
    /// Say what building and running took, on standard error
    #[arg(long)]
    boot_timing: bool,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Find out what this host's KVM does with guest kernel code; prints one line of JSON
    Probe {
        /// Try instructions for so long at most
        #[arg(long, default_value_t = 8)]
        budget_ms: u64,
    },
}

fn assist_mode(text: &str) -> Result<AssistMode, String> {
    match text {
        "auto" => Ok(AssistMode::Auto),
        "on" => Ok(AssistMode::On),
        "off" => Ok(AssistMode::Off),
        other => Err(format!("{other} is none of auto, on, off")),
    }
}

/// What a guest must be told on a host that emulates ring 0: features that CPUID there shows whatever we say, and the slot
/// of the legacy vsyscall page, which the assist takes.
const ASSIST_COMMAND_LINE: &str =
    " clearcpuid=smap,smep,popcnt,rdrand,rdseed,movbe vsyscall=none nopti";

fn main() -> anyhow::Result<()> {
    timing::begin();
    let arguments = Arguments::parse();
    if let Some(Command::Probe { budget_ms }) = arguments.command {
        let probe = probe::probe(Duration::from_millis(budget_ms));
        println!("{}", serde_json::to_string(&probe)?);
        return Ok(());
    }
    let kernel = arguments.kernel.unwrap_or_default();
    let spec = VmSpec {
        id: "vm".into(),
        vcpus: arguments.vcpus,
        memory_bytes: arguments.memory_mib << 20,
        kernel: Resource::Path(kernel.clone()),
        initramfs: arguments.initramfs.clone().map(Resource::Path),
        command_line: arguments.command_line.clone(),
        disks: Vec::new(),
        nets: Vec::new(),
        shares: Vec::new(),
        vsock: None,
        console: None,
        console_limit_bytes: None,
        assist: arguments.assist,
        restore: None,
        confinement: None,
        boot_timing: arguments.boot_timing,
    };
    let assisted = probe::needs_assist(spec.assist)?;
    let open = |path: &PathBuf| File::open(path).with_context(|| path.display().to_string());
    let kernel = open(&kernel)?;
    let initramfs = arguments.initramfs.as_ref().map(open).transpose()?;
    let mut command_line = arguments.command_line.clone();
    if assisted {
        command_line.push_str(ASSIST_COMMAND_LINE);
    }
    let mut machine = machine::Machine::new(machine::Plan {
        kernel: &kernel,
        initramfs: initramfs.as_ref(),
        command_line: &command_line,
        vcpus: arguments.vcpus,
        memory_bytes: arguments.memory_mib << 20,
        devices: devices::open(&spec)?,
        console: Box::new(std::io::stdout()),
        assist: assisted.then(assist::Assist::new),
    })?;
    let built = machine.age();
    let ended = machine.run();
    if arguments.boot_timing {
        eprintln!(
            "built in {built:?}, ran {:?}, {:?}",
            machine.age() - built,
            machine.exits()
        );
    }
    ended?;
    Ok(())
}
