//! `attach` and `start`, and what `run` shares with them: attaching, waiting for the exit code.

use std::rc::Rc;

use caisson_api::{ContainerInspect, WaitResponse};
use http::Method;
use hyper::body::Incoming;
use serde_json::Value;

use super::{each, path};
use crate::cli::command::{COMMAND, Command, Failure, Operands, Outcome};
use crate::cli::flags::{Flag, Kind, Parsed, flag};
use crate::cli::session::Session;
use crate::cli::stream::{Attachment, Ended, follow_size, proxy_signals};
use crate::cli::{output, terminal};
use crate::client::{self, Client};

const ATTACH: &[Flag] = &[
    flag(
        "",
        "detach-keys",
        Kind::Text,
        "Override the key sequence for detaching a container",
    ),
    flag("", "no-stdin", Kind::Bool, "Do not attach STDIN"),
    flag(
        "",
        "sig-proxy",
        Kind::Bool,
        "Proxy all received signals to the process (default true)",
    ),
];
const START: &[Flag] = &[
    flag(
        "a",
        "attach",
        Kind::Bool,
        "Attach STDOUT/STDERR and forward signals",
    ),
    flag(
        "",
        "detach-keys",
        Kind::Text,
        "Override the key sequence for detaching a container",
    ),
    flag("i", "interactive", Kind::Bool, "Attach container's STDIN"),
];

/// `attach` and `start`.
pub const COMMANDS: &[Command] = &[
    Command {
        paths: &["attach", "container attach"],
        usage: "[OPTIONS] CONTAINER",
        about: "Attach local standard input, output, and error streams to a running container",
        examples: &["attach web", "attach --no-stdin --sig-proxy=false web"],
        flags: &[ATTACH],
        operands: Operands::Exactly(1),
        run: |s, p| Box::pin(attach(s, p)),
        ..COMMAND
    },
    Command {
        paths: &["start", "container start"],
        usage: "[OPTIONS] CONTAINER [CONTAINER...]",
        about: "Start one or more stopped containers",
        examples: &["start web db", "start -ai shell"],
        flags: &[START],
        operands: Operands::AtLeast(1),
        run: |s, p| Box::pin(start(s, p)),
        ..COMMAND
    },
];

/// Which streams, and what of the past.
pub struct AttachQuery<'a> {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// What was written before.
    pub logs: bool,
    /// Keys for the daemon to watch too; empty for its default.
    pub detach_keys: &'a str,
}

impl AttachQuery<'_> {
    /// The request's target.
    pub fn target(&self, id: &str) -> client::Target {
        path(id, "/attach")
            .with("stream", "1")
            .with_flag("stdin", self.stdin)
            .with_flag("stdout", self.stdout)
            .with_flag("stderr", self.stderr)
            .with_flag("logs", self.logs)
            .with_text("detachKeys", self.detach_keys)
    }
}

/// The keys that leave an attached terminal: flag, configuration, default.
pub fn detach_keys(session: &Session, parsed: &Parsed) -> Result<Vec<u8>, String> {
    let text = match parsed.text("detach-keys") {
        "" => session
            .config
            .detach_keys()
            .unwrap_or_else(|| terminal::DEFAULT_DETACH_KEYS.to_owned()),
        given => given.to_owned(),
    };
    terminal::parse_detach_keys(&text).map_err(|e| format!("invalid detach keys ({text}): {e}"))
}

/// Asks for the exit; the daemon answers the headers at once and the body when it has happened.
pub async fn wait_for(
    client: &Client,
    id: &str,
    condition: &str,
) -> client::Result<http::Response<Incoming>> {
    client
        .send::<Value>(
            Method::POST,
            path(id, "/wait").with("condition", condition),
            None,
        )
        .await
}

/// The exit code out of that answer.
pub async fn exit_status(waiting: http::Response<Incoming>) -> Result<u8, String> {
    let mut body = client::JsonStream::new(waiting);
    let value = body
        .next()
        .await
        .map_err(|e| e.to_string())?
        .ok_or("the daemon ended the wait without an exit code")?;
    let answer: WaitResponse = caisson_api::from_value(value).map_err(|e| e.to_string())?;
    match answer.error {
        Some(error) if !error.message.is_empty() => {
            Err(format!("Error waiting for container: {}", error.message))
        }
        _ => Ok((answer.status_code & 0xff) as u8),
    }
}

/// Attaches to a container that is (or is about to be) running, until its output ends.
struct Attached<'a> {
    client: &'a Client,
    id: &'a str,
    tty: bool,
    stdin: bool,
    proxy: bool,
    keys: Vec<u8>,
}

impl Attached<'_> {
    async fn pump(self, connection: client::Hijacked) -> Result<Ended, Failure> {
        let attachment = Attachment {
            connection,
            tty: self.tty,
            stdin: self.stdin,
            raw_mode: self.tty && self.stdin && terminal::stdin_is_terminal(),
            detach_keys: self.keys,
        };
        let resize = format!("/containers/{}/resize", client::segment(self.id));
        tokio::select! {
            ended = attachment.pump() => ended,
            () = async {
                if self.tty && terminal::stdout_is_terminal() { follow_size(self.client, &resize).await }
                std::future::pending().await
            } => Ok(Ended::Closed),
            () = async {
                if self.proxy { proxy_signals(self.client, self.id).await }
                std::future::pending().await
            } => Ok(Ended::Closed),
        }
    }
}

async fn attach(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let client = session.client()?;
    let name = &parsed.operands[0];
    let container: ContainerInspect = client.get(path(name, "/json")).await?;
    if !container.state.running {
        return Err("You cannot attach to a stopped container, start it first".into());
    }
    if container.state.paused {
        return Err("You cannot attach to a paused container, unpause it first".into());
    }
    if container.state.restarting {
        return Err("You cannot attach to a restarting container, wait until it is running".into());
    }
    let stdin = !parsed.flag("no-stdin") && container.config.open_stdin;
    if stdin && container.config.tty && !terminal::stdin_is_terminal() {
        return Err("the input device is not a TTY".into());
    }
    let keys = detach_keys(&session, &parsed)?;
    let waiting = wait_for(client, &container.id, "").await?;
    let query = AttachQuery {
        stdin,
        stdout: true,
        stderr: true,
        logs: false,
        detach_keys: parsed.text("detach-keys"),
    };
    let connection = client
        .hijack::<Value>(query.target(&container.id), None)
        .await?;
    let attached = Attached {
        client,
        id: &container.id,
        tty: container.config.tty,
        stdin,
        proxy: parsed.flag_or("sig-proxy", true) && !container.config.tty,
        keys,
    };
    if attached.pump(connection).await? == Ended::Detached {
        return Err("read escape sequence".into());
    }
    Ok(exit_status(waiting).await?)
}

async fn start(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let client = session.client()?;
    if !parsed.flag("attach") && !parsed.flag("interactive") {
        let target =
            |name: &str| path(name, "/start").with_text("detachKeys", parsed.text("detach-keys"));
        let failed = std::cell::RefCell::new(Vec::new());
        let outcome = each(&parsed.operands, |name| {
            let failed = &failed;
            let target = target(&name);
            async move {
                let result = client.act::<Value>(target, None).await;
                if result.is_err() {
                    failed.borrow_mut().push(name);
                }
                Ok(result?)
            }
        })
        .await;
        return outcome.map_err(|f| {
            Failure::new(format!(
                "{}\nError: failed to start containers: {}",
                f.message,
                failed.borrow().join(", ")
            ))
        });
    }
    let [name] = parsed.operands.as_slice() else {
        return Err("you cannot start and attach multiple containers at once".into());
    };
    let container: ContainerInspect = client.get(path(name, "/json")).await?;
    let stdin = parsed.flag("interactive") && container.config.open_stdin;
    let keys = detach_keys(&session, &parsed)?;
    if container.state.running {
        // Docker attaches to nothing new here: starting it again changes nothing, and attaching shows what comes.
        let query = AttachQuery {
            stdin,
            stdout: true,
            stderr: true,
            logs: false,
            detach_keys: parsed.text("detach-keys"),
        };
        let waiting = wait_for(client, &container.id, "").await?;
        let connection = client
            .hijack::<Value>(query.target(&container.id), None)
            .await?;
        let attached = Attached {
            client,
            id: &container.id,
            tty: container.config.tty,
            stdin,
            proxy: !container.config.tty,
            keys,
        };
        if attached.pump(connection).await? == Ended::Detached {
            return Ok(0);
        }
        return Ok(exit_status(waiting).await?);
    }
    let query = AttachQuery {
        stdin,
        stdout: true,
        stderr: true,
        logs: false,
        detach_keys: parsed.text("detach-keys"),
    };
    let connection = client
        .hijack::<Value>(query.target(&container.id), None)
        .await?;
    let condition = container.host_config.auto_remove;
    let waiting = wait_for(
        client,
        &container.id,
        if condition { "removed" } else { "next-exit" },
    )
    .await?;
    if let Err(e) = client
        .act::<Value>(path(&container.id, "/start"), None)
        .await
    {
        return Err(Failure::new(format!(
            "{e}\nError: failed to start containers: {name}"
        )));
    }
    let attached = Attached {
        client,
        id: &container.id,
        tty: container.config.tty,
        stdin,
        proxy: !container.config.tty,
        keys,
    };
    if attached.pump(connection).await? == Ended::Detached {
        return Ok(0);
    }
    match exit_status(waiting).await {
        Ok(0) => Ok(0),
        Ok(code) => Err(Failure::silent(code)),
        Err(message) => {
            output::complain(message);
            Err(Failure::silent(125))
        }
    }
}
