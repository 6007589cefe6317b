//! Networks, volumes, plugins, swarm: what exists of them so far. The networks listed are the modes that containers can be
//! in; there are no volumes, plugins or swarm, which is what the answers say.

use axum::extract::{Path, State};
use caisson_api::{
    BuildPruneResponse, Ipam, NetworkResource, NetworksPruneResponse, VolumeList,
    VolumesPruneResponse,
};
use http::StatusCode;

use super::App;
use super::body::json;
use super::error::{ApiError, ApiResult};
use super::params::Params;

/// (name, driver) of every network; the names are also accepted by `--network`.
const NETWORKS: [(&str, &str); 3] = [("bridge", "bridge"), ("host", "host"), ("none", "null")];

/// Networks have no life of their own yet, so their ids are made of their names.
fn network_id(name: &str) -> String {
    let hex: String = name.bytes().map(|b| format!("{b:02x}")).collect();
    format!("{hex:0<64}")
}

fn network(name: &str, driver: &str) -> NetworkResource {
    NetworkResource {
        name: name.into(),
        id: network_id(name),
        scope: "local".into(),
        driver: driver.into(),
        ipam: Ipam {
            driver: "default".into(),
            options: None,
            config: Vec::new(),
        },
        ..Default::default()
    }
}

fn all() -> impl Iterator<Item = NetworkResource> {
    NETWORKS.iter().map(|(name, driver)| network(name, driver))
}

pub async fn list(params: Params) -> ApiResult {
    let filters = params.filters()?;
    let known = ["name", "id", "driver", "scope", "type", "label", "dangling"];
    if let Some(key) = filters.unknown_key(&known) {
        return Err(ApiError::bad(format!("invalid filter '{key}'")));
    }
    let dangling = filters
        .boolean("dangling")
        .map_err(|v| ApiError::bad(format!("invalid filter 'dangling={v}'")))?;
    let found: Vec<_> = all()
        .filter(|n| {
            filters.admits("name", |v| n.name.contains(v))
                && filters.admits("id", |v| n.id.starts_with(v))
                && filters.admits("driver", |v| n.driver == v)
                && filters.admits("scope", |v| n.scope == v)
                && filters.admits("type", |v| v == "builtin")
                && filters.admits_labels(&n.labels)
                && dangling != Some(true)
        })
        .collect();
    Ok(json(&found))
}

pub async fn inspect(Path(id): Path<String>) -> ApiResult {
    let found = all()
        .find(|n| n.name == id)
        .or_else(|| all().find(|n| id.len() >= 4 && n.id.starts_with(&id)));
    match found {
        Some(network) => Ok(json(&network)),
        None => Err(ApiError::not_found(format!("network {id} not found"))),
    }
}

pub async fn prune() -> ApiResult {
    Ok(json(&NetworksPruneResponse {
        networks_deleted: None,
    }))
}

pub async fn unavailable() -> ApiError {
    ApiError::new(
        StatusCode::NOT_IMPLEMENTED,
        "this version of caisson has no networks of its own yet: use --network none, host or the default (loopback only)",
    )
}

pub async fn volumes(State(_): State<App>) -> ApiResult {
    Ok(json(&VolumeList::default()))
}

pub async fn unavailable_volume() -> ApiError {
    ApiError::new(
        StatusCode::NOT_IMPLEMENTED,
        "this version of caisson has no named volumes yet: use a bind mount (-v /path/on/host:/path) or --tmpfs",
    )
}

pub async fn no_volume(Path(name): Path<String>) -> ApiError {
    ApiError::not_found(format!("get {name}: no such volume"))
}

pub async fn prune_volumes() -> ApiResult {
    Ok(json(&VolumesPruneResponse::default()))
}

pub async fn prune_builds() -> ApiResult {
    Ok(json(&BuildPruneResponse::default()))
}

pub async fn plugins() -> ApiResult {
    Ok(json::<[(); 0]>(&[]))
}

pub async fn no_swarm() -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.",
    )
}
