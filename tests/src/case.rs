//! Cases, their expansion over isolations and clients, and what a case may do.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use serde_json::Value;

use crate::client::{self, Background, Cli, Outcome};
use crate::daemon::Daemon;
use crate::rest;
use crate::target::Target;
use crate::terminal::Terminal;

/// Which wall a test runs behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Namespaces and cgroups.
    Container,
    /// A microVM.
    Vm,
}

impl Isolation {
    /// As `--isolation=` wants it.
    pub fn name(self) -> &'static str {
        match self {
            Isolation::Container => "container",
            Isolation::Vm => "vm",
        }
    }
}

/// Which cases are repeated behind a microVM: `CAISSON_TEST_VM`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum VmHalf {
    /// Every one through both clients, and nothing else.
    All,
    /// Every one, and nothing else, but only [`Case::core`] and [`Case::through_both`] ones through the stock client too: what the
    /// lab runs in CI.
    Each,
    /// Those marked [`Case::core`]: a selection for hosts where a virtual machine starts slowly.
    Core,
    /// None.
    Off,
}

impl VmHalf {
    fn from_environment(target: Target) -> Self {
        match std::env::var("CAISSON_TEST_VM").as_deref() {
            _ if target == Target::Dockerd => VmHalf::Off,
            Ok("all") => VmHalf::All,
            Ok("each") => VmHalf::Each,
            Ok("core") | Ok("") | Err(_) => VmHalf::Core,
            Ok("off") => VmHalf::Off,
            Ok(other) => panic!("CAISSON_TEST_VM={other}: use all, each, core or off"),
        }
    }

    fn has(self, case: &Case, isolation: Isolation, cli: Cli) -> bool {
        match (self, isolation) {
            (_, Isolation::Container) if case.vm_only => false,
            (VmHalf::All | VmHalf::Each, Isolation::Container) => false,
            (_, Isolation::Container) => true,
            (_, Isolation::Vm) if case.container_only => false,
            (VmHalf::All, Isolation::Vm) => true,
            (VmHalf::Each, Isolation::Vm) => {
                case.core
                    || case.through_both
                    || cli == Cli::Caisson
                    || case.clients == Clients::Old
            }
            (VmHalf::Core, Isolation::Vm) => case.core && cli == Cli::Caisson,
            (VmHalf::Off, Isolation::Vm) => false,
        }
    }
}

/// Which clients a case is run through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Ours and the stock one: the rule.
    Both,
    /// Ours alone: verbs that docker does not have.
    Caisson,
    /// Once, through the target's native client: the case is about the daemon, not about a command line.
    Native,
    /// The older stock client.
    Old,
}

/// One case.
#[derive(Clone, Copy)]
pub struct Case {
    module: &'static str,
    name: &'static str,
    body: fn(&Test),
    clients: Clients,
    alone: bool,
    ours: Option<&'static str>,
    container_only: bool,
    vm_only: bool,
    core: bool,
    through_both: bool,
    later: Option<&'static str>,
}

impl Case {
    /// A case for every isolation and both clients; [`cases!`](crate::cases) calls this.
    pub const fn new(module: &'static str, name: &'static str, body: fn(&Test)) -> Self {
        Case {
            module,
            name,
            body,
            clients: Clients::Both,
            alone: false,
            ours: None,
            container_only: false,
            vm_only: false,
            core: false,
            through_both: false,
            later: None,
        }
    }

    /// Only through these clients.
    pub const fn clients(mut self, clients: Clients) -> Self {
        self.clients = clients;
        self
    }

    /// No other case runs meanwhile: it measures time or strains the machine.
    pub const fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// Not for the reference, which behaves differently; says how.
    pub const fn ours(mut self, difference: &'static str) -> Self {
        self.ours = Some(difference);
        self
    }

    /// Not for ours yet; says when it comes. The case is kept true by the reference.
    pub const fn later(mut self, when: &'static str) -> Self {
        self.later = Some(when);
        self
    }

    /// Repeated behind a microVM on any host that can, not only in the lab.
    pub const fn core(mut self) -> Self {
        self.core = true;
        self
    }

    /// In the lab through the stock client as well, as core cases are.
    pub const fn through_both(mut self) -> Self {
        self.through_both = true;
        self
    }

    /// About the microVM alone.
    pub const fn vm_only(mut self) -> Self {
        self.vm_only = true;
        self
    }

    /// About the namespace wall alone: not repeated behind another.
    pub const fn container_only(mut self) -> Self {
        self.container_only = true;
        self
    }
}

/// Lists a module's cases: `cases![name, other.clients(Clients::Caisson)]` makes the constant `CASES`.
#[macro_export]
macro_rules! cases {
    ($($name:ident $(. $option:ident ( $($value:expr),* ))*),* $(,)?) => {
        /// The cases of this module.
        pub const CASES: &[$crate::Case] = &[
            $($crate::Case::new(module_path!(), stringify!($name), $name) $(. $option($($value),*))*),*
        ];
    };
}

/// A case being run: one isolation, one client, one daemon.
pub struct Test {
    /// The daemon.
    pub daemon: Arc<Daemon>,
    /// The client.
    pub cli: Cli,
    /// The isolation.
    pub isolation: Isolation,
    name: String,
    directory: OnceLock<tempfile::TempDir>,
}

struct Skip(String);

impl Test {
    fn new(daemon: Arc<Daemon>, cli: Cli, isolation: Isolation, name: String) -> Self {
        Test {
            daemon,
            cli,
            isolation,
            name,
            directory: OnceLock::new(),
        }
    }

    /// Ends the case as skipped.
    pub fn skip(&self, reason: &str) -> ! {
        panic_any(Skip(reason.to_string()))
    }

    /// What is under test.
    pub fn target(&self) -> Target {
        self.daemon.target
    }

    /// Whether the engine under test is the reference.
    pub fn is_reference(&self) -> bool {
        self.target() == Target::Dockerd
    }

    /// The same case on a daemon of its own, with extra arguments for it.
    pub fn own_daemon(&self, arguments: &[&str]) -> Test {
        let daemon = Arc::new(Daemon::start(self.target(), arguments));
        Test::new(daemon, self.cli, self.isolation, self.name.clone())
    }

    /// The same case through another client.
    pub fn through(&self, cli: Cli) -> Test {
        Test::new(self.daemon.clone(), cli, self.isolation, self.name.clone())
    }

    /// The test's full name, which is also the value of the label `caisson.case`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A container name, volume name or tag that no other test uses.
    pub fn unique(&self, suffix: &str) -> String {
        format!("{}-{suffix}", self.name.replace("::", "-").replace('_', ""))
    }

    /// A directory on the host for this test alone.
    pub fn directory(&self) -> &Path {
        let make = || {
            tempfile::Builder::new()
                .prefix("caisson-case-")
                .tempdir_in(crate::daemon::test_directory())
        };
        self.directory
            .get_or_init(|| make().expect("a scratch directory"))
            .path()
    }

    /// Writes a file into [`Test::directory`] and returns its path.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.directory().join(name);
        std::fs::create_dir_all(path.parent().expect("beneath the directory"))
            .expect("a directory");
        std::fs::write(&path, content).expect("a writable scratch directory");
        path
    }

    /// A command of the client, not run yet.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        client::with(self.daemon.command(self.cli), arguments)
    }

    /// Runs the client with these arguments.
    #[track_caller]
    pub fn cli(&self, arguments: &[&str]) -> Outcome {
        client::run(self.command(arguments), b"")
    }

    /// Runs the client with `input` on its standard input.
    #[track_caller]
    pub fn cli_with_input(&self, arguments: &[&str], input: &[u8]) -> Outcome {
        client::run(self.command(arguments), input)
    }

    /// `verb` (run or create) with this test's isolation and label, then `arguments`.
    pub fn verb(&self, verb: &str, arguments: &[&str]) -> Vec<String> {
        let mut all = vec![
            verb.to_string(),
            format!("--label=caisson.case={}", self.name),
        ];
        match self.target() {
            Target::Caisson => all.push(format!("--isolation={}", self.isolation.name())),
            Target::Dockerd if arguments.iter().any(|a| a.starts_with("--net")) => {}
            Target::Dockerd => all.push("--network=none".into()), // it runs without a bridge
        }
        all.extend(arguments.iter().map(|a| a.to_string()));
        all
    }

    /// `run` with these arguments.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Outcome {
        client::run(self.command(self.verb("run", arguments)), b"")
    }

    /// `run` with `input` on its standard input.
    #[track_caller]
    pub fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Outcome {
        client::run(self.command(self.verb("run", arguments)), input)
    }

    /// `run --rm IMAGE sh -c SCRIPT`, which must succeed; returns its trimmed output.
    #[track_caller]
    pub fn sh(&self, options: &[&str], script: &str) -> String {
        self.run(&[&["--rm"], options, &[crate::IMAGE, "sh", "-c", script]].concat())
            .ok()
            .trimmed()
    }

    /// `run -d` with these arguments; returns the container's id.
    #[track_caller]
    pub fn start(&self, arguments: &[&str]) -> String {
        let id = self.run(&[&["-d"], arguments].concat()).ok().trimmed();
        assert!(
            id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()),
            "not a container id: {id:?}"
        );
        id
    }

    /// `run -d IMAGE sh -c SCRIPT`; returns the container's id.
    #[track_caller]
    pub fn start_sh(&self, options: &[&str], script: &str) -> String {
        self.start(&[options, &[crate::IMAGE, "sh", "-c", script]].concat())
    }

    /// A container that sleeps; returns its id.
    #[track_caller]
    pub fn sleeper(&self, options: &[&str]) -> String {
        self.start(&[options, &[crate::IMAGE, "sleep", "1000"]].concat())
    }

    /// `create` with these arguments; returns the container's id.
    #[track_caller]
    pub fn create(&self, arguments: &[&str]) -> String {
        client::run(self.command(self.verb("create", arguments)), b"")
            .ok()
            .trimmed()
    }

    /// `exec CONTAINER sh -c SCRIPT`, which must succeed; returns its trimmed output.
    #[track_caller]
    pub fn exec(&self, container: &str, script: &str) -> String {
        self.cli(&["exec", container, "sh", "-c", script])
            .ok()
            .trimmed()
    }

    /// `inspect --format` of a container.
    #[track_caller]
    pub fn inspect(&self, container: &str, format: &str) -> String {
        self.cli(&["container", "inspect", "--format", format, container])
            .ok()
            .trimmed()
    }

    /// `inspect` of a container or image as JSON.
    #[track_caller]
    pub fn inspect_json(&self, name: &str) -> Value {
        let outcome = self.cli(&["inspect", name]);
        let all: Value = serde_json::from_slice(&outcome.ok().stdout)
            .unwrap_or_else(|e| panic!("{e}\n{}", outcome.dump()));
        all[0].clone()
    }

    /// Starts the client in the background.
    pub fn background(&self, arguments: &[&str]) -> Background {
        Background::start(self.command(arguments))
    }

    /// Starts `run` in the background.
    pub fn background_run(&self, arguments: &[&str]) -> Background {
        Background::start(self.command(self.verb("run", arguments)))
    }

    /// Starts the client on a terminal of 24 × 80.
    pub fn terminal(&self, arguments: &[&str]) -> Terminal {
        Terminal::start(self.command(arguments), 24, 80)
    }

    /// Starts `run` on a terminal of 24 × 80.
    pub fn terminal_run(&self, arguments: &[&str]) -> Terminal {
        Terminal::start(self.command(self.verb("run", arguments)), 24, 80)
    }

    /// Asks the daemon directly.
    #[track_caller]
    pub fn rest(&self, method: &str, path: &str, body: Option<&Value>) -> rest::Answer {
        rest::request(self.daemon.socket(), method, path, body)
            .unwrap_or_else(|e| panic!("{method} {path}: {e}"))
    }

    /// Gives what was started so many milliseconds to get where nobody can see that it is, more on slow machines.
    pub fn settle(&self, milliseconds: u64) {
        std::thread::sleep(crate::patience(milliseconds) / 1000);
    }

    /// Waits a while for something to become true.
    #[track_caller]
    pub fn eventually(&self, what: &str, mut is_true: impl FnMut() -> bool) {
        let until = Instant::now() + crate::patience(20);
        while !is_true() {
            assert!(Instant::now() < until, "waited in vain: {what}");
            std::thread::sleep(Duration::from_millis(25));
        }
    }

    /// Waits until a container's state is this one.
    #[track_caller]
    pub fn await_state(&self, container: &str, state: &str) {
        let until = Instant::now() + crate::patience(20);
        loop {
            let now = self.inspect(container, "{{.State.Status}}");
            if now == state {
                return;
            }
            assert!(
                Instant::now() < until,
                "waited in vain for {container} to be {state}, it is {now}"
            );
            std::thread::sleep(Duration::from_millis(25));
        }
    }

    /// Removes what the case left running, and says what that removal did not remove.
    fn tidy(&self) -> Vec<String> {
        let native = self.daemon.native_cli();
        let filter = format!("label=caisson.case={}", self.name);
        let present = self
            .daemon
            .client(native, &["ps", "-aq", "--no-trunc", "--filter", &filter]);
        let present = present.ok().out();
        let present: Vec<&str> = present.split_whitespace().collect();
        if !present.is_empty() {
            self.daemon
                .client(native, &[&["rm", "-f"], present.as_slice()].concat())
                .ok();
        }
        let mut ids = self.daemon.created_by(&self.name);
        ids.extend(present.iter().map(|id| id.to_string()));
        ids.sort();
        ids.dedup();
        ids.iter()
            .flat_map(|id| self.daemon.residue_of(id))
            .collect()
    }
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

static SHARED: OnceLock<Arc<Daemon>> = OnceLock::new();
static EXCLUSIVE: RwLock<()> = RwLock::new(());
static SKIPPED: Mutex<BTreeMap<String, Vec<String>>> = Mutex::new(BTreeMap::new());

fn skipped(name: &str, reason: &str) -> Completion {
    let mut all = SKIPPED
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    all.entry(reason.to_string())
        .or_default()
        .push(name.to_string());
    Completion::ignored_with(reason)
}

fn perform(
    case: Case,
    cli: Cli,
    isolation: Isolation,
    target: Target,
    name: String,
) -> Result<Completion, Failed> {
    if let Some(difference) = case.ours.filter(|_| target == Target::Dockerd) {
        return Ok(skipped(
            &name,
            &format!("the reference differs: {difference}"),
        ));
    }
    if let Some(when) = case.later.filter(|_| target == Target::Caisson) {
        return Ok(skipped(&name, when));
    }
    if let Err(reason) = cli.locate() {
        return Ok(skipped(&name, &reason));
    }
    let (_shared, _alone);
    if case.alone {
        _alone = EXCLUSIVE
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
    } else {
        _shared = EXCLUSIVE
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
    }
    let result = catch_unwind(AssertUnwindSafe(|| {
        let daemon = SHARED
            .get_or_init(|| Arc::new(Daemon::start(target, &[])))
            .clone();
        let test = Test::new(daemon, cli, isolation, name.clone());
        let result = catch_unwind(AssertUnwindSafe(|| (case.body)(&test)));
        let left = test.tidy();
        if let Err(payload) = result {
            std::panic::resume_unwind(payload);
        }
        assert!(
            left.is_empty(),
            "left behind after rm:\n{}",
            left.join("\n")
        );
    }));
    match result {
        Ok(()) => Ok(Completion::Completed),
        Err(payload) => match payload.downcast::<Skip>() {
            Ok(skip) => Ok(skipped(&name, &skip.0)),
            Err(_) => {
                let message = PANIC.take().unwrap_or_else(|| "panicked".into());
                // said again at the end, which a run that is cut off does not reach
                eprintln!("{name}: {message}");
                Err(Failed::from(message))
            }
        },
    }
}

/// `CAISSON_TEST_SHARD=2/3` is the second of three machines that share the work: its place from 0, and their number.
fn shard() -> (usize, usize) {
    let Ok(text) = std::env::var("CAISSON_TEST_SHARD") else {
        return (0, 1);
    };
    text.split_once('/')
        .and_then(|(part, parts)| Some((part.parse::<usize>().ok()?, parts.parse().ok()?)))
        .filter(|(part, parts)| (1..=*parts).contains(part))
        .map(|(part, parts)| (part - 1, parts))
        .unwrap_or_else(|| panic!("CAISSON_TEST_SHARD={text}: use 1/2, 2/2 and the like"))
}

/// Runs all cases with libtest's command line; prints what was skipped and why.
pub fn main(all: &[&[Case]]) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(4);
    let target = Target::from_environment();
    std::panic::set_hook(Box::new(|info| {
        if info.payload().is::<Skip>() {
            return;
        }
        let place = info
            .location()
            .map(|l| format!("{}:{}: ", l.file(), l.line()))
            .unwrap_or_default();
        let message = format!("{place}{}", info.payload_as_str().unwrap_or("panicked"));
        PANIC.with(|first| first.borrow_mut().get_or_insert(message.clone()).len());
    }));

    let vm_half = VmHalf::from_environment(target);
    let mut trials = Vec::new();
    for case in all.iter().copied().flatten().copied() {
        for isolation in [Isolation::Container, Isolation::Vm] {
            let clis: &[Cli] = match (case.clients, target) {
                (Clients::Both, Target::Caisson) => &[Cli::Caisson, Cli::Docker],
                (Clients::Both, Target::Dockerd) => &[Cli::Docker],
                (Clients::Native, Target::Caisson) => &[Cli::Caisson],
                (Clients::Native, Target::Dockerd) => &[Cli::Docker],
                (Clients::Caisson, Target::Caisson) => &[Cli::Caisson],
                (Clients::Caisson, Target::Dockerd) => &[],
                (Clients::Old, _) => &[Cli::OldDocker],
            };
            for cli in clis
                .iter()
                .copied()
                .filter(|cli| vm_half.has(&case, isolation, *cli))
            {
                let module = case.module.rsplit("::").next().unwrap_or(case.module);
                let name = format!(
                    "{module}::{}::{}::{}",
                    case.name,
                    isolation.name(),
                    cli.name()
                );
                let inner = name.clone();
                trials.push(Trial::ignorable_test(name, move || {
                    PANIC.take();
                    perform(case, cli, isolation, target, inner)
                }));
            }
        }
    }
    let (part, parts) = shard();
    let trials = (trials.into_iter().enumerate())
        .filter_map(|(i, trial)| (i % parts == part).then_some(trial))
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);

    let mut failed = conclusion.has_failed();
    if let Some(daemon) = SHARED.get() {
        let left = daemon.finish();
        if !left.is_empty() {
            println!("left behind by the shared daemon:\n{}", left.join("\n"));
            failed = true;
        }
        let _ = std::fs::remove_dir_all(daemon.root());
    }
    for (reason, names) in SKIPPED
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
        .iter()
    {
        println!("skipped {} × {reason}", names.len());
        if names.len() <= 10 {
            names.iter().for_each(|name| println!("    {name}"));
        }
    }
    if failed {
        ExitCode::from(101)
    } else {
        ExitCode::SUCCESS
    }
}
