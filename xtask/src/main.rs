//! build, test, tidy and release tasks

fn main() {}
