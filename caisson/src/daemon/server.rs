//! Accepting connections and speaking HTTP/1.1 over them. Knows nothing of routes.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;
use tower::Service;

use super::listeners::Listener;

/// How long a stranger on TCP may take for a handshake or a request head.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves one socket for ever; ends when its task is aborted.
pub async fn serve<S>(listener: Listener, tls: Option<Arc<TlsAcceptor>>, service: S)
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    let result = match listener {
        Listener::Unix(socket) => match UnixListener::from_std(socket) {
            Ok(socket) => serve_unix(socket, service).await,
            Err(e) => Err(e),
        },
        Listener::Tcp(socket) => match TcpListener::from_std(socket) {
            Ok(socket) => serve_tcp(socket, tls, service).await,
            Err(e) => Err(e),
        },
    };
    if let Err(error) = result {
        tracing::error!(%error, "a socket cannot be served any more");
    }
}

async fn serve_unix<S>(socket: UnixListener, service: S) -> io::Result<()>
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    loop {
        match socket.accept().await {
            Ok((stream, _)) => {
                let service = service.clone();
                tokio::spawn(async move { converse(stream, service).await });
            }
            Err(error) => pause_after(error).await?,
        }
    }
}

async fn serve_tcp<S>(
    socket: TcpListener,
    tls: Option<Arc<TlsAcceptor>>,
    service: S,
) -> io::Result<()>
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    loop {
        let (stream, peer) = match socket.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                pause_after(error).await?;
                continue;
            }
        };
        let (service, tls) = (service.clone(), tls.clone());
        tokio::spawn(async move {
            // A delayed small packet would only slow interactive streams down.
            let _ = stream.set_nodelay(true);
            let Some(tls) = tls else {
                return converse(stream, service).await;
            };
            match tokio::time::timeout(PATIENCE, tls.accept(stream)).await {
                Ok(Ok(stream)) => converse(stream, service).await,
                Ok(Err(error)) => tracing::info!(%peer, %error, "TLS handshake failed"),
                Err(_) => tracing::info!(%peer, "TLS handshake took too long"),
            }
        });
    }
}

/// Accepting can fail for want of descriptors, which passes; other errors do not.
async fn pause_after(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(nix::libc::EMFILE | nix::libc::ENFILE | nix::libc::ENOBUFS | nix::libc::ENOMEM) => {
            tracing::warn!(%error, "cannot accept a connection now");
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok(())
        }
        Some(nix::libc::ECONNABORTED | nix::libc::EINTR | nix::libc::EPROTO) => Ok(()),
        _ => Err(error),
    }
}

async fn converse<S>(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, service: S)
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(None);
    let connection = http
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "connection ended");
    }
}
