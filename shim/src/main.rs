//! the host process that outlives the daemon: one per sandbox

fn main() {}
