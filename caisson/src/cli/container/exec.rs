//! `exec`: a further process in a running container.

use std::rc::Rc;

use caisson_api::{ContainerInspect, ExecCreateBody, ExecInspect, ExecStartBody, IdResponse};

use super::attach::detach_keys;
use super::run::read_named;
use super::{checks, path, resolve};
use crate::cli::command::{COMMAND, Command, Failure, Operands, Outcome};
use crate::cli::flags::{Flag, Kind, Parsed, any, flag};
use crate::cli::session::Session;
use crate::cli::stream::{Attachment, Ended, follow_size};
use crate::cli::terminal;
use crate::client;

const FLAGS: &[Flag] = &[
    flag(
        "d",
        "detach",
        Kind::Bool,
        "Detached mode: run command in the background",
    ),
    flag(
        "",
        "detach-keys",
        Kind::Text,
        "Override the key sequence for detaching a container",
    ),
    flag(
        "e",
        "env",
        Kind::List("list", checks::env),
        "Set environment variables",
    ),
    flag(
        "",
        "env-file",
        Kind::List("list", any),
        "Read in a file of environment variables",
    ),
    flag(
        "i",
        "interactive",
        Kind::Bool,
        "Keep STDIN open even if not attached",
    ),
    flag(
        "",
        "privileged",
        Kind::Bool,
        "Give extended privileges to the command",
    ),
    flag("t", "tty", Kind::Bool, "Allocate a pseudo-TTY"),
    flag(
        "u",
        "user",
        Kind::Text,
        "Username or UID (format: \"<name|uid>[:<group|gid>]\")",
    ),
    flag(
        "w",
        "workdir",
        Kind::Text,
        "Working directory inside the container",
    ),
];

/// `exec`.
pub const COMMANDS: &[Command] = &[Command {
    paths: &["exec", "container exec"],
    usage: "[OPTIONS] CONTAINER COMMAND [ARG...]",
    about: "Execute a command in a running container",
    examples: &[
        "exec -it web sh",
        "exec -u 1000 -e DEBUG=1 -w /srv web ls -l",
    ],
    flags: &[FLAGS],
    operands: Operands::AtLeast(2),
    interspersed: false,
    run: |s, p| Box::pin(exec(s, p)),
    ..COMMAND
}];

async fn exec(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let detach = parsed.flag("detach");
    let tty = parsed.flag("tty");
    let stdin = parsed.flag("interactive") && !detach;
    let around = resolve::Surroundings {
        read: &read_named,
        lookup: &|name| std::env::var(name).ok(),
        proxies: &[],
        console: [0, 0],
    };
    let env = resolve::environment(&parsed, &around)?;
    let console = terminal::size()
        .filter(|_| tty && terminal::stdout_is_terminal())
        .map(|(r, c)| [u32::from(r), u32::from(c)]);
    let client = session.client()?;
    let name = &parsed.operands[0];
    // Docker looks first, so that a missing container is told before a missing terminal.
    let _: ContainerInspect = client.get(path(name, "/json")).await?;
    if stdin && tty && !terminal::stdin_is_terminal() {
        return Err("the input device is not a TTY".into());
    }
    let keys = detach_keys(&session, &parsed)?;
    let body = ExecCreateBody {
        user: parsed.text("user").to_owned(),
        privileged: parsed.flag("privileged"),
        tty,
        console_size: console,
        attach_stdin: stdin,
        attach_stdout: !detach,
        attach_stderr: !detach,
        detach,
        detach_keys: parsed.text("detach-keys").to_owned(),
        env: (!env.is_empty()).then_some(env),
        working_dir: parsed.text("workdir").to_owned(),
        cmd: Some(parsed.operands[1..].to_vec()),
    };
    let created: IdResponse = client.post(path(name, "/exec"), Some(&body)).await?;
    let exec_path = |rest: &str| format!("/exec/{}{rest}", client::segment(&created.id));
    let start = ExecStartBody {
        detach,
        tty,
        console_size: console,
    };
    if detach {
        client.act(exec_path("/start"), Some(&start)).await?;
        return Ok(0);
    }
    let connection = client
        .hijack(exec_path("/start"), Some(&start))
        .await
        .map_err(exec_failure)?;
    let attachment = Attachment {
        connection,
        tty,
        stdin,
        raw_mode: tty && stdin,
        detach_keys: keys,
    };
    let resize = exec_path("/resize");
    let ended = tokio::select! {
        ended = attachment.pump() => ended?,
        () = async {
            if tty && terminal::stdout_is_terminal() { follow_size(client, &resize).await }
            std::future::pending().await
        } => Ended::Closed,
    };
    if ended == Ended::Detached {
        return Err("read escape sequence".into());
    }
    let result: ExecInspect = client.get(exec_path("/json")).await?;
    Ok((result.exit_code.unwrap_or(0) & 0xff) as u8)
}

/// A process that could not start: Docker's codes for it, when the daemon says so before the stream begins.
fn exec_failure(error: client::Error) -> Failure {
    let message = error.to_string();
    let code = match super::run::start_failure_code(&message) {
        125 => 1,
        code => code,
    };
    Failure { message, code }
}
