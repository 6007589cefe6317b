//! What containers need of images ([`ImageSource`]), out of the store.

use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use caisson_api as api;
use caisson_image::{CommitSource, Platform};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::task::JoinHandle;
use tokio_util::io::SyncIoBridge;

use super::{Images, blocking, reference, view};
use crate::image_source::{Commit, ImageSource, OwnFiles, RunnableImage};
use crate::{Error, Result};

#[async_trait]
impl ImageSource for Images {
    async fn runnable(&self, reference: &str, platform: Option<&str>) -> Result<RunnableImage> {
        let image = self.store.resolve(reference)?;
        if let Some(wanted) = platform {
            let wanted = Platform::parse(wanted)?;
            let config = image.config();
            let same_variant = wanted.variant.is_none()
                || config.variant.is_none()
                || wanted.variant == config.variant;
            if wanted.os != config.os || wanted.architecture != config.architecture || !same_variant
            {
                return Err(Error::not_found(format!(
                    "image with reference {reference} was found but does not match the specified platform: wanted {wanted}, actual: {}/{}",
                    config.os, config.architecture
                )));
            }
        }
        let mut layers = self.store.layer_dirs(&image);
        if layers.is_empty() {
            layers.push(self.empty_layer.clone());
        }
        Ok(RunnableImage {
            id: image.id().to_string(),
            os: image.config().os.clone(),
            config: view::run_config(&image),
            layers,
        })
    }

    fn size_bytes(&self, id: &str) -> Option<u64> {
        Some(self.store.by_id(&id.parse().ok()?)?.size_bytes())
    }

    async fn block_form(&self, id: &str, layers: Vec<PathBuf>) -> Result<PathBuf> {
        let id = id.parse()?;
        let image = self
            .store
            .by_id(&id)
            .ok_or_else(|| Error::not_found(format!("No such image: {id}")))?;
        // What is not the image's own lies above it: the mount points, or the empty layer of an image without any.
        let above = layers.len().saturating_sub(image.layers().len());
        let above = layers.into_iter().take(above).collect();
        Ok(self.store.block_form(&id, above).await?.path)
    }

    async fn changes(
        &self,
        own: OwnFiles,
        lower: Vec<PathBuf>,
    ) -> Result<Vec<api::FilesystemChange>> {
        let handle = tokio::runtime::Handle::current();
        let changes = blocking(move || match own {
            OwnFiles::Upper(upper) => Ok(caisson_image::changes(&upper, &lower)?),
            OwnFiles::Layer(tar) => {
                let tar = SyncIoBridge::new_with_handle(tar, handle);
                Ok(caisson_image::changes_in_archive(tar, &lower)?)
            }
        })
        .await?;
        let row = |change: caisson_image::Change| api::FilesystemChange {
            path: change.path.display().to_string(),
            kind: match change.kind {
                caisson_image::ChangeKind::Modified => 0,
                caisson_image::ChangeKind::Added => 1,
                caisson_image::ChangeKind::Deleted => 2,
            },
        };
        Ok(changes.into_iter().map(row).collect())
    }

    async fn commit(&self, commit: Commit) -> Result<String> {
        let tag = commit
            .reference
            .as_deref()
            .map(|name| reference(name, None))
            .transpose()?;
        let id = self
            .store
            .commit(caisson_image::Commit {
                parent: Some(commit.parent.parse()?),
                source: match commit.own {
                    OwnFiles::Upper(upper) => CommitSource::Upper(upper),
                    OwnFiles::Layer(tar) => {
                        let handle = tokio::runtime::Handle::current();
                        CommitSource::Archive(Box::new(SyncIoBridge::new_with_handle(tar, handle)))
                    }
                },
                config: super::stored_config(&commit.config)?,
                author: commit.author,
                comment: commit.comment,
                created_by: commit.created_by,
                created: None,
                tag,
            })
            .await?;
        Ok(id.to_string())
    }
}

/// An archive being produced by a task: its failure is the reader's, instead of a short archive.
pub struct Produced {
    reader: tokio::io::DuplexStream,
    writing: Option<JoinHandle<caisson_image::Result<()>>>,
}

impl Produced {
    pub fn new(
        reader: tokio::io::DuplexStream,
        writing: JoinHandle<caisson_image::Result<()>>,
    ) -> Self {
        Produced {
            reader,
            writing: Some(writing),
        }
    }
}

impl AsyncRead for Produced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.reader).poll_read(context, buffer))?;
        if buffer.filled().len() > before || buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let Some(writing) = self.writing.as_mut() else {
            return Poll::Ready(Ok(()));
        };
        let ended = ready!(Pin::new(writing).poll(context));
        self.writing = None;
        Poll::Ready(match ended {
            Ok(result) => result.map_err(std::io::Error::other),
            Err(panic) => Err(std::io::Error::other(panic)),
        })
    }
}
