//! The store's SQLite file: which blobs and layers are complete, and which images and names exist.
//!
//! What is not recorded here is not trusted: after a crash, blobs and layers without a row are garbage or, at best, material
//! to be verified again. Rows are written after the files they speak of reached the disk.

use std::path::Path;

use rusqlite::{Connection, Transaction, params};

use crate::digest::Digest;
use crate::error::{Error, Result};

const GENERATION: i64 = 2;

const SCHEMA: &str = "
CREATE TABLE blobs (digest TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE layers (
    chain_id TEXT PRIMARY KEY, diff_id TEXT NOT NULL, parent TEXT, size_bytes INTEGER NOT NULL, entries INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE diffs (diff_id TEXT NOT NULL, blob TEXT NOT NULL, PRIMARY KEY (diff_id, blob)) STRICT, WITHOUT ROWID;
CREATE TABLE images (
    id TEXT PRIMARY KEY, manifest TEXT NOT NULL, parent TEXT, tagged_at_ms INTEGER NOT NULL, hidden INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE TABLE tags (reference TEXT PRIMARY KEY, image TEXT NOT NULL REFERENCES images (id)) STRICT, WITHOUT ROWID;
CREATE TABLE repo_digests (
    repository TEXT NOT NULL, digest TEXT NOT NULL, image TEXT NOT NULL REFERENCES images (id),
    PRIMARY KEY (repository, digest)
) STRICT, WITHOUT ROWID;
CREATE TABLE documents (
    digest TEXT NOT NULL, image TEXT NOT NULL REFERENCES images (id), PRIMARY KEY (digest, image)
) STRICT, WITHOUT ROWID;
";

/// What generation 2 added: files made of an image's layers.
const BLOCKS: &str = "
CREATE TABLE blocks (
    key TEXT PRIMARY KEY, base TEXT NOT NULL, digest TEXT NOT NULL, size_bytes INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

pub(crate) struct Database {
    connection: Connection,
}

/// A layer's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LayerRow {
    pub chain_id: Digest,
    pub diff_id: Digest,
    pub parent: Option<Digest>,
    pub size_bytes: u64,
    pub entries: u64,
}

/// An image's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageRow {
    pub id: Digest,
    pub manifest: Digest,
    pub parent: Option<Digest>,
    pub tagged_at_ms: i64,
    pub hidden: bool,
}

/// A block form's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlockRow {
    pub key: Digest,
    /// The topmost layer it was made of, or the image when that has none.
    pub base: Digest,
    pub digest: Digest,
    pub size_bytes: u64,
}

/// Everything in the database.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    pub blobs: Vec<(Digest, u64)>,
    pub layers: Vec<LayerRow>,
    pub diffs: Vec<(Digest, Digest)>,
    pub images: Vec<ImageRow>,
    pub tags: Vec<(String, Digest)>,
    pub repo_digests: Vec<(String, Digest, Digest)>,
    /// Further documents kept for an image, such as the index it was chosen from.
    pub documents: Vec<(Digest, Digest)>,
    pub blocks: Vec<BlockRow>,
}

impl Database {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        match found {
            0 | 1 => {
                let transaction = connection.transaction()?;
                if found == 0 {
                    transaction.execute_batch(SCHEMA)?;
                }
                transaction.execute_batch(BLOCKS)?;
                transaction.pragma_update(None, "user_version", GENERATION)?;
                transaction.commit()?;
            }
            GENERATION => {}
            newer => {
                return Err(Error::InvalidImage(format!(
                    "the image store is of generation {newer}, this caisson knows {GENERATION}: use the newer caisson"
                )));
            }
        }
        Ok(Database { connection })
    }

    /// Runs `change` as one transaction.
    pub(crate) fn change<T>(
        &mut self,
        change: impl FnOnce(&Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        let transaction = self.connection.transaction()?;
        let done = change(&transaction)?;
        transaction.commit()?;
        Ok(done)
    }

    pub(crate) fn rows(&self) -> Result<Rows> {
        let c = &self.connection;
        let mut rows = Rows::default();
        let mut statement = c.prepare_cached("SELECT digest, size_bytes FROM blobs")?;
        let mut found = statement.query([])?;
        while let Some(row) = found.next()? {
            rows.blobs.push((digest(row, 0)?, unsigned(row, 1)?));
        }
        let mut statement =
            c.prepare_cached("SELECT chain_id, diff_id, parent, size_bytes, entries FROM layers")?;
        let mut found = statement.query([])?;
        while let Some(row) = found.next()? {
            rows.layers.push(LayerRow {
                chain_id: digest(row, 0)?,
                diff_id: digest(row, 1)?,
                parent: optional_digest(row, 2)?,
                size_bytes: unsigned(row, 3)?,
                entries: unsigned(row, 4)?,
            });
        }
        let mut statement = c.prepare_cached("SELECT diff_id, blob FROM diffs")?;
        let mut found = statement.query([])?;
        while let Some(row) = found.next()? {
            rows.diffs.push((digest(row, 0)?, digest(row, 1)?));
        }
        let mut statement =
            c.prepare_cached("SELECT id, manifest, parent, tagged_at_ms, hidden FROM images")?;
        let mut found = statement.query([])?;
        while let Some(row) = found.next()? {
            rows.images.push(ImageRow {
                id: digest(row, 0)?,
                manifest: digest(row, 1)?,
                parent: optional_digest(row, 2)?,
                tagged_at_ms: row.get(3)?,
                hidden: row.get(4)?,
            });
        }
        let mut statement =
            c.prepare_cached("SELECT reference, image FROM tags ORDER BY reference")?;
        let mut found = statement.query([])?;
        while let Some(row) = found.next()? {
            rows.tags.push((row.get(0)?, digest(row, 1)?));
        }
        let mut statement =
            c.prepare_cached("SELECT repository, digest, image FROM repo_digests ORDER BY 1, 2")?;
        let mut found = statement.query([])?;
        while let Some(row) = found.next()? {
            rows.repo_digests
                .push((row.get(0)?, digest(row, 1)?, digest(row, 2)?));
        }
        let mut statement = c.prepare_cached("SELECT digest, image FROM documents")?;
        let mut found = statement.query([])?;
        while let Some(row) = found.next()? {
            rows.documents.push((digest(row, 0)?, digest(row, 1)?));
        }
        let mut statement = c.prepare_cached("SELECT key, base, digest, size_bytes FROM blocks")?;
        let mut found = statement.query([])?;
        while let Some(row) = found.next()? {
            rows.blocks.push(BlockRow {
                key: digest(row, 0)?,
                base: digest(row, 1)?,
                digest: digest(row, 2)?,
                size_bytes: unsigned(row, 3)?,
            });
        }
        Ok(rows)
    }
}

fn digest(row: &rusqlite::Row<'_>, index: usize) -> Result<Digest> {
    row.get::<_, String>(index)?.parse()
}

fn optional_digest(row: &rusqlite::Row<'_>, index: usize) -> Result<Option<Digest>> {
    row.get::<_, Option<String>>(index)?
        .map(|text| text.parse())
        .transpose()
}

fn unsigned(row: &rusqlite::Row<'_>, index: usize) -> Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(index)?).unwrap_or(0))
}

pub(crate) fn insert_blob(t: &Transaction<'_>, digest: &Digest, size_bytes: u64) -> Result<()> {
    let size = i64::try_from(size_bytes).unwrap_or(i64::MAX);
    t.execute(
        "INSERT OR IGNORE INTO blobs VALUES (?1, ?2)",
        params![digest.as_str(), size],
    )?;
    Ok(())
}

pub(crate) fn insert_layer(t: &Transaction<'_>, row: &LayerRow) -> Result<()> {
    t.execute(
        "INSERT OR REPLACE INTO layers VALUES (?1, ?2, ?3, ?4, ?5)",
        params![
            row.chain_id.as_str(),
            row.diff_id.as_str(),
            row.parent.as_ref().map(Digest::as_str),
            i64::try_from(row.size_bytes).unwrap_or(i64::MAX),
            i64::try_from(row.entries).unwrap_or(i64::MAX),
        ],
    )?;
    Ok(())
}

pub(crate) fn insert_diff(t: &Transaction<'_>, diff_id: &Digest, blob: &Digest) -> Result<()> {
    t.execute(
        "INSERT OR IGNORE INTO diffs VALUES (?1, ?2)",
        params![diff_id.as_str(), blob.as_str()],
    )?;
    Ok(())
}

pub(crate) fn insert_block(t: &Transaction<'_>, row: &BlockRow) -> Result<()> {
    t.execute(
        "INSERT OR REPLACE INTO blocks VALUES (?1, ?2, ?3, ?4)",
        params![
            row.key.as_str(),
            row.base.as_str(),
            row.digest.as_str(),
            i64::try_from(row.size_bytes).unwrap_or(i64::MAX),
        ],
    )?;
    Ok(())
}

/// An image that is there already keeps its manifest, and is no longer hidden.
pub(crate) fn insert_image(t: &Transaction<'_>, row: &ImageRow) -> Result<()> {
    t.execute(
        "INSERT INTO images (id, manifest, parent, tagged_at_ms, hidden) VALUES (?1, ?2, ?3, ?4, 0)
         ON CONFLICT (id) DO UPDATE SET hidden = 0, parent = coalesce(parent, excluded.parent)",
        params![
            row.id.as_str(),
            row.manifest.as_str(),
            row.parent.as_ref().map(Digest::as_str),
            row.tagged_at_ms
        ],
    )?;
    Ok(())
}

pub(crate) fn set_tag(
    t: &Transaction<'_>,
    reference: &str,
    image: &Digest,
    now_ms: i64,
) -> Result<()> {
    t.execute(
        "INSERT OR REPLACE INTO tags VALUES (?1, ?2)",
        params![reference, image.as_str()],
    )?;
    t.execute(
        "UPDATE images SET tagged_at_ms = ?2 WHERE id = ?1",
        params![image.as_str(), now_ms],
    )?;
    Ok(())
}

pub(crate) fn set_repo_digest(
    t: &Transaction<'_>,
    repository: &str,
    digest: &Digest,
    image: &Digest,
) -> Result<()> {
    t.execute(
        "INSERT OR REPLACE INTO repo_digests VALUES (?1, ?2, ?3)",
        params![repository, digest.as_str(), image.as_str()],
    )?;
    Ok(())
}

pub(crate) fn insert_document(
    t: &Transaction<'_>,
    document: &Digest,
    image: &Digest,
) -> Result<()> {
    t.execute(
        "INSERT OR IGNORE INTO documents VALUES (?1, ?2)",
        params![document.as_str(), image.as_str()],
    )?;
    Ok(())
}
