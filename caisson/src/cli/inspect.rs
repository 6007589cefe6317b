//! `inspect` of anything: raw JSON, indented as Docker's, or through a template.

use std::rc::Rc;

use serde_json::Value;

use super::command::{COMMAND, Command, Failure, Operands, Outcome};
use super::flags::{FORMAT_OBJECT, Flag, Kind, Parsed, flag};
use super::output;
use super::session::Session;
use super::template::{Format, escape_html};
use crate::client::{self, Client};

const FLAGS: &[Flag] = &[
    flag("f", "format", Kind::Text, FORMAT_OBJECT),
    flag(
        "s",
        "size",
        Kind::Bool,
        "Display total file sizes if the type is container",
    ),
    flag(
        "",
        "type",
        Kind::Text,
        "Only inspect objects of the given type",
    ),
];

/// `inspect`.
pub const COMMANDS: &[Command] = &[Command {
    paths: &["inspect"],
    usage: "[OPTIONS] NAME|ID [NAME|ID...]",
    about: "Return low-level information on caisson objects",
    examples: &[
        "inspect web",
        "inspect -f '{{.State.Pid}}' web",
        "inspect -f '{{json .Config.Env}}' alpine",
    ],
    flags: &[FLAGS],
    operands: Operands::AtLeast(1),
    run: |s, p| Box::pin(any(s, p)),
    ..COMMAND
}];

/// What a name may be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kinds {
    /// Whatever is found first: container, image, network, volume.
    Any,
    /// A container.
    Container,
    /// An image.
    Image,
    /// A network.
    Network,
    /// A volume.
    Volume,
}

async fn any(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let kinds = match parsed.text("type") {
        "" => Kinds::Any,
        "container" => Kinds::Container,
        "image" => Kinds::Image,
        "network" => Kinds::Network,
        "volume" => Kinds::Volume,
        other => return Err(format!("unknown type: {other:?}: must be one of \"container\", \"image\", \"network\", \"volume\"").into()),
    };
    inspect(session, parsed, kinds).await
}

async fn fetch(client: &Client, name: &str, kinds: Kinds, size: bool) -> Result<Value, Failure> {
    let bare = name.trim_start_matches('/');
    let at = |kind: Kinds| match kind {
        Kinds::Container => client::target(format!("/containers/{}/json", client::segment(bare)))
            .with_flag("size", size),
        Kinds::Image => client::target(format!("/images/{}/json", client::segments(name))),
        Kinds::Network => client::target(format!("/networks/{}", client::segment(name))),
        _ => client::target(format!("/volumes/{}", client::segment(name))),
    };
    if kinds != Kinds::Any {
        return Ok(client.get_raw(at(kinds)).await?);
    }
    for kind in [
        Kinds::Container,
        Kinds::Image,
        Kinds::Network,
        Kinds::Volume,
    ] {
        match client.get_raw(at(kind)).await {
            Ok(value) => return Ok(value),
            // A malformed name for one kind may be a good one for the next.
            Err(e) if matches!(e.status(), Some(400 | 404 | 501)) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(format!("Error: No such object: {name}").into())
}

/// Inspects every operand; what could not be found is reported after what could.
pub async fn inspect(session: Rc<Session>, parsed: Parsed, kinds: Kinds) -> Outcome {
    let client = session.client()?;
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    for name in &parsed.operands {
        match fetch(client, name, kinds, parsed.flag("size")).await {
            Ok(value) => found.push(value),
            Err(failure) => errors.push(failure.message),
        }
    }
    show(parsed.text("format"), found, errors)
}

/// Adds what Docker's Go structs always have and its JSON leaves out when it is nil, so that templates can ask for it.
fn with_optional_fields(mut object: Value) -> Value {
    if let Some(state) = object.get_mut("State").and_then(Value::as_object_mut) {
        state.entry("Health").or_insert(Value::Null);
    }
    object
}

/// Prints objects by a format, then fails with the errors.
pub fn show(format: &str, found: Vec<Value>, mut errors: Vec<String>) -> Outcome {
    if format.is_empty() {
        output::line(indented(&Value::Array(found)))?;
    } else {
        let template =
            Format::parse(format, "").map_err(|e| format!("template parsing error: {e}"))?;
        for value in &found {
            match template.render(&template.data(&with_optional_fields(value.clone()))) {
                Ok(text) => output::line(text)?,
                Err(e) => {
                    output::line("")?;
                    errors.push(format!("template parsing error: {e}"));
                    break;
                }
            }
        }
        if found.is_empty() {
            output::line("")?;
        }
    }
    if errors.is_empty() {
        Ok(0)
    } else {
        Err(Failure::new(errors.join("\n")))
    }
}

/// JSON with four spaces, Go's way of writing empty collections and escaping HTML.
pub fn indented(value: &Value) -> String {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(
        &mut bytes,
        serde_json::ser::PrettyFormatter::with_indent(b"    "),
    );
    serde::Serialize::serialize(value, &mut serializer)
        .expect("a JSON value can be written to memory");
    escape_html(&String::from_utf8(bytes).expect("JSON is UTF-8"))
}
