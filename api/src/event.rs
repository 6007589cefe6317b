//! What `GET /events` streams, one JSON object a line.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::json::is_default;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventMessage {
    /// The action, once more; containers and images only.
    #[serde(skip_serializing_if = "is_default")]
    pub status: String,
    /// The actor's id, once more; containers and images only.
    #[serde(skip_serializing_if = "is_default")]
    pub id: String,
    /// The container's image; containers only.
    #[serde(skip_serializing_if = "is_default")]
    pub from: String,
    /// `container`, `image`, `network`, `volume`, `daemon`, …
    #[serde(rename = "Type")]
    pub kind: String,
    #[serde(rename = "Action")]
    pub action: String,
    #[serde(rename = "Actor")]
    pub actor: EventActor,
    pub scope: String,
    /// Seconds since 1970.
    pub time: i64,
    /// Nanoseconds since 1970.
    #[serde(rename = "timeNano")]
    pub time_nano: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct EventActor {
    #[serde(rename = "ID")]
    pub id: String,
    pub attributes: BTreeMap<String, String>,
}

impl EventMessage {
    /// An event of now, with the doubled fields filled as Docker fills them.
    pub fn now(kind: &str, action: &str, id: &str, attributes: BTreeMap<String, String>) -> Self {
        let at = Timestamp::now();
        let doubled = matches!(kind, "container" | "image");
        EventMessage {
            status: if doubled {
                action.to_owned()
            } else {
                String::new()
            },
            id: if doubled {
                id.to_owned()
            } else {
                String::new()
            },
            from: if kind == "container" {
                attributes.get("image").cloned().unwrap_or_default()
            } else {
                String::new()
            },
            kind: kind.to_owned(),
            action: action.to_owned(),
            actor: EventActor {
                id: id.to_owned(),
                attributes,
            },
            scope: "local".to_owned(),
            time: at.unix_seconds(),
            time_nano: at.unix_nanos(),
        }
    }
}
