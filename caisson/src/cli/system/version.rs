//! `version`: this program and the daemon.

use std::rc::Rc;

use serde_json::{Value, json};

use crate::cli::command::{COMMAND, Command, Failure, Outcome};
use crate::cli::flags::{FORMAT_OBJECT, Flag, Kind, Parsed, flag};
use crate::cli::output;
use crate::cli::session::Session;
use crate::cli::template::Format;

const FLAGS: &[Flag] = &[flag("f", "format", Kind::Text, FORMAT_OBJECT)];

/// `version`.
pub const COMMANDS: &[Command] = &[Command {
    paths: &["version"],
    usage: "[OPTIONS]",
    about: "Show the caisson version information",
    examples: &["version", "version --format '{{.Server.Version}}'"],
    flags: &[FLAGS],
    run: |s, p| Box::pin(version(s, p)),
    ..COMMAND
}];

/// Go's name for this machine.
fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

async fn version(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let server = match session.client() {
        Ok(client) => client
            .get_raw("/version")
            .await
            .map(with_readable_times)
            .map_err(Failure::from),
        Err(failure) => Err(failure),
    };
    let ours = caisson_api::API_VERSION;
    let spoken = match &server {
        Ok(v) => lower_of(
            ours,
            v.get("ApiVersion").and_then(Value::as_str).unwrap_or(ours),
        ),
        Err(_) => ours.to_owned(),
    };
    let client = json!({
        "Version": env!("CARGO_PKG_VERSION"),
        "ApiVersion": spoken,
        "DefaultAPIVersion": ours,
        "GitCommit": option_env!("CAISSON_COMMIT").unwrap_or(""),
        "GoVersion": "",
        "Os": "linux",
        "Arch": arch(),
        "BuildTime": "",
        "Context": session.context_name(),
    });
    let format = parsed.text("format");
    if !format.is_empty() {
        let template =
            Format::parse(format, "").map_err(|e| format!("template parsing error: {e}"))?;
        let value = json!({"Client": client, "Server": server.as_ref().ok()});
        let text = template
            .render(&template.data(&value))
            .map_err(Failure::new)?;
        output::line(text)?;
    } else {
        output::print(client_text(&client))?;
        if let Ok(server) = &server {
            output::print(server_text(server))?;
        }
    }
    match server {
        Ok(_) => Ok(0),
        Err(failure) => Err(failure),
    }
}

/// Build times of components as Go's ANSIC layout writes them.
fn with_readable_times(mut server: Value) -> Value {
    for component in server
        .get_mut("Components")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if let Some(time) = component.pointer_mut("/Details/BuildTime")
            && let Some(parsed) = time
                .as_str()
                .and_then(|t| chrono::DateTime::parse_from_rfc3339(t).ok())
        {
            *time = Value::String(parsed.format("%a %b %e %H:%M:%S %Y").to_string());
        }
    }
    server
}

/// The lower of two API versions.
fn lower_of(a: &str, b: &str) -> String {
    let parts = |v: &str| {
        v.split('.')
            .map(|p| p.parse::<u32>().unwrap_or(0))
            .collect::<Vec<_>>()
    };
    if parts(a) <= parts(b) {
        a.to_owned()
    } else {
        b.to_owned()
    }
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or("")
}

fn client_text(client: &Value) -> String {
    let (spoken, ours) = (
        text(client, "ApiVersion"),
        text(client, "DefaultAPIVersion"),
    );
    let lowered = if spoken == ours {
        String::new()
    } else {
        format!(" (downgraded from {ours})")
    };
    let mut out = format!(
        "Client:\n Version:           {}\n API version:       {spoken}{lowered}\n",
        text(client, "Version")
    );
    if !text(client, "GitCommit").is_empty() {
        out.push_str(&format!(
            " Git commit:        {}\n",
            text(client, "GitCommit")
        ));
    }
    out.push_str(&format!(
        " OS/Arch:           {}/{}\n Context:           {}\n",
        text(client, "Os"),
        text(client, "Arch"),
        text(client, "Context")
    ));
    out
}

fn server_text(server: &Value) -> String {
    let platform = server
        .pointer("/Platform/Name")
        .and_then(Value::as_str)
        .unwrap_or("");
    let mut out = format!(
        "\nServer:{}{platform}\n",
        if platform.is_empty() { "" } else { " " }
    );
    let none = Vec::new();
    for component in server
        .get("Components")
        .and_then(Value::as_array)
        .unwrap_or(&none)
    {
        out.push_str(&format!(" {}:\n", text(component, "Name")));
        let details = component.get("Details").cloned().unwrap_or_default();
        let mut row =
            |label: &str, value: String| out.push_str(&format!("  {label:<17} {value}\n"));
        row("Version:", text(component, "Version").to_owned());
        if text(component, "Name") == "Engine" {
            row(
                "API version:",
                format!(
                    "{} (minimum version {})",
                    text(&details, "ApiVersion"),
                    text(&details, "MinAPIVersion")
                ),
            );
            if !text(&details, "GoVersion").is_empty() {
                row("Go version:", text(&details, "GoVersion").to_owned());
            }
            row("Git commit:", text(&details, "GitCommit").to_owned());
            row("Built:", text(&details, "BuildTime").to_owned());
            row(
                "OS/Arch:",
                format!("{}/{}", text(&details, "Os"), text(&details, "Arch")),
            );
            row("Experimental:", text(&details, "Experimental").to_owned());
        } else if let Some(details) = details.as_object() {
            for (name, value) in details {
                row(&format!("{name}:"), value.as_str().unwrap_or("").to_owned());
            }
        }
    }
    out
}
