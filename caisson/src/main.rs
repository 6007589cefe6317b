//! the caisson binary: command line, daemon, Docker Engine API.
//!
//! One executable, two lives: `caisson daemon …` becomes the engine's process (`daemon`), everything else is a short-lived
//! client of the Docker Engine API (`cli`). The two share nothing but the JSON shapes of `caisson-api`.

mod api;
mod cli;
mod client;
mod daemon;
mod default_image;
mod doctor;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "daemon") {
        if std::env::var_os(client::autostart::OWN_SESSION).is_some() {
            // Fails only for a process group leader, which already has what this is for.
            let _ = nix::unistd::setsid();
        }
        return daemon::run(&arguments[1..]);
    }
    cli::run(arguments)
}
