//! The command line, word for word runc's: flags before positional arguments, `exec` taking the rest as it is.
//!
//! Must not know: what a command does.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use lexopt::prelude::*;

/// Where state is kept unless `--root` says otherwise.
const DEFAULT_ROOT: &str = "/run/caisson-oci";

/// Options before the command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Globals {
    pub root: PathBuf,
    pub log: Option<PathBuf>,
    pub log_format: LogFormat,
    pub debug: bool,
}

/// How errors are written to the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// What `list` and `ps` print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Table,
    Json,
}

/// Options of `create`, and of `run` with what it adds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Create {
    pub id: String,
    pub bundle: Option<PathBuf>,
    pub console_socket: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,
    pub no_pivot: bool,
    pub no_new_keyring: bool,
    pub preserve_fds: u32,
    pub detach: bool,
    pub keep: bool,
}

/// Options of `exec`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exec {
    pub id: String,
    pub args: Vec<String>,
    pub process: Option<PathBuf>,
    pub console_socket: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,
    pub cwd: Option<PathBuf>,
    pub env: Vec<String>,
    pub tty: bool,
    pub user: Option<String>,
    pub additional_gids: Vec<u32>,
    pub detach: bool,
    pub no_new_privs: bool,
    pub caps: Vec<String>,
    pub apparmor: Option<String>,
    pub process_label: Option<String>,
    pub preserve_fds: u32,
    pub ignore_paused: bool,
}

/// Options of `update`: a resources document, or single limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    pub id: String,
    pub resources: Option<PathBuf>,
    /// `flag name → value`, as given.
    pub limits: Vec<(String, String)>,
}

/// A command with its options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Create(Create),
    Run(Create),
    Start {
        id: String,
    },
    State {
        id: String,
    },
    Kill {
        id: String,
        signal: String,
        all: bool,
    },
    Delete {
        id: String,
        force: bool,
    },
    Exec(Box<Exec>),
    List {
        format: Format,
        quiet: bool,
    },
    Ps {
        id: String,
        format: Format,
    },
    Pause {
        id: String,
    },
    Resume {
        id: String,
    },
    Update(Update),
    Events {
        id: String,
        stats: bool,
        interval_s: u64,
    },
    Spec {
        bundle: Option<PathBuf>,
        rootless: bool,
    },
    Features,
    Version,
    Help,
}

impl Command {
    /// Whether a process of this program enters a container.
    pub fn enters_container(&self) -> bool {
        matches!(
            self,
            Command::Create(_) | Command::Run(_) | Command::Exec(_)
        )
    }
}

/// What is wrong with the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misuse {
    pub message: String,
    pub code: u8,
}

impl From<lexopt::Error> for Misuse {
    fn from(e: lexopt::Error) -> Misuse {
        Misuse {
            message: format!("incorrect usage: {e}; see caisson-oci --help"),
            code: 1,
        }
    }
}

fn misuse(message: impl Into<String>) -> Misuse {
    Misuse {
        message: message.into(),
        code: 1,
    }
}

/// Reads the words after the program's name.
pub fn parse(args: Vec<OsString>) -> Result<(Globals, Command), Misuse> {
    let mut globals = Globals {
        root: PathBuf::from(DEFAULT_ROOT),
        log: None,
        log_format: LogFormat::Text,
        debug: false,
    };
    let mut words = lexopt::Parser::from_args(args);
    let name = loop {
        let Some(word) = words.next()? else {
            return Ok((globals, Command::Help));
        };
        match word {
            Long("root") => globals.root = words.value()?.into(),
            Long("log") => globals.log = Some(words.value()?.into()),
            Long("log-format") => {
                globals.log_format = match words.value()?.to_str() {
                    Some("json") => LogFormat::Json,
                    Some("text") => LogFormat::Text,
                    other => {
                        return Err(misuse(format!(
                            "invalid log-format: {:?}",
                            other.unwrap_or_default()
                        )));
                    }
                };
            }
            Long("debug") => globals.debug = words.optional_value().is_none_or(|v| v != "false"),
            Long("systemd-cgroup") => {
                if words.optional_value().is_none_or(|v| v != "false") {
                    return Err(misuse(
                        "--systemd-cgroup is not supported: caisson-oci manages cgroups itself; use the cgroupfs cgroup manager",
                    ));
                }
            }
            // runc's; nothing here depends on them.
            Long("rootless" | "criu") => drop(words.value()?),
            Long("version") | Short('v') => return Ok((globals, Command::Version)),
            Long("help") | Short('h') => return Ok((globals, Command::Help)),
            Value(name) => break name,
            other => return Err(other.unexpected().into()),
        }
    };
    let command = match name.to_str().unwrap_or_default() {
        "create" => Command::Create(create(&mut words, false)?),
        "run" => Command::Run(create(&mut words, true)?),
        "start" => Command::Start {
            id: only_id(&mut words, "start")?,
        },
        "state" => Command::State {
            id: only_id(&mut words, "state")?,
        },
        "pause" => Command::Pause {
            id: only_id(&mut words, "pause")?,
        },
        "resume" => Command::Resume {
            id: only_id(&mut words, "resume")?,
        },
        "kill" => kill(&mut words)?,
        "delete" => delete(&mut words)?,
        "exec" => Command::Exec(Box::new(exec(&mut words)?)),
        "list" => list(&mut words)?,
        "ps" => ps(&mut words)?,
        "update" => Command::Update(update(&mut words)?),
        "events" => events(&mut words)?,
        "spec" => spec(&mut words)?,
        "features" => Command::Features,
        "help" | "h" => Command::Help,
        "version" => Command::Version,
        other @ ("checkpoint" | "restore") => {
            return Err(misuse(format!("{other} is not supported by caisson-oci")));
        }
        other => {
            return Err(Misuse {
                message: format!("No help topic for '{other}'"),
                code: 3,
            });
        }
    };
    Ok((globals, command))
}

fn text(value: OsString) -> Result<String, Misuse> {
    value
        .into_string()
        .map_err(|v| misuse(format!("{v:?} is not valid UTF-8")))
}

fn number<T: std::str::FromStr>(words: &mut lexopt::Parser, name: &str) -> Result<T, Misuse> {
    let value = text(words.value()?)?;
    value.parse().map_err(|_| {
        misuse(format!(
            "invalid value {value:?} for --{name}: not a number in range"
        ))
    })
}

fn set_id(id: &mut String, value: OsString, command: &str) -> Result<(), Misuse> {
    if !id.is_empty() {
        return Err(misuse(format!(
            "caisson-oci: \"{command}\" requires exactly 1 argument(s)"
        )));
    }
    *id = text(value)?;
    Ok(())
}

fn need_id(id: String, command: &str, count: &str) -> Result<String, Misuse> {
    if id.is_empty() {
        return Err(misuse(format!(
            "caisson-oci: \"{command}\" requires {count} argument(s)"
        )));
    }
    Ok(id)
}

fn only_id(words: &mut lexopt::Parser, command: &str) -> Result<String, Misuse> {
    let mut id = String::new();
    while let Some(word) = words.next()? {
        match word {
            Value(value) => set_id(&mut id, value, command)?,
            other => return Err(other.unexpected().into()),
        }
    }
    need_id(id, command, "exactly 1")
}

fn create(words: &mut lexopt::Parser, runs: bool) -> Result<Create, Misuse> {
    let command = if runs { "run" } else { "create" };
    let mut c = Create::default();
    while let Some(word) = words.next()? {
        match word {
            Long("bundle") | Short('b') => c.bundle = Some(words.value()?.into()),
            Long("console-socket") => c.console_socket = Some(words.value()?.into()),
            Long("pid-file") => c.pid_file = Some(words.value()?.into()),
            Long("no-pivot") => c.no_pivot = true,
            Long("no-new-keyring") => c.no_new_keyring = true,
            Long("preserve-fds") => c.preserve_fds = number(words, "preserve-fds")?,
            Long("detach") | Short('d') if runs => c.detach = true,
            Long("keep") if runs => c.keep = true,
            // The caller's business already: we never become a subreaper.
            Long("no-subreaper") if runs => {}
            Value(value) => set_id(&mut c.id, value, command)?,
            other => return Err(other.unexpected().into()),
        }
    }
    c.id = need_id(c.id, command, "exactly 1")?;
    Ok(c)
}

fn kill(words: &mut lexopt::Parser) -> Result<Command, Misuse> {
    let (mut id, mut signal, mut all) = (String::new(), None, false);
    while let Some(word) = words.next()? {
        match word {
            Long("all") | Short('a') => all = true,
            Value(value) if id.is_empty() => id = text(value)?,
            Value(value) if signal.is_none() => signal = Some(text(value)?),
            other => return Err(other.unexpected().into()),
        }
    }
    let id = need_id(id, "kill", "a minimum of 1")?;
    Ok(Command::Kill {
        id,
        signal: signal.unwrap_or_else(|| "SIGTERM".into()),
        all,
    })
}

fn delete(words: &mut lexopt::Parser) -> Result<Command, Misuse> {
    let (mut id, mut force) = (String::new(), false);
    while let Some(word) = words.next()? {
        match word {
            Long("force") | Short('f') => force = true,
            Value(value) => set_id(&mut id, value, "delete")?,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Command::Delete {
        id: need_id(id, "delete", "exactly 1")?,
        force,
    })
}

fn exec(words: &mut lexopt::Parser) -> Result<Exec, Misuse> {
    let mut e = Exec::default();
    while let Some(word) = words.next()? {
        match word {
            Long("console-socket") => e.console_socket = Some(words.value()?.into()),
            Long("pid-file") => e.pid_file = Some(words.value()?.into()),
            Long("process") | Short('p') => e.process = Some(words.value()?.into()),
            Long("cwd") => e.cwd = Some(words.value()?.into()),
            Long("env") | Short('e') => e.env.push(text(words.value()?)?),
            Long("tty") | Short('t') => e.tty = words.optional_value().is_none_or(|v| v != "false"),
            Long("user") | Short('u') => e.user = Some(text(words.value()?)?),
            Long("additional-gids") | Short('g') => {
                e.additional_gids.push(number(words, "additional-gids")?)
            }
            Long("detach") | Short('d') => {
                e.detach = words.optional_value().is_none_or(|v| v != "false")
            }
            Long("no-new-privs") => e.no_new_privs = true,
            Long("cap") | Short('c') => e.caps.push(text(words.value()?)?),
            Long("apparmor") => e.apparmor = Some(text(words.value()?)?),
            Long("process-label") => e.process_label = Some(text(words.value()?)?),
            Long("preserve-fds") => e.preserve_fds = number(words, "preserve-fds")?,
            Long("ignore-paused") => e.ignore_paused = true,
            Long("no-subreaper") => {}
            Long("cgroup") => {
                return Err(misuse(
                    "--cgroup is not supported: a process joins the container's own cgroup",
                ));
            }
            Value(value) => {
                e.id = text(value)?;
                break;
            }
            other => return Err(other.unexpected().into()),
        }
    }
    // Everything after the id is the command, dashes and all.
    let mut rest: Vec<OsString> = words.raw_args()?.collect();
    if rest.first().map(OsString::as_os_str) == Some(OsStr::new("--")) {
        rest.remove(0);
    }
    e.args = rest.into_iter().map(text).collect::<Result<_, _>>()?;
    e.id = need_id(e.id, "exec", "a minimum of 1")?;
    if e.args.is_empty() && e.process.is_none() {
        return Err(misuse("exec args cannot be empty"));
    }
    Ok(e)
}

fn format(words: &mut lexopt::Parser) -> Result<Format, Misuse> {
    match text(words.value()?)?.as_str() {
        "table" => Ok(Format::Table),
        "json" => Ok(Format::Json),
        _ => Err(misuse("invalid format option")),
    }
}

fn list(words: &mut lexopt::Parser) -> Result<Command, Misuse> {
    let (mut wanted, mut quiet) = (Format::Table, false);
    while let Some(word) = words.next()? {
        match word {
            Long("format") | Short('f') => wanted = format(words)?,
            Long("quiet") | Short('q') => quiet = true,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Command::List {
        format: wanted,
        quiet,
    })
}

fn ps(words: &mut lexopt::Parser) -> Result<Command, Misuse> {
    let (mut id, mut wanted) = (String::new(), Format::Table);
    while let Some(word) = words.next()? {
        match word {
            Long("format") | Short('f') if id.is_empty() => wanted = format(words)?,
            Value(value) if id.is_empty() => id = text(value)?,
            _ => {
                return Err(misuse(
                    "ps options are not supported: the table is always UID PID PPID C STIME TTY TIME CMD",
                ));
            }
        }
    }
    Ok(Command::Ps {
        id: need_id(id, "ps", "a minimum of 1")?,
        format: wanted,
    })
}

/// Limits `update` takes, by the names runc gives them.
pub const LIMITS: [&str; 16] = [
    "blkio-weight",
    "cpu-period",
    "cpu-quota",
    "cpu-burst",
    "cpu-share",
    "cpu-rt-period",
    "cpu-rt-runtime",
    "cpuset-cpus",
    "cpuset-mems",
    "cpu-idle",
    "memory",
    "memory-reservation",
    "memory-swap",
    "pids-limit",
    "kernel-memory",
    "kernel-memory-tcp",
];

fn update(words: &mut lexopt::Parser) -> Result<Update, Misuse> {
    let mut u = Update::default();
    while let Some(word) = words.next()? {
        match word {
            Long("resources") | Short('r') => u.resources = Some(words.value()?.into()),
            Long(name) if LIMITS.contains(&name) => {
                let name = name.to_string();
                u.limits.push((name, text(words.value()?)?));
            }
            Long("cpu-shares") => u.limits.push(("cpu-share".into(), text(words.value()?)?)),
            Value(value) => set_id(&mut u.id, value, "update")?,
            other => return Err(other.unexpected().into()),
        }
    }
    u.id = need_id(u.id, "update", "exactly 1")?;
    Ok(u)
}

fn events(words: &mut lexopt::Parser) -> Result<Command, Misuse> {
    let (mut id, mut stats, mut interval_s) = (String::new(), false, 5);
    while let Some(word) = words.next()? {
        match word {
            Long("stats") => stats = true,
            Long("interval") => {
                let value = text(words.value()?)?;
                interval_s = value
                    .trim_end_matches('s')
                    .parse()
                    .ok()
                    .filter(|s| *s > 0)
                    .ok_or_else(|| {
                        misuse(format!("invalid interval {value:?}: use seconds, as in 5s"))
                    })?;
            }
            Value(value) => set_id(&mut id, value, "events")?,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Command::Events {
        id: need_id(id, "events", "exactly 1")?,
        stats,
        interval_s,
    })
}

fn spec(words: &mut lexopt::Parser) -> Result<Command, Misuse> {
    let (mut bundle, mut rootless) = (None, false);
    while let Some(word) = words.next()? {
        match word {
            Long("bundle") | Short('b') => bundle = Some(words.value()?.into()),
            Long("rootless") => rootless = true,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Command::Spec { bundle, rootless })
}

/// The text of `--help`.
pub const HELP: &str = "\
NAME:
   caisson-oci - Open Container Initiative runtime of caisson

USAGE:
   caisson-oci [global options] command [command options] [arguments...]

COMMANDS:
   create      create a container
   start       executes the user defined process in a created container
   run         create and run a container
   state       output the state of a container
   exec        execute new process inside the container
   kill        send a signal (default: SIGTERM) to the container's init process
   delete      delete any resources held by the container
   pause       suspend all processes inside the container
   resume      resume all processes that have been paused
   update      update container resource constraints
   events      display container events such as OOM notifications and statistics
   ps          display the processes running inside a container
   list        list containers started with the given root
   spec        create a new specification file
   features    show the enabled features

GLOBAL OPTIONS:
   --root value        directory for storage of container state, on a tmpfs (default: \"/run/caisson-oci\")
   --log value         file to write logs to (default: stderr)
   --log-format value  text or json (default: \"text\")
   --debug             enable debug logging
   --systemd-cgroup    not supported
   --help, -h          show help
   --version, -v       print the version
";

#[cfg(test)]
mod tests {
    use super::*;

    fn command(line: &str) -> Result<Command, Misuse> {
        parse(line.split(' ').map(OsString::from).collect()).map(|(_, command)| command)
    }

    #[test]
    fn containerds_create_line() {
        let line = "--root /run/r --log /l/log.json --log-format json create --bundle /b --pid-file /b/init.pid --console-socket /tmp/p/pty.sock c1";
        let (globals, command) =
            parse(line.split(' ').map(OsString::from).collect()).expect("parses");
        assert_eq!(globals.root, PathBuf::from("/run/r"));
        assert_eq!(globals.log_format, LogFormat::Json);
        let Command::Create(c) = command else {
            panic!("{command:?}")
        };
        assert_eq!((c.id.as_str(), c.bundle), ("c1", Some(PathBuf::from("/b"))));
        assert_eq!(c.console_socket, Some(PathBuf::from("/tmp/p/pty.sock")));
    }

    #[test]
    fn exec_leaves_the_commands_dashes_alone() {
        let Ok(Command::Exec(e)) = command("exec -t -u 1:2 -e A=b c1 ls -la --color") else {
            panic!("parses")
        };
        assert!(e.tty);
        assert_eq!(e.user.as_deref(), Some("1:2"));
        assert_eq!(e.args, ["ls", "-la", "--color"]);
        assert!(command("exec c1").is_err());
        assert!(matches!(
            command("exec --process /p.json c1"),
            Ok(Command::Exec(_))
        ));
    }

    #[test]
    fn kill_takes_signal_names_and_all_in_any_place() {
        let kill = |id: &str, signal: &str, all| Command::Kill {
            id: id.into(),
            signal: signal.into(),
            all,
        };
        assert_eq!(command("kill c1"), Ok(kill("c1", "SIGTERM", false)));
        assert_eq!(command("kill --all c1 9"), Ok(kill("c1", "9", true)));
        assert_eq!(command("kill c1 KILL -a"), Ok(kill("c1", "KILL", true)));
        assert!(command("kill").is_err());
    }

    #[test]
    fn a_run_only_flag_is_refused_by_create() {
        assert!(command("create --detach c1").is_err());
        assert!(command("run --detach c1").is_ok());
        assert!(command("create a b").is_err());
        assert_eq!(command("bogus").expect_err("unknown").code, 3);
        assert!(
            command("--systemd-cgroup state x")
                .expect_err("refused")
                .message
                .contains("cgroupfs")
        );
    }
}
