//! `caisson-vmm`: what it does is in the library, where what a guest can reach can be reached by the fuzzer as well.

use std::process::ExitCode;

fn main() -> ExitCode {
    caisson_vmm::main()
}
