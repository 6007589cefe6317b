//! The two places where completing an instruction takes one that the compiler cannot check.
#![allow(unsafe_code)]

use std::arch::asm;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// Replaces the first 16 bytes of `slice` by `new` if they are `expected`, atomically; returns what was there. `None` when
/// they are not 16 bytes at a multiple of 16.
pub fn compare_exchange_16<B: BitmapSlice>(
    slice: &VolatileSlice<'_, B>,
    expected: u128,
    new: u128,
) -> Option<u128> {
    let guard = slice.ptr_guard_mut();
    let place = guard.as_ptr().cast::<u128>();
    if slice.len() < 16 || !place.is_aligned() || !std::is_x86_feature_detected!("cmpxchg16b") {
        return None;
    }
    let (mut low, mut high) = (expected as u64, (expected >> 64) as u64);
    // SAFETY: the processor has the instruction; the place is aligned and inside a mapping that the slice keeps alive.
    // Others (the guest's vCPUs) may access it at the same time: the instruction is one atomic access. RBX, which the
    // compiler keeps for itself, is put back.
    unsafe {
        asm!(
            "xchg rsi, rbx",
            "lock cmpxchg16b [rdi]",
            "mov rbx, rsi",
            in("rdi") place,
            inout("rsi") new as u64 => _,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
            options(nostack),
        );
    }
    slice.bitmap().mark_dirty(0, 16);
    Some(u128::from(high) << 64 | u128::from(low))
}

/// Fills `bytes` from the kernel's random number generator.
pub fn random(bytes: &mut [u8]) -> std::io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let rest = &mut bytes[done..];
        // SAFETY: the range is ours to write.
        let n = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        if n >= 0 {
            done += n as usize;
            continue;
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(())
}
