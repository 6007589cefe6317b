//! An input as a sequence of numbers and bytes. Where it ends, zeroes follow.

/// What is left of an input.
#[derive(Clone, Copy)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of it.
    pub fn new(bytes: &'a [u8]) -> Self {
        Input(bytes)
    }

    /// Nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `len` bytes, or as many as there are.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, left) = self.0.split_at(len.min(self.0.len()));
        self.0 = left;
        taken
    }

    /// The rest.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    #[allow(missing_docs)]
    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    #[allow(missing_docs)]
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    #[allow(missing_docs)]
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    #[allow(missing_docs)]
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }
}
