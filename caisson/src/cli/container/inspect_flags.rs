//! `container inspect`: its row in the command table; the work is `inspect`'s.

use crate::cli::command::{COMMAND, Command, Operands};
use crate::cli::flags::{FORMAT_OBJECT, Flag, Kind, flag};
use crate::cli::inspect::{self, Kinds};

const FLAGS: &[Flag] = &[
    flag("f", "format", Kind::Text, FORMAT_OBJECT),
    flag("s", "size", Kind::Bool, "Display total file sizes"),
];

/// `container inspect`.
pub const CONTAINER_INSPECT: &[Command] = &[Command {
    paths: &["container inspect"],
    usage: "[OPTIONS] CONTAINER [CONTAINER...]",
    about: "Display detailed information on one or more containers",
    examples: &["container inspect --format '{{.State.Status}}' web"],
    flags: &[FLAGS],
    operands: Operands::AtLeast(1),
    run: |s, p| Box::pin(inspect::inspect(s, p, Kinds::Container)),
    ..COMMAND
}];
