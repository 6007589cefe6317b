//! Unix sockets at paths of any length: addresses are short, so the directory is named by its descriptor.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Connects with a socket.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let (_dir, address) = address_of(path)?;
    UnixStream::connect(address)
}

/// Listens on a new socket.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let (_dir, address) = address_of(path)?;
    UnixListener::bind(address)
}

fn address_of(path: &Path) -> io::Result<(File, PathBuf)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = File::open(parent)?;
    let address = Path::new("/proc/self/fd")
        .join(dir.as_raw_fd().to_string())
        .join(name);
    Ok((dir, address))
}
