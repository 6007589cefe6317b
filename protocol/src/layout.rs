//! The directory of one sandbox on the host, which the runtime makes and shares with its shim.
//!
//! ```text
//!  EXEC-ROOT/sandboxes/ID/       0700
//!    shim.sock                   where the supervisor listens
//!    shim.log                    what it has to say to people
//!    shim.json                   a ShimRecord: what is needed to clean up after a killed shim
//!    exits/PROCESS.json          an ExitStatus per ended process, written before anyone is told
//!    rootfs/                     where the root file system is mounted, in the shim's mount namespace only
//!    binds/N                     bind mounts that share propagation with the host, likewise
//!    console.log                 of a virtual machine: what its kernel and its agent said
//!    vm/vsock.sock               likewise: where the VMM's socket device listens
//!    vm/root/                    likewise: the VMM's empty root directory
//! ```

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Where the supervisor listens.
pub const SOCKET: &str = "shim.sock";
/// The shim's own log.
pub const LOG: &str = "shim.log";
/// The shim's [`ShimRecord`].
pub const RECORD: &str = "shim.json";
/// Exit records.
pub const EXITS: &str = "exits";
/// Mount point of the root file system.
pub const ROOTFS: &str = "rootfs";
/// Mount points of bind mounts that share propagation.
pub const BINDS: &str = "binds";

/// What a virtual machine's console said.
pub const CONSOLE: &str = "console.log";
/// A virtual machine's own directory.
pub const VM: &str = "vm";
/// The socket of its socket device.
pub const VM_SOCKET: &str = "vm/vsock.sock";
/// The empty root directory of its VMM.
pub const VM_ROOT: &str = "vm/root";

/// The exit record of a process.
pub fn exit_record(dir: &Path, process: &str) -> PathBuf {
    dir.join(EXITS).join(format!("{process}.json"))
}

/// What a killed shim leaves for whoever cleans up after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimRecord {
    /// The protocol generation it speaks.
    pub generation: u32,
    /// Its process id.
    pub pid: i32,
    /// The sandbox' cgroup, as in the OCI spec.
    pub cgroups_path: PathBuf,
}
