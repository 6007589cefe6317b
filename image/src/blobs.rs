//! Blobs: written to a temporary file, verified, then renamed to their digest.

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::error::{Context, Error, Result};
use crate::store::{Inner, Lease};

/// A blob being written. Dropped, it leaves nothing.
pub(crate) struct BlobWriter<'a> {
    inner: &'a Inner,
    file: File,
    path: Option<PathBuf>,
    hasher: Sha256,
    size_bytes: u64,
}

impl<'a> BlobWriter<'a> {
    pub(crate) fn create(inner: &'a Inner) -> Result<Self> {
        let path = inner.temporary_path();
        let file = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&path)
            .context("create", &path)?;
        Ok(BlobWriter {
            inner,
            file,
            path: Some(path),
            hasher: Sha256::new(),
            size_bytes: 0,
        })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let path = self.path.as_deref().unwrap_or(&self.inner.root);
        self.file.write_all(bytes).context("write", path)?;
        self.hasher.update(bytes);
        self.size_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Another descriptor of what is being written.
    pub(crate) fn reader(&self) -> Result<File> {
        let path = self.path.as_deref().unwrap_or(&self.inner.root);
        File::open(path).context("open", path)
    }

    /// Copies all of `input`, at most `limit` bytes.
    pub(crate) fn copy(&mut self, input: &mut impl Read, limit: u64) -> Result<()> {
        let mut buffer = vec![0_u8; 256 * 1024];
        loop {
            match input.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) if self.size_bytes + n as u64 > limit => {
                    return Err(Error::LimitExceeded {
                        unit: "bytes",
                        limit,
                    });
                }
                Ok(n) => self.write(&buffer[..n])?,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::Stream(e)),
            }
        }
    }

    /// Publishes the blob under its digest, which must be `expected` when given. The lease holds it.
    pub(crate) fn commit(
        mut self,
        expected: Option<&Digest>,
        what: &str,
        lease: &Lease,
    ) -> Result<(Digest, u64)> {
        let actual = Digest::finish(std::mem::take(&mut self.hasher));
        if let Some(expected) = expected
            && *expected != actual
        {
            return Err(Error::DigestMismatch {
                what: what.into(),
                expected: expected.clone(),
                actual,
            });
        }
        let path = self.path.take().expect("a writer is committed once");
        if let Err(error) = self
            .inner
            .publish_blob(&path, &actual, self.size_bytes, lease)
        {
            let _ = std::fs::remove_file(path);
            return Err(error);
        }
        Ok((actual, self.size_bytes))
    }
}

impl Drop for BlobWriter<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Inner {
    /// Moves a verified file to its place.
    pub(crate) fn publish_blob(
        &self,
        from: &std::path::Path,
        digest: &Digest,
        size: u64,
        lease: &Lease,
    ) -> Result<()> {
        if self.lease_blob(lease, digest).is_some() {
            let _ = std::fs::remove_file(from);
            return Ok(());
        }
        let to = self.blob_path(digest);
        let mut fresh = self.fresh();
        std::fs::rename(from, &to).context("move into place", &to)?;
        // An interrupted download of the same bytes has become needless.
        let _ = std::fs::remove_file(self.partial_path(digest));
        fresh.blobs.insert(digest.clone(), size);
        lease.add_blob(&mut fresh, digest);
        Ok(())
    }

    /// Stores bytes in memory as a blob.
    pub(crate) fn put_blob(&self, bytes: &[u8], lease: &Lease) -> Result<Digest> {
        let mut writer = BlobWriter::create(self)?;
        writer.write(bytes)?;
        Ok(writer.commit(None, "blob", lease)?.0)
    }

    /// Reads a small blob, verifying it once more: what decides about an image is never taken on trust from the disk.
    pub(crate) fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
        let path = self.blob_path(digest);
        let file = File::open(&path).context("open", &path)?;
        let mut bytes = Vec::new();
        file.take(limit + 1)
            .read_to_end(&mut bytes)
            .context("read", &path)?;
        if bytes.len() as u64 > limit {
            return Err(Error::InvalidImage(format!(
                "the document {digest} is larger than {limit} bytes"
            )));
        }
        let actual = Digest::of(&bytes);
        if actual != *digest {
            return Err(Error::DigestMismatch {
                what: path.display().to_string(),
                expected: digest.clone(),
                actual,
            });
        }
        Ok(bytes)
    }
}
