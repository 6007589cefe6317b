//! The image verbs of the engine: Docker's words and events over [`caisson_image::Store`].
//!
//! Long operations answer a feed of progress lines (see `feed`). Answers are made by `view`, lists narrowed by `filter`.
//!
//! Must not know: HTTP; how images are stored or transferred.

mod feed;
mod filter;
mod view;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use caisson_api as api;
use caisson_image::{Image, Reference, Store};
use caisson_runtime::TarStream;
use tokio_util::io::SyncIoBridge;

use crate::{Config, Engine, Error, ErrorKind, Feed, Result};
use filter::ImageFilter;

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

/// The engine's images. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub(crate) struct Images {
    store: Store,
}

impl Images {
    /// Opens the store below the data root. Blocks.
    pub(crate) fn open(config: &Config) -> Result<Self> {
        let options = caisson_image::Options {
            insecure_registries: config.insecure_registries.clone(),
            ..caisson_image::Options::default()
        };
        Ok(Images {
            store: Store::open(config.data_root.join("image"), options)?,
        })
    }
}

/// Published about an image: `name` and its labels are the attributes.
fn event(
    action: &str,
    id: &str,
    name: &str,
    labels: Option<&BTreeMap<String, String>>,
) -> api::EventMessage {
    let mut attributes = labels.cloned().unwrap_or_default();
    attributes.insert("name".into(), name.into());
    api::EventMessage::now("image", action, id, attributes)
}

/// A repository and perhaps a tag (or digest) apart, as requests give them.
fn reference(name: &str, tag: Option<&str>) -> Result<Reference> {
    let named: Reference = name.parse()?;
    match tag.filter(|t| !t.is_empty()) {
        None => Ok(named.with_default_tag()),
        Some(digest) if digest.contains(':') => Ok(named.with_digest(digest.parse()?)),
        Some(tag) => Ok(named.with_tag(tag)?),
    }
}

impl Engine {
    fn store(&self) -> &Store {
        &self.inner.images.store
    }

    fn image_event(&self, action: &str, image: &Image, name: &str) {
        self.publish(event(
            action,
            &image.id().to_string(),
            name,
            Some(&image.config().config.labels),
        ));
    }

    /// `GET /images/json`.
    pub async fn images(&self, options: ImageListOptions) -> Result<Vec<api::ImageSummary>> {
        let filter = self.image_filter(&options.filters)?;
        let images = self.store().list();
        let shared = options.shared_size.then(|| shared_sizes(&images));
        let rows = images.iter().filter_map(|image| {
            let mut row = view::summary(image);
            if let Some(shared) = &shared {
                row.shared_size = shared.get(&row.id).copied().unwrap_or(0);
            }
            filter.admits(&mut row).then_some(row)
        });
        Ok(rows.collect())
    }

    fn image_filter(&self, filters: &api::Filters) -> Result<ImageFilter> {
        ImageFilter::parse(filters, chrono::Utc::now(), |name| {
            Ok(self
                .store()
                .resolve(name)?
                .created()
                .map_or(0, |t| t.timestamp()))
        })
    }

    /// How many images there are.
    pub async fn image_count(&self) -> Result<usize> {
        Ok(self.store().list().len())
    }

    /// `GET /images/NAME/json`.
    pub async fn image_inspect(&self, name: &str) -> Result<api::ImageInspect> {
        let image = self.store().resolve(name)?;
        Ok(view::inspect(&image, &self.store().layer_dirs(&image)))
    }

    /// `GET /images/NAME/history`.
    pub async fn image_history(&self, name: &str) -> Result<Vec<api::HistoryItem>> {
        let image = self.store().resolve(name)?;
        Ok(view::history(&image, self.store().history(&image)))
    }

    /// `POST /images/NAME/tag`.
    pub async fn image_tag(&self, name: &str, repository: &str, tag: Option<&str>) -> Result<()> {
        let target = reference(repository, tag)?;
        let (store, name) = (self.store().clone(), name.to_owned());
        let shown = target.familiar();
        let image = blocking(move || Ok(store.tag(&name, &target)?)).await?;
        self.image_event("tag", &image, &shown);
        Ok(())
    }

    /// `POST /images/load`; docker-archive or OCI layout, compressed or not.
    pub async fn image_load(
        &self,
        archive: TarStream,
        quiet: bool,
    ) -> Result<Feed<api::JsonMessage>> {
        let engine = self.clone();
        feed::feed(feed::as_stream, move |progress| async move {
            let progress = if quiet {
                caisson_image::silent()
            } else {
                progress
            };
            let loaded = engine
                .store()
                .load(SyncIoBridge::new(archive), progress)
                .await?;
            Ok(engine.announce_loaded(&loaded))
        })
        .await
    }

    /// Events and Docker's closing lines of a load.
    fn announce_loaded(&self, loaded: &[caisson_image::Loaded]) -> Vec<api::JsonMessage> {
        let mut lines = Vec::new();
        for one in loaded {
            let id = one.id.to_string();
            if one.references.is_empty() {
                lines.push(api::JsonMessage::stream(&format!(
                    "Loaded image ID: {id}\n"
                )));
                self.publish(event("load", &id, &id, None));
            }
            for name in &one.references {
                lines.push(api::JsonMessage::stream(&format!(
                    "Loaded image: {}\n",
                    name.familiar()
                )));
                self.publish(event("load", &id, &name.familiar(), None));
            }
        }
        lines
    }

    /// Loads the embedded image unless this data root has done so before; answers whether it did. A removed default image
    /// stays removed.
    pub async fn load_default_image(
        &self,
        reference: &str,
        archive: &'static [u8],
    ) -> Result<bool> {
        let marker = self.config().data_root.join("default-image");
        if marker.exists() {
            return Ok(false);
        }
        self.store().load(archive, caisson_image::silent()).await?;
        let text = format!("{reference}\n");
        blocking(move || write_durably(&marker, text.as_bytes())).await?;
        Ok(true)
    }

    /// `GET /images/search`.
    pub async fn image_search(&self, term: &str) -> Result<Vec<api::ImageSearchItem>> {
        Err(Error::not_implemented(format!(
            "cannot search for {term:?}: caisson asks no search service. Look the image up on the registry's web site and pull it by name"
        )))
    }

    /// `POST /images/create?fromImage=`.
    pub async fn image_pull(&self, _options: ImagePullOptions) -> Result<Feed<api::JsonMessage>> {
        todo!()
    }

    /// `POST /images/create?fromSrc=-`; the stream is plain tar.
    pub async fn image_import(
        &self,
        _tar: TarStream,
        _options: ImageImportOptions,
    ) -> Result<Feed<api::JsonMessage>> {
        todo!()
    }

    /// `GET /images/get`.
    pub async fn image_save(&self, _names: Vec<String>) -> Result<TarStream> {
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
    pub async fn image_remove(
        &self,
        _name: &str,
        _force: bool,
        _no_prune: bool,
    ) -> Result<Vec<api::ImageDeleteItem>> {
        todo!()
    }

    /// `POST /images/prune`.
    pub async fn images_prune(&self, _filters: api::Filters) -> Result<api::ImagesPruneResponse> {
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

    /// `GET /system/df`; `kinds` chooses among `container`, `image`, `volume` and `build-cache`, empty means all.
    pub async fn disk_usage(&self, _kinds: &[&str]) -> Result<api::DiskUsage> {
        todo!()
    }
}

/// Runs what blocks where blocking is fine.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|panic| {
            Err(Error::internal(format!(
                "an image operation broke off: {panic}"
            )))
        })
}

fn write_durably(path: &Path, bytes: &[u8]) -> Result<()> {
    let aside = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&aside)?;
        std::io::Write::write_all(&mut file, bytes)?;
        file.sync_all()?;
        std::fs::rename(&aside, path)
    };
    write().map_err(|e| Error::io(format!("cannot write {}", path.display()), &e))
}

/// Bytes of layers that an image has in common with another, by image id.
fn shared_sizes(images: &[Arc<Image>]) -> HashMap<String, i64> {
    let mut users: HashMap<&caisson_image::Digest, u32> = HashMap::new();
    for layer in images.iter().flat_map(|image| image.layers()) {
        *users.entry(&layer.chain_id).or_default() += 1;
    }
    let shared = |image: &Arc<Image>| {
        let layers = image
            .layers()
            .iter()
            .filter(|layer| users.get(&layer.chain_id).is_some_and(|n| *n > 1));
        view::signed(layers.map(|layer| layer.size_bytes).sum())
    };
    images
        .iter()
        .map(|image| (image.id().to_string(), shared(image)))
        .collect()
}

impl From<caisson_image::Error> for Error {
    fn from(error: caisson_image::Error) -> Self {
        use caisson_image::ErrorKind as I;
        let kind = match error.kind() {
            I::InvalidInput => ErrorKind::Invalid,
            I::NotFound => ErrorKind::NotFound,
            I::Conflict => ErrorKind::Conflict,
            I::Unauthorized => ErrorKind::Unauthorized,
            I::Unavailable => ErrorKind::Unavailable,
            I::NoSpace | I::Internal => ErrorKind::Internal,
        };
        let hint = match error.kind() {
            I::NoSpace => " (free some space, for instance with `caisson system prune`)",
            _ => "",
        };
        Error::new(kind, format!("{error}{hint}"))
    }
}
