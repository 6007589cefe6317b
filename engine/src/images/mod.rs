//! The image verbs of the engine: Docker's words and events over [`caisson_image::Store`].
//!
//! Long operations answer a feed of progress lines. What fails before the first line is an error of the request; what fails
//! later is the feed's last line, as in Docker.

use caisson_api as api;
use caisson_runtime::TarStream;

use crate::{Engine, Feed, Result};

/// `GET /images/json`.
#[derive(Clone, Debug, Default)]
pub struct ImageListOptions {
    /// Intermediate images too; we keep none, so this changes nothing.
    pub all: bool,
    /// Compute what images share.
    pub shared_size: bool,
    /// `filters`.
    pub filters: api::Filters,
}

/// `POST /images/create?fromImage=`.
#[derive(Clone, Debug, Default)]
pub struct ImagePullOptions {
    /// Name, possibly with tag or digest.
    pub name: String,
    /// Tag or digest, when not in the name.
    pub tag: Option<String>,
    /// `os[/arch[/variant]]`; `None`: the host's.
    pub platform: Option<String>,
    /// For the registry.
    pub credentials: Option<api::AuthConfig>,
}

/// `POST /images/create?fromSrc=-`.
#[derive(Clone, Debug, Default)]
pub struct ImageImportOptions {
    /// Name to give it.
    pub repository: Option<String>,
    /// Tag to give it.
    pub tag: Option<String>,
    /// `--message`.
    pub message: String,
    /// `--change`: Dockerfile instructions.
    pub changes: Vec<String>,
    /// `os[/arch[/variant]]`; `None`: the host's.
    pub platform: Option<String>,
}

impl Engine {
    /// `GET /images/json`.
    pub async fn images(&self, _options: ImageListOptions) -> Result<Vec<api::ImageSummary>> {
        todo!()
    }
    /// `POST /images/create?fromImage=`.
    pub async fn image_pull(&self, _options: ImagePullOptions) -> Result<Feed<api::JsonMessage>> {
        todo!()
    }
    /// `POST /images/create?fromSrc=-`; the stream is plain tar.
    pub async fn image_import(&self, _tar: TarStream, _options: ImageImportOptions) -> Result<Feed<api::JsonMessage>> {
        todo!()
    }
    /// `POST /images/load`; docker-archive or OCI layout, compressed or not.
    pub async fn image_load(&self, _archive: TarStream, _quiet: bool) -> Result<Feed<api::JsonMessage>> {
        todo!()
    }
    /// `GET /images/get`.
    pub async fn image_save(&self, _names: Vec<String>) -> Result<TarStream> {
        todo!()
    }
    /// `GET /images/NAME/json`.
    pub async fn image_inspect(&self, _name: &str) -> Result<api::ImageInspect> {
        todo!()
    }
    /// `GET /images/NAME/history`.
    pub async fn image_history(&self, _name: &str) -> Result<Vec<api::HistoryItem>> {
        todo!()
    }
    /// `POST /images/NAME/tag`.
    pub async fn image_tag(&self, _name: &str, _repository: &str, _tag: Option<&str>) -> Result<()> {
        todo!()
    }
    /// `POST /images/NAME/push`.
    pub async fn image_push(
        &self,
        _name: &str,
        _tag: Option<&str>,
        _credentials: Option<api::AuthConfig>,
    ) -> Result<Feed<api::JsonMessage>> {
        todo!()
    }
    /// `DELETE /images/NAME`.
    pub async fn image_remove(&self, _name: &str, _force: bool, _no_prune: bool) -> Result<Vec<api::ImageDeleteItem>> {
        todo!()
    }
    /// `POST /images/prune`.
    pub async fn images_prune(&self, _filters: api::Filters) -> Result<api::ImagesPruneResponse> {
        todo!()
    }
    /// `GET /images/search`.
    pub async fn image_search(&self, _term: &str) -> Result<Vec<api::ImageSearchItem>> {
        todo!()
    }
    /// `GET /distribution/NAME/json`.
    pub async fn image_distribution(
        &self,
        _name: &str,
        _credentials: Option<api::AuthConfig>,
    ) -> Result<api::DistributionInspect> {
        todo!()
    }
    /// `POST /auth`: whether a registry takes these credentials.
    pub async fn registry_login(&self, _credentials: api::AuthConfig) -> Result<()> {
        todo!()
    }
    /// How many images there are.
    pub async fn image_count(&self) -> Result<usize> {
        todo!()
    }
    /// `GET /system/df`; `kinds` chooses among `container`, `image`, `volume` and `build-cache`, empty means all.
    pub async fn disk_usage(&self, _kinds: &[&str]) -> Result<api::DiskUsage> {
        todo!()
    }
    /// Loads the embedded image unless this data root has done so before; answers whether it did.
    pub async fn load_default_image(&self, _reference: &str, _archive: &'static [u8]) -> Result<bool> {
        todo!()
    }
}
