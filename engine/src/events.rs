//! What happened, to whoever listens: the last 256 events are remembered, live ones are broadcast.
//!
//! Must not know: who makes events.

use std::collections::VecDeque;
use std::sync::Mutex;

use caisson_api as api;
use futures_util::StreamExt as _;
use tokio::sync::broadcast;

use crate::Feed;
use crate::error::{Error, Result};
use crate::options::EventsOptions;

const REMEMBERED: usize = 256;
const KNOWN_FILTERS: [&str; 15] = [
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
    "isolation",
];

/// The bus.
pub(crate) struct Events {
    past: Mutex<VecDeque<api::EventMessage>>,
    live: broadcast::Sender<api::EventMessage>,
}

impl Events {
    pub(crate) fn new() -> Self {
        Events {
            past: Mutex::default(),
            live: broadcast::channel(1024).0,
        }
    }

    /// Tells everybody.
    pub(crate) fn publish(&self, event: api::EventMessage) {
        tracing::debug!(
            kind = event.kind,
            action = event.action,
            id = event.actor.id,
            "event"
        );
        let mut past = self
            .past
            .lock()
            .expect("nothing panics while it holds the events");
        if past.len() == REMEMBERED {
            past.pop_front();
        }
        past.push_back(event.clone());
        // Sent while the lock is held, so that a subscriber sees each event once: in the past or live.
        let _ = self.live.send(event);
    }

    /// How many listen.
    pub(crate) fn listeners(&self) -> usize {
        self.live.receiver_count()
    }

    /// Past events since a time, then live ones until a time.
    pub(crate) fn subscribe(&self, options: EventsOptions) -> Result<Feed<api::EventMessage>> {
        if let Some(unknown) = options.filters.unknown_key(&KNOWN_FILTERS) {
            return Err(Error::invalid(format!("invalid filter '{unknown}'")));
        }
        let filters = options.filters;
        let (since, until) = (options.since, options.until);
        let nanos = |t: chrono::DateTime<chrono::Utc>| t.timestamp_nanos_opt().unwrap_or(i64::MAX);
        let (past, live) = {
            let past = self
                .past
                .lock()
                .expect("nothing panics while it holds the events");
            let live = self.live.subscribe();
            let wanted: Vec<_> = match since.or(until.filter(|u| *u <= chrono::Utc::now())) {
                Some(_) => past
                    .iter()
                    .filter(|e| since.is_none_or(|s| e.time_nano >= nanos(s)))
                    .filter(|e| until.is_none_or(|u| e.time_nano <= nanos(u)))
                    .filter(|e| admits(&filters, e))
                    .cloned()
                    .collect(),
                None => Vec::new(),
            };
            (wanted, live)
        };
        let past = futures_util::stream::iter(past);
        let remaining = until.map(|u| (u - chrono::Utc::now()).to_std().unwrap_or_default());
        if remaining.is_some_and(|r| r.is_zero()) {
            return Ok(past.boxed());
        }
        let deadline = remaining.map(|r| tokio::time::Instant::now() + r);
        let live =
            futures_util::stream::unfold((live, filters), move |(mut live, filters)| async move {
                loop {
                    let received = match deadline {
                        Some(at) => tokio::time::timeout_at(at, live.recv()).await.ok()?,
                        None => live.recv().await,
                    };
                    match received {
                        Ok(event) if admits(&filters, &event) => {
                            return Some((event, (live, filters)));
                        }
                        Ok(_) => {}
                        Err(broadcast::error::RecvError::Lagged(lost)) => {
                            tracing::warn!(lost, "a listener to the events is too slow");
                        }
                        Err(broadcast::error::RecvError::Closed) => return None,
                    }
                }
            });
        Ok(past.chain(live).boxed())
    }
}

/// Docker's rules: within a key any value, between keys all.
fn admits(filters: &api::Filters, e: &api::EventMessage) -> bool {
    let attribute = |name: &str| e.actor.attributes.get(name).map_or("", String::as_str);
    let matches_id = |kind: &str, names: &[&str]| {
        filters.admits(kind, |v| {
            let v = v.strip_prefix('/').unwrap_or(v);
            (e.kind == kind && (e.actor.id == v || (v.len() >= 4 && e.actor.id.starts_with(v))))
                || names.iter().any(|n| {
                    !attribute(n).is_empty()
                        && attribute(n) == v
                        && (e.kind == kind || *n != "name")
                })
        })
    };
    // `health_status` alone stands for `health_status: healthy` and its like, as do `exec_create` and `exec_start`.
    filters.admits("event", |v| {
        e.action == v || e.action.split(':').next() == Some(v)
    }) && filters.admits("type", |v| e.kind == v)
        && filters.admits("scope", |v| e.scope == v)
        && matches_id("container", &["name", "container"])
        && filters.admits("image", |v| match e.kind.as_str() {
            "image" => {
                e.actor.id == v
                    || attribute("name") == v
                    || without_tag(&e.actor.id) == v
                    || without_tag(attribute("name")) == v
            }
            _ => {
                attribute("image") == v
                    || (!attribute("image").is_empty() && without_tag(attribute("image")) == v)
            }
        })
        && matches_id("network", &["name"])
        && matches_id("volume", &["name"])
        && matches_id("daemon", &["name"])
        && filters.admits("isolation", |v| attribute("isolation") == v)
        && filters.admits_labels(&e.actor.attributes)
}

fn without_tag(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((bare, tag)) if !tag.contains('/') => bare,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(action: &str, name: &str) -> api::EventMessage {
        let attributes = [
            ("name".into(), name.into()),
            ("image".into(), "alpine:3".into()),
            ("tier".into(), "web".into()),
        ]
        .into();
        api::EventMessage::now("container", action, "0123456789abcdef", attributes)
    }

    fn filters(json: &str) -> api::Filters {
        api::Filters::parse(json).unwrap()
    }

    #[test]
    fn filters_admit() {
        let e = event("health_status: healthy", "web");
        for yes in [
            r#"{}"#,
            r#"{"event":["health_status"]}"#,
            r#"{"event":["health_status: healthy"]}"#,
            r#"{"container":["web"]}"#,
            r#"{"container":["0123456789ab"]}"#,
            r#"{"image":["alpine"]}"#,
            r#"{"image":["alpine:3"]}"#,
            r#"{"type":["container"],"label":["tier=web"]}"#,
        ] {
            assert!(admits(&filters(yes), &e), "{yes}");
        }
        for no in [
            r#"{"event":["start"]}"#,
            r#"{"container":["we"]}"#,
            r#"{"image":["alpin"]}"#,
            r#"{"type":["image"]}"#,
            r#"{"label":["tier=db"]}"#,
        ] {
            assert!(!admits(&filters(no), &e), "{no}");
        }
    }

    #[tokio::test]
    async fn past_then_live_each_once() {
        let bus = Events::new();
        bus.publish(event("create", "a"));
        let since = Some(chrono::Utc::now() - chrono::TimeDelta::seconds(60));
        let mut feed = bus
            .subscribe(EventsOptions {
                since,
                ..Default::default()
            })
            .unwrap();
        bus.publish(event("start", "a"));
        assert_eq!(feed.next().await.unwrap().action, "create");
        assert_eq!(feed.next().await.unwrap().action, "start");
    }

    #[tokio::test]
    async fn until_in_the_past_ends() {
        let bus = Events::new();
        bus.publish(event("create", "a"));
        let until = Some(chrono::Utc::now());
        let feed = bus
            .subscribe(EventsOptions {
                until,
                ..Default::default()
            })
            .unwrap();
        assert_eq!(feed.collect::<Vec<_>>().await.len(), 1);
        assert!(
            bus.subscribe(EventsOptions {
                filters: filters(r#"{"x":["y"]}"#),
                ..Default::default()
            })
            .is_err()
        );
    }
}
