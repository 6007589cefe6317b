//! the command line: Docker's commands, flags, output and exit codes, as a client of the Engine API.

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs one command and returns its exit code.
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    let _ = arguments;
    eprintln!("caisson: no command given\n\nRun 'caisson --help' for more information");
    ExitCode::from(1)
}
