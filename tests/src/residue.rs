//! What a container or a daemon left behind on the host: mounts, cgroups, processes, files.
//!
//! Works from `/proc` and `/sys/fs/cgroup` alone and looks for a needle (a container's id, a daemon's directory) in all of
//! them, in every mount namespace. Must not ask the engine, which may be the one that forgot.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Waits until nothing with `needle` in its name is left, and returns what still is after `limit`.
pub fn after(needle: &str, files_beneath: &[&Path], limit: Duration) -> Vec<String> {
    let until = Instant::now() + limit;
    loop {
        let found = of(needle, files_beneath);
        if found.is_empty() || Instant::now() >= until {
            return found;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Everything on this host with `needle` in its name.
pub fn of(needle: &str, files_beneath: &[&Path]) -> Vec<String> {
    let mut found = Vec::new();
    processes_and_mounts(needle, &mut found);
    directories(Path::new("/sys/fs/cgroup"), needle, 8, "cgroup", &mut found);
    for directory in files_beneath {
        directories(directory, needle, 5, "file", &mut found);
    }
    found
}

fn processes_and_mounts(needle: &str, found: &mut Vec<String>) {
    let own = std::process::id().to_string();
    let mut namespaces = HashSet::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = process.file_name().to_string_lossy().into_owned();
        if pid == own || !pid.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let path = process.path();
        let command = String::from_utf8_lossy(&fs::read(path.join("cmdline")).unwrap_or_default())
            .replace('\0', " ");
        let cgroup = fs::read_to_string(path.join("cgroup")).unwrap_or_default();
        if command.contains(needle) || cgroup.contains(needle) {
            let state = fs::read_to_string(path.join("stat")).unwrap_or_default();
            let zombie = state
                .rsplit(')')
                .next()
                .is_some_and(|rest| rest.trim_start().starts_with('Z'));
            found.push(format!(
                "process {pid}{}: {}",
                if zombie { " (zombie)" } else { "" },
                command.trim()
            ));
        }
        let Ok(namespace) = fs::read_link(path.join("ns/mnt")) else {
            continue;
        };
        if namespaces.insert(namespace) {
            let mounts = fs::read_to_string(path.join("mountinfo")).unwrap_or_default();
            found.extend(
                mounts
                    .lines()
                    .filter(|line| line.contains(needle))
                    .map(|line| format!("mount (seen by {pid}): {line}")),
            );
        }
    }
}

fn directories(directory: &Path, needle: &str, depth: u32, what: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().contains(needle) {
            found.push(format!("{what}: {}", entry.path().display()));
        } else if depth > 0 && entry.file_type().is_ok_and(|t| t.is_dir()) {
            directories(&entry.path(), needle, depth - 1, what, found);
        }
    }
}
