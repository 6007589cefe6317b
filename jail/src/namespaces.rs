//! Which namespaces a container gets: new ones, joined ones, and in which order that has to happen.
//!
//! ```text
//! direct     caller ──clone3(new…)──▶ init ── setns(joined net/ipc/uts/…)
//! relayed    caller ──clone3()──▶ relay ── setns(joined…) ──clone3(new… | CLONE_PARENT)──▶ init   (a child of the caller)
//! ```
//! The relay is needed when init's own creation depends on what was joined: a joined pid namespace takes effect on children
//! only, a joined user namespace must own the new ones, and a new user namespace has no rights over what is joined after it.
//!
//! Cgroup and time namespaces are always unshared by init itself: the first takes its root from where the process is
//! then, the second its clock offsets before anyone enters it.
//!
//! Must not know: mounts, processes' further set-up.

use std::fmt::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use nix::unistd::Pid;
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespace, LinuxNamespaceType, Spec};
use rustix::fs::{Mode, OFlags};

use crate::error::{Context, Error, Result};
use crate::sys;

/// What a spec asks for, decided and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// New with the clone of init.
    pub new: CloneFlags,
    pub new_cgroup: bool,
    pub new_time: bool,
    /// Existing ones to enter, user namespace first.
    pub join: Vec<(CloneFlags, PathBuf)>,
    /// Whether a relay must enter the joined ones before init exists.
    pub relayed: bool,
}

/// The `CLONE_NEW*` bit of a namespace type.
fn flag(kind: LinuxNamespaceType) -> CloneFlags {
    match kind {
        LinuxNamespaceType::Mount => CloneFlags::CLONE_NEWNS,
        LinuxNamespaceType::Cgroup => CloneFlags::CLONE_NEWCGROUP,
        LinuxNamespaceType::Uts => CloneFlags::CLONE_NEWUTS,
        LinuxNamespaceType::Ipc => CloneFlags::CLONE_NEWIPC,
        LinuxNamespaceType::User => CloneFlags::CLONE_NEWUSER,
        LinuxNamespaceType::Pid => CloneFlags::CLONE_NEWPID,
        LinuxNamespaceType::Network => CloneFlags::CLONE_NEWNET,
        LinuxNamespaceType::Time => TIME,
    }
}

/// CLONE_NEWTIME, which nix does not name.
pub(crate) const TIME: CloneFlags = CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);

/// Decides from the spec's list. Pure.
pub(crate) fn plan(namespaces: &[LinuxNamespace]) -> Result<Plan> {
    let mut plan = Plan {
        new: CloneFlags::empty(),
        new_cgroup: false,
        new_time: false,
        join: Vec::new(),
        relayed: false,
    };
    let mut seen = CloneFlags::empty();
    for namespace in namespaces {
        let bit = flag(namespace.typ());
        if seen.contains(bit) {
            return Err(Error::invalid(format!(
                "namespace {} is listed twice",
                namespace.typ()
            )));
        }
        seen |= bit;
        match namespace
            .path()
            .as_deref()
            .filter(|path| !path.as_os_str().is_empty())
        {
            Some(path) if !path.is_absolute() => {
                return Err(Error::invalid(format!(
                    "namespace path {path:?} is not absolute"
                )));
            }
            Some(path) => plan.join.push((bit, path.to_path_buf())),
            None if bit == CloneFlags::CLONE_NEWCGROUP => plan.new_cgroup = true,
            None if bit == TIME => plan.new_time = true,
            None => plan.new |= bit,
        }
    }
    plan.join
        .sort_by_key(|(bit, _)| *bit != CloneFlags::CLONE_NEWUSER);
    let joined = plan
        .join
        .iter()
        .fold(CloneFlags::empty(), |all, (bit, _)| all | *bit);
    plan.relayed = joined.intersects(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWUSER)
        || (plan.new.contains(CloneFlags::CLONE_NEWUSER) && !joined.is_empty());
    Ok(plan)
}

impl Plan {
    /// Whether the container lives in a user namespace other than the caller's.
    pub(crate) fn has_userns(&self) -> bool {
        self.new.contains(CloneFlags::CLONE_NEWUSER) || self.joins(CloneFlags::CLONE_NEWUSER)
    }

    /// Whether a namespace of this type is joined.
    pub(crate) fn joins(&self, bit: CloneFlags) -> bool {
        self.join.iter().any(|(joined, _)| *joined == bit)
    }

    /// Whether the container's namespace of this type differs from the caller's (as far as the spec says).
    pub(crate) fn has(&self, bit: CloneFlags) -> bool {
        self.new.contains(bit)
            || self.joins(bit)
            || (bit == CloneFlags::CLONE_NEWCGROUP && self.new_cgroup)
            || (bit == TIME && self.new_time)
    }

    /// Checks what the rest of the spec needs of its namespaces.
    pub(crate) fn check(&self, spec: &Spec) -> Result<()> {
        let linux = spec.linux().as_ref();
        let mapped = |maps: Option<&Option<Vec<LinuxIdMapping>>>| {
            maps.and_then(|m| m.as_ref()).is_some_and(|m| !m.is_empty())
        };
        let uids = mapped(linux.map(|l| l.uid_mappings()));
        let gids = mapped(linux.map(|l| l.gid_mappings()));
        if self.new.contains(CloneFlags::CLONE_NEWUSER) && !(uids && gids) {
            return Err(Error::invalid(
                "a new user namespace needs linux.uidMappings and linux.gidMappings",
            ));
        }
        if !self.has_userns() && (uids || gids) {
            return Err(Error::invalid(
                "linux.uidMappings and gidMappings are only for a container with a user namespace",
            ));
        }
        let has_text = |text: &Option<String>| text.as_deref().is_some_and(|t| !t.is_empty());
        if !self.has(CloneFlags::CLONE_NEWUTS)
            && (has_text(spec.hostname()) || has_text(spec.domainname()))
        {
            return Err(Error::invalid("a hostname needs a private UTS namespace"));
        }
        if !self.has(CloneFlags::CLONE_NEWNS) {
            let listed = |paths: Option<&Option<Vec<String>>>| {
                paths
                    .and_then(|p| p.as_ref())
                    .is_some_and(|p| !p.is_empty())
            };
            if listed(linux.map(|l| l.masked_paths())) || listed(linux.map(|l| l.readonly_paths()))
            {
                return Err(Error::invalid(
                    "unable to restrict sys entries without a private MNT namespace",
                ));
            }
            return Err(Error::invalid(
                "a container needs a mount namespace of its own",
            ));
        }
        Ok(())
    }
}

/// An existing namespace, opened and known to be of the right type.
pub(crate) struct Joined {
    pub kind: CloneFlags,
    pub path: PathBuf,
    pub fd: OwnedFd,
}

/// Opens the namespaces a plan joins.
pub(crate) fn open_joined(plan: &Plan) -> Result<Vec<Joined>> {
    plan.join
        .iter()
        .map(|(kind, path)| {
            let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .step_at("open namespace", path)?;
            match sys::namespace_type(fd.as_fd()) {
                Ok(found) if found == kind.bits() => Ok(Joined {
                    kind: *kind,
                    path: path.clone(),
                    fd,
                }),
                _ => Err(Error::invalid(format!(
                    "{path:?} is not a namespace of the type the spec gives it"
                ))),
            }
        })
        .collect()
}

/// Which of the joined namespaces are in truth the caller's own: `--network=host` comes that way too.
pub(crate) fn shared_with_caller(joined: &[Joined]) -> CloneFlags {
    let name = |kind| match kind {
        CloneFlags::CLONE_NEWNET => "net",
        CloneFlags::CLONE_NEWIPC => "ipc",
        CloneFlags::CLONE_NEWUTS => "uts",
        CloneFlags::CLONE_NEWPID => "pid",
        CloneFlags::CLONE_NEWNS => "mnt",
        CloneFlags::CLONE_NEWUSER => "user",
        CloneFlags::CLONE_NEWCGROUP => "cgroup",
        _ => "time",
    };
    joined
        .iter()
        .filter(|j| is_ours(j.fd.as_fd(), name(j.kind)))
        .fold(CloneFlags::empty(), |all, j| all | j.kind)
}

/// Enters opened namespaces, in order. Joining the one we are in already (user namespaces refuse that) counts as done.
pub(crate) fn enter(joined: &[Joined]) -> Result<()> {
    for namespace in joined {
        match nix::sched::setns(&namespace.fd, namespace.kind) {
            Ok(()) => {}
            Err(nix::errno::Errno::EINVAL)
                if namespace.kind == CloneFlags::CLONE_NEWUSER
                    && is_ours(namespace.fd.as_fd(), "user") => {}
            Err(e) => return Err(Error::sys_at("join namespace", &namespace.path, e)),
        }
    }
    Ok(())
}

fn is_ours(fd: BorrowedFd<'_>, name: &str) -> bool {
    let ours = rustix::fs::stat(format!("/proc/self/ns/{name}").as_str());
    match (ours, rustix::fs::fstat(fd)) {
        (Ok(ours), Ok(theirs)) => ours.st_ino == theirs.st_ino && ours.st_dev == theirs.st_dev,
        _ => false,
    }
}

/// Ids of a user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMappings {
    /// User ids.
    pub uids: Vec<LinuxIdMapping>,
    /// Group ids.
    pub gids: Vec<LinuxIdMapping>,
}

impl IdMappings {
    /// The mappings of a container's own user namespace, if it has one.
    pub fn of_spec(spec: &Spec) -> Option<IdMappings> {
        let linux = spec.linux().as_ref()?;
        let uids = linux.uid_mappings().clone().unwrap_or_default();
        let gids = linux.gid_mappings().clone().unwrap_or_default();
        (!uids.is_empty() && !gids.is_empty()).then_some(IdMappings { uids, gids })
    }

    /// Whether a container id is mapped.
    pub(crate) fn has_uid(&self, id: u32) -> bool {
        contains(&self.uids, id)
    }

    /// Whether a container group id is mapped.
    pub(crate) fn has_gid(&self, id: u32) -> bool {
        contains(&self.gids, id)
    }
}

fn contains(maps: &[LinuxIdMapping], id: u32) -> bool {
    maps.iter().any(|m| {
        id >= m.container_id() && u64::from(id) < u64::from(m.container_id()) + u64::from(m.size())
    })
}

fn map_text(maps: &[LinuxIdMapping]) -> String {
    let mut text = String::new();
    for map in maps {
        let _ = writeln!(
            text,
            "{} {} {}",
            map.container_id(),
            map.host_id(),
            map.size()
        );
    }
    text
}

/// Writes the id maps of a process that is alone in its new user namespace.
pub(crate) fn write_id_maps(pid: Pid, maps: &IdMappings) -> Result<()> {
    for (file, text) in [
        ("uid_map", map_text(&maps.uids)),
        ("gid_map", map_text(&maps.gids)),
    ] {
        write_whole(
            &PathBuf::from(format!("/proc/{pid}/{file}")),
            text.as_bytes(),
            "write id map",
        )?;
    }
    Ok(())
}

/// Writes a kernel control file in one write(2).
pub(crate) fn write_whole(path: &Path, bytes: &[u8], step: &str) -> Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .step_at(step, path)?;
    rustix::io::write(&file, bytes).step_at(step, path)?;
    Ok(())
}

/// A user namespace with the given maps and nobody in it: what an idmapped mount takes its mapping from, and what a process
/// enters that works on such a mount.
pub fn user_namespace(maps: &IdMappings) -> Result<OwnedFd> {
    let (hold, release) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).step("create pipe")?;
    match sys::clone3(libc::CLONE_NEWUSER as u64, None)
        .step("create a user namespace for an idmapped mount")?
    {
        sys::Cloned::Child => {
            drop(release);
            let _ = rustix::io::read(&hold, &mut [0u8; 1]);
            sys::exit_now(0)
        }
        sys::Cloned::Parent { pid, .. } => {
            let made = write_id_maps(pid, maps).and_then(|()| {
                let path = format!("/proc/{pid}/ns/user");
                rustix::fs::open(
                    path.as_str(),
                    OFlags::RDONLY | OFlags::CLOEXEC,
                    Mode::empty(),
                )
                .step_at("open", &path)
            });
            drop(release);
            let _ = nix::sys::wait::waitpid(pid, None);
            made
        }
    }
}

/// Moves into a new time namespace with the spec's clock offsets.
pub(crate) fn new_time_namespace(spec: &Spec) -> Result<()> {
    nix::sched::unshare(TIME).step("create a time namespace")?;
    if let Some(offsets) = spec
        .linux()
        .as_ref()
        .and_then(|l| l.time_offsets().as_ref())
    {
        let mut text = String::new();
        for (clock, offset) in offsets {
            let _ = writeln!(
                text,
                "{clock} {} {}",
                offset.secs().unwrap_or(0),
                offset.nanosecs().unwrap_or(0)
            );
        }
        if !text.is_empty() {
            write_whole(
                Path::new("/proc/self/timens_offsets"),
                text.as_bytes(),
                "set time offsets",
            )?;
        }
    }
    let path = "/proc/self/ns/time_for_children";
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .step_at("open", path)?;
    nix::sched::setns(&fd, TIME).step("enter the new time namespace")
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxIdMappingBuilder, LinuxNamespaceBuilder};

    fn namespace(typ: LinuxNamespaceType, path: Option<&str>) -> LinuxNamespace {
        let builder = LinuxNamespaceBuilder::default().typ(typ);
        match path {
            Some(path) => builder.path(path),
            None => builder,
        }
        .build()
        .expect("a namespace")
    }

    #[test]
    fn a_relay_only_where_init_depends_on_what_is_joined() {
        use LinuxNamespaceType::*;
        let relayed = |list: &[(LinuxNamespaceType, Option<&str>)]| {
            plan(
                &list
                    .iter()
                    .map(|(t, p)| namespace(*t, *p))
                    .collect::<Vec<_>>(),
            )
            .expect("plans")
            .relayed
        };
        assert!(!relayed(&[
            (Pid, None),
            (Mount, None),
            (Network, Some("/net"))
        ]));
        assert!(relayed(&[(Pid, Some("/pid")), (Mount, None)]));
        assert!(relayed(&[(User, Some("/user")), (Mount, None)]));
        assert!(relayed(&[(User, None), (Network, Some("/net"))]));
        assert!(!relayed(&[(User, None), (Network, None)]));
    }

    #[test]
    fn cgroup_and_time_are_left_to_init_and_user_comes_first() {
        use LinuxNamespaceType::*;
        let made = plan(&[
            namespace(Cgroup, None),
            namespace(Time, None),
            namespace(Network, Some("/net")),
            namespace(User, Some("/user")),
            namespace(Mount, None),
        ])
        .expect("plans");
        assert_eq!(made.new, CloneFlags::CLONE_NEWNS);
        assert!(made.new_cgroup && made.new_time);
        assert_eq!(made.join[0].0, CloneFlags::CLONE_NEWUSER);
    }

    #[test]
    fn duplicates_and_relative_paths_are_refused() {
        use LinuxNamespaceType::*;
        assert!(plan(&[namespace(Pid, None), namespace(Pid, Some("/x"))]).is_err());
        assert!(plan(&[namespace(Pid, Some("x"))]).is_err());
    }

    #[test]
    fn the_last_id_is_inside_its_mapping_and_the_next_is_not() {
        let map = LinuxIdMappingBuilder::default()
            .container_id(10u32)
            .host_id(0u32)
            .size(5u32)
            .build()
            .expect("map");
        let ids = IdMappings {
            uids: vec![map],
            gids: vec![],
        };
        assert!(ids.has_uid(10) && ids.has_uid(14));
        assert!(!ids.has_uid(9) && !ids.has_uid(15) && !ids.has_gid(10));
    }
}
