//! The SQLite file that outlives the daemon: one thread owns the connection, jobs are sent to it.
//!
//! ```text
//! caisson.db (WAL)
//!   containers(id PRIMARY KEY, name UNIQUE, created_ns, definition JSON, state JSON)
//!   user_version = number of migrations applied
//! ```
//!
//! `definition` changes on create, rename and update; `state` on every start and exit. Creating, renaming and removing are
//! flushed to the disk before they return; states are not (a power cut then loses at most a state, which recovery finds
//! out again anyway; `kill -9` loses nothing).
//!
//! Must not know: what the JSON says.

use std::path::Path;
use std::sync::mpsc;

use rusqlite::{Connection, OptionalExtension as _, params};
use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Result};

/// One step each; never change one that was released, append.
const MIGRATIONS: &[&str] = &["CREATE TABLE containers (
        id         TEXT PRIMARY KEY NOT NULL,
        name       TEXT UNIQUE NOT NULL,
        created_ns INTEGER NOT NULL,
        definition TEXT NOT NULL,
        state      TEXT NOT NULL
    ) STRICT;"];

/// A container as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub id: String,
    pub name: String,
    pub created_ns: i64,
    pub definition: String,
    pub state: String,
}

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// A handle to the thread that owns the connection; clones share it.
#[derive(Clone)]
pub(crate) struct Db {
    jobs: mpsc::Sender<Job>,
}

/// How much a write may lose to a power cut.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// On the disk before the call returns.
    Flushed,
    /// In the operating system's hands.
    Written,
}

impl Db {
    /// Opens (and creates or migrates) the file. Blocks; called while the engine opens.
    pub(crate) fn open(path: &Path) -> Result<Db> {
        let fail = |e: rusqlite::Error| {
            sql_error(&format!("cannot open the database {}", path.display()), &e)
        };
        let mut connection = Connection::open(path).map_err(fail)?;
        connection
            .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 5000;")
            .map_err(fail)?;
        migrate(&mut connection, path)?;
        let (jobs, inbox) = mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name("caisson-db".into())
            .spawn(move || {
                while let Ok(job) = inbox.recv() {
                    job(&mut connection);
                }
            })
            .map_err(|e| Error::io("cannot start the database thread", &e))?;
        Ok(Db { jobs })
    }

    async fn run<T: Send + 'static>(
        &self,
        doing: &'static str,
        durability: Durability,
        job: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let job = Box::new(move |connection: &mut Connection| {
            let flushed = durability == Durability::Flushed;
            let result = (|| {
                if flushed {
                    connection.pragma_update(None, "synchronous", "FULL")?;
                }
                let result = job(connection);
                if flushed {
                    connection.pragma_update(None, "synchronous", "NORMAL")?;
                }
                result
            })();
            // The caller may have gone away; the write stands all the same.
            let _ = answer.send(result.map_err(|e| sql_error(doing, &e)));
        });
        self.jobs
            .send(job)
            .map_err(|_| Error::internal("the database thread has ended"))?;
        answered
            .await
            .map_err(|_| Error::internal("the database thread has ended"))?
    }

    /// Adds a container; [`ErrorKind::Conflict`] when its id or name is there.
    pub(crate) async fn insert(&self, row: Row, durability: Durability) -> Result<()> {
        self.run("cannot record the container", durability, move |c| {
            c.prepare_cached("INSERT INTO containers (id, name, created_ns, definition, state) VALUES (?1, ?2, ?3, ?4, ?5)")?
                .execute(params![row.id, row.name, row.created_ns, row.definition, row.state])
                .map(drop)
        })
        .await
    }

    /// Writes a container's changed name and definition.
    pub(crate) async fn set_definition(
        &self,
        id: String,
        name: String,
        definition: String,
    ) -> Result<()> {
        self.run(
            "cannot record the container's definition",
            Durability::Flushed,
            move |c| {
                c.prepare_cached("UPDATE containers SET name = ?2, definition = ?3 WHERE id = ?1")?
                    .execute(params![id, name, definition])
                    .map(drop)
            },
        )
        .await
    }

    /// Writes a container's changed state.
    pub(crate) async fn set_state(&self, id: String, state: String) -> Result<()> {
        self.run(
            "cannot record the container's state",
            Durability::Written,
            move |c| {
                c.prepare_cached("UPDATE containers SET state = ?2 WHERE id = ?1")?
                    .execute(params![id, state])
                    .map(drop)
            },
        )
        .await
    }

    /// Removes a container; nothing happens when it is not there.
    pub(crate) async fn delete(&self, id: String, durability: Durability) -> Result<()> {
        self.run(
            "cannot remove the container's record",
            durability,
            move |c| {
                c.prepare_cached("DELETE FROM containers WHERE id = ?1")?
                    .execute(params![id])
                    .map(drop)
            },
        )
        .await
    }

    /// Every container, oldest first.
    pub(crate) async fn all(&self) -> Result<Vec<Row>> {
        self.run("cannot read the containers' records", Durability::Written, |c| {
            let mut query = c.prepare("SELECT id, name, created_ns, definition, state FROM containers ORDER BY created_ns, id")?;
            let rows = query.query_map([], |r| {
                Ok(Row { id: r.get(0)?, name: r.get(1)?, created_ns: r.get(2)?, definition: r.get(3)?, state: r.get(4)? })
            })?;
            rows.collect()
        })
        .await
    }

    /// Waits until everything sent so far is written, and moves the log into the file.
    pub(crate) async fn checkpoint(&self) -> Result<()> {
        self.run("cannot write the database", Durability::Flushed, |c| {
            c.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
                .optional()
                .map(drop)
        })
        .await
    }
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<()> {
    let fail = |e: rusqlite::Error| {
        sql_error(
            &format!("cannot bring the database {} up to date", path.display()),
            &e,
        )
    };
    let version: u32 = connection
        .query_row("PRAGMA user_version", [], |r| r.get(0))
        .map_err(fail)?;
    let version = version as usize;
    if version > MIGRATIONS.len() {
        return Err(Error::conflict(format!(
            "the database {} was written by a newer caisson (schema {version}, this one knows {}): use that version again, or \
             another --data-root",
            path.display(),
            MIGRATIONS.len()
        )));
    }
    for (step, sql) in MIGRATIONS.iter().enumerate().skip(version) {
        let transaction = connection.transaction().map_err(fail)?;
        transaction.execute_batch(sql).map_err(fail)?;
        transaction
            .pragma_update(
                None,
                "user_version",
                u32::try_from(step + 1).unwrap_or(u32::MAX),
            )
            .map_err(fail)?;
        transaction.commit().map_err(fail)?;
    }
    Ok(())
}

fn sql_error(doing: &str, e: &rusqlite::Error) -> Error {
    use rusqlite::ffi::ErrorCode;
    let (kind, hint) = match e.sqlite_error_code() {
        Some(ErrorCode::ConstraintViolation) => (ErrorKind::Conflict, ""),
        Some(ErrorCode::DiskFull) => (ErrorKind::Internal, " (free some space on the disk)"),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => (
            ErrorKind::Internal,
            " (the file is damaged: move it away or restore it from a backup)",
        ),
        _ => (ErrorKind::Internal, ""),
    };
    Error::new(kind, format!("{doing}: {e}{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, name: &str) -> Row {
        Row {
            id: id.into(),
            name: name.into(),
            created_ns: 7,
            definition: "{}".into(),
            state: "{}".into(),
        }
    }

    #[tokio::test]
    async fn what_was_written_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("caisson.db");
        let db = Db::open(&path).unwrap();
        db.insert(row("a", "one"), Durability::Flushed)
            .await
            .unwrap();
        db.insert(row("b", "two"), Durability::Written)
            .await
            .unwrap();
        db.set_definition("a".into(), "uno".into(), "{\"x\":1}".into())
            .await
            .unwrap();
        db.set_state("a".into(), "{\"s\":1}".into()).await.unwrap();
        db.delete("b".into(), Durability::Flushed).await.unwrap();
        drop(db);
        let rows = Db::open(&path).unwrap().all().await.unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!(
            (
                rows[0].name.as_str(),
                rows[0].definition.as_str(),
                rows[0].state.as_str()
            ),
            ("uno", "{\"x\":1}", "{\"s\":1}")
        );
    }

    #[tokio::test]
    async fn a_name_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("caisson.db")).unwrap();
        db.insert(row("a", "one"), Durability::Written)
            .await
            .unwrap();
        assert_eq!(
            db.insert(row("b", "one"), Durability::Written)
                .await
                .unwrap_err()
                .kind,
            ErrorKind::Conflict
        );
    }

    #[tokio::test]
    async fn a_newer_schema_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("caisson.db");
        drop(Db::open(&path).unwrap());
        Connection::open(&path)
            .unwrap()
            .pragma_update(None, "user_version", 99)
            .unwrap();
        let e = Db::open(&path).err().unwrap();
        assert!(e.message.contains("newer caisson"), "{e}");
    }
}
