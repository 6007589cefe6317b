//! The default image that the binary carries, so that the first command works without a registry.
//!
//! `build.rs` makes the archive. Must not know how images are stored: the daemon loads it, once in the life of a data
//! root, so that a removed default image stays removed.

/// The name the image is loaded under.
pub const REFERENCE: &str = "caisson/toolbox:latest";

/// A docker-archive for `image::Store::load`.
pub static ARCHIVE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/toolbox.tar"));
