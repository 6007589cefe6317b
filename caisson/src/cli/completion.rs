//! shell completion and manual pages: the command tables handed to clap's generators.

use std::path::Path;

use clap::{Arg, ArgAction};

use super::command::{Command, Failure, GROUPS, Outcome, all, go_io_error};
use super::flags::Flag;
use super::output;
use super::session::GLOBAL;

fn argument(flag: &'static Flag) -> Arg {
    let mut argument = Arg::new(flag.long)
        .long(flag.long)
        .help(flag.help.lines().next().unwrap_or(""));
    if let Some(letter) = flag.short.chars().next() {
        argument = argument.short(letter);
    }
    if flag.kind.is_bool() {
        argument.action(ArgAction::SetTrue)
    } else {
        argument
            .action(ArgAction::Append)
            .value_name(flag.kind.type_name())
    }
}

fn as_clap(command: &'static Command, name: &'static str) -> clap::Command {
    let mut out = clap::Command::new(name)
        .about(command.about)
        .disable_help_flag(true)
        .override_usage(format!(
            "caisson {} {}",
            command.paths[0],
            command.usage.lines().next().unwrap_or("")
        ));
    if !command.details.is_empty() {
        out = out.long_about(command.details);
    }
    if !command.examples.is_empty() {
        let lines: Vec<String> = command
            .examples
            .iter()
            .map(|e| format!("  caisson {e}"))
            .collect();
        out = out.after_help(format!("Examples:\n{}", lines.join("\n")));
    }
    let flags = command
        .flags
        .iter()
        .flat_map(|t| t.iter())
        .filter(|f| !f.help.is_empty());
    out.args(flags.map(argument))
        .arg(Arg::new("operands").num_args(0..).hide(true))
}

/// The whole program as clap knows programs.
fn program() -> clap::Command {
    let mut root = clap::Command::new("caisson")
        .about("Containers and microVMs from the same images, behind Docker's commands")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_subcommand(true)
        .disable_version_flag(true)
        .args(GLOBAL.iter().map(argument));
    for group in GROUPS {
        let mut out = clap::Command::new(group.name)
            .about(group.about)
            .disable_help_subcommand(true);
        let prefix = format!("{} ", group.name);
        for command in all() {
            for path in command.paths {
                if let Some(name) = path.strip_prefix(&prefix) {
                    out = out.subcommand(as_clap(command, name));
                }
            }
        }
        root = root.subcommand(out);
    }
    for command in all() {
        for path in command.paths.iter().filter(|p| !p.contains(' ')) {
            // The daemon describes its own options.
            root = root.subcommand(match *path {
                "daemon" => crate::daemon::command().name("daemon").about(command.about),
                name => as_clap(command, name),
            });
        }
    }
    root
}

/// Prints a completion script.
pub fn script(shell: &str) -> Outcome {
    let shell = match shell {
        "bash" => clap_complete::Shell::Bash,
        "zsh" => clap_complete::Shell::Zsh,
        "fish" => clap_complete::Shell::Fish,
        other => {
            return Err(
                format!("no completion for {other:?}: must be one of bash, zsh, fish").into(),
            );
        }
    };
    let mut bytes = Vec::new();
    clap_complete::generate(shell, &mut program(), "caisson", &mut bytes);
    output::print(String::from_utf8_lossy(&bytes))?;
    Ok(0)
}

/// Writes `caisson.1`, `caisson-run.1`, …
pub fn manual(directory: &str) -> Outcome {
    let failed = |e: std::io::Error| {
        Failure::new(format!(
            "could not write manual pages into {directory}: {}",
            go_io_error(&e)
        ))
    };
    std::fs::create_dir_all(directory).map_err(failed)?;
    clap_mangen::generate_to(program(), Path::new(directory)).map_err(failed)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_tables_make_a_sound_program() {
        super::program().debug_assert();
    }
}
