//! Answers recorded from dockerd 20.10 (API 1.41) must survive our types: every member comes back with its value. We may
//! send more (newer API versions do), never less.

use std::path::Path;

use caisson_api::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Paths at which `ours` lacks or changes what `theirs` has.
fn differences(path: &str, theirs: &Value, ours: &Value, out: &mut Vec<String>) {
    match (theirs, ours) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in a {
                match b.get(key) {
                    Some(other) => differences(&format!("{path}.{key}"), value, other, out),
                    None => out.push(format!("{path}.{key} is missing")),
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (x, y)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}[{i}]"), x, y, out);
            }
        }
        _ if theirs == ours => {}
        _ => out.push(format!("{path}: {theirs} became {ours}")),
    }
}

fn survives<T: DeserializeOwned + Serialize>(name: &str, dropped: &[&str]) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    let text = std::fs::read(&file).expect("golden file is readable");
    let theirs: Value = serde_json::from_slice(&text).expect("golden file is JSON");
    let typed: T = serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
    let ours = serde_json::to_value(&typed).expect("serialises");
    let mut found = Vec::new();
    differences("", &theirs, &ours, &mut found);
    found.retain(|d| !dropped.iter().any(|known| d.contains(known)));
    assert!(found.is_empty(), "{name}:\n{}", found.join("\n"));
}

#[test]
fn containers() {
    // KernelMemory left the API with 1.42.
    let gone = [
        ".HostConfig.KernelMemory is missing",
        ".HostConfig.KernelMemoryTCP is missing",
    ];
    survives::<ContainerInspect>("container-running.json", &gone);
    survives::<ContainerInspect>("container-exited.json", &gone);
    survives::<Vec<ContainerSummary>>("ps.json", &[]);
    survives::<ContainerStats>("stats.json", &[]);
    survives::<TopResponse>("top.json", &[]);
    survives::<ExecInspect>("exec.json", &[]);
}

#[test]
fn images() {
    survives::<ImageInspect>("image.json", &[]);
    survives::<Vec<ImageSummary>>("images.json", &[]);
    survives::<Vec<HistoryItem>>("history.json", &[]);
}

#[test]
fn system() {
    survives::<SystemInfo>("info.json", &[]);
    survives::<Version>("version.json", &[]);
    survives::<DiskUsage>("df.json", &[]);
    survives::<Vec<NetworkResource>>("networks.json", &[]);
    survives::<VolumeList>("volumes.json", &[]);
}
