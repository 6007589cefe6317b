//! the daemon: the engine behind a unix socket (arrives with the daemon helper's first landing).

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the daemon until it is told to stop.
pub fn run(arguments: &[OsString]) -> ExitCode {
    let _ = arguments;
    eprintln!("caisson: this build has no daemon yet");
    ExitCode::from(1)
}
