//! The image verbs of the engine: Docker's words and events over [`caisson_image::Store`].
//!
//! Long operations answer a feed of progress lines (see `feed`). Answers are made by `view`, lists narrowed by `filter`.
//!
//! Must not know: HTTP; how images are stored or transferred.

pub(crate) mod changes;
mod feed;
mod filter;
mod source;
mod transfer;
mod view;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use caisson_api as api;
use caisson_image::{Image, InUse, Reference, Removed, Store};
use futures_util::StreamExt as _;

use crate::{Config, Engine, Error, ErrorKind, Result};
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
    /// What an image without layers is stacked on.
    empty_layer: PathBuf,
}

impl Images {
    /// Opens the store below the data root. Blocks.
    pub(crate) fn open(config: &Config) -> Result<Self> {
        let options = caisson_image::Options {
            insecure_registries: config.insecure_registries.clone(),
            ..caisson_image::Options::default()
        };
        let empty_layer = config.data_root.join("empty-layer");
        std::fs::create_dir_all(&empty_layer)
            .map_err(|e| Error::io(format!("cannot create {}", empty_layer.display()), &e))?;
        Ok(Images {
            store: Store::open(config.data_root.join("image"), options)?,
            empty_layer,
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
        let shared = options.shared_size.then(|| shared_sizes(self.store()));
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

    /// `GET /images/search`.
    pub async fn image_search(&self, term: &str) -> Result<Vec<api::ImageSearchItem>> {
        Err(Error::not_implemented(format!(
            "cannot search for {term:?}: caisson asks no search service. Look the image up on the registry's web site and pull it by name"
        )))
    }

    /// `DELETE /images/NAME`.
    pub async fn image_remove(
        &self,
        name: &str,
        force: bool,
        no_prune: bool,
    ) -> Result<Vec<api::ImageDeleteItem>> {
        let id = self.store().resolve(name)?.id().to_string();
        let removal = self
            .store()
            .remove(name, force, !no_prune, self.images_in_use())
            .await?;
        Ok(self.announce_removed(Some(&id), removal.removed))
    }

    /// Events and rows of a removal. `id` is the image whose names went, when it is only one.
    fn announce_removed(
        &self,
        id: Option<&str>,
        removed: Vec<Removed>,
    ) -> Vec<api::ImageDeleteItem> {
        let row = |one: Removed| match one {
            Removed::Untagged(name) => {
                self.publish(event("untag", id.unwrap_or(&name), &name, None));
                api::ImageDeleteItem {
                    untagged: Some(name),
                    deleted: None,
                }
            }
            Removed::Deleted(digest) => {
                let digest = digest.to_string();
                self.publish(event("delete", &digest, &digest, None));
                api::ImageDeleteItem {
                    untagged: None,
                    deleted: Some(digest),
                }
            }
        };
        removed.into_iter().map(row).collect()
    }

    fn images_in_use(&self) -> Vec<InUse> {
        let users = self.image_users().into_iter();
        users
            .filter_map(|user| {
                Some(InUse {
                    image: user.image.parse().ok()?,
                    container: user.container,
                    running: user.running,
                })
            })
            .collect()
    }

    /// Clears what a crash or a removal under a container left, now and whenever a container is removed. Runs for ever.
    pub async fn tend_images(&self) {
        let filters = api::Filters(BTreeMap::from([
            ("type".to_owned(), vec!["container".to_owned()]),
            ("event".to_owned(), vec!["destroy".to_owned()]),
        ]));
        let options = crate::EventsOptions {
            filters,
            ..Default::default()
        };
        let mut removals = match self.events(options).await {
            Ok(feed) => feed,
            Err(error) => {
                return tracing::error!(%error, "images of removed containers are only cleared at the next start");
            }
        };
        loop {
            if let Err(error) = self.store().collect_garbage(self.images_in_use()).await {
                tracing::warn!(%error, "cannot clear unused layers");
            }
            // Most removals leave nothing to do: an image is only hidden by `rmi -f` under a container.
            loop {
                if removals.next().await.is_none() {
                    return;
                }
                if self.store().has_hidden() {
                    break;
                }
            }
        }
    }

    /// `POST /images/prune`.
    pub async fn images_prune(&self, filters: api::Filters) -> Result<api::ImagesPruneResponse> {
        if let Some(key) = filters.unknown_key(&["dangling", "label", "label!", "until"]) {
            return Err(Error::invalid(format!("invalid filter '{key}'")));
        }
        let dangling = filters
            .boolean("dangling")
            .map_err(|v| Error::invalid(format!("invalid filter 'dangling={v}'")))?;
        let until = match filters.get("until") {
            [] => None,
            [one] => {
                chrono::DateTime::from_timestamp(filter::parse_until(one, chrono::Utc::now())?, 0)
            }
            _ => return Err(Error::invalid("more than one until filter specified")),
        };
        let pairs = |key: &str| {
            let pair = |text: &String| match text.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (text.clone(), None),
            };
            filters.get(key).iter().map(pair).collect::<Vec<_>>()
        };
        let filter = caisson_image::PruneFilter {
            all: dangling == Some(false),
            until,
            labels: pairs("label"),
            without_labels: pairs("label!"),
        };
        let removal = self.store().prune(filter, self.images_in_use()).await?;
        let deleted = self.announce_removed(None, removal.removed);
        let mut attributes = BTreeMap::new();
        attributes.insert("reclaimed".to_owned(), removal.freed_bytes.to_string());
        self.publish(api::EventMessage::now("image", "prune", "", attributes));
        Ok(api::ImagesPruneResponse {
            images_deleted: (!deleted.is_empty()).then_some(deleted),
            space_reclaimed: removal.freed_bytes,
        })
    }

    /// `GET /system/df`; `kinds` chooses among `container`, `image`, `volume` and `build-cache`, empty means all.
    pub async fn disk_usage(&self, kinds: &[&str]) -> Result<api::DiskUsage> {
        let wanted = |kind: &str| kinds.is_empty() || kinds.contains(&kind);
        let mut usage = api::DiskUsage {
            build_cache: Some(Vec::new()),
            ..Default::default()
        };
        if wanted("container") {
            usage.containers = self.container_disk_usage().await?;
        }
        if wanted("image") {
            let store = self.store().disk_usage();
            usage.layers_size = view::signed(store.layers_bytes);
            let users = self.image_users();
            let shared: HashMap<String, u64> = store
                .images
                .iter()
                .map(|image| (image.id.to_string(), image.shared_bytes))
                .collect();
            usage.images = self
                .store()
                .list()
                .iter()
                .map(|image| view::summary(image))
                .collect();
            for row in &mut usage.images {
                row.shared_size = view::signed(shared.get(&row.id).copied().unwrap_or(0));
                let count = users.iter().filter(|user| user.image == row.id).count();
                row.containers = i64::try_from(count).unwrap_or(i64::MAX);
            }
        }
        Ok(usage)
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

/// Bytes of layers that an image has in common with another, by image id.
fn shared_sizes(store: &Store) -> HashMap<String, i64> {
    let usage = store.disk_usage();
    usage
        .images
        .iter()
        .map(|image| (image.id.to_string(), view::signed(image.shared_bytes)))
        .collect()
}

/// A configuration in the store's type; both speak Docker's JSON.
fn stored_config(config: &api::ContainerConfig) -> Result<caisson_image::RunConfig> {
    serde_json::to_value(config)
        .and_then(serde_json::from_value)
        .map_err(|e| Error::internal(format!("cannot convert an image configuration: {e}")))
}

fn platform(text: Option<&str>) -> Result<Option<caisson_image::Platform>> {
    Ok(text
        .filter(|t| !t.is_empty())
        .map(caisson_image::Platform::parse)
        .transpose()?)
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
