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
