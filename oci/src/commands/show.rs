//! `state`, `list`, `ps`, `events`: what is, in runc's shapes.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use caisson_jail::cgroup::Cgroup;
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::cli::Format;
use crate::store::{Entry, Record, Status, Store};
use crate::table;

fn describe(entry: &Entry) -> Result<(Value, Status)> {
    let record = entry.record()?;
    let status = entry.status(record.as_ref())?;
    let spec = entry.spec().ok();
    let pid = record
        .as_ref()
        .filter(|_| status != Status::Stopped)
        .map_or(0, |r| r.pid);
    let text = |of: fn(&Record) -> &std::path::Path| {
        record
            .as_ref()
            .map(|r| of(r).to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    let mut value = json!({
        "ociVersion": spec.as_ref().map_or(caisson_jail::features::SPEC_VERSION, |s| s.version()),
        "id": entry.id,
        "pid": pid,
        "status": status.name(),
        "bundle": text(|r| &r.bundle),
        "rootfs": text(|r| &r.rootfs),
        "created": record.as_ref().map(|r| r.created.clone()).unwrap_or_default(),
    });
    if let Some(annotations) = spec
        .as_ref()
        .and_then(|s| s.annotations().as_ref())
        .filter(|a| !a.is_empty())
    {
        value["annotations"] = json!(annotations);
    }
    value["owner"] = json!("");
    Ok((value, status))
}

/// `state`.
pub fn state(store: &Store, id: &str) -> Result<()> {
    let (value, _) = describe(&store.find(id)?)?;
    println!("{value:#}");
    Ok(())
}

/// `list`.
pub fn list(store: &Store, format: Format, quiet: bool) -> Result<()> {
    let entries = store.all()?;
    if quiet {
        entries.iter().for_each(|entry| println!("{}", entry.id));
        return Ok(());
    }
    // One that vanishes meanwhile, or is broken, does not hide the others.
    let all: Vec<Value> = entries
        .iter()
        .filter_map(|entry| describe(entry).ok())
        .map(|(value, _)| value)
        .collect();
    match format {
        Format::Json => println!("{}", Value::Array(all)),
        Format::Table => {
            let rows = all.iter().map(|c| {
                let cell = |key: &str| match &c[key] {
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                vec![
                    cell("id"),
                    cell("pid"),
                    cell("status"),
                    cell("bundle"),
                    cell("created"),
                    "root".into(),
                ]
            });
            print!(
                "{}",
                table::render(
                    &["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"],
                    rows.collect()
                )
            );
        }
    }
    Ok(())
}

fn running(store: &Store, id: &str) -> Result<Cgroup> {
    let entry = store.find(id)?;
    let record = entry.record()?;
    if matches!(
        entry.status(record.as_ref())?,
        Status::Stopped | Status::Creating
    ) {
        bail!("container {id} is not running");
    }
    entry.cgroup(record.as_ref())
}

/// `ps`.
pub fn ps(store: &Store, id: &str, format: Format) -> Result<()> {
    let pids = running(store, id)?.pids()?;
    match format {
        Format::Json => println!(
            "{}",
            json!(pids.iter().map(|p| p.as_raw()).collect::<Vec<_>>())
        ),
        Format::Table => {
            let rows = pids.into_iter().filter_map(table::process).collect();
            print!("{}", table::render(&table::PS_HEADER, rows));
        }
    }
    Ok(())
}

/// `events`: statistics once, or again and again until the container ends.
pub fn events(store: &Store, id: &str, once: bool, interval_s: u64) -> Result<()> {
    let mut out = std::io::stdout();
    let mut oom_kills = None;
    loop {
        let cgroup = match running(store, id) {
            Ok(cgroup) => cgroup,
            Err(e) if once => return Err(e),
            Err(_) => return Ok(()),
        };
        let stats = json!({"type": "stats", "id": id, "data": stats(&cgroup)?});
        writeln!(out, "{stats}").context("write to stdout")?;
        if once {
            return Ok(());
        }
        let now = cgroup.oom_kills().unwrap_or(0);
        if oom_kills.replace(now).is_some_and(|before| now > before) {
            writeln!(out, "{}", json!({"type": "oom", "id": id})).context("write to stdout")?;
        }
        out.flush().context("write to stdout")?;
        std::thread::sleep(Duration::from_secs(interval_s));
    }
}

fn stats(cgroup: &Cgroup) -> Result<Value> {
    let mut data = serde_json::to_value(cgroup.stats()?)?;
    let first = cgroup.pids()?.first().copied().unwrap_or(Pid::from_raw(0));
    if let Ok(interfaces) = caisson_jail::proc_net_stats(first) {
        data["network_interfaces"] = json!(interfaces);
    }
    Ok(data)
}
