//! the verbs without output of their own: stop, restart, kill, pause, unpause, rm, wait, rename, and the short listings port, top, diff, prune.

use std::rc::Rc;

use caisson_api::{
    ContainerInspect, ContainersPruneResponse, FilesystemChange, TopResponse, WaitResponse,
};
use serde_json::Value;

use super::{each, path};
use crate::cli::command::{COMMAND, Command, Failure, Operands, Outcome};
use crate::cli::flags::{Flag, Kind, Parsed, filter, flag};
use crate::cli::prompt::confirmed;
use crate::cli::session::Session;
use crate::cli::{output, table, units};
use crate::client;

const STOP: &[Flag] = &[
    flag("s", "signal", Kind::Text, "Signal to send to the container"),
    flag(
        "t",
        "timeout",
        Kind::Int,
        "Seconds to wait before killing the container",
    ),
    flag("", "time", Kind::Int, ""),
];
const KILL: &[Flag] = &[flag(
    "s",
    "signal",
    Kind::Text,
    "Signal to send to the container",
)];
const RM: &[Flag] = &[
    flag(
        "f",
        "force",
        Kind::Bool,
        "Force the removal of a running container (uses SIGKILL)",
    ),
    flag("l", "link", Kind::Bool, "Remove the specified link"),
    flag(
        "v",
        "volumes",
        Kind::Bool,
        "Remove anonymous volumes associated with the container",
    ),
];
const PRUNE: &[Flag] = &[
    flag(
        "",
        "filter",
        Kind::List("filter", filter),
        "Provide filter values (e.g. \"until=<timestamp>\")",
    ),
    flag("f", "force", Kind::Bool, "Do not prompt for confirmation"),
];
const MANY: &str = "CONTAINER [CONTAINER...]";

/// These commands.
pub const COMMANDS: &[Command] = &[
    Command {
        paths: &["stop", "container stop"],
        usage: "[OPTIONS] CONTAINER [CONTAINER...]",
        about: "Stop one or more running containers",
        examples: &["stop web", "stop -t 30 -s SIGINT db"],
        flags: &[STOP],
        operands: Operands::AtLeast(1),
        run: |s, p| Box::pin(stop(s, p, "/stop")),
        ..COMMAND
    },
    Command {
        paths: &["restart", "container restart"],
        usage: "[OPTIONS] CONTAINER [CONTAINER...]",
        about: "Restart one or more containers",
        examples: &["restart web", "restart -t 0 web"],
        flags: &[STOP],
        operands: Operands::AtLeast(1),
        run: |s, p| Box::pin(stop(s, p, "/restart")),
        ..COMMAND
    },
    Command {
        paths: &["kill", "container kill"],
        usage: "[OPTIONS] CONTAINER [CONTAINER...]",
        about: "Kill one or more running containers",
        examples: &["kill web", "kill -s HUP web"],
        flags: &[KILL],
        operands: Operands::AtLeast(1),
        run: |s, p| Box::pin(kill(s, p)),
        ..COMMAND
    },
    Command {
        paths: &["pause", "container pause"],
        usage: MANY,
        about: "Pause all processes within one or more containers",
        examples: &["pause web"],
        operands: Operands::AtLeast(1),
        run: |s, p| Box::pin(simple(s, p, "/pause")),
        ..COMMAND
    },
    Command {
        paths: &["unpause", "container unpause"],
        usage: MANY,
        about: "Unpause all processes within one or more containers",
        examples: &["unpause web"],
        operands: Operands::AtLeast(1),
        run: |s, p| Box::pin(simple(s, p, "/unpause")),
        ..COMMAND
    },
    Command {
        paths: &["rm", "container rm"],
        hidden_paths: &["container remove"],
        usage: "[OPTIONS] CONTAINER [CONTAINER...]",
        about: "Remove one or more containers",
        examples: &["rm web", "rm -f $(caisson ps -aq)"],
        flags: &[RM],
        operands: Operands::AtLeast(1),
        run: |s, p| Box::pin(remove(s, p)),
        ..COMMAND
    },
    Command {
        paths: &["wait", "container wait"],
        usage: MANY,
        about: "Block until one or more containers stop, then print their exit codes",
        examples: &["wait job"],
        operands: Operands::AtLeast(1),
        run: |s, p| Box::pin(wait(s, p)),
        ..COMMAND
    },
    Command {
        paths: &["rename", "container rename"],
        usage: "CONTAINER NEW_NAME",
        about: "Rename a container",
        examples: &["rename old new"],
        operands: Operands::Exactly(2),
        run: |s, p| Box::pin(rename(s, p)),
        ..COMMAND
    },
    Command {
        paths: &["port", "container port"],
        usage: "CONTAINER [PRIVATE_PORT[/PROTO]]",
        about: "List port mappings or a specific mapping for the container",
        examples: &["port web", "port web 80/tcp"],
        operands: Operands::Between(1, 2),
        run: |s, p| Box::pin(port(s, p)),
        ..COMMAND
    },
    Command {
        paths: &["top", "container top"],
        usage: "CONTAINER [ps OPTIONS]",
        about: "Display the running processes of a container",
        examples: &["top web", "top web -o pid,cmd"],
        operands: Operands::AtLeast(1),
        interspersed: false,
        run: |s, p| Box::pin(top(s, p)),
        ..COMMAND
    },
    Command {
        paths: &["diff", "container diff"],
        usage: "CONTAINER",
        about: "Inspect changes to files or directories on a container's filesystem",
        examples: &["diff web"],
        operands: Operands::Exactly(1),
        run: |s, p| Box::pin(diff(s, p)),
        ..COMMAND
    },
    Command {
        paths: &["container prune"],
        usage: "[OPTIONS]",
        about: "Remove all stopped containers",
        examples: &["container prune -f --filter until=24h"],
        flags: &[PRUNE],
        run: |s, p| Box::pin(prune(s, p)),
        ..COMMAND
    },
];

async fn stop(session: Rc<Session>, parsed: Parsed, verb: &'static str) -> Outcome {
    let client = session.client()?;
    if parsed.given("time") && parsed.given("timeout") {
        return Err("conflicting options: cannot specify both --timeout and --time".into());
    }
    let timeout = parsed
        .int("timeout")
        .or(parsed.int("time"))
        .map(|t| t.to_string())
        .unwrap_or_default();
    each(&parsed.operands, |name| {
        let target = path(&name, verb)
            .with_text("signal", parsed.text("signal"))
            .with_text("t", &timeout);
        async move { Ok(client.act::<Value>(target, None).await?) }
    })
    .await
}

async fn kill(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let client = session.client()?;
    each(&parsed.operands, |name| {
        let target = path(&name, "/kill").with_text("signal", parsed.text("signal"));
        async move { Ok(client.act::<Value>(target, None).await?) }
    })
    .await
}

async fn simple(session: Rc<Session>, parsed: Parsed, verb: &'static str) -> Outcome {
    let client = session.client()?;
    each(&parsed.operands, |name| async move {
        Ok(client.act::<Value>(path(&name, verb), None).await?)
    })
    .await
}

async fn remove(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let client = session.client()?;
    let force = parsed.flag("force");
    each(&parsed.operands, |name| {
        let target = path(&name, "")
            .with_flag("force", force)
            .with_flag("v", parsed.flag("volumes"))
            .with_flag("link", parsed.flag("link"));
        async move {
            let trimmed = name.trim_matches('/');
            if trimmed.is_empty() {
                return Err("Container name cannot be empty".into());
            }
            match client.delete(target).await {
                // With --force what is gone already is told, but is no failure.
                Err(e) if force && e.is_not_found() => Err(Failure {
                    message: e.to_string(),
                    code: 0,
                }),
                other => Ok(other.map(|_| ())?),
            }
        }
    })
    .await
}

async fn wait(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let client = session.client()?;
    let mut errors = Vec::new();
    let all = parsed.operands.iter().map(|name| async move {
        let answer: client::Result<WaitResponse> =
            client.post::<_, Value>(path(name, "/wait"), None).await;
        answer
    });
    for result in futures_util::future::join_all(all).await {
        match result {
            Ok(answer) => output::line(answer.status_code.to_string())?,
            Err(e) => errors.push(e.to_string()),
        }
    }
    if errors.is_empty() {
        Ok(0)
    } else {
        Err(Failure::new(errors.join("\n")))
    }
}

async fn rename(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let (old, new) = (parsed.operands[0].trim(), parsed.operands[1].trim());
    if old.is_empty() || new.is_empty() {
        return Err("Error: Neither old nor new names may be empty".into());
    }
    let result = session
        .client()?
        .act::<Value>(path(old, "/rename").with("name", new), None)
        .await;
    result.map_err(|e| {
        Failure::new(format!(
            "{e}\nError: failed to rename container named {old}"
        ))
    })?;
    Ok(0)
}

async fn port(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let container: ContainerInspect = session
        .client()?
        .get(path(&parsed.operands[0], "/json"))
        .await?;
    let ports = container.network_settings.ports;
    let mut lines = Vec::new();
    let address = |b: &caisson_api::PortBinding| {
        if b.host_ip.contains(':') {
            format!("[{}]:{}", b.host_ip, b.host_port)
        } else {
            format!("{}:{}", b.host_ip, b.host_port)
        }
    };
    match parsed.operands.get(1) {
        Some(wanted) => {
            let (number, proto) = wanted.split_once('/').unwrap_or((wanted, "tcp"));
            if number.parse::<u16>().is_err() {
                return Err(format!("Error: invalid port ({number}): strconv.ParseUint: parsing {number:?}: invalid syntax").into());
            }
            let key = format!("{number}/{proto}");
            let Some(bindings) = ports
                .get(&key)
                .and_then(Option::as_ref)
                .filter(|b| !b.is_empty())
            else {
                return Err(format!(
                    "Error: No public port '{wanted}' published for {}",
                    parsed.operands[0]
                )
                .into());
            };
            lines.extend(bindings.iter().map(address));
        }
        None => {
            let mut all: Vec<_> = ports
                .iter()
                .flat_map(|(k, b)| b.iter().flatten().map(move |b| (k, b)))
                .collect();
            all.sort_by_key(|(key, _)| {
                let (number, proto) = key.split_once('/').unwrap_or((key, ""));
                (number.parse::<u16>().unwrap_or(0), proto.to_owned())
            });
            lines.extend(
                all.iter()
                    .map(|(key, b)| format!("{key} -> {}", address(b))),
            );
        }
    }
    for line in lines {
        output::line(line)?;
    }
    Ok(0)
}

async fn top(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let arguments = parsed.operands[1..].join(" ");
    let answer: TopResponse = session
        .client()?
        .get(path(&parsed.operands[0], "/top").with_text("ps_args", &arguments))
        .await?;
    let mut text = answer.titles.join("\t") + "\n";
    for process in answer.processes {
        text.push_str(&process.join("\t"));
        text.push('\n');
    }
    output::print(table::align(&text, 20))?;
    Ok(0)
}

async fn diff(session: Rc<Session>, parsed: Parsed) -> Outcome {
    if parsed.operands[0].is_empty() {
        return Err("Container name cannot be empty".into());
    }
    // An unchanged container's answer is null.
    let answer = session
        .client()?
        .get_raw(path(&parsed.operands[0], "/changes"))
        .await?;
    let changes: Option<Vec<FilesystemChange>> =
        serde_json::from_value(answer).map_err(|e| Failure::new(e.to_string()))?;
    for change in changes.unwrap_or_default() {
        let letter = match change.kind {
            0 => 'C',
            1 => 'A',
            _ => 'D',
        };
        output::line(format!("{letter} {}", change.path))?;
    }
    Ok(0)
}

async fn prune(session: Rc<Session>, parsed: Parsed) -> Outcome {
    if !parsed.flag("force")
        && !confirmed(
            "WARNING! This will remove all stopped containers.\nAre you sure you want to continue?",
        )?
    {
        return Ok(0);
    }
    let (text, space) = prune_containers(&session, parsed.list("filter")).await?;
    output::print(text)?;
    output::line(format!(
        "Total reclaimed space: {}",
        units::human_size(space as f64)
    ))?;
    Ok(0)
}

/// Removes stopped containers; returns what to print and the bytes freed.
pub async fn prune_containers(
    session: &Session,
    filters: &[String],
) -> Result<(String, u64), Failure> {
    let answer: ContainersPruneResponse = session
        .client()?
        .post::<_, Value>(
            client::target("/containers/prune").with_filters(filters),
            None,
        )
        .await?;
    let deleted = answer.containers_deleted.unwrap_or_default();
    if deleted.is_empty() {
        return Ok((String::new(), 0));
    }
    let text = format!("Deleted Containers:\n{}\n\n", deleted.join("\n"));
    Ok((text, answer.space_reclaimed))
}
