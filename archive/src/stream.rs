//! Reading the entries of a tar stream, with every length bounded before it is believed.
//!
//! The `tar` crate's own iterator is used for the block layout only: it reads long names of any length into memory and
//! splits PAX records at newlines, which corrupts binary attributes such as `security.capability` and lets two readers
//! disagree about an entry's size.
//!
//! ```text
//! [x: PAX records]* [L: long name]? [K: long link]? [header] [data, padded to 512] … [zero block] [zero block]
//! ```

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use tar::Header;

use crate::error::{Error, Result};
use crate::pax::{Special, number, unsigned};

const BLOCK_BYTES: usize = 512;
/// Go's archive/tar refuses special files above this; GNU tar and ours write far less.
const MAX_SPECIAL_BYTES: u64 = 1 << 20;
/// Segments of one sparse file.
const MAX_SEGMENTS: usize = 1 << 20;

/// What an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A file with contents.
    File,
    /// Another name for an earlier entry.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A directory.
    Directory,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
}

/// One member of an archive, all its headers folded together.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The name as written.
    pub name: Vec<u8>,
    /// The link's target as written; empty for what is no link.
    pub link: Vec<u8>,
    /// What it makes.
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner; may be out of range.
    pub uid: i64,
    /// Group; may be out of range.
    pub gid: i64,
    /// Seconds since 1970.
    pub mtime_seconds: i64,
    /// Nanoseconds within the second.
    pub mtime_nanos: u32,
    /// Length of the file, holes included.
    pub size_bytes: u64,
    /// Major number of a device.
    pub device_major: u32,
    /// Minor number of a device.
    pub device_minor: u32,
    /// Extended attributes.
    pub xattrs: Vec<(String, Vec<u8>)>,
    /// For a sparse file, where the stored bytes go: offsets and lengths, ascending.
    pub segments: Option<Vec<(u64, u64)>>,
}

impl Entry {
    /// The name, for messages.
    pub fn display_name(&self) -> PathBuf {
        PathBuf::from(OsStr::from_bytes(&self.name))
    }
}

/// A tar archive being read. Its [`Read`] gives the stored bytes of the current entry.
pub struct Stream<R> {
    input: R,
    /// Stored bytes of the current entry that were not read.
    remaining: u64,
    /// Zero bytes after them, up to the next block.
    padding: u64,
    name: PathBuf,
}

impl<R: Read> Stream<R> {
    /// Reads an archive from its first byte.
    pub fn new(input: R) -> Self {
        Stream {
            input,
            remaining: 0,
            padding: 0,
            name: PathBuf::new(),
        }
    }

    /// The reader, standing after what was consumed.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// The next entry; skips what was not read of the last one. `None` at the end of the archive.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Truncated`], [`Error::Read`].
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut special = Special::default();
        loop {
            self.finish_entry()?;
            let Some(header) = self.read_header()? else {
                if special.any {
                    return Err(Error::Invalid("extended headers describe no entry".into()));
                }
                return Ok(None);
            };
            let old = header.as_old();
            let flag = old.linkflag[0];
            let stored = unsigned(number(&old.size)?, "size")?;
            if let b'x' | b'X' | b'g' | b'L' | b'K' = flag {
                if stored > MAX_SPECIAL_BYTES {
                    return Err(Error::Invalid(format!(
                        "an extended header of {stored} bytes"
                    )));
                }
                self.begin(stored)?;
                let mut data = Vec::with_capacity(stored as usize);
                self.read_to_end(&mut data).map_err(Error::Read)?;
                if (data.len() as u64) < stored {
                    return Err(Error::Truncated(self.name.clone()));
                }
                special.take(flag, data)?;
                continue;
            }
            return self.entry(&header, stored, special).map(Some);
        }
    }

    fn entry(&mut self, header: &Header, stored: u64, special: Special) -> Result<Entry> {
        let old = header.as_old();
        let pax = special.pax;
        let mut name = match (pax.path, special.long_name) {
            (Some(path), _) => path,
            (None, Some(long)) => long,
            (None, None) => header.path_bytes().into_owned(),
        };
        let link = match (pax.linkpath, special.long_link) {
            (Some(path), _) => path,
            (None, Some(long)) => long,
            (None, None) => header.link_name_bytes().unwrap_or_default().into_owned(),
        };
        let kind = match old.linkflag[0] {
            0 if name.ends_with(b"/") => EntryKind::Directory,
            0 | b'0' | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::CharDevice,
            b'4' => EntryKind::BlockDevice,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => {
                return Err(Error::Invalid(format!(
                    "unknown entry type {:?}",
                    other as char
                )));
            }
        };
        // Only files store data, whatever the header says: so do Go's reader and GNU tar.
        let stored = if kind == EntryKind::File {
            pax.size.unwrap_or(stored)
        } else {
            0
        };
        self.name = PathBuf::from(OsStr::from_bytes(&name));
        self.begin(stored)?;

        let mut size_bytes = stored;
        let mut segments = None;
        if old.linkflag[0] == b'S' {
            let (map, real) = self.old_gnu_sparse(header)?;
            segments = Some(map);
            size_bytes = real;
        } else if kind == EntryKind::File && pax.sparse.present() {
            if let Some(sparse_name) = pax.sparse.name {
                name = sparse_name;
            }
            size_bytes = pax
                .sparse
                .real_size
                .ok_or_else(|| Error::Invalid("a sparse file without a size".into()))?;
            segments = Some(if pax.sparse.major == 1 {
                self.sparse_map_in_data()?
            } else {
                pax.sparse.map
            });
        }
        if let Some(map) = &segments {
            check_segments(map, size_bytes, self.remaining)?;
        }

        let (device_major, device_minor) = match (header.as_ustar(), header.as_gnu()) {
            (Some(u), _) => (number(&u.dev_major)?, number(&u.dev_minor)?),
            (_, Some(g)) => (number(&g.dev_major)?, number(&g.dev_minor)?),
            _ => (0, 0),
        };
        let device =
            |n: i64| u32::try_from(n).map_err(|_| Error::Invalid(format!("device number {n}")));
        let (mtime_seconds, mtime_nanos) = match pax.mtime {
            Some(mtime) => mtime,
            None => (number(&old.mtime)?, 0),
        };
        Ok(Entry {
            name,
            link,
            kind,
            mode: (number(&old.mode)? & 0o7777) as u32,
            uid: pax.uid.map_or_else(|| number(&old.uid), Ok)?,
            gid: pax.gid.map_or_else(|| number(&old.gid), Ok)?,
            mtime_seconds,
            mtime_nanos,
            size_bytes,
            device_major: device(device_major)?,
            device_minor: device(device_minor)?,
            xattrs: pax.xattrs,
            segments,
        })
    }

    fn begin(&mut self, stored: u64) -> Result<()> {
        if stored > i64::MAX as u64 {
            return Err(Error::Invalid(format!("an entry of {stored} bytes")));
        }
        self.remaining = stored;
        self.padding = (BLOCK_BYTES as u64 - stored % BLOCK_BYTES as u64) % BLOCK_BYTES as u64;
        Ok(())
    }

    fn finish_entry(&mut self) -> Result<()> {
        let mut left = self.remaining + self.padding;
        self.remaining = 0;
        self.padding = 0;
        let mut sink = [0_u8; 16 * 1024];
        while left > 0 {
            let want = left.min(sink.len() as u64) as usize;
            match self.input.read(&mut sink[..want]) {
                Ok(0) => return Err(Error::Truncated(self.name.clone())),
                Ok(n) => left -= n as u64,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::Read(e)),
            }
        }
        Ok(())
    }

    /// One block; `None` when the stream ends before its first byte.
    fn read_block(&mut self) -> Result<Option<[u8; BLOCK_BYTES]>> {
        let mut block = [0_u8; BLOCK_BYTES];
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(Error::Truncated(self.name.clone())),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::Read(e)),
            }
        }
        Ok(Some(block))
    }

    fn read_header(&mut self) -> Result<Option<Header>> {
        let Some(block) = self.read_block()? else {
            return Ok(None);
        };
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: i64 = block
            .iter()
            .enumerate()
            .map(|(i, b)| {
                if (148..156).contains(&i) {
                    32
                } else {
                    i64::from(*b)
                }
            })
            .sum();
        // Old implementations summed signed bytes.
        let signed: i64 = block
            .iter()
            .enumerate()
            .map(|(i, b)| {
                if (148..156).contains(&i) {
                    32
                } else {
                    i64::from(*b as i8)
                }
            })
            .sum();
        let written = number(&header.as_old().cksum)?;
        if written != sum && written != signed {
            return Err(Error::Invalid("a header's checksum is wrong".into()));
        }
        Ok(Some(header))
    }

    /// The map of GNU tar's old sparse format: four segments in the header, 21 in each block that follows.
    fn old_gnu_sparse(&mut self, header: &Header) -> Result<(Vec<(u64, u64)>, u64)> {
        let gnu = header
            .as_gnu()
            .ok_or_else(|| Error::Invalid("a sparse entry without a GNU header".into()))?;
        let real = unsigned(number(&gnu.realsize)?, "real size")?;
        let mut map = Vec::new();
        let mut extended = gnu.isextended[0] != 0;
        for s in &gnu.sparse {
            push_segment(&mut map, number(&s.offset)?, number(&s.numbytes)?)?;
        }
        while extended {
            let block = self
                .read_block()?
                .ok_or_else(|| Error::Truncated(self.name.clone()))?;
            for pair in block[..504].chunks_exact(24) {
                push_segment(&mut map, number(&pair[..12])?, number(&pair[12..])?)?;
            }
            extended = block[504] != 0;
        }
        Ok((map, real))
    }

    /// The map of PAX sparse format 1.0: decimal lines before the data, padded to a block.
    fn sparse_map_in_data(&mut self) -> Result<Vec<(u64, u64)>> {
        let mut numbers = Vec::new();
        let mut expected = None;
        let mut current: Option<u64> = None;
        loop {
            let mut block = [0_u8; BLOCK_BYTES];
            if self.remaining < BLOCK_BYTES as u64 {
                return Err(Error::Invalid(
                    "a sparse map is longer than its entry".into(),
                ));
            }
            self.read_exact(&mut block)
                .map_err(|_| Error::Truncated(self.name.clone()))?;
            for byte in block {
                match byte {
                    b'0'..=b'9' => {
                        let next = current
                            .unwrap_or(0)
                            .checked_mul(10)
                            .and_then(|n| n.checked_add(u64::from(byte - b'0')));
                        current =
                            Some(next.ok_or_else(|| {
                                Error::Invalid("a number in a sparse map".into())
                            })?);
                    }
                    b'\n' => {
                        let n = current.take().ok_or_else(|| {
                            Error::Invalid("an empty line in a sparse map".into())
                        })?;
                        match expected {
                            None if n as usize > MAX_SEGMENTS => {
                                return Err(Error::Invalid(
                                    "a sparse map of too many segments".into(),
                                ));
                            }
                            None => expected = Some(n as usize * 2),
                            Some(_) => numbers.push(n),
                        }
                        if expected == Some(numbers.len()) {
                            return Ok(numbers.chunks_exact(2).map(|p| (p[0], p[1])).collect());
                        }
                    }
                    _ => {
                        return Err(Error::Invalid(
                            "a sparse map holds something other than numbers".into(),
                        ));
                    }
                }
            }
        }
    }
}

impl<R: Read> Read for Stream<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = (buf.len() as u64).min(self.remaining) as usize;
        if want == 0 {
            return Ok(0);
        }
        let n = self.input.read(&mut buf[..want])?;
        if n == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive ends in the middle of an entry",
            ));
        }
        self.remaining -= n as u64;
        Ok(n)
    }
}

fn push_segment(map: &mut Vec<(u64, u64)>, offset: i64, len: i64) -> Result<()> {
    let segment = (unsigned(offset, "offset")?, unsigned(len, "length")?);
    if map.len() >= MAX_SEGMENTS {
        return Err(Error::Invalid("a sparse map of too many segments".into()));
    }
    // Unused slots are zero; the last used one may be (size, 0).
    if segment != (0, 0) {
        map.push(segment);
    }
    Ok(())
}

fn check_segments(map: &[(u64, u64)], size: u64, stored: u64) -> Result<()> {
    let bad = || Error::Invalid("a sparse map does not fit its file".into());
    let mut end = 0_u64;
    let mut sum = 0_u64;
    for (offset, len) in map {
        if *offset < end {
            return Err(bad());
        }
        end = offset.checked_add(*len).ok_or_else(bad)?;
        sum += len;
    }
    if end > size || sum != stored || size > i64::MAX as u64 {
        return Err(bad());
    }
    Ok(())
}
