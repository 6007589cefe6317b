//! Formatted disks against e2fsck, dumpe2fs and the host's kernel.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use caisson_blockfs::ErrorKind;
use caisson_blockfs::ext4::{Options, create, stored_bytes};
use support::{Mounted, privileged, tool};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const GROUP: u64 = 128 * MIB;

/// Sizes with one group, a full last group, a last group too small to be one, and the usual ones.
const SIZES: &[u64] = &[
    16 * MIB,
    64 * MIB + 4096,
    GROUP - 4096,
    GROUP,
    GROUP + MIB,
    GROUP + 4 * MIB,
    3 * GROUP + 77 * 4096,
    GIB,
    10 * GIB,
    100 * GIB + 12345 * 4096,
    1 << 40,
    (16 << 40) - 4096,
];

fn check(path: &Path) {
    tool(Command::new("e2fsck").args(["-f", "-n"]).arg(path));
}

#[test]
fn e2fsck_finds_nothing_at_any_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    for size in SIZES {
        let formatted = create(&path, &Options::new(*size)).unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), *size);
        let stored = meta.blocks() * 512;
        // A descriptor for each group, and what an empty disk needs.
        let most = size / GROUP * 64 + 128 * 1024;
        assert!(stored <= most, "{size}: {stored} bytes are stored");
        let told = stored_bytes(*size).unwrap();
        // The host's own metadata of a file in pieces counts as stored.
        assert!(stored.abs_diff(told) <= 64 * 1024, "{stored} {told}");
        assert!(formatted.free_bytes > size / 2, "{formatted:?}");
        // The largest takes e2fsck minutes.
        if *size <= 1 << 40 {
            check(&path);
        }
    }
}

#[test]
fn dumpe2fs_reads_what_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let options = Options {
        label: "scratch".into(),
        created_seconds: 86400,
        ..Options::new(10 * GIB)
    };
    let formatted = create(&path, &options).unwrap();
    let Some(text) = tool(Command::new("dumpe2fs").arg("-h").arg(&path)) else {
        return;
    };
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
        line[name.len() + 1..].trim().to_owned()
    };
    assert_eq!(field("Filesystem volume name"), "scratch");
    assert_eq!(field("Errors behavior"), "Remount read-only");
    assert_eq!(field("Reserved block count"), "0");
    assert_eq!(field("Filesystem state"), "clean");
    assert_eq!(field("Checksum type"), "crc32c");
    assert_eq!(field("Total journal size"), "32M");
    assert_eq!(field("Filesystem created"), "Fri Jan  2 00:00:00 1970");
    let free: u64 = field("Free blocks").parse().unwrap();
    assert_eq!(free * 4096, formatted.free_bytes);
}

#[test]
fn the_kernel_mounts_fills_and_leaves_it_clean() {
    if !privileged() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    for size in [16 * MIB, 3 * GROUP + 77 * 4096, 10 * GIB, 1 << 40] {
        let formatted = create(&path, &Options::new(size)).unwrap();
        let Some(mounted) = Mounted::new("ext4", "loop", &path) else {
            return;
        };
        let at = mounted.path();
        let root = fs::metadata(at).unwrap();
        assert_eq!(
            (root.mode() & 0o7777, root.uid(), root.gid()),
            (0o755, 0, 0)
        );
        let stat = rustix::fs::statvfs(at).unwrap();
        assert_eq!(stat.f_bfree * stat.f_frsize, formatted.free_bytes);
        // The kernel itself keeps a fiftieth back, 16 MiB at most; nothing is reserved for root.
        let kept = stat.f_bfree - stat.f_bavail;
        assert!(kept <= 4096 && kept <= stat.f_bfree / 25, "{kept} blocks");
        // More than one group's blocks and inodes where there are several.
        let file = fs::File::create(at.join("large")).unwrap();
        let half = formatted.free_bytes.min(600 * MIB) / 2;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, half).unwrap();
        for i in 0..40 {
            let sub = at.join(format!("dir{i}"));
            fs::create_dir(&sub).unwrap();
            for j in 0..10 {
                fs::write(sub.join(j.to_string()), vec![j; 5000]).unwrap();
            }
        }
        drop((file, mounted));
        check(&path);
        let mounted = Mounted::new("ext4", "loop", &path).unwrap();
        assert_eq!(fs::read(mounted.path().join("dir39/9")).unwrap(), [9; 5000]);
    }
}

#[test]
fn a_full_disk_is_full_to_the_last_block() {
    if !privileged() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    create(&path, &Options::new(2 * GROUP + 40 * MIB)).unwrap();
    let Some(mounted) = Mounted::new("ext4", "loop", &path) else {
        return;
    };
    let free = rustix::fs::statvfs(mounted.path()).unwrap();
    let file = fs::File::create(mounted.path().join("all")).unwrap();
    let blocks = free.f_bavail - 8;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, blocks * 4096).unwrap();
    drop((file, mounted));
    check(&path);
}

#[test]
fn what_cannot_be_formatted_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    for size in [0, 4096, 16 * MIB + 512, 10 * GIB + 1, 16 << 40, u64::MAX] {
        let error = create(&path, &Options::new(size)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    let options = Options {
        label: "more than sixteen".into(),
        ..Options::new(GIB)
    };
    assert!(create(&path, &options).is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
