//! What the fuzz targets share: seeds, reading an input as a list of steps, the guest's side of a virtio device.
//!
//! A target is a file in `targets/`: what it feeds, and seeds made of valid messages. Must not know: anything that is not
//! public in the product's crates.

pub mod guest;
pub mod input;
pub mod seeds;
