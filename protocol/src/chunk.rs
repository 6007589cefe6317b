//! Chunks: what a connection carries once it has become a stream. Layout in the crate's documentation.

use crate::fed::Fed;
use crate::{MAX_CHUNK_BYTES, ProtocolError};

/// Bytes before a chunk's content.
pub const CHUNK_HEADER_BYTES: usize = 5;

/// What a chunk belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Towards the process, or a tar archive being written into the sandbox.
    Stdin,
    /// From the process, or a tar archive being read.
    Stdout,
    /// From the process.
    Stderr,
    /// How a transfer went: an [`Outcome`](crate::Outcome) in JSON.
    Status,
}

impl Stream {
    fn number(self) -> u8 {
        match self {
            Stream::Stdin => 0,
            Stream::Stdout => 1,
            Stream::Stderr => 2,
            Stream::Status => 3,
        }
    }
}

/// The header of a chunk of `length` bytes. `length` is at most [`MAX_CHUNK_BYTES`]; callers cut before they call.
pub fn chunk_header(stream: Stream, length: usize) -> [u8; CHUNK_HEADER_BYTES] {
    debug_assert!(
        length <= MAX_CHUNK_BYTES,
        "chunks are cut before they are sent"
    );
    let mut header = [stream.number(); CHUNK_HEADER_BYTES];
    header[1..].copy_from_slice(&(length as u32).to_le_bytes());
    header
}

/// The stream and the length that a header announces, checked against the cap.
pub fn parse_chunk_header(
    header: [u8; CHUNK_HEADER_BYTES],
) -> Result<(Stream, usize), ProtocolError> {
    let [number, length @ ..] = header;
    let stream = match number {
        0 => Stream::Stdin,
        1 => Stream::Stdout,
        2 => Stream::Stderr,
        3 => Stream::Status,
        other => return Err(ProtocolError::UnknownStream(other)),
    };
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_CHUNK_BYTES {
        return Err(ProtocolError::ChunkLength(length as u64));
    }
    Ok((stream, length))
}

/// One piece of a stream; empty when the stream has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Which stream.
    pub stream: Stream,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Cuts a byte stream into chunks.
#[derive(Debug, Default)]
pub struct ChunkDecoder {
    fed: Fed,
}

impl ChunkDecoder {
    /// Begins with bytes that arrived together with the last frame.
    pub fn with_rest(rest: Vec<u8>) -> Self {
        ChunkDecoder {
            fed: Fed::from(rest),
        }
    }

    /// Adds bytes as they arrived.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.fed.feed(bytes);
    }

    /// The next complete chunk, `None` when more bytes are needed.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>, ProtocolError> {
        let Some(header) = self.fed.first() else {
            return Ok(None);
        };
        let (stream, length) = parse_chunk_header(header)?;
        let bytes = self.fed.take(CHUNK_HEADER_BYTES, length);
        Ok(bytes.map(|bytes| Chunk { stream, bytes }))
    }

    /// Bytes held.
    pub fn buffered_bytes(&self) -> usize {
        self.fed.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(chunk: &Chunk) -> Vec<u8> {
        [
            &chunk_header(chunk.stream, chunk.bytes.len())[..],
            &chunk.bytes,
        ]
        .concat()
    }

    #[test]
    fn chunks_survive_any_cutting() {
        let chunks = [
            Chunk {
                stream: Stream::Stdin,
                bytes: b"in".to_vec(),
            },
            Chunk {
                stream: Stream::Stdout,
                bytes: b"out".to_vec(),
            },
            Chunk {
                stream: Stream::Stderr,
                bytes: Vec::new(),
            },
            Chunk {
                stream: Stream::Status,
                bytes: b"{}".to_vec(),
            },
        ];
        let bytes: Vec<u8> = chunks.iter().flat_map(encoded).collect();
        for step in 1..bytes.len() {
            let mut decoder = ChunkDecoder::default();
            let mut seen = Vec::new();
            for piece in bytes.chunks(step) {
                decoder.feed(piece);
                while let Some(chunk) = decoder.next_chunk().expect("well-formed") {
                    seen.push(chunk);
                }
            }
            assert_eq!(seen, chunks);
            assert_eq!(decoder.buffered_bytes(), 0);
        }
    }

    #[test]
    fn many_small_chunks_hold_on_to_no_more_than_their_bytes() {
        let one = Chunk {
            stream: Stream::Stdin,
            bytes: vec![7],
        };
        let fed = encoded(&one).repeat(20_000);
        let mut decoder = ChunkDecoder::default();
        decoder.feed(&fed);
        let mut chunks = Vec::new();
        while let Some(chunk) = decoder.next_chunk().expect("well-formed") {
            chunks.push(chunk);
        }
        assert_eq!(chunks.len(), 20_000);
        let held: usize = chunks.iter().map(|c| c.bytes.capacity()).sum();
        assert!(held <= fed.len(), "{held} bytes for {}", fed.len());
        assert_eq!(decoder.fed.capacity(), 0);
    }

    #[test]
    fn unknown_streams_and_lengths_beyond_the_cap_are_refused() {
        assert!(matches!(
            parse_chunk_header([4, 0, 0, 0, 0]),
            Err(ProtocolError::UnknownStream(4))
        ));
        assert!(matches!(
            parse_chunk_header([0, 255, 255, 255, 255]),
            Err(ProtocolError::ChunkLength(_))
        ));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_nor_hoard(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20)) {
            let mut decoder = ChunkDecoder::default();
            let mut fed = 0;
            'outer: for piece in &pieces {
                decoder.feed(piece);
                fed += piece.len();
                loop {
                    match decoder.next_chunk() {
                        Ok(Some(chunk)) => prop_assert!(chunk.bytes.len() <= MAX_CHUNK_BYTES),
                        Ok(None) => break,
                        Err(_) => break 'outer,
                    }
                }
                prop_assert!(decoder.fed.capacity() <= 4 * fed + 64);
            }
        }
    }
}
