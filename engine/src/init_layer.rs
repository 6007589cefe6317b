//! The layer between an image and its containers: the mount points that every container needs and few images have
//! (`/etc/hosts`, `/proc`, …), so that they do not show up as changes of the container.
//!
//! ```text
//! data-root/init/KEY/{dev/{pts,shm},proc,sys,etc/{hostname,hosts,resolv.conf}}      only what the image lacks
//! ```
//!
//! `KEY` says what is in it and with which attributes: images that lack the same things share one. There are few of them, they
//! are empty files, and nobody removes them.
//!
//! Must not know: containers.

use std::fmt::Write as _;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::rootfs::{self, Seen};

/// Parents before children; `true`: a directory.
const WANTED: [(&[&str], bool); 9] = [
    (&["dev"], true),
    (&["dev", "pts"], true),
    (&["dev", "shm"], true),
    (&["proc"], true),
    (&["sys"], true),
    (&["etc"], true),
    (&["etc", "hostname"], false),
    (&["etc", "hosts"], false),
    (&["etc", "resolv.conf"], false),
];

/// One thing to make.
struct Entry {
    path: PathBuf,
    directory: bool,
    mode: u32,
    uid: u32,
    gid: u32,
}

/// The layer for an image: `None` when it lacks nothing. Blocks.
pub(crate) fn for_image(data_root: &Path, layers: &[PathBuf]) -> Result<Option<PathBuf>> {
    let stack = rootfs::open_layers(layers.iter().map(PathBuf::as_path))
        .map_err(|e| Error::io("cannot open the image's layers", &e))?;
    let entries = plan(&stack).map_err(|e| Error::io("cannot look into the image's layers", &e))?;
    if entries.is_empty() {
        return Ok(None);
    }
    let dir = data_root.join("init").join(key(&entries));
    if dir.is_dir() {
        return Ok(Some(dir));
    }
    make(&dir, &entries).map_err(|e| Error::io(format!("cannot make {}", dir.display()), &e))?;
    Ok(Some(dir))
}

/// What is missing, with the directories it goes into.
fn plan(stack: &[OwnedFd]) -> io::Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut closed: Vec<&str> = Vec::new();
    for (path, directory) in WANTED {
        if closed.contains(&path[0]) {
            continue;
        }
        let (mode, uid, gid) = match rootfs::look(stack, path)? {
            Seen::Missing => (if directory { 0o755 } else { 0o644 }, 0, 0),
            Seen::Directory(stat) if directory && path.len() == 1 => {
                (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid)
            }
            Seen::Directory(_) | Seen::File(_) => continue,
            Seen::Other => {
                // A link in the place of a directory: nothing can be made below it from here.
                if path.len() == 1 {
                    closed.push(path[0]);
                }
                continue;
            }
        };
        entries.push(Entry {
            path: path.iter().collect(),
            directory,
            mode,
            uid,
            gid,
        });
    }
    // A directory that the image has and that nothing is put into need not be there.
    let needed = |e: &Entry| {
        e.path.components().count() > 1
            || entries
                .iter()
                .any(|other| other.path != e.path && other.path.starts_with(&e.path))
    };
    let keep: Vec<bool> = entries
        .iter()
        .map(|e| {
            needed(e)
                || (e.directory
                    && e.path.to_str().is_some_and(|name| {
                        matches!(rootfs::look(stack, &[name]), Ok(Seen::Missing))
                    }))
        })
        .collect();
    let mut keep = keep.into_iter();
    entries.retain(|_| keep.next().unwrap_or(false));
    Ok(entries)
}

fn key(entries: &[Entry]) -> String {
    let mut key = String::new();
    for e in entries {
        let name = e.path.display().to_string().replace('/', "+");
        let _ = write!(key, "{name}.{:o}.{}.{}_", e.mode, e.uid, e.gid);
    }
    key.trim_end_matches('_').into()
}

fn make(dir: &Path, entries: &[Entry]) -> io::Result<()> {
    let parent = dir.parent().unwrap_or(dir);
    std::fs::create_dir_all(parent)?;
    let temporary = parent.join(format!(".{}", crate::names::new_id()));
    std::fs::create_dir(&temporary)?;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o755))?;
    let made = entries.iter().try_for_each(|e| {
        let path = temporary.join(&e.path);
        if e.directory {
            std::fs::create_dir(&path)?;
        } else {
            std::fs::write(&path, b"")?;
        }
        std::os::unix::fs::chown(&path, Some(e.uid), Some(e.gid))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(e.mode))
    });
    let placed = made.and_then(|()| match std::fs::rename(&temporary, dir) {
        // Somebody else was faster.
        Err(_) if dir.is_dir() => std::fs::remove_dir_all(&temporary),
        other => other,
    });
    if placed.is_err() {
        let _ = std::fs::remove_dir_all(&temporary);
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(dir: &Path, paths: &[&str]) -> PathBuf {
        let layer = dir.join("layer");
        for p in paths {
            if let Some(p) = p.strip_suffix('/') {
                std::fs::create_dir_all(layer.join(p)).unwrap();
            } else {
                std::fs::write(layer.join(p), "x").unwrap();
            }
        }
        layer
    }

    #[test]
    fn only_what_is_missing_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let image = layer(dir.path(), &["etc/", "etc/hosts", "proc/", "dev/"]);
        std::fs::set_permissions(image.join("etc"), std::fs::Permissions::from_mode(0o751))
            .unwrap();
        let made = for_image(dir.path(), &[image]).unwrap().unwrap();
        assert!(
            made.join("etc/hostname").is_file()
                && made.join("sys").is_dir()
                && made.join("dev/pts").is_dir()
        );
        assert!(!made.join("etc/hosts").exists() && !made.join("proc").exists());
        let mode = std::fs::metadata(made.join("etc"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(
            mode & 0o7777,
            0o751,
            "what shows through keeps its attributes"
        );
    }

    #[test]
    fn a_complete_image_needs_none_and_links_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let all = [
            "etc/",
            "etc/hosts",
            "etc/hostname",
            "etc/resolv.conf",
            "proc/",
            "sys/",
            "dev/pts/",
            "dev/shm/",
        ];
        let image = layer(dir.path(), &all);
        assert_eq!(
            for_image(dir.path(), std::slice::from_ref(&image)).unwrap(),
            None
        );
        std::fs::remove_file(image.join("etc/resolv.conf")).unwrap();
        std::os::unix::fs::symlink("../run/resolv.conf", image.join("etc/resolv.conf")).unwrap();
        assert_eq!(
            for_image(dir.path(), std::slice::from_ref(&image)).unwrap(),
            None,
            "a link is the image's business"
        );
    }

    #[test]
    fn images_that_lack_the_same_share_one() {
        let dir = tempfile::tempdir().unwrap();
        let image = layer(dir.path(), &["bin/"]);
        let first = for_image(dir.path(), std::slice::from_ref(&image))
            .unwrap()
            .unwrap();
        assert_eq!(for_image(dir.path(), &[image]).unwrap().unwrap(), first);
        assert_eq!(
            std::fs::read_dir(dir.path().join("init")).unwrap().count(),
            1
        );
    }
}
