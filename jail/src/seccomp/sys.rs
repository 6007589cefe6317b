//! seccomp(2). The only unsafe code of the seccomp folder.

#![allow(unsafe_code)]

use nix::errno::Errno;

use super::Instruction;

/// Installs a program for this thread, or all threads with `SECCOMP_FILTER_FLAG_TSYNC`.
pub fn install(program: &[Instruction], flags: u32) -> Result<(), Errno> {
    let Ok(len) = libc::c_ushort::try_from(program.len()) else {
        return Err(Errno::EINVAL);
    };
    let program = libc::sock_fprog {
        len,
        filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    // SAFETY: `program` points at `len` instructions that live through the call; `Instruction` has the layout of `sock_filter`
    // (both #[repr(C)]: u16, u8, u8, u32), and the kernel only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    match result {
        0 => Ok(()),
        // With TSYNC: the thread that could not take it.
        1.. => Err(Errno::EBUSY),
        _ => Err(Errno::last()),
    }
}
