//! The content store on disk: opening it, and what it trusts.
//!
//! ```text
//! root/                         0700
//! ├── lock                      held with flock while a process uses the store
//! ├── images.db                 SQLite: complete blobs and layers, images, tags (db.rs)
//! ├── blobs/sha256/<64 hex>     verified blobs: manifests, indexes, configurations, layers as they came
//! ├── layers/<32 hex>/          one unpacked layer, an overlay's lower directory; named after its chain id
//! ├── blocks/<32 hex>           an image's layers as one EROFS file (block.rs)
//! └── ingest/
//!     ├── <64 hex>.partial      an interrupted download, resumed by the next pull
//!     └── tmp-…                 everything under way: written here, verified, renamed into place
//! ```
//!
//! A blob or layer is **trusted** when the database has a row for it, which is written after `syncfs`; or **fresh** when
//! this process verified it since it was opened. At opening, blobs without a row become partial downloads (a pull verifies
//! them anew), layers and block forms without a row and temporary files are removed. So a crash at any moment leaves a usable store.
//!
//! Everything under way holds a [`Lease`] on what it made or counts on; the garbage collector spares what is leased.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::block::Stamp;
use crate::db::{BlockRow, Database, LayerRow, Rows};
use crate::digest::Digest;
use crate::error::{Context, Error, Result};
use crate::images::{Image, ImageBody};
use crate::manifest::Platform;

/// How long an interrupted download waits to be resumed.
const PARTIAL_KEPT_FOR: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3600);

/// How much an image may use. Beyond, loading and pulling fail.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of one layer, unpacked; also of any one file of an archive being loaded.
    pub layer_bytes: u64,
    /// Entries of one layer.
    pub layer_entries: u64,
    /// How many times larger a layer may become when decompressed, once it is beyond `ratio_free_bytes`.
    pub ratio: u64,
    /// Below this many decompressed bytes the ratio is not looked at.
    pub ratio_free_bytes: u64,
    /// Files in an archive being loaded.
    pub archive_entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            layer_bytes: 64 << 30,
            layer_entries: 4_000_000,
            ratio: 200,
            ratio_free_bytes: 1 << 30,
            archive_entries: 100_000,
        }
    }
}

/// How a store works.
#[derive(Clone, Debug)]
pub struct Options {
    /// How much an image may use.
    pub limits: Limits,
    /// The platform chosen where none is asked for.
    pub platform: Platform,
    /// Registries (`host[:port]`, or CIDR blocks of addresses) spoken to without TLS. Loopback always is.
    pub insecure_registries: Vec<String>,
    /// Layers unpacked, and layers transferred, at a time.
    pub parallel: usize,
    /// How patient the store is with registries.
    pub patience: Patience,
}

/// How patient the store is with registries.
#[derive(Clone, Debug)]
pub struct Patience {
    /// Attempts in a row that may fail without any progress.
    pub attempts: u32,
    /// Before the second attempt; doubled for each further one.
    pub first_delay: std::time::Duration,
    /// For a connection to be made.
    pub connect_timeout: std::time::Duration,
    /// For the next bytes of an answer.
    pub read_timeout: std::time::Duration,
}

impl Default for Patience {
    fn default() -> Self {
        use std::time::Duration;
        Patience {
            attempts: 5,
            first_delay: Duration::from_millis(500),
            connect_timeout: Duration::from_secs(15),
            read_timeout: Duration::from_secs(60),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            limits: Limits::default(),
            platform: Platform::host(),
            insecure_registries: Vec::new(),
            parallel: std::thread::available_parallelism()
                .map_or(2, usize::from)
                .clamp(2, 8),
            patience: Patience::default(),
        }
    }
}

/// Images on disk. Cheap to clone; all clones are the same store.
#[derive(Clone)]
pub struct Store(pub(crate) Arc<Inner>);

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({:?})", self.0.root)
    }
}

pub(crate) struct Inner {
    pub root: PathBuf,
    pub options: Options,
    root_fd: OwnedFd,
    _lock: File,
    db: Mutex<Database>,
    index: RwLock<Arc<Index>>,
    fresh: Mutex<Fresh>,
    locks: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    pub(crate) downloads: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
    /// Block forms that were compared with their digest since the store was opened.
    pub(crate) verified_blocks: Mutex<HashMap<Digest, Stamp>>,
    counter: AtomicU64,
}

/// What is known, in memory. Replaced as a whole after each change.
#[derive(Default)]
pub(crate) struct Index {
    pub images: HashMap<Digest, Arc<Image>>,
    /// Images that are gone for users but still hold up containers.
    pub hidden: HashMap<Digest, Arc<Image>>,
    /// Full references with tags.
    pub tags: BTreeMap<String, Digest>,
    /// Repository and digest.
    pub repo_digests: BTreeMap<(String, Digest), Digest>,
    pub blobs: HashMap<Digest, u64>,
    pub layers: HashMap<Digest, LayerRow>,
    pub diffs: HashMap<Digest, Vec<Digest>>,
    /// Further documents kept for an image.
    pub documents: Vec<(Digest, Digest)>,
    pub blocks: HashMap<Digest, BlockRow>,
}

/// What this process verified and the database does not know yet, and what is leased.
#[derive(Default)]
pub(crate) struct Fresh {
    pub blobs: HashMap<Digest, u64>,
    pub layers: HashMap<Digest, LayerRow>,
    pub diffs: HashSet<(Digest, Digest)>,
    pub leased_blobs: HashMap<Digest, u32>,
    pub leased_layers: HashMap<Digest, u32>,
}

impl Store {
    /// Opens the store at `root`, creating it when it is not there, and clears what a crash left. Blocks for file and
    /// database work.
    ///
    /// # Errors
    /// [`Error::Locked`] when another process uses it; [`Error::Io`], [`Error::Database`].
    pub fn open(root: impl Into<PathBuf>, options: Options) -> Result<Self> {
        let root = root.into();
        for dir in ["", "blobs", "blobs/sha256", "layers", "blocks", "ingest"] {
            let path = if dir.is_empty() {
                root.clone()
            } else {
                root.join(dir)
            };
            std::fs::create_dir_all(&path).context("create", &path)?;
        }
        let lock = lock(&root)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&root, mode).context("change the mode of", &root)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root_fd = rustix::fs::open(&root, flags, Mode::empty()).context("open", &root)?;
        let db = Database::open(&root.join("images.db"))?;
        let store = Store(Arc::new(Inner {
            root,
            options,
            root_fd,
            _lock: lock,
            db: Mutex::new(db),
            index: RwLock::default(),
            fresh: Mutex::default(),
            locks: Mutex::default(),
            downloads: Mutex::default(),
            verified_blocks: Mutex::default(),
            counter: AtomicU64::new(0),
        }));
        let rows = store.0.db().rows()?;
        store.0.sweep_at_open(&rows)?;
        store.0.reindex(&rows);
        Ok(store)
    }

    /// Where the store is.
    pub fn root(&self) -> &Path {
        &self.0.root
    }
}

fn lock(root: &Path) -> Result<File> {
    let path = root.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .context("open", &path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Locked(root.to_owned())),
        Err(errno) => Err(errno).context("lock", path),
    }
}

/// A lock whose holder panicked is still good: every structure behind one is replaced as a whole or rebuilt.
pub(crate) fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    pub(crate) fn db(&self) -> MutexGuard<'_, Database> {
        guard(&self.db)
    }

    pub(crate) fn index(&self) -> Arc<Index> {
        self.index
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn fresh(&self) -> MutexGuard<'_, Fresh> {
        guard(&self.fresh)
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    pub(crate) fn layer_path(&self, chain_id: &Digest) -> PathBuf {
        self.root.join("layers").join(&chain_id.hex()[..32])
    }

    pub(crate) fn block_path(&self, key: &Digest) -> PathBuf {
        self.root.join("blocks").join(&key.hex()[..32])
    }

    pub(crate) fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.root
            .join("ingest")
            .join(format!("{}.partial", digest.hex()))
    }

    /// A name in `ingest/` nothing else uses.
    pub(crate) fn temporary_path(&self) -> PathBuf {
        let n = self.counter.fetch_add(1, Ordering::Relaxed);
        self.root
            .join("ingest")
            .join(format!("tmp-{:016x}-{n}", rand::random::<u64>()))
    }

    /// The lock of this name, for work that must be done once: unpacking a layer.
    pub(crate) fn named_lock(&self, name: String) -> Arc<Mutex<()>> {
        let mut locks = guard(&self.locks);
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        locks.entry(name).or_default().clone()
    }

    /// Changes the database in one transaction and then the index.
    pub(crate) fn change<T>(
        &self,
        change: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut db = self.db();
        let done = db.change(change)?;
        let rows = db.rows()?;
        self.reindex(&rows);
        Ok(done)
    }

    /// Everything written so far reaches the disk.
    pub(crate) fn sync(&self) -> Result<()> {
        rustix::fs::syncfs(&self.root_fd).context("sync", &self.root)
    }

    /// Called with the database locked, so that indexes are published in the order of changes.
    pub(crate) fn reindex(&self, rows: &Rows) {
        let old = self.index();
        let mut new = Index {
            tags: rows.tags.iter().cloned().collect(),
            repo_digests: rows
                .repo_digests
                .iter()
                .map(|(r, d, i)| ((r.clone(), d.clone()), i.clone()))
                .collect(),
            blobs: rows.blobs.iter().cloned().collect(),
            layers: rows
                .layers
                .iter()
                .map(|row| (row.chain_id.clone(), row.clone()))
                .collect(),
            documents: rows.documents.clone(),
            blocks: rows
                .blocks
                .iter()
                .map(|row| (row.key.clone(), row.clone()))
                .collect(),
            ..Index::default()
        };
        for (diff_id, blob) in &rows.diffs {
            new.diffs
                .entry(diff_id.clone())
                .or_default()
                .push(blob.clone());
        }
        let mut tags: HashMap<&Digest, Vec<String>> = HashMap::new();
        for (reference, image) in &rows.tags {
            tags.entry(image).or_default().push(familiar(reference));
        }
        let mut digests: HashMap<&Digest, Vec<String>> = HashMap::new();
        for (repository, digest, image) in &rows.repo_digests {
            digests
                .entry(image)
                .or_default()
                .push(format!("{}@{digest}", familiar(repository)));
        }
        for row in &rows.images {
            let known = old.images.get(&row.id).or_else(|| old.hidden.get(&row.id));
            // Pushing may exchange a manifest for one with compressed layers.
            let known = known.filter(|image| image.manifest().digest == row.manifest);
            let body = match known.map_or_else(
                || self.image_body(row, &new),
                |image| Ok(image.body.clone()),
            ) {
                Ok(body) => body,
                Err(error) => {
                    tracing::warn!(image = %row.id, %error, "an image cannot be read and is left out: pull or load it again");
                    continue;
                }
            };
            let image = Arc::new(Image {
                body,
                parent: row.parent.clone(),
                tagged_at_ms: row.tagged_at_ms,
                repo_tags: tags.remove(&row.id).unwrap_or_default(),
                repo_digests: digests.remove(&row.id).unwrap_or_default(),
            });
            let map = if row.hidden {
                &mut new.hidden
            } else {
                &mut new.images
            };
            map.insert(row.id.clone(), image);
        }
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
    }

    fn image_body(&self, row: &crate::db::ImageRow, index: &Index) -> Result<Arc<ImageBody>> {
        let read = |digest: &Digest| {
            let path = self.blob_path(digest);
            std::fs::read(&path).context("read", path)
        };
        ImageBody::parse(
            &row.id,
            &read(&row.id)?,
            &row.manifest,
            &read(&row.manifest)?,
            |chain| index.layers.get(chain).map_or(0, |layer| layer.size_bytes),
        )
        .map(Arc::new)
    }

    /// Removes what a crash left, and makes partial downloads of blobs the database does not vouch for.
    fn sweep_at_open(&self, rows: &Rows) -> Result<()> {
        let known: HashSet<&str> = rows.blobs.iter().map(|(digest, _)| digest.hex()).collect();
        for name in names(&self.root.join("blobs/sha256"))? {
            if !known.contains(name.as_str()) {
                let from = self.root.join("blobs/sha256").join(&name);
                let to = self.root.join("ingest").join(format!("{name}.partial"));
                std::fs::rename(&from, to).context("set aside", from)?;
            }
        }
        for name in names(&self.root.join("ingest"))? {
            let path = self.root.join("ingest").join(&name);
            let partial = name
                .strip_suffix(".partial")
                .is_some_and(crate::digest::is_sha256_hex);
            let age = std::fs::metadata(&path).and_then(|m| m.modified()).ok();
            let age = age.and_then(|at| at.elapsed().ok());
            if !partial || age.is_some_and(|age| age > PARTIAL_KEPT_FOR) {
                self.remove_tree(&path)?;
            }
        }
        let known: HashSet<&str> = rows
            .layers
            .iter()
            .map(|row| &row.chain_id.hex()[..32])
            .collect();
        for name in names(&self.root.join("layers"))? {
            if !known.contains(name.as_str()) {
                self.remove_tree(&self.root.join("layers").join(name))?;
            }
        }
        let known: HashSet<&str> = rows.blocks.iter().map(|row| &row.key.hex()[..32]).collect();
        for name in names(&self.root.join("blocks"))? {
            if !known.contains(name.as_str()) {
                self.remove_tree(&self.root.join("blocks").join(name))?;
            }
        }
        Ok(())
    }

    /// Removes a file or directory of the store.
    pub(crate) fn remove_tree(&self, path: &Path) -> Result<()> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(());
        };
        let parent = File::open(parent).context("open", parent)?;
        Ok(caisson_archive::remove_all(
            std::os::fd::AsFd::as_fd(&parent),
            name,
        )?)
    }

    /// Whether a blob is complete here; leases it when it is.
    pub(crate) fn lease_blob(&self, lease: &Lease, digest: &Digest) -> Option<u64> {
        let mut fresh = self.fresh();
        let size = fresh
            .blobs
            .get(digest)
            .copied()
            .or_else(|| self.index().blobs.get(digest).copied())?;
        lease.add_blob(&mut fresh, digest);
        Some(size)
    }

    /// Whether a layer is unpacked here; leases it when it is.
    pub(crate) fn lease_layer(&self, lease: &Lease, chain_id: &Digest) -> Option<LayerRow> {
        let mut fresh = self.fresh();
        let row = fresh
            .layers
            .get(chain_id)
            .cloned()
            .or_else(|| self.index().layers.get(chain_id).cloned())?;
        lease.add_layer(&mut fresh, chain_id);
        Some(row)
    }
}

fn familiar(reference: &str) -> String {
    reference
        .parse::<crate::Reference>()
        .map_or_else(|_| reference.to_owned(), |r| r.familiar())
}

pub(crate) fn names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).context("list", dir)? {
        let entry = entry.context("list", dir)?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// Keeps blobs and layers from being collected while an operation counts on them.
pub(crate) struct Lease {
    inner: Arc<Inner>,
    held: Mutex<(Vec<Digest>, Vec<Digest>)>,
}

impl Lease {
    pub(crate) fn new(inner: &Arc<Inner>) -> Self {
        Lease {
            inner: inner.clone(),
            held: Mutex::default(),
        }
    }

    /// The blobs and layers held.
    pub(crate) fn held(&self) -> (HashSet<Digest>, HashSet<Digest>) {
        let held = guard(&self.held);
        (
            held.0.iter().cloned().collect(),
            held.1.iter().cloned().collect(),
        )
    }

    pub(crate) fn add_blob(&self, fresh: &mut Fresh, digest: &Digest) {
        *fresh.leased_blobs.entry(digest.clone()).or_default() += 1;
        guard(&self.held).0.push(digest.clone());
    }

    pub(crate) fn add_layer(&self, fresh: &mut Fresh, chain_id: &Digest) {
        *fresh.leased_layers.entry(chain_id.clone()).or_default() += 1;
        guard(&self.held).1.push(chain_id.clone());
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut fresh = self.inner.fresh();
        let held = std::mem::take(&mut *guard(&self.held));
        for (map, keys) in [(0, held.0), (1, held.1)] {
            for key in keys {
                let counts = if map == 0 {
                    &mut fresh.leased_blobs
                } else {
                    &mut fresh.leased_layers
                };
                if let Some(count) = counts.get_mut(&key) {
                    *count -= 1;
                    if *count == 0 {
                        counts.remove(&key);
                    }
                }
            }
        }
    }
}
