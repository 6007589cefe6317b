//! The JSON that crosses the Docker Engine API (versions 1.24 to 1.47), one file per object. Knows nothing of how anything is
//! done. The meaning of each field is that of the public Engine API reference, which is why fields carry no comment of
//! their own here unless we differ.
//!
//! Conventions
//! - What a client sends may lack any field, hold fields unknown to us and hold `null` for anything: read it with [`from_json`].
//! - What we send has every field that Docker always sends. A Go slice or map that Docker prints as `null` when it was never
//!   set is an `Option` here, so that `null`, `[]` and absence survive a round trip as they do in Docker.
#![allow(missing_docs)]

mod auth;
mod build;
mod config;
mod container;
mod event;
mod exec;
mod filters;
mod host_config;
mod image;
mod json;
mod network;
mod progress;
mod stats;
mod system;
mod timestamp;
mod volume;

pub use auth::*;
pub use build::*;
pub use config::*;
pub use container::*;
pub use event::*;
pub use exec::*;
pub use filters::*;
pub use host_config::*;
pub use image::*;
pub use json::{ErrorBody, from_json, from_value};
pub use network::*;
pub use progress::*;
pub use stats::*;
pub use system::*;
pub use timestamp::Timestamp;
pub use volume::*;

/// The newest API version spoken.
pub const API_VERSION: &str = "1.47";
/// The oldest API version spoken.
pub const MIN_API_VERSION: &str = "1.24";
