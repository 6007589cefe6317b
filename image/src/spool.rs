//! Files of an archive becoming blobs, and layers among them being unpacked meanwhile.
//!
//! ```text
//! stream ─▶ sha256, blob file            one after the other, as fast as they come
//!               └─ followed by ─▶ decompress, sha256, unpack (threads) ─▶ ingest/tmp-…, waiting for an image that wants it
//! ```
//!
//! Which files are layers an archive often tells last. So what looks like one is unpacked on suspicion, into a directory
//! nobody looks at; when it turns out not to be one, or not to unpack, nothing is lost but the work. No more are unpacked
//! at a time than the store unpacks anyway; the others wait for their image.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};

use crate::blobs::BlobWriter;
use crate::compression::{Compression, detect};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layers::{CHUNK_BYTES, Prepared};
use crate::store::{Inner, Lease, guard};

/// Stores files, unpacking layers on threads of a scope.
pub(crate) struct Spooler<'scope, 'env, 'a> {
    inner: &'a Inner,
    lease: &'a Lease,
    scope: &'scope Scope<'scope, 'env>,
    active: Arc<AtomicUsize>,
    pending: Vec<(Digest, ScopedJoinHandle<'scope, Result<Prepared<'a>>>)>,
}

impl<'scope, 'env, 'a: 'scope> Spooler<'scope, 'env, 'a> {
    pub(crate) fn new(
        inner: &'a Inner,
        lease: &'a Lease,
        scope: &'scope Scope<'scope, 'env>,
    ) -> Self {
        Spooler {
            inner,
            lease,
            scope,
            active: Arc::default(),
            pending: Vec::new(),
        }
    }

    /// Stores `input`, of `size_bytes` as its header says, whose digest must be `expected` when given.
    pub(crate) fn store(
        &mut self,
        mut input: impl Read,
        size_bytes: u64,
        expected: Option<&Digest>,
        what: &str,
    ) -> Result<(Digest, u64)> {
        let mut writer = BlobWriter::create(self.inner)?;
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        read_chunk(&mut input, &mut chunk)?;
        let followed = looks_like_layer(&chunk)
            .then(|| self.follow(&writer, size_bytes))
            .transpose()?
            .flatten();
        while !chunk.is_empty() {
            writer.write(&chunk)?;
            if let Some((growth, _)) = &followed {
                growth.grown(chunk.len() as u64);
            }
            read_chunk(&mut input, &mut chunk)?;
        }
        let (digest, size_bytes) = writer.commit(expected, what, self.lease)?;
        if let Some((growth, unpacking)) = followed {
            growth.end(true);
            self.pending.push((digest.clone(), unpacking));
        }
        Ok((digest, size_bytes))
    }

    /// The layers that did unpack, by their blobs.
    pub(crate) fn finish(self) -> HashMap<Digest, Prepared<'a>> {
        let mut prepared = HashMap::new();
        for (digest, unpacking) in self.pending {
            match unpacking
                .join()
                .expect("the unpacking thread does not panic")
            {
                Ok(layer) => drop(prepared.insert(digest, layer)),
                Err(error) => tracing::debug!(%digest, %error, "not unpacked ahead"),
            }
        }
        prepared
    }

    /// Unpacks what is being written, unless enough are at it.
    #[allow(clippy::type_complexity)]
    fn follow(
        &self,
        writer: &BlobWriter<'_>,
        size_bytes: u64,
    ) -> Result<Option<(Growing, ScopedJoinHandle<'scope, Result<Prepared<'a>>>)>> {
        if self.active.load(Ordering::Relaxed) >= self.inner.options.parallel {
            return Ok(None);
        }
        self.active.fetch_add(1, Ordering::Relaxed);
        let growth = Arc::new(Growth::default());
        let follower = Follower {
            file: writer.reader()?,
            at: 0,
            growth: growth.clone(),
        };
        let (inner, active) = (self.inner, self.active.clone());
        let unpacking = self.scope.spawn(move || {
            let prepared = inner.prepare(follower, size_bytes);
            active.fetch_sub(1, Ordering::Relaxed);
            prepared
        });
        Ok(Some((Growing(growth), unpacking)))
    }
}

/// How much of a file is written.
#[derive(Default)]
struct Growth {
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Default)]
struct State {
    written: u64,
    /// Whether it ended well.
    ended: Option<bool>,
}

/// The writer's end. Dropped, it tells the follower that no more will come.
struct Growing(Arc<Growth>);

impl Growing {
    fn grown(&self, by: u64) {
        guard(&self.0.state).written += by;
        self.0.more.notify_one();
    }

    fn end(&self, well: bool) {
        guard(&self.0.state).ended.get_or_insert(well);
        self.0.more.notify_one();
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        self.end(false);
    }
}

/// Reads a file while it is being written.
struct Follower {
    file: File,
    at: u64,
    growth: Arc<Growth>,
}

impl Read for Follower {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut state = guard(&self.growth.state);
        while state.written == self.at {
            match state.ended {
                Some(true) => return Ok(0),
                Some(false) => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the file was not finished",
                    ));
                }
                None => {
                    state = self
                        .growth
                        .more
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner)
                }
            }
        }
        let there = state.written - self.at;
        drop(state);
        let want = there.min(buf.len() as u64) as usize;
        let n = self.file.read_at(&mut buf[..want], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

fn read_chunk(input: &mut impl Read, chunk: &mut Vec<u8>) -> Result<()> {
    chunk.clear();
    input
        .take(CHUNK_BYTES as u64)
        .read_to_end(chunk)
        .map_err(Error::Stream)?;
    Ok(())
}

/// Compressed, or with a tar header at its start.
fn looks_like_layer(first: &[u8]) -> bool {
    match detect(first) {
        Ok(Compression::Plain) => first.get(257..262) == Some(b"ustar"),
        Ok(_) => true,
        Err(_) => false,
    }
}
