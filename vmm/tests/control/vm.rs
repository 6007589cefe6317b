//! A `caisson-vmm` process and the other end of its control connection.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use caisson_protocol::vmm::{
    VmEnd, VmSpec, VmmOutcome, VmmRequest, VmmRequestFrame, VmmResponse, VmmResponseFrame,
};
use caisson_protocol::{Error, FrameDecoder, decode, encode};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

/// A process; killed when dropped.
pub struct Vm {
    child: Child,
    control: UnixStream,
    decoder: FrameDecoder,
    next: u64,
    /// Its files: kernel, console.
    pub files: TempDir,
}

/// A spec for a guest of our own, without its kernel.
pub fn spec() -> VmSpec {
    serde_json::from_str(
        r#"{"id":"t","vcpus":1,"memory_bytes":33554432,"kernel":{"path":"/nowhere"},"command_line":"","assist":"off"}"#,
    )
    .expect("a spec")
}

impl Vm {
    /// Runs this code as a guest's kernel; its console is a file.
    pub fn boot(code: &[u8], change: impl FnOnce(&mut VmSpec)) -> Self {
        let files = tempfile::tempdir().expect("a directory");
        let kernel = files.path().join("kernel");
        std::fs::write(&kernel, super::guest::elf(code)).expect("a file");
        let mut spec = spec();
        spec.kernel = caisson_protocol::vmm::Resource::Path(kernel);
        spec.console = Some(caisson_protocol::vmm::Resource::Path(
            files.path().join("console"),
        ));
        change(&mut spec);
        let mut vm = Self::start(files);
        vm.send(&encode(&spec).expect("a frame"));
        vm
    }

    /// A process that waits for its spec.
    pub fn start(files: TempDir) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).expect("fcntl");
        let child = Command::new(env!("CARGO_BIN_EXE_caisson-vmm"))
            .args(["--control", &theirs.as_raw_fd().to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("caisson-vmm");
        ours.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Vm {
            child,
            control: ours,
            decoder: FrameDecoder::default(),
            next: 0,
            files,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        // a process that has gone is found out by its answer
        let _ = self.control.write_all(bytes);
    }

    /// Asks without waiting.
    pub fn ask(&mut self, request: VmmRequest, descriptors: &[BorrowedFd]) -> u64 {
        self.next += 1;
        let id = self.next;
        let frame = encode(&VmmRequestFrame { id, request }).expect("a frame");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        sendmsg(
            &self.control,
            &[IoSlice::new(&frame)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
        .expect("the request is sent");
        id
    }

    /// The next answer; `None` when the process has gone.
    pub fn answer(&mut self) -> Option<VmmResponseFrame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().expect("a frame") {
                return Some(decode(&frame).expect("an answer"));
            }
            let mut bytes = [0; 4096];
            match self.control.read(&mut bytes).ok()? {
                0 => return None,
                count => self.decoder.feed(&bytes[..count]),
            }
        }
    }

    pub fn request_with(
        &mut self,
        request: VmmRequest,
        descriptors: &[BorrowedFd],
    ) -> Result<VmmResponse, Error> {
        let id = self.ask(request, descriptors);
        let Some(answer) = self.answer() else {
            panic!("no answer: {:?}", self.exit());
        };
        assert_eq!(answer.id, id);
        match answer.outcome {
            VmmOutcome::Ok(response) => Ok(response),
            VmmOutcome::Error(error) => Err(error),
        }
    }

    pub fn request(&mut self, request: VmmRequest) -> Result<VmmResponse, Error> {
        self.request_with(request, &[])
    }

    pub fn done(&mut self, request: VmmRequest) {
        assert_eq!(self.request(request), Ok(VmmResponse::Done));
    }

    /// How it ends.
    pub fn end(&mut self) -> VmEnd {
        match self.request(VmmRequest::Wait) {
            Ok(VmmResponse::Ended(end)) => end,
            other => panic!("{other:?}"),
        }
    }

    /// What its console has shown so far.
    pub fn console(&self) -> String {
        std::fs::read_to_string(self.files.path().join("console")).unwrap_or_default()
    }

    /// Waits until the console shows so many bytes.
    pub fn console_of(&self, bytes: usize) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let text = self.console();
            if text.len() >= bytes {
                return text;
            }
            assert!(Instant::now() < end, "the console stays at {text:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end of the process: how it ended, what it wrote to standard error.
    pub fn exit(&mut self) -> (ExitStatus, String) {
        let mut said = String::new();
        let mut stderr = self.child.stderr.take().expect("taken once");
        let status = self.child.wait().expect("the process");
        stderr.read_to_string(&mut said).expect("standard error");
        (status, said)
    }

    /// Closes the connection.
    pub fn hang_up(&mut self) {
        let _ = self.control.shutdown(std::net::Shutdown::Both);
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
