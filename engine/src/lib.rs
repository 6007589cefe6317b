//! Containers and images: orchestration and persistence.
//!
//! [`Engine`] is what the daemon serves over HTTP. It owns the records (SQLite), turns Docker's configuration into an OCI
//! runtime spec and drives [`caisson_runtime::Runtime`]. Its methods are named after Docker's verbs and take what Docker's
//! requests say; answers are the shapes of `caisson-api`.
//!
//! Must not know: HTTP, KVM, namespaces.

mod error;
mod image_source;
mod images;
mod options;
pub mod seccomp;

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use caisson_api as api;
use caisson_runtime::{Isolation, PathStat, Runtime, TarStream, TtySize};
use futures_util::Stream;

pub use caisson_runtime as runtime;
pub use error::{Error, ErrorKind, Result};
pub use images::*;
pub use options::*;

/// The engine; cheap to clone, all clones are the same engine.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    images: images::Images,
}

/// A stream of things that the engine reports.
pub type Feed<T> = Pin<Box<dyn Stream<Item = T> + Send>>;

impl Engine {
    /// Opens the engine on its directories and finds every container again. Fails with [`ErrorKind::Conflict`] when another
    /// daemon uses the same directories.
    pub async fn open(_config: Config, _runtimes: Vec<Arc<dyn Runtime>>) -> Result<Engine> {
        todo!()
    }
    /// The daemon ends: stops containers unless `live_restore`, writes everything down.
    pub async fn shutdown(&self) {
        todo!()
    }
    /// The configuration it was opened with.
    pub fn config(&self) -> &Config {
        todo!()
    }
    /// Isolations that work on this host.
    pub fn isolations(&self) -> Vec<Isolation> {
        todo!()
    }

    // ---- one container ----

    /// `POST /containers/create`.
    pub async fn create_container(
        &self,
        _options: CreateOptions,
    ) -> Result<api::ContainerCreateResponse> {
        todo!()
    }
    /// `POST /containers/ID/start`.
    pub async fn start(&self, _id: &str) -> Result<Outcome> {
        todo!()
    }
    /// `POST /containers/ID/stop`.
    pub async fn stop(&self, _id: &str, _options: StopOptions) -> Result<Outcome> {
        todo!()
    }
    /// `POST /containers/ID/restart`.
    pub async fn restart(&self, _id: &str, _options: StopOptions) -> Result<()> {
        todo!()
    }
    /// `POST /containers/ID/kill`; `signal` as a name or a number, `None`: `SIGKILL`.
    pub async fn kill(&self, _id: &str, _signal: Option<&str>) -> Result<()> {
        todo!()
    }
    /// `POST /containers/ID/pause`.
    pub async fn pause(&self, _id: &str) -> Result<()> {
        todo!()
    }
    /// `POST /containers/ID/unpause`.
    pub async fn unpause(&self, _id: &str) -> Result<()> {
        todo!()
    }
    /// `POST /containers/ID/rename`.
    pub async fn rename(&self, _id: &str, _name: &str) -> Result<()> {
        todo!()
    }
    /// `POST /containers/ID/update`; answers warnings.
    pub async fn update(&self, _id: &str, _request: api::UpdateBody) -> Result<Vec<String>> {
        todo!()
    }
    /// `DELETE /containers/ID`.
    pub async fn remove(&self, _id: &str, _options: RemoveOptions) -> Result<()> {
        todo!()
    }
    /// `POST /containers/ID/wait`: registered when this returns, done when the inner future is.
    pub async fn wait(&self, _id: &str, _condition: WaitCondition) -> Result<Wait> {
        todo!()
    }
    /// `GET /containers/ID/json`.
    pub async fn inspect(&self, _id: &str, _size: bool) -> Result<api::ContainerInspect> {
        todo!()
    }
    /// `GET /containers/json`.
    pub async fn list(&self, _options: ListOptions) -> Result<Vec<api::ContainerSummary>> {
        todo!()
    }
    /// `GET /containers/ID/top`.
    pub async fn top(&self, _id: &str, _ps_args: &str) -> Result<api::TopResponse> {
        todo!()
    }
    /// `GET /containers/ID/stats`: one item, or one a second.
    pub async fn stats(
        &self,
        _id: &str,
        _options: StatsOptions,
    ) -> Result<Feed<api::ContainerStats>> {
        todo!()
    }
    /// `GET /containers/ID/logs`.
    pub async fn logs(&self, _id: &str, _options: LogsOptions) -> Result<Logs> {
        todo!()
    }
    /// `POST /containers/ID/attach`; a container that is not started yet is attached to when it is.
    pub async fn attach(&self, _id: &str, _options: AttachOptions) -> Result<Attachment> {
        todo!()
    }
    /// `POST /containers/ID/resize`.
    pub async fn resize(&self, _id: &str, _size: TtySize) -> Result<()> {
        todo!()
    }
    /// `GET /containers/ID/changes`.
    pub async fn changes(&self, _id: &str) -> Result<Vec<api::FilesystemChange>> {
        todo!()
    }
    /// `GET /containers/ID/export`.
    pub async fn export(&self, _id: &str) -> Result<TarStream> {
        todo!()
    }
    /// `POST /commit`; answers the image's id.
    pub async fn commit(&self, _options: CommitOptions) -> Result<String> {
        todo!()
    }
    /// `HEAD /containers/ID/archive`.
    pub async fn path_stat(&self, _id: &str, _path: &Path) -> Result<PathStat> {
        todo!()
    }
    /// `GET /containers/ID/archive`.
    pub async fn path_read(&self, _id: &str, _path: &Path) -> Result<(PathStat, TarStream)> {
        todo!()
    }
    /// `PUT /containers/ID/archive`; the stream is plain tar (decompress before).
    pub async fn path_write(
        &self,
        _id: &str,
        _path: &Path,
        _tar: TarStream,
        _options: PathWriteOptions,
    ) -> Result<()> {
        todo!()
    }

    // ---- execs ----

    /// `POST /containers/ID/exec`; answers the exec's id.
    pub async fn exec_create(
        &self,
        _container: &str,
        _request: api::ExecCreateBody,
    ) -> Result<String> {
        todo!()
    }
    /// `POST /exec/ID/start`; `None` when detached.
    pub async fn exec_start(
        &self,
        _exec: &str,
        _options: ExecStartOptions,
    ) -> Result<Option<Attachment>> {
        todo!()
    }
    /// `GET /exec/ID/json`.
    pub async fn exec_inspect(&self, _exec: &str) -> Result<api::ExecInspect> {
        todo!()
    }
    /// `POST /exec/ID/resize`.
    pub async fn exec_resize(&self, _exec: &str, _size: TtySize) -> Result<()> {
        todo!()
    }

    // ---- for images.rs and the daemon ----

    /// Publishes an event.
    pub fn publish(&self, _event: api::EventMessage) {
        todo!()
    }
    /// Who uses which image: for `rmi` and `image prune`.
    pub fn image_users(&self) -> Vec<ImageUser> {
        todo!()
    }

    // ---- all of them ----

    /// `GET /events`.
    pub async fn events(&self, _options: EventsOptions) -> Result<Feed<api::EventMessage>> {
        todo!()
    }
    /// `POST /containers/prune`.
    pub async fn prune_containers(
        &self,
        _filters: api::Filters,
    ) -> Result<api::ContainersPruneResponse> {
        todo!()
    }
    /// How many containers there are, for `GET /info`: (running, paused, stopped).
    pub fn counts(&self) -> (usize, usize, usize) {
        todo!()
    }
    /// The containers part of `GET /system/df`.
    pub async fn container_disk_usage(&self) -> Result<Vec<api::ContainerSummary>> {
        todo!()
    }
}
