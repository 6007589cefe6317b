//! A layer of an image: a tar archive, unpacked into a directory, packed again, made into an EROFS image. Nothing of it is
//! beside the directory.

#![no_main]

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use caisson_archive::{PackOptions, UnpackOptions, pack, remove_all, unpack};
use caisson_blockfs::{Tree, erofs};
use caisson_fuzz::seeds;
use libfuzzer_sys::fuzz_target;
use tar::{Builder, EntryType, Header};

const BLOCK: usize = 512;
const BYTES_MAX: u64 = 1 << 20;
const ENTRIES_MAX: u64 = 64;

fuzz_target!(init: seeds::plant(archives()), |data: &[u8]| run(data));

fn run(data: &[u8]) {
    let around = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let inside = around.path().join("inside");
    fs::create_dir(&inside).expect("a directory");
    let layer = OwnedFd::from(File::open(&inside).expect("a directory"));
    let options = UnpackOptions {
        max_bytes: BYTES_MAX,
        max_entries: ENTRIES_MAX,
        ..UnpackOptions::layer()
    };
    // what came before an error is there all the same
    let _ = unpack(
        layer.as_fd(),
        Path::new("."),
        &mut &checked(data)[..],
        &options,
    );
    let _ = pack(
        layer.as_fd(),
        Path::new("."),
        Path::new(""),
        &mut std::io::sink(),
        &PackOptions::layer(),
    );
    if let Ok(tree) = Tree::from_layers(&[inside.clone(), inside.clone()]) {
        let image = tempfile::tempfile_in("/dev/shm").expect("a file");
        let _ = erofs::write(&tree, &image);
    }
    let names: Vec<_> = fs::read_dir(around.path()).expect("a directory").collect();
    assert_eq!(names.len(), 1, "{names:?}");
    let beside = OwnedFd::from(File::open(around.path()).expect("a directory"));
    remove_all(beside.as_fd(), std::ffi::OsStr::new("inside")).expect("all of it can be removed");
}

/// With the right checksum in every block that may be a header: the fuzzer need not find them out.
fn checked(data: &[u8]) -> Vec<u8> {
    let mut archive = data.to_vec();
    for block in archive
        .chunks_exact_mut(BLOCK)
        .filter(|b| b[257..262] == *b"ustar")
    {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    archive
}

fn archives() -> Vec<Vec<u8>> {
    let entry = |kind: EntryType, size: u64| {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(size);
        header.set_mtime(1);
        header
    };
    let mut tree = Builder::new(Vec::new());
    let mut put = |kind, name: &str, data: &[u8]| {
        let mut header = entry(kind, data.len() as u64);
        tree.append_data(&mut header, name, data).expect("memory");
    };
    put(EntryType::Directory, "d/", b"");
    put(EntryType::Regular, "d/file", &[7; 700]);
    put(EntryType::Regular, "d/.wh.gone", b"");
    put(EntryType::Regular, "d/.wh..wh..opq", b"");
    put(EntryType::Fifo, "d/fifo", b"");
    let long = format!("d/{}", "long/".repeat(40));
    put(EntryType::Regular, &long, b"deep");
    for (kind, name, to) in [
        (EntryType::Symlink, "d/up", "../.."),
        (EntryType::Link, "d/same", "d/file"),
        (EntryType::Symlink, "link", "d"),
    ] {
        tree.append_link(&mut entry(kind, 0), name, to)
            .expect("memory");
    }
    let mut through = entry(EntryType::Regular, 1);
    tree.append_data(&mut through, "link/inner", &b"x"[..])
        .expect("memory");
    let mut device = entry(EntryType::Char, 0);
    device.set_device_major(1).expect("it is a ustar header");
    device.set_device_minor(3).expect("it is a ustar header");
    tree.append_data(&mut device, "null", &b""[..])
        .expect("memory");

    let mut extended = Builder::new(Vec::new());
    let records = [
        ("SCHILY.xattr.user.a", &b"value"[..]),
        ("path", b"named/again"),
        ("mtime", b"12.5"),
        ("uid", b"7"),
    ];
    extended.append_pax_extensions(records).expect("memory");
    extended
        .append_data(&mut entry(EntryType::Regular, 3), "short", &b"abc"[..])
        .expect("memory");
    let sparse = [
        ("GNU.sparse.major", &b"0"[..]),
        ("GNU.sparse.size", b"9000"),
        ("GNU.sparse.map", b"0,2,8000,1"),
    ];
    extended.append_pax_extensions(sparse).expect("memory");
    extended
        .append_data(&mut entry(EntryType::Regular, 3), "sparse", &b"abc"[..])
        .expect("memory");
    let in_data = [
        ("GNU.sparse.major", &b"1"[..]),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"9000"),
        ("GNU.sparse.name", b"holes"),
    ];
    extended.append_pax_extensions(in_data).expect("memory");
    let mut map = b"1\n8000\n3\n".to_vec();
    map.resize(BLOCK, 0);
    map.extend(b"abc");
    extended
        .append_data(
            &mut entry(EntryType::Regular, map.len() as u64),
            "GNUSparseFile.0/holes",
            &map[..],
        )
        .expect("memory");
    [tree, extended]
        .into_iter()
        .map(|archive| archive.into_inner().expect("memory"))
        .collect()
}
