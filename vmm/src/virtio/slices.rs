//! Pieces of guest memory, one after another, as a source and a destination of bytes. They come from a
//! [`Buffers`](super::chain::Buffers), which has checked them.

use std::io;
use std::os::fd::AsFd;

use vm_memory::{GuestMemoryMmap, VolatileSlice};

use super::chain::Buffers;
use super::sys;
use crate::error::Result;

/// A piece of guest memory, known to be inside it.
pub type Slice<'m> = VolatileSlice<'m>;

/// Pieces of guest memory.
#[derive(Clone, Default)]
pub struct Slices<'m>(Vec<Slice<'m>>);

impl<'m> Slices<'m> {
    /// The memory behind one side of a chain.
    pub fn new(buffers: &Buffers, memory: &'m GuestMemoryMmap) -> Result<Self> {
        buffers.slices(memory).map(Slices)
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.0
            .iter()
            .fold(0, |sum, slice| sum.saturating_add(slice.len()))
    }

    /// Pieces.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Cuts off the pieces from this one on, and returns them.
    pub fn split_off_slices(&mut self, first: usize) -> Slices<'m> {
        Slices(self.0.split_off(first.min(self.0.len())))
    }

    /// Overwrites `bytes.len()` bytes from `at` on, or as many as there are.
    pub fn write_at(&self, mut at: usize, mut bytes: &[u8]) {
        for slice in &self.0 {
            let Ok(here) = slice.offset(at) else {
                at -= slice.len();
                continue;
            };
            let len = here.len().min(bytes.len());
            here.copy_from(&bytes[..len]);
            (at, bytes) = (0, &bytes[len..]);
        }
    }

    /// Cuts off what is at `at` and behind it, and returns it.
    pub fn split_off(&mut self, at: usize) -> Slices<'m> {
        let mut before = 0;
        for (index, slice) in self.0.iter().enumerate() {
            let Some(inside) = at.checked_sub(before).filter(|i| *i < slice.len()) else {
                before = before.saturating_add(slice.len());
                continue;
            };
            let Ok((kept, cut)) = slice.split_at(inside) else {
                break;
            };
            let mut tail = vec![cut];
            tail.extend(self.0.drain(index..).skip(1));
            if inside > 0 {
                self.0.push(kept);
            }
            return Slices(tail);
        }
        Slices::default()
    }

    /// Copies the first bytes; says how many there were.
    pub fn copy_to(&self, mut to: &mut [u8]) -> usize {
        let mut copied = 0;
        for slice in &self.0 {
            let len = slice.copy_to(to);
            copied += len;
            to = &mut to[len..];
        }
        copied
    }

    /// Overwrites the first bytes; says how many there was room for.
    pub fn copy_from(&self, mut from: &[u8]) -> usize {
        let mut copied = 0;
        for slice in &self.0 {
            let len = slice.len().min(from.len());
            slice.copy_from(&from[..len]);
            copied += len;
            from = &from[len..];
        }
        copied
    }

    /// Fills them from `file`, as `readv(2)` does.
    pub fn read_from(&self, file: impl AsFd) -> io::Result<usize> {
        sys::readv(file.as_fd(), &self.0)
    }

    /// Writes them to `file`, as `writev(2)` does.
    pub fn write_to(&self, file: impl AsFd) -> io::Result<usize> {
        sys::writev(file.as_fd(), &self.0)
    }
}

impl<'m> Extend<Slice<'m>> for Slices<'m> {
    fn extend<T: IntoIterator<Item = Slice<'m>>>(&mut self, slices: T) {
        self.0.extend(slices);
    }
}

impl<'m> FromIterator<Slice<'m>> for Slices<'m> {
    fn from_iter<T: IntoIterator<Item = Slice<'m>>>(slices: T) -> Self {
        Slices(slices.into_iter().collect())
    }
}

impl<'m> IntoIterator for Slices<'m> {
    type Item = Slice<'m>;
    type IntoIter = std::vec::IntoIter<Slice<'m>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn slices(pieces: &mut [Vec<u8>]) -> Slices<'_> {
        let slices = pieces.iter_mut().map(|p| Slice::from(p.as_mut_slice()));
        slices.collect()
    }

    #[test]
    fn pieces_are_one_sequence_of_bytes() {
        for at in 0..=7 {
            let mut pieces = [vec![0, 1, 2], vec![], vec![3], vec![4, 5, 6]];
            let mut front = slices(&mut pieces);
            let back = front.split_off(at);
            assert_eq!((front.len(), back.len()), (at, 7 - at), "cut at {at}");
            let mut copy = [9; 7];
            assert_eq!(front.copy_to(&mut copy), at);
            assert_eq!(back.copy_to(&mut copy[at..]), 7 - at);
            assert_eq!(copy, [0, 1, 2, 3, 4, 5, 6], "cut at {at}");
        }
    }

    #[test]
    fn bytes_are_overwritten_where_they_are() {
        let mut pieces = [vec![0; 3], vec![0; 1], vec![0; 2]];
        slices(&mut pieces).write_at(2, b"abc");
        slices(&mut pieces).write_at(5, b"xyz");
        slices(&mut pieces).write_at(6, b"!");
        assert_eq!(pieces.concat(), b"\0\0abcx");
    }

    #[test]
    fn what_is_read_goes_through_every_piece_in_order() {
        let (mut here, there) = UnixStream::pair().expect("a socket pair");
        let mut pieces = [vec![0; 3], vec![0; 1], vec![0; 8]];
        here.write_all(b"abcdef").expect("room in the socket");
        let into = slices(&mut pieces);
        assert_eq!(into.read_from(&there).expect("readable"), 6);
        assert_eq!(into.copy_from(b"A"), 1);
        let mut front = into.clone();
        front.split_off(6);
        assert_eq!(front.write_to(&there).expect("room in the socket"), 6);
        let mut back = [0; 6];
        here.read_exact(&mut back).expect("six bytes");
        assert_eq!(&back, b"Abcdef");
    }
}
