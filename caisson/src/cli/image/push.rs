//! `push` and `tag`.

use std::rc::Rc;

use http::Method;
use serde_json::Value;

use crate::cli::command::{COMMAND, Command, Operands, Outcome};
use crate::cli::flags::{Flag, Kind, Parsed, flag};
use crate::cli::output;
use crate::cli::progress::{self, Place};
use crate::cli::reference::Reference;
use crate::cli::session::Session;
use crate::client::{self, JsonStream};

const FLAGS: &[Flag] = &[
    flag(
        "a",
        "all-tags",
        Kind::Bool,
        "Push all tags of an image to the repository",
    ),
    flag(
        "",
        "disable-content-trust",
        Kind::Bool,
        "Skip image signing (default true)",
    ),
    flag("", "platform", Kind::Text, ""),
    flag("q", "quiet", Kind::Bool, "Suppress verbose output"),
];

/// `push` and `tag`.
pub const COMMANDS: &[Command] = &[
    Command {
        paths: &["push", "image push"],
        usage: "[OPTIONS] NAME[:TAG]",
        about: "Upload an image to a registry",
        examples: &["push registry.example:5000/team/app:1.2"],
        flags: &[FLAGS],
        operands: Operands::Exactly(1),
        run: |s, p| Box::pin(push(s, p)),
        ..COMMAND
    },
    Command {
        paths: &["tag", "image tag"],
        usage: "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]",
        about: "Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE",
        examples: &["tag app:latest registry.example:5000/team/app:1.2"],
        operands: Operands::Exactly(2),
        run: |s, p| Box::pin(tag(s, p)),
        ..COMMAND
    },
];

async fn push(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let reference = Reference::parse(&parsed.operands[0])?;
    let all = parsed.flag("all-tags");
    if all && reference.tag.is_some() {
        return Err("tag can't be used with --all-tags/-a".into());
    }
    let quiet = parsed.flag("quiet");
    if !all && reference.tag.is_none() && !quiet {
        output::line("Using default tag: latest")?;
    }
    let tag = if all {
        ""
    } else {
        reference.tag.as_deref().unwrap_or("latest")
    };
    let auth = session.config.registry_auth_header(&reference.name)?;
    let target = client::target(format!(
        "/images/{}/push",
        client::segments(&reference.name)
    ))
    .with_text("tag", tag);
    let response = session
        .client()?
        .send_with::<Value>(
            Method::POST,
            target,
            None,
            &[("X-Registry-Auth", auth.as_str())],
        )
        .await?;
    progress::show(
        JsonStream::new(response),
        if quiet { Place::Nowhere } else { Place::Stdout },
    )
    .await?;
    if quiet {
        output::line(reference.familiar_tagged())?;
    }
    Ok(0)
}

async fn tag(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let target = Reference::parse(&parsed.operands[1]).map_err(|e| {
        format!(
            "Error parsing reference: {:?} is not a valid repository/tag: {e}",
            parsed.operands[1]
        )
    })?;
    if target.digest.is_some() || target.is_id {
        return Err("refusing to create a tag with a digest reference".into());
    }
    let request = client::target(format!(
        "/images/{}/tag",
        client::segments(&parsed.operands[0])
    ))
    .with("repo", &target.name)
    .with("tag", target.tag.as_deref().unwrap_or("latest"));
    session.client()?.act::<Value>(request, None).await?;
    Ok(0)
}
