//! What containers need of images, apart from the image verbs: something to run, something to commit to.
//!
//! Must not know: registries, archives, HTTP.

use std::path::PathBuf;

use caisson_api as api;

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
    /// What an upper directory changes.
    async fn changes(
        &self,
        upper: PathBuf,
        lower: Vec<PathBuf>,
    ) -> Result<Vec<api::FilesystemChange>>;
    /// Makes an image of a parent and an upper directory; answers its id.
    async fn commit(&self, commit: Commit) -> Result<String>;
}

/// A commit, as data.
#[derive(Clone, Debug)]
pub(crate) struct Commit {
    pub parent: String,
    pub upper: PathBuf,
    pub config: api::ContainerConfig,
    /// What made the layer: the container's command.
    pub created_by: String,
    pub author: String,
    pub comment: String,
    pub reference: Option<String>,
}
