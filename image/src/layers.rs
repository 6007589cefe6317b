//! Unpacking a layer: decompress, hash and extract side by side, verify, then rename into place.
//!
//! ```text
//! blob ─▶ decompress (thread) ─▶ chunks ─┬─▶ sha256 (thread)  ─▶ diff id
//!                                        └─▶ unpack           ─▶ ingest/tmp-…  ──verified──▶ layers/<chain id>
//! ```
//!
//! Nothing looks at the unpacked tree before both threads agree with the configuration. An uncompressed blob whose digest
//! is its diff id was verified when it was stored: it is extracted straight from the file.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};

use sha2::{Digest as _, Sha256};

use caisson_archive::{UnpackOptions, Unpacked, unpack};

use crate::compression::{Compression, decompressed};
use crate::db::LayerRow;
use crate::digest::Digest;
use crate::error::{Context, Error, Result};
use crate::progress::{Meter, Progress};
use crate::store::{Inner, Lease, Limits, guard};

pub(crate) const CHUNK_BYTES: usize = 256 * 1024;
const CHUNKS_IN_FLIGHT: usize = 16;

/// One layer to be unpacked.
#[derive(Clone, Debug)]
pub(crate) struct LayerJob {
    /// How progress calls it.
    pub label: String,
    pub index: usize,
    pub blob: Digest,
    pub diff_id: Digest,
    pub chain_id: Digest,
    pub parent: Option<Digest>,
}

impl LayerJob {
    /// The jobs of an image whose layers' blobs are these, lowest first.
    pub(crate) fn stack(diff_ids: &[Digest], blobs: &[Digest]) -> Vec<LayerJob> {
        let mut parent: Option<Digest> = None;
        let mut jobs = Vec::new();
        for (index, (diff_id, blob)) in diff_ids.iter().zip(blobs).enumerate() {
            let chain_id = Digest::chain(parent.as_ref(), diff_id);
            jobs.push(LayerJob {
                label: diff_id.short().to_owned(),
                index,
                blob: blob.clone(),
                diff_id: diff_id.clone(),
                chain_id: chain_id.clone(),
                parent: parent.replace(chain_id),
            });
        }
        jobs
    }
}

impl Inner {
    /// Unpacks layers, some at a time; takes those that are `ready`. Blocks.
    pub(crate) fn unpack_layers<'a>(
        &'a self,
        jobs: &[LayerJob],
        ready: &(dyn Fn(&Digest) -> Option<Prepared<'a>> + Sync),
        lease: &Lease,
        progress: &Progress,
        status: &'static str,
    ) -> Result<()> {
        let next = std::sync::atomic::AtomicUsize::new(0);
        let failed: Mutex<Option<(usize, Error)>> = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..self.options.parallel.min(jobs.len()) {
                scope.spawn(|| {
                    loop {
                        let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        let Some(job) = jobs.get(at) else { return };
                        if guard(&failed).is_some() {
                            return;
                        }
                        let done = match ready(&job.blob) {
                            Some(prepared) => {
                                self.take_prepared(job, prepared, lease, progress, status)
                            }
                            None => self.unpack_layer(job, lease, progress, status),
                        };
                        if let Err(error) = done {
                            let mut failed = guard(&failed);
                            // The lowest layer's error is the one told, so that the same image fails the same way.
                            if failed.as_ref().is_none_or(|(first, _)| *first > at) {
                                *failed = Some((at, error));
                            }
                        }
                    }
                });
            }
        });
        match failed
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
        {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    /// Unpacks one layer unless it is there. Blocks.
    pub(crate) fn unpack_layer(
        &self,
        job: &LayerJob,
        lease: &Lease,
        progress: &Progress,
        status: &'static str,
    ) -> Result<LayerRow> {
        let lock = self.named_lock(job.chain_id.to_string());
        let _once = guard(&lock);
        if let Some(row) = self.lease_layer(lease, &job.chain_id) {
            return Ok(row);
        }
        let scratch = Scratch::create(self)?;
        let (actual, unpacked) = self.extract(job, &scratch.path, progress, status)?;
        if actual != job.diff_id {
            return Err(Error::DiffIdMismatch {
                index: job.index,
                expected: job.diff_id.clone(),
                actual,
            });
        }
        self.publish_layer(job, unpacked, scratch, lease)
    }

    /// Takes a layer that was unpacked while its blob was being stored.
    fn take_prepared(
        &self,
        job: &LayerJob,
        prepared: Prepared<'_>,
        lease: &Lease,
        progress: &Progress,
        status: &'static str,
    ) -> Result<LayerRow> {
        let lock = self.named_lock(job.chain_id.to_string());
        let _once = guard(&lock);
        if let Some(row) = self.lease_layer(lease, &job.chain_id) {
            return Ok(row);
        }
        let actual = prepared.diff_id.unwrap_or_else(|| job.blob.clone());
        if actual != job.diff_id {
            return Err(Error::DiffIdMismatch {
                index: job.index,
                expected: job.diff_id.clone(),
                actual,
            });
        }
        Meter::new(progress, &job.label, status, prepared.stored_bytes)
            .advance(prepared.stored_bytes);
        self.publish_layer(job, prepared.unpacked, prepared.scratch, lease)
    }

    /// Unpacks a layer whose bytes are only just coming and are digested elsewhere.
    pub(crate) fn prepare(
        &self,
        input: impl Read + Send,
        stored_bytes: u64,
    ) -> Result<Prepared<'_>> {
        let scratch = Scratch::create(self)?;
        let (diff_id, unpacked) = self.extract_from(input, stored_bytes, true, &scratch.path)?;
        Ok(Prepared {
            scratch,
            diff_id,
            unpacked,
            stored_bytes,
        })
    }

    fn publish_layer(
        &self,
        job: &LayerJob,
        unpacked: Unpacked,
        scratch: Scratch<'_>,
        lease: &Lease,
    ) -> Result<LayerRow> {
        let row = LayerRow {
            chain_id: job.chain_id.clone(),
            diff_id: job.diff_id.clone(),
            parent: job.parent.clone(),
            size_bytes: unpacked.bytes,
            entries: unpacked.entries,
        };
        let to = self.layer_path(&job.chain_id);
        let mut fresh = self.fresh();
        scratch.publish(&to)?;
        fresh.layers.insert(job.chain_id.clone(), row.clone());
        fresh.diffs.insert((job.diff_id.clone(), job.blob.clone()));
        lease.add_layer(&mut fresh, &job.chain_id);
        Ok(row)
    }

    /// Unpacks a lowest layer whose diff id is not known yet; answers it. Blocks.
    pub(crate) fn unpack_base(
        &self,
        blob: &Digest,
        lease: &Lease,
        progress: &Progress,
    ) -> Result<Digest> {
        let scratch = Scratch::create(self)?;
        // With a diff id that is not the blob's own the contents are always hashed.
        let unknown = Digest::of(b"");
        let job = LayerJob {
            label: blob.short().to_owned(),
            index: 0,
            blob: blob.clone(),
            diff_id: unknown.clone(),
            chain_id: unknown,
            parent: None,
        };
        let (diff_id, unpacked) = self.extract(&job, &scratch.path, progress, "Importing")?;
        let lock = self.named_lock(diff_id.to_string());
        let _once = guard(&lock);
        if self.lease_layer(lease, &diff_id).is_none() {
            let job = LayerJob {
                diff_id: diff_id.clone(),
                chain_id: diff_id.clone(),
                ..job
            };
            self.publish_layer(&job, unpacked, scratch, lease)?;
        }
        Ok(diff_id)
    }

    /// The diff id of a stored layer.
    pub(crate) fn diff_id_of(&self, blob: &Digest) -> Result<Digest> {
        let path = self.blob_path(blob);
        let file = File::open(&path).context("open", &path)?;
        let size = file.metadata().context("stat", &path)?.len();
        let (compression, plain) = decompressed(file)?;
        if compression == Compression::Plain {
            return Ok(blob.clone());
        }
        let mut hasher = Sha256::new();
        decompress(plain, size, &self.options.limits, |chunk| {
            hasher.update(&*chunk);
            true
        })?;
        Ok(Digest::finish(hasher))
    }

    fn extract(
        &self,
        job: &LayerJob,
        into: &Path,
        progress: &Progress,
        status: &'static str,
    ) -> Result<(Digest, Unpacked)> {
        let path = self.blob_path(&job.blob);
        let file = File::open(&path).context("open", &path)?;
        let size = file.metadata().context("stat", &path)?.len();
        let meter = Meter::new(progress, &job.label, status, size);
        let metered = Metered { inner: file, meter };
        let verified = job.blob == job.diff_id;
        let (actual, unpacked) = self.extract_from(metered, size, verified, into)?;
        Ok((actual.unwrap_or_else(|| job.diff_id.clone()), unpacked))
    }

    /// Unpacks an archive of so many stored bytes; answers with its diff id, unless it is plain and its digest is known
    /// or being found elsewhere (`verified`).
    fn extract_from(
        &self,
        input: impl Read + Send,
        size: u64,
        verified: bool,
        into: &Path,
    ) -> Result<(Option<Digest>, Unpacked)> {
        let root = File::open(into).context("open", into)?;
        let limits = &self.options.limits;
        let options = UnpackOptions {
            max_bytes: limits.layer_bytes,
            max_entries: limits.layer_entries,
            ..UnpackOptions::layer()
        };
        let (compression, mut plain) = decompressed(input)?;
        if compression == Compression::Plain && verified {
            let unpacked = unpack(root.as_fd(), Path::new(""), &mut plain, &options)?;
            return Ok((None, unpacked));
        }
        let cause: Mutex<Option<Error>> = Mutex::new(None);
        let (to_hash, hash_from) = sync_channel(CHUNKS_IN_FLIGHT);
        let (to_unpack, unpack_from) = sync_channel(CHUNKS_IN_FLIGHT);
        let result = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let sent = decompress(plain, size, limits, |chunk| {
                    to_unpack.send(Ok(chunk.clone())).is_ok() && to_hash.send(chunk).is_ok()
                });
                if let Err(error) = &sent {
                    let told = io::Error::new(io::ErrorKind::InvalidData, error.to_string());
                    let _ = to_unpack.send(Err(told));
                }
                drop((to_hash, to_unpack));
                if let Err(error) = sent {
                    *guard(&cause) = Some(error);
                }
            });
            let hash = scope.spawn(move || {
                let mut hasher = Sha256::new();
                while let Ok(chunk) = hash_from.recv() {
                    let chunk: Chunk = chunk;
                    hasher.update(&*chunk);
                }
                Digest::finish(hasher)
            });
            let mut chunks = Chunks::new(unpack_from);
            let unpacked =
                unpack(root.as_fd(), Path::new(""), &mut chunks, &options).map_err(Error::from);
            // What follows the archive's end belongs to the diff id too.
            let drained = unpacked
                .is_ok()
                .then(|| io::copy(&mut chunks, &mut io::sink()));
            drop(chunks);
            let digest = hash.join().expect("the hashing thread does not panic");
            reader.join().expect("the reading thread does not panic");
            let unpacked = unpacked?;
            drained.transpose().map_err(Error::Stream)?;
            Ok((Some(digest), unpacked))
        });
        // The reader's own error is the cause of what the unpacker saw.
        match cause
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
        {
            Some(error) => Err(error),
            None => result,
        }
    }
}

/// A layer unpacked ahead of knowing which image it belongs to.
pub(crate) struct Prepared<'a> {
    scratch: Scratch<'a>,
    /// `None`: that of the blob, which is not compressed.
    diff_id: Option<Digest>,
    unpacked: Unpacked,
    stored_bytes: u64,
}

type Chunk = Arc<Vec<u8>>;

/// Reads until the end, or until `take` wants no more.
fn decompress(
    mut plain: impl Read,
    compressed_bytes: u64,
    limits: &Limits,
    mut take: impl FnMut(Chunk) -> bool,
) -> Result<()> {
    let mut total = 0_u64;
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        plain
            .by_ref()
            .take(CHUNK_BYTES as u64)
            .read_to_end(&mut chunk)
            .map_err(Error::Stream)?;
        if chunk.is_empty() {
            return Ok(());
        }
        total += chunk.len() as u64;
        if total > limits.layer_bytes {
            return Err(Error::LimitExceeded {
                unit: "bytes",
                limit: limits.layer_bytes,
            });
        }
        if total > limits.ratio_free_bytes && total / limits.ratio > compressed_bytes {
            return Err(Error::LimitExceeded {
                unit: "times its compressed size",
                limit: limits.ratio,
            });
        }
        if !take(Arc::new(chunk)) {
            return Ok(());
        }
    }
}

/// Chunks from another thread, read one after the other.
struct Chunks {
    from: Receiver<io::Result<Chunk>>,
    current: Chunk,
    at: usize,
}

impl Chunks {
    fn new(from: Receiver<io::Result<Chunk>>) -> Self {
        Chunks {
            from,
            current: Arc::new(Vec::new()),
            at: 0,
        }
    }
}

impl Read for Chunks {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.current.len() {
            match self.from.recv() {
                Ok(chunk) => {
                    self.current = chunk?;
                    self.at = 0;
                }
                Err(_) => return Ok(0),
            }
        }
        let n = buf.len().min(self.current.len() - self.at);
        buf[..n].copy_from_slice(&self.current[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

struct Metered<R> {
    inner: R,
    meter: Meter,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.meter.advance(n as u64);
        Ok(n)
    }
}

/// A directory in `ingest/` that is removed unless it is published.
pub(crate) struct Scratch<'a> {
    inner: &'a Inner,
    pub path: PathBuf,
    published: bool,
}

impl<'a> Scratch<'a> {
    pub(crate) fn create(inner: &'a Inner) -> Result<Self> {
        let path = inner.temporary_path();
        std::fs::create_dir(&path).context("create", &path)?;
        // What a layer without an entry for its root shows as `/`.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).context("change the mode of", &path)?;
        Ok(Scratch {
            inner,
            path,
            published: false,
        })
    }

    fn publish(mut self, to: &Path) -> Result<()> {
        // Nothing trusted is there, or the caller would not have come here.
        self.inner.remove_tree(to)?;
        std::fs::rename(&self.path, to).context("move into place", to)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = self.inner.remove_tree(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "a temporary directory stays until the next start");
        }
    }
}
