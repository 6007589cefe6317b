//! `caisson-share`: serves one directory, or one file, of the host to one microVM, as a FUSE server.
//!
//! ```text
//! caisson-share --socket FD --source FD [--read-only] [--recursive]
//!
//!   --socket     a SOCK_SEQPACKET socket whose other end is the VMM's virtio-fs device: one FUSE message a packet
//!   --source     an O_PATH descriptor, opened in the mount namespace that this process starts in
//!   --read-only  nothing below the source can be changed
//!   --recursive  what is mounted below the source is served as well
//! ```
//!
//! A source that is no directory appears as the one entry `file` of the root. `ready` and a newline on standard output say
//! that it is confined and serves; it ends when the socket's other end is closed. Started as root.
//!
//! ```text
//! main ─▶ confine: a root that holds the source and nothing else; a few capabilities; a system call filter
//!    └──▶ serve: threads that take a message each ─▶ screen: what is answered here ─▶ fuse-backend-rs: the rest
//! ```
//!
//! Public is what the fuzzer drives: the answer to one message.
//!
//! Must not know: virtio, containers, names of anything outside its directory.

mod confine;
mod filter;
mod screen;
pub mod serve;
mod sys;

use std::io::Write;
use std::os::fd::OwnedFd;

use anyhow::{Context, bail};

/// The program.
pub fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse()?;
    confine::rlimits()?;
    let root = confine::Root::prepare(&arguments.source, arguments.read_only, arguments.recursive)?;
    drop(arguments.source);
    // it looks at /proc, which is not there any more once the root has changed
    let files = serve::files()?;
    root.enter()?;
    confine::capabilities()?;
    let server = serve::start(arguments.socket, files)?;
    filter::install()?;
    server.begin();
    let mut out = std::io::stdout();
    out.write_all(b"ready\n")
        .and_then(|()| out.flush())
        .context("cannot say that it is ready")?;
    server.wait()
}

struct Arguments {
    socket: OwnedFd,
    source: OwnedFd,
    read_only: bool,
    recursive: bool,
}

impl Arguments {
    fn parse() -> anyhow::Result<Self> {
        use lexopt::{Arg, ValueExt};
        let (mut socket, mut source) = (None, None);
        let (mut read_only, mut recursive) = (false, false);
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Arg::Long("socket") => socket = Some(parser.value()?.parse()?),
                Arg::Long("source") => source = Some(parser.value()?.parse()?),
                Arg::Long("read-only") => read_only = true,
                Arg::Long("recursive") => recursive = true,
                other => return Err(other.unexpected().into()),
            }
        }
        let (Some(socket), Some(source)) = (socket, source) else {
            bail!("usage: caisson-share --socket FD --source FD [--read-only] [--recursive]");
        };
        if socket == source {
            bail!("the socket and the source cannot be the same descriptor");
        }
        Ok(Arguments {
            socket: sys::adopt(socket).context("--socket")?,
            source: sys::adopt(source).context("--source")?,
            read_only,
            recursive,
        })
    }
}
