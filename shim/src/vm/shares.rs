//! Directories and files of the host that the guest sees: a server process for each, in the machine's cgroup.
//!
//! ```text
//!   plan ─▶ open: descriptors of the sources, before anything is made ─▶ start: a `caisson-share` each ─▶ ready
//!   VMM's end of the socket closed ─▶ the server ends, and is collected
//! ```
//!
//! What a server does is `caisson-share`'s; what the device does is the VMM's.

use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use caisson_jail::cgroup::Cgroup;
use caisson_protocol::{Error, ErrorKind};
use caisson_supervisor::jail_error;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::plan::Plan;
use super::sys;

/// From a server's start to its word that it serves.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// The entry under which a server shows a source that is no directory.
const FILE: &str = "file";

/// What of a server's complaints is passed on.
const COMPLAINT_BYTES: u64 = 1024;

/// A share whose source is open.
pub struct Source {
    path: OwnedFd,
    /// For messages.
    name: String,
    tag: String,
    read_only: bool,
    recursive: bool,
}

/// A share that is served.
pub struct Served {
    pub tag: String,
    /// The VMM's end of the connection.
    pub server: OwnedFd,
}

/// Opens the sources of a plan's shares, and puts right where the guest finds those that are no directories.
pub fn open(plan: &mut Plan) -> Result<Vec<Source>, Error> {
    let mut sources = Vec::new();
    for share in &plan.shares {
        let name = share.source.display().to_string();
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let opened = rustix::fs::open(&share.source, flags, Mode::empty())
            .and_then(|path| rustix::fs::fstat(&path).map(|stat| (path, stat)));
        let (path, stat) = opened.map_err(|e| {
            Error::invalid(format!(
                "{name} cannot be mounted: {}",
                std::io::Error::from(e)
            ))
        })?;
        let mounts = plan.guest.mounts_mut().as_mut();
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory
            && let Some(mount) = mounts.and_then(|mounts| mounts.get_mut(share.mount))
        {
            mount.set_source(Some(share.target.join(FILE)));
        }
        sources.push(Source {
            path,
            name,
            tag: share.tag.clone(),
            read_only: share.read_only,
            recursive: share.recursive,
        });
    }
    Ok(sources)
}

/// Starts a server for each, in the cgroup. To be called by a thread that lives as long as the process. On `Err` those that
/// were started end by themselves, and with the cgroup.
pub fn start(sources: Vec<Source>, program: &Path, cgroup: &Cgroup) -> Result<Vec<Served>, Error> {
    let mut started = Vec::new();
    for source in sources {
        started.push(start_one(source, program, cgroup)?);
    }
    let give_up_at = Instant::now() + READY_TIMEOUT;
    let mut served = Vec::new();
    for (mut child, name, share) in started {
        if let Err(why) = await_ready(&mut child, give_up_at) {
            let _ = child.kill();
            let complaint = complaint(&mut child);
            let _ = child.wait();
            return Err(Error::new(
                ErrorKind::HostUnfit,
                format!("{name} cannot be shared with the virtual machine: {why}: {complaint}"),
            ));
        }
        collect(child, name)?;
        served.push(share);
    }
    Ok(served)
}

fn start_one(
    source: Source,
    program: &Path,
    cgroup: &Cgroup,
) -> Result<(Child, String, Served), Error> {
    let Source {
        path,
        name,
        tag,
        read_only,
        recursive,
    } = source;
    let (server, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|e| Error::failed("cannot make a socket pair", e))?;
    let mut command = Command::new(program);
    command
        .args(["--socket", &theirs.as_raw_fd().to_string()])
        .args(["--source", &path.as_raw_fd().to_string()])
        .args(read_only.then_some("--read-only"))
        .args(recursive.then_some("--recursive"))
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let entrance = cgroup.entrance().map_err(jail_error)?;
    let keep = vec![theirs.as_raw_fd(), path.as_raw_fd()];
    sys::prepare_child(&mut command, entrance, keep);
    let child = command.spawn().map_err(|e| {
        let what = format!("cannot start the file server {}", program.display());
        Error::new(ErrorKind::HostUnfit, format!("{what}: {e}"))
    })?;
    Ok((child, name, Served { tag, server }))
}

/// Waits for the server's word.
fn await_ready(child: &mut Child, give_up_at: Instant) -> Result<(), &'static str> {
    const DUMB: &str = "its server does not say that it is ready";
    let Some(mut out) = child.stdout.take() else {
        return Err(DUMB);
    };
    let mut said = Vec::new();
    while said != b"ready\n" {
        let left = give_up_at.saturating_duration_since(Instant::now());
        let left = rustix::event::Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut events = [PollFd::new(&out, PollFlags::IN)];
        match poll(&mut events, Some(&left)) {
            Ok(1) => {}
            Err(rustix::io::Errno::INTR) => continue,
            _ => return Err(DUMB),
        }
        let mut byte = [0];
        match out.read(&mut byte) {
            Ok(1) if said.len() < 6 => said.push(byte[0]),
            _ => return Err("its server ended"),
        }
    }
    Ok(())
}

/// What a server that is gone, or was killed, had to say.
fn complaint(child: &mut Child) -> String {
    let mut said = String::new();
    if let Some(err) = child.stderr.take() {
        // what is not text is no complaint
        let _ = err.take(COMPLAINT_BYTES).read_to_string(&mut said);
    }
    said.trim().replace('\n', " ")
}

/// Takes the server back when it ends, which it does with the VMM.
fn collect(mut child: Child, name: String) -> Result<(), Error> {
    super::spawn("share", move || {
        let complaint = complaint(&mut child);
        match child.wait() {
            Ok(status) if status.success() => {}
            Ok(status) => tracing::warn!(%status, "the server of {name} has ended: {complaint}"),
            Err(error) => tracing::warn!(%error, "the server of {name} cannot be collected"),
        }
    })
    .map(drop)
    .map_err(|e| Error::failed("cannot watch a file server", e))
}
