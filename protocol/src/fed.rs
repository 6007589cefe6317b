//! Bytes that have arrived and are cut into pieces.
//!
//! ```text
//! taken … │ header │ content │ … fed
//! ```
//!
//! What is taken is a copy of its own length, and what is left is moved only when more is fed: many small pieces in one feed
//! cost no more, in time or in memory that they hold on to, than their bytes. A buffer that is used up is given back.

/// A buffer with a place up to which it has been taken.
#[derive(Debug, Default)]
pub(crate) struct Fed {
    buffer: Vec<u8>,
    taken: usize,
}

impl From<Vec<u8>> for Fed {
    fn from(buffer: Vec<u8>) -> Self {
        Fed { buffer, taken: 0 }
    }
}

impl Fed {
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..std::mem::take(&mut self.taken));
        self.buffer.extend_from_slice(bytes);
    }

    /// The next `N` bytes, left where they are.
    pub(crate) fn first<const N: usize>(&self) -> Option<[u8; N]> {
        self.buffer[self.taken..].first_chunk().copied()
    }

    /// Takes the next `length` bytes behind a header, when they are all there.
    pub(crate) fn take(&mut self, header: usize, length: usize) -> Option<Vec<u8>> {
        let left = &self.buffer[self.taken..];
        let content = left.get(header..header + length)?.to_vec();
        self.taken += header + length;
        if self.taken == self.buffer.len() {
            *self = Fed::default();
        }
        Some(content)
    }

    /// Takes everything.
    pub(crate) fn take_all(&mut self) -> Vec<u8> {
        self.feed(&[]);
        std::mem::take(&mut self.buffer)
    }

    pub(crate) fn len(&self) -> usize {
        self.buffer.len() - self.taken
    }

    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.buffer.capacity()
    }
}
