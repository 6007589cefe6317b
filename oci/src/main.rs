//! `caisson-oci`: the OCI runtime command line, as runc has it, over `jail`.
//!
//! ```text
//! cli        words → Command            (pure)
//! commands   Command → jail, store
//! store      ROOT/ID/{state.json, spec.json, exec.fifo}
//! foreground waits for a process, passes signals and its terminal on
//! log        errors in runc's text and JSON formats
//! ```
//! Must not know: images, engines, who calls it.

mod cli;
mod commands;
mod foreground;
mod log;
mod store;
mod table;
mod template;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    let parsed = cli::parse(args);
    let (globals, command) = match parsed {
        Ok(parsed) => parsed,
        Err(e) => {
            let log = log::Log::default();
            log.error(&e.message);
            return ExitCode::from(e.code);
        }
    };
    let log = log::Log::open(&globals);
    // A process that enters a container must not be reachable there as a writable file.
    if command.enters_container()
        && let Err(e) = caisson_jail::seal_self()
    {
        log.error(&e.to_string());
        return ExitCode::FAILURE;
    }
    match commands::run(&globals, command) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            log.error(&format!("{:#}", e.error));
            ExitCode::from(e.code)
        }
    }
}
