//! Pushing images.
//!
//! Layers that are stored uncompressed (loaded from `docker save`, committed) are compressed first, once: the image then
//! has a manifest of compressed layers, and the uncompressed archives go. A blob is not uploaded when the repository has
//! it, and mounted when another repository of the registry that we know of has it.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;

use futures_util::StreamExt;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::io::ReaderStream;

use crate::blobs::BlobWriter;
use crate::compression::Compression;
use crate::db;
use crate::digest::Digest;
use crate::error::{Context, Error, Result};
use crate::images::Image;
use crate::manifest::{self, Descriptor, MAX_DOCUMENT_BYTES};
use crate::progress::{Meter, Progress, say};
use crate::pull::on_thread;
use crate::reference::Reference;
use crate::registry::{Access, Credentials, Registry};
use crate::store::{Inner, Lease, Store, guard};

/// What a push made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The tag.
    pub tag: String,
    /// The manifest's digest.
    pub digest: Digest,
    /// The manifest's length.
    pub size_bytes: u64,
}

impl Store {
    /// Pushes the image a name means here to where the name says. The tag is `latest` when the name has none.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::Unauthorized`], [`Error::Registry`] after retries, [`Error::Io`].
    pub async fn push(
        &self,
        reference: &Reference,
        credentials: Credentials,
        progress: Progress,
    ) -> Result<Pushed> {
        let reference = reference.clone().with_default_tag();
        let tag = reference
            .tag()
            .map(str::to_owned)
            .ok_or_else(|| Error::InvalidReference {
                reference: reference.familiar(),
                reason: "cannot push a digest reference".into(),
            })?;
        let id = self.0.index().tags.get(&reference.to_string()).cloned();
        let image = id.and_then(|id| self.by_id(&id)).ok_or_else(|| {
            let name = reference.familiar_name();
            Error::NoSuchImage(format!(
                "An image does not exist locally with the tag: {name}"
            ))
        })?;
        say(
            &progress,
            "",
            format!("The push refers to repository [{}]", reference.name()),
        );
        let lease = Arc::new(Lease::new(&self.0));
        let image = self.compressed(image, &lease, &progress).await?;
        let registry =
            Registry::connect(&reference, Access::Push, credentials, &self.0.options).await?;
        let registry = Arc::new(registry);
        let sources = Arc::new(self.mount_sources(&reference));

        let turns = Arc::new(Semaphore::new(self.0.options.parallel.max(3)));
        let mut tasks: JoinSet<Result<()>> = JoinSet::new();
        let mut seen = std::collections::HashSet::new();
        for layer in image
            .layers()
            .iter()
            .filter(|layer| seen.insert(layer.blob.digest.clone()))
        {
            let label = layer.diff_id.short().to_owned();
            say(&progress, label.as_str(), "Preparing");
            let upload = Upload {
                inner: self.0.clone(),
                registry: registry.clone(),
                blob: layer.blob.clone(),
                sources: sources.clone(),
                label: Some(label),
                progress: progress.clone(),
            };
            let turns = turns.clone();
            let lease = lease.clone();
            tasks.spawn(async move {
                let _lease = lease;
                let _turn = turns.acquire().await.map_err(|_| Error::Cancelled)?;
                upload.run().await
            });
        }
        while let Some(done) = tasks.join_next().await {
            match done {
                Ok(result) => result.map_err(|e| denied(&reference, e))?,
                Err(join) if join.is_panic() => std::panic::resume_unwind(join.into_panic()),
                Err(_) => return Err(Error::Cancelled),
            }
        }
        let config = Descriptor::new("", image.id().clone(), image.config_json().len() as u64);
        let upload = Upload {
            inner: self.0.clone(),
            registry: registry.clone(),
            blob: config,
            sources,
            label: None,
            progress: progress.clone(),
        };
        upload.run().await.map_err(|e| denied(&reference, e))?;
        let manifest = image.manifest().clone();
        let bytes = {
            let (inner, digest) = (self.0.clone(), manifest.digest.clone());
            on_thread(move || inner.read_blob(&digest, MAX_DOCUMENT_BYTES)).await?
        };
        registry
            .put_manifest(&tag, &manifest.media_type, &bytes)
            .await
            .map_err(|e| denied(&reference, e))?;
        {
            let (inner, id, digest) = (self.0.clone(), image.id().clone(), manifest.digest.clone());
            let repository = reference.name();
            on_thread(move || inner.change(|t| db::set_repo_digest(t, &repository, &digest, &id)))
                .await?;
        }
        say(
            &progress,
            "",
            format!("{tag}: digest: {} size: {}", manifest.digest, bytes.len()),
        );
        Ok(Pushed {
            tag,
            digest: manifest.digest,
            size_bytes: bytes.len() as u64,
        })
    }

    /// Other repositories of the same registry, with the blobs we know they have.
    fn mount_sources(&self, target: &Reference) -> Vec<(String, Vec<Digest>)> {
        let mut sources = Vec::new();
        for image in self.list() {
            let here = image
                .repo_digests
                .iter()
                .filter_map(|d| d.parse::<Reference>().ok());
            for repository in
                here.filter(|r| r.domain() == target.domain() && r.path() != target.path())
            {
                let blobs = image
                    .layers()
                    .iter()
                    .map(|layer| layer.blob.digest.clone())
                    .collect();
                sources.push((repository.path().to_owned(), blobs));
            }
        }
        sources
    }

    /// The image with no layer stored uncompressed.
    async fn compressed(
        &self,
        image: Arc<Image>,
        lease: &Arc<Lease>,
        progress: &Progress,
    ) -> Result<Arc<Image>> {
        let (store, lease, progress) = (self.clone(), lease.clone(), progress.clone());
        on_thread(move || {
            let inner = &store.0;
            let mut plain = Vec::new();
            let mut blobs = Vec::new();
            for (index, layer) in image.layers().iter().enumerate() {
                let gone = || {
                    Error::InvalidImage(format!(
                        "the layer {} is gone: load the image again",
                        layer.diff_id
                    ))
                };
                inner
                    .lease_blob(&lease, &layer.blob.digest)
                    .ok_or_else(gone)?;
                if inner.blob_compression(&layer.blob.digest)? == Compression::Plain {
                    plain.push(index);
                }
                blobs.push((layer.blob.digest.clone(), layer.blob.size_bytes));
            }
            inner.lease_blob(&lease, image.id());
            inner.lease_blob(&lease, &image.manifest().digest);
            if plain.is_empty() {
                return Ok(image);
            }
            for (index, blob) in inner.compress_all(&image, &plain, &lease, &progress)? {
                blobs[index] = blob;
            }
            let manifest = inner.make_manifest(
                image.id(),
                image.config_json().len() as u64,
                &blobs,
                &lease,
            )?;
            inner.exchange_manifest(&image, &manifest, &blobs, &lease)?;
            store
                .by_id(image.id())
                .ok_or_else(|| Error::NoSuchImage(image.id().to_string()))
        })
        .await
    }
}

impl Inner {
    /// Compresses layers, some at a time.
    fn compress_all(
        &self,
        image: &Image,
        which: &[usize],
        lease: &Lease,
        progress: &Progress,
    ) -> Result<Vec<(usize, (Digest, u64))>> {
        let next = std::sync::atomic::AtomicUsize::new(0);
        let results = std::sync::Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..self.options.parallel.min(which.len()) {
                scope.spawn(|| {
                    while let Some(index) =
                        which.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                    {
                        let layer = &image.layers()[*index];
                        let done = self.known_compressed(&layer.diff_id, lease).map_or_else(
                            || self.compress(&layer.blob, layer.diff_id.short(), lease, progress),
                            Ok,
                        );
                        guard(&results).push(done.map(|blob| (*index, blob)));
                    }
                });
            }
        });
        results
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .into_iter()
            .collect()
    }

    /// A compressed blob of a layer that is here already.
    fn known_compressed(&self, diff_id: &Digest, lease: &Lease) -> Option<(Digest, u64)> {
        let index = self.index();
        index
            .diffs
            .get(diff_id)?
            .iter()
            .filter(|blob| *blob != diff_id)
            .find_map(|blob| {
                let size = self.lease_blob(lease, blob)?;
                let compression = self.blob_compression(blob).ok()?;
                (compression != Compression::Plain).then(|| (blob.clone(), size))
            })
    }

    fn compress(
        &self,
        blob: &Descriptor,
        label: &str,
        lease: &Lease,
        progress: &Progress,
    ) -> Result<(Digest, u64)> {
        let path = self.blob_path(&blob.digest);
        let mut file = File::open(&path).context("open", &path)?;
        let meter = Meter::new(progress, label, "Compressing", blob.size_bytes);
        let mut writer = BlobWriter::create(self)?;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        let mut buffer = vec![0_u8; 256 * 1024];
        loop {
            let n = file.read(&mut buffer).context("read", &path)?;
            if n == 0 {
                break;
            }
            encoder.write_all(&buffer[..n]).map_err(Error::Stream)?;
            writer.write(encoder.get_ref())?;
            encoder.get_mut().clear();
            meter.advance(n as u64);
        }
        let rest = encoder.finish().map_err(Error::Stream)?;
        writer.write(&rest)?;
        writer.commit(None, "layer", lease)
    }

    /// Gives an image another manifest of the same layers.
    fn exchange_manifest(
        &self,
        image: &Image,
        manifest: &Digest,
        blobs: &[(Digest, u64)],
        lease: &Lease,
    ) -> Result<()> {
        let bytes = self.read_blob(manifest, MAX_DOCUMENT_BYTES)?;
        manifest::parse_manifest(&bytes)?;
        {
            let mut fresh = self.fresh();
            for (layer, (blob, _)) in image.layers().iter().zip(blobs) {
                fresh.diffs.insert((layer.diff_id.clone(), blob.clone()));
            }
        }
        self.register(&[], lease)?;
        self.change(|t| {
            t.execute(
                "UPDATE images SET manifest = ?2 WHERE id = ?1",
                [image.id().as_str(), manifest.as_str()],
            )?;
            Ok(())
        })
    }
}

/// One blob on its way up.
struct Upload {
    inner: Arc<Inner>,
    registry: Arc<Registry>,
    blob: Descriptor,
    sources: Arc<Vec<(String, Vec<Digest>)>>,
    /// How progress calls it; `None` for what is not shown.
    label: Option<String>,
    progress: Progress,
}

impl Upload {
    fn say(&self, status: &str) {
        if let Some(label) = &self.label {
            say(&self.progress, label.as_str(), status);
        }
    }

    async fn run(&self) -> Result<()> {
        if self.registry.has_blob(&self.blob.digest).await? {
            self.say("Layer already exists");
            return Ok(());
        }
        let source = self
            .sources
            .iter()
            .find(|(_, blobs)| blobs.contains(&self.blob.digest));
        if let Some((source, _)) = source {
            // What a registry does not want to mount it lets us upload.
            let mounted = self
                .registry
                .begin_upload(&self.blob.digest, Some(source))
                .await;
            if matches!(mounted, Ok(None)) {
                self.say(&format!("Mounted from {source}"));
                return Ok(());
            }
        }
        self.registry.retrying(|| self.upload()).await?;
        self.say("Pushed");
        Ok(())
    }

    async fn upload(&self) -> Result<()> {
        let Some(location) = self.registry.begin_upload(&self.blob.digest, None).await? else {
            return Ok(());
        };
        let path = self.inner.blob_path(&self.blob.digest);
        let file = tokio::fs::File::open(&path).await.context("open", &path)?;
        let size = self.blob.size_bytes;
        let meter = self
            .label
            .as_ref()
            .map(|label| Meter::new(&self.progress, label, "Pushing", size));
        let stream = ReaderStream::with_capacity(file, 128 * 1024).inspect(move |chunk| {
            if let (Some(meter), Ok(chunk)) = (&meter, chunk) {
                meter.advance(chunk.len() as u64);
            }
        });
        self.registry
            .upload(
                location,
                &self.blob.digest,
                size,
                reqwest::Body::wrap_stream(stream),
            )
            .await
    }
}

fn denied(reference: &Reference, error: Error) -> Error {
    match error {
        Error::Unauthorized(told) => Error::Unauthorized(format!(
            "denied: requested access to {} is denied: {told}",
            reference.name()
        )),
        other => other,
    }
}
