//! OCI runtime command line: create, start, state, kill, delete, run, exec

fn main() {}
