//! Images in the API's shapes: pure.

use std::path::PathBuf;

use caisson_api as api;
use caisson_image::{HistoryEntry, Image};
use serde_json::Value;

/// A row of `docker images`.
pub fn summary(image: &Image) -> api::ImageSummary {
    api::ImageSummary {
        containers: -1,
        created: image.created().map_or(0, |t| t.timestamp()),
        id: image.id().to_string(),
        labels: Some(image.config().config.labels.clone()).filter(|l| !l.is_empty()),
        parent_id: image
            .parent
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        repo_digests: Some(image.repo_digests.clone()),
        repo_tags: Some(image.repo_tags.clone()),
        shared_size: -1,
        size: signed(image.size_bytes()),
        virtual_size: None,
    }
}

/// The whole image; `layers` are its directories, topmost first.
pub fn inspect(image: &Image, layers: &[PathBuf]) -> api::ImageInspect {
    // What the store parsed, it parsed from this text.
    let raw: Value = serde_json::from_str(image.config_json()).unwrap_or_default();
    let text = |key: &str| {
        raw.get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let last_comment = || {
        image
            .config()
            .history
            .last()
            .map(|h| h.comment.clone())
            .unwrap_or_default()
    };
    let comment = text("comment");
    api::ImageInspect {
        id: image.id().to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        parent: image
            .parent
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        comment: if comment.is_empty() {
            last_comment()
        } else {
            comment
        },
        created: text("created"),
        container: None,
        container_config: None,
        docker_version: text("docker_version"),
        author: text("author"),
        config: run_config(image),
        architecture: image.config().architecture.clone(),
        variant: image.config().variant.clone().unwrap_or_default(),
        os: image.config().os.clone(),
        os_version: text("os.version"),
        size: signed(image.size_bytes()),
        virtual_size: None,
        graph_driver: graph_driver(layers),
        root_fs: api::RootFs {
            kind: "layers".into(),
            layers: image
                .layers()
                .iter()
                .map(|l| l.diff_id.to_string())
                .collect(),
        },
        metadata: api::ImageMetadata {
            last_tag_time: chrono::DateTime::from_timestamp_millis(image.tagged_at_ms)
                .filter(|_| image.tagged_at_ms > 0 && !image.repo_tags.is_empty())
                .map(Into::into)
                .unwrap_or_default(),
        },
    }
}

/// An image's configuration for containers; `null` and nonsense count as an empty one.
pub fn run_config(image: &Image) -> api::ContainerConfig {
    // What the store parsed, it parsed from this text.
    let raw: Value = serde_json::from_str(image.config_json()).unwrap_or_default();
    match raw.get("config") {
        None | Some(Value::Null) => api::ContainerConfig::default(),
        Some(config) => api::from_value(config.clone()).unwrap_or_default(),
    }
}

fn graph_driver(layers: &[PathBuf]) -> api::GraphDriver {
    let show = |path: &PathBuf| path.display().to_string();
    let mut data = std::collections::BTreeMap::new();
    if let Some((top, below)) = layers.split_first() {
        data.insert("UpperDir".to_owned(), show(top));
        if !below.is_empty() {
            data.insert(
                "LowerDir".to_owned(),
                below.iter().map(show).collect::<Vec<_>>().join(":"),
            );
        }
    }
    api::GraphDriver {
        name: "overlay2".into(),
        data: Some(data),
    }
}

/// The image's making, newest step first.
pub fn history(image: &Image, steps: Vec<(HistoryEntry, u64)>) -> Vec<api::HistoryItem> {
    let row = |(index, (step, size)): (usize, (HistoryEntry, u64))| api::HistoryItem {
        comment: step.comment,
        created: step.created.map_or(0, |t| t.timestamp()),
        created_by: step.created_by,
        id: if index == 0 {
            image.id().to_string()
        } else {
            "<missing>".into()
        },
        size: signed(size),
        tags: (index == 0 && !image.repo_tags.is_empty()).then(|| image.repo_tags.clone()),
    };
    steps.into_iter().enumerate().map(row).collect()
}

/// Docker's numbers are signed.
pub fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
