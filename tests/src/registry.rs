//! Debian's docker-registry on loopback, and a proxy in front of it that breaks connections.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::rest;
use crate::target::on_path;

/// User and password of a registry with authentication.
pub const LOGIN: (&str, &str) = ("ali", "open sesame");
const HTPASSWD: &str = "ali:$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n";

/// A registry with storage of its own; ends when dropped.
pub struct Registry {
    child: Child,
    directory: tempfile::TempDir,
    address: SocketAddr,
}

impl Registry {
    /// Starts one, or says why it cannot.
    pub fn start(authenticated: bool) -> Result<Registry, String> {
        let program = on_path("docker-registry")
            .ok_or("no docker-registry: apt-get install docker-registry")?;
        let failed = |e: std::io::Error| format!("cannot start docker-registry: {e}");
        let directory = tempfile::Builder::new()
            .prefix("caisson-registry-")
            .tempdir_in(crate::daemon::test_directory())
            .map_err(failed)?;
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|l| l.local_addr())
            .map_err(failed)?
            .port();
        let root = directory.path().display();
        let mut config = format!("version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {root}/data\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:{port}\n").replace("\\\n", "\n");
        if authenticated {
            std::fs::write(directory.path().join("htpasswd"), HTPASSWD).map_err(failed)?;
            config += &format!("auth:\n  htpasswd:\n    realm: test\n    path: {root}/htpasswd\n");
        }
        let path = directory.path().join("config.yml");
        std::fs::write(&path, config).map_err(failed)?;
        let mut command = Command::new(program);
        command
            .arg("serve")
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().map_err(failed)?;
        let registry = Registry {
            child,
            directory,
            address: ([127, 0, 0, 1], port).into(),
        };
        let until = Instant::now() + crate::patience(20);
        while TcpStream::connect(registry.address).is_err() {
            if Instant::now() > until {
                return Err("docker-registry does not answer".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(registry)
    }

    /// `localhost:PORT`, the beginning of its images' names.
    pub fn name(&self) -> String {
        format!("localhost:{}", self.address.port())
    }

    /// Asks it directly.
    pub fn request(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> rest::Answer {
        let stream = TcpStream::connect(self.address).expect("the registry answers");
        rest::send(stream, method, path, headers, body).expect("the registry answers")
    }

    /// The file in which it keeps a blob.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        self.directory.path().join(format!(
            "data/docker/registry/v2/blobs/sha256/{}/{hex}/data",
            &hex[..2]
        ))
    }

    /// A proxy in front of it that cuts the first `cuts` answers after `after_bytes`; returns its name.
    pub fn unreliable(&self, cuts: u64, after_bytes: u64) -> (String, Arc<AtomicU64>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let name = format!("localhost:{}", listener.local_addr().expect("bound").port());
        let left = Arc::new(AtomicU64::new(cuts));
        let (target, remaining) = (self.address, left.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let remaining = remaining.clone();
                std::thread::spawn(move || {
                    let Ok(server) = TcpStream::connect(target) else {
                        return;
                    };
                    let (Ok(mut request), Ok(mut upstream)) =
                        (client.try_clone(), server.try_clone())
                    else {
                        return;
                    };
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut request, &mut upstream);
                        let _ = upstream.shutdown(std::net::Shutdown::Write);
                    });
                    forward(server, client, &remaining, after_bytes);
                });
            }
        });
        (name, left)
    }
}

/// Copies an answer; cuts the connection once it carried `after_bytes`, as long as cuts are left.
fn forward(mut server: TcpStream, mut client: TcpStream, cuts_left: &AtomicU64, after_bytes: u64) {
    let mut buffer = [0; 16384];
    let mut passed = 0;
    while let Ok(count @ 1..) = server.read(&mut buffer) {
        if client.write_all(&buffer[..count]).is_err() {
            break;
        }
        passed += count as u64;
        let cut = |left: u64| left.checked_sub(1);
        if passed >= after_bytes
            && cuts_left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, cut)
                .is_ok()
        {
            break;
        }
    }
    let _ = client.shutdown(std::net::Shutdown::Both);
    let _ = server.shutdown(std::net::Shutdown::Both);
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
