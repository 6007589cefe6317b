//! an HTTP client of the Engine API: requests, streams and hijacked connections over whatever carries them.
//!
//! One connection per request: a unix connect costs microseconds, and nothing is shared between a command's parallel streams.
//! Knows HTTP and Docker's error body; nothing of commands, terminals or formats.
//!
//! ```text
//! command ──▶ Client::{get, post, send, hijack} ──▶ endpoint::connect (unix | tcp | tls | ssh) ──▶ daemon
//! ```

pub mod autostart;
pub mod endpoint;
mod tls;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use endpoint::Endpoint;

/// Why a request failed, worded for the person who typed the command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The daemon answered with an error.
    #[error("Error response from daemon: {message}")]
    Daemon {
        /// The HTTP status.
        status: StatusCode,
        /// Docker's `{"message": …}`.
        message: String,
    },
    /// Nothing answers at the address.
    #[error("Cannot connect to the caisson daemon at {address}. Is the caisson daemon running?")]
    Unreachable {
        /// The endpoint, as a URL.
        address: String,
    },
    /// The user may not open the socket.
    #[error(
        "permission denied while trying to connect to the caisson daemon socket at {address}: run as root, or as a member of the group that owns the socket"
    )]
    Forbidden {
        /// The endpoint, as a URL.
        address: String,
    },
    /// Name resolution, TLS or a broken connection.
    #[error("error during connect: {method} {address}{path}: {reason}")]
    Connect {
        /// The request's method, as Go writes it.
        method: String,
        /// The endpoint.
        address: String,
        /// The request's path.
        path: String,
        /// What went wrong.
        reason: String,
    },
    /// The daemon could not be started on demand.
    #[error("{0}")]
    Autostart(String),
    /// The answer was cut short or was not what the API promises.
    #[error("unexpected answer from the daemon: {0}")]
    Answer(String),
}

impl Error {
    /// The HTTP status, when the daemon answered.
    pub fn status(&self) -> Option<u16> {
        match self {
            Error::Daemon { status, .. } => Some(status.as_u16()),
            _ => None,
        }
    }
    /// Whether the daemon said that the object does not exist.
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(404)
    }
}

/// Results of requests.
pub type Result<T> = std::result::Result<T, Error>;
type Body = BoxBody<Bytes, std::io::Error>;

/// Builds a request target: path and query, escaped.
pub struct Target {
    path: String,
    query: url::form_urlencoded::Serializer<'static, String>,
    any: bool,
}

/// A request target without a query yet.
pub fn target(path: impl Into<String>) -> Target {
    Target {
        path: path.into(),
        query: url::form_urlencoded::Serializer::new(String::new()),
        any: false,
    }
}

impl Target {
    /// Adds `name=value`.
    pub fn with(mut self, name: &str, value: impl AsRef<str>) -> Self {
        self.query.append_pair(name, value.as_ref());
        self.any = true;
        self
    }
    /// Adds `name=value` unless the value is empty.
    pub fn with_text(self, name: &str, value: &str) -> Self {
        if value.is_empty() {
            self
        } else {
            self.with(name, value)
        }
    }
    /// Adds `name=1` when set.
    pub fn with_flag(self, name: &str, value: bool) -> Self {
        if value { self.with(name, "1") } else { self }
    }
    /// Adds `filters={…}` from `name=value` pairs.
    pub fn with_filters(self, filters: &[String]) -> Self {
        if filters.is_empty() {
            return self;
        }
        let mut map: std::collections::BTreeMap<&str, std::collections::BTreeMap<&str, bool>> =
            Default::default();
        for (name, value) in filters.iter().filter_map(|f| f.split_once('=')) {
            map.entry(name).or_default().insert(value, true);
        }
        let text = serde_json::to_string(&map).expect("a map of strings is JSON");
        self.with("filters", text)
    }
    fn finish(mut self) -> String {
        if self.any {
            format!("{}?{}", self.path, self.query.finish())
        } else {
            self.path
        }
    }
}

impl From<&str> for Target {
    fn from(path: &str) -> Self {
        target(path)
    }
}
impl From<String> for Target {
    fn from(path: String) -> Self {
        target(path)
    }
}

/// Escapes one path segment (a container name may be anything the user typed).
pub fn segment(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b':' | b'@' => {
                escaped.push(byte as char)
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// The same, keeping `/`: image references are several segments.
pub fn segments(text: &str) -> String {
    text.split('/').map(segment).collect::<Vec<_>>().join("/")
}

/// A client of one daemon.
pub struct Client {
    endpoint: Endpoint,
    /// `/v1.41` when the user pinned a version with DOCKER_API_VERSION; otherwise the daemon's own.
    prefix: String,
    headers: Vec<(String, String)>,
}

impl Client {
    /// A client; nothing is connected yet.
    pub fn new(
        endpoint: Endpoint,
        api_version: Option<&str>,
        headers: Vec<(String, String)>,
    ) -> Self {
        let prefix = api_version
            .map(|v| format!("/v{}", v.trim_start_matches('v')))
            .unwrap_or_default();
        Client {
            endpoint,
            prefix,
            headers,
        }
    }

    /// Where requests go, as a URL.
    pub fn address(&self) -> String {
        self.endpoint.address()
    }

    /// Opens a raw connection, for `system dial-stdio`.
    pub async fn dial(&self) -> Result<Box<dyn endpoint::Connection>> {
        self.endpoint
            .connect()
            .await
            .map_err(|e| self.connect_error("Get", "", e))
    }

    fn connect_error(&self, method: &str, path: &str, error: endpoint::ConnectError) -> Error {
        use std::io::ErrorKind as K;
        let address = self.address();
        match error {
            endpoint::ConnectError::Io(e) if e.kind() == K::PermissionDenied => {
                Error::Forbidden { address }
            }
            endpoint::ConnectError::Io(e)
                if matches!(e.kind(), K::NotFound | K::ConnectionRefused) =>
            {
                Error::Unreachable { address }
            }
            endpoint::ConnectError::Autostart(message) => Error::Autostart(message),
            other => Error::Connect {
                method: method.to_owned(),
                address,
                path: path.to_owned(),
                reason: other.to_string(),
            },
        }
    }

    async fn roundtrip(
        &self,
        method: Method,
        target: Target,
        body: Body,
        extra: &[(&str, &str)],
    ) -> Result<Response<Incoming>> {
        let path = format!("{}{}", self.prefix, target.finish());
        let verb = {
            let lower = method.as_str().to_lowercase();
            lower[..1].to_uppercase() + &lower[1..]
        };
        let broken = |reason: String| Error::Connect {
            method: verb.clone(),
            address: self.address(),
            path: path.clone(),
            reason,
        };
        let stream = self
            .endpoint
            .connect()
            .await
            .map_err(|e| self.connect_error(&verb, &path, e))?;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .handshake::<_, Body>(TokioIo::new(stream))
            .await
            .map_err(|e| broken(e.to_string()))?;
        tokio::spawn(async move {
            // Its errors reach the caller through the response and its body.
            let _ = connection.with_upgrades().await;
        });
        let mut request = Request::builder()
            .method(method)
            .uri(&path)
            .header("Host", self.endpoint.host_header())
            .header(
                "User-Agent",
                concat!("caisson/", env!("CARGO_PKG_VERSION"), " (linux)"),
            );
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        for (name, value) in extra {
            request = request.header(*name, *value);
        }
        let request = request.body(body).map_err(|e| broken(e.to_string()))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| broken(root_cause(&e)))?;
        if response.status().is_client_error() || response.status().is_server_error() {
            return Err(daemon_error(response).await);
        }
        Ok(response)
    }

    /// Sends a request with an optional JSON body; the answer's body is still to be read.
    pub async fn send<B: Serialize + ?Sized>(
        &self,
        method: Method,
        target: impl Into<Target>,
        body: Option<&B>,
    ) -> Result<Response<Incoming>> {
        self.send_with(method, target, body, &[]).await
    }

    /// The same with more headers.
    pub async fn send_with<B: Serialize + ?Sized>(
        &self,
        method: Method,
        target: impl Into<Target>,
        body: Option<&B>,
        headers: &[(&str, &str)],
    ) -> Result<Response<Incoming>> {
        let mut all = headers.to_vec();
        let bytes = match body {
            Some(value) => {
                all.push(("Content-Type", "application/json"));
                Bytes::from(serde_json::to_vec(value).map_err(|e| Error::Answer(e.to_string()))?)
            }
            None => {
                if method == Method::POST {
                    all.push(("Content-Type", "text/plain"));
                }
                Bytes::new()
            }
        };
        self.roundtrip(
            method,
            target.into(),
            Full::new(bytes).map_err(|never| match never {}).boxed(),
            &all,
        )
        .await
    }

    /// Sends a streamed body (a tar).
    pub async fn upload<S>(
        &self,
        method: Method,
        target: impl Into<Target>,
        content_type: &str,
        body: S,
    ) -> Result<Response<Incoming>>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + Sync + 'static,
    {
        let body = StreamBody::new(body.map_ok(Frame::data)).boxed();
        self.roundtrip(
            method,
            target.into(),
            body,
            &[("Content-Type", content_type)],
        )
        .await
    }

    /// GET, decoded; members that are `null` count as absent.
    pub async fn get<T: DeserializeOwned>(&self, target: impl Into<Target>) -> Result<T> {
        decode(self.send::<Value>(Method::GET, target, None).await?).await
    }

    /// GET, as the daemon wrote it.
    pub async fn get_raw(&self, target: impl Into<Target>) -> Result<Value> {
        let response = self.send::<Value>(Method::GET, target, None).await?;
        let bytes = response
            .into_body()
            .collect()
            .await
            .map_err(|e| Error::Answer(root_cause(&e)))?
            .to_bytes();
        serde_json::from_slice(&bytes).map_err(|e| Error::Answer(e.to_string()))
    }

    /// POST, decoded; members that are `null` count as absent.
    pub async fn post<T: DeserializeOwned, B: Serialize + ?Sized>(
        &self,
        target: impl Into<Target>,
        body: Option<&B>,
    ) -> Result<T> {
        decode(self.send(Method::POST, target, body).await?).await
    }

    /// POST whose answer has no body worth reading.
    pub async fn act<B: Serialize + ?Sized>(
        &self,
        target: impl Into<Target>,
        body: Option<&B>,
    ) -> Result<()> {
        let response = self.send(Method::POST, target, body).await?;
        response
            .into_body()
            .collect()
            .await
            .map_err(|e| Error::Answer(e.to_string()))?;
        Ok(())
    }

    /// DELETE, decoded; `null` when the answer has no body.
    pub async fn delete(&self, target: impl Into<Target>) -> Result<Value> {
        let response = self.send::<Value>(Method::DELETE, target, None).await?;
        let bytes = response
            .into_body()
            .collect()
            .await
            .map_err(|e| Error::Answer(e.to_string()))?
            .to_bytes();
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|e| Error::Answer(e.to_string()))
    }

    /// POST that turns the connection into a raw two-way stream (attach, exec).
    pub async fn hijack<B: Serialize + ?Sized>(
        &self,
        target: impl Into<Target>,
        body: Option<&B>,
    ) -> Result<Hijacked> {
        let response = self
            .send_with(
                Method::POST,
                target,
                body,
                &[("Connection", "Upgrade"), ("Upgrade", "tcp")],
            )
            .await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(Error::Answer(format!(
                "the daemon did not hand over the connection (status {})",
                response.status()
            )));
        }
        let upgraded = hyper::upgrade::on(response)
            .await
            .map_err(|e| Error::Answer(e.to_string()))?;
        Ok(Hijacked {
            stream: TokioIo::new(upgraded),
        })
    }
}

/// A connection taken over from HTTP.
pub struct Hijacked {
    /// Both directions; shutting the write side down is a half close.
    pub stream: TokioIo<hyper::upgrade::Upgraded>,
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

async fn daemon_error(response: Response<Incoming>) -> Error {
    let status = response.status();
    let bytes = match response.into_body().collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(e) => return Error::Answer(e.to_string()),
    };
    let message = serde_json::from_slice::<Value>(&bytes)
        .ok()
        .and_then(|v| v.get("message").and_then(Value::as_str).map(str::to_owned))
        .unwrap_or_else(|| {
            let text = String::from_utf8_lossy(&bytes).trim().to_owned();
            if text.is_empty() {
                status.to_string()
            } else {
                text
            }
        });
    Error::Daemon {
        status,
        message: message.trim().to_owned(),
    }
}

async fn decode<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T> {
    let bytes = response
        .into_body()
        .collect()
        .await
        .map_err(|e| Error::Answer(root_cause(&e)))?
        .to_bytes();
    caisson_api::from_json(&bytes).map_err(|e| Error::Answer(e.to_string()))
}

/// Reads an answer's body chunk by chunk.
pub async fn next_chunk(body: &mut Incoming) -> Result<Option<Bytes>> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Error::Answer(root_cause(&e)))?;
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// Cuts a body into JSON values, however the daemon packs them (lines or back to back).
pub struct JsonStream {
    body: Incoming,
    buffer: Vec<u8>,
    ended: bool,
}

impl JsonStream {
    /// Over an answer's body.
    pub fn new(response: Response<Incoming>) -> Self {
        JsonStream {
            body: response.into_body(),
            buffer: Vec::new(),
            ended: false,
        }
    }

    /// The next value; `None` when the stream ends.
    pub async fn next(&mut self) -> Result<Option<Value>> {
        loop {
            let mut values =
                serde_json::Deserializer::from_slice(&self.buffer).into_iter::<Value>();
            match values.next() {
                Some(Ok(value)) => {
                    let used = values.byte_offset();
                    self.buffer.drain(..used);
                    return Ok(Some(value));
                }
                Some(Err(e)) if !e.is_eof() => return Err(Error::Answer(e.to_string())),
                Some(Err(e)) if self.ended => return Err(Error::Answer(e.to_string())),
                None if self.ended => return Ok(None),
                _ => {}
            }
            match next_chunk(&mut self.body).await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => self.ended = true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_escape_their_path_segment() {
        assert_eq!(segment("a/../b?x=1#y z%"), "a%2F..%2Fb%3Fx%3D1%23y%20z%25");
        assert_eq!(
            segments("host:5000/a b/c:1@sha256:ab"),
            "host:5000/a%20b/c:1@sha256:ab"
        );
    }

    #[test]
    fn filters_are_grouped_by_name() {
        let text = target("/x")
            .with_filters(&["label=a".into(), "label=b=c".into(), "status=up".into()])
            .finish();
        let query = text.strip_prefix("/x?").expect("has a query");
        let (_, value) = url::form_urlencoded::parse(query.as_bytes())
            .next()
            .expect("one pair");
        assert_eq!(
            value,
            r#"{"label":{"a":true,"b=c":true},"status":{"up":true}}"#
        );
    }
}
