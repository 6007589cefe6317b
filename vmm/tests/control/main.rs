//! The real `caisson-vmm` over its control connection, with guests of a few bytes that need no kernel.

mod guest;
mod life;
mod snapshots;
mod vm;

/// Whether there is a KVM; says so when there is none.
fn kvm() -> bool {
    let there = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    if let Err(error) = &there {
        println!("skipped: /dev/kvm: {error}");
    }
    there.is_ok()
}
