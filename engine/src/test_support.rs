//! Makes views for unit tests.

use std::sync::Arc;

use caisson_api as api;
use caisson_runtime::Isolation;

use crate::records::{Definition, State, Status, View};

/// A view in a state, by Docker's word.
pub(crate) fn view(status: &str) -> View {
    let status: Status = serde_json::from_value(serde_json::json!(status)).unwrap();
    let labels = [("tier".to_string(), "web".to_string())].into();
    View {
        id: "0123456789abcdef".repeat(4),
        name: "test".into(),
        definition: Arc::new(Definition {
            created: api::Timestamp::now(),
            isolation: Isolation::Container,
            image_id: "sha256:abcdef0123".into(),
            platform: "linux".into(),
            layers: Vec::new(),
            path: "true".into(),
            args: Vec::new(),
            config: api::ContainerConfig {
                image: "busybox".into(),
                labels: Some(labels),
                ..Default::default()
            },
            host: api::HostConfig::default(),
            idmap: None,
        }),
        state: State {
            status,
            finished_at: api::Timestamp::now(),
            ..State::default()
        },
        pid: 0,
        health: None,
        exits: 0,
        removed: false,
    }
}
