//! what a command is: its names, usage, flags, operands and the function that performs it; and finding the one that was typed.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use super::flags::{Flag, Parsed};
use super::session::Session;

/// How a command ends: its exit code, or why it failed.
pub type Outcome = Result<u8, Failure>;
/// A command under way.
pub type Running = Pin<Box<dyn Future<Output = Outcome>>>;

/// Why a command failed, and how that is told.
#[derive(Debug)]
pub struct Failure {
    /// The text for standard error; empty when everything has been said.
    pub message: String,
    /// The exit code.
    pub code: u8,
}

impl Failure {
    /// An ordinary failure: exit code 1.
    pub fn new(message: impl Into<String>) -> Self {
        Failure {
            message: message.into(),
            code: 1,
        }
    }
    /// A failure already reported.
    pub fn silent(code: u8) -> Self {
        Failure {
            message: String::new(),
            code,
        }
    }
}

impl From<crate::client::Error> for Failure {
    fn from(error: crate::client::Error) -> Self {
        Failure::new(error.to_string())
    }
}
impl From<String> for Failure {
    fn from(message: String) -> Self {
        Failure::new(message)
    }
}
impl From<&str> for Failure {
    fn from(message: &str) -> Self {
        Failure::new(message)
    }
}
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Failure::silent(141);
        }
        Failure::new(go_io_error(&error))
    }
}

/// An operating system error in Go's words (`no such file or directory`).
pub fn go_io_error(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => {
            let text = nix::errno::Errno::from_raw(code).desc();
            let mut chars = text.chars();
            match chars.next() {
                Some(first) if text.chars().nth(1).is_some_and(char::is_lowercase) => {
                    first.to_lowercase().chain(chars).collect()
                }
                _ => text.to_owned(),
            }
        }
        None => error.to_string(),
    }
}

/// How many operands a command takes.
#[derive(Clone, Copy)]
pub enum Operands {
    /// None at all.
    None,
    /// So many.
    Exactly(usize),
    /// That many or more.
    AtLeast(usize),
    /// Between the two.
    Between(usize, usize),
    /// Any number.
    Any,
}

impl Operands {
    /// Whether `count` fits; if not, how Docker says so, and the verb it begins the pointer to help with.
    pub fn check(self, count: usize) -> Result<(), (String, &'static str)> {
        let plural = |n: usize| if n == 1 { "" } else { "s" };
        match self {
            Operands::None if count > 0 => Err(("accepts no arguments".to_owned(), "Run")),
            Operands::Exactly(n) if count != n => {
                Err((format!("requires {n} argument{}", plural(n)), "Run"))
            }
            Operands::AtLeast(n) if count < n => Err((
                format!("requires at least {n} argument{}", plural(n)),
                "See",
            )),
            Operands::Between(low, high) if count < low || count > high => {
                if low == 0 {
                    return Err((
                        format!("requires at most {high} argument{}", plural(high)),
                        "Run",
                    ));
                }
                Err((
                    format!(
                        "requires at least {low} and at most {high} argument{}",
                        plural(high)
                    ),
                    "Run",
                ))
            }
            _ => Ok(()),
        }
    }
}

/// One command.
pub struct Command {
    /// Every way to type it; the first is its own name, and all are listed in help.
    pub paths: &'static [&'static str],
    /// Further names that work and are not listed first (`list` for `ls`).
    pub hidden_paths: &'static [&'static str],
    /// What follows the name in the usage line.
    pub usage: &'static str,
    /// One sentence.
    pub about: &'static str,
    /// More text, shown in its own help.
    pub details: &'static str,
    /// Command lines worth copying, one per line, without the program's name.
    pub examples: &'static [&'static str],
    /// Its flags.
    pub flags: &'static [&'static [Flag]],
    /// Its operands.
    pub operands: Operands,
    /// Whether options may follow operands.
    pub interspersed: bool,
    /// Whether everything after the name is another program's business, `--help` included.
    pub passes_through: bool,
    /// Performs it.
    pub run: fn(Rc<Session>, Parsed) -> Running,
}

/// Defaults for the rows of command tables.
pub const COMMAND: Command = Command {
    paths: &[],
    hidden_paths: &[],
    usage: "",
    about: "",
    details: "",
    examples: &[],
    flags: &[],
    operands: Operands::None,
    interspersed: true,
    passes_through: false,
    run: |_, _| Box::pin(async { Err(Failure::new("this command does nothing")) }),
};

/// A word that only groups commands.
pub struct Group {
    /// Its name.
    pub name: &'static str,
    /// One sentence.
    pub about: &'static str,
}

/// Every group.
pub const GROUPS: &[Group] = &[
    Group {
        name: "container",
        about: "Manage containers",
    },
    Group {
        name: "context",
        about: "Manage contexts",
    },
    Group {
        name: "image",
        about: "Manage images",
    },
    Group {
        name: "system",
        about: "Manage caisson",
    },
];

/// Every command, file by file.
pub fn all() -> impl Iterator<Item = &'static Command> {
    [
        super::container::run::COMMANDS,
        super::container::attach::COMMANDS,
        super::container::exec::COMMANDS,
        super::container::ps::COMMANDS,
        super::container::CONTAINER_INSPECT,
        super::container::LOGS,
        super::container::CP,
        super::container::lifecycle::COMMANDS,
        super::container::archive::COMMANDS,
        super::container::UPDATE,
        super::container::stats::COMMANDS,
        super::inspect::COMMANDS,
        super::image::list::COMMANDS,
        super::image::pull::COMMANDS,
        super::image::PUSH,
        super::image::remove::COMMANDS,
        super::image::TRANSFER,
        super::image::HISTORY,
        super::registry::COMMANDS,
        super::system::VERSION,
        super::system::INFO,
        super::system::EVENTS,
        super::system::DF,
        super::system::PRUNE,
        super::system::DIAL,
        super::contexts::COMMANDS,
        super::local::COMMANDS,
    ]
    .into_iter()
    .flatten()
}

/// What the operands of the whole program select.
pub enum Found {
    /// A command, the path it was typed as, and how many words that took.
    Command(&'static Command, String, usize),
    /// A group alone.
    Group(&'static Group),
    /// Nothing of that name; the group it was looked for in, if any.
    Unknown(Option<&'static Group>, String),
}

/// Finds the command that `words` begin with.
pub fn find(words: &[String]) -> Found {
    let has = |command: &'static Command, path: &str| {
        command.paths.contains(&path) || command.hidden_paths.contains(&path)
    };
    let Some(first) = words.first() else {
        return Found::Unknown(None, String::new());
    };
    if let Some(group) = GROUPS.iter().find(|g| g.name == first) {
        let Some(second) = words.get(1).filter(|w| !w.starts_with('-')) else {
            return Found::Group(group);
        };
        let path = format!("{first} {second}");
        return match all().find(|c| has(c, &path)) {
            Some(command) => Found::Command(command, path, 2),
            None => Found::Unknown(Some(group), second.clone()),
        };
    }
    match all().find(|c| has(c, first)) {
        Some(command) => Found::Command(command, first.clone(), 1),
        None => Found::Unknown(None, first.clone()),
    }
}
