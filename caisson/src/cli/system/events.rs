//! `events`: what happens, as it happens.

use std::rc::Rc;

use caisson_api::EventMessage;
use http::Method;
use serde_json::Value;

use crate::cli::command::{COMMAND, Command, Failure, Outcome};
use crate::cli::flags::{FORMAT_OBJECT, Flag, Kind, Parsed, filter, flag};
use crate::cli::session::Session;
use crate::cli::template::Format;
use crate::cli::{output, timestamps};
use crate::client::{self, JsonStream};

const FLAGS: &[Flag] = &[
    flag(
        "f",
        "filter",
        Kind::List("filter", filter),
        "Filter output based on conditions provided",
    ),
    flag("", "format", Kind::Text, FORMAT_OBJECT),
    flag(
        "",
        "since",
        Kind::Text,
        "Show all events created since timestamp",
    ),
    flag(
        "",
        "until",
        Kind::Text,
        "Stream events until this timestamp",
    ),
];

/// `events`.
pub const COMMANDS: &[Command] = &[Command {
    paths: &["events", "system events"],
    usage: "[OPTIONS]",
    about: "Get real time events from the server",
    examples: &[
        "events --since 10m --until 0s",
        "events --filter type=container --format '{{.Action}} {{.Actor.ID}}'",
    ],
    flags: &[FLAGS],
    run: |s, p| Box::pin(events(s, p)),
    ..COMMAND
}];

async fn events(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let format = parsed.text("format");
    let template = match format {
        "" | "json" => None,
        other => Some(
            Format::parse(other, "*events.Message").map_err(|e| Failure {
                message: format!("Error parsing format: {e}"),
                code: 64,
            })?,
        ),
    };
    let moment = |name: &str| {
        if parsed.text(name).is_empty() {
            Ok(String::new())
        } else {
            timestamps::parse(parsed.text(name))
        }
    };
    let target = client::target("/events")
        .with_text("since", &moment("since")?)
        .with_text("until", &moment("until")?)
        .with_filters(parsed.list("filter"));
    let response = session
        .client()?
        .send::<Value>(Method::GET, target, None)
        .await?;
    let mut stream = JsonStream::new(response);
    while let Some(value) = stream.next().await? {
        match &template {
            Some(template) => output::line(
                template
                    .render(&template.data(&fields(&value)))
                    .map_err(Failure::new)?,
            )?,
            None if format == "json" => output::line(value.to_string())?,
            None => {
                let event: EventMessage =
                    caisson_api::from_value(value).map_err(|e| Failure::new(e.to_string()))?;
                output::line(line(&event))?;
            }
        }
    }
    Ok(0)
}

/// The names templates know an event's members by.
fn fields(value: &Value) -> Value {
    let mut named = value.clone();
    if let Value::Object(map) = &mut named {
        for (json, go) in [
            ("status", "Status"),
            ("id", "ID"),
            ("from", "From"),
            ("scope", "Scope"),
            ("time", "Time"),
            ("timeNano", "TimeNano"),
        ] {
            let member = map
                .get(json)
                .cloned()
                .unwrap_or_else(|| Value::String(String::new()));
            map.insert(go.to_owned(), member);
        }
    }
    named
}

fn line(event: &EventMessage) -> String {
    use chrono::{Local, SecondsFormat, TimeZone};
    let time = if event.time_nano != 0 {
        Local
            .timestamp_nanos(event.time_nano)
            .to_rfc3339_opts(SecondsFormat::Nanos, true)
    } else {
        Local
            .timestamp_opt(event.time, 0)
            .single()
            .map(|t| t.to_rfc3339_opts(SecondsFormat::Nanos, true))
            .unwrap_or_default()
    };
    let attributes: Vec<String> = event
        .actor
        .attributes
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    let attributes = if attributes.is_empty() {
        String::new()
    } else {
        format!(" ({})", attributes.join(", "))
    };
    format!(
        "{time} {} {} {}{attributes}",
        event.kind, event.action, event.actor.id
    )
}
