//! FUSE messages, as far as a device between a driver and a server has to know them (linux/fuse.h).
//!
//! ```text
//! request  len u32 │ opcode u32 │ unique u64 │ nodeid u64 │ uid u32 │ gid u32 │ pid u32 │ padding u32 │ …
//! answer   len u32 │ error i32  │ unique u64 │ …
//! ```
//!
//! `unique` is replaced on its way to the server by a number of ours, and put back on the way to the guest.

/// Bytes of `struct fuse_in_header`.
pub const REQUEST_HEADER: usize = 40;
/// Bytes of `struct fuse_out_header`.
pub const ANSWER_HEADER: usize = 16;
pub use caisson_protocol::vmm::FS_MESSAGE_BYTES_MAX as MESSAGE_MAX;

const FORGET: u32 = 2;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Passed on, answered.
    Answered,
    /// Passed on; nothing comes back.
    Unanswered,
    /// Not passed on: the server interrupts nothing. Nothing comes back.
    Ignored,
}

/// Looks at a whole request; `None` when it is not one.
pub fn kind(request: &[u8]) -> Option<Kind> {
    if request.len() < REQUEST_HEADER || word(request, 0) as usize != request.len() {
        return None;
    }
    Some(match word(request, 4) {
        FORGET | BATCH_FORGET => Kind::Unanswered,
        INTERRUPT => Kind::Ignored,
        _ => Kind::Answered,
    })
}

/// Looks at a whole answer: its `unique`; `None` when it is not one.
pub fn answers(answer: &[u8]) -> Option<u64> {
    if answer.len() < ANSWER_HEADER || word(answer, 0) as usize != answer.len() {
        return None;
    }
    Some(unique(answer))
}

/// The `unique` of a message with a whole header.
pub fn unique(message: &[u8]) -> u64 {
    u64::from(word(message, 8)) | u64::from(word(message, 12)) << 32
}

/// Replaces it.
pub fn set_unique(message: &mut [u8], unique: u64) {
    message[8..16].copy_from_slice(&unique.to_le_bytes());
}

/// An answer that says only that it went wrong.
pub fn error(errno: i32, unique: u64) -> [u8; ANSWER_HEADER] {
    let mut answer = [0; ANSWER_HEADER];
    answer[..4].copy_from_slice(&(ANSWER_HEADER as u32).to_le_bytes());
    answer[4..8].copy_from_slice(&(-errno).to_le_bytes());
    set_unique(&mut answer, unique);
    answer
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
