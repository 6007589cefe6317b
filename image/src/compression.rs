//! How layers and archives are compressed, told by their first bytes, never by their names or media types.

use std::io::{self, BufReader, Read};

use crate::error::{Error, Result};

/// How some bytes are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Plain,
    /// gzip, possibly of several members.
    Gzip,
    /// Zstandard, possibly of several frames.
    Zstd,
}

const BUFFER_BYTES: usize = 256 * 1024;
const MAGIC_BYTES: usize = 6;

/// What these first bytes begin.
///
/// # Errors
/// [`Error::InvalidImage`] for compressions that exist and are not supported.
pub(crate) fn detect(first: &[u8]) -> Result<Compression> {
    let unsupported = |name: &str| {
        Err(Error::InvalidImage(format!(
            "{name} compression is not supported: recompress it with gzip or zstd"
        )))
    };
    match first {
        [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Compression::Zstd),
        // A skippable frame, as zstd:chunked and seekable archives may begin with.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Compression::Zstd),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => unsupported("xz"),
        [b'B', b'Z', b'h', ..] => unsupported("bzip2"),
        _ => Ok(Compression::Plain),
    }
}

/// Reads `input` decompressed, whatever it is compressed with.
///
/// # Errors
/// [`Error::Stream`] when its first bytes cannot be read, [`Error::InvalidImage`] as [`detect`].
pub(crate) fn decompressed<'a>(
    mut input: impl Read + Send + 'a,
) -> Result<(Compression, Box<dyn Read + Send + 'a>)> {
    // A pipe may give the first bytes one at a time.
    let mut first = Vec::with_capacity(MAGIC_BYTES);
    input
        .by_ref()
        .take(MAGIC_BYTES as u64)
        .read_to_end(&mut first)
        .map_err(Error::Stream)?;
    let compression = detect(&first)?;
    let input = BufReader::with_capacity(BUFFER_BYTES, io::Cursor::new(first).chain(input));
    let reader: Box<dyn Read + Send + 'a> = match compression {
        Compression::Plain => Box::new(input),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(input).map_err(Error::Stream)?),
    };
    Ok((compression, reader))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;

    /// Gives one byte at a time, as a slow pipe may.
    struct Drip<'a>(&'a [u8]);
    impl Read for Drip<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let n = self.0.len().min(buf.len()).min(1);
            buf[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(data).unwrap();
        out.finish().unwrap()
    }

    #[test]
    fn each_compression_is_told_by_its_bytes() {
        let zstd = zstd::encode_all(&b"hello"[..], 1).unwrap();
        for (bytes, expected) in [
            (b"hello".to_vec(), Compression::Plain),
            (gzip(b"hello"), Compression::Gzip),
            (zstd, Compression::Zstd),
            ([gzip(b"he"), gzip(b"llo")].concat(), Compression::Gzip),
        ] {
            let (found, mut reader) = decompressed(Drip(&bytes)).unwrap();
            let mut out = Vec::new();
            reader.read_to_end(&mut out).unwrap();
            assert_eq!((found, &out[..]), (expected, &b"hello"[..]));
        }
        assert!(decompressed(&b"BZh91AY"[..]).is_err());
        let (found, _) = decompressed(&b""[..]).unwrap();
        assert_eq!(found, Compression::Plain);
    }
}
