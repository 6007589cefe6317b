//! `run` and `create`: resolve, pull when the image is missing, create; then attach before start, wait, and end as the container ended.
//!
//! ```text
//! resolve flags ─▶ POST create ─404─▶ pull ─▶ POST create ─▶ attach (hijack) ─▶ POST wait ─▶ POST start ─▶ pump ─▶ exit code
//!                        └──────── -d: start, print the id
//! ```

use std::io::Write;
use std::rc::Rc;

use caisson_api::ContainerCreateResponse;
use serde_json::Value;

use super::attach::{AttachQuery, detach_keys, exit_status, wait_for};
use super::create_flags::{ALIASES, CREATE, RUN};
use super::path;
use super::resolve::{Plan, Surroundings, resolve};
use crate::cli::command::{COMMAND, Command, Failure, Operands, Outcome, go_io_error};
use crate::cli::flags::Parsed;
use crate::cli::image::pull::{self, PullOutput};
use crate::cli::reference::Reference;
use crate::cli::session::Session;
use crate::cli::stream::{Attachment, Ended, follow_size, proxy_signals};
use crate::cli::{output, terminal};
use crate::client;

/// `run` and `create`.
pub const COMMANDS: &[Command] = &[
    Command {
        paths: &["run", "container run"],
        usage: "[OPTIONS] IMAGE [COMMAND] [ARG...]",
        about: "Create and run a new container from an image",
        examples: &[
            "run --rm alpine echo hello",
            "run -it --rm debian bash",
            "run -d --name web -m 256m --cpus 1.5 --restart unless-stopped nginx",
            "run --rm -v \"$PWD:/src:ro\" -w /src rust cargo test",
        ],
        flags: &[CREATE, RUN, ALIASES],
        operands: Operands::AtLeast(1),
        interspersed: false,
        run: |s, p| Box::pin(run(s, p)),
        ..COMMAND
    },
    Command {
        paths: &["create", "container create"],
        usage: "[OPTIONS] IMAGE [COMMAND] [ARG...]",
        about: "Create a new container",
        examples: &[
            "create --name job alpine sh -c 'date > /now'",
            "create -it --name shell debian bash",
        ],
        flags: &[CREATE, ALIASES],
        operands: Operands::AtLeast(1),
        interspersed: false,
        run: |s, p| Box::pin(create(s, p)),
        ..COMMAND
    },
];

/// Failures of the engine or the command line, as `run` tells them: exit code 125 unless the message says otherwise.
fn run_failure(message: &str, code: u8) -> Failure {
    Failure {
        message: format!("caisson: {message}\n\nRun 'caisson run --help' for more information"),
        code,
    }
}

/// The exit code for a container that could not be started: 127 not found, 126 not executable, 125 anything else.
pub fn start_failure_code(message: &str) -> u8 {
    let has = |text: &str| message.to_lowercase().contains(text);
    if has("executable file not found")
        || has("no such file or directory")
        || has("system cannot find the file specified")
    {
        127
    } else if has("permission denied") || has("is a directory") {
        126
    } else {
        125
    }
}

/// Reads a file the user named, errors in Go's words.
pub fn read_named(path: &str) -> Result<String, String> {
    let bytes = std::fs::read(path).map_err(|e| format!("open {path}: {}", go_io_error(&e)))?;
    String::from_utf8(bytes).map_err(|_| format!("{path} is not UTF-8 text"))
}

/// Resolves the flags against this machine.
fn plan(session: &Session, parsed: &Parsed, detach: bool) -> Result<Plan, String> {
    let console = match terminal::size() {
        Some((rows, columns)) if terminal::stdout_is_terminal() => {
            [u32::from(rows), u32::from(columns)]
        }
        _ => [0, 0],
    };
    let proxies = session.config.proxy_environment();
    resolve(
        parsed,
        detach,
        &Surroundings {
            read: &read_named,
            lookup: &|name| std::env::var(name).ok(),
            proxies: &proxies,
            console,
        },
    )
}

/// The file `--cidfile` names: created first, removed again unless an id was written.
struct IdFile {
    path: String,
    file: std::fs::File,
    written: bool,
}

impl IdFile {
    fn open(path: &str) -> Result<Option<Self>, String> {
        if path.is_empty() {
            return Ok(None);
        }
        if std::path::Path::new(path).exists() {
            return Err(format!(
                "container ID file found, make sure the other container isn't running or delete {path}"
            ));
        }
        let file = std::fs::File::create(path).map_err(|e| {
            format!(
                "failed to create the container ID file: open {path}: {}",
                go_io_error(&e)
            )
        })?;
        Ok(Some(IdFile {
            path: path.to_owned(),
            file,
            written: false,
        }))
    }

    fn write(&mut self, id: &str) -> Result<(), String> {
        self.file
            .write_all(id.as_bytes())
            .map_err(|e| format!("failed to write the container ID to the file: {e}"))?;
        self.written = true;
        Ok(())
    }
}

impl Drop for IdFile {
    fn drop(&mut self) {
        if !self.written {
            // Left behind at worst: an empty file the user named.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Creates the container, pulling the image if the policy says so; returns its id.
async fn create_container(
    session: &Session,
    parsed: &Parsed,
    plan: &Plan,
) -> Result<String, Failure> {
    let mut id_file = IdFile::open(parsed.text("cidfile"))?;
    let reference = Reference::parse(&plan.image)?;
    let policy = parsed.last("pull").unwrap_or("missing");
    if !["always", "missing", "never", ""].contains(&policy) {
        return Err(format!(
            "invalid pull option: '{policy}': must be one of \"always\", \"missing\" or \"never\""
        )
        .into());
    }
    let client = session.client()?;
    let pull = async || {
        let shown = if parsed.flag("quiet") {
            PullOutput::Silent
        } else {
            PullOutput::Stderr
        };
        pull::pull_image(session, &reference, parsed.text("platform"), shown).await
    };
    let target = || {
        client::target("/containers/create")
            .with_text("name", parsed.text("name"))
            .with_text("platform", parsed.text("platform"))
    };
    if policy == "always" {
        pull().await?;
    }
    let created: Result<ContainerCreateResponse, _> = client.post(target(), Some(&plan.body)).await;
    let created = match created {
        Err(e)
            if e.is_not_found()
                && policy == "missing"
                && e.to_string().to_lowercase().contains("no such image") =>
        {
            if !parsed.flag("quiet") {
                output::complain(format!(
                    "Unable to find image '{}' locally",
                    reference.familiar_tagged()
                ));
            }
            pull().await?;
            client.post(target(), Some(&plan.body)).await?
        }
        other => other?,
    };
    for warning in &created.warnings {
        output::complain(format!("WARNING: {warning}"));
    }
    if let Some(file) = &mut id_file {
        file.write(&created.id)?;
    }
    Ok(created.id)
}

async fn create(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let plan = plan(&session, &parsed, false)?;
    let id = create_container(&session, &parsed, &plan).await?;
    output::line(id)?;
    Ok(0)
}

async fn run(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let detach = parsed.flag("detach");
    if detach && parsed.given("attach") {
        return Err("conflicting options: cannot specify both --attach and --detach".into());
    }
    let plan = plan(&session, &parsed, detach).map_err(|e| run_failure(&e, 125))?;
    let config = &plan.body.config;
    if config.attach_stdin && config.tty && !terminal::stdin_is_terminal() {
        return Err("the input device is not a TTY".into());
    }
    let keys = detach_keys(&session, &parsed).map_err(|e| run_failure(&e, 125))?;
    let id = create_container(&session, &parsed, &plan)
        .await
        .map_err(|f| run_failure(&f.message, 125))?;
    let client = session.client()?;

    let attached = config.attach_stdin || config.attach_stdout || config.attach_stderr;
    if !attached {
        if let Err(e) = client.act::<Value>(path(&id, "/start"), None).await {
            return Err(run_failure(
                &e.to_string(),
                start_failure_code(&e.to_string()),
            ));
        }
        output::line(&id)?;
        return Ok(0);
    }

    let query = AttachQuery {
        stdin: config.attach_stdin,
        stdout: config.attach_stdout,
        stderr: config.attach_stderr,
        logs: false,
        detach_keys: parsed.text("detach-keys"),
    };
    let connection = client
        .hijack::<Value>(query.target(&id), None)
        .await
        .map_err(|e| run_failure(&e.to_string(), 125))?;
    let remove = parsed.flag("rm");
    let waiting = wait_for(client, &id, if remove { "removed" } else { "next-exit" })
        .await
        .map_err(|e| run_failure(&e.to_string(), 125))?;
    if let Err(e) = client.act::<Value>(path(&id, "/start"), None).await {
        drop(connection);
        if remove {
            // The daemon removes what failed to start; its own answer is what matters.
            let _ = exit_status(waiting).await;
        }
        return Err(run_failure(
            &e.to_string(),
            start_failure_code(&e.to_string()),
        ));
    }

    let terminal_attached = config.tty && terminal::stdout_is_terminal();
    let attachment = Attachment {
        connection,
        tty: config.tty,
        stdin: config.attach_stdin,
        raw_mode: config.tty && config.attach_stdin,
        detach_keys: keys,
    };
    let resize = format!("/containers/{}/resize", client::segment(&id));
    let pumped = tokio::select! {
        ended = attachment.pump() => ended?,
        () = async {
            if terminal_attached { follow_size(client, &resize).await }
            std::future::pending().await
        } => Ended::Closed,
        () = async {
            if parsed.flag_or("sig-proxy", true) && !config.tty { proxy_signals(client, &id).await }
            std::future::pending().await
        } => Ended::Closed,
    };
    if pumped == Ended::Detached {
        return Ok(0);
    }
    let status = tokio::select! {
        status = exit_status(waiting) => status.map_err(|e| run_failure(&e, 125))?,
        () = async {
            // Output may be closed long before the process ends.
            if parsed.flag_or("sig-proxy", true) && !config.tty { proxy_signals(client, &id).await }
            std::future::pending().await
        } => 0,
    };
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::start_failure_code;

    #[test]
    fn a_failed_start_tells_why_by_its_code() {
        for (message, code) in [
            (
                "exec: \"nope\": executable file not found in $PATH: unknown",
                127,
            ),
            (
                "exec: \"/nope\": stat /nope: no such file or directory",
                127,
            ),
            ("exec: \"/etc\": permission denied", 126),
            ("exec: \"/etc\": is a directory: unknown", 126),
            ("Invalid isolation: \"foo\"", 125),
        ] {
            assert_eq!(start_failure_code(message), code, "{message}");
        }
    }
}
