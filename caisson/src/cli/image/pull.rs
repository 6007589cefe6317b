//! `pull`, and the pulling that `run` and `create` do.

use std::rc::Rc;

use http::Method;
use serde_json::Value;

use crate::cli::command::{COMMAND, Command, Failure, Operands, Outcome};
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
        "Download all tagged images in the repository",
    ),
    flag(
        "",
        "disable-content-trust",
        Kind::Bool,
        "Skip image verification (default true)",
    ),
    flag(
        "",
        "platform",
        Kind::Text,
        "Set platform if server is multi-platform capable",
    ),
    flag("q", "quiet", Kind::Bool, "Suppress verbose output"),
];

/// `pull`.
pub const COMMANDS: &[Command] = &[Command {
    paths: &["pull", "image pull"],
    usage: "[OPTIONS] NAME[:TAG|@DIGEST]",
    about: "Download an image from a registry",
    examples: &[
        "pull alpine",
        "pull --platform linux/arm64 registry.example:5000/team/app:1.2",
    ],
    flags: &[FLAGS],
    operands: Operands::Exactly(1),
    run: |s, p| Box::pin(pull(s, p)),
    ..COMMAND
}];

/// Where a pull reports.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum PullOutput {
    /// Standard output, as `pull` does.
    Stdout,
    /// Standard error, as `run` does.
    Stderr,
    /// Not at all.
    Silent,
}

/// Pulls one image.
pub async fn pull_image(
    session: &Session,
    reference: &Reference,
    platform: &str,
    shown: PullOutput,
) -> Result<(), Failure> {
    request(
        session,
        &reference.name,
        &reference.tag_or_digest(),
        platform,
        shown,
    )
    .await
}

async fn request(
    session: &Session,
    name: &str,
    tag: &str,
    platform: &str,
    shown: PullOutput,
) -> Result<(), Failure> {
    let auth = session.config.registry_auth_header(name)?;
    let target = client::target("/images/create")
        .with("fromImage", name)
        .with_text("tag", tag)
        .with_text("platform", platform);
    let client = session.client()?;
    let response = client
        .send_with::<Value>(
            Method::POST,
            target,
            None,
            &[("X-Registry-Auth", auth.as_str())],
        )
        .await?;
    let place = match shown {
        PullOutput::Stdout => Place::Stdout,
        PullOutput::Stderr => Place::Stderr,
        PullOutput::Silent => Place::Nowhere,
    };
    progress::show(JsonStream::new(response), place).await
}

/// The full name, with the registry that is left out when typing.
fn canonical(reference: &Reference) -> String {
    let name = &reference.name;
    let has_registry = name
        .split_once('/')
        .is_some_and(|(d, _)| d.contains('.') || d.contains(':') || d == "localhost");
    let full = match (has_registry, name.contains('/')) {
        (true, _) => name.clone(),
        (false, true) => format!("docker.io/{name}"),
        (false, false) => format!("docker.io/library/{name}"),
    };
    match &reference.digest {
        Some(digest) => match &reference.tag {
            Some(tag) => format!("{full}:{tag}@{digest}"),
            None => format!("{full}@{digest}"),
        },
        None => format!("{full}:{}", reference.tag.as_deref().unwrap_or("latest")),
    }
}

async fn pull(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let reference = Reference::parse(&parsed.operands[0])?;
    let quiet = parsed.flag("quiet");
    let shown = if quiet {
        PullOutput::Silent
    } else {
        PullOutput::Stdout
    };
    if parsed.flag("all-tags") {
        if reference.tag.is_some() || reference.digest.is_some() {
            return Err("tag can't be used with --all-tags/-a".into());
        }
        request(
            &session,
            &reference.name,
            "",
            parsed.text("platform"),
            shown,
        )
        .await?;
        output::line(canonical(&reference).trim_end_matches(":latest"))?;
        return Ok(0);
    }
    if reference.tag.is_none() && reference.digest.is_none() && !quiet {
        output::line("Using default tag: latest")?;
    }
    pull_image(&session, &reference, parsed.text("platform"), shown).await?;
    output::line(canonical(&reference))?;
    Ok(0)
}
