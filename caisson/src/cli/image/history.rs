//! `history`: the steps an image was made of.

use std::rc::Rc;

use caisson_api::HistoryItem;

use crate::cli::command::{COMMAND, Command, Failure, Operands, Outcome};
use crate::cli::container::ps::{ellipsis, short_id};
use crate::cli::flags::{FORMAT_TABLE, Flag, Kind, Parsed, flag};
use crate::cli::session::Session;
use crate::cli::table::{Layout, Row};
use crate::cli::{output, units};
use crate::client;

const FLAGS: &[Flag] = &[
    flag("", "format", Kind::Text, FORMAT_TABLE),
    flag(
        "H",
        "human",
        Kind::Bool,
        "Print sizes and dates in human readable format (default true)",
    ),
    flag("", "no-trunc", Kind::Bool, "Don't truncate output"),
    flag("q", "quiet", Kind::Bool, "Only show image IDs"),
];

/// `history`.
pub const COMMANDS: &[Command] = &[Command {
    paths: &["history", "image history"],
    usage: "[OPTIONS] IMAGE",
    about: "Show the history of an image",
    examples: &["history --no-trunc alpine"],
    flags: &[FLAGS],
    operands: Operands::Exactly(1),
    run: |s, p| Box::pin(history(s, p)),
    ..COMMAND
}];

async fn history(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let path = format!("/images/{}/history", client::segments(&parsed.operands[0]));
    let items: Vec<HistoryItem> = session.client()?.get(path).await?;
    let (human, truncate) = (parsed.flag_or("human", true), !parsed.flag("no-trunc"));
    let rows: Vec<Row> = items.iter().map(|i| row(i, human, truncate)).collect();
    let created = if human {
        "{{.CreatedSince}}"
    } else {
        "{{.CreatedAt}}"
    };
    let layout = Layout {
        type_name: "*image.historyContext",
        table: format!(
            "{{{{.ID}}}}\t{created}\t{{{{.CreatedBy}}}}\t{{{{.Size}}}}\t{{{{.Comment}}}}"
        ),
        quiet: "{{.ID}}",
        headers: &[
            ("ID", "IMAGE"),
            ("CreatedSince", "CREATED"),
            ("CreatedAt", "CREATED AT"),
            ("CreatedBy", "CREATED BY"),
            ("Size", "SIZE"),
            ("Comment", "COMMENT"),
        ],
        raw: "",
    };
    output::print(
        layout
            .render(parsed.text("format"), parsed.flag("quiet"), &rows)
            .map_err(Failure::new)?,
    )?;
    Ok(0)
}

fn row(item: &HistoryItem, human: bool, truncate: bool) -> Row {
    use chrono::{Local, SecondsFormat, TimeZone};
    let created = Local.timestamp_opt(item.created, 0).single();
    let at = created
        .map(|t| t.to_rfc3339_opts(SecondsFormat::Secs, true))
        .unwrap_or_default();
    let by = item.created_by.replace('\t', " ");
    Row {
        fields: vec![
            (
                "ID",
                if truncate {
                    short_id(&item.id)
                } else {
                    item.id.clone()
                },
            ),
            (
                "CreatedSince",
                if item.created <= 0 {
                    "N/A".to_owned()
                } else {
                    units::ago(item.created)
                },
            ),
            ("CreatedAt", at),
            ("CreatedBy", if truncate { ellipsis(&by, 45) } else { by }),
            (
                "Size",
                if human {
                    units::human_size_digits(item.size as f64, 3)
                } else {
                    item.size.to_string()
                },
            ),
            ("Comment", item.comment.clone()),
        ],
        labels: None,
    }
}
