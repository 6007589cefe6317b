//! File systems as image files, written without mounting anything.
//!
//!
//! ```text
//! unpacked overlay layers ──layers──▶ Tree ──erofs──▶ read-only image: one block device for all guests
//! ```

mod error;
mod layers;
mod output;
mod tree;

pub mod erofs;
pub mod ext4;

pub use error::{Error, ErrorKind, Result};
pub use tree::{Attributes, Content, Kind, NodeId, Tree};
