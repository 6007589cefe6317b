//! A server process and a FUSE client that speaks to it in raw messages, as a guest's kernel would, or would not.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use rustix::fs::{Mode, OFlags};
use rustix::io::FdFlags;

pub const LOOKUP: u32 = 1;
pub const FORGET: u32 = 2;
pub const GETATTR: u32 = 3;
pub const SETATTR: u32 = 4;
pub const READLINK: u32 = 5;
pub const MKNOD: u32 = 8;
pub const MKDIR: u32 = 9;
pub const UNLINK: u32 = 10;
pub const RENAME: u32 = 12;
pub const LINK: u32 = 13;
pub const OPEN: u32 = 14;
pub const READ: u32 = 15;
pub const WRITE: u32 = 16;
pub const STATFS: u32 = 17;
pub const RELEASE: u32 = 18;
pub const SETXATTR: u32 = 21;
pub const GETXATTR: u32 = 22;
pub const INIT: u32 = 26;
pub const OPENDIR: u32 = 27;
pub const READDIR: u32 = 28;
pub const CREATE: u32 = 35;
pub const DESTROY: u32 = 38;

/// The node of the root.
pub const ROOT: u64 = 1;

/// Whether servers can be started here; says why not.
pub fn is_possible() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: caisson-share is started as root");
    }
    root
}

pub struct Client {
    socket: UnixStream,
    server: Child,
    unique: u64,
    pub uid: u32,
    pub gid: u32,
}

impl Client {
    /// Starts a server and opens the session.
    pub fn start(source: &Path, options: &[&str]) -> Self {
        let mut client = Self::start_only(source, options);
        let (error, body) = client.init(7, 38);
        assert_eq!((error, body.len()), (0, 64));
        client
    }

    pub fn start_only(source: &Path, options: &[&str]) -> Self {
        // a descriptor that is inherited by one child must not be by another that another test starts
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).expect("a pair");
        let path = OFlags::PATH | OFlags::CLOEXEC;
        let source = rustix::fs::open(source, path, Mode::empty()).expect("the source");
        for fd in [&theirs, &source] {
            rustix::io::fcntl_setfd(fd.as_fd(), FdFlags::empty()).expect("fcntl");
        }
        let number = |fd: &OwnedFd| fd.as_raw_fd().to_string();
        let mut server = Command::new(env!("CARGO_BIN_EXE_caisson-share"))
            .args(["--socket", &number(&theirs), "--source", &number(&source)])
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server");
        let mut ready = [0; 6];
        let mut out = server.stdout.take().expect("its output");
        out.read_exact(&mut ready).expect("that it is ready");
        assert_eq!(&ready, b"ready\n");
        let socket = UnixStream::from(ours);
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a timeout");
        Client {
            socket,
            server,
            unique: 0,
            uid: 0,
            gid: 0,
        }
    }

    pub fn init(&mut self, major: u32, minor: u32) -> (i32, Vec<u8>) {
        let mut body = Vec::new();
        for word in [major, minor, 1 << 20, u32::MAX, u32::MAX] {
            body.extend(word.to_le_bytes());
        }
        body.resize(64, 0);
        self.request(INIT, 0, &body)
    }

    /// Sends a request; its answer's error and body.
    pub fn request(&mut self, opcode: u32, node: u64, body: &[u8]) -> (i32, Vec<u8>) {
        let unique = self.send(opcode, node, body);
        loop {
            let (of, error, body) = self.receive();
            if of == unique {
                return (error, body);
            }
        }
    }

    pub fn send(&mut self, opcode: u32, node: u64, body: &[u8]) -> u64 {
        self.unique += 2;
        let mut message = (40 + body.len() as u32).to_le_bytes().to_vec();
        message.extend(opcode.to_le_bytes());
        message.extend(self.unique.to_le_bytes());
        message.extend(node.to_le_bytes());
        for word in [self.uid, self.gid, 0, 0] {
            message.extend(word.to_le_bytes());
        }
        message.extend(body);
        self.send_raw(&message);
        self.unique
    }

    pub fn send_raw(&mut self, message: &[u8]) {
        self.socket.write_all(message).expect("the server reads");
    }

    fn receive(&mut self) -> (u64, i32, Vec<u8>) {
        let mut answer = vec![0; 1 << 20];
        let len = self.socket.read(&mut answer).expect("an answer");
        answer.truncate(len);
        assert!(len >= 16, "the server is gone");
        assert_eq!(answer[..4], (len as u32).to_le_bytes());
        let error = -i32::from_le_bytes(answer[4..8].try_into().expect("four bytes"));
        let unique = u64::from_le_bytes(answer[8..16].try_into().expect("eight bytes"));
        (unique, error, answer.split_off(16))
    }

    /// The node of a name, and its mode.
    pub fn lookup(&mut self, parent: u64, name: &str) -> Result<(u64, u32), i32> {
        let (error, body) = self.request(LOOKUP, parent, &text(name));
        entry(error, &body)
    }

    pub fn create(&mut self, parent: u64, name: &str, flags: i32) -> Result<(u64, u64), i32> {
        let mut body = words(&[flags as u32, 0o100644, 0, 0]);
        body.extend(text(name));
        let (error, body) = self.request(CREATE, parent, &body);
        entry(error, &body).map(|(node, _)| (node, long(&body, 128)))
    }

    pub fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        let (error, body) = self.request(OPEN, node, &words(&[flags as u32, 0]));
        if error == 0 {
            Ok(long(&body, 0))
        } else {
            Err(error)
        }
    }

    pub fn read(&mut self, node: u64, handle: u64, offset: u64, len: u32) -> (i32, Vec<u8>) {
        let mut body = longs(&[handle, offset]);
        body.extend(words(&[len, 0, 0, 0, 0, 0]));
        self.request(READ, node, &body)
    }

    pub fn write(&mut self, node: u64, handle: u64, offset: u64, data: &[u8]) -> (i32, Vec<u8>) {
        let mut body = longs(&[handle, offset]);
        // opened for reading and writing, as the flags say again
        body.extend(words(&[data.len() as u32, 0, 0, 0, libc::O_RDWR as u32, 0]));
        body.extend(data);
        self.request(WRITE, node, &body)
    }

    pub fn server_pid(&self) -> u32 {
        self.server.id()
    }

    /// Closes the connection; the server's exit status.
    pub fn finish(mut self) -> std::process::ExitStatus {
        let (unused, _) = UnixStream::pair().expect("a pair");
        drop(std::mem::replace(&mut self.socket, unused));
        self.exit_status()
    }

    /// Waits for the server to end by itself.
    pub fn exit_status(&mut self) -> std::process::ExitStatus {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.server.try_wait().expect("its status") {
                return status;
            }
            assert!(Instant::now() < end, "the server goes on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

pub fn text(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

pub fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|l| l.to_le_bytes()).collect()
}

pub fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// `struct fuse_entry_out`: the node, the mode in its `fuse_attr`.
pub fn entry(error: i32, body: &[u8]) -> Result<(u64, u32), i32> {
    if error != 0 {
        return Err(error);
    }
    let mode = u32::from_le_bytes(body[100..104].try_into().expect("four bytes"));
    Ok((long(body, 0), mode))
}
