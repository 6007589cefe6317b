//! Requests of a guest to the server of a shared directory. Behind the parsing stands a tree that answers everything with
//! as much as is asked for, not a directory of the machine that fuzzes.

#![no_main]

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use caisson_fuzz::seeds;
use caisson_share::serve::Session;
use fuse_backend_rs::abi::fuse_abi::{Opcode, SetattrIn, stat64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, GetxattrReply, ListxattrReply, ZeroCopyReader,
    ZeroCopyWriter,
};
use fuse_backend_rs::api::server::Server;
use libfuzzer_sys::fuzz_target;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

const HEADER: usize = 40;
/// What a request may be long.
const MESSAGE: u32 = 1 << 20;

fuzz_target!(init: seeds::plant(requests()), |data: &[u8]| run(data));

fn run(data: &[u8]) {
    let kind = SocketType::SEQPACKET;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, kind, flags, None).expect("a pair of sockets");
    let files = Arc::new(Tree);
    let server = Arc::new(Server::new(files.clone()));
    let mut session = Session::new(Arc::new(File::from(theirs)), files, server);
    let mut request = data.to_vec();
    // the fuzzer need not find out what the length is
    if let (Ok(len), Some(place)) = (u32::try_from(data.len()), request.get_mut(..4)) {
        place.copy_from_slice(&len.to_le_bytes());
    }
    let understood = session.serve(&mut request).is_ok();
    let mut answer = vec![0; 2 << 20];
    let answered = File::from(ours).read(&mut answer);
    if let Ok(len) = answered {
        assert_eq!(answer[..4], (len as u32).to_le_bytes(), "its own length");
        assert_eq!(answer[8..16], data[8..16], "the request's number");
    }
    let opcode = data
        .get(4..8)
        .map(|o| u32::from_le_bytes([o[0], o[1], o[2], o[3]]));
    let silent = [
        Opcode::Forget,
        Opcode::BatchForget,
        Opcode::Interrupt,
        Opcode::NotifyReply,
    ];
    let owed = understood && !silent.iter().any(|o| Some(*o as u32) == opcode);
    assert!(!owed || answered.is_ok(), "nobody answers");
}

/// Every name and every number is a file here.
struct Tree;

fn entry() -> Entry {
    Entry {
        inode: 2,
        generation: 0,
        attr: attributes(),
        attr_flags: 0,
        attr_timeout: Duration::ZERO,
        entry_timeout: Duration::ZERO,
    }
}

fn attributes() -> stat64 {
    SetattrIn::default().into()
}

impl FileSystem for Tree {
    type Inode = u64;
    type Handle = u64;

    fn lookup(&self, _: &Context, _: u64, name: &CStr) -> io::Result<Entry> {
        let name = name.to_bytes();
        assert!(
            !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/'),
            "{name:?}"
        );
        Ok(entry())
    }

    fn getattr(&self, _: &Context, _: u64, _: Option<u64>) -> io::Result<(stat64, Duration)> {
        Ok((attributes(), Duration::ZERO))
    }

    fn readlink(&self, _: &Context, _: u64) -> io::Result<Vec<u8>> {
        Ok(vec![b'x'; 4096])
    }

    fn read(
        &self,
        _: &Context,
        _: u64,
        _: u64,
        w: &mut dyn ZeroCopyWriter,
        size: u32,
        _: u64,
        _: Option<u64>,
        _: u32,
    ) -> io::Result<usize> {
        w.write(&vec![1; size.min(MESSAGE) as usize])
    }

    fn write(
        &self,
        _: &Context,
        _: u64,
        _: u64,
        r: &mut dyn ZeroCopyReader,
        size: u32,
        _: u64,
        _: Option<u64>,
        _: bool,
        _: u32,
        _: u32,
    ) -> io::Result<usize> {
        r.read(&mut vec![0; size.min(MESSAGE) as usize])
    }

    fn readdir(
        &self,
        _: &Context,
        _: u64,
        _: u64,
        _: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry) -> io::Result<usize>,
    ) -> io::Result<()> {
        for n in 1..=1000 {
            let name = vec![b'n'; (n % 256) as usize];
            let offset = offset.wrapping_add(n);
            if add(DirEntry {
                ino: n,
                offset,
                type_: 8,
                name: &name,
            })? == 0
            {
                break;
            }
        }
        Ok(())
    }

    fn readdirplus(
        &self,
        context: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.readdir(context, inode, handle, size, offset, &mut |e| {
            add(e, entry())
        })
    }

    fn getxattr(&self, _: &Context, _: u64, _: &CStr, size: u32) -> io::Result<GetxattrReply> {
        Ok(GetxattrReply::Value(vec![1; size as usize]))
    }

    fn listxattr(&self, _: &Context, _: u64, size: u32) -> io::Result<ListxattrReply> {
        Ok(ListxattrReply::Names(vec![b'n'; size as usize]))
    }
}

/// One request of each kind, its arguments zeroes, with room for two names.
fn requests() -> Vec<Vec<u8>> {
    let request = |opcode: u32| {
        let mut bytes = vec![0; HEADER + 64];
        bytes[4..8].copy_from_slice(&opcode.to_le_bytes());
        bytes[8..16].copy_from_slice(&7u64.to_le_bytes());
        bytes[16] = 1;
        bytes.extend(b"name\0other\0");
        bytes
    };
    let name_only = |opcode: Opcode| [&request(opcode as u32)[..HEADER], b"name\0other\0"].concat();
    let mut seeds: Vec<_> = (1..=51).map(request).collect();
    seeds.extend(
        [
            Opcode::Lookup,
            Opcode::Unlink,
            Opcode::Symlink,
            Opcode::Removexattr,
        ]
        .map(name_only),
    );
    seeds
}
