//! The messages that cross our own process boundaries: runtime ↔ shim on the host, shim ↔ agent in a guest, shim ↔ VMM
//! ([`vmm`]).
//!
//! Must not know: tokio (it does no input or output at all), OCI images, Docker. OCI documents travel as raw JSON.
//!
//! # The protocol
//!
//! One side (the *client*: `runtime`) connects over any reliable byte stream: a unix socket, a vsock. The other (the
//! *supervisor*) owns the processes of one sandbox. Everything begins in *frames*:
//!
//! ```text
//!  0        4            4+length
//!  ┌────────┬────────────────┐
//!  │ length │ JSON           │   length: u32 little-endian, 1 ..= MAX_MESSAGE_BYTES
//!  └────────┴────────────────┘
//! ```
//!
//! ```text
//!  client                                   supervisor
//!    │ Hello{generation}                        │   both say which generation they speak;
//!    │ ────────────────────────────────────────▶│   the client need not wait for the answer
//!    │                        Hello{generation} │   before its first request. A supervisor that
//!    │◀──────────────────────────────────────── │   does not speak the client's generation says
//!    │ RequestFrame{id, request}                │   its own and hangs up.
//!    │ ────────────────────────────────────────▶│
//!    │ RequestFrame{id', request'}              │   Requests may overlap; answers come in any order
//!    │ ────────────────────────────────────────▶│   and carry the id of their request. `wait` is
//!    │           ResponseFrame{id', ok|error}   │   answered when the process ends.
//!    │◀──────────────────────────────────────── │
//! ```
//!
//! Four requests ([`Request::takes_connection`]) turn the connection they arrive on, as its first request, into something
//! else: after the ordinary response frame no frame follows any more. `stat_path` ends with its response. The others go
//! on with *chunks*:
//!
//! ```text
//!  0        1        5            5+length
//!  ┌────────┬────────┬────────────────┐
//!  │ stream │ length │ bytes          │   length: u32 little-endian, 0 ..= MAX_CHUNK_BYTES; 0 ends this stream for good
//!  └────────┴────────┴────────────────┘
//!
//!  attach       client ▶ Stdin*              supervisor ▶ Stdout*, Stderr*, an empty chunk for each; then hangs up
//!  read_path    client ▶ nothing             supervisor ▶ Stdout* (tar), Status
//!  write_path   client ▶ Stdin* (tar), end   supervisor ▶ Status
//! ```
//!
//! A `Status` chunk holds an [`Outcome`] in JSON: without it the transfer was cut short. Likewise an attached stream that
//! ends without its empty chunk was cut by the supervisor's death, not by the process. An attachment that asked to be the
//! `journal` also gets a `Status` chunk with the exit status, behind all that the process wrote before its end.
//!
//! # Generations
//!
//! Shims outlive the daemon that made them, and a restored guest holds the agent it was saved with, so both sides of a
//! connection may be of different builds. Within one [`GENERATION`] only optional fields are added (unknown ones are
//! ignored); anything else takes a new generation. `schema/` holds a frozen sample of every message of the generation; a
//! test fails when one of them no longer means what it did.

mod chunk;
mod data;
mod fed;
mod frame;
mod guest;
pub mod layout;
mod message;
pub mod vmm;

pub use chunk::{
    CHUNK_HEADER_BYTES, Chunk, ChunkDecoder, Stream, chunk_header, parse_chunk_header,
};
pub use data::*;
pub use frame::{FRAME_HEADER_BYTES, FrameDecoder, decode, encode, parse_frame_header};
pub use guest::*;
pub use message::*;

/// The generation this build speaks.
pub const GENERATION: u32 = 1;

/// The process id of a sandbox's first process.
pub const INIT: &str = "init";

/// No message is longer. An OCI spec with a large seccomp profile is a tenth of this.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// No chunk carries more.
pub const MAX_CHUNK_BYTES: usize = 256 << 10;

/// Bytes that are not this protocol. The connection they came from is of no further use.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// A frame announces a length outside `1..=MAX_MESSAGE_BYTES`.
    #[error("a message of {0} bytes is announced; 1 to {MAX_MESSAGE_BYTES} are allowed")]
    MessageLength(u64),
    /// A chunk announces more than [`MAX_CHUNK_BYTES`].
    #[error("a chunk of {0} bytes is announced; at most {MAX_CHUNK_BYTES} are allowed")]
    ChunkLength(u64),
    /// A chunk belongs to no known stream.
    #[error("a chunk of the unknown stream {0}")]
    UnknownStream(u8),
    /// A frame's content is not the message that was expected.
    #[error("an unintelligible message: {0}")]
    Json(#[from] serde_json::Error),
}
