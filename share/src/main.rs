//! `caisson-share`: what it does is in the library, where what a guest can reach can be reached by the fuzzer as well.

fn main() -> anyhow::Result<()> {
    caisson_share::main()
}
