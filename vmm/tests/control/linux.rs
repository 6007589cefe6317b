//! The guest's kernel and agent, saved and restored: Linux on two vCPUs with disk, sockets, entropy and console.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use caisson_protocol::vmm::{
    AssistMode, Disk, Resource, SnapshotFiles, VmEnd, VmSpec, VmmRequest, VmmResponse, Vsock,
};
use caisson_protocol::{AGENT_PORT, FrameDecoder, GENERATION, Hello, decode, encode};

use crate::vm::Vm;
use crate::{confinement, kvm};

/// Where ring 0 is emulated a boot takes a while, and a laden machine takes longer.
const BOOT: Duration = Duration::from_secs(180);
const COMMAND_LINE: &str = "root=/dev/vda rootfstype=erofs ro init=/agent quiet console=ttyS0 reboot=k panic=-1 random.trust_bootloader=on";

/// A machine, and where its sockets are dialled.
struct Guest {
    vm: Vm,
    socket: PathBuf,
}

fn boot(guest: &Path, directory: &Path, name: &str, restore: Option<SnapshotFiles>) -> Guest {
    let socket = directory.join(format!("{name}.sock"));
    let listener = OwnedFd::from(UnixListener::bind(&socket).expect("a socket"));
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).expect("fcntl");
    let vm = Vm::boot(&[], |spec: &mut VmSpec| {
        spec.vcpus = 2;
        spec.memory_bytes = 256 << 20;
        spec.kernel = Resource::Path(guest.join("vmlinux"));
        spec.command_line = COMMAND_LINE.into();
        spec.assist = AssistMode::Auto;
        spec.disks = vec![Disk {
            file: Resource::Path(guest.join("agent.erofs")),
            serial: "agent".into(),
            read_only: true,
            rate: None,
            queues: None,
        }];
        spec.vsock = Some(Vsock {
            guest_cid: 3,
            listener: Resource::Fd(listener.as_raw_fd()),
        });
        spec.confinement = confinement(directory);
        spec.restore = restore;
    });
    Guest { vm, socket }
}

impl Guest {
    /// Says `how` to the vsock until it is connected with the agent, and reads the agent's greeting.
    fn greet(&mut self, how: &str) -> Hello {
        let end = Instant::now() + BOOT;
        loop {
            match self.try_greet(how) {
                Ok(hello) => return hello,
                // nobody listens any more
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    panic!("{how}: {:?}", self.vm.exit())
                }
                Err(error) => assert!(
                    Instant::now() < end,
                    "{how}: {error}; its console: {}",
                    self.vm.console()
                ),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn try_greet(&self, how: &str) -> std::io::Result<Hello> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(BOOT))?;
        writeln!(stream, "{how} {AGENT_PORT}")?;
        let mut byte = [0];
        while byte != *b"\n" {
            stream.read_exact(&mut byte)?;
        }
        let greeting = serde_json::json!({ "generation": GENERATION, "version": "test" });
        stream.write_all(&encode(&greeting).map_err(std::io::Error::other)?)?;
        let mut decoder = FrameDecoder::default();
        loop {
            if let Some(frame) = decoder.next_frame().map_err(std::io::Error::other)? {
                return decode(&frame).map_err(std::io::Error::other);
            }
            stream.read_exact(&mut byte)?;
            decoder.feed(&byte);
        }
    }
}

#[test]
fn linux_goes_on_from_a_snapshot_in_two_processes() {
    let named = std::env::var_os("CAISSON_GUEST_DIR").map(PathBuf::from);
    let Some(guest) = named.filter(|dir| dir.join("agent.erofs").is_file()) else {
        return println!(
            "skipped: CAISSON_GUEST_DIR names no directory with vmlinux and agent.erofs"
        );
    };
    if !kvm() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let mut first = boot(&guest, directory.path(), "first", None);
    first.greet("ACCEPT");
    first.greet("CONNECT");
    first.vm.done(VmmRequest::Pause);
    let files = SnapshotFiles {
        state: Resource::Path(directory.path().join("state")),
        memory: Resource::Path(directory.path().join("memory")),
    };
    let create = |name| std::fs::File::create_new(directory.path().join(name)).expect("a file");
    let (state, memory) = (create("state"), create("memory"));
    first
        .vm
        .request_with(VmmRequest::Snapshot, &[state.as_fd(), memory.as_fd()])
        .expect("a snapshot");
    first.vm.done(VmmRequest::Resume);
    first.greet("CONNECT");
    first.vm.done(VmmRequest::Stop);

    for name in ["second", "third"] {
        let began = Instant::now();
        let mut guest = boot(&guest, directory.path(), name, Some(files.clone()));
        guest.greet("CONNECT");
        println!("{name}: answered {:?} after its start", began.elapsed());
        guest.vm.done(VmmRequest::Pause);
        guest.vm.done(VmmRequest::Resume);
        guest.greet("CONNECT");
        let Ok(VmmResponse::Stats(stats)) = guest.vm.request(VmmRequest::Stats) else {
            panic!("no stats");
        };
        assert!(stats.vsock_received_bytes > 0);
        guest.vm.done(VmmRequest::Stop);
        assert_eq!(guest.vm.end(), VmEnd::Stopped);
        assert!(guest.vm.exit().0.success());
    }
}
