//! Where an image being loaded comes from: a tar stream or a directory, seen as names with contents.
//!
//! A tar stream is read once. Small files are kept in memory, others become blobs at once, hashed while they are written.
//! Two files of one name with different contents are refused: which one counts would depend on the reader.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use caisson_archive::{EntryKind, Stream, open_beneath};
use rustix::fs::OFlags;

use crate::blobs::BlobWriter;
use crate::compression::decompressed;
use crate::digest::Digest;
use crate::error::{Context, Error, Result};
use crate::layers::Prepared;
use crate::spool::Spooler;
use crate::store::{Inner, Lease, guard};

/// Files up to this size are kept in memory, as long as they are not too many.
const SMALL_BYTES: u64 = 64 * 1024;
const SMALL_TOTAL_BYTES: u64 = 64 << 20;
/// `layer.tar` entries of old archives may be links to each other.
const MAX_LINKS: usize = 16;

/// Names with contents.
pub(crate) trait Source<'a>: Sync {
    /// A file's bytes; `None` when there is no such file.
    fn bytes(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>>;
    /// A file as a leased blob; `None` when there is no such file.
    fn blob(&self, name: &str) -> Result<Option<(Digest, u64)>>;
    /// A layer that was unpacked on the way, once.
    fn prepared(&self, _blob: &Digest) -> Option<Prepared<'a>> {
        None
    }
}

enum Kept {
    Small(Vec<u8>),
    Blob(Digest, u64),
    Link(String),
}

/// A tar stream that was read to its end.
pub(crate) struct TarSource<'a> {
    inner: &'a Inner,
    lease: &'a Lease,
    kept: HashMap<String, Kept>,
    /// Layers unpacked on the way, by their blobs.
    prepared: Mutex<HashMap<Digest, Prepared<'a>>>,
}

impl<'a> TarSource<'a> {
    pub(crate) fn read(
        inner: &'a Inner,
        lease: &'a Lease,
        input: impl Read + Send,
    ) -> Result<Self> {
        std::thread::scope(|scope| {
            let mut spooler = Spooler::new(inner, lease, scope);
            let kept = Self::entries(inner, lease, input, &mut spooler)?;
            let prepared = Mutex::new(spooler.finish());
            Ok(TarSource {
                inner,
                lease,
                kept,
                prepared,
            })
        })
    }

    fn entries<'scope>(
        inner: &'a Inner,
        lease: &'a Lease,
        input: impl Read + Send,
        spooler: &mut Spooler<'scope, '_, 'a>,
    ) -> Result<HashMap<String, Kept>>
    where
        'a: 'scope,
    {
        let limits = &inner.options.limits;
        let (_, plain) = decompressed(input)?;
        let mut stream = Stream::new(plain);
        let mut kept = HashMap::new();
        let mut small_total = 0;
        let mut entries = 0;
        while let Some(entry) = stream.next_entry()? {
            entries += 1;
            if entries > limits.archive_entries {
                return Err(Error::LimitExceeded {
                    unit: "files",
                    limit: limits.archive_entries,
                });
            }
            let name = normal(&String::from_utf8_lossy(&entry.name), "")?;
            let link_base = name.rsplit_once('/').map_or("", |(dir, _)| dir).to_owned();
            let link = String::from_utf8_lossy(&entry.link).into_owned();
            let new = match entry.kind {
                EntryKind::Directory => continue,
                EntryKind::HardLink => Kept::Link(normal(&link, "")?),
                EntryKind::Symlink => Kept::Link(normal(&link, &link_base)?),
                EntryKind::File if entry.segments.is_some() => {
                    return Err(Error::InvalidImage(format!("{name} is a sparse file")));
                }
                EntryKind::File if entry.size_bytes > limits.layer_bytes => {
                    return Err(Error::LimitExceeded {
                        unit: "bytes",
                        limit: limits.layer_bytes,
                    });
                }
                EntryKind::File
                    if entry.size_bytes <= SMALL_BYTES && small_total < SMALL_TOTAL_BYTES =>
                {
                    small_total += entry.size_bytes;
                    let mut bytes = Vec::new();
                    stream.read_to_end(&mut bytes).map_err(Error::Stream)?;
                    Kept::Small(bytes)
                }
                EntryKind::File if inner.lease_named(&name, entry.size_bytes, lease) => {
                    let digest = digest_in_name(&name);
                    Kept::Blob(digest.expect("its name gave its digest"), entry.size_bytes)
                }
                EntryKind::File => {
                    let expected = digest_in_name(&name);
                    let (digest, size) =
                        spooler.store(&mut stream, entry.size_bytes, expected.as_ref(), &name)?;
                    Kept::Blob(digest, size)
                }
                _ => {
                    return Err(Error::InvalidImage(format!(
                        "{name} is neither a file nor a directory"
                    )));
                }
            };
            let same = match (kept.get(&name), &new) {
                (None, _) => true,
                (Some(Kept::Small(a)), Kept::Small(b)) => a == b,
                (Some(Kept::Blob(a, _)), Kept::Blob(b, _)) => a == b,
                (Some(Kept::Link(a)), Kept::Link(b)) => a == b,
                _ => false,
            };
            if !same {
                return Err(Error::InvalidImage(format!(
                    "the archive is ambiguous: it holds two different {name}"
                )));
            }
            kept.insert(name, new);
        }
        Ok(kept)
    }

    fn find(&self, name: &str) -> Result<Option<&Kept>> {
        let mut name = normal(name, "")?;
        for _ in 0..MAX_LINKS {
            match self.kept.get(&name) {
                Some(Kept::Link(target)) => name.clone_from(target),
                found => return Ok(found),
            }
        }
        Err(Error::InvalidImage(format!(
            "{name} is a link that leads in circles"
        )))
    }
}

impl<'a> Source<'a> for TarSource<'a> {
    fn prepared(&self, blob: &Digest) -> Option<Prepared<'a>> {
        guard(&self.prepared).remove(blob)
    }

    fn bytes(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        match self.find(name)? {
            Some(Kept::Small(bytes)) => Ok(Some(bytes.clone())),
            Some(Kept::Blob(digest, _)) => self.inner.read_blob(digest, limit).map(Some),
            _ => Ok(None),
        }
    }

    fn blob(&self, name: &str) -> Result<Option<(Digest, u64)>> {
        match self.find(name)? {
            Some(Kept::Small(bytes)) => {
                let mut writer = BlobWriter::create(self.inner)?;
                writer.write(bytes)?;
                writer
                    .commit(digest_in_name(name).as_ref(), name, self.lease)
                    .map(Some)
            }
            Some(Kept::Blob(digest, size)) => Ok(Some((digest.clone(), *size))),
            _ => Ok(None),
        }
    }
}

/// A directory in OCI layout.
pub(crate) struct DirSource<'a> {
    inner: &'a Inner,
    lease: &'a Lease,
    root: File,
    path: PathBuf,
}

impl<'a> DirSource<'a> {
    pub(crate) fn open(inner: &'a Inner, lease: &'a Lease, path: &Path) -> Result<Self> {
        let root = File::open(path).context("open", path)?;
        Ok(DirSource {
            inner,
            lease,
            root,
            path: path.to_owned(),
        })
    }

    fn file(&self, name: &str) -> Result<Option<File>> {
        match open_beneath(
            self.root.as_fd(),
            Path::new(name),
            OFlags::RDONLY | OFlags::NONBLOCK,
        ) {
            Ok(fd) => {
                let file = File::from(fd);
                let is_file = file
                    .metadata()
                    .context("stat", self.path.join(name))?
                    .is_file();
                if !is_file {
                    return Err(Error::InvalidImage(format!("{name} is not a file")));
                }
                Ok(Some(file))
            }
            Err(e) if e.kind() == caisson_archive::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

impl<'a> Source<'a> for DirSource<'a> {
    fn bytes(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.file(name)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.take(limit + 1)
            .read_to_end(&mut bytes)
            .context("read", self.path.join(name))?;
        if bytes.len() as u64 > limit {
            return Err(Error::InvalidImage(format!(
                "{name} is larger than {limit} bytes"
            )));
        }
        Ok(Some(bytes))
    }

    fn blob(&self, name: &str) -> Result<Option<(Digest, u64)>> {
        let expected = digest_in_name(name);
        if let Some(expected) = &expected
            && let Some(size) = self.inner.lease_blob(self.lease, expected)
        {
            return Ok(Some((expected.clone(), size)));
        }
        let Some(mut file) = self.file(name)? else {
            return Ok(None);
        };
        let mut writer = BlobWriter::create(self.inner)?;
        writer.copy(&mut file, self.inner.options.limits.layer_bytes)?;
        writer.commit(expected.as_ref(), name, self.lease).map(Some)
    }
}

impl Inner {
    /// Whether a file is here already, by the digest in its name: it need not be read.
    fn lease_named(&self, name: &str, size_bytes: u64, lease: &Lease) -> bool {
        digest_in_name(name).is_some_and(|d| self.lease_blob(lease, &d) == Some(size_bytes))
    }
}

/// `blobs/sha256/<hex>` says what its contents hash to.
fn digest_in_name(name: &str) -> Option<Digest> {
    Digest::from_hex(name.strip_prefix("blobs/sha256/")?).ok()
}

/// A name without `.`, `..` and leading slashes, seen from `base`.
fn normal(name: &str, base: &str) -> Result<String> {
    let mut parts: Vec<&str> = if name.starts_with('/') {
        Vec::new()
    } else {
        base.split('/').collect()
    };
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.pop().is_some() => {}
            ".." => {
                return Err(Error::InvalidImage(format!(
                    "{name} leads out of the archive"
                )));
            }
            part => parts.push(part),
        }
    }
    parts.retain(|p| !p.is_empty());
    Ok(parts.join("/"))
}
