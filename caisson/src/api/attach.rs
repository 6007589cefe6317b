//! Standard streams of containers: attach, logs, resize.

use axum::extract::{Path, Request, State};
use caisson_engine::runtime::TtySize;
use caisson_engine::{AttachOptions, LogsOptions};
use http::StatusCode;

use super::App;
use super::error::{ApiError, ApiResult};
use super::params::Params;
use super::stream::{Framing, answer, connect, upgrade_of};
use super::version::ApiVersion;

pub async fn attach(
    State(app): State<App>,
    Path(id): Path<String>,
    params: Params,
    version: ApiVersion,
    request: Request,
) -> ApiResult {
    let options = AttachOptions {
        logs: params.flag("logs"),
        stream: params.flag("stream"),
        stdin: params.flag("stdin"),
        stdout: params.flag("stdout"),
        stderr: params.flag("stderr"),
        detach_keys: params.get("detachKeys").map(str::to_owned),
    };
    let attachment = app.engine.attach(&id, options).await?;
    let (mut parts, body) = request.into_parts();
    let upgrade = upgrade_of(&parts.headers, &mut parts.extensions);
    Ok(connect(attachment, upgrade, body, version))
}

pub async fn logs(
    State(app): State<App>,
    Path(id): Path<String>,
    params: Params,
    version: ApiVersion,
) -> ApiResult {
    let options = LogsOptions {
        follow: params.flag("follow"),
        stdout: params.flag("stdout"),
        stderr: params.flag("stderr"),
        since: params.time("since")?,
        // Docker: zero is no limit.
        until: params.time("until")?.filter(|t| t.timestamp() != 0),
        timestamps: params.flag("timestamps"),
        details: params.flag("details"),
        // Docker: what is not a number means everything.
        tail: params.get("tail").and_then(|t| t.parse().ok()),
    };
    if !options.stdout && !options.stderr {
        return Err(ApiError::bad(
            "Bad parameters: you must choose at least one stream",
        ));
    }
    let logs = app.engine.logs(&id, options).await?;
    Ok(answer(logs.output, Framing::of_tty(logs.tty), version))
}

/// `h` and `w`.
pub fn size(params: &Params) -> ApiResult<TtySize> {
    let dimension = |name: &str| -> ApiResult<u16> {
        params
            .number(name)?
            .ok_or_else(|| ApiError::bad(format!("invalid resize: {name} is needed")))
    };
    Ok(TtySize {
        rows: dimension("h")?,
        columns: dimension("w")?,
    })
}

pub async fn resize(
    State(app): State<App>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult<StatusCode> {
    app.engine.resize(&id, size(&params)?).await?;
    Ok(StatusCode::OK)
}
