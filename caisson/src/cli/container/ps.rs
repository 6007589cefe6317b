//! `ps`: the list of containers.

use std::rc::Rc;

use caisson_api::{ContainerSummary, Port};

use crate::cli::command::{COMMAND, Command, Failure, Outcome};
use crate::cli::flags::{FORMAT_TABLE, Flag, Kind, Parsed, filter, flag};
use crate::cli::session::Session;
use crate::cli::table::{Layout, Row};
use crate::cli::template::Format;
use crate::cli::{output, units};
use crate::client;

const FLAGS: &[Flag] = &[
    flag(
        "a",
        "all",
        Kind::Bool,
        "Show all containers (default shows just running)",
    ),
    flag(
        "f",
        "filter",
        Kind::List("filter", filter),
        "Filter output based on conditions provided",
    ),
    flag("", "format", Kind::Text, FORMAT_TABLE),
    flag(
        "n",
        "last",
        Kind::Int,
        "Show n last created containers (includes all states) (default -1)",
    ),
    flag(
        "l",
        "latest",
        Kind::Bool,
        "Show the latest created container (includes all states)",
    ),
    flag("", "no-trunc", Kind::Bool, "Don't truncate output"),
    flag("q", "quiet", Kind::Bool, "Only display container IDs"),
    flag("s", "size", Kind::Bool, "Display total file sizes"),
];

/// `ps`.
pub const COMMANDS: &[Command] = &[Command {
    paths: &["ps", "container ls"],
    hidden_paths: &["container list", "container ps"],
    usage: "[OPTIONS]",
    about: "List containers",
    examples: &[
        "ps -a",
        "ps -q --filter status=exited",
        "ps --format 'table {{.Names}}\\t{{.Status}}\\t{{.Isolation}}'",
    ],
    flags: &[FLAGS],
    run: |s, p| Box::pin(ps(s, p)),
    ..COMMAND
}];

/// The Go type errors name.
const TYPE_NAME: &str = "*formatter.ContainerContext";

/// Columns of container lists.
pub const HEADERS: &[(&str, &str)] = &[
    ("ID", "CONTAINER ID"),
    ("Names", "NAMES"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("CreatedAt", "CREATED AT"),
    ("RunningFor", "CREATED"),
    ("Ports", "PORTS"),
    ("State", "STATE"),
    ("Status", "STATUS"),
    ("Size", "SIZE"),
    ("Labels", "LABELS"),
    ("Mounts", "MOUNTS"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Networks", "NETWORKS"),
    ("Platform", "PLATFORM"),
    ("Isolation", "ISOLATION"),
];

async fn ps(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let quiet = parsed.flag("quiet");
    let format = match parsed.text("format") {
        "" if !quiet => session.config.format("psFormat").unwrap_or_default(),
        given => given.to_owned(),
    };
    let show_size = parsed.flag("size") || (!quiet && format.contains(".Size"));
    let last = if parsed.flag("latest") {
        1
    } else {
        parsed.int("last").unwrap_or(-1)
    };
    let mut target =
        client::target("/containers/json").with_flag("all", parsed.flag("all") || last > 0);
    if last > 0 {
        target = target.with("limit", last.to_string());
    }
    let target = target
        .with_flag("size", show_size)
        .with_filters(parsed.list("filter"));
    let containers: Vec<ContainerSummary> = session.client()?.get(target).await?;
    if !format.is_empty() && !quiet {
        check_format(&format)?;
    }
    let truncate = !parsed.flag("no-trunc");
    let rows: Vec<Row> = containers.iter().map(|c| row(c, truncate)).collect();
    let mut table =
        "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}"
            .to_owned();
    if parsed.flag("size") {
        table.push_str("\t{{.Size}}");
    }
    let layout = Layout {
        type_name: TYPE_NAME,
        table,
        quiet: "{{.ID}}",
        headers: HEADERS,
        raw: "container_id: {{.ID}}\nimage: {{.Image}}\ncommand: {{.Command}}\ncreated_at: {{.CreatedAt}}\nstate: {{.State}}\nstatus: {{.Status}}\nnames: {{.Names}}\nlabels:{{- pad .Labels 1 0}}\nports:{{- pad .Ports 1 0}}\n",
    };
    output::print(layout.render(&format, quiet, &rows).map_err(Failure::new)?)?;
    Ok(0)
}

/// Tries a format on the column names, so that a wrong one is told before anything is asked of the daemon's list.
fn check_format(format: &str) -> Result<(), Failure> {
    let source = match format {
        "table" | "raw" | "json" => return Ok(()),
        other => other
            .strip_prefix("table")
            .unwrap_or(other)
            .replace("\\t", "\t")
            .replace("\\n", "\n"),
    };
    let parsed = Format::parse(&source, TYPE_NAME)
        .map_err(|e| Failure::new(format!("failed to parse template: {e}")))?;
    let columns: Vec<(&str, String)> = HEADERS.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
    match parsed.render(&parsed.header(&columns)) {
        Ok(_) => Ok(()),
        Err(e) if e.ends_with("not defined") => {
            Err(Failure::new(format!("failed to parse template: {e}")))
        }
        Err(e) => Err(Failure::new(format!("failed to execute template: {e}"))),
    }
}

/// Shortens text to `length` characters, the last one an ellipsis.
pub fn ellipsis(text: &str, length: usize) -> String {
    if text.chars().count() <= length {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(length.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// The first twelve characters of an id, without its algorithm.
pub fn short_id(id: &str) -> String {
    let bare = id.strip_prefix("sha256:").unwrap_or(id);
    bare.chars().take(12).collect()
}

/// A Unix time as Go prints it: `2026-11-21 03:08:36 +0000 UTC`, in the local zone.
pub fn go_time(unix_seconds: i64) -> String {
    use chrono::TimeZone;
    match chrono::Local.timestamp_opt(unix_seconds, 0).single() {
        Some(time) => {
            let zone = match time.offset().local_minus_utc() {
                0 => "UTC".to_owned(),
                _ => time.format("%z").to_string(),
            };
            format!("{} {zone}", time.format("%Y-%m-%d %H:%M:%S %z"))
        }
        None => String::new(),
    }
}

/// Ports as Docker groups them: published ones with their address, consecutive exposed ones as a range.
fn ports_text(ports: &[Port]) -> String {
    let mut ports = ports.to_vec();
    ports.sort_by(|a, b| {
        (a.private_port, &a.ip, a.public_port, &a.protocol).cmp(&(
            b.private_port,
            &b.ip,
            b.public_port,
            &b.protocol,
        ))
    });
    let mut shown = Vec::new();
    let mut groups: Vec<(String, u16, u16, String)> = Vec::new();
    for port in &ports {
        if port.public_port != 0 && port.public_port != port.private_port {
            let address = if port.ip.contains(':') {
                format!("[{}]", port.ip)
            } else {
                port.ip.clone()
            };
            let address = if address.is_empty() {
                String::new()
            } else {
                format!("{address}:")
            };
            shown.push(format!(
                "{address}{}->{}/{}",
                port.public_port, port.private_port, port.protocol
            ));
            continue;
        }
        let key = if port.public_port == 0 {
            String::new()
        } else {
            port.ip.clone()
        };
        match groups.iter_mut().find(|g| {
            g.0 == key && g.3 == port.protocol && g.2.checked_add(1) == Some(port.private_port)
        }) {
            Some(group) => group.2 = port.private_port,
            None => groups.push((
                key,
                port.private_port,
                port.private_port,
                port.protocol.clone(),
            )),
        }
    }
    let mut grouped: Vec<String> = groups
        .into_iter()
        .map(|(ip, first, last, protocol)| {
            let range = if first == last {
                first.to_string()
            } else {
                format!("{first}-{last}")
            };
            if ip.is_empty() {
                format!("{range}/{protocol}")
            } else {
                let address = if ip.contains(':') {
                    format!("[{ip}]")
                } else {
                    ip
                };
                format!("{address}:{range}->{range}/{protocol}")
            }
        })
        .collect();
    grouped.append(&mut shown);
    grouped.join(", ")
}

fn size_text(c: &ContainerSummary) -> String {
    let own = units::human_size_digits(c.size_rw.unwrap_or(0) as f64, 3);
    match c.size_root_fs {
        Some(total) if total > 0 => format!(
            "{own} (virtual {})",
            units::human_size_digits(total as f64, 3)
        ),
        _ => own,
    }
}

/// The image as it is shown: a name, or a short id where the name is gone.
fn image_text(c: &ContainerSummary, truncate: bool) -> String {
    if c.image.is_empty() {
        return "<no image>".to_owned();
    }
    if !truncate {
        return c.image.clone();
    }
    if c.image_id == c.image || short_id(&c.image_id) == short_id(&c.image) {
        return short_id(&c.image);
    }
    // A name pinned by digest shows its tag, if any, and not the digest.
    match c.image.split_once('@') {
        Some((name, _)) if name.rsplit('/').next().is_some_and(|n| n.contains(':')) => {
            name.to_owned()
        }
        _ => c.image.clone(),
    }
}

/// One container's fields.
pub fn row(c: &ContainerSummary, truncate: bool) -> Row {
    let names: Vec<&str> = c
        .names
        .iter()
        .map(|n| n.strip_prefix('/').unwrap_or(n))
        .filter(|n| !truncate || !n.contains('/'))
        .collect();
    let command = if truncate {
        ellipsis(&c.command, 20)
    } else {
        c.command.clone()
    };
    let command = serde_json::to_string(&command).unwrap_or(command);
    let mounts: Vec<String> = c
        .mounts
        .iter()
        .map(|m| {
            if m.name.is_empty() {
                m.source.clone()
            } else {
                m.name.clone()
            }
        })
        .map(|m| if truncate { ellipsis(&m, 15) } else { m })
        .collect();
    let labels: Vec<String> = c.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let networks: Vec<&str> = c
        .network_settings
        .networks
        .keys()
        .map(String::as_str)
        .collect();
    let isolation = if c.host_config.isolation.is_empty() {
        "default"
    } else {
        &c.host_config.isolation
    };
    Row {
        fields: vec![
            (
                "ID",
                if truncate {
                    short_id(&c.id)
                } else {
                    c.id.clone()
                },
            ),
            ("Names", names.join(",")),
            ("Image", image_text(c, truncate)),
            ("Command", command),
            ("CreatedAt", go_time(c.created)),
            ("RunningFor", units::ago(c.created)),
            ("Ports", ports_text(&c.ports)),
            ("State", c.state.clone()),
            ("Status", c.status.clone()),
            ("Size", size_text(c)),
            ("Labels", labels.join(",")),
            ("Mounts", mounts.join(",")),
            (
                "LocalVolumes",
                c.mounts
                    .iter()
                    .filter(|m| m.driver == "local")
                    .count()
                    .to_string(),
            ),
            ("Networks", networks.join(",")),
            ("Platform", String::new()),
            ("Isolation", isolation.to_owned()),
        ],
        labels: Some(c.labels.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_grouped() {
        let port = |ip: &str, private_port, public_port| Port {
            ip: ip.into(),
            private_port,
            public_port,
            protocol: "tcp".into(),
        };
        assert_eq!(ports_text(&[]), "");
        assert_eq!(
            ports_text(&[port("", 81, 0), port("", 80, 0), port("", 90, 0)]),
            "80-81/tcp, 90/tcp"
        );
        assert_eq!(
            ports_text(&[port("0.0.0.0", 80, 8080)]),
            "0.0.0.0:8080->80/tcp"
        );
        assert_eq!(ports_text(&[port("::", 80, 80)]), "[::]:80->80/tcp");
    }

    #[test]
    fn text_is_shortened_by_characters() {
        assert_eq!(
            ellipsis("sh -c 'echo hello; exit 3'", 20),
            "sh -c 'echo hello; …"
        );
        assert_eq!(ellipsis("äöü", 3), "äöü");
        assert_eq!(short_id("sha256:0123456789abcdef"), "0123456789ab");
    }
}
