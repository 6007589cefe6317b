//! `system prune`: stopped containers, unused images.

use std::rc::Rc;

use crate::cli::command::{COMMAND, Command, Outcome};
use crate::cli::container::lifecycle::prune_containers;
use crate::cli::flags::{Flag, Kind, Parsed, filter, flag};
use crate::cli::image::remove::prune_images;
use crate::cli::prompt::confirmed;
use crate::cli::session::Session;
use crate::cli::{output, units};

const FLAGS: &[Flag] = &[
    flag(
        "a",
        "all",
        Kind::Bool,
        "Remove all unused images not just dangling ones",
    ),
    flag(
        "",
        "filter",
        Kind::List("filter", filter),
        "Provide filter values (e.g. \"label=<key>=<value>\")",
    ),
    flag("f", "force", Kind::Bool, "Do not prompt for confirmation"),
];

/// `system prune`.
pub const COMMANDS: &[Command] = &[Command {
    paths: &["system prune"],
    usage: "[OPTIONS]",
    about: "Remove unused data",
    examples: &["system prune -af --filter until=24h"],
    flags: &[FLAGS],
    run: |s, p| Box::pin(prune(s, p)),
    ..COMMAND
}];

async fn prune(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let all = parsed.flag("all");
    let images = if all {
        "all images without at least one container associated to them"
    } else {
        "all dangling images"
    };
    let mut warning =
        format!("WARNING! This will remove:\n  - all stopped containers\n  - {images}\n");
    let filters = parsed.list("filter");
    if !filters.is_empty() {
        warning.push_str(&format!(
            "\n  Items to be pruned will be filtered with:\n  - {}\n",
            filters.join("\n  - ")
        ));
    }
    if !parsed.flag("force")
        && !confirmed(&format!("{warning}\nAre you sure you want to continue?"))?
    {
        return Ok(0);
    }
    let (text, containers) = prune_containers(&session, filters).await?;
    output::print(text)?;
    let (text, images) = prune_images(&session, all, filters).await?;
    output::print(text)?;
    output::line(format!(
        "Total reclaimed space: {}",
        units::human_size((containers + images) as f64)
    ))?;
    Ok(0)
}
