//! a streamed answer into a file or standard output; the file appears whole or not at all.

use std::io::{IsTerminal, Write};
use std::path::Path;

use hyper::body::Incoming;

use super::command::{Failure, Outcome, go_io_error};
use super::output::{Stream, Writer};
use crate::client;

/// Refuses a terminal, a directory and a path whose directory is missing, before anything is asked of the daemon.
pub fn check(file: &str, what: &str, terminal: &str) -> Result<(), Failure> {
    if file.is_empty() {
        return if std::io::stdout().is_terminal() {
            Err(terminal.into())
        } else {
            Ok(())
        };
    }
    let path = Path::new(file);
    let parent = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."));
    if let Err(e) = std::fs::metadata(parent) {
        return Err(format!(
            "{what}: invalid output path: stat {}: {}",
            parent.display(),
            go_io_error(&e)
        )
        .into());
    }
    if path.is_dir() {
        return Err(format!("{what}: invalid output path: {file:?} must be a regular file").into());
    }
    Ok(())
}

/// Copies the body to `file`, or to standard output when it is empty.
pub async fn save(mut body: Incoming, file: &str) -> Outcome {
    if file.is_empty() {
        let writer = Writer::start();
        while let Some(chunk) = client::next_chunk(&mut body).await? {
            if !writer.write(Stream::Out, chunk).await {
                break;
            }
        }
        writer.finish().await?;
        return Ok(0);
    }
    let path = Path::new(file);
    let special = std::fs::metadata(path).is_ok_and(|m| !m.is_file());
    let temporary = path.with_file_name(format!(
        ".{}.{}",
        path.file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default(),
        std::process::id()
    ));
    let target = if special { path } else { temporary.as_path() };
    let result = copy(&mut body, target).await;
    let failed =
        |e: std::io::Error| Failure::new(format!("failed to write {file}: {}", go_io_error(&e)));
    match result {
        Ok(()) if special => Ok(0),
        Ok(()) => std::fs::rename(&temporary, path)
            .map(|()| 0)
            .map_err(failed),
        Err(failure) => {
            if !special {
                // The half-written file is of no use to anyone.
                let _ = std::fs::remove_file(&temporary);
            }
            Err(failure)
        }
    }
}

async fn copy(body: &mut Incoming, path: &Path) -> Result<(), Failure> {
    let failed =
        |e: std::io::Error| Failure::new(format!("open {}: {}", path.display(), go_io_error(&e)));
    let mut out = std::fs::File::create(path).map_err(failed)?;
    while let Some(chunk) = client::next_chunk(body).await? {
        out.write_all(&chunk).map_err(failed)?;
    }
    out.flush().map_err(failed)
}
