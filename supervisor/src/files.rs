//! `docker cp` and its relatives: a worker process per request, which has the connection to itself.
//!
//! ```text
//!   loop: open the root ─▶ fork ─▶ forget the connection       worker: stat | pack ─▶ chunks, Status
//!                                                                       chunks ─▶ unpack, Status
//! ```
//!
//! The worker may wait, for its client or for a file system that a process of the sandbox serves. It dies with the
//! supervisor. Paths are resolved by `archive` beneath the root's descriptor, never outside it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use caisson_archive::{FileKind, Ownership, PackOptions, UnpackOptions};
use caisson_jail::IdMappings;
use caisson_jail::namespaces::user_namespace;
use caisson_protocol::{
    CHUNK_HEADER_BYTES, Error, ErrorKind, MAX_CHUNK_BYTES, Outcome, PathRequest, PathStat, Request,
    Response, ResponseFrame, Stream, View, WritePathRequest, chunk_header, encode,
    parse_chunk_header,
};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sched::CloneFlags;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Pid, Uid};

use crate::jail_error;
use crate::supervisor::Sandbox;

/// The tree a request looks into, and the user namespace whose ids count in it when that is not ours.
pub(crate) struct TreeRoot {
    dir: OwnedFd,
    user_namespace: Option<OwnedFd>,
}

/// Opens what a request looks into: the first process' root while it lives, the mounted root file system otherwise.
pub(crate) fn open_root(
    request: &Request,
    sandbox: &Sandbox,
    init: Option<Pid>,
) -> Result<TreeRoot, Error> {
    let view = match request {
        Request::StatPath(r) | Request::ReadPath(r) => r.view,
        _ => View::Processes,
    };
    match init.filter(|_| view == View::Processes) {
        Some(pid) => Ok(TreeRoot {
            dir: open(
                Path::new(&format!("/proc/{pid}/root")),
                OFlag::O_PATH | OFlag::O_DIRECTORY,
            )?,
            user_namespace: foreign_user_namespace(pid)?,
        }),
        None => {
            let dir = match (view, &sandbox.changes) {
                (View::Changes, None) => {
                    return Err(Error::invalid(
                        "its root file system is a plain directory: nothing says what changed in it",
                    ));
                }
                (View::Changes, Some(changes)) => {
                    // Its ids are stored unshifted.
                    return Ok(TreeRoot {
                        dir: open(changes, OFlag::O_PATH | OFlag::O_DIRECTORY)?,
                        user_namespace: None,
                    });
                }
                _ => &sandbox.rootfs,
            };
            let maps = IdMappings::of_spec(&sandbox.spec);
            Ok(TreeRoot {
                dir: open(dir, OFlag::O_PATH | OFlag::O_DIRECTORY)?,
                user_namespace: maps
                    .map(|maps| user_namespace(&maps))
                    .transpose()
                    .map_err(jail_error)?,
            })
        }
    }
}

fn open(path: &Path, flags: OFlag) -> Result<OwnedFd, Error> {
    nix::fcntl::open(path, flags | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|e| Error::failed(format!("cannot open {}", path.display()), e))
}

fn foreign_user_namespace(pid: Pid) -> Result<Option<OwnedFd>, Error> {
    let theirs = open(Path::new(&format!("/proc/{pid}/ns/user")), OFlag::O_RDONLY)?;
    let ours = open(Path::new("/proc/self/ns/user"), OFlag::O_RDONLY)?;
    let inode = |fd: &OwnedFd| {
        nix::sys::stat::fstat(fd)
            .map(|s| s.st_ino)
            .map_err(|e| Error::failed("cannot stat a namespace", e))
    };
    Ok(if inode(&theirs)? == inode(&ours)? {
        None
    } else {
        Some(theirs)
    })
}

/// Forks the worker. `parts` are the connection's descriptor, what was read beyond the request, what is still unwritten.
pub(crate) fn start_worker(
    request_id: u64,
    request: Request,
    root: TreeRoot,
    parts: (OwnedFd, Vec<u8>, Vec<u8>),
) -> nix::Result<Pid> {
    let (fd, rest, unwritten) = parts;
    let connection = File::from(fd);
    let mut keep = vec![connection.as_fd(), root.dir.as_fd()];
    keep.extend(root.user_namespace.as_ref().map(AsFd::as_fd));
    crate::sys::fork_worker(&keep, || {
        let client = Client {
            connection: &connection,
            rest: io::Cursor::new(rest),
        };
        match serve(request_id, request, &root, client, &unwritten) {
            Ok(()) => 0,
            Err(error) => {
                tracing::debug!(%error, "a client went away during a transfer");
                1
            }
        }
    })
}

/// The client's connection, beginning with what has been read of it already.
struct Client<'a> {
    connection: &'a File,
    rest: io::Cursor<Vec<u8>>,
}

impl Read for Client<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.rest.read(buffer)? {
            0 => self.connection.read(buffer),
            n => Ok(n),
        }
    }
}

fn serve(
    id: u64,
    request: Request,
    root: &TreeRoot,
    client: Client<'_>,
    unwritten: &[u8],
) -> io::Result<()> {
    // The connection is the worker's alone from here on.
    let flags = OFlag::from_bits_retain(fcntl(client.connection, FcntlArg::F_GETFL)?);
    fcntl(
        client.connection,
        FcntlArg::F_SETFL(flags & !OFlag::O_NONBLOCK),
    )?;
    let mut out = client.connection;
    out.write_all(unwritten)?;
    let answer = |outcome: Outcome| -> io::Result<()> {
        let mut out = client.connection;
        out.write_all(&encode(&ResponseFrame { id, outcome }).map_err(io::Error::other)?)
    };
    if let Some(namespace) = &root.user_namespace
        && let Err(errno) = enter_user_namespace(namespace)
    {
        return answer(Outcome::Error(Error::failed(
            "cannot enter the container's user namespace",
            errno,
        )));
    }
    match request {
        Request::StatPath(request) => answer(match stat(root, &request.path) {
            Ok(stat) => Outcome::Ok(Response::PathStat(stat)),
            Err(error) => Outcome::Error(error),
        }),
        Request::ReadPath(request) => match stat(root, &request.path) {
            Ok(_) => {
                answer(Outcome::Ok(Response::Done))?;
                let mut chunks = ChunkWriter {
                    connection: client.connection,
                };
                let outcome = read(root, &request, &mut chunks);
                send_status(client.connection, outcome)
            }
            Err(error) => answer(Outcome::Error(error)),
        },
        Request::WritePath(request) => match check_directory(root, &request.path) {
            Ok(()) => {
                answer(Outcome::Ok(Response::Done))?;
                let connection = client.connection;
                let outcome = write(
                    root,
                    &request,
                    ChunkReader {
                        client,
                        left: 0,
                        ended: false,
                    },
                );
                send_status(connection, outcome)
            }
            Err(error) => answer(Outcome::Error(error)),
        },
        _ => answer(Outcome::Error(Error::invalid("not a request for a worker"))),
    }
}

fn enter_user_namespace(namespace: &OwnedFd) -> nix::Result<()> {
    nix::sched::setns(namespace, CloneFlags::CLONE_NEWUSER)?;
    let (root_uid, root_gid) = (Uid::from_raw(0), Gid::from_raw(0));
    nix::unistd::setresgid(root_gid, root_gid, root_gid)?;
    nix::unistd::setresuid(root_uid, root_uid, root_uid)
}

fn stat(root: &TreeRoot, path: &Path) -> Result<PathStat, Error> {
    check_absolute(path)?;
    let found =
        caisson_archive::stat(root.dir.as_fd(), path).map_err(|e| archive_error(path, e))?;
    let kind = match found.kind {
        FileKind::File => libc::S_IFREG,
        FileKind::Directory => libc::S_IFDIR,
        FileKind::Symlink => libc::S_IFLNK,
        FileKind::CharDevice => libc::S_IFCHR,
        FileKind::BlockDevice => libc::S_IFBLK,
        FileKind::Fifo => libc::S_IFIFO,
        FileKind::Socket => libc::S_IFSOCK,
    };
    Ok(PathStat {
        name: found.name.to_string_lossy().into_owned(),
        size: found.size_bytes,
        mode: found.mode | kind,
        mtime: modified(found.mtime_seconds, found.mtime_nanos),
        link_target: found.link_target.map(|t| t.to_string_lossy().into_owned()),
    })
}

/// Times of the protocol begin with 1970.
fn modified(seconds: i64, nanos: u32) -> SystemTime {
    let since = u64::try_from(seconds).map(|seconds| Duration::new(seconds, nanos));
    SystemTime::UNIX_EPOCH + since.unwrap_or_default()
}

fn read(root: &TreeRoot, request: &PathRequest, out: &mut ChunkWriter<'_>) -> Result<(), Error> {
    let path = &request.path;
    let (name, options) = match request.view {
        View::Processes => (
            PathBuf::from(caisson_archive::shown_name(path)),
            PackOptions::copy(),
        ),
        // `docker export`: names relative to the root, nothing of what is mounted in it.
        View::Rootfs => (
            PathBuf::new(),
            PackOptions {
                one_file_system: true,
                ..PackOptions::copy()
            },
        ),
        View::Changes => (PathBuf::new(), PackOptions::layer()),
    };
    let mut out = io::BufWriter::with_capacity(MAX_CHUNK_BYTES, out);
    caisson_archive::pack(root.dir.as_fd(), path, &name, &mut out, &options)
        .map_err(|e| archive_error(path, e))?;
    out.flush()
        .map_err(|e| Error::failed("the client went away", e))
}

fn check_directory(root: &TreeRoot, path: &Path) -> Result<(), Error> {
    check_absolute(path)?;
    let flags = rustix::fs::OFlags::PATH;
    let found = caisson_archive::open_beneath(root.dir.as_fd(), path, flags)
        .map_err(|e| archive_error(path, e))?;
    let mode = nix::sys::stat::fstat(&found)
        .map_err(|e| Error::failed("cannot stat", e))?
        .st_mode;
    if mode & libc::S_IFMT == libc::S_IFDIR {
        Ok(())
    } else {
        Err(Error::invalid(format!(
            "{} is not a directory",
            path.display()
        )))
    }
}

fn write(
    root: &TreeRoot,
    request: &WritePathRequest,
    mut input: ChunkReader<'_>,
) -> Result<(), Error> {
    let ownership = if request.options.keep_ownership {
        Ownership::Archive
    } else {
        Ownership::Fixed { uid: 0, gid: 0 }
    };
    let options = UnpackOptions {
        ownership,
        no_overwrite_dir_non_dir: request.options.no_overwrite_dir_non_dir,
        ..UnpackOptions::copy()
    };
    caisson_archive::unpack(root.dir.as_fd(), &request.path, &mut input, &options)
        .map_err(|e| archive_error(&request.path, e))?;
    // What follows the archive's end mark is padding: take it, so that the client can finish.
    io::copy(&mut input, &mut io::sink())
        .map_err(|e| Error::failed("the client went away", e))
        .map(drop)
}

fn check_absolute(path: &Path) -> Result<(), Error> {
    if path.is_absolute() {
        Ok(())
    } else {
        Err(Error::invalid(format!(
            "{} is not an absolute path",
            path.display()
        )))
    }
}

fn archive_error(path: &Path, error: caisson_archive::Error) -> Error {
    let kind = match error.kind() {
        caisson_archive::ErrorKind::NotFound => {
            let message = format!(
                "Could not find the file {} in the container",
                path.display()
            );
            return Error::not_found(message);
        }
        caisson_archive::ErrorKind::InvalidInput | caisson_archive::ErrorKind::TooLarge => {
            ErrorKind::Invalid
        }
        _ => ErrorKind::Internal,
    };
    Error::new(kind, error.to_string())
}

fn send_status(mut connection: &File, result: Result<(), Error>) -> io::Result<()> {
    let outcome = result.map_or_else(Outcome::Error, |()| Outcome::Ok(Response::Done));
    let json = serde_json::to_vec(&outcome)?;
    connection.write_all(&chunk_header(Stream::Status, json.len()))?;
    connection.write_all(&json)
}

/// Bytes become chunks of standard output.
struct ChunkWriter<'a> {
    connection: &'a File,
}

impl Write for ChunkWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(MAX_CHUNK_BYTES);
        if length > 0 {
            self.connection
                .write_all(&chunk_header(Stream::Stdout, length))?;
            self.connection.write_all(&bytes[..length])?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Chunks of standard input become bytes; a connection that ends before its end mark is an error.
struct ChunkReader<'a> {
    client: Client<'a>,
    left: usize,
    ended: bool,
}

impl Read for ChunkReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.ended {
            let mut header = [0; CHUNK_HEADER_BYTES];
            self.client.read_exact(&mut header)?;
            let (stream, length) = parse_chunk_header(header).map_err(io::Error::other)?;
            if stream != Stream::Stdin {
                return Err(io::Error::other("a chunk of the wrong stream"));
            }
            self.left = length;
            self.ended = length == 0;
        }
        if self.ended {
            return Ok(0);
        }
        let length = buffer.len().min(self.left);
        let count = self.client.read(&mut buffer[..length])?;
        if count == 0 && length > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_any_time_can_be_told_of() {
        for (seconds, nanos) in [(0, 0), (-1, 5), (i64::MIN, 0), (i64::MAX, 999_999_999)] {
            let mtime = modified(seconds, nanos);
            let stat = PathStat {
                name: "f".into(),
                size: 0,
                mode: 0,
                mtime,
                link_target: None,
            };
            encode(&stat).expect("it can be sent");
        }
    }
}
