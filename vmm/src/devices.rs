//! The one list that turns a spec into devices, in the order in which the guest sees them.

use caisson_protocol::vmm::VmSpec;

use crate::console_log::ConsoleLog;
use crate::error::Result;
use crate::virtio::Device;
use crate::virtio::balloon::Balloon;
use crate::virtio::block::Block;
use crate::virtio::console::Console;
use crate::virtio::fs::Fs;
use crate::virtio::net::Net;
use crate::virtio::rng::Rng;
use crate::virtio::vsock::Vsock;

/// Opens what the devices need and makes them: disks (`vda` …), network devices, vsock, shares, console, balloon, rng.
/// `console` is where output of the guest goes.
pub fn open(spec: &VmSpec, console: &ConsoleLog) -> Result<Vec<Box<dyn Device>>> {
    let mut devices: Vec<Box<dyn Device>> = Vec::new();
    for disk in &spec.disks {
        devices.push(Box::new(Block::open(disk)?));
    }
    for net in &spec.nets {
        devices.push(Box::new(Net::open(net)?));
    }
    if let Some(vsock) = &spec.vsock {
        devices.push(Box::new(Vsock::open(vsock)?));
    }
    for share in &spec.shares {
        devices.push(Box::new(Fs::open(share)?));
    }
    if spec.console_device {
        devices.push(Box::new(Console::new(console.clone())));
    }
    devices.push(Box::new(Balloon::new(spec.memory_bytes)));
    devices.push(Box::new(Rng::new()?));
    Ok(devices)
}
