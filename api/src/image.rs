//! Images as they are seen: list, inspect, history, delete, prune, search.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::json::is_default;
use crate::{ContainerConfig, GraphDriver, Timestamp};

/// One row of `GET /images/json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageSummary {
    /// -1 when not counted.
    pub containers: i64,
    /// Seconds since 1970.
    pub created: i64,
    pub id: String,
    pub labels: Option<BTreeMap<String, String>>,
    pub parent_id: String,
    pub repo_digests: Option<Vec<String>>,
    pub repo_tags: Option<Vec<String>>,
    /// -1 when not counted.
    pub shared_size: i64,
    pub size: i64,
    /// Only sent below API version 1.44.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_size: Option<i64>,
}

/// Answer of `GET /images/{name}/json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageInspect {
    pub id: String,
    pub repo_tags: Vec<String>,
    pub repo_digests: Vec<String>,
    pub parent: String,
    pub comment: String,
    /// As the image says it; may be empty.
    pub created: String,
    /// Only sent below API version 1.45.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Only sent below API version 1.45.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_config: Option<ContainerConfig>,
    pub docker_version: String,
    pub author: String,
    pub config: ContainerConfig,
    pub architecture: String,
    #[serde(skip_serializing_if = "is_default")]
    pub variant: String,
    pub os: String,
    #[serde(skip_serializing_if = "is_default")]
    pub os_version: String,
    pub size: i64,
    /// Only sent below API version 1.44.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_size: Option<i64>,
    pub graph_driver: GraphDriver,
    #[serde(rename = "RootFS")]
    pub root_fs: RootFs,
    pub metadata: ImageMetadata,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RootFs {
    #[serde(rename = "Type")]
    pub kind: String,
    /// Digests of the uncompressed layers, the bottommost first.
    #[serde(skip_serializing_if = "is_default")]
    pub layers: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageMetadata {
    pub last_tag_time: Timestamp,
}

/// One row of `GET /images/{name}/history`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct HistoryItem {
    pub comment: String,
    /// Seconds since 1970.
    pub created: i64,
    pub created_by: String,
    /// `<missing>` where no image of that layer exists.
    pub id: String,
    pub size: i64,
    pub tags: Option<Vec<String>>,
}

/// One row of `DELETE /images/{name}`'s answer; one of the two is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageDeleteItem {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub untagged: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted: Option<String>,
}

/// Answer of `POST /images/prune`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImagesPruneResponse {
    pub images_deleted: Option<Vec<ImageDeleteItem>>,
    pub space_reclaimed: u64,
}

/// One row of `GET /images/search`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageSearchItem {
    pub star_count: i64,
    pub is_official: bool,
    pub name: String,
    pub is_automated: bool,
    pub description: String,
}

/// Answer of `GET /distribution/{name}/json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DistributionInspect {
    pub descriptor: DistributionDescriptor,
    pub platforms: Vec<DistributionPlatform>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DistributionDescriptor {
    pub media_type: String,
    pub digest: String,
    pub size: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DistributionPlatform {
    pub architecture: String,
    pub os: String,
    #[serde(skip_serializing_if = "is_default")]
    pub variant: String,
}
