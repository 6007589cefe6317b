//! commands that need no daemon: doctor, oci, completion, man, help; and the daemon's own row in the table.

use std::os::unix::process::CommandExt;
use std::rc::Rc;

use super::command::{COMMAND, Command, Failure, Operands, Outcome};
use super::completion;
use super::flags::{Flag, Kind, Parsed, flag};
use super::session::Session;
use super::{output, usage};
use crate::doctor;

const DOCTOR: &[Flag] = &[
    flag(
        "",
        "data-root",
        Kind::Text,
        "The daemon's data directory (default \"/var/lib/caisson\")",
    ),
    flag(
        "",
        "format",
        Kind::Text,
        "\"text\" or \"json\" (default \"text\")",
    ),
];

/// These commands.
pub const COMMANDS: &[Command] = &[
    Command {
        paths: &["daemon"],
        usage: "[OPTIONS]",
        about: "Run the engine: the process that owns containers and serves the Docker API",
        details: "Other commands start it when none is running on /run/caisson.sock. Its own options: caisson daemon --help",
        examples: &[
            "daemon",
            "daemon -H unix:///run/caisson.sock --data-root /var/lib/caisson",
        ],
        operands: Operands::Any,
        interspersed: false,
        run: |_, _| Box::pin(async { Err(Failure::new("run it as: caisson daemon [OPTIONS]")) }),
        ..COMMAND
    },
    Command {
        paths: &["doctor"],
        usage: "[OPTIONS]",
        about: "Check whether this machine can run containers and microVMs, and say how to fix what cannot",
        examples: &["doctor", "doctor --format json"],
        flags: &[DOCTOR],
        run: |s, p| Box::pin(doctor(s, p)),
        ..COMMAND
    },
    Command {
        paths: &["oci"],
        usage: "COMMAND [ARG...]",
        about: "The OCI runtime command line (caisson-oci), for podman, containerd and others",
        examples: &["oci --version", "oci run --bundle ./bundle box"],
        operands: Operands::Any,
        passes_through: true,
        run: |_, p| Box::pin(async move { oci(&p) }),
        ..COMMAND
    },
    Command {
        paths: &["completion"],
        usage: "bash|zsh|fish",
        about: "Generate the completion script for a shell",
        examples: &["completion bash > /etc/bash_completion.d/caisson"],
        operands: Operands::Exactly(1),
        run: |_, p| Box::pin(async move { completion::script(&p.operands[0]) }),
        ..COMMAND
    },
    Command {
        paths: &["man"],
        usage: "DIRECTORY",
        about: "Write the manual pages into a directory",
        examples: &["man /usr/local/share/man/man1"],
        operands: Operands::Exactly(1),
        run: |_, p| Box::pin(async move { completion::manual(&p.operands[0]) }),
        ..COMMAND
    },
    Command {
        paths: &["help"],
        usage: "[COMMAND]",
        about: "Help about any command",
        examples: &["help run"],
        operands: Operands::Any,
        run: |_, p| Box::pin(async move { help(&p) }),
        ..COMMAND
    },
];

async fn doctor(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let json = match parsed.text("format") {
        "" | "text" => false,
        "json" => true,
        other => {
            return Err(format!("invalid format {other:?}: must be \"text\" or \"json\"").into());
        }
    };
    let data_root = parsed.last("data-root").unwrap_or("/var/lib/caisson");
    let address = session.client()?.address();
    let socket = address
        .strip_prefix("unix://")
        .map(std::path::PathBuf::from);
    let findings = doctor::examine(std::path::Path::new(data_root), socket.as_deref());
    let text = if json {
        doctor::as_json(&findings)
    } else {
        doctor::as_text(&findings)
    };
    output::print(text)?;
    Ok(doctor::exit_code(&findings))
}

fn oci(parsed: &Parsed) -> Outcome {
    let own = std::env::current_exe()
        .map_err(|e| Failure::new(format!("could not find the caisson executable: {e}")))?;
    let program = own.with_file_name("caisson-oci");
    let error = std::process::Command::new(&program)
        .args(&parsed.operands)
        .exec();
    Err(Failure {
        message: format!(
            "could not run {}: {error}. It is installed beside the caisson executable",
            program.display()
        ),
        code: 127,
    })
}

fn help(parsed: &Parsed) -> Outcome {
    output::print(match super::command::find(&parsed.operands) {
        _ if parsed.operands.is_empty() => super::program_help(),
        super::command::Found::Command(_, path, _) if path == "daemon" => {
            crate::daemon::command().render_help().to_string()
        }
        super::command::Found::Command(command, path, _) => {
            usage::command_help(command, &path, super::terminal::width())
        }
        super::command::Found::Group(group) => usage::group_help(group),
        super::command::Found::Unknown(..) => {
            return Err(format!("unknown help topic: {}", parsed.operands.join(" ")).into());
        }
    })?;
    Ok(0)
}
