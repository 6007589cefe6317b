//! `cargo xtask bench`: ours and others', side by side, in one run.
//!
//! Every round measures every contender once, in an order that rotates, so that a busy moment of the machine hits all alike.
//! A round gives each contender's ratio to the first one; reported are medians with 95 % bootstrap intervals.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::shell::{is_root, on_path, output, run as run_command, target};
use crate::statistics::{interval, median, quantile};

/// What to measure, and how often.
#[derive(clap::Args)]
pub struct Options {
    /// Rounds of the start-up measurements
    #[arg(long, default_value_t = 60)]
    rounds: usize,
    /// Rounds of the image measurement
    #[arg(long, default_value_t = 5)]
    image_rounds: usize,
    /// Only measurements whose name contains this: oci, run, load
    #[arg(long)]
    only: Option<String>,
    /// Where the report goes (default: target/bench)
    #[arg(long)]
    output: Option<PathBuf>,
    /// Use these programs rather than building
    #[arg(long)]
    programs: Option<PathBuf>,
}

/// One thing that is measured: a name and an action that takes as long as it takes.
struct Contender<'a> {
    name: String,
    act: Box<dyn FnMut() -> Result<Duration> + 'a>,
}

struct Series {
    name: String,
    milliseconds: Vec<f64>,
}

struct Report {
    name: &'static str,
    what: String,
    series: Vec<Series>,
}

/// Runs the measurements and writes the report.
pub fn run(options: &Options) -> Result<()> {
    if !is_root() {
        bail!("containers and daemons are started: run this task as root");
    }
    if hybrid_cgroups() {
        // crun refuses a host with both cgroup versions; all contenders are measured in a view of it without the second
        let own = std::env::current_exe()?;
        let mut again = Command::new("unshare");
        again.args(["--mount", "--propagation=private", "sh", "-c"]);
        again
            .arg("umount /sys/fs/cgroup/unified && exec \"$0\" \"$@\"")
            .arg(own)
            .args(std::env::args_os().skip(1));
        return run_command(&mut again);
    }
    let programs = match &options.programs {
        Some(directory) => directory.canonicalize()?,
        None => crate::build::run()?,
    };
    let scratch = tempfile::Builder::new()
        .prefix("caisson-bench-")
        .tempdir_in("/var/tmp")?;
    let wanted = |name: &str| {
        options
            .only
            .as_ref()
            .is_none_or(|only| name.contains(only.as_str()))
    };
    let mut reports = Vec::new();
    if wanted("oci") {
        reports.push(oci_start(&programs, scratch.path(), options.rounds)?);
    }
    if wanted("run") || wanted("load") {
        let caisson = Engine::caisson(&programs, scratch.path())?;
        let dockerd = Engine::dockerd(scratch.path())?;
        if wanted("run") {
            reports.push(run_and_remove(&caisson, dockerd.as_ref(), options.rounds)?);
        }
        if wanted("load") {
            reports.push(load(&caisson, dockerd.as_ref(), options.image_rounds)?);
        }
    }
    let machine = machine();
    let text = markdown(&machine, &reports);
    println!("\n{text}");
    let directory = options
        .output
        .clone()
        .unwrap_or_else(|| target().join("bench"));
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("report.md"), &text)?;
    fs::write(
        directory.join("report.json"),
        serde_json::to_string_pretty(&as_json(&machine, &reports))?,
    )?;
    println!("bench: written to {}", directory.display());
    Ok(())
}

fn hybrid_cgroups() -> bool {
    fs::read_to_string("/proc/self/mounts")
        .is_ok_and(|mounts| mounts.contains(" /sys/fs/cgroup/unified "))
}

fn measure(
    name: &'static str,
    what: String,
    rounds: usize,
    mut contenders: Vec<Contender>,
) -> Result<Report> {
    println!(
        "bench: {name}, {rounds} rounds of {}",
        contenders
            .iter()
            .map(|c| c.name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    );
    let mut series: Vec<Series> = contenders
        .iter()
        .map(|c| Series {
            name: c.name.clone(),
            milliseconds: Vec::new(),
        })
        .collect();
    let count = contenders.len();
    for round in 0..=rounds {
        for turn in 0..count {
            let index = (round + turn) % count;
            let contender = &mut contenders[index];
            let took = (contender.act)().with_context(|| format!("{name}: {}", contender.name))?;
            if round > 0 {
                series[index].milliseconds.push(took.as_secs_f64() * 1000.0); // the first round warms caches
            }
        }
    }
    Ok(Report { name, what, series })
}

fn timed(command: &mut Command) -> Result<Duration> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let began = Instant::now();
    let output = command
        .spawn()
        .with_context(|| format!("cannot run {}", crate::shell::show(command)))?
        .wait_with_output()?;
    let took = began.elapsed();
    if !output.status.success() {
        bail!(
            "{}: {}\n{}",
            crate::shell::show(command),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(took)
}

/// create + start + delete of `/bin/true` through the OCI command line.
fn oci_start(programs: &Path, scratch: &Path, rounds: usize) -> Result<Report> {
    let bundle = scratch.join("bundle");
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|p| Path::new(p).exists())
        .context("no busybox")?;
    for directory in ["bin", "proc", "dev", "sys", "tmp", "etc"] {
        fs::create_dir_all(bundle.join("rootfs").join(directory))?;
    }
    fs::copy(busybox, bundle.join("rootfs/bin/true"))?;
    let runc = on_path("runc").context("no runc: run `cargo xtask setup --tests`")?;
    run_command(Command::new(&runc).arg("spec").current_dir(&bundle))?;
    let path = bundle.join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["/bin/true"]);
    fs::write(&path, config.to_string())?;

    let mut contenders = Vec::new();
    let others = ["crun", "runc"].into_iter().filter_map(on_path);
    let runtimes = std::iter::once(programs.join("caisson-oci")).chain(others);
    for program in runtimes {
        let name = program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let (bundle, state) = (bundle.clone(), scratch.join(format!("state-{name}")));
        fs::create_dir_all(&state)?;
        let mut number = 0;
        let prefix = format!("bench-{}-{name}", std::process::id());
        let act = move || {
            number += 1;
            let mut command = Command::new(&program);
            command
                .arg("--root")
                .arg(&state)
                .arg("run")
                .arg("--bundle")
                .arg(&bundle)
                .arg(format!("{prefix}-{number}"));
            timed(&mut command)
        };
        contenders.push(Contender {
            name,
            act: Box::new(act),
        });
    }
    let own_root = bundle.join("rootfs/bin/true");
    contenders.push(Contender {
        name: "no container".into(),
        act: Box::new(move || timed(&mut Command::new(&own_root))),
    });
    measure(
        "oci",
        "`run` of `/bin/true`: create, start, wait, delete; same bundle (`runc spec`)".into(),
        rounds,
        contenders,
    )
}

/// A daemon of our own or dockerd, on directories of its own.
struct Engine {
    name: String,
    cli: PathBuf,
    host: String,
    child: Child,
    directory: PathBuf,
    run_options: &'static [&'static str],
}

impl Engine {
    fn start(
        name: &str,
        mut daemon: Command,
        cli: PathBuf,
        directory: &Path,
        run_options: &'static [&'static str],
    ) -> Result<Engine> {
        fs::create_dir_all(directory)?;
        let socket = directory.join("engine.sock");
        let host = format!("unix://{}", socket.display());
        daemon
            .arg("--data-root")
            .arg(directory.join("data"))
            .arg("--exec-root")
            .arg(directory.join("exec"))
            .arg("-H")
            .arg(&host);
        let log = fs::File::create(directory.join("log"))?;
        let child = daemon
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let engine = Engine {
            name: name.into(),
            cli,
            host,
            child,
            directory: directory.into(),
            run_options,
        };
        let until = Instant::now() + Duration::from_secs(30);
        while timed(engine.command().arg("version")).is_err() {
            if Instant::now() > until {
                bail!(
                    "{name} does not answer:\n{}",
                    fs::read_to_string(directory.join("log")).unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(engine)
    }

    fn caisson(programs: &Path, scratch: &Path) -> Result<Engine> {
        let cli = programs.join("caisson");
        let mut daemon = Command::new(&cli);
        daemon.arg("daemon");
        Engine::start("caisson", daemon, cli, &scratch.join("caisson"), &[])
    }

    fn dockerd(scratch: &Path) -> Result<Option<Engine>> {
        let (Some(dockerd), Some(cli)) = (on_path("dockerd"), on_path("docker")) else {
            return Ok(None);
        };
        let directory = scratch.join("dockerd");
        let version = output(Command::new(&dockerd).arg("--version"))?;
        let version = version
            .split_whitespace()
            .nth(2)
            .unwrap_or("")
            .trim_end_matches(',')
            .to_string();
        let mut daemon = Command::new(dockerd);
        daemon
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none"])
            .arg("--pidfile")
            .arg(directory.join("pid"));
        Engine::start(
            &format!("dockerd {version}"),
            daemon,
            cli,
            &directory,
            &["--network=none"],
        )
        .map(Some)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.cli);
        command
            .arg("-H")
            .arg(&self.host)
            .env_remove("DOCKER_HOST")
            .env("HOME", &self.directory);
        command
    }

    fn run(&self, reference: &str) -> Result<Duration> {
        timed(
            self.command()
                .args(["run", "--rm"])
                .args(self.run_options)
                .args([reference, "true"]),
        )
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = Command::new("kill")
            .arg(self.child.id().to_string())
            .status();
        let _ = self.child.wait();
        for mount in ["exec/netns/default", "data"] {
            let _ = Command::new("umount")
                .arg(self.directory.join(mount))
                .stderr(Stdio::null())
                .status();
        }
    }
}

fn run_and_remove(caisson: &Engine, dockerd: Option<&Engine>, rounds: usize) -> Result<Report> {
    const IMAGE: &str = "caisson/toolbox";
    if let Some(dockerd) = dockerd {
        let archive = dockerd.directory.join("toolbox.tar");
        run_command(
            caisson
                .command()
                .args(["save", "-o"])
                .arg(&archive)
                .arg(IMAGE),
        )?;
        timed(dockerd.command().args(["load", "-i"]).arg(&archive))?;
    }
    let stock = dockerd.map(|dockerd| dockerd.cli.clone());
    let mut contenders = vec![Contender {
        name: "caisson run".into(),
        act: Box::new(|| caisson.run(IMAGE)),
    }];
    if let (Some(dockerd), Some(stock)) = (dockerd, stock) {
        let on_ours = move || {
            timed(Command::new(&stock).arg("-H").arg(&caisson.host).args([
                "run",
                "--rm",
                "--network=none",
                IMAGE,
                "true",
            ]))
        };
        contenders.push(Contender {
            name: "docker CLI on caisson".into(),
            act: Box::new(on_ours),
        });
        contenders.push(Contender {
            name: format!("docker run on {}", dockerd.name),
            act: Box::new(move || dockerd.run(IMAGE)),
        });
    }
    measure(
        "run",
        "`run --rm IMAGE true`, daemon warm, same image; docker with `--network none`".into(),
        rounds,
        contenders,
    )
}

fn load(caisson: &Engine, dockerd: Option<&Engine>, rounds: usize) -> Result<Report> {
    let archive = crate::images::large()?;
    let size = fs::metadata(&archive)?.len() / 1_000_000;
    let mut contenders = Vec::new();
    for engine in std::iter::once(caisson).chain(dockerd) {
        let archive = archive.clone();
        let act = move || {
            let took = timed(engine.command().args(["load", "-q", "-i"]).arg(&archive))?;
            timed(engine.command().args(["rmi", "large:latest"]))?;
            run_command(&mut Command::new("sync"))?; // the next contender starts with clean caches
            Ok(took)
        };
        contenders.push(Contender {
            name: engine.name.clone(),
            act: Box::new(act),
        });
    }
    measure(
        "load",
        format!("`load` of a Debian image of {size} MB, uncompressed archive, page cache warm"),
        rounds,
        contenders,
    )
}

fn machine() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        text.lines()
            .find(|l| l.starts_with(name))
            .and_then(|l| l.split(':').nth(1))
            .unwrap_or("?")
            .trim()
            .to_string()
    };
    let version = |program: &str| {
        let program = on_path(program)?;
        output(Command::new(program).arg("--version"))
            .ok()?
            .lines()
            .next()
            .map(str::to_string)
    };
    json!({
        "cpu": field(&read("/proc/cpuinfo"), "model name"),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "memory": field(&read("/proc/meminfo"), "MemTotal"),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "cgroups": if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "v2" } else { "v1" },
        "load_average": read("/proc/loadavg").trim(),
        "versions": [version("crun"), version("runc"), version("dockerd"), version("docker")],
    })
}

fn markdown(machine: &Value, reports: &[Report]) -> String {
    let mut text = String::new();
    for report in reports {
        text += &format!(
            "### {}: {}\n\n| | median ms | p10 | p90 | ratio to {} [95 %] |\n|---|---|---|---|---|\n",
            report.name, report.what, report.series[0].name
        );
        for series in &report.series {
            let ratios: Vec<f64> = series
                .milliseconds
                .iter()
                .zip(&report.series[0].milliseconds)
                .map(|(a, b)| a / b)
                .collect();
            let (low, high) = interval(&ratios);
            let value = |q| quantile(&series.milliseconds, q);
            text += &format!(
                "| {} | {:.2} | {:.2} | {:.2} | {:.2} [{low:.2}, {high:.2}] |\n",
                series.name,
                value(0.5),
                value(0.1),
                value(0.9),
                median(&ratios)
            );
        }
        text += &format!(
            "\n{} rounds, interleaved.\n\n",
            report.series[0].milliseconds.len()
        );
    }
    let versions: Vec<&str> = machine["versions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    text += &format!(
        "Machine: {} × {}, {} RAM, Linux {}, cgroup {}, load average {}; {}.\n",
        machine["cpus"],
        machine["cpu"].as_str().unwrap_or("?"),
        machine["memory"].as_str().unwrap_or("?"),
        machine["kernel"].as_str().unwrap_or("?"),
        machine["cgroups"].as_str().unwrap_or("?"),
        machine["load_average"].as_str().unwrap_or("?"),
        versions.join("; ")
    );
    text
}

fn as_json(machine: &Value, reports: &[Report]) -> Value {
    let reports: Vec<Value> = reports
        .iter()
        .map(|report| {
            let series: Vec<Value> = report.series.iter().map(|s| json!({"name": s.name, "milliseconds": s.milliseconds, "median": median(&s.milliseconds)})).collect();
            json!({"name": report.name, "what": report.what, "series": series})
        })
        .collect();
    json!({"machine": machine, "reports": reports})
}
