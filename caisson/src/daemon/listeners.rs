//! The daemon's sockets: made, taken from systemd, removed again. Knows nothing of HTTP.
//!
//! A unix socket appears under its name only when it listens and has its owner and mode (made aside, then renamed), so no
//! client ever meets one that is half made. A stale socket is replaced; one that answers belongs to another daemon, which is
//! an error.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::settings::Host;

/// A socket that listens.
pub enum Listener {
    /// A path socket, or one from systemd.
    Unix(UnixListener),
    /// TCP; whether TLS is spoken is the server's matter.
    Tcp(std::net::TcpListener),
}

/// All sockets of the daemon. Dropping it removes the path sockets made here.
pub struct Listeners {
    pub sockets: Vec<Listener>,
    made: Vec<MadeSocket>,
}

/// A socket file that we made; removed on drop unless someone replaced it.
struct MadeSocket {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for MadeSocket {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.inode) {
            // Nothing is left to do when this fails: the next daemon replaces it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Listeners {
    /// Listens on every host.
    pub fn open(hosts: &[Host], group: Option<&str>) -> Result<Self, String> {
        let mut all = Listeners {
            sockets: Vec::new(),
            made: Vec::new(),
        };
        for host in hosts {
            match host {
                Host::Unix(path) => {
                    let (listener, made) = listen_unix(path, group)?;
                    all.sockets.push(Listener::Unix(listener));
                    all.made.push(made);
                }
                Host::Tcp(address) => {
                    let listener = std::net::TcpListener::bind(address)
                        .map_err(|e| format!("cannot listen on tcp://{address}: {e}"))?;
                    all.sockets.push(Listener::Tcp(listener));
                }
                Host::Fd(name) => all.sockets.extend(inherited(name.as_deref())?),
            }
        }
        for socket in &all.sockets {
            match socket {
                Listener::Unix(s) => s.set_nonblocking(true),
                Listener::Tcp(s) => s.set_nonblocking(true),
            }
            .map_err(|e| format!("cannot prepare a socket: {e}"))?;
        }
        Ok(all)
    }
}

/// Sockets passed by systemd (`LISTEN_FDS`); `name` chooses one by its `LISTEN_FDNAMES` name or descriptor number.
fn inherited(name: Option<&str>) -> Result<Vec<Listener>, String> {
    let mut fds = listenfd::ListenFd::from_env();
    if fds.len() == 0 {
        return Err(
            "-H fd:// needs sockets handed over by systemd (a .socket unit), and there are none"
                .into(),
        );
    }
    let names: Vec<String> = std::env::var("LISTEN_FDNAMES")
        .unwrap_or_default()
        .split(':')
        .map(str::to_owned)
        .collect();
    let mut found = Vec::new();
    for index in 0..fds.len() {
        let wanted = name.is_none_or(|n| {
            n == (index + 3).to_string() || names.get(index).is_some_and(|x| x == n)
        });
        if !wanted {
            continue;
        }
        let unix = fds.take_unix_listener(index);
        let listener = match unix {
            Ok(Some(listener)) => Some(Listener::Unix(listener)),
            _ => fds
                .take_tcp_listener(index)
                .ok()
                .flatten()
                .map(Listener::Tcp),
        };
        found.push(listener.ok_or(format!(
            "descriptor {} from systemd is not a listening stream socket",
            index + 3
        ))?);
    }
    match (found.is_empty(), name) {
        (true, Some(name)) => Err(format!("systemd handed over no socket named {name:?}")),
        _ => Ok(found),
    }
}

fn listen_unix(path: &Path, group: Option<&str>) -> Result<(UnixListener, MadeSocket), String> {
    let failed = |what: &str, e: &dyn std::fmt::Display| {
        format!("cannot listen on unix://{}: {what}: {e}", path.display())
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|e| failed("making its directory", &e))?;
    }
    match std::fs::symlink_metadata(path) {
        Err(_) => {}
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(format!(
                "cannot listen on unix://{}: the path exists and is not a socket",
                path.display()
            ));
        }
        Ok(_) => {
            if UnixStream::connect(path).is_ok() {
                return Err(format!(
                    "another daemon listens on unix://{}: stop it, or choose another socket with -H unix://PATH",
                    path.display()
                ));
            }
        }
    }
    let aside = path.with_extension(format!("new-{}", std::process::id()));
    // Left by a killed daemon of the same process id, if it exists at all.
    let _ = std::fs::remove_file(&aside);
    let listener = UnixListener::bind(&aside).map_err(|e| failed("bind", &e))?;
    let prepared = (|| -> Result<MadeSocket, String> {
        std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(0o660))
            .map_err(|e| failed("chmod", &e))?;
        if let Some(gid) = group_id(group)? {
            std::os::unix::fs::chown(&aside, None, Some(gid)).map_err(|e| failed("chgrp", &e))?;
        }
        let meta = std::fs::symlink_metadata(&aside).map_err(|e| failed("stat", &e))?;
        std::fs::rename(&aside, path).map_err(|e| failed("rename", &e))?;
        Ok(MadeSocket {
            path: path.to_owned(),
            inode: (meta.dev(), meta.ino()),
        })
    })();
    if prepared.is_err() {
        let _ = std::fs::remove_file(&aside);
    }
    Ok((listener, prepared?))
}

/// The group asked for must exist; the one we would like (`caisson`) may.
fn group_id(group: Option<&str>) -> Result<Option<u32>, String> {
    let name = group.unwrap_or("caisson");
    if let Ok(number) = name.parse() {
        return Ok(Some(number));
    }
    match nix::unistd::Group::from_name(name) {
        Ok(Some(found)) => Ok(Some(found.gid.as_raw())),
        Ok(None) if group.is_none() => Ok(None),
        Ok(None) => Err(format!(
            "group {name:?} does not exist: make it with `groupadd {name}` or choose another with --group"
        )),
        Err(e) => Err(format!("cannot look up group {name:?}: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Result<Listeners, String> {
        Listeners::open(&[Host::Unix(path.to_owned())], None)
    }

    #[test]
    fn a_stale_socket_is_replaced_a_live_one_refused_and_ours_removed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("deep/c.sock");
        drop(UnixListener::bind(dir.path().join("stale")).expect("bind"));
        open(&dir.path().join("stale")).expect("stale sockets are replaced");

        let first = open(&path).expect("free path");
        assert_eq!(
            std::fs::metadata(&path)
                .expect("exists")
                .permissions()
                .mode()
                & 0o777,
            0o660
        );
        let refused = open(&path).err().expect("live socket");
        assert!(refused.contains("another daemon listens"), "{refused}");
        UnixStream::connect(&path).expect("the first one is unharmed");
        drop(first);
        assert!(!path.exists());
        assert_eq!(
            std::fs::read_dir(path.parent().expect("has one"))
                .expect("readable")
                .count(),
            0
        );
    }

    #[test]
    fn a_socket_that_was_replaced_is_not_removed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("c.sock");
        let first = open(&path).expect("free path");
        std::fs::remove_file(&path).expect("remove");
        let _other = UnixListener::bind(&path).expect("bind");
        drop(first);
        assert!(path.exists());
    }

    #[test]
    fn other_files_are_never_replaced() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("precious");
        std::fs::write(&path, "x").expect("write");
        assert!(open(&path).err().expect("refused").contains("not a socket"));
        assert_eq!(std::fs::read(&path).expect("still there"), b"x");
    }

    #[test]
    fn an_unknown_group_leaves_nothing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let host = [Host::Unix(dir.path().join("c.sock"))];
        assert!(Listeners::open(&host, Some("no-such-group-here")).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0);
    }
}
