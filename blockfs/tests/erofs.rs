//! Images against three oracles: erofs-rs, Debian's fsck.erofs, and the host's kernel.

#![allow(clippy::unwrap_used)]

mod support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use caisson_blockfs::erofs::{create, from_directory};
use caisson_blockfs::{Attributes, Content, ErrorKind, Kind, Tree};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat};
use support::{Mounted, assert_same, directory, image, privileged, tool};

/// Whoever runs the kernel's side of the comparison sees ACLs as the kernel shows them, so the tree has real ones.
const ACL: [u8; 44] = [
    2, 0, 0, 0, // version
    1, 0, 6, 0, 255, 255, 255, 255, // owner
    2, 0, 4, 0, 0x39, 0x30, 0, 0, // user 12345
    4, 0, 4, 0, 255, 255, 255, 255, // group
    16, 0, 4, 0, 255, 255, 255, 255, // mask
    32, 0, 4, 0, 255, 255, 255, 255, // others
];

fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// A tree with everything in it that an image can have; needs root.
fn everything(root: &Path) {
    let file = |name: &str, bytes: &[u8]| fs::write(root.join(name), bytes).unwrap();
    file("empty", b"");
    file("short", b"hello\n");
    for size in [
        4095,
        4096,
        4097,
        8191,
        3 * 4096 + 4000,
        5 * 4096 + 1,
        1 << 20,
    ] {
        let bytes: Vec<u8> = (0..size).map(|i| (i * 7 + i / 4096) as u8).collect();
        file(&format!("of {size} bytes"), &bytes);
    }
    // A tail that fits into no block beside its inode and attributes.
    file("attributes", &[7; 4000]);
    set(&root.join("attributes"), "user.one", &[1; 900]);
    set(&root.join("attributes"), "user.two", &[2; 2000]);
    for (i, name) in ["cap1", "cap2", "cap3"].iter().enumerate() {
        file(name, name.as_bytes());
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        set(&root.join(name), "security.capability", &capability);
        set(&root.join(name), "user.own", &[i as u8]);
        set(&root.join(name), "system.posix_acl_access", &ACL);
    }
    for dir in ["dir", "dir/sub", "dir/none", "many"] {
        fs::create_dir(root.join(dir)).unwrap();
    }
    set(&root.join("dir"), "system.posix_acl_default", &ACL);
    for i in 0..1500 {
        let name = format!("many/{i:04}{}", "n".repeat(i % 200));
        file(&name, name.as_bytes());
    }
    // Names that sort before, between and behind `.` and `..`.
    for name in ["!", "-", ".!", ".-", "..!", "...", "/0", "~", "é"] {
        file(&format!("dir/sub/{}", name.trim_start_matches('/')), b"x");
    }
    fs::hard_link(root.join("short"), root.join("dir/link")).unwrap();
    fs::hard_link(root.join("of 8191 bytes"), root.join("dir/sub/link")).unwrap();
    symlink("short", root.join("symlink")).unwrap();
    symlink("x".repeat(4095), root.join("long symlink")).unwrap();
    symlink("/nowhere", root.join("dir/dangling")).unwrap();
    let node = |name: &str, kind, device| {
        mknodat(
            CWD,
            root.join(name),
            kind,
            Mode::from_raw_mode(0o640),
            device,
        )
        .unwrap();
    };
    node("null", FileType::CharacterDevice, makedev(1, 3));
    node("big", FileType::BlockDevice, makedev(4000, 1_000_000));
    node("fifo", FileType::Fifo, 0);
    node("socket", FileType::Socket, 0);
    let owner = (Some(3_000_000_000), Some(65536));
    std::os::unix::fs::chown(root.join("of 4097 bytes"), owner.0, owner.1).unwrap();
    std::os::unix::fs::lchown(root.join("symlink"), Some(12), Some(34)).unwrap();
    for (name, mode) in [
        ("short", 0o4755),
        ("dir", 0o1777),
        ("cap1", 0),
        ("dir/sub", 0o2710),
    ] {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let time =
        |seconds: u64, nanos| std::time::UNIX_EPOCH + std::time::Duration::new(seconds, nanos);
    let opened = |name| {
        fs::File::options()
            .write(true)
            .open(root.join(name))
            .unwrap()
    };
    opened("empty").set_modified(time(1, 999_999_999)).unwrap();
    opened("cap2").set_modified(time(1 << 33, 5)).unwrap();
    let before = std::time::UNIX_EPOCH - std::time::Duration::new(1000, 0);
    opened("cap3").set_modified(before).unwrap();
}

fn check(path: &Path) {
    tool(Command::new("fsck.erofs").arg("--extract").arg(path));
    tool(Command::new("dump.erofs").args(["-s", "-S"]).arg(path));
}

#[test]
fn everything_comes_back() {
    if !privileged() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    everything(&root);
    let out = dir.path().join("image");
    let tree = Tree::from_layers(std::slice::from_ref(&root)).unwrap();
    let written = create(&tree, &out).unwrap();
    assert_eq!(written.size_bytes, fs::metadata(&out).unwrap().len());
    check(&out);
    let expected = directory(&root);
    assert!(expected.len() > 1500);
    assert_same(&expected, &image(&fs::read(&out).unwrap()));
    if let Some(mounted) = Mounted::new("erofs", "loop,ro", &out) {
        assert_same(&expected, &directory(mounted.path()));
        // A lookup that must not find anything is a binary search too.
        for name in ["many/0", "many/~", "dir/sub/a", "many/0750"] {
            let found = fs::symlink_metadata(mounted.path().join(name));
            assert_eq!(
                found.is_ok(),
                expected.contains_key(Path::new(name)),
                "{name}"
            );
        }
    }
}

#[test]
fn equal_trees_make_equal_images() {
    let dir = tempfile::tempdir().unwrap();
    let build = |name: &str, order: &[&str]| {
        let root = dir.path().join(name);
        fs::create_dir(&root).unwrap();
        for file in order {
            fs::write(root.join(file), vec![b'x'; file.len() * 5000]).unwrap();
        }
        let out = dir.path().join(format!("{name}.erofs"));
        let written = from_directory(&root, &out).unwrap();
        (fs::read(out).unwrap(), written.uuid)
    };
    let one = build("one", &["a", "bb", "ccc"]);
    let two = build("two", &["ccc", "a", "bb"]);
    assert!(one == two);
    let other = build("other", &["ccc", "a", "bbb"]);
    assert_ne!(one.1, other.1);
}

#[test]
fn holes_and_sizes_beyond_4_gib() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    let size = (5_u64 << 30) + 123;
    let file = fs::File::create(root.join("sparse")).unwrap();
    file.set_len(size).unwrap();
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(b"middle", 4_500_000_000).unwrap();
    file.write_all_at(b"end", size - 3).unwrap();
    let out = dir.path().join("image");
    from_directory(&root, &out).unwrap();
    let stored = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&out).unwrap()) * 512;
    assert!(stored < 1 << 20, "{stored} bytes are stored");
    if !privileged() {
        return;
    }
    let Some(mounted) = Mounted::new("erofs", "loop,ro", &out) else {
        return;
    };
    let file = fs::File::open(mounted.path().join("sparse")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), size);
    let read = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    assert_eq!(read(0, 6), b"begin\0");
    assert_eq!(read(4_499_999_999, 8), b"\0middle\0");
    assert_eq!(read(size - 4, 4), b"\0end");
}

#[test]
fn a_tree_in_memory_becomes_an_image() {
    let mut tree = Tree::new(attributes(0o755));
    let add = |tree: &mut Tree, parent, name: &str, kind| {
        let attributes = attributes(0o600);
        tree.add(parent, OsStr::new(name), attributes, kind)
            .unwrap()
    };
    let root = tree.root();
    let dir = add(&mut tree, root, "dir", Kind::Directory);
    let long = Kind::File(Content::Bytes(vec![3; 9000]));
    let file = add(&mut tree, dir, "file", long);
    tree.link(root, OsStr::new("link"), file).unwrap();
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("image");
    create(&tree, &out).unwrap();
    check(&out);
    let listing = image(&fs::read(&out).unwrap());
    assert_eq!(listing[Path::new("dir/file")].links, 2);
    assert_eq!(listing[Path::new("link")].size, 9000);
    assert_eq!(listing[Path::new("link")].same_as, Path::new("dir/file"));
}

fn attributes(mode: u16) -> Attributes {
    Attributes {
        mode,
        ..Attributes::default()
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut tree = Tree::new(attributes(0o755));
    let root = tree.root();
    for name in ["", ".", "..", "a/b", "a\0b", &"x".repeat(256)] {
        let added = tree.add(root, OsStr::new(name), attributes(0), Kind::Fifo);
        assert_eq!(added.unwrap_err().kind(), ErrorKind::InvalidInput, "{name}");
    }
    assert!(tree.link(root, OsStr::new("loop"), root).is_err());
    let out = tempfile::tempdir().unwrap();
    let refused = |xattrs: Vec<(String, Vec<u8>)>| {
        let mut tree = Tree::new(attributes(0o755));
        let attributes = Attributes {
            xattrs,
            ..attributes(0)
        };
        let root = tree.root();
        tree.add(root, OsStr::new("x"), attributes, Kind::Fifo)
            .unwrap();
        let error = create(&tree, &out.path().join("image")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    };
    refused(vec![("user.long".into(), vec![0; 65536])]);
    refused(vec![("unknown.prefix".into(), vec![0])]);
    refused(vec![(format!("user.{}", "n".repeat(256)), vec![0])]);
    refused(
        (0..5)
            .map(|i| (format!("user.{i}"), vec![i; 60000]))
            .collect(),
    );
    let left: Vec<PathBuf> = fs::read_dir(out.path())
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
