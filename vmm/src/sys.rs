//! The few places where the compiler cannot check what KVM and the guest's memory ask for.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use kvm_bindings::{kvm_userspace_memory_region, kvm_xsave};
use kvm_ioctls::{VcpuFd, VmFd};
use linux_loader::bootparam::boot_params;
use rustix::thread::UnshareFlags;
use vm_memory::{ByteValued, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::error::{Error, Result};

/// `struct boot_params`, to be written into guest memory.
#[repr(transparent)]
#[derive(Clone, Copy, Default)]
pub struct BootParams(pub boot_params);

// SAFETY: a packed C structure of integers: any bytes are a value, and it has no padding.
unsafe impl ByteValued for BootParams {}

/// `struct setup_data` (arch/x86/include/uapi/asm/bootparam.h) with 32 random bytes behind it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
#[allow(missing_docs)]
pub struct SetupSeed {
    pub next: u64,
    pub kind: u32,
    pub len: u32,
    pub seed: [u8; 32],
}

// SAFETY: integers whose sizes add up to the structure's size: no padding.
unsafe impl ByteValued for SetupSeed {}

/// Makes `memory` the VM's memory. The caller keeps `memory` until the VM's descriptor is closed.
pub fn set_memory(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<()> {
    for (slot, region) in memory.iter().enumerate() {
        let slot = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is a live mapping of `memory`, which outlives the VM by this function's contract.
        unsafe { vm.set_user_memory_region(slot) }
            .map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

/// The suberror of a vCPU that just left with `KVM_EXIT_INTERNAL_ERROR`.
pub fn internal_suberror(vcpu: &mut VcpuFd) -> u32 {
    // SAFETY: every member of the union is plain integers; at worst the number means nothing.
    unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror }
}

/// Sets a vCPU's extended state.
pub fn set_xsave(vcpu: &VcpuFd, state: &kvm_xsave) -> Result<()> {
    // SAFETY: this process asks for no dynamically enabled state (AMX), so KVM reads no more than the structure holds.
    unsafe { vcpu.set_xsave(state) }.map_err(Error::kvm("KVM_SET_XSAVE"))
}

/// Names the calling thread; the name ends with its zero.
pub fn name_thread(name: &[u8]) {
    debug_assert!(name.ends_with(&[0]));
    // SAFETY: PR_SET_NAME reads a string that ends with a zero, at most 16 bytes.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// Takes over an inherited descriptor, which must be open; it is closed on exec from now on. The caller sees to it that no
/// number is taken twice.
pub fn adopt(number: i32) -> std::io::Result<OwnedFd> {
    // SAFETY: fcntl with a number that is no open descriptor fails with EBADF.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: it is open, was inherited, and by this function's contract has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Reads and writes of `file` return instead of waiting.
pub fn set_nonblocking(file: &File) -> std::io::Result<()> {
    let fd = file.as_raw_fd();
    // SAFETY: both calls take a descriptor, which `file` keeps open, and integers.
    let how = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK)
    };
    if how < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

/// Closes every descriptor from `first` to `last`, both included.
pub fn close_range(first: i32, last: i32) -> std::io::Result<()> {
    // SAFETY: this process has opened nothing yet that lies between descriptors which it was told to keep.
    let how = unsafe { libc::syscall(libc::SYS_close_range, first as u32, last as u32, 0) };
    if how < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

/// Moves this thread into new namespaces.
pub fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: the table of descriptors stays shared (CLONE_FILES is never among the flags).
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Asks the host for huge pages where a mapping is touched.
pub fn prefer_huge_pages(mapping: &vm_memory::MmapRegion) -> rustix::io::Result<()> {
    let advice = rustix::mm::Advice::LinuxHugepage;
    // SAFETY: the advice changes neither what the mapping holds nor who may touch it.
    unsafe { rustix::mm::madvise(mapping.as_ptr().cast(), mapping.size(), advice) }
}

/// A page of memory that could be executed; for tests of what forbids it.
#[cfg(test)]
pub fn map_executable() -> std::io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let access = libc::PROT_READ | libc::PROT_EXEC;
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, access, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

/// Lets all threads allocate from one heap: less memory, and glibc would look at `/sys` before it makes another, which no
/// thread may once it is confined. To be called before there are threads.
pub fn one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number in the allocator of a process that has one thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}
