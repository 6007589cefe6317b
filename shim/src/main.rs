//! `caisson-shim`: what it does is in the library, where what a guest can say can be said by the fuzzer as well.

use std::process::ExitCode;

fn main() -> ExitCode {
    caisson_shim::main()
}
