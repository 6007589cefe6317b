//! Files of containers: copy in and out, changes, export.

use std::path::{Path as FsPath, PathBuf};

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use caisson_api::PathStatHeader;
use caisson_engine::PathWriteOptions;
use caisson_engine::runtime::PathStat;
use http::{HeaderValue, StatusCode};

use super::App;
use super::body::{decompressed, download, json, upload};
use super::error::{ApiError, ApiResult};
use super::params::Params;

const STAT_HEADER: &str = "x-docker-container-path-stat";

fn path(params: &Params) -> ApiResult<PathBuf> {
    params
        .get("path")
        .map(PathBuf::from)
        .ok_or_else(|| ApiError::bad("bad parameter: path cannot be empty"))
}

/// Go's `os.FileMode`, which has its own bits for everything but permissions.
fn go_file_mode(st_mode: u32) -> u32 {
    let kind = match st_mode & 0o170_000 {
        0o040_000 => 1 << 31,           // directory
        0o120_000 => 1 << 27,           // symbolic link
        0o060_000 => 1 << 26,           // block device
        0o020_000 => 1 << 26 | 1 << 21, // character device
        0o010_000 => 1 << 25,           // named pipe
        0o140_000 => 1 << 24,           // socket
        _ => 0,
    };
    let bit = |from: u32, to: u32| if st_mode & from != 0 { 1 << to } else { 0 };
    kind | bit(0o4000, 23) | bit(0o2000, 22) | bit(0o1000, 20) | (st_mode & 0o777)
}

fn stat_header(stat: PathStat) -> ApiResult<HeaderValue> {
    let header = PathStatHeader {
        name: stat.name,
        size: i64::try_from(stat.size).unwrap_or(i64::MAX),
        mode: go_file_mode(stat.mode),
        mtime: stat.mtime.into(),
        link_target: stat.link_target.unwrap_or_default(),
    };
    let text = serde_json::to_vec(&header).map_err(|e| ApiError::internal(e.to_string()))?;
    let encoded = base64::engine::general_purpose::STANDARD.encode(text);
    HeaderValue::try_from(encoded).map_err(|e| ApiError::internal(e.to_string()))
}

pub async fn stat(State(app): State<App>, Path(id): Path<String>, params: Params) -> ApiResult {
    let stat = app.engine.path_stat(&id, &path(&params)?).await?;
    Ok(([(STAT_HEADER, stat_header(stat)?)], Body::empty()).into_response())
}

pub async fn read(State(app): State<App>, Path(id): Path<String>, params: Params) -> ApiResult {
    let (stat, tar) = app.engine.path_read(&id, &path(&params)?).await?;
    let mut response = download(tar, "application/x-tar");
    response
        .headers_mut()
        .insert(STAT_HEADER, stat_header(stat)?);
    Ok(response)
}

pub async fn write(
    State(app): State<App>,
    Path(id): Path<String>,
    params: Params,
    request: Request,
) -> ApiResult {
    let options = PathWriteOptions {
        no_overwrite_dir_non_dir: params.flag("noOverwriteDirNonDir"),
        copy_uid_gid: params.flag("copyUIDGID"),
    };
    let path = path(&params)?;
    let (reader, leftover) = upload(request.into_body());
    if let Err(error) = app
        .engine
        .path_write(&id, FsPath::new(&path), decompressed(reader), options)
        .await
    {
        leftover.drain().await;
        return Err(error.into());
    }
    Ok(StatusCode::OK.into_response())
}

pub async fn changes(State(app): State<App>, Path(id): Path<String>) -> ApiResult {
    Ok(json(&app.engine.changes(&id).await?))
}

pub async fn export(State(app): State<App>, Path(id): Path<String>) -> ApiResult<Response> {
    Ok(download(
        app.engine.export(&id).await?,
        "application/octet-stream",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_gos() {
        // Values printed by Go's os.FileMode for the same files.
        assert_eq!(go_file_mode(0o100_644), 0o644);
        assert_eq!(go_file_mode(0o040_755), 0x8000_01ed);
        assert_eq!(go_file_mode(0o041_777), 0x8010_01ff);
        assert_eq!(go_file_mode(0o120_777), 0x0800_01ff);
        assert_eq!(go_file_mode(0o104_755), 0x0080_01ed);
        assert_eq!(go_file_mode(0o020_666), 0x0420_01b6);
        assert_eq!(go_file_mode(0o060_660), 0x0400_01b0);
    }
}
