//! the caisson binary: command line, daemon, Docker Engine API

fn main() {}
