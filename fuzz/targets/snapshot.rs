//! The state's file of a snapshot: what stands in it behind the digest, and devices that go on from what it says.

#![no_main]

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use caisson_fuzz::guest::Guest;
use caisson_fuzz::seeds;
use caisson_vmm::console_log::ConsoleLog;
use caisson_vmm::snapshot::State;
use caisson_vmm::virtio::balloon::Balloon;
use caisson_vmm::virtio::console::Console;
use caisson_vmm::virtio::rng::Rng;
use caisson_vmm::virtio::vsock::Vsock;
use caisson_vmm::virtio::{Device, TransportState};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: seeds::plant(states()), |data: &[u8]| run(data));

fn run(data: &[u8]) {
    if let Ok(state) = serde_json::from_slice::<State>(data) {
        for device in state.devices {
            go_on(device);
        }
    } else if let Ok(device) = serde_json::from_slice::<TransportState>(data) {
        go_on(device);
    }
}

fn go_on(state: TransportState) {
    for device in devices() {
        let guest = Guest::new(device, false);
        guest.restore(state.clone());
        guest.work();
    }
}

fn devices() -> Vec<Box<dyn Device>> {
    let name = format!("caisson-fuzz-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).expect("a name");
    let listener = UnixListener::bind_addr(&address).expect("a socket");
    vec![
        Box::new(Balloon::new(0x9_0000)),
        Box::new(Console::new(
            ConsoleLog::new(None, 1 << 16, false).expect("a log"),
        )),
        Box::new(Rng::new().expect("/dev/urandom")),
        Box::new(Vsock::new(3, listener).expect("a device")),
    ]
}

/// Each device as it is saved.
fn states() -> Vec<Vec<u8>> {
    let state = |device| serde_json::to_vec(&Guest::new(device, false).save()).expect("a state");
    let mut devices: Vec<_> = devices().into_iter().map(state).collect();
    let joined = devices
        .iter()
        .map(|d| String::from_utf8_lossy(d))
        .collect::<Vec<_>>()
        .join(",");
    devices.push(
        format!(r#"{{"memory_bytes":67108864,"assisted":false,"vcpus":[],"devices":[{joined}]}}"#)
            .into_bytes(),
    );
    devices
}
