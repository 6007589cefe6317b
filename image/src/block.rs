//! An image as one block device: what a microVM mounts.
//!
//! ```text
//! layers/… (and directories above them) ──blockfs::erofs──▶ ingest/tmp-… ──sync, sha256──▶ blocks/<32 hex>, then a row
//! ```
//!
//! It is built when it is first asked for and shared by all that run the image. The row has the digest that the file had when
//! it was built. Before a file is used for the first time since the store was opened, all of it is read and compared; after
//! that, as long as device, inode, length and times are the same. Reading costs about half a second per gigabyte, once, and
//! warms the cache that the microVM reads from. A file that does not match is built again from the layers.
//!
//! fs-verity would check every read, but not on every file system, and a guest that reads a bad block cannot be given a good
//! one any more.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use caisson_blockfs::{Attributes, Tree, erofs};
use sha2::{Digest as _, Sha256};

use crate::db::{self, BlockRow};
use crate::digest::Digest;
use crate::error::{Context, Error, Result};
use crate::images::Image;
use crate::store::{Inner, Lease, Store, guard};

/// Changes when the same layers make other bytes, so that what an older caisson built is not mistaken for damaged.
const WRITER: &str = "1";

/// An image as a read-only EROFS file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockForm {
    /// The file. It stays as long as the image does, and must not be changed.
    pub path: PathBuf,
    /// Its length.
    pub size_bytes: u64,
    /// Its digest.
    pub digest: Digest,
}

/// What a file was when it was last compared with its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> std::io::Result<Stamp> {
        let meta = std::fs::metadata(path)?;
        Ok(Stamp {
            device: meta.dev(),
            inode: meta.ino(),
            size_bytes: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

impl Store {
    /// The image's block form, built unless it is there. `above` are directories stacked on the image's layers, topmost
    /// first: they never change, and one file name always means the same contents.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`]; [`Error::InvalidImage`] when a layer is gone; [`Error::BlockForm`], of kind no-space when the
    /// disk is full.
    pub async fn block_form(&self, image: &Digest, above: Vec<PathBuf>) -> Result<BlockForm> {
        let image = self
            .by_id(image)
            .ok_or_else(|| Error::NoSuchImage(image.to_string()))?;
        self.blocking(move |inner, lease| inner.block_form(&image, &above, lease))
            .await
    }
}

impl Inner {
    fn block_form(&self, image: &Image, above: &[PathBuf], lease: &Lease) -> Result<BlockForm> {
        let base = block_base(image);
        let key = key(base, above);
        let path = self.block_path(&key);
        let lock = self.named_lock(format!("block {key}"));
        let _once = guard(&lock);
        if let Some(row) = self.index().blocks.get(&key) {
            if self.is_intact(row, &path)? {
                return Ok(BlockForm {
                    path,
                    size_bytes: row.size_bytes,
                    digest: row.digest.clone(),
                });
            }
            tracing::warn!(
                image = %image.id(), path = %path.display(),
                "the block form of an image is damaged or gone: it is built again from the image's layers"
            );
        }
        let row = self.build_block_form(image, above, key, lease)?;
        Ok(BlockForm {
            path,
            size_bytes: row.size_bytes,
            digest: row.digest,
        })
    }

    /// Whether a file is what its row says.
    fn is_intact(&self, row: &BlockRow, path: &Path) -> Result<bool> {
        let stamp = match Stamp::of(path) {
            Ok(stamp) => stamp,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e).context("stat", path),
        };
        if stamp.size_bytes != row.size_bytes {
            return Ok(false);
        }
        if guard(&self.verified_blocks).get(&row.key) == Some(&stamp) {
            return Ok(true);
        }
        let file = File::open(path).context("open", path)?;
        let intact = digest_of(file, path)? == row.digest;
        if intact {
            guard(&self.verified_blocks).insert(row.key.clone(), stamp);
        }
        Ok(intact)
    }

    fn build_block_form(
        &self,
        image: &Image,
        above: &[PathBuf],
        key: Digest,
        lease: &Lease,
    ) -> Result<BlockRow> {
        let mut dirs = above.to_vec();
        for layer in image.layers().iter().rev() {
            if self.lease_layer(lease, &layer.chain_id).is_none() {
                return Err(Error::InvalidImage(format!(
                    "its layer {} is gone: pull or load it again",
                    layer.diff_id.short()
                )));
            }
            dirs.push(self.layer_path(&layer.chain_id));
        }
        let began = std::time::Instant::now();
        let temporary = Temporary(self.temporary_path());
        let failed = |source| Error::BlockForm {
            image: image.id().short().to_owned(),
            source,
        };
        let tree = if dirs.is_empty() {
            Tree::new(Attributes {
                mode: 0o755,
                ..Attributes::default()
            })
        } else {
            Tree::from_layers(&dirs).map_err(failed)?
        };
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&temporary.0)
            .context("create", &temporary.0)?;
        let written = erofs::write(&tree, &file).map_err(failed)?;
        file.sync_all().context("sync", &temporary.0)?;
        let digest = digest_of(file, &temporary.0)?;
        let path = self.block_path(&key);
        std::fs::rename(&temporary.0, &path).context("move into place", &path)?;
        let parent = self.root.join("blocks");
        let opened = File::open(&parent).context("open", &parent)?;
        opened.sync_all().context("sync", &parent)?;
        let row = BlockRow {
            key,
            base: block_base(image).clone(),
            digest,
            size_bytes: written.size_bytes,
        };
        self.change(|t| db::insert_block(t, &row))?;
        let stamp = Stamp::of(&path).context("stat", &path)?;
        guard(&self.verified_blocks).insert(row.key.clone(), stamp);
        tracing::info!(
            image = %image.id(), bytes = row.size_bytes, files = written.inodes, milliseconds = began.elapsed().as_millis(),
            "an image's block form was built"
        );
        Ok(row)
    }
}

/// What a block form belongs to: the image's topmost layer, which images may share, or an image without layers.
pub(crate) fn block_base(image: &Image) -> &Digest {
    image
        .layers()
        .last()
        .map_or(image.id(), |layer| &layer.chain_id)
}

fn key(base: &Digest, above: &[PathBuf]) -> Digest {
    let mut hash = Sha256::new();
    hash.update(WRITER);
    hash.update(base.as_str());
    for dir in above {
        hash.update([0]);
        hash.update(dir.file_name().unwrap_or_default().as_encoded_bytes());
    }
    Digest::finish(hash)
}

fn digest_of(mut file: File, path: &Path) -> Result<Digest> {
    std::io::Seek::rewind(&mut file).context("read", path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).context("read", path)?;
        if n == 0 {
            return Ok(Digest::finish(hash));
        }
        hash.update(&buffer[..n]);
    }
}

/// A file in `ingest/` that is removed unless it was renamed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.0) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), error = %e, "a temporary file stays until the next start");
            }
            _ => {}
        }
    }
}
