//! What a client may say to a supervisor, the guest's or the host's: any bytes, any request, any OCI spec. No sandbox is ever
//! made: the last step, mounting its root, is refused here.

#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;

use caisson_fuzz::seeds;
use caisson_protocol::{CreateRequest, Error, ExitStatus, LogFile};
use caisson_supervisor::{Host, Log, Mounted, Supervisor};
use libfuzzer_sys::fuzz_target;
use oci_spec::runtime::{LinuxResources, Process, Spec};

fuzz_target!(init: seeds::plant(conversations()), |data: &[u8]| run(data));

fn run(data: &[u8]) {
    let name = format!("caisson-fuzz-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).expect("a name");
    let listener = UnixListener::bind_addr(&address).expect("a socket");
    let mut client = UnixStream::connect_addr(&address).expect("a connection");
    let supervisor =
        Supervisor::new(OwnedFd::from(listener), Box::new(Guest)).expect("a supervisor");
    let speaker = client.try_clone().expect("a socket");
    let bytes = data.to_vec();
    let speaking = std::thread::spawn(move || {
        // a supervisor that has hung up listens to nothing
        let _ = (&speaker).write_all(&bytes);
        let _ = speaker.shutdown(Shutdown::Write);
    });
    let listening = std::thread::spawn(move || drop(client.read_to_end(&mut Vec::new())));
    supervisor.run().expect("the loop ends by itself");
    speaking.join().expect("a thread");
    listening.join().expect("a thread");
}

/// What an agent makes of a spec, up to where it would touch the machine.
struct Guest;

impl Host for Guest {
    fn admits(&self, _: BorrowedFd<'_>) -> bool {
        true
    }

    fn adapt(&mut self, _: &CreateRequest, spec: &mut Spec) -> Result<(), Error> {
        caisson_agent::translate::adapt(spec, |device| device.minor % 2 == 0).map(drop)
    }

    fn adapt_process(&self, process: &mut Process) {
        caisson_agent::translate::adapt_process(process);
    }

    fn adapt_resources(&self, given: &mut LinuxResources) {
        caisson_agent::resources::adapt(given);
    }

    fn mount(&mut self, _: &CreateRequest, _: &mut Spec) -> Result<Mounted, Error> {
        Err(Error::conflict("nothing is mounted here"))
    }

    fn unmount(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn created(&mut self, _: &Path) -> Result<(), Error> {
        Ok(())
    }

    fn open_log(&mut self, _: &LogFile) -> Result<Box<dyn Log>, Error> {
        Err(Error::conflict("nothing is logged here"))
    }

    fn exited(&mut self, _: &str, _: &ExitStatus) {}

    fn forget(&mut self, _: &str) {}
}

/// A greeting and one request of each kind; a greeting and all of them, but for the one behind which nothing is heard.
fn conversations() -> Vec<Vec<u8>> {
    let messages = seeds::messages();
    let named = |name: &str| {
        messages
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, m)| seeds::frame(m))
    };
    let hello = named("hello").expect("a greeting");
    let requests: Vec<_> = messages
        .iter()
        .filter(|(n, _)| n.starts_with("request-"))
        .collect();
    let one = |(_, request): &&(String, Vec<u8>)| [&hello[..], &seeds::frame(request)].concat();
    let mut seeds: Vec<_> = requests.iter().map(one).collect();
    let create = serde_json::json!({ "id": 1, "request": { "create": {
        "id": "abc",
        "spec": {
            "ociVersion": "1.2.0",
            "process": { "args": ["true"], "cwd": "/", "apparmorProfile": "p", "user": { "uid": 0, "gid": 0 } },
            "root": { "path": "rootfs" },
            "linux": {
                "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "network", "path": "/n" }],
                "sysctl": { "net.ipv4.ip_forward": "1", "kernel.shmmax": "2" },
                "devices": [{ "path": "/dev/null", "type": "c", "major": 1, "minor": 3 }],
                "resources": { "memory": { "limit": 1 }, "devices": [{ "allow": true, "access": "rwm" }] },
            },
        },
        "rootfs": { "block": { "lower": "/dev/vdb", "upper": "/dev/vdc" } },
        "reaper": true,
    } } });
    seeds.push([&hello[..], &seeds::frame(create.to_string().as_bytes())].concat());
    let all = requests.iter().filter(|(name, _)| name != "request-create");
    let all: Vec<u8> = all.flat_map(|(_, request)| seeds::frame(request)).collect();
    seeds.push([hello, all].concat());
    seeds
}
