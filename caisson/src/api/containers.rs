//! The life of a container: create, start, stop, …, remove, commit.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use caisson_api::{
    ContainerCreateBody, IdResponse, UpdateBody, UpdateResponse, WaitError, WaitResponse,
};
use caisson_engine::{
    CommitOptions, CreateOptions, Outcome, RemoveOptions, StopOptions, WaitCondition,
};
use futures_util::stream;
use http::{StatusCode, header};

use super::App;
use super::body::{Json, json, json_with, nothing};
use super::error::{ApiError, ApiResult};
use super::params::Params;

pub async fn create(
    State(app): State<App>,
    params: Params,
    Json(request): Json<ContainerCreateBody>,
) -> ApiResult {
    let options = CreateOptions {
        name: params.get("name").map(str::to_owned),
        platform: params.get("platform").map(str::to_owned),
        request,
    };
    Ok(json_with(
        StatusCode::CREATED,
        &app.engine.create_container(options).await?,
    ))
}

pub async fn inspect(State(app): State<App>, Path(id): Path<String>, params: Params) -> ApiResult {
    Ok(json(&app.engine.inspect(&id, params.flag("size")).await?))
}

/// 204 when something changed, 304 when there was nothing to do.
fn changed(outcome: Outcome) -> Response {
    match outcome {
        Outcome::Changed => nothing(),
        Outcome::Unchanged => StatusCode::NOT_MODIFIED.into_response(),
    }
}

pub async fn start(State(app): State<App>, Path(id): Path<String>) -> ApiResult {
    Ok(changed(app.engine.start(&id).await?))
}

fn stop_options(params: &Params) -> ApiResult<StopOptions> {
    Ok(StopOptions {
        signal: params.get("signal").map(str::to_owned),
        timeout_s: params.number("t")?,
    })
}

pub async fn stop(State(app): State<App>, Path(id): Path<String>, params: Params) -> ApiResult {
    Ok(changed(app.engine.stop(&id, stop_options(&params)?).await?))
}

pub async fn restart(State(app): State<App>, Path(id): Path<String>, params: Params) -> ApiResult {
    app.engine.restart(&id, stop_options(&params)?).await?;
    Ok(nothing())
}

pub async fn kill(State(app): State<App>, Path(id): Path<String>, params: Params) -> ApiResult {
    app.engine.kill(&id, params.get("signal")).await?;
    Ok(nothing())
}

pub async fn pause(State(app): State<App>, Path(id): Path<String>) -> ApiResult {
    app.engine.pause(&id).await?;
    Ok(nothing())
}

pub async fn unpause(State(app): State<App>, Path(id): Path<String>) -> ApiResult {
    app.engine.unpause(&id).await?;
    Ok(nothing())
}

pub async fn rename(State(app): State<App>, Path(id): Path<String>, params: Params) -> ApiResult {
    let name = params
        .get("name")
        .ok_or_else(|| ApiError::bad("a new name is needed: name=NAME"))?;
    app.engine.rename(&id, name).await?;
    Ok(nothing())
}

pub async fn update(
    State(app): State<App>,
    Path(id): Path<String>,
    Json(request): Json<UpdateBody>,
) -> ApiResult {
    let warnings = app.engine.update(&id, request).await?;
    Ok(json(&UpdateResponse {
        warnings: Some(warnings),
    }))
}

pub async fn remove(State(app): State<App>, Path(id): Path<String>, params: Params) -> ApiResult {
    let options = RemoveOptions {
        force: params.flag("force"),
        volumes: params.flag("v"),
        link: params.flag("link"),
    };
    app.engine.remove(&id, options).await?;
    Ok(nothing())
}

/// The answer's head is sent as soon as the wait is registered: clients start the container once they have it.
pub async fn wait(State(app): State<App>, Path(id): Path<String>, params: Params) -> ApiResult {
    let condition = match params.text("condition") {
        "" | "not-running" => WaitCondition::NotRunning,
        "next-exit" => WaitCondition::NextExit,
        "removed" => WaitCondition::Removed,
        other => return Err(ApiError::bad(format!("invalid condition: {other:?}"))),
    };
    let wait = app.engine.wait(&id, condition).await?;
    let line = stream::once(async move {
        let answer = match wait.await {
            Ok(result) => WaitResponse {
                error: result
                    .error
                    .filter(|m| !m.is_empty())
                    .map(|message| WaitError { message }),
                status_code: result.status_code,
            },
            Err(error) => WaitResponse {
                error: Some(WaitError {
                    message: error.message,
                }),
                status_code: -1,
            },
        };
        serde_json::to_vec(&answer).map(Bytes::from)
    });
    Ok((
        [(header::CONTENT_TYPE, "application/json")],
        Body::from_stream(line),
    )
        .into_response())
}

pub async fn prune(State(app): State<App>, params: Params) -> ApiResult {
    Ok(json(&app.engine.prune_containers(params.filters()?).await?))
}

pub async fn commit(
    State(app): State<App>,
    params: Params,
    Json(config): Json<Option<caisson_api::ContainerConfig>>,
) -> ApiResult {
    let container = params
        .get("container")
        .ok_or_else(|| ApiError::bad("a container is needed: container=ID"))?;
    let reference = params.get("repo").map(|repo| match params.get("tag") {
        Some(tag) => format!("{repo}:{tag}"),
        None => repo.to_owned(),
    });
    let options = CommitOptions {
        container: container.to_owned(),
        reference,
        comment: params.text("comment").to_owned(),
        author: params.text("author").to_owned(),
        pause: params.flag_or("pause", true),
        changes: changes(&params),
        // Clients without a configuration of their own send none, `null` or `{}`.
        config: config.filter(|c| *c != Default::default()),
    };
    Ok(json_with(
        StatusCode::CREATED,
        &IdResponse {
            id: app.engine.commit(options).await?,
        },
    ))
}

/// Dockerfile instructions: the parameter repeats, or holds several lines.
pub fn changes(params: &Params) -> Vec<String> {
    params
        .all("changes")
        .flat_map(str::lines)
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .map(str::to_owned)
        .collect()
}
