//! Flags of `caisson daemon`: dockerd's names and meanings, plus those of isolation. Nothing is decided here; see `settings`.

use std::path::PathBuf;

use clap::{ArgAction, Parser};

/// Serve the Docker Engine API.
#[derive(Clone, Debug, Default, Parser)]
#[command(
    name = "caisson daemon",
    bin_name = "caisson daemon",
    about = "Run the engine and serve the Docker Engine API",
    version,
    max_term_width = 120
)]
pub struct Flags {
    /// Listen here: unix://PATH, tcp://ADDRESS[:PORT] or fd:// (systemd); may be repeated
    #[arg(short = 'H', long = "host", value_name = "HOST")]
    pub hosts: Vec<String>,
    /// Group that may use the unix sockets
    #[arg(short = 'G', long, value_name = "GROUP")]
    pub group: Option<String>,
    /// Where images, containers and records are kept
    #[arg(long, value_name = "DIR")]
    pub data_root: Option<PathBuf>,
    /// Where the state of running containers is kept
    #[arg(long, value_name = "DIR")]
    pub exec_root: Option<PathBuf>,
    /// Where the daemon's process id is written
    #[arg(short = 'p', long, value_name = "FILE")]
    pub pidfile: Option<PathBuf>,
    /// Read further settings from this file
    #[arg(long, value_name = "FILE")]
    pub config_file: Option<PathBuf>,
    /// Log more
    #[arg(short = 'D', long)]
    pub debug: bool,
    /// debug, info, warn, error or fatal
    #[arg(short = 'l', long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// text or json
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Use TLS on TCP sockets; implied by --tlsverify
    #[arg(long)]
    pub tls: bool,
    /// Use TLS and ask clients for a certificate
    #[arg(long)]
    pub tlsverify: bool,
    /// Trust certificates signed by this authority
    #[arg(long, value_name = "FILE")]
    pub tlscacert: Option<PathBuf>,
    /// The daemon's certificate
    #[arg(long, value_name = "FILE")]
    pub tlscert: Option<PathBuf>,
    /// The daemon's key
    #[arg(long, value_name = "FILE")]
    pub tlskey: Option<PathBuf>,
    /// Let anyone who reaches a TCP socket be root on this host
    #[arg(long)]
    pub insecure_tcp_without_client_certificates: bool,
    /// Isolation of containers that ask for none: container or vm
    #[arg(long, value_name = "ISOLATION")]
    pub default_isolation: Option<String>,
    /// Refuse containers of any other isolation
    #[arg(long, value_name = "ISOLATION")]
    pub require_isolation: Option<String>,
    /// Map container ids to this user's subordinate ids: default, USER, USER:GROUP, UID or UID:GID
    #[arg(long, value_name = "USER")]
    pub userns_remap: Option<String>,
    /// Ulimit of containers that do not set it: NAME=SOFT[:HARD]; may be repeated
    #[arg(long = "default-ulimit", value_name = "ULIMIT")]
    pub default_ulimits: Vec<String>,
    /// Size of /dev/shm in containers that do not set it
    #[arg(long, value_name = "BYTES")]
    pub default_shm_size: Option<String>,
    /// Size of a microVM's own disk when its container does not set it (--storage-opt size=)
    #[arg(long, value_name = "BYTES")]
    pub default_disk_size: Option<String>,
    /// Memory of microVMs whose containers have no larger limit (default 512m; 256m where KVM emulates ring 0)
    #[arg(long, value_name = "BYTES")]
    pub vm_memory: Option<String>,
    /// Log driver of containers that do not set it: json-file, local or none
    #[arg(long, value_name = "DRIVER")]
    pub log_driver: Option<String>,
    /// Option of the log driver, KEY=VALUE; may be repeated
    #[arg(long = "log-opt", value_name = "OPTION")]
    pub log_opts: Vec<String>,
    /// Speak plain HTTP or unverified HTTPS with this registry; may be repeated
    #[arg(long = "insecure-registry", value_name = "REGISTRY")]
    pub insecure_registries: Vec<String>,
    /// Ask this mirror before Docker Hub; may be repeated
    #[arg(long = "registry-mirror", value_name = "URL")]
    pub registry_mirrors: Vec<String>,
    /// Storage driver: overlay2 is the only one
    #[arg(short = 's', long, value_name = "DRIVER")]
    pub storage_driver: Option<String>,
    /// Runtime of containers that do not set it: caisson is the only one
    #[arg(long, value_name = "RUNTIME")]
    pub default_runtime: Option<String>,
    /// Parent cgroup of all containers
    #[arg(long, value_name = "CGROUP")]
    pub cgroup_parent: Option<String>,
    /// Run an init in every container
    #[arg(long)]
    pub init: bool,
    /// Keep containers running when the daemon ends (the default)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true, action = ArgAction::Set)]
    pub live_restore: Option<bool>,
    /// Seconds that containers get to stop when the daemon ends without --live-restore
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub shutdown_timeout: Option<i64>,
    /// Check the settings and exit
    #[arg(long)]
    pub validate: bool,
}
