//! `cargo xtask demo`: from a fresh checkout to running containers, showing every command and its real output.
//!
//! Each scene is a command line that a user could type. The demo fails when a scene does. It uses a daemon and directories of
//! its own, which it removes.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::shell::{as_root, is_root, on_path};

const WALLS: [&str; 2] = ["container", "vm"];

/// How to show it.
#[derive(clap::Args)]
pub struct Options {
    /// Show these programs rather than building
    #[arg(long)]
    programs: Option<PathBuf>,
}

/// Sets up, builds and shows.
pub fn run(options: &Options) -> Result<()> {
    let dist = match &options.programs {
        Some(directory) => directory.canonicalize()?,
        None => crate::build::run()?,
    };
    if !is_root() {
        // containers need root; building does not
        let own = std::env::current_exe()?;
        println!("demo: the rest needs root: asking sudo");
        return crate::shell::run(
            as_root(&own.display().to_string())
                .args(["demo", "--programs"])
                .arg(&dist),
        );
    }
    let stage = Stage::open(&dist)?;
    stage.title("an image that came with the program, no registry needed");
    stage.caisson("images")?;
    stage.title("the same image behind either wall: what each says of the kernel it runs on");
    for wall in WALLS {
        stage.script(
            &format!("run --rm --isolation={wall} caisson/toolbox sh -c"),
            "echo hello from $(uname -sr), $(nproc) CPUs, $(free -m | awk '/Mem/ {print $2}') MiB",
        )?;
    }
    stage.boot_times()?;
    for wall in WALLS {
        stage.title(&format!("--isolation={wall}"));
        scenes(&stage, wall)?;
    }
    if on_path("docker").is_some() {
        stage.title("the stock docker command line, on our socket");
        for wall in WALLS {
            stage.show(
                "docker",
                &[
                    "-H",
                    &stage.host,
                    "run",
                    "--rm",
                    &format!("--isolation={wall}"),
                    "caisson/toolbox",
                    "echo",
                    "hello from the stock docker command line",
                ],
            )?;
        }
        stage.show(
            "docker",
            &[
                "-H",
                &stage.host,
                "ps",
                "-a",
                "--format",
                "{{.Names}}: {{.Status}}",
            ],
        )?;
    }
    stage.close()?;
    println!(
        "\nThat was real output of real containers and microVMs on this machine. Next: `cargo xtask test`, `cargo xtask install`."
    );
    Ok(())
}

fn scenes(stage: &Stage, wall: &str) -> Result<()> {
    let run = format!("run --isolation={wall}");
    stage.caisson(&format!(
        "{run} --rm caisson/toolbox echo hello from inside"
    ))?;
    stage.script(
        &format!("{run} --rm --hostname box -m 64m --pids-limit 20 caisson/toolbox sh -c"),
        "id; hostname; ps; free -m | head -2",
    )?;
    stage.script(
        &format!("{run} --rm --read-only --cap-drop ALL caisson/toolbox sh -c"),
        "touch /x; grep CapEff /proc/self/status; mount -t tmpfs x /mnt; true",
    )?;
    stage.script(&format!("{run} -d --name server --health-cmd 'wget -qO- localhost' --health-interval 1s caisson/toolbox sh -c"), "echo served by $HOSTNAME > /index.html; exec httpd -f -v -h /")?;
    stage.caisson("exec server wget -qO- localhost")?;
    stage.caisson("logs server")?;
    stage.caisson("stats --no-stream server")?;
    stage.title("the daemon is killed with SIGKILL; the container does not notice");
    stage.kill_daemon()?;
    stage.caisson("exec server wget -qO- localhost")?;
    stage.caisson("ps")?;
    stage.caisson("stop -t 1 server")?;
    stage
        .script(
            &format!("{run} --name changed caisson/toolbox sh -c"),
            "echo mine > /etc/motd; exit 3",
        )
        .ok();
    stage.caisson("diff changed")?;
    stage.caisson("ps -a")?;
    stage.caisson("rm -f server changed")
}

/// A daemon with directories of its own.
struct Stage {
    directory: tempfile::TempDir,
    dist: PathBuf,
    host: String,
    daemon: std::cell::RefCell<Child>,
}

impl Stage {
    fn open(dist: &Path) -> Result<Stage> {
        let directory = tempfile::Builder::new()
            .prefix("caisson-demo-")
            .tempdir_in("/var/tmp")?;
        let host = format!("unix://{}/caisson.sock", directory.path().display());
        let daemon = Self::daemon(dist, directory.path(), &host)?;
        Ok(Stage {
            directory,
            dist: dist.into(),
            host,
            daemon: daemon.into(),
        })
    }

    fn daemon(dist: &Path, directory: &Path, host: &str) -> Result<Child> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(directory.join("log"))?;
        let mut command = Command::new(dist.join("caisson"));
        command
            .args(["daemon", "-H", host])
            .arg("--data-root")
            .arg(directory.join("data"))
            .arg("--exec-root")
            .arg(directory.join("exec"));
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start the daemon")?;
        let until = Instant::now() + Duration::from_secs(20);
        while !directory.join("caisson.sock").exists()
            || !Command::new(dist.join("caisson"))
                .args(["-H", host, "version"])
                .output()?
                .status
                .success()
        {
            if Instant::now() > until {
                bail!(
                    "the daemon does not answer:\n{}",
                    std::fs::read_to_string(directory.join("log")).unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(child)
    }

    fn title(&self, text: &str) {
        println!("\n\x1b[1m── {text}\x1b[0m");
    }

    fn program(&self, program: &str, arguments: &[&str]) -> Command {
        let path = if program == "caisson" {
            self.dist.join("caisson")
        } else {
            program.into()
        };
        let mut command = Command::new(path);
        command
            .args(arguments)
            .env("DOCKER_HOST", &self.host)
            .env("HOME", self.directory.path())
            .stdin(Stdio::null());
        command
    }

    fn show(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let shown: Vec<String> = arguments
            .iter()
            .map(|a| {
                if a.contains([' ', ';', '{']) {
                    format!("'{}'", a.replace('\'', r"'\''"))
                } else {
                    a.to_string()
                }
            })
            .collect();
        let shown = shown
            .join(" ")
            .replace(&self.host, "unix:///run/caisson.sock");
        println!("\x1b[36m$ {program} {shown}\x1b[0m");
        let began = Instant::now();
        let status = self
            .program(program, arguments)
            .status()
            .with_context(|| format!("cannot run {program}"))?;
        println!(
            "\x1b[2m  [{} ms{}]\x1b[0m",
            began.elapsed().as_millis(),
            status
                .code()
                .filter(|c| *c != 0)
                .map_or(String::new(), |c| format!(", exit code {c}"))
        );
        if !status.success() {
            bail!("{program} {shown}: {status}");
        }
        Ok(())
    }

    fn caisson(&self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split(' ').collect();
        self.show("caisson", &words)
    }

    /// `line` with `script` as its last word; quotes in `line` hold words together.
    fn script(&self, line: &str, script: &str) -> Result<()> {
        let mut words = Vec::new();
        for (number, part) in line.split('\'').enumerate() {
            if number % 2 == 1 {
                words.push(part)
            } else {
                words.extend(part.split(' ').filter(|word| !word.is_empty()))
            }
        }
        words.push(script);
        self.show("caisson", &words)
    }

    /// Where the time of a microVM's boot went, from its supervisor's log.
    fn boot_times(&self) -> Result<()> {
        self.title("where the time of a microVM's start goes");
        self.caisson("run -d --name booted --isolation=vm caisson/toolbox sleep 1000")?;
        let mut logs = std::fs::read_dir(self.directory.path().join("exec/sandboxes"))?
            .flatten()
            .filter_map(|sandbox| std::fs::read_to_string(sandbox.path().join("shim.log")).ok());
        let line = logs
            .find_map(|log| {
                log.lines()
                    .find(|l| l.contains("has booted"))
                    .map(String::from)
            })
            .context("the supervisor of a microVM did not say how it booted")?;
        for (field, what) in [
            ("vmm_ms", "VMM: memory, devices, kernel in place"),
            ("kernel_ms", "guest kernel, to its first device"),
            ("devices_ms", "guest kernel, to its root file system"),
            ("agent_ms", "agent, to its first word over vsock"),
            ("exits", "exits of the vCPUs until then"),
        ] {
            let value = line
                .split_once(&format!("{field}="))
                .map_or("?", |(_, rest)| rest.split(' ').next().unwrap_or(rest));
            println!(
                "  {what:<42} {value:>10}{}",
                if field == "exits" { "" } else { " ms" }
            );
        }
        self.caisson("rm -f booted")
    }

    fn kill_daemon(&self) -> Result<()> {
        let mut daemon = self.daemon.borrow_mut();
        println!(
            "\x1b[36m$ kill -9 {}   # and start it again\x1b[0m",
            daemon.id()
        );
        daemon.kill()?;
        daemon.wait()?;
        *daemon = Self::daemon(&self.dist, self.directory.path(), &self.host)?;
        Ok(())
    }

    fn close(self) -> Result<()> {
        let mut daemon = self.daemon.borrow_mut();
        crate::shell::run(Command::new("kill").arg(daemon.id().to_string()))?;
        daemon.wait()?;
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let daemon = self.daemon.get_mut();
        if daemon.try_wait().is_ok_and(|status| status.is_none()) {
            // a scene failed: leave nothing running
            let ids = self
                .program("caisson", &["ps", "-aq"])
                .output()
                .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
                .unwrap_or_default();
            for id in ids.split_whitespace() {
                let _ = self.program("caisson", &["rm", "-f", id]).output();
            }
            let daemon = self.daemon.get_mut();
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}
