//! `GET /containers/json`: which containers, in which words.
//!
//! Must not know: how a container comes to its state.

use std::sync::Arc;
use std::time::Duration;

use caisson_api as api;
use chrono::{DateTime, Utc};

use crate::error::{Error, Result};
use crate::options::ListOptions;
use crate::records::{Status, View};
use crate::spec::mounts;
use crate::{Engine, Inner};

const KNOWN_FILTERS: [&str; 18] = [
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "label!",
    "name",
    "network",
    "publish",
    "runtime",
    "since",
    "status",
    "volume",
    "all",
];

impl Engine {
    /// `GET /containers/json`.
    pub async fn list(&self, options: ListOptions) -> Result<Vec<api::ContainerSummary>> {
        let query = Query::read(&self.inner, options)?;
        let chosen: Vec<Arc<View>> = query.choose(self.inner.views());
        let now = Utc::now();
        let mut rows = Vec::with_capacity(chosen.len());
        for view in chosen {
            let mut row = self.inner.summary(&view, now);
            if query.size {
                let (rw, root) = self.sizes(&view).await?;
                row.size_rw = Some(rw);
                row.size_root_fs = Some(root);
            }
            rows.push(row);
        }
        Ok(rows)
    }

    /// The containers part of `GET /system/df`.
    pub async fn container_disk_usage(&self) -> Result<Vec<api::ContainerSummary>> {
        self.list(ListOptions {
            all: true,
            size: true,
            ..ListOptions::default()
        })
        .await
    }
}

/// A list request, its names resolved.
struct Query {
    all: bool,
    limit: Option<usize>,
    size: bool,
    filters: api::Filters,
    exited: Vec<i32>,
    before: Option<(api::Timestamp, String)>,
    since: Option<(api::Timestamp, String)>,
    ancestors: Option<Vec<String>>,
    names: Vec<Name>,
}

/// A `name` filter: a part of the name, or with `^` and `$` its ends.
struct Name {
    text: String,
    from_start: bool,
    to_end: bool,
}

impl Name {
    fn read(text: &str) -> Name {
        let (text, from_start) = text.strip_prefix('^').map_or((text, false), |t| (t, true));
        let (text, to_end) = text.strip_suffix('$').map_or((text, false), |t| (t, true));
        Name {
            text: text.into(),
            from_start,
            to_end,
        }
    }

    fn fits(&self, name: &str) -> bool {
        // Docker matches with and without the leading slash.
        let slashed = format!("/{name}");
        [name, slashed.as_str()]
            .into_iter()
            .any(|n| match (self.from_start, self.to_end) {
                (true, true) => n == self.text,
                (true, false) => n.starts_with(&self.text),
                (false, true) => n.ends_with(&self.text),
                (false, false) => n.contains(&self.text),
            })
    }
}

impl Query {
    fn read(inner: &Inner, options: ListOptions) -> Result<Query> {
        let filters = options.filters;
        if let Some(unknown) = filters.unknown_key(&KNOWN_FILTERS) {
            return Err(Error::invalid(format!("invalid filter '{unknown}'")));
        }
        for status in filters.get("status") {
            if ![
                "created",
                "running",
                "paused",
                "restarting",
                "removing",
                "exited",
                "dead",
            ]
            .contains(&status.as_str())
            {
                return Err(Error::invalid(format!("invalid filter 'status={status}'")));
            }
        }
        for health in filters.get("health") {
            if !["none", "starting", "healthy", "unhealthy"].contains(&health.as_str()) {
                return Err(Error::invalid(format!("invalid filter 'health={health}'")));
            }
        }
        let mut exited = Vec::new();
        for code in filters.get("exited") {
            exited.push(
                code.parse()
                    .map_err(|_| Error::invalid(format!("invalid filter 'exited={code}'")))?,
            );
        }
        let moment = |key: &str| -> Result<Option<(api::Timestamp, String)>> {
            let Some(name) = filters.get(key).first() else {
                return Ok(None);
            };
            let view = inner.container(name)?.view();
            Ok(Some((view.definition.created, view.id.clone())))
        };
        let (before, since) = (moment("before")?, moment("since")?);
        let ancestors = filters
            .contains("ancestor")
            .then(|| filters.get("ancestor").to_vec());
        let names = filters.get("name").iter().map(|n| Name::read(n)).collect();
        let all = options.all
            || options.limit.is_some_and(|l| l > 0)
            || filters.contains("status")
            || !exited.is_empty();
        Ok(Query {
            all: all || before.is_some() || since.is_some(),
            limit: options.limit.filter(|l| *l > 0),
            size: options.size,
            filters,
            exited,
            before,
            since,
            ancestors,
            names,
        })
    }

    fn choose(&self, views: Vec<Arc<View>>) -> Vec<Arc<View>> {
        let chosen = views.into_iter().filter(|v| self.admits(v));
        match self.limit {
            Some(limit) => chosen.take(limit).collect(),
            None => chosen.collect(),
        }
    }

    fn admits(&self, view: &View) -> bool {
        let (definition, state) = (&view.definition, &view.state);
        let f = &self.filters;
        let at = |v: &View| (v.definition.created, v.id.clone());
        let empty = Default::default();
        (self.all || state.status.is_up())
            && self.before.as_ref().is_none_or(|b| at(view) < *b)
            && self.since.as_ref().is_none_or(|s| at(view) > *s)
            && (self.exited.is_empty()
                || (self.exited.contains(&state.exit_code)
                    && !state.status.is_up()
                    && state.status != Status::Created))
            && f.admits("status", |s| s == state.status.as_str())
            && f.admits("id", |id| view.id.starts_with(id))
            && (self.names.is_empty() || self.names.iter().any(|n| n.fits(&view.name)))
            && f.admits_labels(definition.config.labels.as_ref().unwrap_or(&empty))
            && f.admits("health", |h| {
                h == view.health.as_ref().map_or("none", |s| s.status.as_str())
            })
            && f.admits("isolation", |i| {
                i == definition.isolation.to_string() || i == "default"
            })
            && f.admits("network", |n| n == network_name(&definition.host))
            && f.admits("runtime", |r| r == definition.host.runtime)
            && f.admits("is-task", |t| t == "false" || t == "0")
            && f.admits("expose", |p| {
                definition
                    .config
                    .exposed_ports
                    .iter()
                    .flatten()
                    .any(|(e, _)| port_fits(e, p))
            })
            && f.admits("publish", |_| false)
            && f.admits("volume", |v| {
                mounts::requested(&definition.host)
                    .unwrap_or_default()
                    .iter()
                    .any(|m| {
                        let m = m.to_api();
                        m.destination == v || m.source == v
                    })
            })
            && self
                .ancestors
                .as_ref()
                .is_none_or(|all| all.iter().any(|a| descends(definition, a)))
    }
}

fn port_fits(exposed: &str, wanted: &str) -> bool {
    exposed == wanted || exposed.strip_suffix("/tcp") == Some(wanted)
}

/// `ancestor`: an image by reference or id. A child image made from it does not count here, its layers do not tell names.
fn descends(definition: &crate::records::Definition, wanted: &str) -> bool {
    let with_tag = |n: &str| {
        if n.rsplit('/').next().is_some_and(|l| l.contains(':')) {
            n.into()
        } else {
            format!("{n}:latest")
        }
    };
    let id = wanted.strip_prefix("sha256:").unwrap_or(wanted);
    let hex = definition
        .image_id
        .strip_prefix("sha256:")
        .unwrap_or(&definition.image_id);
    with_tag(&definition.config.image) == with_tag(wanted) || (id.len() >= 4 && hex.starts_with(id))
}

pub(crate) fn network_name(host: &api::HostConfig) -> &str {
    match host.network_mode.as_str() {
        "" | "default" => "bridge",
        mode => mode,
    }
}

impl Inner {
    fn summary(&self, view: &View, now: DateTime<Utc>) -> api::ContainerSummary {
        let definition = &view.definition;
        let mut command = definition.path.clone();
        for arg in &definition.args {
            command.push(' ');
            if arg.contains(' ') {
                command.push_str(&format!("'{arg}'"));
            } else {
                command.push_str(arg);
            }
        }
        let network = network_name(&definition.host).to_string();
        let mut networks = std::collections::BTreeMap::new();
        if !network.starts_with("container:") {
            networks.insert(network, api::EndpointSettings::default());
        }
        api::ContainerSummary {
            id: view.id.clone(),
            names: vec![format!("/{}", view.name)],
            image: definition.config.image.clone(),
            image_id: definition.image_id.clone(),
            command,
            created: definition.created.unix_seconds(),
            ports: exposed(&definition.config),
            labels: definition.config.labels.clone().unwrap_or_default(),
            state: view.state.status.as_str().into(),
            status: status_text(view, now),
            host_config: api::SummaryHostConfig {
                network_mode: definition.host.network_mode.clone(),
                annotations: definition.host.annotations.clone().unwrap_or_default(),
                isolation: definition.isolation.to_string(),
            },
            network_settings: api::SummaryNetworkSettings { networks },
            mounts: crate::inspect::mount_points(&definition.host),
            ..api::ContainerSummary::default()
        }
    }
}

/// Exposed ports, unpublished: `80/tcp`.
fn exposed(config: &api::ContainerConfig) -> Vec<api::Port> {
    let mut all = Vec::new();
    for (port, _) in config.exposed_ports.iter().flatten() {
        let (range, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        if let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) {
            for private_port in first..=last {
                all.push(api::Port {
                    private_port,
                    protocol: protocol.into(),
                    ..api::Port::default()
                });
            }
        }
    }
    all
}

/// `Up 3 minutes (healthy)`, `Exited (0) 2 hours ago`, `Created`.
fn status_text(view: &View, now: DateTime<Utc>) -> String {
    let since = |t: api::Timestamp| humane((now - t.0).to_std().unwrap_or_default());
    let state = &view.state;
    match state.status {
        Status::Running | Status::Paused => {
            let up = since(state.started_at);
            if state.status == Status::Paused {
                return format!("Up {up} (Paused)");
            }
            match view.health.as_ref().map(|h| h.status.as_str()) {
                Some("starting") => format!("Up {up} (health: starting)"),
                Some(health) if health != "none" => format!("Up {up} ({health})"),
                _ => format!("Up {up}"),
            }
        }
        Status::Restarting => format!(
            "Restarting ({}) {} ago",
            state.exit_code,
            since(state.finished_at)
        ),
        Status::Removing => "Removal In Progress".into(),
        Status::Dead => "Dead".into(),
        Status::Created => "Created".into(),
        Status::Exited if state.finished_at.is_zero() => "Created".into(),
        Status::Exited => format!(
            "Exited ({}) {} ago",
            state.exit_code,
            since(state.finished_at)
        ),
    }
}

/// Docker's words for how long.
fn humane(d: Duration) -> String {
    let seconds = d.as_secs();
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match () {
        () if seconds < 1 => "Less than a second".into(),
        () if seconds == 1 => "1 second".into(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".into(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".into(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", hours / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::view;

    #[test]
    fn times_in_dockers_words() {
        let words = |s| humane(Duration::from_secs(s));
        assert_eq!(words(0), "Less than a second");
        assert_eq!(words(59), "59 seconds");
        assert_eq!(words(60), "About a minute");
        assert_eq!(words(185), "3 minutes");
        assert_eq!(words(3600), "About an hour");
        assert_eq!(words(3 * 86400), "3 days");
        assert_eq!(words(15 * 86400), "2 weeks");
    }

    fn query(json: &str, all: bool) -> Query {
        let filters = api::Filters::parse(json).unwrap();
        let exited = filters
            .get("exited")
            .iter()
            .map(|c| c.parse().unwrap())
            .collect::<Vec<_>>();
        let names = filters.get("name").iter().map(|n| Name::read(n)).collect();
        let ancestors = filters
            .contains("ancestor")
            .then(|| filters.get("ancestor").to_vec());
        Query {
            all: all || filters.contains("status") || !exited.is_empty(),
            limit: None,
            size: false,
            filters,
            exited,
            before: None,
            since: None,
            ancestors,
            names,
        }
    }

    #[test]
    fn filters() {
        let running = view("running");
        let mut exited = view("exited");
        exited.state.exit_code = 3;
        assert!(query("", false).admits(&running) && !query("", false).admits(&exited));
        assert!(query("", true).admits(&exited));
        assert!(query(r#"{"status":["exited"]}"#, false).admits(&exited));
        assert!(query(r#"{"exited":["3"]}"#, false).admits(&exited));
        assert!(!query(r#"{"exited":["0"]}"#, false).admits(&exited));
        for yes in [
            r#"{"name":["es"]}"#,
            r#"{"name":["^test$"]}"#,
            r#"{"name":["^/test$"]}"#,
            r#"{"id":["0123"]}"#,
            r#"{"label":["tier=web"]}"#,
            r#"{"ancestor":["busybox"]}"#,
            r#"{"ancestor":["busybox:latest"]}"#,
            r#"{"ancestor":["abcdef"]}"#,
            r#"{"health":["none"]}"#,
            r#"{"isolation":["container"]}"#,
            r#"{"network":["bridge"]}"#,
        ] {
            assert!(query(yes, false).admits(&running), "{yes}");
        }
        for no in [
            r#"{"name":["^es"]}"#,
            r#"{"id":["123"]}"#,
            r#"{"label":["tier=db"]}"#,
            r#"{"ancestor":["busybo"]}"#,
            r#"{"isolation":["vm"]}"#,
            r#"{"publish":["80"]}"#,
        ] {
            assert!(!query(no, false).admits(&running), "{no}");
        }
    }
}
