//! A container's first process, from its birth to the gates of its command: enters the cgroup, the namespaces, builds and
//! enters the root. What follows is `launch.rs`.
//!
//! Runs in a freshly cloned, single-threaded process; every error ends it and travels to the caller.
//! Must not know: what the caller does meanwhile (`process.rs`).

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::unistd::{Gid, Uid};
use oci_spec::runtime::{LinuxDevice, Mount, Process, Spec};
use rustix::fs::{Mode, OFlags};

use crate::beneath::{RootDir, open_host_path};
use crate::cgroup::{CgroupMount, Entrance, Unified};
use crate::channel::{Channel, FromChild};
use crate::error::{Context, Error, Result};
use crate::hooks::{self, HookKind};
use crate::launch::{Hold, Launch, StartHooks, launch};
use crate::lsm::OnExec;
use crate::mount_options::{self, Propagation};
use crate::mounts::{self, Place, PreparedTrees};
use crate::namespaces::{self, IdMappings, Joined, Plan};
use crate::process::Stdio;
use crate::seccomp::Filter;
use crate::{console, devices, masks, rootfs, sys, sysctl};

/// What init has to do, prepared by the caller.
pub(crate) struct Job<'a> {
    pub id: &'a str,
    pub spec: &'a Spec,
    pub process: &'a Process,
    pub plan: &'a Plan,
    /// To be entered by init itself; empty if a relay did.
    pub joined: &'a [Joined],
    pub mappings: Option<&'a IdMappings>,
    pub entrance: &'a Entrance,
    pub unified: Unified,
    pub cgroup_mounts: &'a [CgroupMount],
    pub rootfs: &'a Path,
    pub bundle: &'a Path,
    pub trees: PreparedTrees,
    pub nodes: &'a [devices::Node],
    pub propagation: Option<Propagation>,
    pub filter: Option<&'a Filter>,
    pub stdio: Stdio,
    /// The start FIFO, opened O_PATH.
    pub fifo: Option<OwnedFd>,
    pub preserve_fds: u32,
    pub reaper: bool,
    pub no_pivot: bool,
    pub no_new_keyring: bool,
    pub die_with_parent: bool,
}

/// Runs the job to its end, which is the container's command or the death of this process.
pub(crate) fn run(mut job: Job<'_>, channel: Channel) -> ! {
    // A second handle for the report: the first is consumed on the way.
    let report = channel.try_clone();
    let error = match prepare(&mut job, &channel) {
        Ok((hold, console, on_exec)) => {
            let last = Launch {
                spec: job.spec,
                process: job.process,
                filter: job.filter,
                hold,
                console: console.as_ref(),
                on_exec: &on_exec,
                preserve_fds: job.preserve_fds,
                reaper: job.reaper,
                die_with_parent: job.die_with_parent,
                start_hooks: Some(StartHooks {
                    id: job.id,
                    bundle: job.bundle,
                }),
            };
            launch(last, channel)
        }
        Err(e) => e,
    };
    if let Ok(report) = report {
        let _ = report.send(&FromChild::Failed(error), None);
    }
    sys::exit_now(1)
}

fn prepare(job: &mut Job<'_>, channel: &Channel) -> Result<(Hold, Option<OwnedFd>, OnExec)> {
    rustix::process::umask(Mode::empty());
    // First of all, with the caller's rights: from here on whatever is used is the container's account.
    job.entrance.enter(job.unified).step("enter the cgroup")?;
    if job.plan.new.contains(CloneFlags::CLONE_NEWUSER) {
        channel.send(&FromChild::MapIds, None)?;
        channel.wait_go()?;
    }
    let early_root = open_root_early(job);
    if job.plan.has_userns() {
        become_root(job.mappings)?;
    }
    nix::unistd::setsid().step("start a session")?;
    let proc = open_host_path(Path::new("/proc")).step_at("open", "/proc")?;
    let on_exec = OnExec::open(proc.as_fd(), job.process)?;
    enter_namespaces(job)?;
    let hold = match job.fifo.take() {
        None => Hold::Channel,
        Some(fifo) => Hold::Fifo {
            descriptors: own_descriptors(proc.as_fd())?,
            fifo,
        },
    };

    let (root, console) = build_root(job, early_root.as_ref(), channel)?;
    rootfs::enter(&root, job.rootfs, job.no_pivot)?;
    if let Some(propagation) = job.propagation {
        rootfs::set_propagation(propagation)?;
    }
    let console = match console {
        Some(pty) => Some(pty.take_over()?),
        None => {
            job.stdio.place()?;
            None
        }
    };
    Ok((hold, console, on_exec))
}

/// The root file system may lie below directories that only the host's root may pass (0700). That is who we still are
/// before we become somebody in a user namespace.
fn open_root_early(job: &Job<'_>) -> Option<OwnedFd> {
    let ours = job.plan.new.contains(CloneFlags::CLONE_NEWNS) && job.plan.has_userns();
    ours.then(|| open_host_path(job.rootfs).ok()).flatten()
}

/// Root of the user namespace, where it has one.
fn become_root(mappings: Option<&IdMappings>) -> Result<()> {
    let (uid, gid) = match mappings {
        Some(maps) => (maps.has_uid(0), maps.has_gid(0)),
        None => (true, true),
    };
    match sys::set_groups(&[]) {
        Ok(()) | Err(Errno::EPERM) => {}
        Err(e) => return Err(Error::sys("drop supplementary groups", e)),
    }
    if gid {
        let root = Gid::from_raw(0);
        nix::unistd::setresgid(root, root, root).step("become group 0 of the user namespace")?;
    }
    if uid {
        let root = Uid::from_raw(0);
        nix::unistd::setresuid(root, root, root).step("become root of the user namespace")?;
    }
    Ok(())
}

fn enter_namespaces(job: &Job<'_>) -> Result<()> {
    let plan = job.plan;
    if plan.new_cgroup {
        nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP).step("create a cgroup namespace")?;
    }
    if plan.new_time {
        namespaces::new_time_namespace(job.spec)?;
    }
    if !job.no_new_keyring {
        // Or the container would share the caller's session keyring.
        let name = CString::new(format!("_ses.{}", job.id)).unwrap_or_default();
        match sys::join_session_keyring(Some(&name)) {
            Ok(()) | Err(Errno::ENOSYS | Errno::EPERM | Errno::EACCES) => {}
            Err(e) => return Err(Error::sys("create a session keyring", e)),
        }
    }
    namespaces::enter(job.joined)?;
    if plan.joins(CloneFlags::CLONE_NEWPID) {
        // Others in there can see us before we are done.
        sys::set_dumpable(false).step("hide from the joined pid namespace")?;
    }
    if plan.new.contains(CloneFlags::CLONE_NEWNET) {
        sys::loopback_up().step("bring the loopback interface up")?;
    }
    if let Some(name) = job.spec.hostname().as_deref().filter(|n| !n.is_empty()) {
        nix::unistd::sethostname(name).step("set the hostname")?;
    }
    if let Some(name) = job.spec.domainname().as_deref().filter(|n| !n.is_empty()) {
        rustix::system::setdomainname(name.as_bytes()).step("set the domain name")?;
    }
    if let Some(sysctls) = job.spec.linux().as_ref().and_then(|l| l.sysctl().as_ref()) {
        sysctl::apply(sysctls)?;
    }
    Ok(())
}

/// The host's view of this process' descriptors, usable after the host's /proc is gone.
fn own_descriptors(proc: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(proc, "self/fd", flags, Mode::empty()).step_at("open", "/proc/self/fd")
}

fn build_root(
    job: &mut Job<'_>,
    early_root: Option<&OwnedFd>,
    channel: &Channel,
) -> Result<(RootDir, Option<console::Pty>)> {
    let linux = job.spec.linux().as_ref();
    let in_userns = job.plan.has_userns();
    let reach = early_root.map(|fd| PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())));
    let root = rootfs::open(job.rootfs, reach.as_deref(), job.propagation)?;
    let place = Place {
        root: &root,
        bundle: job.bundle,
        cgroups: job.cgroup_mounts,
        cgroup_namespace: job.plan.new_cgroup,
        in_userns,
        label: linux.and_then(|l| l.mount_label().as_deref()),
    };
    let list = mounts_of(job.spec);
    let mounted = mounts::mount_all(list, &place, std::mem::take(&mut job.trees))?;
    if !mounted.dev_is_bound {
        devices::create(&root, job.nodes, in_userns)?;
        devices::link(&root)?;
    }
    let pty = match &job.stdio {
        Stdio::Terminal { size } => {
            let pty = console::open(&root, mounted.devpts.as_ref().map(AsFd::as_fd))?;
            if let Some((rows, columns)) = size {
                pty.resize(*rows, *columns)?;
            }
            pty.bind_at_console(&root)?;
            Some(pty)
        }
        _ => None,
    };
    root.directory(job.process.cwd())?;
    run_hooks(job, channel)?;
    masks::read_only(&root, paths(linux.map(|l| l.readonly_paths())))?;
    masks::mask(&root, paths(linux.map(|l| l.masked_paths())))?;
    mounts::finish(mounted)?;
    if job
        .spec
        .root()
        .as_ref()
        .and_then(|r| r.readonly())
        .unwrap_or(false)
    {
        rootfs::make_read_only(&root)?;
    }
    Ok((root, pty))
}

fn run_hooks(job: &Job<'_>, channel: &Channel) -> Result<()> {
    let has = |kind| !hooks::list(job.spec, kind).is_empty();
    if has(HookKind::Prestart) || has(HookKind::CreateRuntime) {
        channel.send(&FromChild::RunHooks, None)?;
        channel.wait_go()?;
    }
    let pid = Some(nix::unistd::getpid());
    hooks::run_hooks(job.spec, HookKind::CreateContainer, job.id, pid, job.bundle)
}

fn paths(list: Option<&Option<Vec<String>>>) -> &[String] {
    list.and_then(|l| l.as_deref()).unwrap_or_default()
}

/// The spec's mounts.
pub(crate) fn mounts_of(spec: &Spec) -> &[Mount] {
    spec.mounts().as_deref().unwrap_or_default()
}

/// The spec's devices.
pub(crate) fn devices_of(spec: &Spec) -> &[LinuxDevice] {
    spec.linux()
        .as_ref()
        .and_then(|l| l.devices().as_deref())
        .unwrap_or_default()
}

/// The propagation the spec gives its root.
pub(crate) fn propagation_of(spec: &Spec) -> Result<Option<Propagation>> {
    let name = spec
        .linux()
        .as_ref()
        .and_then(|l| l.rootfs_propagation().as_deref())
        .filter(|n| !n.is_empty());
    name.map(mount_options::root_propagation).transpose()
}

/// Checks that can be made before anything exists. Pure.
pub(crate) fn check(spec: &Spec, process: &Process, plan: &Plan) -> Result<()> {
    plan.check(spec)?;
    check_process(
        process,
        IdMappings::of_spec(spec)
            .filter(|_| plan.new.contains(CloneFlags::CLONE_NEWUSER))
            .as_ref(),
    )?;
    if let Some(linux) = spec.linux() {
        // Left out silently these would be promises not kept.
        let asked = [
            ("linux.intelRdt", linux.intel_rdt().is_some()),
            ("linux.memoryPolicy", linux.memory_policy().is_some()),
            (
                "linux.netDevices",
                linux.net_devices().as_ref().is_some_and(|d| !d.is_empty()),
            ),
        ];
        if let Some((field, _)) = asked.iter().find(|(_, present)| *present) {
            return Err(Error::invalid(format!("{field} is not supported")));
        }
    }
    for mount in mounts_of(spec) {
        mount_options::parse(mount.options().as_deref().unwrap_or_default())?;
    }
    Ok(())
}

/// The same for one process.
pub(crate) fn check_process(process: &Process, mappings: Option<&IdMappings>) -> Result<()> {
    if process.args().as_deref().unwrap_or_default().is_empty() {
        return Err(Error::invalid("process.args must not be empty"));
    }
    if !process.cwd().is_absolute() {
        return Err(Error::invalid(format!(
            "process.cwd must be an absolute path, not {:?}",
            process.cwd()
        )));
    }
    let user = process.user();
    let groups = user.additional_gids().as_deref().unwrap_or_default();
    if user.uid() == u32::MAX || user.gid() == u32::MAX || groups.contains(&u32::MAX) {
        return Err(Error::invalid(
            "user and group ids must be below 4294967295",
        ));
    }
    if let Some(maps) = mappings {
        if !maps.has_uid(user.uid()) {
            return Err(Error::invalid(format!(
                "uid {} is not mapped in the user namespace",
                user.uid()
            )));
        }
        if let Some(gid) = std::iter::once(&user.gid())
            .chain(groups)
            .find(|gid| !maps.has_gid(**gid))
        {
            return Err(Error::invalid(format!(
                "gid {gid} is not mapped in the user namespace"
            )));
        }
    }
    Ok(())
}
