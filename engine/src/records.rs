//! What is remembered of a container: its definition, its state, and the view of both that readers get.
//!
//! ```text
//!            start            pause
//!  Created ────────▶ Running ◀─────▶ Paused
//!                    │  ▲ ▲
//!       exit, policy │  │ │ start
//!                    ▼  │ │
//!             Restarting  Exited ◀── exit, no policy       Removing ──▶ (gone)   Dead: removing failed half-way
//! ```
//!
//! Must not know: how any of it comes about.

use std::path::PathBuf;
use std::sync::Arc;

use caisson_api as api;
use caisson_runtime::Isolation;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::options::WaitResult;
use crate::spec::idmap::IdMap;

/// What a container is; changes on rename and update only.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Definition {
    pub created: api::Timestamp,
    pub isolation: Isolation,
    /// The image's id, `sha256:…`.
    pub image_id: String,
    pub platform: String,
    /// Layers of the image, topmost first, beneath the data root when they are there.
    pub layers: Vec<PathBuf>,
    /// Program, arguments.
    pub path: String,
    pub args: Vec<String>,
    pub config: api::ContainerConfig,
    pub host: api::HostConfig,
    /// The ids of the host that its ids are; `None`: the same.
    pub idmap: Option<IdMap>,
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub(crate) enum Status {
    Created,
    Running,
    Paused,
    Restarting,
    Removing,
    Exited,
    Dead,
}

impl Status {
    /// Docker's word for it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Restarting => "restarting",
            Status::Removing => "removing",
            Status::Exited => "exited",
            Status::Dead => "dead",
        }
    }

    /// It has processes, or will have again without anybody asking.
    pub(crate) fn is_up(self) -> bool {
        matches!(self, Status::Running | Status::Paused | Status::Restarting)
    }
}

/// What a container did last.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    pub status: Status,
    pub exit_code: i32,
    pub oom_killed: bool,
    pub error: String,
    pub started_at: api::Timestamp,
    pub finished_at: api::Timestamp,
    /// By policy, since a user started it.
    pub restart_count: u32,
    /// A user stopped it: `unless-stopped` leaves it down.
    pub stopped_by_user: bool,
}

impl Default for State {
    fn default() -> Self {
        State {
            status: Status::Created,
            exit_code: 0,
            oom_killed: false,
            error: String::new(),
            started_at: api::Timestamp::default(),
            finished_at: api::Timestamp::default(),
            restart_count: 0,
            stopped_by_user: false,
        }
    }
}

/// What readers see of a container: replaced as a whole, never changed in place.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub id: String,
    /// Without a slash.
    pub name: String,
    pub definition: Arc<Definition>,
    pub state: State,
    /// Of the first process, on the host; 0 when there is none.
    pub pid: i32,
    pub health: Option<api::Health>,
    /// How often it has ended, for `wait --condition next-exit`.
    pub exits: u64,
    /// It is gone.
    pub removed: bool,
}

impl View {
    /// How it ended last, as `wait` tells it.
    pub(crate) fn wait_result(&self) -> WaitResult {
        WaitResult {
            status_code: i64::from(self.state.exit_code),
            error: Some(self.state.error.clone()).filter(|e| !e.is_empty()),
        }
    }

    /// Attributes of the container's events: image, name, labels.
    pub(crate) fn event_attributes(&self) -> std::collections::BTreeMap<String, String> {
        let config = &self.definition.config;
        let mut all = config.labels.clone().unwrap_or_default();
        all.insert("image".into(), config.image.clone());
        all.insert("name".into(), self.name.clone());
        all
    }
}

/// As stored.
pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|e| Error::internal(format!("cannot write a container's record: {e}")))
}

/// As read back.
pub(crate) fn from_row(row: &crate::db::Row) -> Result<(Definition, State)> {
    let bad = |what: &str, e: serde_json::Error| {
        Error::internal(format!(
            "the {what} of container {} in the database cannot be read: {e}",
            row.id
        ))
    };
    let definition = serde_json::from_str(&row.definition).map_err(|e| bad("definition", e))?;
    let state = serde_json::from_str(&row.state).map_err(|e| bad("state", e))?;
    Ok((definition, state))
}
