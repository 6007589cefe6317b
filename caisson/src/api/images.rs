//! Images: list, pull, import, push, load, save, inspect, history, tag, remove, prune, search; and registry credentials.
//!
//! Image names contain slashes, which no route pattern can hold before a verb, so `/images/{*rest}` is split here by its last
//! component.

use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use caisson_api::{AuthConfig, AuthResponse, JsonMessage};
use caisson_engine::{Feed, ImageImportOptions, ImageListOptions, ImagePullOptions};
use http::{HeaderMap, StatusCode};

use super::App;
use super::body::{Json, Leftover, decompressed, download, json, json_lines, upload};
use super::containers::changes;
use super::error::{ApiError, ApiResult};
use super::params::Params;
use super::version::ApiVersion;

/// Credentials in a header: JSON in URL-safe base64, with or without padding; clients send `{}` or nothing for none.
fn credentials(headers: &HeaderMap) -> ApiResult<Option<AuthConfig>> {
    let Some(header) = headers.get("x-registry-auth") else {
        return Ok(None);
    };
    let text = header.as_bytes().trim_ascii();
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = |what: &dyn std::fmt::Display| {
        ApiError::bad(format!("invalid X-Registry-Auth header: {what}"))
    };
    let decoded = decode_base64(text).ok_or_else(|| wrong(&"it is not base64"))?;
    let auth: Option<AuthConfig> = caisson_api::from_json(&decoded).map_err(|e| wrong(&e))?;
    Ok(auth.filter(|a| *a != AuthConfig::default()))
}

/// Either alphabet, padded or not.
fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let standard: Vec<u8> = text
        .iter()
        .filter(|b| **b != b'=')
        .map(|b| match b {
            b'-' => b'+',
            b'_' => b'/',
            other => *other,
        })
        .collect();
    base64::engine::general_purpose::STANDARD_NO_PAD
        .decode(standard)
        .ok()
}

fn progress(feed: Feed<JsonMessage>) -> Response {
    json_lines(feed)
}

pub async fn list(State(app): State<App>, params: Params, version: ApiVersion) -> ApiResult {
    let mut filters = params.filters()?;
    // The old way to say `reference`.
    if let Some(name) = params.get("filter") {
        filters
            .0
            .entry("reference".into())
            .or_default()
            .push(name.to_owned());
    }
    let options = ImageListOptions {
        all: params.flag("all"),
        shared_size: params.flag("shared-size"),
        filters,
    };
    let mut images = app.engine.images(options).await?;
    if version < ApiVersion(1, 44) {
        for image in &mut images {
            image.virtual_size = Some(image.size);
        }
    }
    Ok(json(&images))
}

/// A registry that wants credentials is no 401 of ours: Docker's command line would take that for a question and wait for a
/// login that nobody types.
fn refused_by_registry(error: caisson_engine::Error) -> ApiError {
    match error.kind() {
        caisson_engine::ErrorKind::Unauthorized => ApiError::internal(error.message),
        _ => error.into(),
    }
}

/// Pull, or import when there is `fromSrc`.
pub async fn create(State(app): State<App>, params: Params, request: Request) -> ApiResult {
    let (parts, body) = request.into_parts();
    if let Some(from) = params.get("fromImage") {
        let options = ImagePullOptions {
            name: from.to_owned(),
            tag: params.get("tag").map(str::to_owned),
            platform: params.get("platform").map(str::to_owned),
            credentials: credentials(&parts.headers)?,
        };
        let pulled = app.engine.image_pull(options).await;
        return Ok(progress(pulled.map_err(refused_by_registry)?));
    }
    let source = params
        .get("fromSrc")
        .ok_or_else(|| ApiError::bad("either fromImage or fromSrc is needed"))?;
    if source != "-" {
        return Err(ApiError::new(
            StatusCode::NOT_IMPLEMENTED,
            format!(
                "importing from {source:?} is not supported: download it and send it, for instance curl -L {source} | caisson import -"
            ),
        ));
    }
    let options = ImageImportOptions {
        repository: params.get("repo").map(str::to_owned),
        tag: params.get("tag").map(str::to_owned),
        message: params.text("message").to_owned(),
        changes: changes(&params),
        platform: params.get("platform").map(str::to_owned),
    };
    let (reader, leftover) = upload(body);
    told(
        app.engine.image_import(decompressed(reader), options).await,
        leftover,
    )
    .await
}

/// The progress of an upload that began well, or the error, which an upload under way must not cover.
async fn told(begun: caisson_engine::Result<Feed<JsonMessage>>, leftover: Leftover) -> ApiResult {
    match begun {
        Ok(feed) => {
            leftover.drain_behind_answer();
            Ok(progress(feed))
        }
        Err(error) => {
            leftover.drain().await;
            Err(error.into())
        }
    }
}

pub async fn load(State(app): State<App>, params: Params, request: Request) -> ApiResult {
    let (reader, leftover) = upload(request.into_body());
    told(
        app.engine
            .image_load(Box::pin(reader), params.flag("quiet"))
            .await,
        leftover,
    )
    .await
}

/// Several images in one archive.
pub async fn save(State(app): State<App>, params: Params) -> ApiResult {
    let names: Vec<String> = params
        .all("names")
        .flat_map(|n| n.split(','))
        .map(str::to_owned)
        .collect();
    if names.is_empty() {
        return Err(ApiError::bad("which images? names=NAME is needed"));
    }
    Ok(download(
        app.engine.image_save(names).await?,
        "application/x-tar",
    ))
}

pub async fn get_one(
    State(app): State<App>,
    Path(rest): Path<String>,
    version: ApiVersion,
) -> ApiResult {
    let Some((name, verb)) = rest.rsplit_once('/') else {
        return Err(ApiError::not_found("page not found"));
    };
    match verb {
        "json" => {
            let mut image = app.engine.image_inspect(name).await?;
            if version < ApiVersion(1, 44) {
                image.virtual_size = Some(image.size);
            }
            if version < ApiVersion(1, 45) {
                image.container = Some(String::new());
                image.container_config = Some(Default::default());
            }
            Ok(json(&image))
        }
        "history" => Ok(json(&app.engine.image_history(name).await?)),
        "get" => Ok(download(
            app.engine.image_save(vec![name.to_owned()]).await?,
            "application/x-tar",
        )),
        _ => Err(ApiError::not_found("page not found")),
    }
}

pub async fn post_one(
    State(app): State<App>,
    Path(rest): Path<String>,
    params: Params,
    headers: HeaderMap,
) -> ApiResult {
    let Some((name, verb)) = rest.rsplit_once('/') else {
        return Err(ApiError::not_found("page not found"));
    };
    match verb {
        "tag" => {
            let repository = params
                .get("repo")
                .ok_or_else(|| ApiError::bad("a repository is needed: repo=NAME"))?;
            app.engine
                .image_tag(name, repository, params.get("tag"))
                .await?;
            Ok(StatusCode::CREATED.into_response())
        }
        "push" => {
            let feed = app
                .engine
                .image_push(name, params.get("tag"), credentials(&headers)?)
                .await
                .map_err(refused_by_registry)?;
            Ok(progress(feed))
        }
        _ => Err(ApiError::not_found("page not found")),
    }
}

pub async fn remove(State(app): State<App>, Path(name): Path<String>, params: Params) -> ApiResult {
    Ok(json(
        &app.engine
            .image_remove(&name, params.flag("force"), params.flag("noprune"))
            .await?,
    ))
}

pub async fn prune(State(app): State<App>, params: Params) -> ApiResult {
    Ok(json(&app.engine.images_prune(params.filters()?).await?))
}

pub async fn search(State(app): State<App>, params: Params) -> ApiResult {
    let term = params
        .get("term")
        .ok_or_else(|| ApiError::bad("a term is needed: term=TEXT"))?;
    Ok(json(&app.engine.image_search(term).await?))
}

pub async fn distribution(
    State(app): State<App>,
    Path(rest): Path<String>,
    headers: HeaderMap,
) -> ApiResult {
    let Some(name) = rest.strip_suffix("/json") else {
        return Err(ApiError::not_found("page not found"));
    };
    Ok(json(
        &app.engine
            .image_distribution(name, credentials(&headers)?)
            .await
            .map_err(refused_by_registry)?,
    ))
}

/// `docker login`: whether a registry takes these credentials.
pub async fn auth(State(app): State<App>, Json(auth): Json<AuthConfig>) -> ApiResult {
    app.engine.registry_login(auth).await?;
    Ok(json(&AuthResponse {
        identity_token: String::new(),
        status: "Login Succeeded".into(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(value: &str) -> ApiResult<Option<AuthConfig>> {
        let mut headers = HeaderMap::new();
        headers.insert("x-registry-auth", value.parse().expect("valid header"));
        credentials(&headers)
    }

    #[test]
    fn credentials_in_every_alphabet() {
        // {"username":"a","password":"ÿ?>"}
        let json = r#"{"username":"a","password":"ÿ?>"}"#;
        use base64::engine::general_purpose::{
            STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD,
        };
        for text in [
            STANDARD.encode(json),
            STANDARD_NO_PAD.encode(json),
            URL_SAFE.encode(json),
            URL_SAFE_NO_PAD.encode(json),
        ] {
            let auth = header(&text).expect("decodes").expect("given");
            assert_eq!(
                (auth.username.as_str(), auth.password.as_str()),
                ("a", "ÿ?>")
            );
        }
    }

    #[test]
    fn nothing_comes_in_many_forms() {
        assert_eq!(credentials(&HeaderMap::new()), Ok(None));
        assert_eq!(header(""), Ok(None));
        assert_eq!(header("e30="), Ok(None));
        assert_eq!(header("e30"), Ok(None));
        assert_eq!(header("bnVsbA=="), Ok(None), "null");
        assert!(header("!!!").is_err());
        assert!(header("e30x").is_err());
    }
}
