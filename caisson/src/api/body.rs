//! Bodies: JSON in (bounded) and out, uploads as streams, JSON lines as they come.

use std::convert::Infallible;
use std::io::{BufRead, Write};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use http::{StatusCode, header};
use http_body_util::{BodyExt, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncRead, ReadBuf};
use tokio::sync::oneshot;
use tokio_util::io::{ReaderStream, StreamReader, SyncIoBridge};

use super::error::ApiError;

/// No honest configuration is larger.
const MAX_JSON_BYTES: usize = 4 << 20;

/// A JSON body; nothing counts as `{}`.
pub struct Json<T>(pub T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        read_json(request.into_body()).await.map(Json)
    }
}

/// Reads a JSON body.
pub async fn read_json<T: DeserializeOwned>(body: Body) -> Result<T, ApiError> {
    let bytes = match Limited::new(body, MAX_JSON_BYTES).collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(e) if e.is::<http_body_util::LengthLimitError>() => {
            return Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the request body exceeds {MAX_JSON_BYTES} bytes"),
            ));
        }
        Err(e) => return Err(ApiError::bad(format!("cannot read the request body: {e}"))),
    };
    caisson_api::from_json(&bytes).map_err(|e| ApiError::bad(format!("invalid JSON: {e}")))
}

/// A JSON answer.
pub fn json<T: Serialize>(value: &T) -> Response {
    json_with(StatusCode::OK, value)
}

/// A JSON answer with a status of its own.
pub fn json_with<T: Serialize>(status: StatusCode, value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(mut text) => {
            text.push(b'\n');
            (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
        }
        Err(e) => ApiError::internal(format!("cannot serialise the answer: {e}")).into_response(),
    }
}

/// One JSON object a line, each sent as soon as it is there.
pub fn json_lines<T: Serialize + 'static>(
    items: impl Stream<Item = T> + Send + 'static,
) -> Response {
    let lines = items.map(|item| {
        let mut line = serde_json::to_vec(&item).unwrap_or_default();
        line.extend_from_slice(b"\r\n");
        Ok::<_, Infallible>(Bytes::from(line))
    });
    (
        [(header::CONTENT_TYPE, "application/json")],
        Body::from_stream(lines),
    )
        .into_response()
}

/// A download.
pub fn download(reader: impl AsyncRead + Send + 'static, content_type: &'static str) -> Response {
    let body = Body::from_stream(ReaderStream::with_capacity(reader, 64 << 10));
    ([(header::CONTENT_TYPE, content_type)], body).into_response()
}

type Chunks = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// An upload as a reader, and what is to be done with the rest of it when reading ends early.
pub fn upload(body: Body) -> (Upload, Leftover) {
    let chunks: Chunks = Box::pin(TryStreamExt::map_err(
        body.into_data_stream(),
        std::io::Error::other,
    ));
    let (give_back, returned) = oneshot::channel();
    (
        Upload {
            chunks: Some(StreamReader::new(chunks)),
            give_back: Some(give_back),
        },
        Leftover(returned),
    )
}

/// Reads an upload.
pub struct Upload {
    chunks: Option<StreamReader<Chunks, Bytes>>,
    give_back: Option<oneshot::Sender<Chunks>>,
}

impl AsyncRead for Upload {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match &mut self.chunks {
            Some(chunks) => Pin::new(chunks).poll_read(context, buffer),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let (Some(chunks), Some(give_back)) = (self.chunks.take(), self.give_back.take()) {
            // Nobody waits for it when everything went well.
            let _ = give_back.send(chunks.into_inner());
        }
    }
}

/// The part of an upload that nobody read.
pub struct Leftover(oneshot::Receiver<Chunks>);

/// For so long a refused client may go on writing before its connection is closed on it.
const PATIENCE: Duration = Duration::from_secs(2);

impl Leftover {
    /// Reads on before an error is answered: clients that are still writing would report a broken connection instead of
    /// the answer.
    pub async fn drain(self) {
        let reading = async {
            if let Ok(chunks) = self.0.await {
                read_out(chunks).await;
            }
        };
        let _ = tokio::time::timeout(PATIENCE, reading).await;
    }

    /// The same for an answer that has begun and may still tell of an error.
    pub fn drain_behind_answer(self) {
        tokio::spawn(async move {
            if let Ok(chunks) = self.0.await {
                let _ = tokio::time::timeout(PATIENCE, read_out(chunks)).await;
            }
        });
    }
}

async fn read_out(mut chunks: Chunks) {
    while let Some(Ok(_)) = chunks.next().await {}
}

/// A tar stream that a client may have compressed: gzip and zstd are recognised by their first bytes and unpacked.
pub fn decompressed(
    reader: impl AsyncRead + Send + Unpin + 'static,
) -> Pin<Box<dyn AsyncRead + Send>> {
    let (ours, theirs) = tokio::io::duplex(256 << 10);
    tokio::spawn(async move {
        let mut reader = tokio::io::BufReader::new(reader);
        let mut writer = ours;
        let magic = match reader.fill_buf().await {
            Ok(bytes) => Compression::of(bytes),
            Err(_) => Compression::None,
        };
        let done = match magic {
            Compression::None => tokio::io::copy(&mut reader, &mut writer).await.map(|_| ()),
            compressed => {
                let reader = SyncIoBridge::new(reader);
                let writer = SyncIoBridge::new(writer);
                tokio::task::spawn_blocking(move || compressed.unpack(reader, writer))
                    .await
                    .unwrap_or_else(|e| Err(std::io::Error::other(e)))
            }
        };
        // The reading side sees a truncated archive and says so; the reason is worth a line.
        if let Err(error) = done {
            tracing::debug!(%error, "an upload ended early");
        }
    });
    Box::pin(theirs)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    fn of(first: &[u8]) -> Self {
        match first {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            _ => Compression::None,
        }
    }

    fn unpack(self, mut reader: impl BufRead, mut writer: impl Write) -> std::io::Result<()> {
        match self {
            Compression::None => std::io::copy(&mut reader, &mut writer)?,
            Compression::Gzip => std::io::copy(
                &mut flate2::bufread::MultiGzDecoder::new(reader),
                &mut writer,
            )?,
            Compression::Zstd => {
                std::io::copy(&mut zstd::Decoder::with_buffer(reader)?, &mut writer)?
            }
        };
        writer.flush()
    }
}

/// 204.
pub fn nothing() -> Response {
    StatusCode::NO_CONTENT.into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    fn body(chunks: usize) -> Body {
        Body::from_stream(futures_util::stream::iter(
            (0..chunks).map(|_| Ok::<_, Infallible>(Bytes::from_static(&[7; 1000]))),
        ))
    }

    #[tokio::test]
    async fn uploads_are_unpacked_by_their_first_bytes() {
        use std::io::Write;
        let text = b"some tar".repeat(1000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&text).expect("a Vec takes everything");
        let gzip = gzip.finish().expect("a Vec takes everything");
        let zstd = zstd::encode_all(&text[..], 1).expect("a Vec takes everything");
        for sent in [text.clone(), gzip, zstd] {
            let mut got = Vec::new();
            let (reader, _) = upload(Body::from(sent));
            decompressed(reader)
                .read_to_end(&mut got)
                .await
                .expect("readable");
            assert_eq!(got, text);
        }
    }

    #[tokio::test]
    async fn the_rest_of_an_upload_is_read_before_an_error_is_told() {
        let (mut reader, leftover) = upload(body(10));
        reader.read_u8().await.expect("readable");
        drop(reader);
        // Ends by itself, long before its patience does.
        tokio::time::timeout(Duration::from_millis(500), leftover.drain())
            .await
            .expect("drained");
        let (reader, leftover) = upload(body(1_000_000));
        drop(reader);
        tokio::time::timeout(Duration::from_millis(500), leftover.drain())
            .await
            .expect("not all of it");
    }
}
