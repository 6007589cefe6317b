//! The daemon itself: ping, version, events, disk usage.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use caisson_api::{ComponentVersion, Version};
use caisson_engine::EventsOptions;
use http::{Method, header};

use super::App;
use super::body::{json, json_lines};
use super::error::{ApiError, ApiResult};
use super::params::Params;
use super::version::ApiVersion;

/// Clients learn the API version from the headers; `Builder-Version: 1` keeps them off BuildKit, which we do not serve.
pub async fn ping(method: Method) -> Response {
    let headers = [
        ("builder-version", "1"),
        ("swarm", "inactive"),
        ("cache-control", "no-cache, no-store, must-revalidate"),
        ("pragma", "no-cache"),
        (header::CONTENT_TYPE.as_str(), "text/plain; charset=utf-8"),
    ];
    let body = if method == Method::HEAD { "" } else { "OK" };
    (headers, body).into_response()
}

pub async fn version() -> Response {
    let kernel = kernel_version();
    let component = |name: &str, details: &[(&str, &str)]| ComponentVersion {
        name: name.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        details: details
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
    };
    let engine = component(
        "Engine",
        &[
            ("ApiVersion", caisson_api::API_VERSION),
            ("MinAPIVersion", caisson_api::MIN_API_VERSION),
            ("Arch", docker_arch()),
            ("Os", "linux"),
            ("KernelVersion", &kernel),
            ("Experimental", "false"),
            ("GitCommit", ""),
            ("GoVersion", ""),
            ("BuildTime", ""),
        ],
    );
    json(&Version {
        platform: caisson_api::PlatformName {
            name: "caisson".into(),
        },
        components: vec![engine],
        version: env!("CARGO_PKG_VERSION").into(),
        api_version: caisson_api::API_VERSION.into(),
        min_api_version: caisson_api::MIN_API_VERSION.into(),
        git_commit: String::new(),
        go_version: String::new(),
        os: "linux".into(),
        arch: docker_arch().into(),
        kernel_version: kernel,
        experimental: false,
        build_time: String::new(),
    })
}

/// Go's name of this machine's architecture.
pub fn docker_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// The kernel's release.
pub fn kernel_version() -> String {
    nix::sys::utsname::uname()
        .map(|u| u.release().to_string_lossy().into_owned())
        .unwrap_or_default()
}

pub async fn events(State(app): State<App>, params: Params) -> ApiResult {
    let options = EventsOptions {
        // 0 is the beginning here, not "not given"
        since: params.time("since")?.or(params
            .get("since")
            .filter(|s| !s.is_empty())
            .map(|_| chrono::DateTime::UNIX_EPOCH)),
        until: params.time("until")?,
        filters: params.filters()?,
    };
    if let (Some(since), Some(until)) = (options.since, options.until)
        && since > until
    {
        return Err(ApiError::bad(format!(
            "`since` time ({since}) cannot be after `until` time ({until})"
        )));
    }
    Ok(json_lines(app.engine.events(options).await?))
}

pub async fn disk_usage(State(app): State<App>, params: Params, version: ApiVersion) -> ApiResult {
    let kinds: Vec<&str> = params.all("type").collect();
    let mut usage = app.engine.disk_usage(&kinds).await?;
    if version < ApiVersion(1, 42) {
        usage.builder_size = Some(0);
    }
    if version < ApiVersion(1, 44) {
        for image in &mut usage.images {
            image.virtual_size = Some(image.size);
        }
    }
    Ok(json(&usage))
}
