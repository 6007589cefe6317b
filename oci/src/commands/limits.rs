//! `update`: new limits for a container that exists.

use std::io::Read;

use anyhow::{Context, Result, anyhow, bail};
use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use crate::cli::Update;
use crate::store::{Status, Store};

/// Applies them.
pub fn update(store: &Store, options: Update) -> Result<()> {
    let entry = store.find(&options.id)?;
    let record = entry.record()?;
    if matches!(
        entry.status(record.as_ref())?,
        Status::Stopped | Status::Creating
    ) {
        bail!("container not running");
    }
    let document = match &options.resources {
        None => Value::Object(from_flags(&options.limits)?),
        Some(path) => {
            let mut text = String::new();
            if path.as_os_str() == "-" {
                std::io::stdin()
                    .read_to_string(&mut text)
                    .context("read resources from stdin")?;
            } else {
                text = std::fs::read_to_string(path)
                    .with_context(|| format!("read {}", path.display()))?;
            }
            serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))?
        }
    };
    let resources: LinuxResources = serde_json::from_value(document).context("read resources")?;
    Ok(entry.cgroup(record.as_ref())?.update(&resources)?)
}

/// The resources document that flags describe. Pure.
fn from_flags(limits: &[(String, String)]) -> Result<Map<String, Value>> {
    let mut document = Map::new();
    for (flag, value) in limits {
        let number = || {
            value
                .parse::<i64>()
                .map_err(|_| anyhow!("invalid value {value:?} for --{flag}: not a number"))
        };
        let bytes = || {
            bytes(value).ok_or_else(|| anyhow!("invalid value {value:?} for --{flag}: not a size"))
        };
        let (section, key, value) = match flag.as_str() {
            "blkio-weight" => ("blockIO", "weight", json!(number()?)),
            "cpu-period" => ("cpu", "period", json!(number()?)),
            "cpu-quota" => ("cpu", "quota", json!(number()?)),
            "cpu-burst" => ("cpu", "burst", json!(number()?)),
            "cpu-share" => ("cpu", "shares", json!(number()?)),
            "cpu-idle" => ("cpu", "idle", json!(number()?)),
            "cpu-rt-period" => ("cpu", "realtimePeriod", json!(number()?)),
            "cpu-rt-runtime" => ("cpu", "realtimeRuntime", json!(number()?)),
            "cpuset-cpus" => ("cpu", "cpus", json!(value)),
            "cpuset-mems" => ("cpu", "mems", json!(value)),
            "memory" => ("memory", "limit", json!(bytes()?)),
            "memory-reservation" => ("memory", "reservation", json!(bytes()?)),
            "memory-swap" => ("memory", "swap", json!(bytes()?)),
            "pids-limit" => ("pids", "limit", json!(number()?)),
            // Gone from kernels; runc ignores them too.
            "kernel-memory" | "kernel-memory-tcp" => continue,
            other => bail!("unknown limit --{other}"),
        };
        let section = document.entry(section).or_insert_with(|| json!({}));
        section[key] = value;
    }
    Ok(document)
}

/// `-1`, `1048576`, `512k`, `64M`, `1g`.
fn bytes(text: &str) -> Option<i64> {
    let lower = text.trim().to_ascii_lowercase();
    let lower = lower.strip_suffix('b').unwrap_or(&lower);
    let (digits, factor) = match lower.chars().last()? {
        'k' => (&lower[..lower.len() - 1], 1 << 10),
        'm' => (&lower[..lower.len() - 1], 1 << 20),
        'g' => (&lower[..lower.len() - 1], 1 << 30),
        't' => (&lower[..lower.len() - 1], 1i64 << 40),
        _ => (lower, 1),
    };
    let number: i64 = digits.parse().ok()?;
    if number == -1 && factor == 1 {
        return Some(-1);
    }
    number.checked_mul(factor).filter(|n| *n >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_become_a_document() {
        let flags = [
            ("memory", "64M"),
            ("memory-swap", "-1"),
            ("pids-limit", "7"),
            ("cpuset-cpus", "0-1"),
            ("cpu-quota", "5000"),
        ]
        .map(|(a, b)| (a.to_string(), b.to_string()));
        let document = Value::Object(from_flags(&flags).expect("makes"));
        assert_eq!(
            document,
            json!({"memory": {"limit": 67108864, "swap": -1}, "pids": {"limit": 7}, "cpu": {"cpus": "0-1", "quota": 5000}})
        );
        assert!(serde_json::from_value::<LinuxResources>(document).is_ok());
        for (flag, value) in [
            ("memory", "lots"),
            ("memory", "-5"),
            ("pids-limit", "x"),
            ("memory", "99999999999g"),
        ] {
            assert!(
                from_flags(&[(flag.into(), value.into())]).is_err(),
                "{flag}={value}"
            );
        }
    }
}
