//! What `caisson-vmm` is given, and what it may be asked while it runs.
//!
//! ```text
//!   caisson-vmm --control FD          FD: one end of a connected stream socket
//!     ◀── a frame: the VmSpec          the descriptors it names are open in the new process already
//!     ◀── VmmRequestFrame{id, …}  ──▶ VmmResponseFrame{id, …}       frames as in the crate's documentation, answers in any order
//! ```
//!
//! When the control connection ends, the VM ends: it has no life of its own. Requests that carry descriptors send them as
//! `SCM_RIGHTS` with the frame's first byte.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Error;

/// Something that the VMM opens, or finds open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// An inherited descriptor, by number; the VMM owns it from now on.
    Fd(i32),
    /// A file that the VMM opens before it is confined.
    Path(PathBuf),
}

/// One microVM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// For messages and thread names.
    pub id: String,
    /// 1 ..= 64.
    pub vcpus: u8,
    /// The guest's memory, a multiple of 1 MiB.
    pub memory_bytes: u64,
    /// An uncompressed ELF `vmlinux`.
    pub kernel: Resource,
    /// An uncompressed cpio archive.
    #[serde(default)]
    pub initramfs: Option<Resource>,
    /// The kernel's command line, without the devices.
    pub command_line: String,
    /// Block devices: `/dev/vda`, `/dev/vdb`, … in this order.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// Network devices.
    #[serde(default)]
    pub nets: Vec<Net>,
    /// Directories of the host, each served by a process of its own.
    #[serde(default)]
    pub shares: Vec<FsShare>,
    /// The socket device.
    #[serde(default)]
    pub vsock: Option<Vsock>,
    /// Where the guest's console goes: a file or pipe; nothing when absent. At most [`VmSpec::console_limit_bytes`] are
    /// written there, what comes later is dropped and counted.
    #[serde(default)]
    pub console: Option<Resource>,
    /// See `console`; 1 MiB when absent.
    #[serde(default)]
    pub console_limit_bytes: Option<u64>,
    /// Whether there is a virtio console, `/dev/hvc0`, beside the serial port: for a talkative guest, told `console=hvc0`, whose
    /// output then costs one exit for 16 bytes instead of two for each.
    #[serde(default)]
    pub console_device: bool,
    /// Whether to complete what this host's KVM refuses.
    #[serde(default)]
    pub assist: AssistMode,
    /// Go on from a snapshot instead of booting: kernel, initramfs and command line are not looked at.
    #[serde(default)]
    pub restore: Option<SnapshotFiles>,
    /// How the VMM confines itself before any guest code runs; absent: not at all (tests, work by hand).
    #[serde(default)]
    pub confinement: Option<Confinement>,
    /// Print where the boot's time went, as JSON lines on standard error.
    #[serde(default)]
    pub boot_timing: bool,
}

/// A block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The file behind it; its size is the device's, rounded down to sectors.
    pub file: Resource,
    /// What the guest reads as the device's serial number: at most 20 bytes.
    pub serial: String,
    /// Writes are refused by the device.
    pub read_only: bool,
    /// Limits; none when absent.
    #[serde(default)]
    pub rate: Option<RateLimits>,
    /// Request queues; 1 when absent.
    #[serde(default)]
    pub queues: Option<u16>,
}

/// The token buckets of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimits {
    /// Bytes.
    #[serde(default)]
    pub bytes: Option<Bucket>,
    /// Requests or packets.
    #[serde(default)]
    pub operations: Option<Bucket>,
}

/// One token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Tokens added in a second.
    pub per_second: u64,
    /// How many it holds at most: what an idle device may do at once.
    pub burst: u64,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Net {
    /// A tap's descriptor, opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`.
    pub tap: Resource,
    /// `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    /// In bytes.
    pub mtu: u16,
    /// From the guest's point of view; none when absent.
    #[serde(default)]
    pub receive_rate: Option<RateLimits>,
    #[allow(missing_docs)]
    #[serde(default)]
    pub transmit_rate: Option<RateLimits>,
}

/// The largest message between a virtio-fs device and its server: 32 pages of data and a page for what is around it. It
/// fits the default send buffer of a socket.
pub const FS_MESSAGE_BYTES_MAX: usize = (128 << 10) + 4096;

/// A virtio-fs device. FUSE requests are passed to a server process (`caisson-share`) over a `SOCK_SEQPACKET` socket, one
/// message of at most [`FS_MESSAGE_BYTES_MAX`] each way a request (a `FORGET` has no answer).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsShare {
    /// At most 36 bytes.
    pub tag: String,
    /// The connection with its server.
    pub server: Resource,
}

/// The socket device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vsock {
    /// The guest's context id, at least 3; only the guest sees it.
    pub guest_cid: u32,
    /// A listening unix stream socket. Whoever connects says `CONNECT port\n`, to be connected with a listener in the guest,
    /// or `ACCEPT port\n`, to be connected with the next guest process that connects to that port of the host (its
    /// connections are refused when nobody asks for them). `OK port\n` (the other side's port) comes once they are
    /// connected, `ERROR reason\n` when not; then both are one stream.
    pub listener: Resource,
}

/// Whether the VMM completes what KVM refuses at ring 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AssistMode {
    /// If the probe says that it is needed.
    #[default]
    Auto,
    /// Yes.
    On,
    /// No.
    Off,
}

/// How the VMM confines itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// It becomes this user and group, without capabilities.
    pub uid: u32,
    #[allow(missing_docs)]
    pub gid: u32,
    /// An empty directory that becomes its root, in a mount namespace of its own.
    pub root: PathBuf,
}

/// The files of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFiles {
    /// vCPUs, interrupt controller, devices: JSON with a version and a digest.
    pub state: Resource,
    /// The guest's memory, mapped private.
    pub memory: Resource,
}

/// A request with the number that its answer will carry.
#[derive(Debug, Serialize, Deserialize)]
pub struct VmmRequestFrame {
    /// Not reused while the answer is outstanding.
    pub id: u64,
    /// What is asked.
    pub request: VmmRequest,
}

/// The answer to the request of the same number.
#[derive(Debug, Serialize, Deserialize)]
pub struct VmmResponseFrame {
    /// The request's.
    pub id: u64,
    /// How it went.
    pub outcome: VmmOutcome,
}

/// How a request went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmmOutcome {
    /// Well.
    Ok(VmmResponse),
    /// Not.
    Error(Error),
}

/// What a VMM may be asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmmRequest {
    /// Waits for the end of the VM. → `Ended`; the process exits after the answer.
    Wait,
    /// Stops every vCPU; devices finish what they have begun. → `Done`
    Pause,
    /// Goes on. → `Done`
    Resume,
    /// Writes a snapshot of a paused VM into two descriptors that come with the request: state, memory. → `Done`
    Snapshot,
    /// Counters. → `Stats`
    Stats,
    /// Asks the guest to give back so much memory, or returns it. → `Done` at once
    SetBalloon(u64),
    /// Puts another file behind a disk: its descriptor comes with the request. The guest is told of the new size. → `Done`
    UpdateDisk(DiskUpdate),
    /// Changes the limits of a disk. → `Done`
    LimitDisk(DiskLimit),
    /// Ends the VM at once. → `Done`
    Stop,
}

/// See [`VmmRequest::UpdateDisk`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUpdate {
    /// Counted from 0 in the order of the spec.
    pub disk: u16,
    /// As in [`Disk`].
    pub read_only: bool,
}

/// See [`VmmRequest::LimitDisk`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLimit {
    /// Counted from 0 in the order of the spec.
    pub disk: u16,
    /// The new limits.
    pub rate: RateLimits,
}

/// Answers that are not errors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmmResponse {
    /// It is done.
    Done,
    /// The VM has ended.
    Ended(VmEnd),
    /// Counters.
    Stats(Box<VmStats>),
}

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmEnd {
    /// The guest powered off or rebooted.
    Reset,
    /// It was asked to stop.
    Stopped,
    /// The guest's kernel panicked; the last lines of its console. Told from a reset by these lines: with `panic=-1` a
    /// panic ends as a reboot does, and a machine without ACPI has no other word for either. A guest that prints them
    /// itself fools nobody but its owner.
    Panicked(String),
    /// The guest crashed or did what this VMM or this host cannot run; said for its user.
    Failed(String),
}

/// Counters of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct VmStats {
    /// Exits of all vCPUs by reason.
    pub exits_io: u64,
    pub exits_mmio: u64,
    /// Instructions completed and SYSCALLs forwarded by the emulation assist.
    pub exits_assisted: u64,
    pub exits_syscall: u64,
    /// Memory of the guest that the host has given it pages for.
    pub guest_resident_bytes: u64,
    /// What the balloon holds.
    pub balloon_bytes: u64,
    /// Bytes of console output that were dropped.
    pub console_dropped_bytes: u64,
    pub disks: Vec<DeviceStats>,
    pub nets: Vec<NetStats>,
    pub vsock_connections: u64,
    pub vsock_received_bytes: u64,
    pub vsock_sent_bytes: u64,
    /// Phases of the boot, in microseconds since the process began; `None` until reached.
    pub boot: BootTimes,
}

/// Counters of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct DeviceStats {
    pub read_ops: u64,
    pub read_bytes: u64,
    pub write_ops: u64,
    pub write_bytes: u64,
    pub errors: u64,
    /// How often the rate limiter made a request wait.
    pub throttled: u64,
}

/// Counters of a network device, from the guest's point of view.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct NetStats {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub rx_dropped: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub tx_dropped: u64,
}

/// When the phases of a boot were reached, in microseconds since the VMM's `main`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootTimes {
    /// Memory, devices and kernel are in place; the first vCPU enters the guest.
    pub built_us: Option<u64>,
    /// The kernel's first device driver was ready: the end of its early boot.
    pub drivers_us: Option<u64>,
    /// The first disk was read: the root file system is mounted next.
    pub root_us: Option<u64>,
    /// The agent connected to the host.
    pub agent_us: Option<u64>,
    /// vCPU exits until then.
    pub agent_exits: Option<u64>,
}

/// What `caisson-vmm probe` found out about this host's KVM; it prints it as one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// How guest kernel code runs.
    pub ring0: Ring0,
    /// What finding out took.
    pub took_us: u64,
}

impl Probe {
    /// What a VM on this host needs; `None` when there can be none.
    pub fn assist(&self) -> Option<AssistMode> {
        match self.ring0 {
            Ring0::Native(_) => Some(AssistMode::Off),
            Ring0::Emulated(_) => Some(AssistMode::On),
            Ring0::Unusable(_) => None,
        }
    }
}

/// How guest code at privilege level 0 runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ring0 {
    /// On the processor.
    Native(NativeRing0),
    /// In KVM's software emulator: slowly, and only with the VMM's assist.
    Emulated(EmulatedRing0),
    /// Not at all.
    Unusable(Unusable),
}

/// See [`Ring0::Native`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NativeRing0 {
    /// Of a short counted loop: an order of magnitude.
    pub instructions_per_second: u64,
}

/// See [`Ring0::Emulated`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmulatedRing0 {
    /// Of a short counted loop.
    pub instructions_per_second: u64,
    /// Instructions that the emulator refuses, of those that were tried.
    pub refused: Vec<String>,
    /// Instructions that there was no time to try.
    #[serde(default)]
    pub untried: Vec<String>,
    /// Whether SYSCALL from user mode enters the kernel.
    pub syscall: bool,
}

/// See [`Ring0::Unusable`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unusable {
    /// What is in the way.
    pub cause: String,
    /// The command or change that removes it; may be empty.
    pub fix: String,
}
