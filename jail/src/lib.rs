//! Executes an OCI runtime spec: the process, its namespaces, mounts, cgroup, capabilities, seccomp filter.
//!
//! The one executor of both isolations: the shim and `caisson-oci` use it on the host, the agent inside a guest.
//! Callers are single-threaded (it forks). No tokio. `unsafe` only in `sys.rs`.
//!
//! Must not know: images, VMs, HTTP, Docker.
//!
//! INTERFACE AGREED WITH ITS CALLERS (signatures may grow, these must exist):
//! ```ignore
//! /// Re-executes the calling program from a read-only, detached clone of itself unless that is already so, so that nothing
//! /// inside a container can write to it through /proc/PID/exe (CVE-2019-5736). Call first thing in main, single-threaded.
//! pub fn seal_self() -> Result<()>;
//!
//! pub enum Root {
//!     /// Use `spec.root.path`, relative to the bundle: the OCI command line.
//!     FromSpec { bundle: PathBuf },
//!     /// Already mounted here (in the caller's mount namespace).
//!     Mounted(PathBuf),
//! }
//! /// Mounts an overlay at `target` in the caller's mount namespace: lowerdir+ where the kernel has it, mount(2) otherwise.
//! /// `idmap`: user-namespace mappings to shift layers and upper by (idmapped mounts).
//! pub fn mount_overlay(lower: &[PathBuf], upper: &Path, work: &Path, target: &Path, idmap: Option<&IdMappings>) -> Result<()>;
//!
//! /// The three standard streams of a process, or a new terminal.
//! pub enum Stdio { Fds { stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd }, Terminal { size: Option<(u16 /*rows*/, u16 /*cols*/)> }, Inherit }
//!
//! /// How the held init is released.
//! pub enum Gate {
//!     /// Kept by the caller in the same process: `Init::start` waits until execve succeeded or returns why it failed.
//!     Pipe,
//!     /// A FIFO at this path: any process may release it later by opening it for reading (runc's exec.fifo).
//!     Fifo(PathBuf),
//! }
//!
//! pub struct Setup<'a> { pub id: &'a str, pub spec: &'a Spec, pub root: Root, pub stdio: Stdio, pub gate: Gate,
//!     pub cgroup: &'a Cgroup, pub reaper: bool, pub preserve_fds: u32, pub no_pivot: bool, pub no_new_keyring: bool,
//!     /// init dies with the caller (PR_SET_PDEATHSIG): the shim sets it, the OCI command line does not
//!     pub die_with_parent: bool }
//! pub fn create(setup: Setup) -> Result<Init>;      // forks; everything done but the exec; hooks prestart/createRuntime/createContainer run
//! pub struct Init { pub pid: Pid, pub pidfd: OwnedFd, pub console: Option<OwnedFd> /* pty master */, .. }
//! impl Init { pub fn start(&mut self) -> Result<()>; }   // Gate::Pipe only. startContainer hook inside, poststart after
//! pub fn release_fifo(path: &Path) -> Result<()>;          // Gate::Fifo: `caisson oci start`
//!
//! /// A further process in the namespaces and cgroup of a running init; same two steps.
//! pub struct Exec<'a> { pub init_pid: Pid, pub spec: &'a Spec, pub process: &'a Process, pub stdio: Stdio, pub cgroup: &'a Cgroup, pub preserve_fds: u32, pub hold: bool }
//! pub fn exec(exec: Exec) -> Result<Init>;
//!
//! pub mod cgroup {
//!     /// One container's cgroup, on v1 (every mounted controller), hybrid or v2.
//!     pub struct Cgroup;
//!     impl Cgroup {
//!         pub fn new(cgroups_path: &Path /* spec.linux.cgroupsPath, default /caisson/ID */) -> Result<Cgroup>;  // plans, creates nothing
//!         pub fn create(&self, resources: Option<&LinuxResources>) -> Result<()>; // applies all but devices that need a later step
//!         pub fn open(cgroups_path: &Path) -> Result<Cgroup>;
//!         pub fn update(&self, r: &LinuxResources) -> Result<()>;
//!         pub fn freeze(&self) -> Result<()>;  pub fn thaw(&self) -> Result<()>;  pub fn is_frozen(&self) -> Result<bool>;
//!         pub fn kill(&self) -> Result<()>;            // every process, also while frozen; cgroup.kill where it exists
//!         pub fn pids(&self) -> Result<Vec<Pid>>;      // recursive
//!         pub fn stats(&self) -> Result<Stats>;        // serde; all that runtime::ResourceUse wants
//!         pub fn oom_kills(&self) -> Result<u64>;      // v1 memory.oom_control oom_kill, v2 memory.events
//!         pub fn remove(&self) -> Result<()>;          // idempotent; retries EBUSY for a bounded time
//!         // used by jail itself; jail::create() calls Cgroup::create, so callers only plan it with Cgroup::new:
//!         pub fn clone_dir(&self) -> Option<OwnedFd>;          // v2 only hierarchy: O_PATH|O_DIRECTORY fd for CLONE_INTO_CGROUP
//!         pub fn join_fds(&self) -> Result<Vec<OwnedFd>>;      // every hierarchy clone_dir does not cover: the v1 `tasks` file (NOT cgroup.procs:
//!                                                              // a single-threaded process writing "0" to `tasks` skips the RCU grace period), opened O_WRONLY|O_CLOEXEC
//!     }
//!     pub fn available_controllers() -> Result<Vec<String>>;   // v2 names
//! }
//! pub mod features { pub fn features() -> oci_spec::runtime::Features (or serde_json::Value) }
//! pub fn proc_net_stats(pid: Pid) -> Result<BTreeMap<String, NetStats>>;   // /proc/PID/net/dev
//!
//! pub enum Error  (thiserror; every variant names what failed, with path or id; `kind()` -> ErrorKind
//!    { Invalid, NotFound, CommandNotFound, CommandNotExecutable, HostUnfit, Conflict, Internal })
//! ```

mod beneath;
mod capabilities;
pub mod cgroup;
mod cgroupfs;
mod channel;
mod command;
mod console;
mod copy_up;
mod devices;
pub mod error;
mod exec;
pub mod features;
mod hooks;
mod init;
mod launch;
mod limits;
mod lsm;
mod masks;
mod mount_options;
mod mounts;
pub mod namespaces;
mod network;
mod overlay;
mod process;
mod reaper;
mod rootfs;
mod seal;
pub mod seccomp;
mod sys;
mod sysctl;
pub mod user;

pub use console::copy_window_size;
pub use error::{Error, ErrorKind, Result};
pub use exec::{Exec, exec};
pub use hooks::{HookKind, run_hooks};
pub use namespaces::IdMappings;
pub use network::{NetStats, proc_net_stats};
pub use overlay::mount_overlay;
pub use process::{
    Gate, Init, Root, Setup, Stdio, create, open_process, release_fifo, send_signal,
};
pub use seal::seal_self;
