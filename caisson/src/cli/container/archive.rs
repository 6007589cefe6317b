//! `commit` and `export`: a container's file system leaving it.

use std::rc::Rc;

use caisson_api::IdResponse;
use http::Method;
use serde_json::{Value, json};

use super::path;
use crate::cli::command::{COMMAND, Command, Operands, Outcome};
use crate::cli::download;
use crate::cli::flags::{Flag, Kind, Parsed, any, flag};
use crate::cli::output;
use crate::cli::reference::Reference;
use crate::cli::session::Session;
use crate::client;

const COMMIT: &[Flag] = &[
    flag(
        "a",
        "author",
        Kind::Text,
        "Author (e.g., \"John Hannibal Smith <hannibal@a-team.com>\")",
    ),
    flag(
        "c",
        "change",
        Kind::List("list", any),
        "Apply Dockerfile instruction to the created image",
    ),
    flag("m", "message", Kind::Text, "Commit message"),
    flag(
        "p",
        "pause",
        Kind::Bool,
        "Pause container during commit (default true)",
    ),
];
const EXPORT: &[Flag] = &[flag(
    "o",
    "output",
    Kind::Text,
    "Write to a file, instead of STDOUT",
)];

/// `commit` and `export`.
pub const COMMANDS: &[Command] = &[
    Command {
        paths: &["commit", "container commit"],
        usage: "[OPTIONS] CONTAINER [REPOSITORY[:TAG]]",
        about: "Create a new image from a container's changes",
        examples: &["commit -m 'add tools' -c 'CMD [\"sh\"]' web web:patched"],
        flags: &[COMMIT],
        operands: Operands::Between(1, 2),
        run: |s, p| Box::pin(commit(s, p)),
        ..COMMAND
    },
    Command {
        paths: &["export", "container export"],
        usage: "[OPTIONS] CONTAINER",
        about: "Export a container's filesystem as a tar archive",
        examples: &["export -o web.tar web", "export web | tar -t"],
        flags: &[EXPORT],
        operands: Operands::Exactly(1),
        run: |s, p| Box::pin(export(s, p)),
        ..COMMAND
    },
];

async fn commit(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let mut target = client::target("/commit").with("container", &parsed.operands[0]);
    if let Some(name) = parsed.operands.get(1).filter(|n| !n.is_empty()) {
        let reference = Reference::parse(name)?;
        if reference.digest.is_some() {
            return Err("refusing to create a tag with a digest reference".into());
        }
        target = target
            .with("repo", &reference.name)
            .with("tag", reference.tag.as_deref().unwrap_or("latest"));
    }
    target = target
        .with_text("comment", parsed.text("message"))
        .with_text("author", parsed.text("author"));
    for change in parsed.list("change") {
        target = target.with("changes", change);
    }
    if !parsed.flag_or("pause", true) {
        target = target.with("pause", "0");
    }
    let answer: IdResponse = session.client()?.post(target, Some(&json!({}))).await?;
    output::line(answer.id)?;
    Ok(0)
}

async fn export(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let file = parsed.text("output");
    download::check(
        file,
        "failed to export container",
        "cowardly refusing to save to a terminal. Use the -o flag or redirect",
    )?;
    let response = session
        .client()?
        .send::<Value>(Method::GET, path(&parsed.operands[0], "/export"), None)
        .await?;
    download::save(response.into_body(), file).await
}
