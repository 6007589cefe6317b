//! where the daemon is: reading `unix://`, `tcp://`, `ssh://` addresses and connecting to them.

use std::path::PathBuf;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::{autostart, tls};

/// Where caisson listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/caisson.sock";

/// Any byte stream to a daemon.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// How TLS is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate authority that must have signed the daemon's certificate.
    pub ca: Option<PathBuf>,
    /// The client's certificate.
    pub cert: Option<PathBuf>,
    /// The client's key.
    pub key: Option<PathBuf>,
    /// Whether the daemon's certificate is verified at all.
    pub skip_verify: bool,
}

/// How the bytes travel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A unix socket.
    Unix(PathBuf),
    /// Plain or encrypted TCP.
    Tcp {
        /// Host name or address.
        host: String,
        /// Port number.
        port: u16,
    },
    /// `caisson system dial-stdio` on another machine.
    Ssh {
        /// `user@host`, as ssh takes it.
        destination: String,
        /// The port, if not ssh's own.
        port: Option<u16>,
    },
}

/// A daemon's address with everything needed to reach it.
#[derive(Clone)]
pub struct Endpoint {
    transport: Transport,
    tls: Option<Arc<tls::Connector>>,
    autostart: bool,
}

/// Why connecting failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The operating system said so.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The host name has no address.
    #[error("dial tcp: lookup {host}: {reason}")]
    Lookup {
        /// The host name.
        host: String,
        /// The resolver's words.
        reason: String,
    },
    /// The daemon could not be started.
    #[error("{0}")]
    Autostart(String),
}

/// Reads an address as `-H` takes it.
pub fn parse(address: &str) -> Result<Transport, String> {
    let text = address.trim();
    if let Some(path) = text.strip_prefix("unix://") {
        if path.is_empty() {
            return Ok(Transport::Unix(DEFAULT_SOCKET.into()));
        }
        return Ok(Transport::Unix(path.into()));
    }
    if text.is_empty() {
        return Ok(Transport::Unix(DEFAULT_SOCKET.into()));
    }
    if let Some(rest) = text.strip_prefix("ssh://") {
        let rest = rest.trim_end_matches('/');
        if rest.is_empty() || rest.contains('/') {
            return Err(format!(
                "invalid ssh address {address:?}: expected ssh://[user@]host[:port]"
            ));
        }
        if rest.starts_with('-') || rest.contains("@-") {
            return Err(format!(
                "invalid ssh address {address:?}: a host cannot begin with '-'"
            ));
        }
        return match rest.rsplit_once(':') {
            Some((destination, port)) if !port.contains(']') => {
                let port = port
                    .parse()
                    .map_err(|_| format!("invalid ssh address {address:?}: bad port"))?;
                Ok(Transport::Ssh {
                    destination: destination.to_owned(),
                    port: Some(port),
                })
            }
            _ => Ok(Transport::Ssh {
                destination: rest.to_owned(),
                port: None,
            }),
        };
    }
    let rest = match text.split_once("://") {
        Some(("tcp" | "http" | "https", rest)) => rest,
        Some((_, _)) => return Err(format!("invalid bind address format: {address}")),
        None => text,
    };
    let rest = rest.trim_end_matches('/');
    let (host, port) = match rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => match rest.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (rest, None),
        },
    };
    let port = match port {
        Some(port) => port
            .parse()
            .map_err(|_| format!("invalid address {address:?}: bad port {port:?}"))?,
        None => 2375,
    };
    let host = if host.is_empty() { "localhost" } else { host };
    Ok(Transport::Tcp {
        host: host.to_owned(),
        port,
    })
}

impl Endpoint {
    /// An endpoint the user named.
    pub fn new(transport: Transport, tls: Option<&TlsFiles>) -> Result<Self, String> {
        let tls = match (&transport, tls) {
            (Transport::Tcp { .. }, Some(files)) => Some(Arc::new(tls::Connector::load(files)?)),
            _ => None,
        };
        Ok(Endpoint {
            transport,
            tls,
            autostart: false,
        })
    }

    /// The default socket, behind which a daemon is started when none listens.
    pub fn local_default() -> Self {
        Endpoint {
            transport: Transport::Unix(DEFAULT_SOCKET.into()),
            tls: None,
            autostart: true,
        }
    }

    /// As a URL.
    pub fn address(&self) -> String {
        match &self.transport {
            Transport::Unix(path) => format!("unix://{}", path.display()),
            Transport::Tcp { host, port } => format!("tcp://{host}:{port}"),
            Transport::Ssh {
                destination,
                port: Some(port),
            } => format!("ssh://{destination}:{port}"),
            Transport::Ssh {
                destination,
                port: None,
            } => format!("ssh://{destination}"),
        }
    }

    pub(super) fn host_header(&self) -> String {
        match &self.transport {
            Transport::Tcp { host, port } => format!("{host}:{port}"),
            _ => "api.caisson.localhost".to_owned(),
        }
    }

    /// Opens a connection.
    pub async fn connect(&self) -> Result<Box<dyn Connection>, ConnectError> {
        match &self.transport {
            Transport::Unix(path) => match UnixStream::connect(path).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(e)
                    if self.autostart
                        && matches!(
                            e.kind(),
                            std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
                        ) =>
                {
                    autostart::ensure_daemon(path)
                        .await
                        .map_err(ConnectError::Autostart)?;
                    Ok(Box::new(UnixStream::connect(path).await?))
                }
                Err(e) => Err(e.into()),
            },
            Transport::Tcp { host, port } => {
                let addresses: Vec<_> = tokio::net::lookup_host((host.as_str(), *port))
                    .await
                    .map_err(|e| ConnectError::Lookup {
                        host: host.clone(),
                        reason: e.to_string(),
                    })?
                    .collect();
                let stream = TcpStream::connect(addresses.as_slice()).await?;
                stream.set_nodelay(true)?;
                match &self.tls {
                    Some(connector) => Ok(Box::new(connector.connect(host, stream).await?)),
                    None => Ok(Box::new(stream)),
                }
            }
            Transport::Ssh { destination, port } => {
                let mut command = tokio::process::Command::new("ssh");
                if let Some(port) = port {
                    command.arg("-p").arg(port.to_string());
                }
                command.args([
                    "-o",
                    "ConnectTimeout=30",
                    "-T",
                    "--",
                    destination,
                    "caisson",
                    "system",
                    "dial-stdio",
                ]);
                let mut child = command
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .kill_on_drop(false)
                    .spawn()?;
                let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
                    return Err(std::io::Error::other("ssh was started without pipes").into());
                };
                Ok(Box::new(Piped {
                    output,
                    input: Some(input),
                }))
            }
        }
    }
}

/// The two pipes of a child as one stream. Shutting it down closes the child's input, which a pipe cannot say otherwise.
struct Piped {
    output: tokio::process::ChildStdout,
    input: Option<tokio::process::ChildStdin>,
}

impl AsyncRead for Piped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.output).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Piped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match self.input.as_mut() {
            Some(input) => Pin::new(input).poll_write(cx, bytes),
            None => Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into())),
        }
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.input.as_mut() {
            Some(input) => Pin::new(input).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let flushed = self.as_mut().poll_flush(cx);
        if flushed.is_ready() {
            self.input = None;
        }
        flushed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_docker_reads_them() {
        let tcp = |host: &str, port| Transport::Tcp {
            host: host.into(),
            port,
        };
        let ssh = |destination: &str, port| Transport::Ssh {
            destination: destination.into(),
            port,
        };
        for (text, transport) in [
            ("unix:///a/b.sock", Transport::Unix("/a/b.sock".into())),
            ("unix://", Transport::Unix(DEFAULT_SOCKET.into())),
            ("", Transport::Unix(DEFAULT_SOCKET.into())),
            ("tcp://h:1", tcp("h", 1)),
            ("tcp://h", tcp("h", 2375)),
            ("foo", tcp("foo", 2375)),
            ("tcp://[::1]:99", tcp("::1", 99)),
            ("tcp://:99", tcp("localhost", 99)),
            ("ssh://u@h:22", ssh("u@h", Some(22))),
            ("ssh://h", ssh("h", None)),
        ] {
            assert_eq!(parse(text), Ok(transport), "{text}");
        }
        for text in [
            "tcp://h:x",
            "ftp://h",
            "ssh://",
            "ssh://-oProxyCommand=x",
            "ssh://h/path",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn shutting_a_piped_stream_down_ends_the_childs_input() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut child = tokio::process::Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cat starts");
        let input = child.stdin.take();
        let output = child.stdout.take().expect("piped");
        let mut stream = Piped { output, input };
        stream.write_all(b"x").await.expect("written");
        stream.shutdown().await.expect("shut down");
        let mut text = String::new();
        stream
            .read_to_string(&mut text)
            .await
            .expect("read to its end");
        assert_eq!(text, "x");
        assert!(stream.write_all(b"y").await.is_err());
    }
}
