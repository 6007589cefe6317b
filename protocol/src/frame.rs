//! Frames: a length, then JSON. Layout in the crate's documentation.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::fed::Fed;
use crate::{MAX_MESSAGE_BYTES, ProtocolError};

/// Bytes before a frame's content.
pub const FRAME_HEADER_BYTES: usize = 4;

/// A message as a frame, header included. Fails when it is too long to be sent.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, ProtocolError> {
    let mut bytes = vec![0; FRAME_HEADER_BYTES];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - FRAME_HEADER_BYTES;
    if length > MAX_MESSAGE_BYTES {
        return Err(ProtocolError::MessageLength(length as u64));
    }
    bytes[..FRAME_HEADER_BYTES].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(bytes)
}

/// The content length that a header announces, checked against the cap.
pub fn parse_frame_header(header: [u8; FRAME_HEADER_BYTES]) -> Result<usize, ProtocolError> {
    let length = u32::from_le_bytes(header) as usize;
    if length == 0 || length > MAX_MESSAGE_BYTES {
        return Err(ProtocolError::MessageLength(length as u64));
    }
    Ok(length)
}

/// A message from a frame's content.
pub fn decode<T: DeserializeOwned>(content: &[u8]) -> Result<T, ProtocolError> {
    Ok(serde_json::from_slice(content)?)
}

/// Cuts a byte stream into frames. Holds at most one frame beyond what was fed last.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    fed: Fed,
}

impl FrameDecoder {
    /// Adds bytes as they arrived.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.fed.feed(bytes);
    }

    /// The next complete frame's content, `None` when more bytes are needed.
    pub fn next_frame(&mut self) -> Result<Option<Vec<u8>>, ProtocolError> {
        let Some(header) = self.fed.first() else {
            return Ok(None);
        };
        let length = parse_frame_header(header)?;
        Ok(self.fed.take(FRAME_HEADER_BYTES, length))
    }

    /// What has been fed and not been taken: the beginning of whatever follows the frames.
    pub fn into_rest(mut self) -> Vec<u8> {
        self.fed.take_all()
    }

    /// Takes what has been fed and not been taken, leaving the decoder empty.
    pub fn take_rest(&mut self) -> Vec<u8> {
        self.fed.take_all()
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

    #[test]
    fn frames_survive_any_cutting() {
        let frames: Vec<Vec<u8>> = (1..4usize)
            .map(|n| encode(&vec!["x"; n]).expect("short"))
            .collect();
        let bytes: Vec<u8> = frames.concat();
        for step in 1..bytes.len() {
            let mut decoder = FrameDecoder::default();
            let mut seen: Vec<Vec<String>> = Vec::new();
            for piece in bytes.chunks(step) {
                decoder.feed(piece);
                while let Some(content) = decoder.next_frame().expect("well-formed") {
                    seen.push(decode(&content).expect("well-formed"));
                }
            }
            assert_eq!(
                seen,
                (1..4usize)
                    .map(|n| vec!["x".to_string(); n])
                    .collect::<Vec<_>>()
            );
            assert!(decoder.into_rest().is_empty());
        }
    }

    #[test]
    fn a_length_beyond_the_cap_is_refused_before_anything_arrives() {
        let mut decoder = FrameDecoder::default();
        decoder.feed(&u32::MAX.to_le_bytes());
        assert!(matches!(
            decoder.next_frame(),
            Err(ProtocolError::MessageLength(_))
        ));
        assert!(parse_frame_header([0; 4]).is_err());
    }

    #[test]
    fn an_oversized_message_is_not_sent() {
        let long = "x".repeat(MAX_MESSAGE_BYTES);
        assert!(matches!(
            encode(&long),
            Err(ProtocolError::MessageLength(_))
        ));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_nor_hoard(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20)) {
            let mut decoder = FrameDecoder::default();
            let mut fed = 0;
            'outer: for piece in &pieces {
                decoder.feed(piece);
                fed += piece.len();
                loop {
                    match decoder.next_frame() {
                        Ok(Some(content)) => {
                            prop_assert!(content.len() <= MAX_MESSAGE_BYTES);
                            let _ = decode::<crate::Hello>(&content);
                            let _ = decode::<crate::RequestFrame>(&content);
                            let _ = decode::<crate::ResponseFrame>(&content);
                        }
                        Ok(None) => break,
                        Err(_) => break 'outer,
                    }
                }
                prop_assert!(decoder.fed.capacity() <= 4 * fed + 64);
            }
        }
    }
}
