//! Pulling images.
//!
//! ```text
//! manifest ─▶ index? choose platform ─▶ manifest ─▶ configuration (diff ids) ─▶ per layer, some at a time:
//!                                                   here already │ download ─▶ unpack        ─▶ register all at once
//! ```
//!
//! Layers unpack as soon as each is down: the chain ids are known from the configuration, so no layer waits for another.
//! A layer that is here in another compression is not downloaded; the image then gets a manifest of its own naming what is.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::digest::Digest;
use crate::download::fetch_blob;
use crate::error::{Error, ErrorKind, Result};
use crate::images::{Registration, parse_config};
use crate::layers::LayerJob;
use crate::manifest::{self, Descriptor, Document, MAX_DOCUMENT_BYTES, Manifest, Platform};
use crate::progress::{Progress, say};
use crate::reference::Reference;
use crate::registry::{Access, Credentials, Fetched, Registry};
use crate::store::{Inner, Lease, Store};

const MAX_INDEX_DEPTH: usize = 3;

/// What a pull did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// The image.
    pub id: Digest,
    /// The digest of what the name means in the registry: an index's or a manifest's.
    pub digest: Digest,
    /// The name changed its meaning here, or is new.
    pub newer: bool,
}

/// What a registry has under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteImage {
    /// The index or manifest.
    pub descriptor: Descriptor,
    /// The platforms it has images for.
    pub platforms: Vec<Platform>,
}

impl Store {
    /// Pulls an image: `reference` with its digest, or else its tag (`latest` when it has none).
    ///
    /// Dropping the future stops the pull; what was downloaded is kept and resumed by the next.
    ///
    /// # Errors
    /// [`Error::NotInRegistry`], [`Error::Unauthorized`], [`Error::NoMatchingPlatform`], [`Error::Registry`] after
    /// retries, [`Error::DigestMismatch`], [`Error::DiffIdMismatch`], [`Error::LimitExceeded`], [`Error::Io`].
    pub async fn pull(
        &self,
        reference: &Reference,
        platform: Option<&Platform>,
        credentials: Credentials,
        progress: Progress,
    ) -> Result<Pulled> {
        let reference = reference.clone().with_default_tag();
        let result = self
            .pull_now(&reference, platform, credentials, &progress)
            .await;
        if let Err(error) = &result
            && error.kind() == ErrorKind::NoSpace
        {
            // Nothing is kept for the next try: the disk must be usable now.
            let inner = self.0.clone();
            let _ = tokio::task::spawn_blocking(move || {
                inner.sweep_fresh().and_then(|()| inner.remove_partials())
            })
            .await;
        }
        result
    }

    /// What a registry has under a name, without pulling it.
    ///
    /// # Errors
    /// As [`Store::pull`].
    pub async fn remote_image(
        &self,
        reference: &Reference,
        credentials: Credentials,
    ) -> Result<RemoteImage> {
        let reference = reference.clone().with_default_tag();
        let registry =
            Registry::connect(&reference, Access::Pull, credentials, &self.0.options).await?;
        let fetched = registry.manifest(&selector(&reference)).await?;
        let document = parse(&fetched)?;
        let platforms = match &document {
            Document::Index(index) => {
                let platforms = index.manifests.iter().filter_map(|d| d.platform.clone());
                let known = platforms.filter(|p| p.os != "unknown");
                known
                    .map(|p| Platform {
                        os: p.os,
                        architecture: p.architecture,
                        variant: p.variant,
                    })
                    .collect()
            }
            Document::Manifest(manifest) => {
                let config = parse_config(&registry.document(&manifest.config.digest).await?)?;
                vec![Platform {
                    os: config.os,
                    architecture: config.architecture,
                    variant: config.variant,
                }]
            }
        };
        let media_type = match &document {
            Document::Index(index) => index.media_type.clone().unwrap_or(fetched.content_type),
            Document::Manifest(manifest) => manifest.media_type().to_owned(),
        };
        let descriptor = Descriptor::new(&media_type, fetched.digest, fetched.bytes.len() as u64);
        Ok(RemoteImage {
            descriptor,
            platforms,
        })
    }

    /// Whether a registry accepts credentials. `domain` is its host, `docker.io` for Docker Hub.
    ///
    /// # Errors
    /// [`Error::Unauthorized`], [`Error::Registry`], [`Error::InvalidReference`] for what is no host.
    pub async fn login(&self, domain: &str, credentials: Credentials) -> Result<()> {
        let reference: Reference = format!("{domain}/login").parse()?;
        let registry =
            Registry::connect(&reference, Access::Pull, credentials, &self.0.options).await?;
        registry.ping().await
    }

    async fn pull_now(
        &self,
        reference: &Reference,
        platform: Option<&Platform>,
        credentials: Credentials,
        progress: &Progress,
    ) -> Result<Pulled> {
        let inner = &self.0;
        let lease = Arc::new(Lease::new(inner));
        let registry = Arc::new(
            Registry::connect(reference, Access::Pull, credentials, &inner.options).await?,
        );
        let selector = selector(reference);
        let top = registry
            .manifest(&selector)
            .await
            .map_err(|error| absent(reference, error))?;
        let label = reference.tag().filter(|_| reference.digest().is_none());
        let label = label.map_or_else(|| top.digest.to_string(), str::to_owned);
        say(
            progress,
            label,
            format!("Pulling from {}", reference.path()),
        );

        let top_digest = top.digest.clone();
        let mut documents = Vec::new();
        let wanted = platform.unwrap_or(&inner.options.platform);
        let chosen = choose(&registry, reference, wanted, top, &mut documents).await?;
        let manifest = manifest::parse_manifest(&chosen.bytes)?;
        documents.push((chosen.digest.clone(), chosen.bytes));

        let config_bytes = self.config(&registry, &manifest, &lease).await?;
        let config = parse_config(&config_bytes)?;
        if let Some(platform) = platform {
            let offered = manifest::ManifestPlatform {
                architecture: config.architecture.clone(),
                os: config.os.clone(),
                variant: config.variant.clone(),
            };
            if !platform.runs(&offered) {
                return Err(Error::NotInRegistry(format!(
                    "image with reference {} was found but does not match the specified platform: wanted {platform}, \
                     actual: {}/{}",
                    reference.familiar(),
                    config.os,
                    config.architecture
                )));
            }
        }
        if config.rootfs.diff_ids.len() != manifest.layers.len() {
            return Err(Error::InvalidImage(format!(
                "{} is no container image: its configuration lists {} layers, its manifest {}",
                reference.familiar(),
                config.rootfs.diff_ids.len(),
                manifest.layers.len()
            )));
        }
        let layers = self
            .layers(
                &registry,
                &manifest,
                &config.rootfs.diff_ids,
                &lease,
                progress,
            )
            .await?;

        let id = manifest.config.digest.clone();
        let before = reference
            .digest()
            .is_none()
            .then(|| inner.index().tags.get(&reference.to_string()).cloned());
        let newer = match &before {
            Some(before) => before.as_ref() != Some(&id),
            None => !inner
                .index()
                .repo_digests
                .contains_key(&(reference.name(), top_digest.clone())),
        };
        let registering = {
            let (reference, id, digest) = (reference.clone(), id.clone(), top_digest.clone());
            let (manifest_digest, config_len) = (chosen.digest, config_bytes.len() as u64);
            let substituted = layers
                .iter()
                .zip(&manifest.layers)
                .any(|((blob, _), l)| *blob != l.digest);
            move |inner: &Inner, lease: &Lease| {
                for (_, bytes) in &documents {
                    inner.put_blob(bytes, lease)?;
                }
                let manifest = match substituted {
                    true => inner.make_manifest(&id, config_len, &layers, lease)?,
                    false => manifest_digest,
                };
                let registration = Registration {
                    id,
                    manifest,
                    parent: None,
                    tags: reference
                        .digest()
                        .is_none()
                        .then(|| reference.clone())
                        .into_iter()
                        .collect(),
                    repo_digests: vec![(reference.clone(), digest)],
                    documents: documents.into_iter().map(|(digest, _)| digest).collect(),
                };
                inner.register(&[registration], lease)
            }
        };
        {
            let (inner, lease) = (inner.clone(), lease.clone());
            on_thread(move || registering(&inner, &lease)).await?;
        }
        say(progress, "", format!("Digest: {top_digest}"));
        let state = if newer {
            "Downloaded newer image for"
        } else {
            "Image is up to date for"
        };
        say(
            progress,
            "",
            format!("Status: {state} {}", reference.familiar()),
        );
        Ok(Pulled {
            id,
            digest: top_digest,
            newer,
        })
    }

    /// The configuration, from here or from the registry.
    async fn config(
        &self,
        registry: &Registry,
        manifest: &Manifest,
        lease: &Arc<Lease>,
    ) -> Result<Vec<u8>> {
        let digest = manifest.config.digest.clone();
        let here = self.0.lease_blob(lease, &digest).is_some();
        let (inner, lease) = (self.0.clone(), lease.clone());
        if here {
            return on_thread(move || inner.read_blob(&digest, MAX_DOCUMENT_BYTES)).await;
        }
        let bytes = registry.document(&digest).await?;
        on_thread(move || inner.put_blob(&bytes, &lease).map(|_| bytes)).await
    }

    /// Gets and unpacks all layers; answers with the blobs that hold them.
    async fn layers(
        &self,
        registry: &Arc<Registry>,
        manifest: &Manifest,
        diff_ids: &[Digest],
        lease: &Arc<Lease>,
        progress: &Progress,
    ) -> Result<Vec<(Digest, u64)>> {
        let inner = &self.0;
        let index = inner.index();
        let mut blobs = Vec::new();
        for (diff_id, layer) in diff_ids.iter().zip(&manifest.layers) {
            let same = [&layer.digest]
                .into_iter()
                .chain(index.diffs.get(diff_id).into_iter().flatten());
            let here = same
                .into_iter()
                .find_map(|d| Some((d.clone(), inner.lease_blob(lease, d)?)));
            blobs.push(here.unwrap_or_else(|| (layer.digest.clone(), layer.size_bytes)));
        }
        let names: Vec<Digest> = blobs.iter().map(|(digest, _)| digest.clone()).collect();
        let jobs = LayerJob::stack(diff_ids, &names);
        let transfers = Arc::new(Semaphore::new(inner.options.parallel.max(3)));
        let unpackers = Arc::new(Semaphore::new(inner.options.parallel));
        let mut tasks: JoinSet<Result<()>> = JoinSet::new();
        for (mut job, layer) in jobs.into_iter().zip(&manifest.layers) {
            let label = layer.digest.short().to_owned();
            let blob_here = inner.lease_blob(lease, &job.blob).is_some();
            if blob_here && inner.lease_layer(lease, &job.chain_id).is_some() {
                say(progress, label, "Already exists");
                continue;
            }
            say(progress, label.as_str(), "Pulling fs layer");
            job.label.clone_from(&label);
            let (inner, registry, layer) = (inner.clone(), registry.clone(), layer.clone());
            let (lease, progress) = (lease.clone(), progress.clone());
            let (transfers, unpackers) = (transfers.clone(), unpackers.clone());
            tasks.spawn(async move {
                if !blob_here {
                    let _turn = transfers.acquire().await.map_err(|_| Error::Cancelled)?;
                    fetch_blob(&inner, &registry, &layer, &lease, &progress).await?;
                }
                let _turn = unpackers.acquire().await.map_err(|_| Error::Cancelled)?;
                {
                    let progress = progress.clone();
                    on_thread(move || inner.unpack_layer(&job, &lease, &progress, "Extracting"))
                        .await?;
                }
                say(&progress, label, "Pull complete");
                Ok(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            match done {
                Ok(result) => result?,
                Err(join) if join.is_panic() => std::panic::resume_unwind(join.into_panic()),
                Err(_) => return Err(Error::Cancelled),
            }
        }
        Ok(blobs)
    }
}

/// Follows indexes to the manifest for a platform, keeping each on the way.
async fn choose(
    registry: &Registry,
    reference: &Reference,
    platform: &Platform,
    mut fetched: Fetched,
    documents: &mut Vec<(Digest, Vec<u8>)>,
) -> Result<Fetched> {
    for _ in 0..MAX_INDEX_DEPTH {
        let Document::Index(index) = parse(&fetched)? else {
            return Ok(fetched);
        };
        let chosen =
            platform
                .choose(&index.manifests)
                .ok_or_else(|| Error::NoMatchingPlatform {
                    platform: platform.to_string(),
                    reference: reference.familiar(),
                })?;
        documents.push((fetched.digest, fetched.bytes));
        fetched = registry.manifest(chosen.digest.as_str()).await?;
        if fetched.bytes.len() as u64 != chosen.size_bytes {
            return Err(Error::InvalidImage(format!(
                "the size of {} differs from the index",
                chosen.digest
            )));
        }
    }
    Err(Error::InvalidImage("indexes are nested too deeply".into()))
}

/// Reads what was fetched; the registry's `Content-Type` must not say otherwise (GHSA-77vh-xpmg-72qh).
fn parse(fetched: &Fetched) -> Result<Document> {
    let document = manifest::parse(&fetched.bytes)?;
    let contradicts = match &document {
        Document::Index(_) => [manifest::OCI_MANIFEST, manifest::DOCKER_MANIFEST],
        Document::Manifest(_) => [manifest::OCI_INDEX, manifest::DOCKER_LIST],
    };
    if contradicts.contains(&fetched.content_type.as_str()) {
        return Err(Error::InvalidImage(format!(
            "the manifest is ambiguous: the registry says it is {}, its contents say otherwise",
            fetched.content_type
        )));
    }
    Ok(document)
}

fn selector(reference: &Reference) -> String {
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, Some(tag)) => tag.to_owned(),
        (None, None) => crate::DEFAULT_TAG.to_owned(),
    }
}

/// Docker's words where a registry says no.
fn absent(reference: &Reference, error: Error) -> Error {
    match error {
        Error::NotInRegistry(told) => {
            let told = told
                .split_once(" not found: ")
                .map_or("manifest unknown", |(_, told)| told);
            Error::NotInRegistry(format!(
                "manifest for {} not found: {told}",
                reference.familiar()
            ))
        }
        Error::Unauthorized(told) => Error::Unauthorized(format!(
            "pull access denied for {}, repository does not exist or may require 'docker login': {told}",
            reference.familiar_name()
        )),
        other => other,
    }
}

/// Runs blocking work.
pub(crate) async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(join) if join.is_panic() => std::panic::resume_unwind(join.into_panic()),
        Err(_) => Err(Error::Cancelled),
    }
}
