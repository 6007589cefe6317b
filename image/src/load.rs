//! Loading images from archives: `docker save` (old and new), OCI layouts in a tar stream or a directory.
//!
//! ```text
//! manifest.json there?  ── yes ─▶ Docker's list: config, layers, tags   (an OCI index beside it only lends its manifest)
//!                       ── no ──▶ index.json ─▶ manifests, nested indexes by platform
//! ```
//!
//! All layers of all images are unpacked, then everything is registered in one step: a failure leaves nothing loaded.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::PathBuf;

use serde::Deserialize;

use crate::compression::{Compression, detect};
use crate::digest::Digest;
use crate::error::{Context, Error, Result};
use crate::images::{Registration, parse_config};
use crate::layers::LayerJob;
use crate::manifest::{
    self, Descriptor, Document, MAX_DOCUMENT_BYTES, Manifest, OCI_CONFIG, OCI_LAYER,
    OCI_LAYER_GZIP, OCI_LAYER_ZSTD,
};
use crate::progress::{Progress, say};
use crate::reference::Reference;
use crate::source::{DirSource, Source, TarSource};
use crate::store::{Inner, Lease, Store};

/// Nested indexes followed while looking for a manifest.
const MAX_INDEX_DEPTH: usize = 3;

/// An image that was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Its id.
    pub id: Digest,
    /// The names it was given; empty for an image without a name.
    pub references: Vec<Reference>,
}

/// One image found in a source, before anything of it is used.
struct Found {
    config: Digest,
    config_bytes: Vec<u8>,
    layers: Vec<Digest>,
    manifest: Digest,
    references: Vec<Reference>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl Store {
    /// Loads the images of an archive, compressed or not. Reads `input` on a thread where blocking is fine.
    ///
    /// # Errors
    /// [`Error::InvalidImage`], [`Error::DigestMismatch`], [`Error::DiffIdMismatch`], [`Error::LimitExceeded`],
    /// [`Error::Stream`] when `input` fails. Nothing is loaded then.
    pub async fn load(
        &self,
        input: impl Read + Send + 'static,
        progress: Progress,
    ) -> Result<Vec<Loaded>> {
        self.blocking(move |inner, lease| {
            let source = TarSource::read(inner, lease, input)?;
            inner.load_from(&source, lease, &progress)
        })
        .await
    }

    /// Loads the images of a directory in OCI layout.
    ///
    /// # Errors
    /// As [`Store::load`].
    pub async fn load_directory(&self, path: PathBuf, progress: Progress) -> Result<Vec<Loaded>> {
        self.blocking(move |inner, lease| {
            let source = DirSource::open(inner, lease, &path)?;
            inner.load_from(&source, lease, &progress)
        })
        .await
    }

    /// Runs blocking work under a lease. When it fails, what it made is collected at once.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner, &Lease) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = self.0.clone();
        let done = tokio::task::spawn_blocking(move || {
            let lease = Lease::new(&inner);
            let result = work(&inner, &lease);
            drop(lease);
            if result.is_err()
                && let Err(error) = inner.sweep_fresh()
            {
                tracing::warn!(%error, "what a failed operation left could not be removed: prune images to try again");
            }
            result
        });
        match done.await {
            Ok(result) => result,
            Err(join) if join.is_panic() => std::panic::resume_unwind(join.into_panic()),
            Err(_) => Err(Error::Cancelled),
        }
    }
}

impl Inner {
    fn load_from<'a>(
        &'a self,
        source: &dyn Source<'a>,
        lease: &Lease,
        progress: &Progress,
    ) -> Result<Vec<Loaded>> {
        let docker = source.bytes("manifest.json", MAX_DOCUMENT_BYTES)?;
        let index = source.bytes("index.json", MAX_DOCUMENT_BYTES)?;
        let found = match (&docker, &index) {
            (Some(list), index) => self.docker_images(source, list, index.as_deref(), lease)?,
            (None, Some(index)) => self.oci_images(source, index, lease)?,
            (None, None) => {
                return Err(Error::InvalidImage(
                    "the archive holds neither manifest.json nor index.json: save it with docker save, podman save or \
                     skopeo copy"
                        .into(),
                ));
            }
        };
        let mut jobs: Vec<LayerJob> = Vec::new();
        let mut known = HashSet::new();
        for image in &found {
            let config = parse_config(&image.config_bytes)?;
            if config.rootfs.diff_ids.len() != image.layers.len() {
                return Err(Error::InvalidImage(format!(
                    "its configuration lists {} layers, the archive {}",
                    config.rootfs.diff_ids.len(),
                    image.layers.len()
                )));
            }
            let stack = LayerJob::stack(&config.rootfs.diff_ids, &image.layers);
            jobs.extend(
                stack
                    .into_iter()
                    .filter(|job| known.insert(job.chain_id.clone())),
            );
        }
        self.unpack_layers(
            &jobs,
            &|blob| source.prepared(blob),
            lease,
            progress,
            "Loading layer",
        )?;
        let registrations: Vec<Registration> = found
            .iter()
            .map(|image| Registration {
                id: image.config.clone(),
                manifest: image.manifest.clone(),
                parent: None,
                tags: image.references.clone(),
                repo_digests: Vec::new(),
                documents: Vec::new(),
            })
            .collect();
        self.register(&registrations, lease)?;
        let mut loaded = Vec::new();
        for image in found {
            for reference in &image.references {
                say(
                    progress,
                    "",
                    format!("Loaded image: {}", reference.familiar()),
                );
            }
            if image.references.is_empty() {
                say(progress, "", format!("Loaded image ID: {}", image.config));
            }
            loaded.push(Loaded {
                id: image.config,
                references: image.references,
            });
        }
        Ok(loaded)
    }

    fn docker_images(
        &self,
        source: &dyn Source<'_>,
        list: &[u8],
        index: Option<&[u8]>,
        lease: &Lease,
    ) -> Result<Vec<Found>> {
        let entries: Vec<DockerEntry> = serde_json::from_slice(list)
            .map_err(|e| Error::InvalidImage(format!("manifest.json cannot be read: {e}")))?;
        if entries.is_empty() {
            return Err(Error::InvalidImage("manifest.json lists no image".into()));
        }
        let lent = index
            .map(|index| self.manifests_of(source, index, lease))
            .transpose()?
            .unwrap_or_default();
        let mut found = Vec::new();
        for entry in entries {
            let missing = |name: &str| {
                Error::InvalidImage(format!("manifest.json names {name}, which is not there"))
            };
            let config_bytes = source
                .bytes(&entry.config, MAX_DOCUMENT_BYTES)?
                .ok_or_else(|| missing(&entry.config))?;
            let config = Digest::of(&config_bytes);
            check_named(&entry.config, &config)?;
            self.put_blob(&config_bytes, lease)?;
            let mut layers = Vec::new();
            for name in entry.layers.unwrap_or_default() {
                layers.push(source.blob(&name)?.ok_or_else(|| missing(&name))?);
            }
            let blobs: Vec<Digest> = layers.iter().map(|(digest, _)| digest.clone()).collect();
            let manifest = lent.iter().find(|(_, m)| {
                m.config.digest == config && m.layers.iter().map(|l| &l.digest).eq(blobs.iter())
            });
            let manifest = match manifest {
                Some((digest, _)) => digest.clone(),
                None => self.make_manifest(&config, config_bytes.len() as u64, &layers, lease)?,
            };
            let references = entry
                .repo_tags
                .unwrap_or_default()
                .iter()
                .map(|t| tagged(t))
                .collect::<Result<_>>()?;
            found.push(Found {
                config,
                config_bytes,
                layers: blobs,
                manifest,
                references,
            });
        }
        Ok(found)
    }

    /// The manifests of an index that are all there, as blobs.
    fn manifests_of(
        &self,
        source: &dyn Source<'_>,
        index: &[u8],
        lease: &Lease,
    ) -> Result<Vec<(Digest, Manifest)>> {
        let Document::Index(index) = manifest::parse(index)? else {
            return Err(Error::InvalidImage("index.json is not an index".into()));
        };
        let mut manifests = Vec::new();
        for descriptor in &index.manifests {
            let Some((digest, bytes)) = document(source, descriptor)? else {
                continue;
            };
            if let Document::Manifest(found) = manifest::parse(&bytes)? {
                self.put_blob(&bytes, lease)?;
                manifests.push((digest, found));
            }
        }
        Ok(manifests)
    }

    fn oci_images(
        &self,
        source: &dyn Source<'_>,
        index: &[u8],
        lease: &Lease,
    ) -> Result<Vec<Found>> {
        let Document::Index(index) = manifest::parse(index)? else {
            return Err(Error::InvalidImage("index.json is not an index".into()));
        };
        let mut found: Vec<Found> = Vec::new();
        for descriptor in &index.manifests {
            let references: Vec<Reference> = oci_name(descriptor).into_iter().collect();
            let Some((digest, bytes, manifest)) = self.oci_manifest(source, descriptor, 0)? else {
                // One platform of several in a multi-platform layout; only those that run here are loaded.
                if index.manifests.len() > 1 && descriptor.platform.is_some() {
                    continue;
                }
                return Err(Error::NoMatchingPlatform {
                    platform: self.options.platform.to_string(),
                    reference: descriptor.digest.to_string(),
                });
            };
            let config = manifest.config.digest.clone();
            if let Some(same) = found.iter_mut().find(|f| f.config == config) {
                same.references.extend(
                    references
                        .into_iter()
                        .filter(|r| !same.references.contains(r))
                        .collect::<Vec<_>>(),
                );
                continue;
            }
            self.put_blob(&bytes, lease)?;
            let missing = |d: &Digest| Error::InvalidImage(format!("the blob {d} is not there"));
            source
                .blob(&blob_name(&config))?
                .ok_or_else(|| missing(&config))?;
            let config_bytes = self.read_blob(&config, MAX_DOCUMENT_BYTES)?;
            let mut layers = Vec::new();
            for layer in &manifest.layers {
                let (digest, size) = source
                    .blob(&blob_name(&layer.digest))?
                    .ok_or_else(|| missing(&layer.digest))?;
                if size != layer.size_bytes {
                    return Err(Error::InvalidImage(format!(
                        "the layer {digest} has {size} bytes, its manifest says {}",
                        layer.size_bytes
                    )));
                }
                layers.push(digest);
            }
            found.push(Found {
                config,
                config_bytes,
                layers,
                manifest: digest,
                references,
            });
        }
        if found.is_empty() {
            return Err(Error::InvalidImage(format!(
                "index.json lists no image for {}",
                self.options.platform
            )));
        }
        Ok(found)
    }

    /// The manifest a descriptor leads to, through indexes, for this store's platform.
    fn oci_manifest(
        &self,
        source: &dyn Source<'_>,
        descriptor: &Descriptor,
        depth: usize,
    ) -> Result<Option<(Digest, Vec<u8>, Manifest)>> {
        let missing =
            || Error::InvalidImage(format!("the manifest {} is not there", descriptor.digest));
        let fits = self
            .options
            .platform
            .choose(std::slice::from_ref(descriptor))
            .is_some();
        if !fits && depth == 0 && descriptor.platform.is_some() {
            return Ok(None);
        }
        let (digest, bytes) = document(source, descriptor)?.ok_or_else(missing)?;
        match manifest::parse(&bytes)? {
            Document::Manifest(manifest) => Ok(Some((digest, bytes, manifest))),
            Document::Index(_) if depth >= MAX_INDEX_DEPTH => {
                Err(Error::InvalidImage("indexes are nested too deeply".into()))
            }
            Document::Index(index) => match self.options.platform.choose(&index.manifests) {
                Some(chosen) => self.oci_manifest(source, chosen, depth + 1),
                None => Ok(None),
            },
        }
    }

    /// Writes an OCI manifest over stored blobs.
    pub(crate) fn make_manifest(
        &self,
        config: &Digest,
        config_bytes: u64,
        layers: &[(Digest, u64)],
        lease: &Lease,
    ) -> Result<Digest> {
        let mut descriptors = Vec::new();
        for (digest, size) in layers {
            let media_type = match self.blob_compression(digest)? {
                Compression::Plain => OCI_LAYER,
                Compression::Gzip => OCI_LAYER_GZIP,
                Compression::Zstd => OCI_LAYER_ZSTD,
            };
            descriptors.push(Descriptor::new(media_type, digest.clone(), *size));
        }
        let manifest = Manifest::new(
            Descriptor::new(OCI_CONFIG, config.clone(), config_bytes),
            descriptors,
        );
        self.put_blob(&to_json(&manifest), lease)
    }

    pub(crate) fn blob_compression(&self, digest: &Digest) -> Result<Compression> {
        let path = self.blob_path(digest);
        let mut file = File::open(&path).context("open", &path)?;
        file.rewind().context("read", &path)?;
        let mut first = Vec::new();
        file.take(6)
            .read_to_end(&mut first)
            .context("read", &path)?;
        detect(&first)
    }
}

pub(crate) fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain structures have no keys JSON could refuse")
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A document by its descriptor, verified.
fn document(source: &dyn Source<'_>, descriptor: &Descriptor) -> Result<Option<(Digest, Vec<u8>)>> {
    let name = blob_name(&descriptor.digest);
    let Some(bytes) = source.bytes(&name, MAX_DOCUMENT_BYTES)? else {
        return Ok(None);
    };
    let actual = Digest::of(&bytes);
    if actual != descriptor.digest {
        return Err(Error::DigestMismatch {
            what: name,
            expected: descriptor.digest.clone(),
            actual,
        });
    }
    if bytes.len() as u64 != descriptor.size_bytes {
        return Err(Error::InvalidImage(format!(
            "the size of {actual} differs from its descriptor"
        )));
    }
    Ok(Some((actual, bytes)))
}

/// `<hex>.json` and `blobs/sha256/<hex>` promise a digest.
fn check_named(name: &str, actual: &Digest) -> Result<()> {
    let stem = name.rsplit('/').next().unwrap_or(name);
    let stem = stem.strip_suffix(".json").unwrap_or(stem);
    match Digest::from_hex(stem) {
        Ok(expected) if expected != *actual => Err(Error::DigestMismatch {
            what: name.into(),
            expected,
            actual: actual.clone(),
        }),
        _ => Ok(()),
    }
}

fn tagged(tag: &str) -> Result<Reference> {
    let reference: Reference = tag.parse()?;
    match (reference.tag(), reference.digest()) {
        (Some(_), None) => Ok(reference),
        _ => Err(Error::InvalidImage(format!(
            "invalid tag {tag:?} in manifest.json"
        ))),
    }
}

/// The name an index gives an image: containerd's annotation, or a full name where OCI has a tag alone.
fn oci_name(descriptor: &Descriptor) -> Option<Reference> {
    let full = descriptor
        .annotation("io.containerd.image.name")
        .and_then(|n| n.parse::<Reference>().ok());
    let full = full.or_else(|| {
        let name = descriptor.annotation("org.opencontainers.image.ref.name")?;
        let reference = name
            .contains([':', '/'])
            .then(|| name.parse::<Reference>().ok())??;
        Some(reference)
    })?;
    full.digest().is_none().then(|| full.with_default_tag())
}
