//! The real `caisson-vmm` over its control connection, with guests of a few bytes that need no kernel.

mod guest;
mod life;
mod linux;
#[path = "../program/mod.rs"]
mod program;
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

/// Another user, an empty root in this directory; none where this process cannot give it.
fn confinement(directory: &std::path::Path) -> Option<caisson_protocol::vmm::Confinement> {
    if !rustix::process::geteuid().is_root() {
        println!("not confined: that needs root");
        return None;
    }
    Some(caisson_protocol::vmm::Confinement {
        uid: 54321,
        gid: 54322,
        root: directory.to_owned(),
    })
}
