//! A microVM with the agent in it, made as the shim makes one, and nothing in between: `caisson-vmm`, its control socket, its
//! vsock.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use caisson_protocol::vmm::{
    AssistMode, Disk, Resource, VmEnd, VmSpec, VmmOutcome, VmmRequest, VmmRequestFrame,
    VmmResponse, VmmResponseFrame, Vsock,
};
use caisson_protocol::{AGENT_PORT, FrameDecoder, Hello, decode, encode};
use serde::de::DeserializeOwned;

use crate::client::Client;

/// Where ring 0 is emulated a boot takes a while, and a laden machine takes longer.
const BOOT: Duration = Duration::from_secs(120);
const MEMORY_BYTES: u64 = 256 << 20;
const SCRATCH_BYTES: u64 = 256 << 20;

/// What a machine is made of; `None` and a line that says why where there is no such thing.
pub struct Pieces {
    vmm: PathBuf,
    kernel: PathBuf,
    agent: PathBuf,
}

impl Pieces {
    pub fn find() -> Option<Pieces> {
        let programs = std::env::current_exe()
            .ok()?
            .parent()?
            .parent()?
            .to_path_buf();
        let named = |variable: &str, usual: PathBuf| {
            std::env::var_os(variable).map_or(usual, PathBuf::from)
        };
        let guest = named("CAISSON_GUEST_DIR", programs.join("guest"));
        let pieces = Pieces {
            vmm: named("CAISSON_VMM", programs.join("caisson-vmm")),
            kernel: guest.join("vmlinux"),
            agent: guest.join("agent.erofs"),
        };
        let needed = [
            Path::new("/dev/kvm"),
            Path::new("/bin/busybox"),
            &pieces.vmm,
            &pieces.kernel,
            &pieces.agent,
        ];
        match needed.iter().find(|path| !path.exists()) {
            None => Some(pieces),
            Some(missing) => {
                eprintln!("skipped: there is no {}", missing.display());
                None
            }
        }
    }
}

/// A running machine. Dropping it ends it.
pub struct Machine {
    vmm: Child,
    control: UnixStream,
    decoder: FrameDecoder,
    dir: tempfile::TempDir,
    /// From the start of the VMM to the agent's greeting.
    pub booted_in: Duration,
}

impl Machine {
    /// A container image of busybox, an empty scratch disk.
    pub fn start(pieces: &Pieces) -> Machine {
        let dir = tempfile::tempdir().expect("a directory");
        busybox_image(&dir.path().join("image.erofs"));
        Machine::start_on(pieces, dir)
    }

    /// The image is whatever `image.erofs` of the directory is.
    pub fn start_on(pieces: &Pieces, dir: tempfile::TempDir) -> Machine {
        let at = |name: &str| dir.path().join(name);
        let mut options = caisson_blockfs::ext4::Options::new(SCRATCH_BYTES);
        options.label = "scratch".into();
        caisson_blockfs::ext4::create(&at("scratch.ext4"), &options).expect("a scratch disk");

        let listener = UnixListener::bind(at("vsock.sock")).expect("a socket");
        let disk = |file: &Path, serial: &str, read_only| Disk {
            file: Resource::Path(file.into()),
            serial: serial.into(),
            read_only,
            rate: None,
            queues: None,
        };
        let spec = VmSpec {
            id: "agent-test".into(),
            vcpus: 1,
            memory_bytes: MEMORY_BYTES,
            kernel: Resource::Path(pieces.kernel.clone()),
            initramfs: None,
            command_line: "root=/dev/vda rootfstype=erofs ro init=/agent reboot=k panic=-1 loglevel=6 random.trust_bootloader=on dummy.numdummies=0".into(),
            disks: vec![
                disk(&pieces.agent, "agent", true),
                disk(&at("image.erofs"), "image", true),
                disk(&at("scratch.ext4"), "scratch", false),
            ],
            nets: Vec::new(),
            shares: Vec::new(),
            vsock: Some(Vsock { guest_cid: 3, listener: Resource::Fd(listener.as_raw_fd()) }),
            console: Some(Resource::Path(at("console"))),
            console_limit_bytes: None,
            console_device: false,
            assist: AssistMode::Auto,
            restore: None,
            confinement: None,
            boot_timing: false,
        };
        File::create(at("console")).expect("a console file");
        let (control, theirs) = UnixStream::pair().expect("a socket pair");
        for inherited in [listener.as_fd(), theirs.as_fd()] {
            rustix::io::fcntl_setfd(inherited, rustix::io::FdFlags::empty()).expect("inherited");
        }
        let begin = Instant::now();
        let vmm = Command::new(&pieces.vmm)
            .args(["--control", &theirs.as_raw_fd().to_string()])
            .stdin(Stdio::null())
            .spawn()
            .expect("caisson-vmm starts");
        drop((listener, theirs));
        let mut machine = Machine {
            vmm,
            control,
            decoder: FrameDecoder::default(),
            dir,
            booted_in: Duration::ZERO,
        };
        machine.tell(&spec);
        machine.await_hello();
        machine.booted_in = begin.elapsed();
        machine
    }

    fn tell<T: serde::Serialize>(&mut self, message: &T) {
        let frame = encode(message).expect("a frame");
        self.control.write_all(&frame).expect("the VMM listens");
    }

    fn await_hello(&mut self) {
        let mut stream = self.dial("ACCEPT");
        stream.set_read_timeout(Some(BOOT)).expect("a timeout");
        let line = read_line(&mut stream);
        assert!(
            line.starts_with("OK "),
            "{line:?}; console:\n{}",
            self.console()
        );
        let hello: Hello = read_frame(&mut stream, &mut FrameDecoder::default());
        assert_eq!(hello.generation, caisson_protocol::GENERATION);
    }

    fn dial(&self, verb: &str) -> UnixStream {
        let mut stream =
            UnixStream::connect(self.dir.path().join("vsock.sock")).expect("the VMM listens");
        stream
            .write_all(format!("{verb} {AGENT_PORT}\n").as_bytes())
            .expect("the VMM listens");
        stream
    }

    /// A connection with the agent, before any greeting.
    pub fn connect(&self) -> UnixStream {
        let mut stream = self.dial("CONNECT");
        stream.set_read_timeout(Some(BOOT)).expect("a timeout");
        let line = read_line(&mut stream);
        assert!(
            line.starts_with("OK "),
            "{line:?}; console:\n{}",
            self.console()
        );
        stream
    }

    /// A connection with the agent, greetings exchanged.
    pub fn client(&self) -> Client {
        Client::greet(self.connect())
    }

    /// What the guest's kernel and the agent have said.
    pub fn console(&self) -> String {
        fs::read(self.dir.path().join("console"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// A file of the machine's directory on the host.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Waits for the end of the machine.
    pub fn end(&mut self) -> VmEnd {
        self.tell(&VmmRequestFrame {
            id: 1,
            request: VmmRequest::Wait,
        });
        self.control
            .set_read_timeout(Some(Duration::from_secs(30)))
            .expect("a timeout");
        let answer: VmmResponseFrame = read_frame(&mut self.control, &mut self.decoder);
        match answer.outcome {
            VmmOutcome::Ok(VmmResponse::Ended(end)) => end,
            other => panic!("{other:?}; console:\n{}", self.console()),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the console:\n{}", self.console());
        }
        let _ = self.control.shutdown(std::net::Shutdown::Both);
        let _ = self.vmm.kill();
        let _ = self.vmm.wait();
    }
}

/// An image with busybox and a directory of another owner.
pub fn busybox_image(path: &Path) {
    let root = tempfile::tempdir().expect("a directory");
    for dir in ["bin", "dev", "etc", "home", "proc", "run", "sys", "tmp"] {
        fs::create_dir(root.path().join(dir)).expect("a directory");
    }
    fs::copy("/bin/busybox", root.path().join("bin/busybox")).expect("busybox");
    for name in [
        "cat", "echo", "ls", "mkdir", "rm", "sh", "sleep", "stat", "dd", "stty", "hostname", "ip",
        "true",
    ] {
        std::os::unix::fs::symlink("busybox", root.path().join("bin").join(name)).expect("a link");
    }
    fs::write(root.path().join("etc/from-image"), "of the image\n").expect("a file");
    caisson_blockfs::erofs::from_directory(root.path(), path).expect("an image");
}

fn read_line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while matches!(stream.read(&mut byte), Ok(1)) && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8_lossy(&line).into_owned()
}

/// The next frame of a connection.
pub fn read_frame<T: DeserializeOwned>(stream: &mut UnixStream, decoder: &mut FrameDecoder) -> T {
    let mut buffer = [0; 16 << 10];
    loop {
        if let Some(frame) = decoder.next_frame().expect("a frame") {
            return decode(&frame).expect("a message");
        }
        match stream.read(&mut buffer).expect("an answer in time") {
            0 => panic!("the connection has ended"),
            count => decoder.feed(&buffer[..count]),
        }
    }
}
