//! Pruning and disk usage.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::images::Image;
use crate::remove::{InUse, Removal};
use crate::store::Store;

/// Which images to prune.
#[derive(Clone, Debug, Default)]
pub struct PruneFilter {
    /// All images no container uses, instead of those without a tag only.
    pub all: bool,
    /// Only those built before.
    pub until: Option<DateTime<Utc>>,
    /// Only those with all these labels, with this value when given.
    pub labels: Vec<(String, Option<String>)>,
    /// Only those without any of these labels.
    pub without_labels: Vec<(String, Option<String>)>,
}

/// What one image takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUsage {
    /// Its id.
    pub id: Digest,
    /// All its layers.
    pub size_bytes: u64,
    /// Of these, what other images use too.
    pub shared_bytes: u64,
}

/// What the store takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Unpacked layers, each once.
    pub layers_bytes: u64,
    /// Stored archives, manifests and configurations.
    pub blobs_bytes: u64,
    /// By image, newest first.
    pub images: Vec<ImageUsage>,
}

impl Store {
    /// Removes images, interrupted downloads and garbage. What is in use or referenced by what stays is left alone.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Database`].
    pub async fn prune(&self, filter: PruneFilter, in_use: Vec<InUse>) -> Result<Removal> {
        let store = self.clone();
        self.blocking(move |inner, _| {
            let mut total = Removal::default();
            for image in store.list() {
                if !filter.takes(&image) || store.is_intermediate(&image) {
                    continue;
                }
                let names: Vec<String> = match image.is_dangling() {
                    true => vec![image.id().to_string()],
                    false => image
                        .repo_tags
                        .iter()
                        .chain(&image.repo_digests)
                        .cloned()
                        .collect(),
                };
                for name in names {
                    match store.remove_now(&name, false, true, &in_use) {
                        Ok(removal) => {
                            total.removed.extend(removal.removed);
                            total.freed_bytes += removal.freed_bytes;
                        }
                        // In use, or gone with the name before it.
                        Err(Error::Conflict(_) | Error::NoSuchImage(_)) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            total.freed_bytes += inner.remove_partials()?;
            total.freed_bytes += inner.collect()?.bytes();
            Ok(total)
        })
        .await
    }

    /// What the store takes. Memory only.
    pub fn disk_usage(&self) -> DiskUsage {
        let index = self.0.index();
        let mut users: HashMap<&Digest, u32> = HashMap::new();
        for layer in index.images.values().flat_map(|image| image.layers()) {
            *users.entry(&layer.chain_id).or_default() += 1;
        }
        let usage = |image: &Image| ImageUsage {
            id: image.id().clone(),
            size_bytes: image.size_bytes(),
            shared_bytes: image
                .layers()
                .iter()
                .filter(|layer| users.get(&layer.chain_id).is_some_and(|n| *n > 1))
                .map(|layer| layer.size_bytes)
                .sum(),
        };
        DiskUsage {
            layers_bytes: index.layers.values().map(|row| row.size_bytes).sum(),
            blobs_bytes: index.blobs.values().sum(),
            images: self.list().iter().map(|image| usage(image)).collect(),
        }
    }

    /// Without a name, and another image is made from it.
    fn is_intermediate(&self, image: &Image) -> bool {
        image.is_dangling()
            && self
                .0
                .index()
                .images
                .values()
                .any(|other| other.parent.as_ref() == Some(image.id()))
    }
}

impl PruneFilter {
    fn takes(&self, image: &Image) -> bool {
        if !self.all && !image.repo_tags.is_empty() {
            return false;
        }
        if let Some(until) = self.until
            && image.created().is_none_or(|created| created > until)
        {
            return false;
        }
        let labels = &image.config().config.labels;
        let has = |(key, value): &(String, Option<String>)| {
            labels
                .get(key)
                .is_some_and(|found| value.as_ref().is_none_or(|wanted| wanted == found))
        };
        self.labels.iter().all(has) && !self.without_labels.iter().any(has)
    }
}
