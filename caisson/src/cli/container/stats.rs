//! `stats`: resource usage, once or live. The numbers are computed by pure functions from the API's samples.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::IsTerminal;
use std::rc::Rc;
use std::time::Duration;

use caisson_api::{ContainerStats, ContainerSummary};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::Method;
use serde_json::Value;

use super::path;
use super::ps::short_id;
use crate::cli::command::{COMMAND, Command, Failure, Operands, Outcome};
use crate::cli::flags::{FORMAT_TABLE, Flag, Kind, Parsed, flag};
use crate::cli::session::Session;
use crate::cli::table::{Layout, Row};
use crate::cli::{output, units};
use crate::client::{self, Client, JsonStream};

const FLAGS: &[Flag] = &[
    flag(
        "a",
        "all",
        Kind::Bool,
        "Show all containers (default shows just running)",
    ),
    flag("", "format", Kind::Text, FORMAT_TABLE),
    flag(
        "",
        "no-stream",
        Kind::Bool,
        "Disable streaming stats and only pull the first result",
    ),
    flag("", "no-trunc", Kind::Bool, "Do not truncate output"),
];

/// `stats`.
pub const COMMANDS: &[Command] = &[Command {
    paths: &["stats", "container stats"],
    usage: "[OPTIONS] [CONTAINER...]",
    about: "Display a live stream of container(s) resource usage statistics",
    examples: &[
        "stats",
        "stats --no-stream --format '{{.Name}}: {{.MemUsage}}' web",
    ],
    flags: &[FLAGS],
    operands: Operands::Any,
    run: |s, p| Box::pin(stats(s, p)),
    ..COMMAND
}];

const HEADERS: &[(&str, &str)] = &[
    ("Container", "CONTAINER"),
    ("ID", "CONTAINER ID"),
    ("Name", "NAME"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
];

/// What is shown of one container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    cpu_percent: f64,
    memory_bytes: f64,
    memory_limit_bytes: f64,
    rx_bytes: f64,
    tx_bytes: f64,
    read_bytes: f64,
    write_bytes: f64,
    pids: u64,
}

/// Percent of one CPU between a sample and the one before it; `None` without one before.
fn cpu_percent(s: &ContainerStats) -> f64 {
    let used =
        s.cpu_stats.cpu_usage.total_usage as f64 - s.precpu_stats.cpu_usage.total_usage as f64;
    let system = s.cpu_stats.system_cpu_usage as f64 - s.precpu_stats.system_cpu_usage as f64;
    let cpus = match s.cpu_stats.online_cpus {
        0 => s.cpu_stats.cpu_usage.percpu_usage.len() as f64,
        n => f64::from(n),
    };
    if system > 0.0 && used > 0.0 {
        used / system * cpus * 100.0
    } else {
        0.0
    }
}

/// Memory in use without the page cache that could be dropped: cgroup v1's and v2's names for it.
fn memory_bytes(s: &ContainerStats) -> f64 {
    let usage = s.memory_stats.usage;
    let inactive = ["total_inactive_file", "inactive_file"]
        .iter()
        .find_map(|k| s.memory_stats.stats.get(*k))
        .copied();
    match inactive {
        Some(cache) if cache < usage => (usage - cache) as f64,
        _ => usage as f64,
    }
}

impl Usage {
    /// Computes what is shown.
    pub fn of(s: &ContainerStats) -> Self {
        let io = |op: &str| {
            let entries = s.blkio_stats.io_service_bytes_recursive.iter().flatten();
            entries
                .filter(|e| e.op.to_lowercase().starts_with(op))
                .map(|e| e.value)
                .sum::<u64>() as f64
        };
        Usage {
            cpu_percent: cpu_percent(s),
            memory_bytes: memory_bytes(s),
            memory_limit_bytes: s.memory_stats.limit as f64,
            rx_bytes: s.networks.values().map(|n| n.rx_bytes).sum::<u64>() as f64,
            tx_bytes: s.networks.values().map(|n| n.tx_bytes).sum::<u64>() as f64,
            read_bytes: io("r"),
            write_bytes: io("w"),
            pids: s.pids_stats.current,
        }
    }
}

/// One line of the table.
#[derive(Clone, Default)]
struct Shown {
    typed: String,
    id: String,
    name: String,
    /// `None` until a first sample arrives.
    usage: Option<Usage>,
}

impl Shown {
    fn row(&self, truncate: bool) -> Row {
        let or_dashes =
            |f: &dyn Fn(&Usage) -> String| self.usage.as_ref().map_or_else(|| "--".to_owned(), f);
        let pair = |f: &dyn Fn(&Usage) -> String| {
            self.usage.as_ref().map_or_else(|| "-- / --".to_owned(), f)
        };
        let size = |v: f64| units::human_size_digits(v, 3);
        Row {
            fields: vec![
                ("Container", self.typed.clone()),
                (
                    "ID",
                    if truncate {
                        short_id(&self.id)
                    } else {
                        self.id.clone()
                    },
                ),
                (
                    "Name",
                    if self.name.is_empty() {
                        "--".to_owned()
                    } else {
                        self.name.clone()
                    },
                ),
                ("CPUPerc", or_dashes(&|u| format!("{:.2}%", u.cpu_percent))),
                (
                    "MemUsage",
                    pair(&|u| {
                        format!(
                            "{} / {}",
                            units::bytes_size(u.memory_bytes),
                            units::bytes_size(u.memory_limit_bytes)
                        )
                    }),
                ),
                (
                    "MemPerc",
                    or_dashes(&|u| {
                        let share = if u.memory_limit_bytes > 0.0 {
                            u.memory_bytes / u.memory_limit_bytes * 100.0
                        } else {
                            0.0
                        };
                        format!("{share:.2}%")
                    }),
                ),
                (
                    "NetIO",
                    or_dashes(&|u| format!("{} / {}", size(u.rx_bytes), size(u.tx_bytes))),
                ),
                (
                    "BlockIO",
                    or_dashes(&|u| format!("{} / {}", size(u.read_bytes), size(u.write_bytes))),
                ),
                ("PIDs", or_dashes(&|u| u.pids.to_string())),
            ],
            labels: None,
        }
    }
}

fn update(shown: &mut Shown, sample: &ContainerStats) {
    shown.id = if sample.id.is_empty() {
        shown.id.clone()
    } else {
        sample.id.clone()
    };
    shown.name = sample.name.trim_start_matches('/').to_owned();
    shown.usage = Some(Usage::of(sample));
}

async fn stats(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let client = session.client()?;
    let truncate = !parsed.flag("no-trunc");
    let format = match parsed.text("format") {
        "" => session.config.format("statsFormat").unwrap_or_default(),
        given => given.to_owned(),
    };
    let layout = Layout {
        type_name: "*container.statsContext",
        table: "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}".to_owned(),
        quiet: "{{.ID}}",
        headers: HEADERS,
        raw: "",
    };
    let render = |lines: &[Shown]| {
        let rows: Vec<Row> = lines.iter().map(|s| s.row(truncate)).collect();
        layout.render(&format, false, &rows).map_err(Failure::new)
    };
    let follow_all = parsed.operands.is_empty();
    if parsed.flag("no-stream") {
        let names = if follow_all {
            running(client, parsed.flag("all")).await?
        } else {
            parsed.operands.clone()
        };
        let samples = names.iter().map(|name| async move {
            let sample: client::Result<ContainerStats> =
                client.get(path(name, "/stats").with("stream", "0")).await;
            (name, sample)
        });
        let (mut lines, mut errors) = (Vec::new(), Vec::new());
        for (name, sample) in futures_util::future::join_all(samples).await {
            match sample {
                Ok(sample) => {
                    let typed = if follow_all {
                        short_id(name)
                    } else {
                        name.clone()
                    };
                    let mut shown = Shown {
                        typed,
                        id: name.clone(),
                        ..Shown::default()
                    };
                    update(&mut shown, &sample);
                    lines.push(shown);
                }
                // With a changing list a container may be gone by now.
                Err(e) if follow_all && e.is_not_found() => {}
                Err(e) => errors.push(e.to_string()),
            }
        }
        if !errors.is_empty() {
            return Err(Failure::new(errors.join("\n")));
        }
        output::print(render(&lines)?)?;
        return Ok(0);
    }
    live(client, &parsed, follow_all, &render).await
}

async fn running(client: &Client, all: bool) -> Result<Vec<String>, Failure> {
    let list: Vec<ContainerSummary> = client
        .get(client::target("/containers/json").with_flag("all", all))
        .await?;
    Ok(list.into_iter().map(|c| c.id).collect())
}

/// Follows samples and redraws every half second until interrupted or nothing is left to watch.
async fn live(
    client: &Client,
    parsed: &Parsed,
    follow_all: bool,
    render: &dyn Fn(&[Shown]) -> Result<String, Failure>,
) -> Outcome {
    let lines: RefCell<Vec<Shown>> = RefCell::default();
    let gone: RefCell<HashMap<String, String>> = RefCell::default();
    let names = if follow_all {
        running(client, parsed.flag("all")).await?
    } else {
        parsed.operands.clone()
    };
    let watch = |name: String| {
        let (lines, gone) = (&lines, &gone);
        async move {
            let followed = follow(client, &name, lines).await;
            if let Err(e) = followed {
                gone.borrow_mut().insert(name.clone(), e.to_string());
            }
            if follow_all {
                lines.borrow_mut().retain(|l| l.id != name);
            }
            name
        }
    };
    let mut watches = FuturesUnordered::new();
    let mut watched = std::collections::HashSet::new();
    for name in names {
        let typed = if follow_all {
            short_id(&name)
        } else {
            name.clone()
        };
        lines.borrow_mut().push(Shown {
            typed,
            id: name.clone(),
            ..Shown::default()
        });
        watched.insert(name.clone());
        watches.push(watch(name));
    }
    let terminal = std::io::stdout().is_terminal();
    let mut redraw = tokio::time::interval(Duration::from_millis(500));
    redraw.tick().await;
    loop {
        tokio::select! {
            Some(ended) = watches.next(), if !watches.is_empty() => {
                watched.remove(&ended);
                if !follow_all && watches.is_empty() {
                    let errors: Vec<String> = parsed.operands.iter().filter_map(|n| gone.borrow().get(n).cloned()).collect();
                    return if errors.is_empty() { Ok(0) } else { Err(Failure::new(errors.join("\n"))) };
                }
            }
            _ = redraw.tick() => {
                if follow_all {
                    for id in running(client, parsed.flag("all")).await? {
                        if watched.insert(id.clone()) {
                            lines.borrow_mut().push(Shown { typed: short_id(&id), id: id.clone(), ..Shown::default() });
                            watches.push(watch(id));
                        }
                    }
                }
                let text = render(&lines.borrow())?;
                if terminal {
                    // Home; each line cleared to its end; the rest of the screen cleared.
                    let text = text.replace('\n', "\u{1b}[K\n");
                    output::print(format!("\u{1b}[H{text}\u{1b}[J"))?;
                } else {
                    output::print(text)?;
                }
            }
        }
    }
}

async fn follow(client: &Client, name: &str, lines: &RefCell<Vec<Shown>>) -> client::Result<()> {
    let response = client
        .send::<Value>(Method::GET, path(name, "/stats").with("stream", "1"), None)
        .await?;
    let mut samples = JsonStream::new(response);
    while let Some(value) = samples.next().await? {
        let sample: ContainerStats =
            caisson_api::from_value(value).map_err(|e| client::Error::Answer(e.to_string()))?;
        if let Some(line) = lines
            .borrow_mut()
            .iter_mut()
            .find(|l| l.typed == name || l.id == name)
        {
            update(line, &sample);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_computed_from_two_samples() {
        let mut s = ContainerStats::default();
        s.cpu_stats.cpu_usage.total_usage = 300;
        s.precpu_stats.cpu_usage.total_usage = 100;
        s.cpu_stats.system_cpu_usage = 2000;
        s.precpu_stats.system_cpu_usage = 1000;
        s.cpu_stats.online_cpus = 2;
        s.memory_stats.usage = 1000;
        s.memory_stats.stats.insert("inactive_file".into(), 400);
        let usage = Usage::of(&s);
        assert!((usage.cpu_percent - 40.0).abs() < 1e-9);
        assert!((usage.memory_bytes - 600.0).abs() < 1e-9);
        s.memory_stats
            .stats
            .insert("total_inactive_file".into(), 5000);
        assert!(
            (Usage::of(&s).memory_bytes - 1000.0).abs() < 1e-9,
            "a cache larger than the usage is not subtracted"
        );
    }

    #[test]
    fn what_is_not_known_is_dashes() {
        let row = Shown {
            typed: "x".into(),
            ..Shown::default()
        }
        .row(true);
        assert!(row.fields.contains(&("MemUsage", "-- / --".to_owned())));
        assert!(row.fields.contains(&("CPUPerc", "--".to_owned())));
    }
}
