//! The end-to-end harness: private daemons, real clients, a residue check after every case.
//!
//! A case is a function over [`Test`]. [`cases!`] lists the cases of a module; [`main`] expands each into one test per
//! isolation and per client, `module::case::container::docker`, and runs them on one shared daemon. A case that wants to
//! kill a daemon or start one with other flags asks for its own ([`Test::own_daemon`]).
//!
//! `CAISSON_TEST_VM` says which cases are repeated behind a microVM: `core`, a selection, beside the container half (the
//! rule); `all` of them and nothing else; `each` of them, the core ones and some others through
//! both clients (the lab); `off`. `CAISSON_TEST_PATIENCE` multiplies every limit of time.
//!
//! `CAISSON_TEST_TARGET=dockerd` runs the same cases against Debian's dockerd: a case that fails there is a wrong case.
//!
//! Must not know: anything inside the engine. It talks to programs, sockets and `/proc`, as a user could.

pub mod case;
pub mod client;
pub mod daemon;
pub mod fixture;
pub mod registry;
pub mod residue;
pub mod rest;
pub mod target;
pub mod terminal;
#[path = "../../caisson/image_asset/toolbox.rs"]
pub mod toolbox;

pub use case::{Case, Isolation, Test, main};
pub use client::{Background, Cli, Outcome};
pub use daemon::Daemon;
pub use target::Target;
pub use terminal::Terminal;

/// How long something may take that takes so many seconds at most on an ordinary machine.
pub fn patience(seconds: u64) -> std::time::Duration {
    static FACTOR: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    let factor = FACTOR.get_or_init(|| {
        let set = std::env::var("CAISSON_TEST_PATIENCE").ok();
        set.map_or(1, |f| f.parse().expect("CAISSON_TEST_PATIENCE is a number"))
    });
    std::time::Duration::from_secs(seconds * factor)
}

/// The image most cases use.
pub const IMAGE: &str = toolbox::REFERENCE;
