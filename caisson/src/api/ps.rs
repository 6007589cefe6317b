//! Looking at many containers, or at a running one: list, top, stats.

use axum::extract::{Path, State};
use caisson_engine::{ListOptions, StatsOptions};

use super::App;
use super::body::{json, json_lines};
use super::error::ApiResult;
use super::params::Params;

pub async fn list(State(app): State<App>, params: Params) -> ApiResult {
    let limit: Option<i64> = params.number("limit")?;
    let options = ListOptions {
        all: params.flag("all"),
        limit: limit
            .and_then(|l| usize::try_from(l).ok())
            .filter(|l| *l > 0),
        size: params.flag("size"),
        filters: params.filters()?,
    };
    Ok(json(&app.engine.list(options).await?))
}

pub async fn top(State(app): State<App>, Path(id): Path<String>, params: Params) -> ApiResult {
    Ok(json(&app.engine.top(&id, params.text("ps_args")).await?))
}

pub async fn stats(State(app): State<App>, Path(id): Path<String>, params: Params) -> ApiResult {
    let options = StatsOptions {
        stream: params.flag_or("stream", true),
        one_shot: params.flag("one-shot"),
    };
    Ok(json_lines(app.engine.stats(&id, options).await?))
}
