//! `GET /containers/ID/json`, and how much disk a container uses.
//!
//! Must not know: how a container comes to its state.

use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use caisson_api as api;
use caisson_runtime::RootfsForm;

use crate::error::{Error, Result};
use crate::list::network_name;
use crate::logs::Driver;
use crate::open::dir_of;
use crate::records::{Status, View};
use crate::spec::mounts;
use crate::spec::security::Security;
use crate::{Engine, disk};

impl Engine {
    /// `GET /containers/ID/json`.
    pub async fn inspect(&self, id: &str, size: bool) -> Result<api::ContainerInspect> {
        let view = self.inner.container(id)?.view();
        let dir = dir_of(&self.inner, &view.id);
        let definition = &view.definition;
        let own = dir.own_files();
        let text = |path: &Path| path.display().to_string();
        let keeps_log = Driver::read(&definition.host.log_config).is_ok_and(|d| d != Driver::None);
        let (size_rw, size_root_fs) = if size {
            let (rw, root) = self.sizes(&view).await?;
            (Some(rw), Some(root))
        } else {
            (None, None)
        };
        let layers = disk::layers(&self.inner, &view);
        let layers: Vec<String> = layers.iter().map(|l| text(l)).collect();
        let mut data = BTreeMap::from([("LowerDir".to_string(), layers.join(":"))]);
        let driver = match disk::form(&self.inner, definition.isolation) {
            RootfsForm::Overlay => {
                data.insert("UpperDir".to_string(), text(&dir.upper()));
                data.insert("WorkDir".to_string(), text(&dir.work()));
                data.insert("MergedDir".to_string(), String::new());
                "overlay2"
            }
            RootfsForm::Block => {
                data.insert("Disk".to_string(), text(&dir.disk()));
                "block"
            }
        };
        let execs = self.inner.execs.of(&view.id);
        Ok(api::ContainerInspect {
            id: view.id.clone(),
            created: definition.created,
            path: definition.path.clone(),
            args: definition.args.clone(),
            state: state(&view),
            image: definition.image_id.clone(),
            resolv_conf_path: text(&own.resolv_conf),
            hostname_path: text(&own.hostname),
            hosts_path: text(&own.hosts),
            log_path: if keeps_log {
                text(&dir.log())
            } else {
                String::new()
            },
            name: format!("/{}", view.name),
            restart_count: i64::from(view.state.restart_count),
            driver: driver.into(),
            platform: definition.platform.clone(),
            app_armor_profile: apparmor(&definition.host),
            exec_ids: Some(execs).filter(|e| !e.is_empty()),
            host_config: definition.host.clone(),
            graph_driver: api::GraphDriver {
                data: Some(data),
                name: driver.into(),
            },
            size_rw,
            size_root_fs,
            mounts: mount_points(&definition.host),
            config: config(&view),
            network_settings: networks(&view),
            ..api::ContainerInspect::default()
        })
    }

    /// Bytes the container wrote, and those with its image's.
    pub(crate) async fn sizes(&self, view: &View) -> Result<(i64, i64)> {
        let dir = dir_of(&self.inner, &view.id);
        let layers = disk::layers(&self.inner, view);
        let form = disk::form(&self.inner, view.definition.isolation);
        let known = self
            .inner
            .image_source
            .size_bytes(&view.definition.image_id);
        let task = tokio::task::spawn_blocking(move || {
            let rw = match form {
                RootfsForm::Overlay => bytes_below(&dir.upper()),
                RootfsForm::Block => disk::written_bytes(&dir.disk()),
            };
            let lower = known.unwrap_or_else(|| layers.iter().map(|l| bytes_below(l)).sum());
            (rw, rw.saturating_add(lower))
        });
        let (rw, root) = task
            .await
            .map_err(|e| Error::internal(format!("counting sizes failed: {e}")))?;
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        Ok((signed(rw), signed(root)))
    }
}

/// Apparent bytes of all files; one with several names counts once.
fn bytes_below(dir: &Path) -> u64 {
    let mut seen = HashSet::new();
    let mut total = 0;
    let mut todo = vec![dir.to_path_buf()];
    while let Some(dir) = todo.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                todo.push(entry.path());
            } else if meta.is_file() && (meta.nlink() == 1 || seen.insert((meta.dev(), meta.ino())))
            {
                total += meta.len();
            }
        }
    }
    total
}

fn state(view: &View) -> api::ContainerState {
    let state = &view.state;
    let status = state.status;
    api::ContainerState {
        status: status.as_str().into(),
        running: status.is_up(),
        paused: status == Status::Paused,
        restarting: status == Status::Restarting,
        oom_killed: state.oom_killed,
        dead: status == Status::Dead,
        pid: i64::from(view.pid),
        exit_code: i64::from(state.exit_code),
        error: state.error.clone(),
        started_at: state.started_at,
        finished_at: state.finished_at,
        health: view.health.clone(),
    }
}

fn apparmor(host: &api::HostConfig) -> String {
    let options = host.security_opt.as_deref().unwrap_or_default();
    Security::read(options, host.privileged)
        .ok()
        .and_then(|s| s.apparmor)
        .unwrap_or_default()
}

fn config(view: &View) -> api::ContainerConfig {
    let mut config = view.definition.config.clone();
    if config.hostname.is_empty() && !view.definition.host.uts_mode.starts_with("host") {
        config.hostname = crate::names::short(&view.id).into();
    }
    config
}

fn networks(view: &View) -> api::NetworkSettings {
    let host = &view.definition.host;
    let mut networks = BTreeMap::new();
    let name = network_name(host);
    if !name.starts_with("container:") {
        networks.insert(name.to_string(), api::EndpointSettings::default());
    }
    let ports = view
        .definition
        .config
        .exposed_ports
        .iter()
        .flatten()
        .map(|(p, _)| (p.clone(), None))
        .collect();
    let sandbox_key = match view.pid {
        0 => String::new(),
        pid => format!("/proc/{pid}/ns/net"),
    };
    api::NetworkSettings {
        networks,
        ports,
        sandbox_key,
        ..api::NetworkSettings::default()
    }
}

/// What is mounted, as lists and inspect show it.
pub(crate) fn mount_points(host: &api::HostConfig) -> Vec<api::MountPoint> {
    let requested = mounts::requested(host).unwrap_or_default();
    // Docker shows `--tmpfs` in the host configuration alone.
    let by_flag = |m: &mounts::Requested| {
        host.tmpfs
            .iter()
            .flatten()
            .any(|(target, _)| Path::new(target) == m.target)
    };
    requested
        .iter()
        .filter(|m| !by_flag(m))
        .map(mounts::Requested::to_api)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_count_hard_links_once() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub/a"), vec![0; 1000]).unwrap();
        std::fs::hard_link(dir.path().join("sub/a"), dir.path().join("b")).unwrap();
        assert_eq!(bytes_below(dir.path()), 1000);
        assert_eq!(bytes_below(&dir.path().join("none")), 0);
    }
}
