//! Downloading one blob: resumed where it broke off, hashed on the way, published when its digest is right.
//!
//! ```text
//! network task ──chunks (bounded)──▶ writer thread: file append + sha256      ingest/<hex>.partial ──▶ blobs/sha256/<hex>
//! ```
//!
//! Two pulls of one blob share the work: the second waits for the first and finds the blob. The writer holds the blob's
//! lock until it has stopped, so a cancelled download and its successor never write the same file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use reqwest::StatusCode;
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedMutexGuard, mpsc, oneshot};

use crate::digest::Digest;
use crate::error::{Context, Error, Result};
use crate::manifest::Descriptor;
use crate::progress::{Meter, Progress, say};
use crate::registry::{Registry, transport};
use crate::store::{Inner, Lease, guard};

/// Chunks waiting for the disk.
const CHUNKS_IN_FLIGHT: usize = 64;

enum ToWriter {
    Chunk(Bytes),
    /// Forget what is there.
    Restart,
}

struct Written {
    digest: Digest,
    size_bytes: u64,
}

/// Fetches a blob unless it is here; the lease holds it.
pub(crate) async fn fetch_blob(
    inner: &Arc<Inner>,
    registry: &Registry,
    wanted: &Descriptor,
    lease: &Lease,
    progress: &Progress,
) -> Result<()> {
    let limit = inner.options.limits.layer_bytes;
    if wanted.size_bytes > limit {
        return Err(Error::LimitExceeded {
            unit: "bytes",
            limit,
        });
    }
    let lock = guard(&inner.downloads)
        .entry(wanted.digest.clone())
        .or_default()
        .clone();
    let held = lock.lock_owned().await;
    let result = match inner.lease_blob(lease, &wanted.digest) {
        Some(_) => Ok(()),
        None => download(inner, registry, wanted, lease, progress, held).await,
    };
    let mut downloads = guard(&inner.downloads);
    downloads.retain(|_, lock| Arc::strong_count(lock) > 1);
    drop(downloads);
    result
}

async fn download(
    inner: &Arc<Inner>,
    registry: &Registry,
    wanted: &Descriptor,
    lease: &Lease,
    progress: &Progress,
    held: OwnedMutexGuard<()>,
) -> Result<()> {
    let id = wanted.digest.short();
    let (chunks, from) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let (tell, told) = oneshot::channel();
    let writer = {
        let (inner, digest, size) = (inner.clone(), wanted.digest.clone(), wanted.size_bytes);
        // The lock comes back with the result, to be held until the blob is published.
        tokio::task::spawn_blocking(move || (write(&inner, &digest, size, tell, from), held))
    };
    let resumed = told.await.unwrap_or(0);
    let streamed = stream(registry, wanted, resumed, chunks, progress).await;
    let (written, _held) = writer.await.map_err(|_| Error::Cancelled)?;
    let path = inner.partial_path(&wanted.digest);
    let written = match (written, streamed) {
        // A full disk is told as such, not as the broken channel it makes.
        (Err(error), _) => {
            if error.kind() == crate::ErrorKind::NoSpace {
                let _ = std::fs::remove_file(&path);
            }
            return Err(error);
        }
        (Ok(_), Err(error)) => return Err(error),
        (Ok(written), Ok(())) => written,
    };
    say(progress, id, "Verifying Checksum");
    if written.digest != wanted.digest || written.size_bytes != wanted.size_bytes {
        let _ = std::fs::remove_file(&path);
        return Err(Error::DigestMismatch {
            what: format!("layer {id}"),
            expected: wanted.digest.clone(),
            actual: written.digest,
        });
    }
    inner.publish_blob(&path, &wanted.digest, wanted.size_bytes, lease)?;
    say(progress, id, "Download complete");
    Ok(())
}

/// Streams the blob from `have` bytes on, over as many connections as it takes.
async fn stream(
    registry: &Registry,
    wanted: &Descriptor,
    mut have: u64,
    chunks: mpsc::Sender<ToWriter>,
    progress: &Progress,
) -> Result<()> {
    let meter = Meter::new(
        progress,
        wanted.digest.short(),
        "Downloading",
        wanted.size_bytes,
    );
    meter.advance(have);
    let mut failed = 0;
    while have < wanted.size_bytes {
        let before = have;
        let error = match connection(registry, wanted, &mut have, &chunks, &meter).await {
            Ok(true) => break,
            // The writer is gone; its own error is the one to tell.
            Ok(false) => return Ok(()),
            Err(error) => error,
        };
        failed = if have > before { 1 } else { failed + 1 };
        match registry.pause_after(&error, failed) {
            Some(pause) => tokio::time::sleep(pause).await,
            None => return Err(error),
        }
    }
    Ok(())
}

/// One connection; `true` when the blob is complete, `false` when nobody takes it any more.
async fn connection(
    registry: &Registry,
    wanted: &Descriptor,
    have: &mut u64,
    chunks: &mpsc::Sender<ToWriter>,
    meter: &Meter,
) -> Result<bool> {
    let response = registry.blob(&wanted.digest, *have).await?;
    let starts_at = match response.status() {
        StatusCode::PARTIAL_CONTENT => {
            let range = response
                .headers()
                .get("content-range")
                .and_then(|v| v.to_str().ok())
                .unwrap_or_default();
            range
                .strip_prefix("bytes ")
                .and_then(|r| r.split('-').next()?.parse::<u64>().ok())
        }
        StatusCode::OK => Some(0),
        _ => None,
    };
    if starts_at != Some(*have) {
        if chunks.send(ToWriter::Restart).await.is_err() {
            return Ok(false);
        }
        *have = 0;
        if starts_at != Some(0) {
            return Err(Error::Registry(
                "the registry cannot resume the download".into(),
            ));
        }
    }
    let mut stream = response.bytes_stream();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(transport)?;
        let len = chunk.len() as u64;
        if *have + len > wanted.size_bytes {
            return Err(Error::InvalidImage(format!(
                "the registry sends more than the {} bytes of layer {}",
                wanted.size_bytes,
                wanted.digest.short()
            )));
        }
        if chunks.send(ToWriter::Chunk(chunk)).await.is_err() {
            return Ok(false);
        }
        *have += len;
        meter.advance(len);
    }
    if *have < wanted.size_bytes {
        return Err(Error::Registry(format!(
            "the registry sent {have} of the {} bytes of layer {}",
            wanted.size_bytes,
            wanted.digest.short()
        )));
    }
    Ok(true)
}

/// Appends to the partial download until no more chunks come; answers with the digest of the whole.
fn write(
    inner: &Inner,
    digest: &Digest,
    size: u64,
    tell: oneshot::Sender<u64>,
    mut from: mpsc::Receiver<ToWriter>,
) -> Result<Written> {
    let path = inner.partial_path(digest);
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .context("open", &path)?;
    let (mut hasher, mut written) = hash_start(&mut file, size).context("read", &path)?;
    if written == size {
        let whole = Digest::finish(hasher.clone());
        if whole != *digest {
            // What a crash left is not what it should be.
            (hasher, written) = restart(&mut file).context("write", &path)?;
        }
    }
    // The receiver may have been cancelled: then nobody sends either.
    let _ = tell.send(written);
    while let Some(message) = from.blocking_recv() {
        match message {
            ToWriter::Restart => (hasher, written) = restart(&mut file).context("write", &path)?,
            ToWriter::Chunk(chunk) => {
                file.write_all(&chunk).context("write", &path)?;
                hasher.update(&chunk);
                written += chunk.len() as u64;
            }
        }
    }
    Ok(Written {
        digest: Digest::finish(hasher),
        size_bytes: written,
    })
}

/// Hashes what is there; more than the blob can have is thrown away.
fn hash_start(file: &mut File, size: u64) -> std::io::Result<(Sha256, u64)> {
    if file.metadata()?.len() > size {
        return restart(file);
    }
    let mut hasher = Sha256::new();
    let mut written = 0;
    let mut buffer = vec![0_u8; 256 * 1024];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok((hasher, written));
        }
        hasher.update(&buffer[..n]);
        written += n as u64;
    }
}

fn restart(file: &mut File) -> std::io::Result<(Sha256, u64)> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    Ok((Sha256::new(), 0))
}
