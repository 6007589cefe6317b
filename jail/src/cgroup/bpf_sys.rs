//! bpf(2) for the device filter: load, query, attach, replace. The only unsafe code of the cgroup folder.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::bpf::Instruction;

const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_DETACH: libc::c_long = 9;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const PROG_QUERY: libc::c_long = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_TYPE_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;
const REPLACE: u32 = 4;

/// `union bpf_attr`, the part of `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// … of `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
#[derive(Default)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

/// … of `BPF_PROG_QUERY`.
#[repr(C)]
#[derive(Default)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    pad: u32,
}

/// … of `BPF_PROG_GET_FD_BY_ID`.
#[repr(C)]
#[derive(Default)]
struct GetFd {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Types that are a prefix of `union bpf_attr` for one command.
trait Attr {}
impl Attr for Load {}
impl Attr for Attach {}
impl Attr for Query {}
impl Attr for GetFd {}

/// The return value is a descriptor for the commands that make one, 0 for others.
fn bpf<T: Attr>(command: libc::c_long, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is a live, exclusively borrowed, #[repr(C)] prefix of union bpf_attr of the stated size; every address in
    // it was put there by the callers below from buffers that outlive this call, with their true lengths.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

fn bpf_fd<T: Attr>(command: libc::c_long, attr: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: this command returned a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Loads a device program. On refusal by the verifier the second value is its log.
pub fn load(program: &[Instruction]) -> Result<OwnedFd, (io::Error, String)> {
    let mut attr = Load {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).unwrap_or(u32::MAX),
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    let name = b"caisson_dev";
    attr.prog_name[..name.len()].copy_from_slice(name);
    let first = match bpf_fd(PROG_LOAD, &mut attr) {
        Ok(fd) => return Ok(fd),
        Err(e) => e,
    };
    let mut log = vec![0u8; 64 * 1024];
    attr.log_level = 1;
    attr.log_size = log.len() as u32;
    attr.log_buf = log.as_mut_ptr() as u64;
    match bpf_fd(PROG_LOAD, &mut attr) {
        Ok(fd) => Ok(fd),
        Err(_) => {
            let end = log.iter().position(|&b| b == 0).unwrap_or(log.len());
            Err((first, String::from_utf8_lossy(&log[..end]).into_owned()))
        }
    }
}

/// The device programs attached to this very cgroup, oldest first.
pub fn attached(cgroup: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut ids = vec![0u32; 16];
    loop {
        let mut attr = Query {
            target_fd: raw(cgroup),
            attach_type: ATTACH_TYPE_CGROUP_DEVICE,
            prog_ids: ids.as_mut_ptr() as u64,
            prog_cnt: ids.len() as u32,
            ..Query::default()
        };
        match bpf(PROG_QUERY, &mut attr) {
            Ok(_) => {
                ids.truncate(attr.prog_cnt as usize);
                break;
            }
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && ids.len() < 1024 => {
                ids.resize(ids.len() * 4, 0)
            }
            Err(e) => return Err(e),
        }
    }
    let mut programs = Vec::new();
    for prog_id in ids {
        let mut attr = GetFd {
            prog_id,
            ..GetFd::default()
        };
        match bpf_fd(PROG_GET_FD_BY_ID, &mut attr) {
            Ok(fd) => programs.push(fd),
            // Gone meanwhile.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(programs)
}

/// Attaches `program`, beside others of ancestors; all have to agree to an access.
pub fn attach(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Attach {
        target_fd: raw(cgroup),
        attach_bpf_fd: raw(program),
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI,
        ..Attach::default()
    };
    bpf(PROG_ATTACH, &mut attr).map(drop)
}

/// Puts `program` in the place of `old`, with no moment in between.
pub fn replace(cgroup: BorrowedFd<'_>, old: &OwnedFd, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Attach {
        target_fd: raw(cgroup),
        attach_bpf_fd: raw(program),
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI | REPLACE,
        replace_bpf_fd: raw(old.as_fd()),
    };
    bpf(PROG_ATTACH, &mut attr).map(drop)
}

/// Takes `program` away.
pub fn detach(cgroup: BorrowedFd<'_>, program: &OwnedFd) -> io::Result<()> {
    let mut attr = Attach {
        target_fd: raw(cgroup),
        attach_bpf_fd: raw(program.as_fd()),
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        ..Attach::default()
    };
    bpf(PROG_DETACH, &mut attr).map(drop)
}
