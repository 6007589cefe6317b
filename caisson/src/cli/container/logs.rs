//! `logs`.

use std::rc::Rc;

use caisson_api::ContainerInspect;
use http::Method;
use serde_json::Value;

use super::path;
use crate::cli::command::{COMMAND, Command, Failure, Operands, Outcome};
use crate::cli::flags::{Flag, Kind, Parsed, flag};
use crate::cli::output::{Stream, Writer};
use crate::cli::session::Session;
use crate::cli::stream::Frames;
use crate::cli::timestamps;
use crate::client;

const FLAGS: &[Flag] = &[
    flag(
        "",
        "details",
        Kind::Bool,
        "Show extra details provided to logs",
    ),
    flag("f", "follow", Kind::Bool, "Follow log output"),
    flag(
        "",
        "since",
        Kind::Text,
        "Show logs since timestamp (e.g. \"2013-01-02T13:23:37Z\") or relative (e.g. \"42m\" for 42 minutes)",
    ),
    flag(
        "n",
        "tail",
        Kind::Text,
        "Number of lines to show from the end of the logs (default \"all\")",
    ),
    flag("t", "timestamps", Kind::Bool, "Show timestamps"),
    flag(
        "",
        "until",
        Kind::Text,
        "Show logs before a timestamp (e.g. \"2013-01-02T13:23:37Z\") or relative (e.g. \"42m\" for 42 minutes)",
    ),
];

/// `logs`.
pub const COMMANDS: &[Command] = &[Command {
    paths: &["logs", "container logs"],
    usage: "[OPTIONS] CONTAINER",
    about: "Fetch the logs of a container",
    examples: &["logs -f --tail 100 web", "logs --since 10m -t web"],
    flags: &[FLAGS],
    operands: Operands::Exactly(1),
    run: |s, p| Box::pin(logs(s, p)),
    ..COMMAND
}];

async fn logs(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let client = session.client()?;
    let container: ContainerInspect = client.get(path(&parsed.operands[0], "/json")).await?;
    let moment = |name: &str| match parsed.text(name) {
        "" => Ok(String::new()),
        text => timestamps::parse(text).map_err(|_| {
            format!(
                "invalid value for {name:?}: failed to parse value as time or duration: {text:?}"
            )
        }),
    };
    let target = path(&container.id, "/logs")
        .with("stdout", "1")
        .with("stderr", "1")
        .with_text("since", &moment("since")?)
        .with_text("until", &moment("until")?)
        .with_flag("timestamps", parsed.flag("timestamps"))
        .with_flag("follow", parsed.flag("follow"))
        .with_flag("details", parsed.flag("details"))
        .with("tail", parsed.last("tail").unwrap_or("all"));
    let mut body = client
        .send::<Value>(Method::GET, target, None)
        .await?
        .into_body();
    let writer = Writer::start();
    let mut frames = Frames::default();
    'reading: while let Some(chunk) = client::next_chunk(&mut body).await? {
        if container.config.tty {
            if !writer.write(Stream::Out, chunk).await {
                break;
            }
            continue;
        }
        frames.feed(&chunk);
        while let Some((stream, bytes)) = frames.next().map_err(Failure::new)? {
            if !writer.write(stream, bytes).await {
                break 'reading;
            }
        }
    }
    writer.finish().await?;
    Ok(0)
}
