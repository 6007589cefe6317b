//! Connections that have become streams: a process' standard streams, tar archives.

use std::io;
use std::path::Path;

use bytes::{Bytes, BytesMut};
use caisson_protocol::{
    AttachRequest, CHUNK_HEADER_BYTES, MAX_CHUNK_BYTES, Outcome, Request, Stream, WritePathRequest,
    chunk_header, parse_chunk_header,
};
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::io::StreamReader;

use super::control::open_stream;
use crate::{Attach, Error, ErrorKind, Output, ProcessId, ProcessIo, Result, TarStream};

/// How much standard input waits in this process.
const INPUT_BUFFER_BYTES: usize = 64 << 10;

/// Attaches to a process.
pub(super) async fn attach(dir: &Path, process: &ProcessId, streams: Attach) -> Result<ProcessIo> {
    let request = Request::Attach(AttachRequest {
        process: process.0.clone(),
        streams,
        journal: false,
    });
    let (_, reader, writer) = open_stream(dir, request).await?;
    let input = if streams.stdin {
        let (ours, theirs) = tokio::io::duplex(INPUT_BUFFER_BYTES);
        tokio::spawn(send_input(theirs, writer));
        Some(Box::pin(ours) as _)
    } else {
        // To close our half would be to leave.
        writer.forget();
        None
    };
    let open = usize::from(streams.stdout) + usize::from(streams.stderr);
    Ok(ProcessIo {
        output: outputs(reader, open),
        input,
    })
}

/// Passes standard input on. The end of it, by shutdown or because its owner dropped it, is told once; then the half stays
/// open until the other side is done, for closing it would end the attachment.
async fn send_input(mut input: DuplexStream, mut writer: OwnedWriteHalf) {
    if copy_in_chunks(&mut input, &mut writer).await.is_ok() {
        writer.forget();
    }
}

async fn copy_in_chunks(
    input: &mut (impl tokio::io::AsyncRead + Unpin + ?Sized),
    writer: &mut OwnedWriteHalf,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_HEADER_BYTES + INPUT_BUFFER_BYTES.min(MAX_CHUNK_BYTES)];
    loop {
        let count = input.read(&mut buffer[CHUNK_HEADER_BYTES..]).await?;
        buffer[..CHUNK_HEADER_BYTES].copy_from_slice(&chunk_header(Stream::Stdin, count));
        writer
            .write_all(&buffer[..CHUNK_HEADER_BYTES + count])
            .await?;
        if count == 0 {
            return Ok(());
        }
    }
}

/// One chunk; `None` when the connection has ended.
async fn read_chunk(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<(Stream, Bytes)>> {
    let mut header = [0; CHUNK_HEADER_BYTES];
    match reader.read_exact(&mut header).await {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let (stream, length) = parse_chunk_header(header).map_err(io::Error::other)?;
    let mut bytes = BytesMut::zeroed(length);
    reader.read_exact(&mut bytes).await?;
    Ok(Some((stream, bytes.freeze())))
}

fn outputs(
    reader: BufReader<OwnedReadHalf>,
    open: usize,
) -> BoxStream<'static, io::Result<Output>> {
    stream::unfold(Some((reader, open)), |state| async move {
        let (mut reader, mut open) = state?;
        loop {
            return match read_chunk(&mut reader).await {
                Ok(Some((_, bytes))) if bytes.is_empty() => {
                    open = open.saturating_sub(1);
                    continue;
                }
                Ok(Some((Stream::Stdout, bytes))) => {
                    Some((Ok(Output::Stdout(bytes)), Some((reader, open))))
                }
                Ok(Some((Stream::Stderr, bytes))) => {
                    Some((Ok(Output::Stderr(bytes)), Some((reader, open))))
                }
                Ok(Some(_)) => Some((Err(io::Error::other("a chunk of the wrong stream")), None)),
                Ok(None) if open == 0 => None,
                Ok(None) => {
                    let why = "the supervisor ended before the process' output did";
                    Some((Err(io::Error::new(io::ErrorKind::UnexpectedEof, why)), None))
                }
                Err(error) => Some((Err(error), None)),
            };
        }
    })
    .boxed()
}

/// Reads a tar archive; one that was cut short ends with an error.
pub(super) async fn read_tar(dir: &Path, request: Request) -> Result<TarStream> {
    let (_, reader, writer) = open_stream(dir, request).await?;
    writer.forget();
    let chunks = stream::unfold(Some(reader), |state| async move {
        let mut reader = state?;
        match read_chunk(&mut reader).await {
            Ok(Some((Stream::Stdout, bytes))) => Some((Ok(bytes), Some(reader))),
            Ok(Some((Stream::Status, bytes))) => match parse_status(&bytes) {
                Ok(()) => None,
                Err(error) => Some((Err(io::Error::other(error)), None)),
            },
            Ok(Some(_)) => Some((Err(io::Error::other("a chunk of the wrong stream")), None)),
            Ok(None) => {
                let why = "the archive was cut short: the supervisor or its worker ended";
                Some((Err(io::Error::new(io::ErrorKind::UnexpectedEof, why)), None))
            }
            Err(error) => Some((Err(error), None)),
        }
    });
    Ok(Box::pin(StreamReader::new(chunks.boxed())))
}

/// Sends a tar archive to be unpacked and waits for the verdict, which may come before the archive's end.
pub(super) async fn write_tar(
    dir: &Path,
    request: WritePathRequest,
    mut tar: TarStream,
) -> Result<()> {
    let (_, mut reader, mut writer) = open_stream(dir, Request::WritePath(request)).await?;
    let send = async {
        match copy_in_chunks(&mut tar, &mut writer).await {
            Ok(()) => None,
            // The worker has given up and says why; anything else is the archive's source failing.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                None
            }
            Err(e) => Some(Error::new(
                ErrorKind::Invalid,
                format!("the archive could not be read to its end: {e}"),
            )),
        }
    };
    let verdict = async {
        match read_chunk(&mut reader).await {
            Ok(Some((Stream::Status, bytes))) => parse_status(&bytes),
            Ok(_) => Err(Error::new(
                ErrorKind::Lost,
                "the supervisor or its worker ended during the copy",
            )),
            Err(e) => Err(Error::new(
                ErrorKind::Lost,
                format!("the copy was interrupted: {e}"),
            )),
        }
    };
    tokio::pin!(verdict);
    tokio::select! {
        biased;
        verdict = &mut verdict => verdict,
        Some(error) = send => Err(error),
    }
}

fn parse_status(json: &[u8]) -> Result<()> {
    match serde_json::from_slice(json) {
        Ok(Outcome::Ok(_)) => Ok(()),
        Ok(Outcome::Error(error)) => Err(error),
        Err(e) => Err(Error::new(
            ErrorKind::Internal,
            format!("an unintelligible verdict: {e}"),
        )),
    }
}
