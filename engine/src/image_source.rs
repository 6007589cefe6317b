//! What containers need of images, apart from the image verbs: something to run, something to commit to.
//!
//! Must not know: registries, archives, HTTP.

use std::path::PathBuf;

use caisson_api as api;
use caisson_runtime::TarStream;

use crate::error::Result;

/// An image as a container needs it.
#[derive(Clone, Debug, Default)]
pub(crate) struct RunnableImage {
    /// `sha256:…`.
    pub id: String,
    pub os: String,
    pub config: api::ContainerConfig,
    /// Topmost first; at least one.
    pub layers: Vec<PathBuf>,
}

/// Where images come from.
#[async_trait::async_trait]
pub(crate) trait ImageSource: Send + Sync {
    /// Finds an image by reference or id; not found reads `No such image: x:latest`.
    async fn runnable(&self, reference: &str, platform: Option<&str>) -> Result<RunnableImage>;
    /// Size of an image that is (still) there.
    fn size_bytes(&self, id: &str) -> Option<u64>;
    /// These layers, the topmost of them not the image's, as one read-only file for a block device.
    async fn block_form(&self, id: &str, layers: Vec<PathBuf>) -> Result<PathBuf>;
    /// What a container changes.
    async fn changes(
        &self,
        own: OwnFiles,
        lower: Vec<PathBuf>,
    ) -> Result<Vec<api::FilesystemChange>>;
    /// Makes an image of a parent and a container's files; answers its id.
    async fn commit(&self, commit: Commit) -> Result<String>;
}

/// What a container has beyond its image.
pub(crate) enum OwnFiles {
    /// An overlay's upper directory.
    Upper(PathBuf),
    /// A layer as its sandbox packs it.
    Layer(TarStream),
}

/// A commit, as data.
pub(crate) struct Commit {
    pub parent: String,
    pub own: OwnFiles,
    pub config: api::ContainerConfig,
    /// What made the layer: the container's command.
    pub created_by: String,
    pub author: String,
    pub comment: String,
    pub reference: Option<String>,
}
