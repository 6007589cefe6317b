//! the command line: Docker's commands, flags, output and exit codes, as a client of the Engine API.
//!
//! ```text
//! argv ─▶ global flags ─▶ command::find ─▶ flags::parse ─▶ Command::run(Session, Parsed) ─▶ exit code
//! ```
//! A command is a row in a table (`command`): names, usage, flags, operands, function. Help, completion and man pages are made from
//! the rows. Must not know how anything is done; everything goes through `client`.

mod command;
mod completion;
mod config;
mod container;
mod contexts;
mod download;
mod flags;
mod image;
mod inspect;
mod local;
mod output;
mod progress;
mod prompt;
mod reference;
mod registry;
mod session;
mod stream;
mod system;
mod table;
mod template;
mod terminal;
mod timestamps;
mod units;
mod upload;
mod usage;

use std::ffi::OsString;
use std::process::ExitCode;
use std::rc::Rc;

use command::{Command, Failure, Found};
use flags::Parsed;
use session::{GLOBAL, Session};

/// Runs one command and returns its exit code.
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    let mut words = Vec::with_capacity(arguments.len());
    for argument in arguments {
        match argument.into_string() {
            Ok(word) => words.push(word),
            Err(raw) => {
                output::complain(format!("caisson: argument {raw:?} is not UTF-8"));
                return ExitCode::from(125);
            }
        }
    }
    let code = match dispatch(&words) {
        Ok(code) => code,
        Err(failure) => {
            if !failure.message.is_empty() {
                output::complain(failure.message);
            }
            failure.code
        }
    };
    ExitCode::from(code)
}

/// The program's help.
fn program_help() -> String {
    usage::program_help(GLOBAL, terminal::width())
}

fn usage_failure(message: &str, usage: &str, help_of: &str) -> Failure {
    Failure {
        message: format!("{message}\n\n{usage}\n\nRun '{help_of} --help' for more information"),
        code: 125,
    }
}

fn dispatch(words: &[String]) -> Result<u8, Failure> {
    let mut global = flags::parse(&[GLOBAL], false, words)
        .map_err(|e| usage_failure(&e, "Usage:  caisson [OPTIONS] COMMAND [ARG...]", "caisson"))?;
    if global.flag("version") {
        output::line(format!("caisson version {}", env!("CARGO_PKG_VERSION")))?;
        return Ok(0);
    }
    let words = std::mem::take(&mut global.operands);
    if words.is_empty() {
        // Asked for it goes to standard output; an incomplete command gets it as a hint.
        if global.help {
            output::print(program_help())?
        } else {
            output::print_err(&program_help())
        }
        return Ok(0);
    }
    match command::find(&words) {
        Found::Command(command, path, used) => perform(command, path, &words[used..], global),
        Found::Group(group) => {
            match words.get(1).map(String::as_str) {
                None => output::print_err(&usage::group_help(group)),
                Some("--help" | "-h") => output::print(usage::group_help(group))?,
                Some(flag) => {
                    let usage = format!("Usage:  caisson {} COMMAND", group.name);
                    return Err(usage_failure(
                        &format!("unknown flag: {flag}"),
                        &usage,
                        &format!("caisson {}", group.name),
                    ));
                }
            }
            Ok(0)
        }
        Found::Unknown(None, name) => Err(Failure::new(format!(
            "caisson: unknown command: caisson {name}\n\nRun 'caisson --help' for more information"
        ))),
        Found::Unknown(Some(group), name) => Err(Failure::new(format!(
            "caisson: unknown command: caisson {0} {name}\n\nUsage:  caisson {0}\n\nRun 'caisson {0} --help' for more information",
            group.name
        ))),
    }
}

fn perform(
    command: &'static Command,
    path: String,
    words: &[String],
    global: Parsed,
) -> Result<u8, Failure> {
    let parsed = if command.passes_through {
        Ok(Parsed::of_operands(words))
    } else {
        flags::parse(command.flags, command.interspersed, words)
    };
    let parsed = parsed.map_err(|e| {
        usage_failure(
            &e,
            &usage::usage_line(command, &path),
            &format!("caisson {path}"),
        )
    })?;
    if parsed.help {
        output::print(usage::command_help(command, &path, terminal::width()))?;
        return Ok(0);
    }
    if let Err((complaint, verb)) = command.operands.check(parsed.operands.len()) {
        return Err(Failure::new(format!(
            "caisson: 'caisson {path}' {complaint}\n\n{}\n\n{verb} 'caisson {path} --help' for more information",
            usage::usage_line(command, &path)
        )));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(format!("could not start the event loop: {e}")))?;
    let session = Rc::new(Session::new(global));
    let outcome = runtime.block_on((command.run)(session, parsed));
    // A thread may still be waiting for input nobody wants any more.
    runtime.shutdown_background();
    outcome
}
