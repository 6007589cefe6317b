//! Making a container: everything is checked first, then recorded, then made; what fails half-way is taken back.

use std::path::PathBuf;
use std::sync::Arc;

use caisson_api as api;

use crate::container::{self, Dir};
use crate::db::{Durability, Row};
use crate::error::{Error, Result};
use crate::image_source::RunnableImage;
use crate::options::CreateOptions;
use crate::records::{self, Definition, State, View};
use crate::spec::files;
use crate::spec::idmap::IdMap;
use crate::spec::namespaces::Choice;
use crate::{Engine, Inner, admission, disk, init_layer, merge, names};

/// CPUs that may be asked for.
pub(crate) fn cpus_online() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Gives a name back unless the container was made.
struct NameGuard<'a> {
    inner: &'a Inner,
    name: String,
    id: String,
    armed: bool,
}

impl Drop for NameGuard<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.inner.registry().index.release(&self.name, &self.id);
        }
    }
}

impl Engine {
    /// `POST /containers/create`.
    pub async fn create_container(
        &self,
        options: CreateOptions,
    ) -> Result<api::ContainerCreateResponse> {
        let inner = &self.inner;
        let wanted = options
            .name
            .as_deref()
            .filter(|n| !n.is_empty())
            .map(names::validate)
            .transpose()?;
        let api::ContainerCreateBody {
            config,
            host_config,
            networking_config,
        } = options.request;
        let mut host = host_config.unwrap_or_default();
        if config.image.is_empty() {
            return Err(Error::invalid("config.Image is empty: no image was named"));
        }
        let isolation = inner.resolve_isolation(&host)?;
        let image = inner
            .image_source
            .runnable(
                &config.image,
                options.platform.as_deref().filter(|p| !p.is_empty()),
            )
            .await?;
        let mut config = merge::with_image(config, &image.config);
        let mut warnings = Vec::new();
        admission::check_config(&config)?;
        admission::check_networks(&host, networking_config.as_ref())?;
        admission::settle(inner, isolation, &mut host, &mut warnings)?;
        let namespaces = admission::check_host(inner, isolation, &config, &host, &mut warnings)?;
        let form = disk::form(inner, isolation);
        let disk_bytes = disk::size_bytes(form, &host, inner.config.default_disk_bytes)?;
        if namespaces.network == Choice::Host && config.hostname.is_empty() {
            config.hostname = host_name();
        }
        host.isolation = isolation.to_string();
        let mut command = merge::command(&config)?;
        let path = command.remove(0);
        let idmap = inner.idmap_for(&namespaces, &host)?;
        if config.volumes.as_ref().is_some_and(|v| !v.is_empty()) {
            tracing::debug!("the image's volumes are kept in the container's own file system");
        }
        let definition = Definition {
            created: api::Timestamp::now(),
            isolation,
            image_id: image.id.clone(),
            platform: if image.os.is_empty() {
                "linux".into()
            } else {
                image.os.clone()
            },
            layers: inner.layers_for(image).await?,
            path,
            args: command,
            config,
            host,
            idmap,
        };
        let id = names::new_id();
        let name = {
            let mut registry = inner.registry();
            match wanted {
                Some(name) => {
                    registry.index.reserve(&name, &id)?;
                    name
                }
                None => registry.index.reserve_random(&id),
            }
        };
        let mut guard = NameGuard {
            inner,
            name: name.clone(),
            id: id.clone(),
            armed: true,
        };
        let view = self
            .record_and_make(&id, name, definition, disk_bytes)
            .await?;
        guard.armed = false;
        if inner
            .image_source
            .size_bytes(&view.definition.image_id)
            .is_none()
        {
            // Removed since we found it.
            inner
                .delete_dir(Dir::new(&inner.config.data_root, &id).path().to_path_buf())
                .await?;
            inner.db.delete(id, Durability::Written).await?;
            guard.armed = true;
            return Err(Error::not_found(format!(
                "No such image: {}",
                view.definition.config.image
            )));
        }
        let view_for_event = view.clone();
        let handle = container::spawn(inner, view, None);
        inner.registry().containers.insert(id.clone(), handle);
        inner.container_event(&view_for_event, "create", &[]);
        Ok(api::ContainerCreateResponse { id, warnings })
    }

    async fn record_and_make(
        &self,
        id: &str,
        name: String,
        definition: Definition,
        disk_bytes: Option<u64>,
    ) -> Result<View> {
        let inner = &self.inner;
        let durability = inner.durability(&definition);
        let state = State::default();
        let row = Row {
            id: id.into(),
            name: name.clone(),
            created_ns: definition.created.unix_nanos(),
            definition: records::to_json(&definition)?,
            state: records::to_json(&state)?,
        };
        inner.db.insert(row, durability).await?;
        let dir = Dir::new(&inner.config.data_root, id);
        let (config, host, made_id) = (
            definition.config.clone(),
            definition.host.clone(),
            id.to_string(),
        );
        let (target, idmap) = (dir.clone(), definition.idmap);
        let made = tokio::task::spawn_blocking(move || {
            make_dir(&target, &config, &host, &made_id, idmap)?;
            match disk_bytes {
                Some(bytes) => disk::make(&target, bytes, durability),
                None => make_overlay(&target),
            }
        })
        .await
        .map_err(|e| Error::internal(format!("making the container's directory failed: {e}")))
        .and_then(|r| r);
        if let Err(e) = made {
            let _ = inner.delete_dir(dir.path().to_path_buf()).await;
            inner.db.delete(id.into(), Durability::Written).await?;
            return Err(e);
        }
        Ok(View {
            id: id.into(),
            name,
            definition: Arc::new(definition),
            state,
            pid: 0,
            health: None,
            exits: 0,
            removed: false,
        })
    }
}

fn make_dir(
    dir: &Dir,
    config: &api::ContainerConfig,
    host: &api::HostConfig,
    id: &str,
    idmap: Option<IdMap>,
) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    let fail = |path: &std::path::Path, e: std::io::Error| {
        Error::io(format!("cannot create {}", path.display()), &e)
    };
    std::fs::DirBuilder::new()
        .mode(0o710)
        .create(dir.path())
        .map_err(|e| fail(dir.path(), e))?;
    let own = dir.own_files();
    // Bound as they are, not shifted like the root file system: they belong to the container's root from the start.
    let (uid, gid) = idmap.map_or((None, None), |m| (Some(m.first_uid), Some(m.first_gid)));
    let write = |path: &std::path::Path, text: String| -> Result<()> {
        std::fs::write(path, text).map_err(|e| fail(path, e))?;
        std::os::unix::fs::chown(path, uid, gid).map_err(|e| fail(path, e))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
            .map_err(|e| fail(path, e))
    };
    write(&own.hostname, format!("{}\n", files::hostname(config, id)))?;
    write(&own.hosts, files::hosts(config, host, id)?)?;
    let resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    write(&own.resolv_conf, files::resolv_conf(&resolv, host))
}

/// The directories that the host stacks on the image's.
fn make_overlay(dir: &Dir) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    for (path, mode) in [(dir.upper(), 0o755), (dir.work(), 0o700)] {
        std::fs::DirBuilder::new()
            .mode(mode)
            .create(&path)
            .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)))
            .map_err(|e| Error::io(format!("cannot create {}", path.display()), &e))?;
    }
    Ok(())
}

/// What the host calls itself.
fn host_name() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

impl Inner {
    /// What a container's overlay is stacked on, topmost first. Those beneath the data root are recorded relative to it, so
    /// that it may be moved.
    async fn layers_for(&self, image: RunnableImage) -> Result<Vec<PathBuf>> {
        let root = self.config.data_root.clone();
        let task = tokio::task::spawn_blocking(move || {
            let mut layers = image.layers;
            if let Some(init) = init_layer::for_image(&root, &layers)? {
                layers.insert(0, init);
            }
            Ok(layers
                .iter()
                .map(|l| l.strip_prefix(&root).unwrap_or(l).to_path_buf())
                .collect())
        });
        task.await
            .map_err(|e| Error::internal(format!("looking into the image failed: {e}")))?
    }

    /// How safely a container's records are written: one that is to vanish anyway need not survive a power cut.
    pub(crate) fn durability(&self, definition: &Definition) -> Durability {
        if definition.host.auto_remove {
            Durability::Written
        } else {
            Durability::Flushed
        }
    }
}
