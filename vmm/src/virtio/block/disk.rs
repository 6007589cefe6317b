//! The file behind a disk: its size, and reads and writes that stay inside it.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use vm_memory::VolatileSlice;

use super::sys::{self, Direction};
use crate::error::{Error, Result};

/// Bytes of a sector (virtio 1.2, section 5.2: always).
pub const SECTOR: u64 = 512;
/// What is written at a time where the file system cannot make zeroes.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// An open file or block device.
#[derive(Debug)]
pub struct Disk {
    file: File,
    sectors: u64,
    read_only: bool,
}

impl Disk {
    /// Takes the size that the file has now, rounded down to sectors.
    pub fn new(mut file: File, read_only: bool) -> Result<Self> {
        // block devices have no size in their metadata
        let bytes = file
            .seek(SeekFrom::End(0))
            .map_err(Error::io("cannot find out the size of a disk"))?;
        Ok(Disk {
            file,
            sectors: bytes / SECTOR,
            read_only,
        })
    }

    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// The position of `bytes` bytes from `sector` on; fails when they are not all on the disk.
    fn position(&self, sector: u64, bytes: u64) -> io::Result<i64> {
        let beyond = || io::Error::other("sectors beyond the end of the disk");
        let end = sector
            .checked_add(bytes.div_ceil(SECTOR))
            .ok_or_else(beyond)?;
        if end > self.sectors {
            return Err(beyond());
        }
        // below the end of a file, whose size is an i64
        i64::try_from(sector * SECTOR).map_err(|_| beyond())
    }

    fn check_writable(&self) -> io::Result<()> {
        match self.read_only {
            true => Err(io::Error::other("the disk is read-only")),
            false => Ok(()),
        }
    }

    /// Fills `slices` from `sector` on.
    pub fn read(&self, slices: Vec<VolatileSlice>, sector: u64) -> io::Result<()> {
        self.transfer(Direction::Read, slices, sector)
    }

    /// Stores `slices` from `sector` on.
    pub fn write(&self, slices: Vec<VolatileSlice>, sector: u64) -> io::Result<()> {
        self.check_writable()?;
        self.transfer(Direction::Write, slices, sector)
    }

    fn transfer(
        &self,
        direction: Direction,
        mut slices: Vec<VolatileSlice>,
        sector: u64,
    ) -> io::Result<()> {
        let bytes: usize = slices.iter().map(VolatileSlice::len).sum();
        let mut offset = self.position(sector, bytes as u64)?;
        let mut rest = slices.as_mut_slice();
        while !rest.is_empty() {
            let mut done = match sys::transfer(&self.file, direction, rest, offset) {
                // somebody has cut the file
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(done) => done,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            offset += done as i64;
            while let Some(first) = rest.first_mut() {
                if done < first.len() {
                    *first = first.offset(done).map_err(io::Error::other)?;
                    break;
                }
                done -= first.len();
                rest = &mut rest[1..];
            }
        }
        Ok(())
    }

    /// What was written is on the medium.
    pub fn flush(&self) -> io::Result<()> {
        match self.read_only {
            true => Ok(()),
            false => self.file.sync_data(),
        }
    }

    /// The sectors are not needed any more. A hint: where there are no holes, nothing happens.
    pub fn discard(&self, sector: u64, sectors: u32) -> io::Result<()> {
        match self.punch(sector, sectors) {
            Err(e) if is_unsupported(&e) => Ok(()),
            done => done,
        }
    }

    /// The sectors read as zeroes from now on; their space may be given up if `unmap`.
    pub fn write_zeroes(&self, sector: u64, sectors: u32, unmap: bool) -> io::Result<()> {
        let len = u64::from(sectors) * SECTOR;
        let made = if unmap {
            self.punch(sector, sectors)
        } else {
            let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
            self.allocate(mode, sector, len)
        };
        match made {
            Err(e) if is_unsupported(&e) => {}
            made => return made,
        }
        let mut at = self.position(sector, len)? as u64;
        let end = at + len;
        while at < end {
            let count = (end - at).min(ZEROES.len() as u64);
            self.file.write_all_at(&ZEROES[..count as usize], at)?;
            at += count;
        }
        Ok(())
    }

    fn punch(&self, sector: u64, sectors: u32) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        self.allocate(mode, sector, u64::from(sectors) * SECTOR)
    }

    fn allocate(&self, mode: libc::c_int, sector: u64, len: u64) -> io::Result<()> {
        self.check_writable()?;
        let offset = self.position(sector, len)?;
        if len == 0 {
            return Ok(());
        }
        // at most 2^32 sectors
        sys::allocate(&self.file, mode, offset, len as i64)
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS))
}
