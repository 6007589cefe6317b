//! Images as callers see them: listing, finding, tagging, registering.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use chrono::{DateTime, FixedOffset};

use crate::config::{HistoryEntry, ImageConfig};
use crate::db::{self, ImageRow};
use crate::digest::{Digest, is_sha256_hex};
use crate::error::{Error, Result};
use crate::manifest::{self, Descriptor};
use crate::reference::Reference;
use crate::store::{Inner, Lease, Store, guard};

/// An image. Cheap to clone within its [`Arc`].
#[derive(Clone, Debug)]
pub struct Image {
    pub(crate) body: Arc<ImageBody>,
    /// The image it was committed or built from, when that was done here.
    pub parent: Option<Digest>,
    /// When it was last tagged, in milliseconds since 1970.
    pub tagged_at_ms: i64,
    /// Its tags as people write them: `alpine:latest`.
    pub repo_tags: Vec<String>,
    /// Where it was pulled from or pushed to: `alpine@sha256:…`.
    pub repo_digests: Vec<String>,
}

/// What never changes about an image.
#[derive(Debug)]
pub(crate) struct ImageBody {
    id: Digest,
    manifest: Descriptor,
    config: ImageConfig,
    config_json: String,
    layers: Vec<Layer>,
    size_bytes: u64,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Digest of its uncompressed archive.
    pub diff_id: Digest,
    /// Digest of it and all below it.
    pub chain_id: Digest,
    /// Its archive, as stored.
    pub blob: Descriptor,
    /// Its files' bytes.
    pub size_bytes: u64,
}

impl Image {
    /// Its id: the digest of its configuration.
    pub fn id(&self) -> &Digest {
        &self.body.id
    }
    /// Its configuration.
    pub fn config(&self) -> &ImageConfig {
        &self.body.config
    }
    /// Its configuration's bytes, which hash to its id.
    pub fn config_json(&self) -> &str {
        &self.body.config_json
    }
    /// The manifest it is stored under.
    pub fn manifest(&self) -> &Descriptor {
        &self.body.manifest
    }
    /// Its layers, lowest first.
    pub fn layers(&self) -> &[Layer] {
        &self.body.layers
    }
    /// Its files' bytes over all layers, as `docker images` shows.
    pub fn size_bytes(&self) -> u64 {
        self.body.size_bytes
    }
    /// When it was built.
    pub fn created(&self) -> Option<DateTime<FixedOffset>> {
        self.body.config.created
    }
    /// It has no name.
    pub fn is_dangling(&self) -> bool {
        self.repo_tags.is_empty() && self.repo_digests.is_empty()
    }
}

impl ImageBody {
    pub(crate) fn parse(
        id: &Digest,
        config_json: &[u8],
        manifest_digest: &Digest,
        manifest_json: &[u8],
        layer_size: impl Fn(&Digest) -> u64,
    ) -> Result<Self> {
        for (what, expected, bytes) in [
            ("the image's configuration", id, config_json),
            ("the image's manifest", manifest_digest, manifest_json),
        ] {
            let actual = Digest::of(bytes);
            if actual != *expected {
                return Err(Error::DigestMismatch {
                    what: what.into(),
                    expected: expected.clone(),
                    actual,
                });
            }
        }
        let config = parse_config(config_json)?;
        let manifest = manifest::parse_manifest(manifest_json)?;
        if config.rootfs.diff_ids.len() != manifest.layers.len() {
            return Err(Error::InvalidImage(format!(
                "its configuration lists {} layers, its manifest {}",
                config.rootfs.diff_ids.len(),
                manifest.layers.len()
            )));
        }
        let mut layers: Vec<Layer> = Vec::new();
        for (diff_id, blob) in config.rootfs.diff_ids.iter().zip(&manifest.layers) {
            let chain_id = Digest::chain(layers.last().map(|l| &l.chain_id), diff_id);
            let size_bytes = layer_size(&chain_id);
            layers.push(Layer {
                diff_id: diff_id.clone(),
                chain_id,
                blob: blob.clone(),
                size_bytes,
            });
        }
        let config_json = String::from_utf8(config_json.to_vec())
            .map_err(|_| Error::InvalidImage("its configuration is not UTF-8".into()))?;
        Ok(ImageBody {
            id: id.clone(),
            manifest: Descriptor::new(
                manifest.media_type(),
                manifest_digest.clone(),
                manifest_json.len() as u64,
            ),
            size_bytes: layers.iter().map(|l| l.size_bytes).sum(),
            config,
            config_json,
            layers,
        })
    }
}

/// Reads an image configuration, refusing what could never run here.
pub(crate) fn parse_config(bytes: &[u8]) -> Result<ImageConfig> {
    let config: ImageConfig = serde_json::from_slice(bytes)
        .map_err(|e| Error::InvalidImage(format!("its configuration cannot be read: {e}")))?;
    if config.rootfs.diff_ids.len() > manifest::MAX_LAYERS {
        return Err(Error::InvalidImage(format!(
            "it has more than {} layers",
            manifest::MAX_LAYERS
        )));
    }
    Ok(config)
}

/// An image to be made known.
pub(crate) struct Registration {
    pub id: Digest,
    pub manifest: Digest,
    pub parent: Option<Digest>,
    /// References with tags that shall mean it.
    pub tags: Vec<Reference>,
    /// Repositories and manifest or index digests it is known by.
    pub repo_digests: Vec<(Reference, Digest)>,
    /// Further documents that belong to it: the index it was chosen from.
    pub documents: Vec<Digest>,
}

impl Inner {
    /// Makes images known in one step: everything the lease holds reaches the disk, then the database says so.
    pub(crate) fn register(&self, images: &[Registration], lease: &Lease) -> Result<()> {
        let names = self.named_lock("names".into());
        let _guard = guard(&names);
        // What is recorded must be on disk: the snapshot comes before the sync. Only what is leased here is recorded, for
        // nothing else is sure to stay meanwhile.
        let (blobs, layers, diffs) = {
            let fresh = self.fresh();
            let (held_blobs, held_layers) = lease.held();
            let blobs: HashMap<_, _> = fresh
                .blobs
                .iter()
                .filter(|(d, _)| held_blobs.contains(*d))
                .map(|(d, s)| (d.clone(), *s))
                .collect();
            let layers: HashMap<_, _> = fresh
                .layers
                .iter()
                .filter(|(c, _)| held_layers.contains(*c))
                .map(|(c, row)| (c.clone(), row.clone()))
                .collect();
            let diffs: HashSet<_> = fresh
                .diffs
                .iter()
                .filter(|(_, blob)| held_blobs.contains(blob))
                .cloned()
                .collect();
            (blobs, layers, diffs)
        };
        self.sync()?;
        let now_ms = chrono::Utc::now().timestamp_millis();
        self.change(|t| {
            for (digest, size) in &blobs {
                db::insert_blob(t, digest, *size)?;
            }
            for row in layers.values() {
                db::insert_layer(t, row)?;
            }
            for (diff_id, blob) in &diffs {
                db::insert_diff(t, diff_id, blob)?;
            }
            for image in images {
                let row = ImageRow {
                    id: image.id.clone(),
                    manifest: image.manifest.clone(),
                    parent: image.parent.clone(),
                    tagged_at_ms: now_ms,
                    hidden: false,
                };
                db::insert_image(t, &row)?;
                for tag in &image.tags {
                    db::set_tag(t, &tag.to_string(), &image.id, now_ms)?;
                }
                for (repository, digest) in &image.repo_digests {
                    db::set_repo_digest(t, &repository.name(), digest, &image.id)?;
                }
                for document in &image.documents {
                    db::insert_document(t, document, &image.id)?;
                }
            }
            Ok(())
        })?;
        let mut fresh = self.fresh();
        fresh.blobs.retain(|digest, _| !blobs.contains_key(digest));
        fresh.layers.retain(|chain, _| !layers.contains_key(chain));
        fresh.diffs.retain(|pair| !diffs.contains(pair));
        Ok(())
    }
}

impl Store {
    /// All images, newest first. Memory only.
    pub fn list(&self) -> Vec<Arc<Image>> {
        let mut images: Vec<_> = self.0.index().images.values().cloned().collect();
        images.sort_by(|a, b| {
            b.created()
                .cmp(&a.created())
                .then_with(|| a.id().cmp(b.id()))
        });
        images
    }

    /// The image a name, id, id prefix or digest means, in Docker's order: a full id, a name, then an id's prefix. Memory
    /// only.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::Ambiguous`], [`Error::InvalidReference`].
    pub fn resolve(&self, name: &str) -> Result<Arc<Image>> {
        let index = self.0.index();
        let missing = || Error::NoSuchImage(shown(name));
        if let Ok(id) = full_id(name) {
            return index.images.get(&id).cloned().ok_or_else(missing);
        }
        let reference = name.parse::<Reference>();
        if let Ok(reference) = &reference
            && let Some(image) = self.by_reference(reference)
        {
            return Ok(image);
        }
        let prefix = name.strip_prefix("sha256:").unwrap_or(name);
        if !prefix.is_empty()
            && prefix.len() < 64
            && prefix
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        {
            let mut fitting = index
                .images
                .iter()
                .filter(|(id, _)| id.hex().starts_with(prefix));
            if let Some((_, image)) = fitting.next() {
                if fitting.next().is_some() {
                    return Err(Error::Ambiguous(prefix.to_owned()));
                }
                return Ok(image.clone());
            }
        }
        match reference {
            Err(error) if !name.starts_with("sha256:") => Err(error),
            _ => Err(missing()),
        }
    }

    /// An image by its id, also when it was removed under a container that still uses it. Memory only.
    pub fn by_id(&self, id: &Digest) -> Option<Arc<Image>> {
        let index = self.0.index();
        index
            .images
            .get(id)
            .or_else(|| index.hidden.get(id))
            .cloned()
    }

    fn by_reference(&self, reference: &Reference) -> Option<Arc<Image>> {
        let index = self.0.index();
        let id = match reference.digest() {
            Some(digest) => index
                .repo_digests
                .get(&(reference.name(), digest.clone()))
                .or_else(|| {
                    // `name@sha256:…` may also give the image's id, when the name is one of its own.
                    index
                        .images
                        .get_key_value(digest)
                        .filter(|(_, image)| {
                            let named = format!("{}:", reference.familiar_name());
                            image.repo_tags.iter().any(|tag| tag.starts_with(&named))
                        })
                        .map(|(id, _)| id)
                })?,
            None => index
                .tags
                .get(&reference.clone().with_default_tag().to_string())?,
        };
        index.images.get(id).cloned()
    }

    /// The directories to stack with overlayfs, topmost first. An image without layers has none: stack an empty directory.
    pub fn layer_dirs(&self, image: &Image) -> Vec<PathBuf> {
        image
            .layers()
            .iter()
            .rev()
            .map(|layer| self.0.layer_path(&layer.chain_id))
            .collect()
    }

    /// How the image was made, newest step first, each with the bytes of its layer.
    pub fn history(&self, image: &Image) -> Vec<(HistoryEntry, u64)> {
        let mut sizes = image.layers().iter().map(|layer| layer.size_bytes);
        let mut steps: Vec<_> = image
            .config()
            .history
            .iter()
            .map(|step| {
                (
                    step.clone(),
                    if step.empty_layer {
                        0
                    } else {
                        sizes.next().unwrap_or(0)
                    },
                )
            })
            .collect();
        // Layers without a step, as in images made by other means.
        steps.extend(sizes.map(|size| (HistoryEntry::default(), size)));
        steps.reverse();
        steps
    }

    /// Makes `target` (with the tag `latest` when it has none) mean the image. Blocks for the database.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::InvalidReference`] for a target with a digest, [`Error::Database`].
    pub fn tag(&self, image: &str, target: &Reference) -> Result<Arc<Image>> {
        let names = self.0.named_lock("names".into());
        let _guard = guard(&names);
        let image = self.resolve(image)?;
        if target.digest().is_some() {
            return Err(Error::InvalidReference {
                reference: target.familiar(),
                reason: "refusing to create a tag with a digest reference".into(),
            });
        }
        let target = target.clone().with_default_tag();
        let now_ms = chrono::Utc::now().timestamp_millis();
        self.0
            .change(|t| db::set_tag(t, &target.to_string(), image.id(), now_ms))?;
        self.by_id(image.id())
            .ok_or_else(|| Error::NoSuchImage(target.familiar()))
    }
}

fn full_id(name: &str) -> Result<Digest> {
    if is_sha256_hex(name) {
        Digest::from_hex(name)
    } else {
        name.parse()
    }
}

/// A name as Docker's message shows it, the default tag written out.
pub(crate) fn shown(name: &str) -> String {
    match name.parse::<Reference>() {
        Ok(reference) => reference.with_default_tag().familiar(),
        Err(_) => name.to_owned(),
    }
}
