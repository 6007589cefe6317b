//! Garbage: finding what nothing needs, and removing it.
//!
//! Needed are the manifest, configuration, layers and documents of every image (hidden ones too), and all that is leased.
//! Victims leave the books and move to `ingest/` under the lock that leases take; only then are they deleted, without it.

use std::collections::HashSet;

use crate::block::block_base;
use crate::digest::Digest;
use crate::error::{Context, Result};
use crate::store::Inner;

/// What a collection removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Layers by chain id, with their bytes.
    pub layers: Vec<(Digest, u64)>,
    /// Blobs with their bytes.
    pub blobs: Vec<(Digest, u64)>,
    /// Block forms of images by their key, with their bytes.
    pub blocks: Vec<(Digest, u64)>,
    /// Bytes of interrupted downloads.
    pub partial_bytes: u64,
}

impl Collected {
    /// All bytes.
    pub fn bytes(&self) -> u64 {
        let sum = |items: &[(Digest, u64)]| items.iter().map(|(_, size)| size).sum::<u64>();
        sum(&self.layers) + sum(&self.blobs) + sum(&self.blocks) + self.partial_bytes
    }
}

impl Inner {
    /// Removes every blob and layer no image needs. Blocks.
    pub(crate) fn collect(&self) -> Result<Collected> {
        let mut collected = Collected::default();
        let mut trash = Vec::new();
        {
            // The order of locks is database, then fresh, as everywhere.
            let mut db = self.db();
            let mut fresh = self.fresh();
            let index = self.index();
            let mut blobs: HashSet<&Digest> = index
                .documents
                .iter()
                .map(|(document, _)| document)
                .collect();
            let mut layers: HashSet<&Digest> = HashSet::new();
            let mut bases: HashSet<&Digest> = HashSet::new();
            for image in index.images.values().chain(index.hidden.values()) {
                blobs.extend([image.id(), &image.manifest().digest]);
                blobs.extend(image.layers().iter().map(|layer| &layer.blob.digest));
                bases.insert(block_base(image));
                layers.extend(image.layers().iter().map(|layer| &layer.chain_id));
            }
            let all_blobs = index.blobs.iter().chain(&fresh.blobs);
            for (digest, size) in all_blobs {
                if !blobs.contains(digest) && !fresh.leased_blobs.contains_key(digest) {
                    collected.blobs.push((digest.clone(), *size));
                }
            }
            let all_layers = index.layers.values().chain(fresh.layers.values());
            for row in all_layers {
                if !layers.contains(&row.chain_id)
                    && !fresh.leased_layers.contains_key(&row.chain_id)
                {
                    collected
                        .layers
                        .push((row.chain_id.clone(), row.size_bytes));
                }
            }
            for row in index.blocks.values() {
                if !bases.contains(&row.base) {
                    collected.blocks.push((row.key.clone(), row.size_bytes));
                }
            }
            // Topmost first, as Docker lists them.
            let depth = |chain_id: &Digest| {
                let row = |id: &Digest| index.layers.get(id).or_else(|| fresh.layers.get(id));
                std::iter::successors(row(chain_id), |r| r.parent.as_ref().and_then(row)).count()
            };
            collected.layers.sort_by_cached_key(|(chain_id, _)| {
                (std::cmp::Reverse(depth(chain_id)), chain_id.clone())
            });
            db.change(|t| {
                for (digest, _) in &collected.blobs {
                    t.execute("DELETE FROM blobs WHERE digest = ?1", [digest.as_str()])?;
                    t.execute("DELETE FROM diffs WHERE blob = ?1", [digest.as_str()])?;
                }
                for (chain_id, _) in &collected.layers {
                    t.execute(
                        "DELETE FROM layers WHERE chain_id = ?1",
                        [chain_id.as_str()],
                    )?;
                }
                for (key, _) in &collected.blocks {
                    t.execute("DELETE FROM blocks WHERE key = ?1", [key.as_str()])?;
                }
                Ok(())
            })?;
            for (key, _) in &collected.blocks {
                trash.push(self.set_aside(&self.block_path(key))?);
            }
            for (digest, _) in &collected.blobs {
                fresh.blobs.remove(digest);
                fresh.diffs.retain(|(_, blob)| blob != digest);
                trash.push(self.set_aside(&self.blob_path(digest))?);
            }
            for (chain_id, _) in &collected.layers {
                fresh.layers.remove(chain_id);
                trash.push(self.set_aside(&self.layer_path(chain_id))?);
            }
            let rows = db.rows()?;
            self.reindex(&rows);
        }
        for path in trash {
            self.remove_tree(&path)?;
        }
        Ok(collected)
    }

    /// Removes what failed operations verified and no image came to need.
    pub(crate) fn sweep_fresh(&self) -> Result<()> {
        let mut trash = Vec::new();
        {
            let mut fresh = self.fresh();
            let index = self.index();
            let blobs: Vec<Digest> = fresh
                .blobs
                .keys()
                .filter(|d| !fresh.leased_blobs.contains_key(*d) && !index.blobs.contains_key(*d))
                .cloned()
                .collect();
            for digest in blobs {
                fresh.blobs.remove(&digest);
                fresh.diffs.retain(|(_, blob)| *blob != digest);
                trash.push(self.set_aside(&self.blob_path(&digest))?);
            }
            let layers: Vec<Digest> = fresh
                .layers
                .keys()
                .filter(|c| !fresh.leased_layers.contains_key(*c) && !index.layers.contains_key(*c))
                .cloned()
                .collect();
            for chain_id in layers {
                fresh.layers.remove(&chain_id);
                trash.push(self.set_aside(&self.layer_path(&chain_id))?);
            }
        }
        for path in trash {
            self.remove_tree(&path)?;
        }
        Ok(())
    }

    /// Removes interrupted downloads that nobody is working on; answers with their bytes.
    pub(crate) fn remove_partials(&self) -> Result<u64> {
        let mut bytes = 0;
        let downloads = crate::store::guard(&self.downloads);
        for name in crate::store::names(&self.root.join("ingest"))? {
            let Some(hex) = name.strip_suffix(".partial") else {
                continue;
            };
            let Ok(digest) = Digest::from_hex(hex) else {
                continue;
            };
            if downloads.contains_key(&digest) {
                continue;
            }
            let path = self.partial_path(&digest);
            bytes += std::fs::metadata(&path).map_or(0, |m| m.len());
            std::fs::remove_file(&path).context("remove", path)?;
        }
        Ok(bytes)
    }

    fn set_aside(&self, path: &std::path::Path) -> Result<std::path::PathBuf> {
        let aside = self.temporary_path();
        match std::fs::rename(path, &aside) {
            Ok(()) => Ok(aside),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(aside),
            Err(e) => Err(e).context("set aside", path),
        }
    }
}
