//! One container's cgroup on v1, hybrid or v2: made with limits, watched, frozen, killed, removed.
//!
//! [`layout`] finds the hierarchies, [`plan`] turns OCI resources into writes without touching anything, the rest acts.
//! Must not know: namespaces, the spec's other parts, who calls.
//!
//! Entering costs: a write of another process' id to `cgroup.procs` waits for an RCU grace period (milliseconds). Cheaper,
//! best first: v2 `CLONE_INTO_CGROUP` with [`Cgroup::dir_fd`]; v1 [`Cgroup::entrance`], by which a single-threaded process
//! moves itself; [`Cgroup::join`] as the last resort.

mod apply;
mod bpf;
mod bpf_sys;
mod devices;
mod entrance;
mod error;
mod files;
mod layout;
mod oom;
mod plan;
mod procs;
mod stats;
mod tree;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use oci_spec::runtime::LinuxResources;

pub use entrance::{Entrance, Unified};
pub use error::Error;
pub use layout::{Hierarchy, Layout, Version};
pub use stats::{BlockStats, Stats};

use crate::Result;

/// One container's cgroup: a directory in each mounted hierarchy.
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
    places: Vec<Place>,
}

#[derive(Clone, Debug)]
struct Place {
    hierarchy: Hierarchy,
    dir: PathBuf,
}

/// Where a container's cgroup of one hierarchy is, for its `/sys/fs/cgroup`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupMount {
    /// Name of the directory below `/sys/fs/cgroup`, as on this host (`memory`, `cpu,cpuacct`, `systemd`, `unified`). Empty for
    /// pure v2: then it is `/sys/fs/cgroup` itself.
    pub name: String,
    /// Further names that are symbolic links to `name` on usual hosts: `cpu` and `cpuacct` for `cpu,cpuacct`.
    pub links: Vec<String>,
    /// The container's cgroup on this host, for a bind mount.
    pub dir: PathBuf,
    /// v1 or v2, with the options for a fresh mount inside a cgroup namespace.
    pub version: Version,
}

impl Cgroup {
    /// Plans the cgroup `cgroups_path` (of the spec; absolute: below the mount points, relative: below our own cgroup) in
    /// every mounted hierarchy. Creates nothing.
    pub fn new(cgroups_path: &Path) -> Result<Cgroup> {
        Ok(Cgroup::in_layout(&Layout::detect()?, cgroups_path)?)
    }

    /// Like [`Cgroup::new`], in these hierarchies only.
    pub fn in_layout(layout: &Layout, cgroups_path: &Path) -> Result<Cgroup, Error> {
        layout::check_path(cgroups_path)?;
        if layout.hierarchies.is_empty() {
            return Err(Error::NotMounted);
        }
        let places = layout.hierarchies.iter().map(|hierarchy| Place {
            dir: hierarchy.dir(cgroups_path),
            hierarchy: hierarchy.clone(),
        });
        Ok(Cgroup {
            path: cgroups_path.to_owned(),
            places: places.collect(),
        })
    }

    /// Finds an existing cgroup. `NotFound` when no hierarchy has it.
    pub fn open(cgroups_path: &Path) -> Result<Cgroup> {
        let cgroup = Cgroup::new(cgroups_path)?;
        if !cgroup.exists() {
            return Err(Error::NotFound { path: cgroup.path }.into());
        }
        Ok(cgroup)
    }

    /// The path it was made from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether any hierarchy has it.
    pub fn exists(&self) -> bool {
        self.places.iter().any(|p| p.dir.is_dir())
    }

    /// Makes it and applies the limits and device rules. An existing empty cgroup is used as it is; one with processes is an error. On `Err`
    /// what was made is removed again.
    pub fn create(&self, resources: Option<&LinuxResources>) -> Result<()> {
        let mut made = tree::Made::default();
        for place in &self.places {
            let pids = procs::pids(&place.dir)?;
            if !pids.is_empty() {
                return Err(Error::InUse {
                    path: place.dir.clone(),
                    pids: pids.iter().map(|p| p.as_raw()).collect(),
                }
                .into());
            }
            tree::create(&place.hierarchy, &place.dir, &mut made)?;
        }
        if let Some(resources) = resources {
            apply::limits(self, resources)?;
        }
        // Inside a user namespace no device node can be made or used that was not given, and nobody may filter.
        if !in_user_namespace() {
            let rules = resources.and_then(|r| r.devices().as_deref());
            apply::device_rules(self, rules.unwrap_or_default())?;
        }
        made.keep();
        Ok(())
    }

    /// Applies limits to the existing cgroup. What `resources` does not mention stays as it is; device rules, if any, are taken
    /// as the complete list.
    pub fn update(&self, resources: &LinuxResources) -> Result<()> {
        if !self.exists() {
            return Err(Error::NotFound {
                path: self.path.clone(),
            }
            .into());
        }
        apply::limits(self, resources)?;
        if let Some(rules) = resources.devices().as_deref().filter(|r| !r.is_empty())
            && !in_user_namespace()
        {
            apply::device_rules(self, rules)?;
        }
        Ok(())
    }

    /// Where a further process of the container belongs: here, or in the cgroup below where `init` is. An init such as
    /// systemd moves itself down on v2 and hands controllers to its children, and then processes may no longer enter here.
    pub fn beside(&self, init: Pid) -> Result<Cgroup> {
        let mut cgroup = self.clone();
        let divided = |dir: &Path| -> Result<bool, Error> {
            let text = files::read_if_there(&dir.join("cgroup.subtree_control"))?;
            Ok(text.is_some_and(|t| !t.trim().is_empty()))
        };
        for place in &mut cgroup.places {
            if place.hierarchy.version == Version::V2
                && divided(&place.dir)?
                && let Some(dir) = layout::dir_of_process(&place.hierarchy, init)?
                && dir.starts_with(&place.dir)
            {
                place.dir = dir;
            }
        }
        Ok(cgroup)
    }

    /// Moves a process, with all its threads, into every hierarchy. Slow: see the module's description.
    pub fn join(&self, pid: Pid) -> Result<()> {
        for place in &self.places {
            procs::join(&place.dir, pid)?;
        }
        Ok(())
    }

    /// Opens the cheap way in, for a child that will move itself. Open it before the child is made.
    pub fn entrance(&self) -> Result<Entrance> {
        let v1 = self
            .places
            .iter()
            .filter(|p| p.hierarchy.version != Version::V2);
        Ok(Entrance::open(v1.map(|p| p.dir.as_path()), self.unified())?)
    }

    /// Where the container's cgroups are, for mounting them in it.
    pub fn mounts(&self) -> Vec<CgroupMount> {
        let alone = self.places.len() == 1;
        self.places
            .iter()
            .map(|place| {
                let name = match place.hierarchy.mount_point.file_name() {
                    Some(name) if !(alone && place.hierarchy.version == Version::V2) => {
                        name.to_string_lossy().into_owned()
                    }
                    _ => String::new(),
                };
                let links = match place.hierarchy.controllers.as_slice() {
                    several @ [_, _, ..] if name.contains(',') => several.to_vec(),
                    _ => Vec::new(),
                };
                CgroupMount {
                    name,
                    links,
                    dir: place.dir.clone(),
                    version: place.hierarchy.version.clone(),
                }
            })
            .collect()
    }

    /// For the container's state file and `inspect`: directory by controller, by `name=…`, and by "" for v2.
    pub fn dirs(&self) -> BTreeMap<String, PathBuf> {
        let mut dirs = BTreeMap::new();
        for place in &self.places {
            let mut keys = place.hierarchy.controllers.clone();
            match &place.hierarchy.version {
                Version::V2 => keys = vec![String::new()],
                Version::V1 { options } if keys.is_empty() => keys.push(options.clone()),
                Version::V1 { .. } => {}
            }
            dirs.extend(keys.into_iter().map(|key| (key, place.dir.clone())));
        }
        dirs
    }

    /// The v2 directory, for `CLONE_INTO_CGROUP`; `None` without a v2 hierarchy. On a hybrid host the v1 hierarchies remain to
    /// be entered.
    pub fn dir_fd(&self) -> Result<Option<OwnedFd>> {
        let Some(dir) = self.unified() else {
            return Ok(None);
        };
        let file = std::fs::File::open(dir).map_err(|source| Error::Read {
            path: dir.to_owned(),
            source,
        })?;
        Ok(Some(file.into()))
    }

    /// Freezes every process and waits until they are frozen. An error after ten seconds leaves them running.
    pub fn freeze(&self) -> Result<()> {
        if let Some(dir) = self.unified_freezer() {
            if let Err(e) = procs::set_frozen_v2(dir, true) {
                procs::set_frozen_v2(dir, false)?;
                return Err(e.into());
            }
            return Ok(());
        }
        let dir = self.v1("freezer").ok_or(Error::NoFreezer)?;
        Ok(procs::set_frozen_v1(dir, true)?)
    }

    /// Undoes [`Cgroup::freeze`]. Not being frozen is fine.
    pub fn thaw(&self) -> Result<()> {
        let unified = self.unified_freezer();
        if let Some(dir) = unified {
            procs::set_frozen_v2(dir, false)?;
        }
        match self.v1("freezer") {
            Some(dir) => Ok(procs::set_frozen_v1(dir, false)?),
            None if unified.is_some() => Ok(()),
            None => Err(Error::NoFreezer.into()),
        }
    }

    /// Whether its processes are frozen.
    pub fn is_frozen(&self) -> Result<bool> {
        if let Some(dir) = self.unified()
            && procs::is_frozen_v2(dir)?
        {
            return Ok(true);
        }
        match self.v1("freezer") {
            Some(dir) => Ok(procs::is_frozen_v1(dir)?),
            None => Ok(false),
        }
    }

    /// Sends SIGKILL to every process, those that fork meanwhile and the frozen included. Nobody left, or no cgroup: fine.
    /// The dead remain to be reaped by their parents.
    pub fn kill(&self) -> Result<()> {
        let v1_freezer = self.v1("freezer").filter(|dir| dir.is_dir());
        if let Some(dir) = self.unified()
            && procs::kill_v2(dir)?
        {
            // A v1-frozen process dies once thawed.
            if let Some(dir) = v1_freezer
                && procs::is_frozen_v1(dir)?
            {
                procs::set_frozen_v1(dir, false)?;
            }
            return Ok(());
        }
        let dir = self.roster();
        // What is frozen cannot fork away; a freeze that fails costs rounds, not correctness.
        if let Some(freezer) = v1_freezer {
            if !procs::pids(dir)?.is_empty() && procs::set_frozen_v1(freezer, true).is_ok() {
                procs::signal_all(&procs::pids(dir)?);
            }
            procs::set_frozen_v1(freezer, false)?;
        } else if self.unified_freezer().is_some() {
            procs::signal_all(&procs::pids(dir)?);
            self.thaw()?;
        }
        Ok(procs::kill_one_by_one(dir)?)
    }

    /// Every process in it and in cgroups below it.
    pub fn pids(&self) -> Result<Vec<Pid>> {
        Ok(procs::pids(self.roster())?)
    }

    /// What it has used.
    pub fn stats(&self) -> Result<Stats> {
        let mut out = Stats::default();
        let unified = self.unified();
        match (self.v1("cpu"), self.v1("cpuacct"), unified) {
            (None, None, Some(dir)) => stats::cpu_v2(dir, &mut out)?,
            (cpu, cpuacct, _) => stats::cpu_v1(cpu, cpuacct, &mut out)?,
        }
        match (self.v1("memory"), unified) {
            (Some(dir), _) => stats::memory_v1(dir, &mut out)?,
            (None, Some(dir)) => stats::memory_v2(dir, &mut out)?,
            (None, None) => {}
        }
        match (self.v1("blkio"), unified) {
            (Some(dir), _) => stats::block_v1(dir, &mut out)?,
            (None, Some(dir)) => stats::block_v2(dir, &mut out)?,
            (None, None) => {}
        }
        if let Some(dir) = self.v1("pids").or(unified) {
            stats::pids(dir, &mut out)?;
        }
        Ok(out)
    }

    /// How many of its processes the kernel killed for want of memory; 0 without a memory controller.
    pub fn oom_kills(&self) -> Result<u64> {
        let kills = match (self.v1("memory"), self.unified()) {
            (Some(dir), _) => stats::oom_kills_v1(dir)?,
            (None, Some(dir)) => stats::oom_kills_v2(dir)?,
            (None, None) => None,
        };
        Ok(kills.unwrap_or(0))
    }

    /// A non-blocking descriptor that becomes readable around a kill for want of memory: read up to 4 KiB from it to silence
    /// it, then ask [`Cgroup::oom_kills`]. `None` without a memory controller.
    pub fn oom_watch(&self) -> Result<Option<OwnedFd>> {
        Ok(match (self.v1("memory"), self.unified()) {
            (Some(dir), _) => Some(oom::watch_v1(dir)?),
            (None, Some(dir)) if dir.join("memory.events").exists() => Some(oom::watch_v2(dir)?),
            (None, _) => None,
        })
    }

    /// Removes it with everything below from every hierarchy. Idempotent. Its processes must be dead or dying: waits up to
    /// ten seconds for them. Parents stay.
    pub fn remove(&self) -> Result<()> {
        let mut first_error = None;
        for place in &self.places {
            if let Err(e) = tree::remove(&place.dir) {
                first_error.get_or_insert(e);
            }
        }
        match first_error {
            Some(e) => Err(e.into()),
            None => Ok(()),
        }
    }

    fn v1(&self, controller: &str) -> Option<&Path> {
        self.places
            .iter()
            .find(|p| {
                p.hierarchy.version != Version::V2
                    && p.hierarchy.controllers.iter().any(|c| c == controller)
            })
            .map(|p| p.dir.as_path())
    }

    fn unified(&self) -> Option<&Path> {
        self.places
            .iter()
            .find(|p| p.hierarchy.version == Version::V2)
            .map(|p| p.dir.as_path())
    }

    /// The v2 directory if this kernel can freeze there (Linux 5.2).
    fn unified_freezer(&self) -> Option<&Path> {
        self.unified()
            .filter(|dir| dir.join("cgroup.freeze").exists())
    }

    /// The hierarchy whose processes we list: v2, or a v1 one in which a container is least likely to be split up.
    fn roster(&self) -> &Path {
        self.unified()
            .or_else(|| self.v1("freezer"))
            .or_else(|| self.v1("pids"))
            .unwrap_or(&self.places[0].dir)
    }
}

/// Whether this process is root of less than the machine.
fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.is_empty() && map.split_whitespace().ne(["0", "0", "4294967295"])
}

/// The controllers that can be used here, by their v2 names.
pub fn available_controllers() -> Result<Vec<String>> {
    let mut names: Vec<String> = Layout::detect()?
        .hierarchies
        .into_iter()
        .flat_map(|h| h.controllers)
        .filter_map(|controller| match controller.as_str() {
            "cpuacct" | "devices" | "freezer" | "net_cls" | "net_prio" => None,
            "blkio" => Some("io".to_owned()),
            _ => Some(controller),
        })
        .collect();
    names.sort();
    names.dedup();
    Ok(names)
}
