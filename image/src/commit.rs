//! New images made here: `docker commit` (an upper directory on top of a parent) and `docker import` (a tarball alone).

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use caisson_archive::{PackOptions, pack};
use chrono::{DateTime, FixedOffset, Utc};

use crate::blobs::BlobWriter;
use crate::config::{HistoryEntry, ImageConfig, RootFs, RunConfig};
use crate::digest::Digest;
use crate::error::{Context, Error, Result};
use crate::images::Registration;
use crate::layers::LayerJob;
use crate::load::to_json;
use crate::manifest::Platform;
use crate::progress::{Progress, silent};
use crate::reference::Reference;
use crate::store::{Inner, Lease, Store};

/// As long as GNU tar pads an archive without entries.
const EMPTY_ARCHIVE_BYTES: u64 = 10240;

/// What becomes an image's new layer.
pub enum CommitSource {
    /// An overlay's upper directory. Freeze or stop its container first for a consistent picture.
    Upper(PathBuf),
    /// A layer's archive with `.wh.` entries, compressed or not.
    Archive(Box<dyn Read + Send>),
    /// Nothing: only the configuration changes.
    Nothing,
}

impl std::fmt::Debug for CommitSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CommitSource::Upper(path) => write!(f, "Upper({path:?})"),
            CommitSource::Archive(_) => f.write_str("Archive"),
            CommitSource::Nothing => f.write_str("Nothing"),
        }
    }
}

/// A new image on top of another.
#[derive(Debug)]
pub struct Commit {
    /// Below it; `None` for a container that was made from nothing.
    pub parent: Option<Digest>,
    /// Its own layer.
    pub source: CommitSource,
    /// What its containers start with, complete: nothing is inherited here.
    pub config: RunConfig,
    /// Who made it.
    pub author: String,
    /// A remark.
    pub comment: String,
    /// What made the layer: the container's command.
    pub created_by: String,
    /// When; now when `None`.
    pub created: Option<DateTime<FixedOffset>>,
    /// Its name; a tag of `latest` is added where none is given.
    pub tag: Option<Reference>,
}

/// A new image from a tarball.
#[derive(Clone, Debug)]
pub struct Import {
    /// What its containers start with.
    pub config: RunConfig,
    /// A remark; Docker writes `Imported from -`.
    pub message: String,
    /// What it runs on; this host's when `None`.
    pub platform: Option<Platform>,
    /// Its name.
    pub tag: Option<Reference>,
}

impl Store {
    /// Makes an image of a container's changes; answers its id.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`] for the parent, [`Error::Archive`] for what cannot be packed, [`Error::Io`].
    pub async fn commit(&self, commit: Commit) -> Result<Digest> {
        let store = self.clone();
        self.blocking(move |inner, lease| store.commit_now(inner, lease, commit))
            .await
    }

    /// Makes an image of one tarball, compressed or not; answers its id. Reads `input` where blocking is fine.
    ///
    /// # Errors
    /// [`Error::Archive`] for what is no tarball, [`Error::LimitExceeded`], [`Error::Stream`].
    pub async fn import(
        &self,
        input: impl Read + Send + 'static,
        import: Import,
        progress: Progress,
    ) -> Result<Digest> {
        self.blocking(move |inner, lease| {
            let (blob, size) = inner.store_stream(input, lease)?;
            let diff_id = inner.unpack_base(&blob, lease, &progress)?;
            let platform = import
                .platform
                .unwrap_or_else(|| inner.options.platform.clone());
            let created = now();
            let config = ImageConfig {
                architecture: platform.architecture,
                variant: platform.variant,
                os: platform.os,
                created: Some(created),
                config: import.config,
                rootfs: RootFs {
                    diff_ids: vec![diff_id.clone()],
                    ..RootFs::default()
                },
                history: vec![HistoryEntry {
                    created: Some(created),
                    comment: import.message,
                    ..HistoryEntry::default()
                }],
                ..ImageConfig::default()
            };
            inner.finish_image(&config, &[(blob, size)], None, import.tag, lease)
        })
        .await
    }

    fn commit_now(&self, inner: &Inner, lease: &Lease, commit: Commit) -> Result<Digest> {
        let parent = match &commit.parent {
            Some(id) => Some(
                self.by_id(id)
                    .ok_or_else(|| Error::NoSuchImage(id.to_string()))?,
            ),
            None => None,
        };
        let created = commit.created.unwrap_or_else(now);
        let mut config = match &parent {
            Some(parent) => parent.config().clone(),
            None => ImageConfig {
                architecture: inner.options.platform.architecture.clone(),
                variant: inner.options.platform.variant.clone(),
                os: inner.options.platform.os.clone(),
                ..ImageConfig::default()
            },
        };
        // Docker's builders leave these; they speak of the parent's container.
        for stale in [
            "container",
            "container_config",
            "docker_version",
            "id",
            "parent",
        ] {
            config.other.remove(stale);
        }
        let mut blobs: Vec<(Digest, u64)> = Vec::new();
        for layer in parent.iter().flat_map(|p| p.layers()) {
            let missing =
                || Error::InvalidImage(format!("the parent's layer {} is gone", layer.diff_id));
            inner
                .lease_blob(lease, &layer.blob.digest)
                .ok_or_else(missing)?;
            inner
                .lease_layer(lease, &layer.chain_id)
                .ok_or_else(missing)?;
            blobs.push((layer.blob.digest.clone(), layer.blob.size_bytes));
        }
        let new = inner.commit_layer(commit.source, &config.rootfs.diff_ids, lease)?;
        config.history.push(HistoryEntry {
            created: Some(created),
            author: commit.author.clone(),
            created_by: commit.created_by,
            comment: commit.comment,
            empty_layer: new.is_none(),
        });
        if let Some((diff_id, blob, size)) = new {
            config.rootfs.diff_ids.push(diff_id);
            blobs.push((blob, size));
        }
        config.created = Some(created);
        config.author = (!commit.author.is_empty()).then_some(commit.author);
        config.config = commit.config;
        inner.finish_image(&config, &blobs, commit.parent, commit.tag, lease)
    }
}

impl Inner {
    /// Stores and unpacks a layer on top of others; `None` when it would be empty.
    fn commit_layer(
        &self,
        source: CommitSource,
        below: &[Digest],
        lease: &Lease,
    ) -> Result<Option<(Digest, Digest, u64)>> {
        let parent = below.iter().fold(None, |parent, diff| {
            Some(Digest::chain(parent.as_ref(), diff))
        });
        let (blob, size, diff_id) = match source {
            CommitSource::Nothing => return Ok(None),
            CommitSource::Upper(upper) => {
                let root = File::open(&upper).context("open", &upper)?;
                let mut writer = BlobWriter::create(self)?;
                let mut out = Written {
                    writer: &mut writer,
                    failed: None,
                };
                let packed = pack(
                    root.as_fd(),
                    Path::new("/"),
                    Path::new(""),
                    &mut out,
                    &PackOptions::layer(),
                );
                if let Some(error) = out.failed {
                    return Err(error);
                }
                if packed?.entries == 0 {
                    return Ok(None);
                }
                let (blob, size) = writer.commit(None, "layer", lease)?;
                (blob.clone(), size, Some(blob))
            }
            CommitSource::Archive(input) => {
                let (blob, size) = self.store_stream(input, lease)?;
                if size <= EMPTY_ARCHIVE_BYTES && self.is_empty_archive(&blob)? {
                    return Ok(None);
                }
                (blob, size, None)
            }
        };
        let diff_id = match diff_id {
            Some(diff_id) => diff_id,
            None => self.diff_id_of(&blob)?,
        };
        let job = LayerJob {
            label: diff_id.short().to_owned(),
            index: below.len(),
            blob: blob.clone(),
            chain_id: Digest::chain(parent.as_ref(), &diff_id),
            diff_id: diff_id.clone(),
            parent,
        };
        self.unpack_layer(&job, lease, &silent(), "Committing")?;
        Ok(Some((diff_id, blob, size)))
    }

    /// Whether a small blob is an archive without entries: nothing but the zeros that end one.
    fn is_empty_archive(&self, blob: &Digest) -> Result<bool> {
        let path = self.blob_path(blob);
        let bytes = std::fs::read(&path).context("read", &path)?;
        Ok(bytes.iter().all(|byte| *byte == 0))
    }

    fn store_stream(&self, mut input: impl Read, lease: &Lease) -> Result<(Digest, u64)> {
        let mut writer = BlobWriter::create(self)?;
        writer.copy(&mut input, self.options.limits.layer_bytes)?;
        writer.commit(None, "layer", lease)
    }

    /// Stores the configuration and a manifest and makes the image known.
    fn finish_image(
        &self,
        config: &ImageConfig,
        layers: &[(Digest, u64)],
        parent: Option<Digest>,
        tag: Option<Reference>,
        lease: &Lease,
    ) -> Result<Digest> {
        let bytes = to_json(config);
        let id = self.put_blob(&bytes, lease)?;
        let manifest = self.make_manifest(&id, bytes.len() as u64, layers, lease)?;
        let registration = Registration {
            id: id.clone(),
            manifest,
            parent,
            tags: tag.map(Reference::with_default_tag).into_iter().collect(),
            repo_digests: Vec::new(),
            documents: Vec::new(),
        };
        self.register(&[registration], lease)?;
        Ok(id)
    }
}

fn now() -> DateTime<FixedOffset> {
    Utc::now().fixed_offset()
}

/// A blob being written, keeping its own error apart from the packer's.
struct Written<'a, 'b> {
    writer: &'a mut BlobWriter<'b>,
    failed: Option<Error>,
}

impl Write for Written<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self.writer.write(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(error) => {
                let told = std::io::Error::other(error.to_string());
                self.failed = Some(error);
                Err(told)
            }
        }
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
