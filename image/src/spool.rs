//! A file of an archive becoming a blob and, should it be a layer, an unpacked layer at the same time.
//!
//! ```text
//! stream ─▶ chunks ─┬─▶ blob file + sha256 (thread)
//!                   └─▶ decompress, sha256, unpack (thread) ─▶ ingest/tmp-…, waiting for an image that wants it
//! ```
//!
//! Which files are layers an archive often tells last. So what looks like one is unpacked on suspicion, into a directory
//! nobody looks at; when it turns out not to be one, or not to unpack, nothing is lost but the work.

use std::io::Read;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use crate::blobs::BlobWriter;
use crate::compression::{Compression, detect};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layers::{CHUNK_BYTES, CHUNKS_IN_FLIGHT, Chunk, Chunks, Prepared};
use crate::store::{Inner, Lease};

/// A stored file.
pub(crate) struct Spooled<'a> {
    pub digest: Digest,
    pub size_bytes: u64,
    pub prepared: Option<Prepared<'a>>,
}

impl Inner {
    /// Stores `input`, of `size_bytes` as far as is known, whose digest must be `expected` when given.
    pub(crate) fn spool(
        &self,
        mut input: impl Read,
        size_bytes: u64,
        expected: Option<&Digest>,
        what: &str,
        lease: &Lease,
    ) -> Result<Spooled<'_>> {
        let first = chunk(&mut input)?;
        if !looks_like_layer(&first) {
            let mut writer = BlobWriter::create(self)?;
            writer.write(&first)?;
            writer.copy(&mut input, self.options.limits.layer_bytes)?;
            let (digest, size_bytes) = writer.commit(expected, what, lease)?;
            return Ok(Spooled {
                digest,
                size_bytes,
                prepared: None,
            });
        }
        let (to_blob, blob_from) = sync_channel::<Chunk>(CHUNKS_IN_FLIGHT);
        let (to_unpack, unpack_from) = sync_channel(CHUNKS_IN_FLIGHT);
        std::thread::scope(|scope| {
            let blob = scope.spawn(move || {
                let mut writer = BlobWriter::create(self)?;
                while let Ok(chunk) = blob_from.recv() {
                    writer.write(&chunk)?;
                }
                Ok::<_, Error>(writer)
            });
            let unpacked = scope.spawn(move || self.prepare(Chunks::new(unpack_from), size_bytes));
            let mut next = Ok(first);
            let read = loop {
                match next {
                    Ok(chunk) if chunk.is_empty() => break Ok(()),
                    Ok(chunk) => {
                        let chunk = Arc::new(chunk);
                        // The unpacker may have had enough; the blob is what counts.
                        let _ = to_unpack.send(Ok(chunk.clone()));
                        if to_blob.send(chunk).is_err() {
                            break Ok(());
                        }
                    }
                    Err(error) => break Err(error),
                }
                next = chunk(&mut input);
            };
            drop((to_blob, to_unpack));
            let writer = blob.join().expect("the writing thread does not panic");
            let prepared = unpacked
                .join()
                .expect("the unpacking thread does not panic");
            read?;
            let (digest, size_bytes) = writer?.commit(expected, what, lease)?;
            if let Err(error) = &prepared {
                tracing::debug!(%error, what, "not unpacked ahead");
            }
            Ok(Spooled {
                digest,
                size_bytes,
                prepared: prepared.ok(),
            })
        })
    }
}

fn chunk(input: &mut impl Read) -> Result<Vec<u8>> {
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    input
        .take(CHUNK_BYTES as u64)
        .read_to_end(&mut chunk)
        .map_err(Error::Stream)?;
    Ok(chunk)
}

/// Compressed, or with a tar header at its start.
fn looks_like_layer(first: &[u8]) -> bool {
    match detect(first) {
        Ok(Compression::Plain) => first.get(257..262) == Some(b"ustar"),
        Ok(_) => true,
        Err(_) => false,
    }
}
