//! Streams of containers over HTTP: framing, hijacked connections, raw answers.
//!
//! Without a terminal, standard output and error share one connection in frames:
//!
//! ```text
//! byte   0        1 2 3    4 5 6 7            8 …
//!        stream   0 0 0    length, big-endian payload        stream: 0 stdin, 1 stdout, 2 stderr
//! ```
//! With a terminal the bytes are sent as they are. A hijacked connection (`101 UPGRADED`) carries standard input the other
//! way, always raw; the client's shutdown of its writing half is the end of standard input and of nothing else.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use caisson_engine::runtime::Output;
use caisson_engine::{Attachment, InputSink, OutputStream};
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use super::body::upload;
use super::hangup::Hangup;
use super::version::ApiVersion;

const RAW: &str = "application/vnd.docker.raw-stream";
const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";

/// How much of a busy stream is put into one chunk of an answer.
const COALESCED_BYTES: usize = 64 << 10;

/// Whether output is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// A terminal: as it is.
    Raw,
    /// Two streams in frames.
    Frames,
}

impl Framing {
    /// What a process with or without a terminal gets.
    pub fn of_tty(tty: bool) -> Self {
        if tty { Framing::Raw } else { Framing::Frames }
    }

    /// The content type; frames were called raw too before 1.42.
    pub fn content_type(self, version: ApiVersion) -> &'static str {
        match self {
            Framing::Frames if version >= ApiVersion(1, 42) => MULTIPLEXED,
            _ => RAW,
        }
    }

    /// The frame's head; nothing for raw streams.
    fn head(self, output: &Output) -> Bytes {
        let (stream, payload) = match output {
            Output::Stdout(payload) => (1u8, payload),
            Output::Stderr(payload) => (2u8, payload),
        };
        match self {
            Framing::Raw => Bytes::new(),
            Framing::Frames => {
                let length = u32::try_from(payload.len()).expect("chunks are far below 4 GiB");
                let mut head = BytesMut::with_capacity(8);
                head.put_u8(stream);
                head.put_bytes(0, 3);
                head.put_u32(length);
                head.freeze()
            }
        }
    }
}

fn payload(output: Output) -> Bytes {
    match output {
        Output::Stdout(bytes) | Output::Stderr(bytes) => bytes,
    }
}

/// A client's request for a connection of its own.
pub struct Upgrade {
    connection: OnUpgrade,
    /// How long the client needs to read the answer's head. docker-py reads it with a buffer and the stream without, and so
    /// loses what arrives together with the head; dockerd is merely slow enough for that not to be noticed.
    patience: Duration,
}

/// Present when the client sent `Upgrade`.
pub fn upgrade_of(headers: &HeaderMap, extensions: &mut http::Extensions) -> Option<Upgrade> {
    if !headers.contains_key(header::UPGRADE) {
        return None;
    }
    let agent = headers
        .get(header::USER_AGENT)
        .and_then(|a| a.to_str().ok())
        .unwrap_or_default();
    let buffers = agent.starts_with("docker-sdk-python") || agent.starts_with("docker-py");
    Some(Upgrade {
        connection: extensions.remove::<OnUpgrade>()?,
        patience: if buffers {
            Duration::from_millis(30)
        } else {
            Duration::ZERO
        },
    })
}

/// Connects a client to an attachment: over a connection of its own when it asked for one, else output as the answer and
/// the request's body as input.
pub fn connect(
    attachment: Attachment,
    upgrade: Option<Upgrade>,
    body: Body,
    version: ApiVersion,
) -> Response {
    let framing = Framing::of_tty(attachment.tty);
    match upgrade {
        Some(upgrade) => take_over(upgrade, framing, version, std::future::ready(attachment)),
        None => {
            if let Some(input) = attachment.input {
                tokio::spawn(async move {
                    // Its end, good or bad, is the end of standard input.
                    let _ = feed(upload(body).0, input).await;
                });
            }
            answer(attachment.output, framing, version)
        }
    }
}

/// Takes a connection over; `attaching` begins once the client has the answer's head.
pub fn take_over(
    upgrade: Upgrade,
    framing: Framing,
    version: ApiVersion,
    attaching: impl Future<Output = Attachment> + Send + 'static,
) -> Response {
    tokio::spawn(async move {
        match upgrade.connection.await {
            Ok(connection) => {
                tokio::time::sleep(upgrade.patience).await;
                // A client that left meanwhile is noticed once its descriptor is watched.
                let attachment = attaching.await;
                match connection.downcast::<TokioIo<UnixStream>>() {
                    Ok(parts) => {
                        let stream = parts.io.into_inner();
                        let hangup = Hangup::of(&stream);
                        let (reader, writer) = stream.into_split();
                        // What came along with the request's head is input too.
                        let early = std::io::Cursor::new(parts.read_buf);
                        let reader = AsyncReadExt::chain(early, reader);
                        pump(reader, writer, attachment, framing, hangup).await;
                    }
                    Err(connection) => {
                        let (reader, writer) = tokio::io::split(TokioIo::new(connection));
                        pump(reader, writer, attachment, framing, Hangup::unnoticed()).await;
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "the client did not take its connection over"),
        }
    });
    let headers = [
        (header::CONTENT_TYPE, framing.content_type(version)),
        (header::CONNECTION, "Upgrade"),
        (header::UPGRADE, "tcp"),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

/// Moves bytes both ways until the output ends, the client is gone, or it detached.
async fn pump(
    reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    attachment: Attachment,
    framing: Framing,
    hangup: Hangup,
) {
    let feeding = async {
        match attachment.input {
            Some(input) => match feed(reader, input).await {
                Ok(()) => std::future::pending().await,
                Err(error) => error,
            },
            None => std::future::pending().await,
        }
    };
    let result = {
        let delivering = deliver(attachment.output, &mut writer, framing);
        tokio::pin!(delivering, feeding);
        tokio::select! {
            result = &mut delivering => result,
            () = hangup.wait() => Ok(()),
            // Detaching ends the output by itself; what was said before is still delivered.
            error = feeding => match error.kind() {
                io::ErrorKind::ConnectionReset => Err(error),
                _ => delivering.await,
            },
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a client left");
    }
    // The client may be gone already.
    let _ = writer.shutdown().await;
}

/// Copies a client's bytes to standard input; its end of file closes it. An error of the process' side (it does not read
/// any more, or the client detached) is not the client's business: its bytes are then thrown away.
async fn feed(mut reader: impl AsyncRead + Unpin, mut input: InputSink) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(32 << 10);
    loop {
        buffer.clear();
        if reader.read_buf(&mut buffer).await? == 0 {
            // A process that ended has no standard input left to close.
            let _ = input.shutdown().await;
            return Ok(());
        }
        let written = async {
            input.write_all(&buffer).await?;
            input.flush().await
        };
        match written.await {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => return Err(error),
            Err(_) => {
                tokio::io::copy(&mut reader, &mut tokio::io::sink()).await?;
                return Ok(());
            }
        }
    }
}

async fn deliver(
    mut output: OutputStream,
    writer: &mut (impl AsyncWrite + Unpin),
    framing: Framing,
) -> io::Result<()> {
    while let Some(item) = output.next().await {
        let item = item?;
        let mut message = framing.head(&item).chain(payload(item));
        writer.write_all_buf(&mut message).await?;
    }
    writer.flush().await
}

/// Output as an ordinary answer that streams.
pub fn answer(output: OutputStream, framing: Framing, version: ApiVersion) -> Response {
    let body = Body::from_stream(coalesce(output, framing));
    (
        [(header::CONTENT_TYPE, framing.content_type(version))],
        body,
    )
        .into_response()
}

/// Puts what is ready together, so that a thousand short lines are not a thousand chunks.
fn coalesce(
    output: OutputStream,
    framing: Framing,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    futures_util::stream::unfold(Some(output), move |state| async move {
        let mut output = state?;
        let mut chunk = BytesMut::new();
        loop {
            let next = if chunk.is_empty() {
                output.next().await
            } else {
                match futures_util::poll!(output.next()) {
                    std::task::Poll::Ready(next) => next,
                    std::task::Poll::Pending => return Some((Ok(chunk.freeze()), Some(output))),
                }
            };
            match next {
                Some(Ok(item)) => {
                    chunk.extend_from_slice(&framing.head(&item));
                    chunk.extend_from_slice(&payload(item));
                    if chunk.len() >= COALESCED_BYTES {
                        return Some((Ok(chunk.freeze()), Some(output)));
                    }
                }
                Some(Err(error)) if chunk.is_empty() => return Some((Err(error), None)),
                // Said with the next chunk: `output` remembers nothing, so the error must not be lost.
                Some(Err(error)) => {
                    let failed: OutputStream = Box::pin(futures_util::stream::iter([Err(error)]));
                    return Some((Ok(chunk.freeze()), Some(failed)));
                }
                None if chunk.is_empty() => return None,
                None => return Some((Ok(chunk.freeze()), None)),
            }
        }
    })
}

/// An attachment that only says something: how a failed exec tells its client why.
pub fn message_attachment(tty: bool, text: String) -> Attachment {
    let output: Pin<Box<dyn Stream<Item = io::Result<Output>> + Send>> = Box::pin(
        futures_util::stream::iter([Ok(Output::Stdout(Bytes::from(text)))]),
    );
    Attachment {
        tty,
        output,
        input: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream_of(items: Vec<io::Result<Output>>) -> OutputStream {
        Box::pin(futures_util::stream::iter(items))
    }

    fn sample() -> OutputStream {
        stream_of(vec![
            Ok(Output::Stdout("ab".into())),
            Ok(Output::Stderr("c".into())),
        ])
    }

    #[tokio::test]
    async fn frames_say_stream_and_length() {
        let mut wire = Vec::new();
        deliver(sample(), &mut wire, Framing::Frames)
            .await
            .expect("a Vec takes everything");
        assert_eq!(wire, b"\x01\0\0\0\0\0\0\x02ab\x02\0\0\0\0\0\0\x01c");
        let mut wire = Vec::new();
        deliver(sample(), &mut wire, Framing::Raw)
            .await
            .expect("a Vec takes everything");
        assert_eq!(wire, b"abc");
    }

    #[tokio::test]
    async fn coalescing_keeps_order_and_errors() {
        let chunks: Vec<_> = coalesce(sample(), Framing::Raw).collect().await;
        assert_eq!(chunks.len(), 1);
        assert_eq!(chunks[0].as_ref().expect("data"), &Bytes::from("abc"));
        let failing = stream_of(vec![
            Ok(Output::Stdout("x".into())),
            Err(io::Error::other("lost")),
        ]);
        let chunks: Vec<_> = coalesce(failing, Framing::Raw).collect().await;
        assert_eq!(chunks[0].as_ref().expect("data first"), &Bytes::from("x"));
        assert!(chunks[1].is_err());
        assert_eq!(chunks.len(), 2);
    }

    #[test]
    fn content_types_follow_the_version() {
        assert_eq!(Framing::Frames.content_type(ApiVersion(1, 42)), MULTIPLEXED);
        assert_eq!(Framing::Frames.content_type(ApiVersion(1, 41)), RAW);
        assert_eq!(Framing::Raw.content_type(ApiVersion(1, 47)), RAW);
    }

    /// The end of standard input must not end the output (`echo x | docker run -i … cat` would lose it).
    #[tokio::test]
    async fn half_close_ends_input_only() {
        let (client, server) = tokio::io::duplex(64);
        let (stdin_end, mut stdin) = tokio::io::duplex(64);
        let output = futures_util::stream::once(async move {
            let mut read = Vec::new();
            stdin.read_to_end(&mut read).await?;
            Ok(Output::Stdout(Bytes::from(read)))
        });
        let attachment = Attachment {
            tty: true,
            output: Box::pin(output),
            input: Some(Box::pin(stdin_end)),
        };
        let (reader, writer) = tokio::io::split(server);
        let pumping = tokio::spawn(pump(
            reader,
            writer,
            attachment,
            Framing::Raw,
            Hangup::unnoticed(),
        ));
        let (mut from, mut to) = tokio::io::split(client);
        to.write_all(b"echo me").await.expect("fits");
        to.shutdown().await.expect("half-close");
        let mut got = Vec::new();
        from.read_to_end(&mut got).await.expect("readable");
        assert_eq!(got, b"echo me");
        pumping.await.expect("no panic");
    }

    /// The same through HTTP: bytes that came with the request head are input too, and the early half-close loses nothing.
    #[tokio::test]
    async fn a_hijacked_connection_echoes_after_half_close() {
        let (client, server) = tokio::net::UnixStream::pair().expect("socket pair");
        let service = hyper::service::service_fn(
            |request: http::Request<hyper::body::Incoming>| async move {
                let (stdin_end, mut stdin) = tokio::io::duplex(64);
                let output = futures_util::stream::once(async move {
                    let mut read = Vec::new();
                    stdin.read_to_end(&mut read).await?;
                    Ok(Output::Stderr(Bytes::from(read)))
                });
                let attachment = Attachment {
                    tty: false,
                    output: Box::pin(output),
                    input: Some(Box::pin(stdin_end)),
                };
                let (mut parts, _) = request.into_parts();
                let upgrade = upgrade_of(&parts.headers, &mut parts.extensions);
                assert!(upgrade.is_some());
                Ok::<_, std::convert::Infallible>(connect(
                    attachment,
                    upgrade,
                    Body::empty(),
                    ApiVersion::NEWEST,
                ))
            },
        );
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(server), service)
            .with_upgrades();
        tokio::spawn(connection);
        let (mut from, mut to) = client.into_split();
        to.write_all(b"POST /attach HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nhello ")
            .await
            .expect("fits");
        to.write_all(b"there").await.expect("fits");
        to.shutdown().await.expect("half-close");
        let mut got = Vec::new();
        from.read_to_end(&mut got).await.expect("readable");
        let text = String::from_utf8_lossy(&got);
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        assert!(
            head.to_lowercase()
                .contains("content-type: application/vnd.docker.multiplexed-stream"),
            "{head}"
        );
        assert!(head.to_lowercase().contains("upgrade: tcp"), "{head}");
        assert_eq!(body.as_bytes(), b"\x02\0\0\0\0\0\0\x0bhello there");
    }

    /// A process that stops reading must not take its client's output away.
    #[tokio::test]
    async fn a_closed_stdin_does_not_end_the_output() {
        let (client, server) = tokio::io::duplex(1 << 10);
        let (stdin_end, stdin) = tokio::io::duplex(64);
        drop(stdin);
        let (say, mut said) = tokio::sync::mpsc::channel::<()>(1);
        let output = futures_util::stream::once(async move {
            said.recv().await;
            Ok(Output::Stdout("late".into()))
        });
        let attachment = Attachment {
            tty: true,
            output: Box::pin(output),
            input: Some(Box::pin(stdin_end)),
        };
        let (reader, writer) = tokio::io::split(server);
        let pumping = tokio::spawn(pump(
            reader,
            writer,
            attachment,
            Framing::Raw,
            Hangup::unnoticed(),
        ));
        let (mut from, mut to) = tokio::io::split(client);
        to.write_all(b"unheard").await.expect("fits");
        tokio::task::yield_now().await;
        say.send(()).await.expect("listening");
        let mut got = Vec::new();
        from.read_to_end(&mut got).await.expect("readable");
        assert_eq!(got, b"late");
        pumping.await.expect("no panic");
    }
}
