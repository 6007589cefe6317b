//! What a container runs: the portable half of its configuration, and the body of `POST /containers/create`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::HostConfig;
use crate::json::{is_default, is_empty, string_or_list};
use crate::network::EndpointSettings;

/// An object without members, as in `"ExposedPorts":{"80/tcp":{}}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Empty;

impl Serialize for Empty {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        s.serialize_map(Some(0))?.end()
    }
}

impl<'de> Deserialize<'de> for Empty {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(d).map(|_| Empty)
    }
}

/// The part of a container's configuration that does not depend on the host; images carry one as their default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ContainerConfig {
    pub hostname: String,
    pub domainname: String,
    pub user: String,
    pub attach_stdin: bool,
    pub attach_stdout: bool,
    pub attach_stderr: bool,
    #[serde(skip_serializing_if = "is_empty")]
    pub exposed_ports: Option<BTreeMap<String, Empty>>,
    pub tty: bool,
    pub open_stdin: bool,
    pub stdin_once: bool,
    pub env: Option<Vec<String>>,
    #[serde(deserialize_with = "string_or_list")]
    pub cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<HealthConfig>,
    #[serde(skip_serializing_if = "is_default")]
    pub args_escaped: bool,
    pub image: String,
    pub volumes: Option<BTreeMap<String, Empty>>,
    pub working_dir: String,
    #[serde(deserialize_with = "string_or_list")]
    pub entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "is_default")]
    pub network_disabled: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub mac_address: String,
    pub on_build: Option<Vec<String>>,
    pub labels: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "is_default")]
    pub stop_signal: String,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    #[serde(skip_serializing_if = "is_empty", deserialize_with = "string_or_list")]
    pub shell: Option<Vec<String>>,
}

/// How to tell whether a container is well; durations are nanoseconds, 0 inherits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct HealthConfig {
    /// `[]` inherits, `["NONE"]` disables, `["CMD", …]` executes, `["CMD-SHELL", text]` runs the shell.
    #[serde(skip_serializing_if = "is_empty", deserialize_with = "string_or_list")]
    pub test: Option<Vec<String>>,
    #[serde(skip_serializing_if = "is_default")]
    pub interval: i64,
    #[serde(skip_serializing_if = "is_default")]
    pub timeout: i64,
    #[serde(skip_serializing_if = "is_default")]
    pub start_period: i64,
    #[serde(skip_serializing_if = "is_default")]
    pub start_interval: i64,
    #[serde(skip_serializing_if = "is_default")]
    pub retries: i64,
}

/// Body of `POST /containers/create`: the configuration with the host's and the networks' parts beside it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ContainerCreateBody {
    #[serde(flatten)]
    pub config: ContainerConfig,
    pub host_config: Option<HostConfig>,
    pub networking_config: Option<NetworkingConfig>,
}

/// Endpoints to make for a container, by network name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NetworkingConfig {
    pub endpoints_config: Option<BTreeMap<String, EndpointSettings>>,
}

/// Answer of `POST /containers/create`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ContainerCreateResponse {
    pub id: String,
    pub warnings: Vec<String>,
}
