//! `rmi` and `image prune`.

use std::rc::Rc;

use caisson_api::{ImageDeleteItem, ImagesPruneResponse};
use serde_json::Value;

use crate::cli::command::{COMMAND, Command, Failure, Operands, Outcome};
use crate::cli::flags::{Flag, Kind, Parsed, filter, flag};
use crate::cli::prompt::confirmed;
use crate::cli::session::Session;
use crate::cli::{output, units};
use crate::client;

const RMI: &[Flag] = &[
    flag("f", "force", Kind::Bool, "Force removal of the image"),
    flag("", "no-prune", Kind::Bool, "Do not delete untagged parents"),
    flag(
        "",
        "platform",
        Kind::List("list", crate::cli::flags::any),
        "",
    ),
];
const PRUNE: &[Flag] = &[
    flag(
        "a",
        "all",
        Kind::Bool,
        "Remove all unused images, not just dangling ones",
    ),
    flag(
        "",
        "filter",
        Kind::List("filter", filter),
        "Provide filter values (e.g. \"until=<timestamp>\")",
    ),
    flag("f", "force", Kind::Bool, "Do not prompt for confirmation"),
];

/// `rmi` and `image prune`.
pub const COMMANDS: &[Command] = &[
    Command {
        paths: &["rmi", "image rm"],
        hidden_paths: &["image remove"],
        usage: "[OPTIONS] IMAGE [IMAGE...]",
        about: "Remove one or more images",
        examples: &["rmi alpine", "rmi $(caisson images -qf dangling=true)"],
        flags: &[RMI],
        operands: Operands::AtLeast(1),
        run: |s, p| Box::pin(remove(s, p)),
        ..COMMAND
    },
    Command {
        paths: &["image prune"],
        usage: "[OPTIONS]",
        about: "Remove unused images",
        examples: &["image prune -af --filter until=240h"],
        flags: &[PRUNE],
        run: |s, p| Box::pin(prune(s, p)),
        ..COMMAND
    },
];

async fn remove(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let client = session.client()?;
    let force = parsed.flag("force");
    let (mut errors, mut fatal) = (Vec::new(), false);
    for name in &parsed.operands {
        let target = client::target(format!("/images/{}", client::segments(name)))
            .with_flag("force", force)
            .with_flag("noprune", parsed.flag("no-prune"));
        match client.delete(target).await {
            Ok(answer) => {
                let items: Vec<ImageDeleteItem> =
                    caisson_api::from_value(answer).map_err(|e| Failure::new(e.to_string()))?;
                for item in items {
                    match (item.deleted, item.untagged) {
                        (Some(id), _) if !id.is_empty() => output::line(format!("Deleted: {id}"))?,
                        (_, Some(name)) => output::line(format!("Untagged: {name}"))?,
                        _ => {}
                    }
                }
            }
            Err(e) => {
                fatal |= !e.is_not_found();
                errors.push(e.to_string());
            }
        }
    }
    match errors.is_empty() {
        true => Ok(0),
        // With --force what is gone already is told, but is no failure.
        false if force && !fatal => {
            output::complain(errors.join("\n"));
            Ok(0)
        }
        false => Err(Failure::new(errors.join("\n"))),
    }
}

async fn prune(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let all = parsed.flag("all");
    let warning = if all {
        "WARNING! This will remove all images without at least one container associated to them.\nAre you sure you want to continue?"
    } else {
        "WARNING! This will remove all dangling images.\nAre you sure you want to continue?"
    };
    if !parsed.flag("force") && !confirmed(warning)? {
        return Ok(0);
    }
    let (text, space) = prune_images(&session, all, parsed.list("filter")).await?;
    output::print(text)?;
    output::line(format!(
        "Total reclaimed space: {}",
        units::human_size(space as f64)
    ))?;
    Ok(0)
}

/// Removes unused images; returns what to print and the bytes freed.
pub async fn prune_images(
    session: &Session,
    all: bool,
    filters: &[String],
) -> Result<(String, u64), Failure> {
    let mut filters = filters.to_vec();
    filters.push(format!("dangling={}", !all));
    let target = client::target("/images/prune").with_filters(&filters);
    let answer: ImagesPruneResponse = session.client()?.post::<_, Value>(target, None).await?;
    let deleted = answer.images_deleted.unwrap_or_default();
    if deleted.is_empty() {
        return Ok((String::new(), 0));
    }
    let mut text = "Deleted Images:\n".to_owned();
    for item in deleted {
        match (item.untagged, item.deleted) {
            (Some(name), _) if !name.is_empty() => text.push_str(&format!("untagged: {name}\n")),
            (_, Some(id)) => text.push_str(&format!("deleted: {id}\n")),
            _ => {}
        }
    }
    text.push('\n');
    Ok((text, answer.space_reclaimed))
}
