//! `cargo xtask tidy`: the rules of ARCHITECTURE.md and the conventions that a program can check.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::shell::{cargo, output, root};

/// Which of our crates each may depend on; what is not listed must not be there.
const MAY_USE: &[(&str, &[&str])] = &[
    ("caisson-api", &[]),
    ("caisson-archive", &[]),
    ("caisson-blockfs", &["caisson-archive"]),
    ("caisson-protocol", &[]),
    ("caisson-jail", &[]),
    (
        "caisson-supervisor",
        &["caisson-jail", "caisson-protocol", "caisson-archive"],
    ),
    (
        "caisson-shim",
        &[
            "caisson-supervisor",
            "caisson-jail",
            "caisson-protocol",
            "caisson-archive",
        ],
    ),
    (
        "caisson-agent",
        &["caisson-supervisor", "caisson-jail", "caisson-protocol"],
    ),
    ("caisson-oci", &["caisson-jail"]),
    ("caisson-runtime", &["caisson-protocol", "caisson-jail"]),
    ("caisson-image", &["caisson-archive", "caisson-blockfs"]),
    (
        "caisson-engine",
        &[
            "caisson-runtime",
            "caisson-image",
            "caisson-archive",
            "caisson-blockfs",
            "caisson-api",
        ],
    ),
    (
        "caisson",
        &[
            "caisson-engine",
            "caisson-runtime",
            "caisson-image",
            "caisson-api",
        ],
    ),
    ("caisson-tests", &[]),
    ("caisson-guest-kernel", &[]),
    ("caisson-vmm", &["caisson-protocol"]),
    ("caisson-share", &["caisson-protocol"]),
    ("xtask", &["caisson-guest-kernel", "caisson-blockfs"]),
];

/// Crates that must stay small and synchronous.
const NO_TOKIO: &[&str] = &[
    "caisson-protocol",
    "caisson-jail",
    "caisson-supervisor",
    "caisson-shim",
    "caisson-agent",
    "caisson-oci",
    "caisson-archive",
    "caisson-blockfs",
    "caisson-vmm",
    "caisson-share",
];

/// The crates that may have `unsafe`, in files named `sys.rs` or `…_sys.rs` (and in their tests).
const UNSAFE_IN: &[&str] = &[
    "agent",
    "jail",
    "supervisor",
    "share",
    "shim",
    "runtime",
    "vmm",
];

/// Words that must not be in the repository: unfinished work.
const UNFINISHED: &[&str] = &["todo!(", "unimplemented!(", "FIXME", "XXX:"];

/// Lines after which a file needs a reason, which stands in its header as `Long:`.
const LONG: usize = 800;

/// Checks everything; fails with the list of what is wrong.
pub fn run() -> Result<()> {
    let mut wrong = Vec::new();
    dependencies(&mut wrong)?;
    let mut files = Vec::new();
    collect(root(), &mut files)?;
    for path in &files {
        let relative = path
            .strip_prefix(root())
            .unwrap_or(path)
            .display()
            .to_string();
        let Ok(text) = fs::read_to_string(path) else {
            continue;
        };
        match path.extension().and_then(|e| e.to_str()) {
            Some("rs") => source(&relative, &text, &mut wrong),
            Some("md") => links(path, &relative, &text, &mut wrong),
            _ => {}
        }
    }
    for line in &wrong {
        println!("tidy: {line}");
    }
    if wrong.iter().any(|line| !line.starts_with("warning")) {
        bail!("tidy: {} findings", wrong.len());
    }
    println!("tidy: {} files are fine", files.len());
    Ok(())
}

fn dependencies(wrong: &mut Vec<String>) -> Result<()> {
    let metadata: Value = serde_json::from_str(&output(cargo().args([
        "metadata",
        "--format-version",
        "1",
        "--locked",
    ]))?)?;
    let empty = Vec::new();
    let packages = metadata["packages"].as_array().unwrap_or(&empty);
    let names: BTreeMap<&str, &str> = packages
        .iter()
        .filter_map(|p| Some((p["id"].as_str()?, p["name"].as_str()?)))
        .collect();
    let ours: Vec<&str> = metadata["workspace_members"]
        .as_array()
        .unwrap_or(&empty)
        .iter()
        .filter_map(|id| names.get(id.as_str()?).copied())
        .collect();
    let allowed: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    for package in packages
        .iter()
        .filter(|p| p["name"].as_str().is_some_and(|n| ours.contains(&n)) && p["source"].is_null())
    {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(allowed) = allowed.get(name) else {
            wrong.push(format!(
                "crate {name} is not in xtask/src/tidy.rs: say what it may use"
            ));
            continue;
        };
        let uses = package["dependencies"]
            .as_array()
            .unwrap_or(&empty)
            .iter()
            .filter(|d| d["kind"].as_str() != Some("dev"));
        for dependency in uses.filter_map(|d| d["name"].as_str()) {
            if ours.contains(&dependency) && !allowed.contains(&dependency) {
                wrong.push(format!(
                    "{name} must not use {dependency} (ARCHITECTURE.md)"
                ));
            }
            if dependency == "tokio" && NO_TOKIO.contains(&name) {
                wrong.push(format!("{name} must not use tokio"));
            }
        }
    }
    Ok(())
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let hidden = name.to_string_lossy().starts_with('.');
        if entry.file_type()?.is_dir() {
            let made = ["target", "corpus", "artifacts"].iter().any(|m| name == *m);
            if !made && (!hidden || name == ".ci" || name == ".cargo") {
                collect(&entry.path(), files)?;
            }
        } else if !hidden {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn source(path: &str, text: &str, wrong: &mut Vec<String>) {
    if !text.trim_start().starts_with("//!") {
        wrong.push(format!(
            "{path}: begins without `//!` that says what it owns"
        ));
    }
    let lines = text.lines().count();
    if lines > LONG
        && !text
            .lines()
            .take_while(|line| line.starts_with("//!"))
            .any(|line| line.contains("Long:"))
    {
        wrong.push(format!("warning: {path}: {lines} lines; look for the seam, or say why in the header after `Long:`"));
    }
    let own_rules = path == "xtask/src/tidy.rs";
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or(line);
        let is_unsafe = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
            .iter()
            .any(|w| code.contains(w));
        if is_unsafe && !own_rules && !may_be_unsafe(path) {
            wrong.push(format!(
                "{path}:{}: unsafe outside of the sys.rs files of {}",
                number + 1,
                UNSAFE_IN.join(", ")
            ));
        }
        if !own_rules && UNFINISHED.iter().any(|word| line.contains(word)) {
            wrong.push(format!(
                "{path}:{}: unfinished: {}",
                number + 1,
                line.trim()
            ));
        }
    }
    let name = Path::new(path)
        .file_stem()
        .and_then(|s| s.to_str())
        .unwrap_or_default();
    if [
        "utils", "util", "common", "helpers", "helper", "misc", "manager",
    ]
    .contains(&name)
    {
        wrong.push(format!("{path}: a name that says nothing"));
    }
}

fn may_be_unsafe(path: &str) -> bool {
    let crate_is_named = path
        .split_once('/')
        .is_some_and(|(folder, _)| UNSAFE_IN.contains(&folder));
    crate_is_named
        && (path.ends_with("/sys.rs")
            || path.ends_with("_sys.rs")
            || path.contains("/tests/")
            || path.contains("/sys/"))
}

/// Relative links of documents lead somewhere.
fn links(path: &Path, relative: &str, text: &str, wrong: &mut Vec<String>) {
    let directory = path.parent().unwrap_or(root());
    for part in text.split("](").skip(1) {
        let Some(target) = part.split([')', '#', ' ']).next() else {
            continue;
        };
        if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
            continue;
        }
        if !directory.join(target).exists() {
            wrong.push(format!("{relative}: the link to {target} leads nowhere"));
        }
    }
}
