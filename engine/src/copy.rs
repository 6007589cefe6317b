//! `cp`, `export`, `diff`: a container's files, running or not.
//!
//! Must not know: how a path is resolved safely (the sandbox does it, inside its root).

use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use caisson_api as api;
use caisson_runtime::{PathStat, RootfsForm, TarStream, WriteOptions};
use tokio::io::{AsyncRead, ReadBuf};

use crate::container::{Container, Lease, Message};
use crate::error::{Error, ErrorKind, Result};
use crate::image_source::OwnFiles;
use crate::open::dir_of;
use crate::options::PathWriteOptions;
use crate::{Engine, disk};

/// A tar stream that keeps its sandbox as long as it is read.
struct Leased {
    stream: TarStream,
    _lease: Lease,
}

impl AsyncRead for Leased {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.stream.as_mut().poll_read(cx, buffer)
    }
}

fn explain(e: caisson_runtime::Error, container: &str, path: &Path) -> Error {
    let e = Error::from(e);
    match e.kind {
        ErrorKind::NotFound => Error::not_found(format!(
            "Could not find the file {} in container {container}",
            path.display()
        )),
        _ => e,
    }
}

fn absolute(path: &Path) -> Result<std::path::PathBuf> {
    if path.as_os_str().is_empty() {
        return Err(Error::invalid("bad parameter: path cannot be empty"));
    }
    Ok(Path::new("/").join(path))
}

impl Engine {
    /// `HEAD /containers/ID/archive`.
    pub async fn path_stat(&self, id: &str, path: &Path) -> Result<PathStat> {
        let path = absolute(path)?;
        let container = self.inner.container(id)?;
        let lease = container.ask(|reply| Message::Files { reply }).await?;
        lease
            .sandbox
            .stat_path(&path)
            .await
            .map_err(|e| explain(e, id, &path))
    }

    /// `GET /containers/ID/archive`.
    pub async fn path_read(&self, id: &str, path: &Path) -> Result<(PathStat, TarStream)> {
        let path = absolute(path)?;
        let container = self.inner.container(id)?;
        let lease = container.ask(|reply| Message::Files { reply }).await?;
        let stat = lease
            .sandbox
            .stat_path(&path)
            .await
            .map_err(|e| explain(e, id, &path))?;
        let stream = lease
            .sandbox
            .read_path(&path)
            .await
            .map_err(|e| explain(e, id, &path))?;
        self.inner
            .container_event(&container.view(), "archive-path", &[]);
        Ok((
            stat,
            Box::pin(Leased {
                stream,
                _lease: lease,
            }),
        ))
    }

    /// `PUT /containers/ID/archive`; the stream is plain tar (decompress before).
    pub async fn path_write(
        &self,
        id: &str,
        path: &Path,
        tar: TarStream,
        options: PathWriteOptions,
    ) -> Result<()> {
        let path = absolute(path)?;
        let container = self.inner.container(id)?;
        if container.view().definition.host.readonly_rootfs
            && !beneath_writable_mount(&container.view(), &path)
        {
            return Err(Error::new(
                ErrorKind::Forbidden,
                "container rootfs is marked read-only",
            ));
        }
        let lease = container.ask(|reply| Message::Files { reply }).await?;
        let options = WriteOptions {
            no_overwrite_dir_non_dir: options.no_overwrite_dir_non_dir,
            keep_ownership: true, // as Docker does, whose copyUIDGID matters only where the container has a user
        };
        lease
            .sandbox
            .write_path(&path, tar, options)
            .await
            .map_err(|e| explain(e, id, &path))?;
        self.inner
            .container_event(&container.view(), "extract-to-dir", &[]);
        Ok(())
    }

    /// `GET /containers/ID/export`.
    pub async fn export(&self, id: &str) -> Result<TarStream> {
        let container = self.inner.container(id)?;
        let lease = container.ask(|reply| Message::Files { reply }).await?;
        let stream = lease.sandbox.export().await?;
        self.inner.container_event(&container.view(), "export", &[]);
        Ok(Box::pin(Leased {
            stream,
            _lease: lease,
        }))
    }

    /// `GET /containers/ID/changes`.
    pub async fn changes(&self, id: &str) -> Result<Vec<api::FilesystemChange>> {
        let container = self.inner.container(id)?;
        let own = self.own_files(&container).await?;
        let lower = disk::layers(&self.inner, &container.view());
        self.inner.image_source.changes(own, lower).await
    }

    /// What a container has beyond its image: on the host, or as its sandbox packs it.
    pub(crate) async fn own_files(&self, container: &Container) -> Result<OwnFiles> {
        let view = container.view();
        match disk::form(&self.inner, view.definition.isolation) {
            RootfsForm::Overlay => Ok(OwnFiles::Upper(dir_of(&self.inner, &view.id).upper())),
            RootfsForm::Block => {
                let lease = container.ask(|reply| Message::Files { reply }).await?;
                let stream = lease.sandbox.changes().await?;
                Ok(OwnFiles::Layer(Box::pin(Leased {
                    stream,
                    _lease: lease,
                })))
            }
        }
    }
}

fn beneath_writable_mount(view: &crate::records::View, path: &Path) -> bool {
    view.state.status.is_up()
        && crate::spec::mounts::requested(&view.definition.host)
            .unwrap_or_default()
            .iter()
            .any(|m| !m.read_only && path.starts_with(&m.target))
}
