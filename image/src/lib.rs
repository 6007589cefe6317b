//! Images: references, digests, the content store, layers, registries.
//!
//! Owns: everything between an image's name and the directories an overlay is stacked from. Must not know: containers,
//! HTTP servers, runtimes. Callers say which images containers use (for removal) and pass credentials in.
//!
//! ```text
//!   registry ──pull──▶ ┌──────────────── Store ─────────────────┐ ──push──▶ registry
//!   archive ───load──▶ │ blobs ─unpack─▶ layers    images, tags │ ──save──▶ archive
//!   rootfs ──import──▶ │          (store.rs draws the disk)      │
//!   upper ───commit──▶ └─────────────────────────────────────────┘ ──layer_dirs──▶ overlay
//!                                                                  ──block_form──▶ microVM
//! ```
//!
//! [`Store`]'s methods that transfer or unpack are `async` and do their blocking work on tokio's blocking threads; those
//! that only look at memory, or at most at the database, are plain functions and say so.

mod blobs;
mod block;
mod changes;
mod collect;
mod commit;
mod compression;
mod config;
mod db;
mod digest;
mod download;
mod error;
mod images;
mod layers;
mod load;
mod manifest;
mod progress;
mod prune;
mod pull;
mod push;
mod reference;
mod registry;
mod remove;
mod save;
mod source;
mod spool;
mod store;

pub use block::BlockForm;
pub use changes::{Change, ChangeKind, changes, changes_in_archive};
pub use collect::Collected;
pub use commit::{Commit, CommitSource, Import};
pub use compression::Compression;
pub use config::{Healthcheck, HistoryEntry, ImageConfig, RootFs, RunConfig};
pub use digest::Digest;
pub use error::{Error, ErrorKind, Result};
pub use images::{Image, Layer};
pub use load::Loaded;
pub use manifest::{Descriptor, ManifestPlatform, Platform};
pub use progress::{Event, Progress, silent};
pub use prune::{DiskUsage, ImageUsage, PruneFilter};
pub use pull::{Pulled, RemoteImage};
pub use push::Pushed;
pub use reference::{DEFAULT_TAG, Reference};
pub use registry::Credentials;
pub use remove::{InUse, Removal, Removed};
pub use save::Saving;
pub use store::{Limits, Options, Patience, Store};
