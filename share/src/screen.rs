//! What is decided about a request before fuse-backend-rs sees it.
//!
//! That crate, used without its `Vfs`, offers next to nothing in answer to INIT, looks `..` up, and reserves as much memory
//! as a request for an extended attribute names.

use caisson_protocol::vmm::FS_MESSAGE_BYTES_MAX;
use fuse_backend_rs::abi::fuse_abi::Opcode;

/// Bytes of `struct fuse_in_header`.
pub const REQUEST_HEADER: usize = 40;
/// Bytes of `struct fuse_out_header`.
const ANSWER_HEADER: usize = 16;
/// XATTR_SIZE_MAX and XATTR_LIST_MAX (linux/limits.h).
const ATTRIBUTE_BYTES_MAX: u32 = 64 << 10;

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the opening of the session.
    Init(Init),
    /// fuse-backend-rs answers it.
    Pass,
    /// It fails with this error.
    Refuse(i32),
    /// It is dropped: it has no answer.
    Drop,
}

/// `struct fuse_init_in`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Init {
    pub major: u32,
    pub minor: u32,
    pub max_readahead: u32,
    pub flags: u64,
}

/// Decides. `request` is a whole packet; `None` when it is not a request at all.
pub fn screen(request: &[u8]) -> Option<Verdict> {
    if request.len() < REQUEST_HEADER
        || request.len() > FS_MESSAGE_BYTES_MAX
        || word(request, 0) as usize != request.len()
    {
        return None;
    }
    let body = &request[REQUEST_HEADER..];
    let is = |opcode: Opcode| word(request, 4) == opcode as u32;
    let name = || body.split(|byte| *byte == 0).next().unwrap_or_default();
    Some(if is(Opcode::Init) {
        init(body).map_or(Verdict::Refuse(libc::EINVAL), Verdict::Init)
    } else if is(Opcode::Lookup) && (matches!(name(), b"" | b"." | b"..") || name().contains(&b'/'))
    {
        Verdict::Refuse(libc::EINVAL)
    } else if is(Opcode::Getxattr) || is(Opcode::Listxattr) {
        match body.len() {
            8.. if word(body, 0) <= ATTRIBUTE_BYTES_MAX => Verdict::Pass,
            _ => Verdict::Refuse(libc::EINVAL),
        }
    } else if is(Opcode::Interrupt) || is(Opcode::NotifyReply) {
        Verdict::Drop
    } else if is(Opcode::Ioctl) || is(Opcode::Poll) || is(Opcode::Bmap) {
        Verdict::Refuse(libc::ENOSYS)
    } else if is(Opcode::Getlk) || is(Opcode::Setlk) || is(Opcode::Setlkw) {
        // locks are the guest's own: INIT has not offered others
        Verdict::Refuse(libc::ENOSYS)
    } else {
        Verdict::Pass
    })
}

/// Whether the request has no answer, not even that it failed.
pub fn is_unanswered(request: &[u8]) -> bool {
    let opcode = word(request, 4);
    opcode == Opcode::Forget as u32 || opcode == Opcode::BatchForget as u32
}

/// The `unique` of a request.
pub fn unique(request: &[u8]) -> u64 {
    u64::from(word(request, 8)) | u64::from(word(request, 12)) << 32
}

/// A whole answer: the header, then `body`.
pub fn answer(errno: i32, unique: u64, body: &[u8]) -> Vec<u8> {
    let mut answer = ((ANSWER_HEADER + body.len()) as u32).to_le_bytes().to_vec();
    answer.extend((-errno).to_le_bytes());
    answer.extend(unique.to_le_bytes());
    answer.extend(body);
    answer
}

fn init(body: &[u8]) -> Option<Init> {
    const EXTENDED: u64 = 1 << 30;
    if body.len() < 16 {
        return None;
    }
    let mut flags = u64::from(word(body, 12));
    if flags & EXTENDED != 0 && body.len() >= 20 {
        flags |= u64::from(word(body, 16)) << 32;
    }
    Some(Init {
        major: word(body, 0),
        minor: word(body, 4),
        max_readahead: word(body, 8),
        flags,
    })
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: Opcode, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((40 + body.len()) as u32).to_le_bytes().to_vec();
        bytes.extend((opcode as u32).to_le_bytes());
        bytes.extend([0; 32]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        for name in [
            &b"..\0"[..],
            b".\0",
            b"\0",
            b"",
            b"a/b\0",
            b"/etc\0",
            b"..\0more",
            b"../x\0",
        ] {
            let verdict = screen(&request(Opcode::Lookup, name));
            assert_eq!(verdict, Some(Verdict::Refuse(libc::EINVAL)), "{name:?}");
        }
        for name in [&b"...\0"[..], b"..a\0", b".hidden\0", b"a\0"] {
            assert_eq!(screen(&request(Opcode::Lookup, name)), Some(Verdict::Pass));
        }
    }

    #[test]
    fn lengths_that_lie_and_sizes_without_bounds_are_refused() {
        let mut lies = request(Opcode::Getattr, &[0; 16]);
        lies[0] += 1;
        assert_eq!(screen(&lies), None);
        assert_eq!(screen(&lies[..39]), None);
        assert_eq!(screen(&[]), None);
        let huge = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, b'a', 0];
        for opcode in [Opcode::Getxattr, Opcode::Listxattr] {
            let verdict = screen(&request(opcode, &huge));
            assert_eq!(verdict, Some(Verdict::Refuse(libc::EINVAL)));
            let short = screen(&request(opcode, &huge[..7]));
            assert_eq!(short, Some(Verdict::Refuse(libc::EINVAL)));
        }
        assert_eq!(
            screen(&request(Opcode::Init, &[0; 15])),
            Some(Verdict::Refuse(libc::EINVAL))
        );
    }
}
