//! What stands before and in headers: PAX records, GNU long names, numeric fields.

use crate::error::{Error, Result};
use crate::xattr::{self, Xattr};

/// What extended headers said about the entry to come.
#[derive(Default)]
pub(crate) struct Special {
    pub any: bool,
    pub long_name: Option<Vec<u8>>,
    pub long_link: Option<Vec<u8>>,
    pub pax: Pax,
}

impl Special {
    pub(crate) fn take(&mut self, flag: u8, mut data: Vec<u8>) -> Result<()> {
        let until_nul = |data: &mut Vec<u8>| {
            if let Some(end) = data.iter().position(|b| *b == 0) {
                data.truncate(end);
            }
        };
        match flag {
            // Global records: git writes its commit id here. As Docker does, they are not applied to entries.
            b'g' => return parse_pax(&data, |_, _| Ok(())),
            b'L' if self.long_name.is_some() => {
                return Err(Error::Invalid("two long names for one entry".into()));
            }
            b'K' if self.long_link.is_some() => {
                return Err(Error::Invalid("two long links for one entry".into()));
            }
            b'x' | b'X' if self.pax.seen => {
                return Err(Error::Invalid("two extended headers for one entry".into()));
            }
            b'L' => {
                until_nul(&mut data);
                self.long_name = Some(data);
            }
            b'K' => {
                until_nul(&mut data);
                self.long_link = Some(data);
            }
            _ => {
                self.pax.seen = true;
                parse_pax(&data, |key, value| self.pax.record(key, value))?;
            }
        }
        self.any = true;
        Ok(())
    }
}

#[derive(Default)]
pub(crate) struct Pax {
    seen: bool,
    pub path: Option<Vec<u8>>,
    pub linkpath: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<i64>,
    pub gid: Option<i64>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<Xattr>,
    pub sparse: PaxSparse,
}

#[derive(Default)]
pub(crate) struct PaxSparse {
    pub major: u32,
    seen: bool,
    pub name: Option<Vec<u8>>,
    pub real_size: Option<u64>,
    pub map: Vec<(u64, u64)>,
    /// Offset of a 0.0 segment whose length has not come yet.
    offset: Option<u64>,
}

impl PaxSparse {
    pub(crate) fn present(&self) -> bool {
        self.seen
    }
}

impl Pax {
    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        // An empty value takes a record back, says POSIX.
        match key {
            b"path" => self.path = (!value.is_empty()).then(|| value.to_vec()),
            b"linkpath" => self.linkpath = (!value.is_empty()).then(|| value.to_vec()),
            b"size" => self.size = Some(unsigned(decimal(value)?, "size")?),
            b"uid" => self.uid = Some(decimal(value)?),
            b"gid" => self.gid = Some(decimal(value)?),
            b"mtime" => self.mtime = Some(timestamp(value)?),
            b"GNU.sparse.major" => {
                self.sparse.seen = true;
                self.sparse.major = decimal(value)?.try_into().unwrap_or(u32::MAX);
                if self.sparse.major > 1 {
                    return Err(Error::Invalid("an unknown sparse format".into()));
                }
            }
            b"GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => {
                self.sparse.seen = true;
                self.sparse.real_size = Some(unsigned(decimal(value)?, "real size")?);
            }
            b"GNU.sparse.offset" => self.sparse.offset = Some(unsigned(decimal(value)?, "offset")?),
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse.offset.take();
                let offset = offset
                    .ok_or_else(|| Error::Invalid("a sparse segment without an offset".into()))?;
                self.sparse
                    .map
                    .push((offset, unsigned(decimal(value)?, "length")?));
            }
            b"GNU.sparse.map" => {
                let numbers = value
                    .split(|b| *b == b',')
                    .map(|n| unsigned(decimal(n)?, "segment"));
                let numbers = numbers.collect::<Result<Vec<u64>>>()?;
                if numbers.len() % 2 != 0 {
                    return Err(Error::Invalid("half a segment in a sparse map".into()));
                }
                self.sparse.map = numbers.chunks_exact(2).map(|p| (p[0], p[1])).collect();
            }
            key => {
                let name = std::str::from_utf8(key)
                    .ok()
                    .and_then(|k| k.strip_prefix(xattr::PAX_PREFIX));
                if let Some(name) = name {
                    self.xattrs.push((name.to_owned(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// Walks PAX records: `LENGTH KEY=VALUE\n`, the length counting itself. The value may hold any byte.
fn parse_pax(mut data: &[u8], mut record: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
    let bad = || Error::Invalid("a malformed PAX record".into());
    while !data.is_empty() {
        // Some writers pad with NUL.
        if data.iter().all(|b| *b == 0) {
            return Ok(());
        }
        let space = data
            .iter()
            .take(20)
            .position(|b| *b == b' ')
            .ok_or_else(bad)?;
        let len = std::str::from_utf8(&data[..space])
            .ok()
            .and_then(|n| n.parse::<usize>().ok())
            .ok_or_else(bad)?;
        if len <= space + 2 || len > data.len() || data[len - 1] != b'\n' {
            return Err(bad());
        }
        let pair = &data[space + 1..len - 1];
        let equals = pair.iter().position(|b| *b == b'=').ok_or_else(bad)?;
        record(&pair[..equals], &pair[equals + 1..])?;
        data = &data[len..];
    }
    Ok(())
}

/// A numeric field: octal digits between spaces and NULs, or base 256 when the top bit is set.
pub(crate) fn number(field: &[u8]) -> Result<i64> {
    let bad = || Error::Invalid("a numeric field of a header cannot be read".into());
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (i, byte) in field.iter().enumerate() {
            let byte = if i == 0 && !negative {
                byte & 0x7f
            } else {
                *byte
            };
            value = (value << 8) | i128::from(byte);
            if !(i128::from(i64::MIN)..=i128::from(i64::MAX)).contains(&value) {
                return Err(bad());
            }
        }
        return i64::try_from(value).map_err(|_| bad());
    }
    let start = field
        .iter()
        .position(|b| *b != b' ' && *b != 0)
        .unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits
        .iter()
        .position(|b| *b == b' ' || *b == 0)
        .unwrap_or(digits.len());
    digits[..end]
        .iter()
        .try_fold(0_i64, |value, byte| match byte {
            b'0'..=b'7' => Ok(value * 8 + i64::from(byte - b'0')),
            _ => Err(bad()),
        })
}

pub(crate) fn unsigned(n: i64, what: &str) -> Result<u64> {
    u64::try_from(n).map_err(|_| Error::Invalid(format!("a negative {what}")))
}

fn decimal(value: &[u8]) -> Result<i64> {
    let text = std::str::from_utf8(value).ok().map(str::trim);
    text.and_then(|t| t.parse().ok())
        .ok_or_else(|| Error::Invalid("a PAX record is not a number".into()))
}

/// `-1.25` is a quarter before minus one: seconds round down, nanoseconds count up.
fn timestamp(value: &[u8]) -> Result<(i64, u32)> {
    let bad = || Error::Invalid("a PAX record is not a time".into());
    let text = std::str::from_utf8(value).map_err(|_| bad())?.trim();
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| bad())?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanos: u32 = digits.parse().map_err(|_| bad())?;
    if whole.starts_with('-') && nanos > 0 {
        return Ok((
            seconds.checked_sub(1).ok_or_else(bad)?,
            1_000_000_000 - nanos,
        ));
    }
    Ok((seconds, nanos))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0").unwrap(), 0o644);
        assert_eq!(number(b"  644 \0\0").unwrap(), 0o644);
        assert_eq!(number(b"\0\0\0\0\0\0\0\0").unwrap(), 0);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0x20, 0, 0]).unwrap(), 0x20_0000);
        assert_eq!(number(&[0xff; 12]).unwrap(), -1);
        assert!(
            number(&[
                0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff
            ])
            .is_err()
        );
        assert!(number(b"12x4567\0").is_err());
    }

    #[test]
    fn pax_values_may_hold_newlines() {
        // 5 + key + value: lengths count themselves.
        let data = b"18 path=a\nb=c\nd\x00\xff\n13 size=1234\n";
        let mut seen = Vec::new();
        let first = format!("{} path=a\nb=c\nde\n", 17);
        assert!(
            parse_pax(first.as_bytes(), |k, v| {
                seen.push((k.to_vec(), v.to_vec()));
                Ok(())
            })
            .is_ok()
        );
        assert_eq!(seen, [(b"path".to_vec(), b"a\nb=c\nde".to_vec())]);
        assert!(parse_pax(&data[..17], |_, _| Ok(())).is_err());
        assert!(parse_pax(b"99999999999999999999 a=b\n", |_, _| Ok(())).is_err());
        assert!(parse_pax(b"3 a", |_, _| Ok(())).is_err());
    }

    #[test]
    fn times_before_1970_and_fractions() {
        assert_eq!(timestamp(b"1.5").unwrap(), (1, 500_000_000));
        assert_eq!(timestamp(b"-1.25").unwrap(), (-2, 750_000_000));
        assert_eq!(timestamp(b"7").unwrap(), (7, 0));
        assert!(timestamp(b"1.x").is_err());
    }
}
