//! One request of a disk's driver (virtio 1.2, section 5.2.6).
//!
//! ```text
//! readable  type u32 │ reserved u32 │ sector u64 │ data of a write, segments of a discard
//! writable  data of a read, the serial number │ status u8, the chain's last byte
//! segment   sector u64 │ sectors u32 │ flags u32
//! ```

use std::io;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::GuestMemoryMmap;

use super::Counters;
use super::disk::{Disk, SECTOR};
use crate::virtio::chain::{Buffers, Chain};

/// Segments of memory that a request may have.
pub const SEGMENTS_MAX: u32 = 254;
/// Bytes that a segment may have.
pub const SEGMENT_BYTES_MAX: u32 = 128 << 10;
/// Ranges that a discard may have.
pub const DISCARD_SEGMENTS_MAX: u32 = 32;
/// Sectors that each of them may have: 2 GiB.
pub const DISCARD_SECTORS_MAX: u32 = 1 << 22;
/// Sectors that are zeroed at once: 32 MiB, where it has to be done by writing.
pub const ZERO_SECTORS_MAX: u32 = 1 << 16;
/// Bytes of the serial number.
pub const SERIAL_LEN: usize = 20;

const HEADER_LEN: usize = 16;
const SEGMENT_LEN: usize = 16;
const REQUEST_BYTES_MAX: u64 = SEGMENTS_MAX as u64 * SEGMENT_BYTES_MAX as u64;
const UNMAP: u32 = 1;

/// A request with a header and a place for its status.
#[derive(Debug)]
pub struct Request {
    kind: u32,
    sector: u64,
    readable: Buffers,
    writable: Buffers,
    status: Buffers,
    /// Of a discard or of zeroes; none when what stands there is not segments.
    segments: Vec<Segment>,
}

/// A range of a discard or of zeroes.
#[derive(Clone, Copy, Debug)]
struct Segment {
    sector: u64,
    sectors: u32,
    flags: u32,
}

/// How a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Ok,
    IoError,
    Unsupported,
}

impl From<io::Result<()>> for Status {
    fn from(result: io::Result<()>) -> Self {
        match result {
            Ok(()) => Status::Ok,
            Err(_) => Status::IoError,
        }
    }
}

impl Request {
    /// `None` when there is no header, or no byte for a status.
    pub fn parse(chain: Chain, memory: &GuestMemoryMmap) -> Option<Self> {
        let Chain {
            mut readable,
            mut writable,
            ..
        } = chain;
        let mut header = [0; HEADER_LEN];
        let read = readable.take_front(HEADER_LEN as u64)?;
        if !read.read(memory, &mut header) {
            return None;
        }
        let status = writable.take_back(1)?;
        let [kind, _, low, high] = words(header);
        // read once: what the limiter is told is what is done
        let segments = match kind {
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => segments(&readable, memory),
            _ => Vec::new(),
        };
        Some(Request {
            kind,
            sector: u64::from(high) << 32 | u64::from(low),
            readable,
            writable,
            status,
            segments,
        })
    }

    /// Bytes that it moves, for the limiter: zeroes are written where the file system knows no other way.
    pub fn bytes(&self) -> u64 {
        match self.kind {
            VIRTIO_BLK_T_IN => self.writable.len(),
            VIRTIO_BLK_T_OUT => self.readable.len(),
            VIRTIO_BLK_T_WRITE_ZEROES => {
                let asked = self.segments.iter().map(|s| s.sectors);
                let sectors = asked.map(|s| u64::from(s.min(ZERO_SECTORS_MAX)));
                sectors.sum::<u64>() * SECTOR
            }
            _ => 0,
        }
    }

    /// Does it and writes its status; says how many bytes of the chain are the guest's to read now.
    pub fn perform(
        &self,
        memory: &GuestMemoryMmap,
        disk: &Disk,
        serial: &[u8; SERIAL_LEN],
        counters: &Counters,
    ) -> u32 {
        let status = match self.kind {
            VIRTIO_BLK_T_IN => self.read(memory, disk).into(),
            VIRTIO_BLK_T_OUT => self.write(memory, disk).into(),
            VIRTIO_BLK_T_FLUSH => disk.flush().into(),
            VIRTIO_BLK_T_GET_ID => {
                self.writable.write(memory, serial);
                Status::Ok
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => self.clear(disk),
            _ => Status::Unsupported,
        };
        match (status, self.kind) {
            (Status::Ok, VIRTIO_BLK_T_IN) => counters.read(self.bytes()),
            (Status::Ok, VIRTIO_BLK_T_OUT) => counters.written(self.bytes()),
            (Status::Ok, _) => {}
            _ => counters.error(),
        }
        let code = match status {
            Status::Ok => VIRTIO_BLK_S_OK,
            Status::IoError => VIRTIO_BLK_S_IOERR,
            Status::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        self.status.write(memory, &[code as u8]);
        u32::try_from(self.writable.len() + 1).unwrap_or(u32::MAX)
    }

    fn read(&self, memory: &GuestMemoryMmap, disk: &Disk) -> io::Result<()> {
        check_length(&self.writable)?;
        let slices = self.writable.slices(memory).map_err(io::Error::other)?;
        disk.read(slices, self.sector)
    }

    fn write(&self, memory: &GuestMemoryMmap, disk: &Disk) -> io::Result<()> {
        check_length(&self.readable)?;
        let slices = self.readable.slices(memory).map_err(io::Error::other)?;
        disk.write(slices, self.sector)
    }

    /// Discards, or writes zeroes.
    fn clear(&self, disk: &Disk) -> Status {
        if self.segments.is_empty() {
            return Status::IoError;
        }
        let zeroes = self.kind == VIRTIO_BLK_T_WRITE_ZEROES;
        let (allowed_flags, sectors_max) = match zeroes {
            true => (UNMAP, ZERO_SECTORS_MAX),
            false => (0, DISCARD_SECTORS_MAX),
        };
        for segment in &self.segments {
            let Segment {
                sector,
                sectors,
                flags,
            } = *segment;
            if flags & !allowed_flags != 0 {
                return Status::Unsupported;
            }
            if sectors > sectors_max {
                return Status::IoError;
            }
            let done = match zeroes {
                true => disk.write_zeroes(sector, sectors, flags & UNMAP != 0),
                false => disk.discard(sector, sectors),
            };
            if done.is_err() {
                return Status::IoError;
            }
        }
        Status::Ok
    }
}

fn segments(readable: &Buffers, memory: &GuestMemoryMmap) -> Vec<Segment> {
    let mut bytes = [0; SEGMENT_LEN * DISCARD_SEGMENTS_MAX as usize];
    let len = readable.len();
    if !len.is_multiple_of(SEGMENT_LEN as u64) || len > bytes.len() as u64 {
        return Vec::new();
    }
    let bytes = &mut bytes[..len as usize];
    if !readable.read(memory, bytes) {
        return Vec::new();
    }
    let (segments, _) = bytes.as_chunks::<SEGMENT_LEN>();
    let segment = |bytes: &[u8; SEGMENT_LEN]| {
        let [low, high, sectors, flags] = words(*bytes);
        Segment {
            sector: u64::from(high) << 32 | u64::from(low),
            sectors,
            flags,
        }
    };
    segments.iter().map(segment).collect()
}

fn check_length(data: &Buffers) -> io::Result<()> {
    let len = data.len();
    match len.is_multiple_of(SECTOR) && len <= REQUEST_BYTES_MAX {
        true => Ok(()),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn words(bytes: [u8; 16]) -> [u32; 4] {
    let (words, _) = bytes.as_chunks::<4>();
    [0, 1, 2, 3].map(|i| u32::from_le_bytes(words[i]))
}
