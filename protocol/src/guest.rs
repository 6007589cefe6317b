//! What a shim and its agent are told beyond the OCI spec when they make a sandbox in a virtual machine: what the machine is
//! made of, and things that the host's kernel has and a guest's must be given.

use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// The vsock port on which the agent serves this protocol, and the host's port that it connects to once when it is ready.
pub const AGENT_PORT: u32 = 1024;

/// What the shim of a virtual machine is told beyond the OCI spec: what to make the machine of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSetup {
    /// The program `caisson-vmm`.
    pub vmm: PathBuf,
    /// The program `caisson-share`.
    pub share_server: PathBuf,
    /// The guest's kernel, an uncompressed `vmlinux`.
    pub kernel: PathBuf,
    /// The file system image with the agent, EROFS.
    pub agent: PathBuf,
    /// The guest's memory, unless the sandbox' limit needs more.
    pub memory_bytes: u64,
    /// This host's KVM emulates ring 0.
    pub emulated: bool,
    /// Sources of bind mounts that the guest gets copies of; everything else is shared with it.
    #[serde(default)]
    pub copies: Vec<PathBuf>,
}

/// A guest's surroundings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestSetup {
    /// The host's clock.
    pub now: SystemTime,
    /// Bytes for the guest's random number generator, credited as entropy.
    pub entropy: Vec<u8>,
    /// Directories of the host, to be mounted before anything of the spec is.
    #[serde(default)]
    pub shares: Vec<Share>,
    /// Small files of the host (`/etc/hosts` and its like), to be written before anything of the spec is mounted.
    #[serde(default)]
    pub files: Vec<GuestFile>,
    /// Network interfaces besides the loopback.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
}

/// A virtio-fs share; the spec's bind mounts name paths beneath its `target` as their sources.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The device's tag.
    pub tag: String,
    /// Where the agent mounts it.
    pub target: PathBuf,
    /// Mounted read-only; the device refuses writes as well.
    pub read_only: bool,
}

/// A file with its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestFile {
    /// Where the agent writes it; missing parents are made.
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// What is in it, at most [`MAX_GUEST_FILE_BYTES`].
    pub content: Vec<u8>,
}

/// No copied file is larger: the message that carries it has a limit.
pub const MAX_GUEST_FILE_BYTES: u64 = 256 << 10;

/// A network interface of the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name inside the sandbox, such as `eth0`.
    pub name: String,
    /// By which the guest finds the device: `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    /// In bytes.
    pub mtu: u32,
    /// Addresses with their prefix lengths: `10.0.0.2/24`, `fd00::2/64`.
    pub addresses: Vec<String>,
    /// Routes, in this order.
    pub routes: Vec<Route>,
}

/// Reads `aa:bb:cc:dd:ee:ff`.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut bytes = text.split(':');
    for byte in &mut mac {
        let digits = bytes.next().filter(|d| d.len() == 2)?;
        // not the sign that `from_str_radix` would take
        if !digits.bytes().all(|d| d.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(digits, 16).ok()?;
    }
    bytes.next().is_none().then_some(mac)
}

/// A route through an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Such as `0.0.0.0/0`.
    pub destination: String,
    /// The next hop; `None` when the destination is on the link.
    pub gateway: Option<String>,
}
