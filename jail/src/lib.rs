//! Executes an OCI runtime spec: the process, its namespaces, mounts, cgroup, capabilities, seccomp filter.
//!
//! The one executor of both isolations: the shim and `caisson-oci` use it on the host, the agent inside a guest.
//! Callers are best single-threaded: with threads every start costs a further fork. No tokio. `unsafe` only in `sys.rs`.
//!
//! Must not know: images, VMs, HTTP, Docker.
//!
//! ```text
//! caller                    the container's init                          what it is about
//! create ── process.rs ──▶ init.rs: cgroup, namespaces, rootfs.rs         namespaces.rs decides which processes that takes
//!              │               mounts.rs, cgroupfs.rs, devices.rs,         beneath.rs finds every path, inside the root only
//!              │               console.rs, masks.rs, sysctl.rs
//!              │            launch.rs: user, capabilities, seccomp         the same for init and for an exec
//!    channel.rs ◀─ Ready ──    held before the command
//! Init::start ── Go ──────▶ reaper.rs (if wanted), exec                    command.rs finds it, or says why not
//!
//! exec   ── exec.rs ──────▶ relay in init's namespaces ──▶ launch.rs
//! seal_self (first thing in main), mount_overlay, run_hooks, cgroup::Cgroup: for callers
//! ```
//!
//! [`create`] makes the cgroup it is given (callers plan it with [`cgroup::Cgroup::new`]) and leaves nothing behind when it
//! fails; afterwards the cgroup is the caller's to remove. Dropping an [`Init`] that was never started ends it; collecting the
//! process (waitpid) is always the caller's.

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
pub use sysctl::set_sysctl;
