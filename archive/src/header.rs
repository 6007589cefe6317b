//! Writing one entry's headers: ustar, with PAX records for what does not fit.

use std::io::Write;

use tar::{EntryType, Header};

use crate::error::{Error, Result};
use crate::stream::EntryKind;
use crate::xattr::{self, Xattr};

/// What a header is written from.
pub(crate) struct Fields<'a> {
    pub name: &'a [u8],
    pub link: &'a [u8],
    pub kind: EntryKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime_seconds: i64,
    pub size_bytes: u64,
    pub device_major: u32,
    pub device_minor: u32,
    pub xattrs: &'a [Xattr],
}

/// Largest value of an eight-byte octal field.
const MAX_OCTAL_7: u64 = 0o7_777_777;
/// Largest value of a twelve-byte octal field.
const MAX_OCTAL_11: u64 = 0o77_777_777_777;

/// Writes the headers of an entry; its data follows, padded by [`pad`].
pub(crate) fn write(out: &mut impl Write, fields: &Fields<'_>) -> Result<()> {
    let mut records = Vec::new();
    let mut header = Header::new_ustar();
    let kind = match fields.kind {
        EntryKind::File => EntryType::Regular,
        EntryKind::HardLink => EntryType::Link,
        EntryKind::Symlink => EntryType::Symlink,
        EntryKind::Directory => EntryType::Directory,
        EntryKind::CharDevice => EntryType::Char,
        EntryKind::BlockDevice => EntryType::Block,
        EntryKind::Fifo => EntryType::Fifo,
    };
    header.set_entry_type(kind);
    header.set_mode(fields.mode & 0o7777);
    if !set_name(&mut header, fields.name) {
        record(&mut records, b"path", fields.name);
        let cut = fields.name.len().min(100);
        header.as_old_mut().name[..cut].copy_from_slice(&fields.name[..cut]);
    }
    if fields.link.len() <= 100 && fields.link.is_ascii() {
        header.as_old_mut().linkname[..fields.link.len()].copy_from_slice(fields.link);
    } else {
        record(&mut records, b"linkpath", fields.link);
    }
    for (key, id, is_uid) in [("uid", fields.uid, true), ("gid", fields.gid, false)] {
        let fits = u64::from(id) <= MAX_OCTAL_7;
        if !fits {
            record(&mut records, key.as_bytes(), id.to_string().as_bytes());
        }
        let written = if fits { u64::from(id) } else { 0 };
        if is_uid {
            header.set_uid(written)
        } else {
            header.set_gid(written)
        }
    }
    match u64::try_from(fields.mtime_seconds) {
        Ok(mtime) if mtime <= MAX_OCTAL_11 => header.set_mtime(mtime),
        _ => {
            record(
                &mut records,
                b"mtime",
                fields.mtime_seconds.to_string().as_bytes(),
            );
            header.set_mtime(0);
        }
    }
    if fields.size_bytes <= MAX_OCTAL_11 {
        header.set_size(fields.size_bytes);
    } else {
        record(
            &mut records,
            b"size",
            fields.size_bytes.to_string().as_bytes(),
        );
        header.set_size(0);
    }
    if matches!(fields.kind, EntryKind::CharDevice | EntryKind::BlockDevice) {
        for (n, major) in [(fields.device_major, true), (fields.device_minor, false)] {
            if u64::from(n) > MAX_OCTAL_7 {
                return Err(Error::Unsupported {
                    path: String::from_utf8_lossy(fields.name).into_owned().into(),
                    reason: "its device number does not fit in a tar header",
                });
            }
            let set = if major {
                header.set_device_major(n)
            } else {
                header.set_device_minor(n)
            };
            set.map_err(Error::Write)?;
        }
    }
    for (name, value) in fields.xattrs {
        record(
            &mut records,
            format!("{}{name}", xattr::PAX_PREFIX).as_bytes(),
            value,
        );
    }
    header.set_cksum();
    if !records.is_empty() {
        let mut extended = Header::new_ustar();
        extended.set_entry_type(EntryType::XHeader);
        extended.set_mode(0o644);
        extended.set_uid(0);
        extended.set_gid(0);
        extended.set_mtime(0);
        let name = b"PaxHeaders.0";
        extended.as_old_mut().name[..name.len()].copy_from_slice(name);
        extended.set_size(records.len() as u64);
        extended.set_cksum();
        out.write_all(extended.as_bytes()).map_err(Error::Write)?;
        out.write_all(&records).map_err(Error::Write)?;
        pad(out, records.len() as u64)?;
    }
    out.write_all(header.as_bytes()).map_err(Error::Write)
}

/// Fills up to the next block after `written` bytes of data.
pub(crate) fn pad(out: &mut impl Write, written: u64) -> Result<()> {
    let missing = (512 - written % 512) % 512;
    out.write_all(&[0_u8; 512][..missing as usize])
        .map_err(Error::Write)
}

/// Two zero blocks.
pub(crate) fn finish(out: &mut impl Write) -> Result<()> {
    out.write_all(&[0_u8; 1024]).map_err(Error::Write)
}

/// Puts the name into the header's `name` and `prefix`; `false` when it takes a PAX record.
fn set_name(header: &mut Header, name: &[u8]) -> bool {
    if !name.is_ascii() {
        return false;
    }
    let ustar = header.as_ustar_mut().expect("the header was made as ustar");
    if name.len() <= 100 {
        ustar.name[..name.len()].copy_from_slice(name);
        return true;
    }
    // The split must be at a slash that is neither first nor last.
    let last = name.len() - 1;
    let split = (name.len().saturating_sub(101)..last.min(156))
        .rev()
        .find(|i| *i > 0 && name[*i] == b'/');
    let Some(split) = split else { return false };
    ustar.prefix[..split].copy_from_slice(&name[..split]);
    ustar.name[..name.len() - split - 1].copy_from_slice(&name[split + 1..]);
    true
}

fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    records.extend_from_slice(format!("{len} ").as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}
