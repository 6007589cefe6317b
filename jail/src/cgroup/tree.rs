//! Making and removing the directories of a cgroup: controllers are handed down the path on v2, empty cpusets are filled
//! on v1; removal goes depth first and waits, for a bounded time, until the kernel lets go.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::{Error, hint};
use super::layout::{Hierarchy, Version};
use super::{files, procs};

const REMOVE_LIMIT: Duration = Duration::from_secs(10);

/// Directories made for one container; removed again on drop unless kept.
#[derive(Default)]
pub struct Made {
    dirs: Vec<PathBuf>,
}

impl Made {
    /// They stay.
    pub fn keep(mut self) {
        self.dirs.clear();
    }

    fn mkdir(&mut self, dir: &Path) -> Result<(), Error> {
        match std::fs::DirBuilder::new().mode(0o755).create(dir) {
            Ok(()) => {
                self.dirs.push(dir.to_owned());
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(source) => Err(Error::Create {
                path: dir.to_owned(),
                hint: hint(&source),
                source,
            }),
        }
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for dir in self.dirs.iter().rev() {
            // Not ours any more when somebody made a cgroup below a parent that we made.
            if let Err(error) = std::fs::remove_dir(dir)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %dir.display(), %error, "cgroup left behind");
            }
        }
    }
}

/// Makes `dir`, which lies in `hierarchy`, with its missing parents.
pub fn create(hierarchy: &Hierarchy, dir: &Path, made: &mut Made) -> Result<(), Error> {
    let mut path = hierarchy.mount_point.clone();
    let below = dir
        .strip_prefix(&hierarchy.mount_point)
        .unwrap_or(Path::new(""));
    let cpuset = hierarchy.controllers.iter().any(|c| c == "cpuset");
    for name in below.components() {
        if hierarchy.version == Version::V2 {
            hand_down(&path)?;
        }
        let parent = path.clone();
        path.push(name);
        // A parent that nobody uses may be removed under our hands: once more from above is enough for a directory we hold.
        made.mkdir(&path)?;
        if hierarchy.version != Version::V2 && cpuset {
            inherit_cpuset(&parent, &path)?;
        }
    }
    if hierarchy.version == Version::V2 {
        check_type(dir)?;
    }
    Ok(())
}

/// Lets the children of the v2 cgroup `parent` have all the controllers that `parent` has. One that is refused is missed only
/// when a limit asks for it: then [`why_missing`] tells.
fn hand_down(parent: &Path) -> Result<(), Error> {
    let mut words = not_handed_down(parent)?;
    if words.is_empty() {
        return Ok(());
    }
    let file = parent.join("cgroup.subtree_control");
    match files::write_raw(&file, &words.join(" ")) {
        Ok(()) => return Ok(()),
        // It has processes of its own. Some controllers would be handed down singly even so, but that would make it a threaded
        // domain and our cgroup unusable.
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
        Err(_) => words.retain(|word| files::write_raw(&file, word).is_err()),
    }
    tracing::debug!(parent = %parent.display(), refused = ?words, "controllers not handed down");
    Ok(())
}

/// `+CONTROLLER` for each that the children could have and do not.
fn not_handed_down(parent: &Path) -> Result<Vec<String>, Error> {
    let given = controllers(parent, "cgroup.subtree_control")?;
    Ok(controllers(parent, "cgroup.controllers")?
        .into_iter()
        .filter(|c| !given.contains(c))
        .map(|c| format!("+{c}"))
        .collect())
}

fn controllers(dir: &Path, file: &str) -> Result<Vec<String>, Error> {
    let text = files::read_if_there(&dir.join(file))?.unwrap_or_default();
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

/// Why the v2 cgroup `dir` does not have `controller`: asks each parent once more.
pub fn why_missing(hierarchy: &Hierarchy, dir: &Path, controller: &str) -> String {
    let has = |dir: &Path, file| {
        controllers(dir, file).is_ok_and(|list| list.iter().any(|c| c == controller))
    };
    let mut parent = hierarchy.mount_point.clone();
    if !has(&parent, "cgroup.controllers") {
        return format!(
            "{}/cgroup.controllers does not list it: the kernel was built without it, booted with cgroup_disable={controller}, or has it on a v1 hierarchy; inside a container, the engine outside has to delegate it",
            parent.display()
        );
    }
    let below = dir.strip_prefix(&hierarchy.mount_point);
    for name in below.unwrap_or(Path::new("")).components() {
        let words = not_handed_down(&parent).unwrap_or_default();
        if words.iter().any(|word| word[1..] == *controller)
            && let Err(e) =
                files::write_raw(&parent.join("cgroup.subtree_control"), &words.join(" "))
        {
            return why_refused(&parent, &e);
        }
        parent.push(name);
    }
    format!("{} does not have it", dir.display())
}

fn why_refused(parent: &Path, source: &io::Error) -> String {
    let parent = parent.display();
    match source.raw_os_error() {
        Some(libc::EBUSY) => format!(
            "{parent} has processes of its own, and cgroup v2 hands controllers only down from cgroups without: move them into a child of it, or choose another cgroup parent"
        ),
        Some(libc::EOPNOTSUPP) => format!("{parent} is threaded: choose another cgroup parent"),
        _ => format!("{parent}/cgroup.subtree_control: {source}{}", hint(source)),
    }
}

/// A cgroup below a threaded one can hold no process group of its own.
fn check_type(dir: &Path) -> Result<(), Error> {
    let kind = files::read_if_there(&dir.join("cgroup.type"))?.unwrap_or_default();
    match kind.trim() {
        "" | "domain" | "domain threaded" => Ok(()),
        kind => Err(Error::WrongType {
            path: dir.to_owned(),
            why: format!(
                "its type is \"{kind}\" because a parent is threaded; choose another cgroup parent"
            ),
        }),
    }
}

/// A new v1 cpuset is empty and takes no process: it gets what its parent has.
fn inherit_cpuset(parent: &Path, dir: &Path) -> Result<(), Error> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if files::read(&dir.join(file))?.trim().is_empty() {
            let above = files::read(&parent.join(file))?;
            files::write(&dir.join(file), above.trim())?;
        }
    }
    Ok(())
}

/// Removes `dir` and everything below. What does not exist is fine. A cgroup whose last process is only just dying is
/// busy for a moment: tried again for ten seconds at most.
pub fn remove(dir: &Path) -> Result<(), Error> {
    let deadline = Instant::now() + REMOVE_LIMIT;
    let mut pause = Duration::from_micros(500);
    loop {
        let Err(source) = remove_once(dir) else {
            return Ok(());
        };
        if source.raw_os_error() != Some(libc::EBUSY) || Instant::now() > deadline {
            return Err(Error::Remove {
                pids: procs::pids(dir)
                    .unwrap_or_default()
                    .iter()
                    .map(|p| p.as_raw())
                    .collect(),
                path: dir.to_owned(),
                source,
            });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

fn remove_once(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir(dir) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) if e.raw_os_error() != Some(libc::EBUSY) => return Err(e),
        Err(_) => {}
    }
    for child in files::children(dir).map_err(|e| io::Error::other(e.to_string()))? {
        remove_once(&child)?;
    }
    match std::fs::remove_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
