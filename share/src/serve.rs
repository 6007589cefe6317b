//! Threads that take a message each off the socket, as others would off /dev/fuse, and answer it there.
//!
//! What the guest may cache: names and attributes for a second, so that it sees what the host changes within that time, and
//! a build that stats the same files over and over does not ask for each; file content until it is opened again or its
//! modification time is seen to have changed (`cache=auto` of other servers, with their timeout).

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::Context;
use caisson_protocol::vmm::FS_MESSAGE_BYTES_MAX;
use fuse_backend_rs::abi::fuse_abi::{InitOut, KERNEL_MINOR_VERSION, KERNEL_VERSION};
use fuse_backend_rs::api::filesystem::{FileSystem, FsOptions};
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};
use fuse_backend_rs::transport::{FuseBuf, FuseDevWriter, Reader, Writer};

use crate::confine::SHARE;
use crate::screen::{self, Init, Verdict};

/// Requests that wait for the disk do not hold up the others.
const THREADS: usize = 4;
/// See the top of the file.
const CACHE: Duration = Duration::from_secs(1);
/// Pages of data in a message.
const PAGES_MAX: u16 = 32;
const PAGE: u32 = 4096;
/// The oldest minor version whose INIT has the answer that is given here (Linux 4.20).
const MINOR_MIN: u32 = 28;

type Files = Arc<PassthroughFs>;

/// The directory, not looked at yet.
pub fn files() -> anyhow::Result<Files> {
    let config = Config {
        root_dir: SHARE.into(),
        attr_timeout: CACHE,
        entry_timeout: CACHE,
        cache_policy: CachePolicy::Auto,
        xattr: true,
        // without it each write asks for an extended attribute first
        killpriv_v2: true,
        ..Config::default()
    };
    let files = PassthroughFs::new(config).context("cannot serve the directory")?;
    Ok(Arc::new(files))
}

/// Threads that have not begun.
pub struct Serving {
    begin: Vec<Sender<()>>,
    ended: Receiver<anyhow::Result<()>>,
}

impl Serving {
    /// Lets them begin.
    pub fn begin(&self) {
        for thread in &self.begin {
            // one that is gone has said why, to `wait`
            let _ = thread.send(());
        }
    }

    /// Until the other end is closed, or something is wrong with it.
    pub fn wait(self) -> anyhow::Result<()> {
        self.ended.recv().unwrap_or(Ok(()))
    }
}

/// Makes the threads. They exist before the filter, which lets no more be made.
pub fn start(socket: OwnedFd, files: Files) -> anyhow::Result<Serving> {
    files.import().context("cannot open the directory")?;
    let socket = Arc::new(File::from(socket));
    let server = Arc::new(Server::new(files.clone()));
    let (end, ended) = channel();
    let (here, are_here) = channel();
    let mut begin = Vec::new();
    for number in 0..THREADS {
        let mut session = Session::new(socket.clone(), files.clone(), server.clone());
        let (go, gone) = channel();
        begin.push(go);
        let (end, here) = (end.clone(), here.clone());
        std::thread::Builder::new()
            .name(format!("share{number}"))
            .stack_size(512 << 10)
            .spawn(move || {
                let _ = here.send(());
                if gone.recv().is_ok() {
                    let _ = end.send(session.run());
                }
            })
            .context("a thread")?;
    }
    // a thread's first steps are the C library's, whose system calls the filter refuses
    for _ in 0..THREADS {
        are_here.recv().context("a thread")?;
    }
    Ok(Serving { begin, ended })
}

/// What one thread answers with.
pub struct Session<F: FileSystem + Send + Sync> {
    socket: Arc<File>,
    files: Arc<F>,
    server: Arc<Server<Arc<F>>>,
    answer: Vec<u8>,
}

impl<F: FileSystem + Send + Sync> Session<F> {
    /// Answers go to `socket`, whose packets are messages; `server` serves `files`.
    pub fn new(socket: Arc<File>, files: Arc<F>, server: Arc<Server<Arc<F>>>) -> Self {
        let answer = vec![0; FS_MESSAGE_BYTES_MAX];
        Session {
            socket,
            files,
            server,
            answer,
        }
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let mut request = vec![0; FS_MESSAGE_BYTES_MAX + 1];
        loop {
            match (&*self.socket).read(&mut request) {
                Ok(0) => return Ok(()),
                Ok(len) => self.serve(&mut request[..len])?,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if e.raw_os_error() == Some(libc::ECONNRESET) => return Ok(()),
                Err(e) => return Err(e).context("cannot read from the socket"),
            }
        }
    }

    /// Answers one message. An error says that it was none, or that nobody is there to be answered.
    pub fn serve(&mut self, request: &mut [u8]) -> anyhow::Result<()> {
        let verdict = screen::screen(request).context("what the VMM sent is not a FUSE request")?;
        let unique = screen::unique(request);
        match verdict {
            Verdict::Drop => Ok(()),
            Verdict::Refuse(errno) => self.say(&screen::answer(errno, unique, &[])),
            Verdict::Init(init) => match self.init(init) {
                Ok(body) => self.say(&screen::answer(0, unique, &body)),
                Err(errno) => self.say(&screen::answer(errno, unique, &[])),
            },
            Verdict::Pass => {
                let unanswered = screen::is_unanswered(request);
                let answered = self.pass(request);
                match answered {
                    // it may have been answered before this went wrong: then this answer is one that nobody waits for
                    Err(_) if !unanswered => self.say(&screen::answer(libc::EINVAL, unique, &[])),
                    _ => Ok(()),
                }
            }
        }
    }

    fn pass(&mut self, request: &mut [u8]) -> anyhow::Result<()> {
        let reader = Reader::<()>::from_fuse_buffer(FuseBuf::new(request)).context("reader")?;
        let fd = self.socket.as_raw_fd();
        let writer = FuseDevWriter::<()>::new(fd, &mut self.answer).context("writer")?;
        self.server
            .handle_message(reader, Writer::FuseDev(writer), None, None)
            .map(drop)
            .map_err(|e| anyhow::anyhow!("{e:?}"))
    }

    fn say(&self, answer: &[u8]) -> anyhow::Result<()> {
        match (&*self.socket).write(answer) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            Err(e) => Err(e).context("cannot answer"),
        }
    }

    /// `struct fuse_init_out`.
    fn init(&self, init: Init) -> Result<Vec<u8>, i32> {
        if init.major < KERNEL_VERSION || init.major == KERNEL_VERSION && init.minor < MINOR_MIN {
            return Err(libc::EPROTO);
        }
        let mut out = InitOut {
            major: KERNEL_VERSION,
            minor: KERNEL_MINOR_VERSION,
            ..InitOut::default()
        };
        // a newer major version is told ours, and asks again
        if init.major == KERNEL_VERSION {
            let capable = FsOptions::from_bits_truncate(init.flags);
            let wanted = self
                .files
                .init(capable)
                .map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))?;
            // what the Linux driver has to be told it may do: no locks, no writeback cache, no ACLs
            let wanted = wanted
                | FsOptions::ASYNC_READ
                | FsOptions::ASYNC_DIO
                | FsOptions::BIG_WRITES
                | FsOptions::ATOMIC_O_TRUNC
                | FsOptions::AUTO_INVAL_DATA
                | FsOptions::PARALLEL_DIROPS
                | FsOptions::MAX_PAGES
                | FsOptions::INIT_EXT;
            let enabled = (capable & wanted & !FsOptions::PERFILE_DAX).bits();
            out.max_readahead = init.max_readahead;
            out.flags = enabled as u32;
            out.flags2 = (enabled >> 32) as u32;
            out.max_background = 64;
            out.congestion_threshold = 48;
            out.max_write = u32::from(PAGES_MAX) * PAGE;
            out.max_pages = PAGES_MAX;
            out.time_gran = 1;
        }
        Ok(bytes_of(&out))
    }
}

/// In the order of `struct fuse_init_out`.
fn bytes_of(out: &InitOut) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    for word in [out.major, out.minor, out.max_readahead, out.flags] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(out.max_background.to_le_bytes());
    bytes.extend(out.congestion_threshold.to_le_bytes());
    bytes.extend(out.max_write.to_le_bytes());
    bytes.extend(out.time_gran.to_le_bytes());
    bytes.extend(out.max_pages.to_le_bytes());
    bytes.extend(out.map_alignment.to_le_bytes());
    bytes.extend(out.flags2.to_le_bytes());
    bytes.extend([0; 28]);
    bytes
}
