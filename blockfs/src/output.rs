//! A file that appears at its path complete and on the disk, or not at all.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::error::{Context, Result};

/// A file beside `path` that is removed unless it is published.
pub(crate) struct Output {
    pub file: File,
    path: PathBuf,
    temporary: PathBuf,
    published: bool,
}

impl Output {
    /// Begins to write what will be at `path`.
    pub(crate) fn create(path: &Path) -> Result<Output> {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{:016x}.tmp", rand::random::<u64>()));
        let temporary = path.with_file_name(name);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&temporary)
            .context("create", &temporary)?;
        Ok(Output {
            file,
            path: path.to_owned(),
            temporary,
            published: false,
        })
    }

    /// Puts the file in its place, replacing what is there.
    pub(crate) fn publish(mut self) -> Result<()> {
        self.file.sync_all().context("sync", &self.temporary)?;
        std::fs::rename(&self.temporary, &self.path).context("move into place", &self.path)?;
        self.published = true;
        let parent = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let parent_fd = File::open(parent).context("open", parent)?;
        parent_fd.sync_all().context("sync", parent)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.published {
            // Nothing more can be done about a file that cannot be removed; its name says that it is temporary.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}
