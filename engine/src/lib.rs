//! Containers and images: orchestration and persistence.
//!
//! [`Engine`] is what the daemon serves over HTTP. It owns the records (SQLite), turns Docker's configuration into an OCI
//! runtime spec and drives [`caisson_runtime::Runtime`]. Its methods are named after Docker's verbs and take what Docker's
//! requests say; answers are the shapes of `caisson-api`.
//!
//! ```text
//! Engine ─▶ create / lifecycle / exec / list / inspect / …      one file a verb or family of verbs
//!    │           │ Message                   ▲ View
//!    │           ▼                           │
//!    │       container::Actor (one task a container) ─▶ spec (pure) ─▶ runtime::{Runtime, Sandbox}
//!    └─▶ db (one thread), events, images
//! ```
//!
//! Must not know: HTTP, KVM, namespaces.

mod admission;
mod attachment;
mod commit;
mod container;
mod copy;
mod create;
mod db;
mod disk;
mod error;
mod events;
mod exec;
mod health;
mod image_source;
mod images;
mod init_layer;
mod inspect;
mod lifecycle;
mod list;
mod logs;
mod merge;
mod names;
mod open;
mod options;
mod prune;
mod records;
mod restart;
mod rootfs;
pub mod seccomp;
mod signals;
mod size;
mod spec;
mod stats;
#[cfg(test)]
mod test_support;
mod wall;

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use caisson_api as api;
use caisson_runtime::{Isolation, Runtimes};
use futures_util::Stream;

pub use caisson_runtime as runtime;
pub use error::{Error, ErrorKind, Result};
pub use images::*;
pub use options::*;
pub use size::parse_bytes;

/// The engine; cheap to clone, all clones are the same engine.
#[derive(Clone)]
pub struct Engine {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) db: db::Db,
    pub(crate) runtimes: Runtimes,
    pub(crate) images: images::Images,
    pub(crate) image_source: Arc<dyn image_source::ImageSource>,
    pub(crate) events: events::Events,
    pub(crate) execs: exec::Table,
    registry: Mutex<Registry>,
    /// The daemon's `--userns-remap`.
    pub(crate) idmap: Option<spec::idmap::IdMap>,
    pub(crate) host_cgroup_v2: bool,
    _locks: Vec<open::Lock>,
}

/// Every container, by id, and who holds which name.
#[derive(Default)]
pub(crate) struct Registry {
    pub(crate) index: names::Index,
    pub(crate) containers: HashMap<String, Arc<container::Container>>,
}

/// A stream of things that the engine reports.
pub type Feed<T> = Pin<Box<dyn Stream<Item = T> + Send>>;

impl Inner {
    pub(crate) fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry
            .lock()
            .expect("nothing panics while it holds the registry")
    }

    /// The container that a user means.
    pub(crate) fn container(&self, typed: &str) -> Result<Arc<container::Container>> {
        let registry = self.registry();
        let id = registry.index.resolve(typed)?;
        registry
            .containers
            .get(&id)
            .cloned()
            .ok_or_else(|| Error::not_found(format!("No such container: {typed}")))
    }

    /// Every container's view, newest first.
    pub(crate) fn views(&self) -> Vec<Arc<records::View>> {
        let mut all: Vec<_> = self
            .registry()
            .containers
            .values()
            .map(|c| c.view())
            .collect();
        all.sort_by(|a, b| (b.definition.created, &b.id).cmp(&(a.definition.created, &a.id)));
        all
    }

    /// Publishes an event of a container.
    pub(crate) fn container_event(
        &self,
        view: &records::View,
        action: &str,
        more: &[(&str, String)],
    ) {
        let mut attributes: BTreeMap<String, String> = view.event_attributes();
        attributes.extend(more.iter().map(|(k, v)| (k.to_string(), v.clone())));
        self.events.publish(api::EventMessage::now(
            "container",
            action,
            &view.id,
            attributes,
        ));
    }
}

impl Engine {
    /// Opens the engine on its directories and finds every container again. Fails with [`ErrorKind::Conflict`] when another
    /// daemon uses the same directories.
    pub async fn open(config: Config, runtimes: Runtimes) -> Result<Engine> {
        open::open(config, runtimes).await
    }

    /// The daemon ends: stops containers unless `live_restore`, writes everything down.
    pub async fn shutdown(&self) {
        self.close().await;
    }

    /// The configuration it was opened with.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Isolations that work on this host.
    pub fn isolations(&self) -> Vec<Isolation> {
        self.inner.runtimes.available()
    }

    /// Publishes an event.
    pub fn publish(&self, event: api::EventMessage) {
        self.inner.events.publish(event);
    }

    /// How many listen to events, for `GET /info`.
    pub fn event_listeners(&self) -> usize {
        self.inner.events.listeners()
    }

    /// `GET /events`.
    pub async fn events(&self, options: EventsOptions) -> Result<Feed<api::EventMessage>> {
        self.inner.events.subscribe(options)
    }

    /// Who uses which image: for `rmi` and `image prune`.
    pub fn image_users(&self) -> Vec<ImageUser> {
        let used = |v: Arc<records::View>| ImageUser {
            container: v.id.clone(),
            image: v.definition.image_id.clone(),
            reference: v.definition.config.image.clone(),
            running: v.state.status.is_up(),
        };
        self.inner.views().into_iter().map(used).collect()
    }

    /// How many containers there are, for `GET /info`: (running, paused, stopped).
    pub fn counts(&self) -> (usize, usize, usize) {
        let mut counts = (0, 0, 0);
        for view in self.inner.views() {
            match view.state.status {
                records::Status::Running | records::Status::Restarting => counts.0 += 1,
                records::Status::Paused => counts.1 += 1,
                _ => counts.2 += 1,
            }
        }
        counts
    }
}

/// The filter for a process with this bounding set: Docker's default, or a profile of the user's.
pub(crate) fn seccomp_for(
    profile: Option<&str>,
    bounding: &std::collections::BTreeSet<spec::capabilities::CapabilityOrd>,
) -> Result<Option<oci_spec::runtime::LinuxSeccomp>> {
    let bounding = bounding.iter().map(|c| c.0).collect();
    match profile {
        None => seccomp::default_profile(&bounding).map(Some),
        Some(json) => seccomp::load_profile(json, &bounding),
    }
}
