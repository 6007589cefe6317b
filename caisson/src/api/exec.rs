//! Further processes in a running container.

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::IntoResponse;
use caisson_api::{ExecCreateBody, ExecStartBody, IdResponse};
use caisson_engine::ExecStartOptions;
use http::StatusCode;

use super::App;
use super::attach::size;
use super::body::{Json, json, json_with, read_json};
use super::error::{ApiError, ApiResult, message_for_clients};
use super::params::Params;
use super::stream::{Framing, connect, message_attachment, take_over, upgrade_of};
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
    let Some(upgrade) = upgrade.filter(|_| !body.detach) else {
        return Ok(match app.engine.exec_start(&id, options).await? {
            Some(attachment) => connect(attachment, None, Body::empty(), version),
            None => StatusCode::OK.into_response(),
        });
    };
    let exec = app.engine.exec_inspect(&id).await?;
    if exec.running || exec.exit_code.is_some() {
        app.engine.exec_start(&id, options).await?;
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            format!("exec {id} has been started already"),
        ));
    }
    let tty = exec.process_config.tty;
    // As Docker does: the connection is taken over first, and says itself why the command could not be executed; clients
    // then read 126 or 127 from `GET /exec/ID/json`.
    Ok(take_over(
        upgrade,
        Framing::of_tty(tty),
        version,
        async move {
            match app.engine.exec_start(&id, options).await {
                Ok(Some(attachment)) => attachment,
                Ok(None) => message_attachment(tty, String::new()),
                Err(error) => {
                    let kind = error.kind();
                    message_attachment(
                        tty,
                        format!("{}\r\n", message_for_clients(kind, error.message)),
                    )
                }
            }
        },
    ))
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
