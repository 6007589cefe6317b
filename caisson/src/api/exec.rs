//! Further processes in a running container.

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use caisson_api::{ExecCreateBody, ExecStartBody, IdResponse};
use caisson_engine::{ErrorKind, ExecStartOptions};
use http::StatusCode;

use super::App;
use super::attach::size;
use super::body::{Json, json, json_with, read_json};
use super::error::{ApiResult, message_for_clients};
use super::params::Params;
use super::stream::{connect, message_attachment, upgrade_of};
use super::version::ApiVersion;

pub async fn create(
    State(app): State<App>,
    Path(id): Path<String>,
    Json(body): Json<ExecCreateBody>,
) -> ApiResult {
    Ok(json_with(
        StatusCode::CREATED,
        &IdResponse {
            id: app.engine.exec_create(&id, body).await?,
        },
    ))
}

pub async fn start(
    State(app): State<App>,
    Path(id): Path<String>,
    version: ApiVersion,
    request: Request,
) -> ApiResult {
    let (mut parts, body) = request.into_parts();
    let upgrade = upgrade_of(&parts.headers, &mut parts.extensions);
    let body: ExecStartBody = read_json(body).await?;
    let console_size = body.console_size.map(|[rows, columns]| {
        let fit = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        (fit(rows), fit(columns))
    });
    let options = ExecStartOptions {
        detach: body.detach,
        tty: body.tty,
        console_size,
    };
    let started = match app.engine.exec_start(&id, options).await {
        Ok(started) => started,
        // Docker takes the connection over first and says on it why the command could not be executed; clients then
        // read 126 or 127 from `GET /exec/ID/json`.
        Err(error)
            if !body.detach
                && matches!(
                    error.kind(),
                    ErrorKind::CommandNotFound | ErrorKind::CommandNotExecutable
                ) =>
        {
            let kind = error.kind();
            let text = format!("{}\r\n", message_for_clients(kind, error.message));
            Some(message_attachment(body.tty, text))
        }
        Err(error) => return Err(error.into()),
    };
    Ok(match started {
        Some(attachment) => connect(attachment, upgrade, Body::empty(), version),
        None => detached(),
    })
}

fn detached() -> Response {
    StatusCode::OK.into_response()
}

pub async fn inspect(State(app): State<App>, Path(id): Path<String>) -> ApiResult {
    Ok(json(&app.engine.exec_inspect(&id).await?))
}

pub async fn resize(
    State(app): State<App>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult<StatusCode> {
    app.engine.exec_resize(&id, size(&params)?).await?;
    Ok(StatusCode::OK)
}
