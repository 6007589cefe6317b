//! Pack and unpack agree with each other, with GNU tar, and with overlayfs about what was deleted.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use caisson_archive::{
    FileKind, PackOptions, UnpackOptions, UnpackWhiteouts, pack, remove_all, resolve, stat, unpack,
};
use proptest::prelude::*;

fn open(path: &Path) -> OwnedFd {
    fs::File::open(path).expect("the directory exists").into()
}

fn pack_all(dir: &Path, options: &PackOptions) -> Vec<u8> {
    let mut out = Vec::new();
    pack(
        open(dir).as_fd(),
        Path::new("/"),
        Path::new(""),
        &mut out,
        options,
    )
    .expect("packs");
    out
}

fn unpack_all(dir: &Path, archive: &[u8], options: &UnpackOptions) {
    unpack(
        open(dir).as_fd(),
        Path::new("/"),
        &mut &archive[..],
        options,
    )
    .expect("unpacks");
}

/// Everything about a tree that an archive carries.
fn snapshot(dir: &Path) -> BTreeMap<PathBuf, String> {
    fn walk(root: &Path, dir: &Path, out: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let contents = if meta.is_symlink() {
                format!("{:?}", fs::read_link(&path).unwrap())
            } else if meta.is_file() {
                format!("{:?} links {}", fs::read(&path).unwrap(), meta.nlink())
            } else {
                format!("device {}", meta.rdev())
            };
            let mtime = meta.mtime();
            let line = format!(
                "{:o} {}:{} {mtime} {contents}",
                meta.mode(),
                meta.uid(),
                meta.gid()
            );
            out.insert(path.strip_prefix(root).unwrap().to_path_buf(), line);
            if meta.is_dir() {
                walk(root, &path, out);
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(dir, dir, &mut out);
    out
}

#[derive(Clone, Debug)]
enum Node {
    File {
        data: Vec<u8>,
        mode: u32,
        uid: u32,
        mtime: i64,
    },
    Dir {
        mode: u32,
        mtime: i64,
    },
    Symlink(Vec<u8>),
    Link,
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "[a-c]{1,3}".prop_map(String::into_bytes),
        1 => "[a-z]{90,250}".prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>().prop_filter("a name", |b| *b != 0 && *b != b'/'), 1..30),
    ]
    .prop_filter("not dots", |n| n != b"." && n != b".." && !n.starts_with(b".wh."))
}

fn node() -> impl Strategy<Value = Node> {
    let mtime = prop_oneof![0_i64..4_000_000_000, Just(-5_i64)];
    prop_oneof![
        (
            prop::collection::vec(any::<u8>(), 0..1500),
            0_u32..0o10000,
            0_u32..3_000_000,
            mtime.clone()
        )
            .prop_map(|(data, mode, uid, mtime)| Node::File {
                data,
                mode,
                uid,
                mtime
            }),
        (0o700_u32..0o10000, mtime).prop_map(|(mode, mtime)| Node::Dir { mode, mtime }),
        prop::collection::vec(1_u8..255, 1..200).prop_map(Node::Symlink),
        Just(Node::Link),
    ]
}

fn build(root: &Path, nodes: &[(Vec<Vec<u8>>, Node)]) {
    let mut last_file: Option<PathBuf> = None;
    let mut dirs = Vec::new();
    for (parts, node) in nodes {
        let path = parts.iter().fold(root.to_path_buf(), |p, n| {
            p.join(OsString::from_vec(n.clone()))
        });
        let _ = fs::create_dir_all(path.parent().unwrap());
        if path.symlink_metadata().is_ok() || !path.parent().unwrap().is_dir() {
            continue;
        }
        match node {
            Node::File {
                data,
                mode,
                uid,
                mtime,
            } => {
                fs::write(&path, data).unwrap();
                std::os::unix::fs::chown(&path, Some(*uid), Some(*uid / 2)).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
                set_mtime(&path, *mtime);
                last_file = Some(path);
            }
            Node::Dir { mode, mtime } => {
                fs::create_dir(&path).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
                dirs.push((path, *mtime));
            }
            Node::Symlink(target) => symlink(OsString::from_vec(target.clone()), &path).unwrap(),
            Node::Link => {
                if let Some(file) = &last_file {
                    fs::hard_link(file, &path).unwrap();
                }
            }
        }
    }
    for (dir, mtime) in dirs.iter().rev() {
        set_mtime(dir, *mtime);
    }
}

fn set_mtime(path: &Path, seconds: i64) {
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        last_modification: rustix::fs::Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        },
    };
    rustix::fs::utimensat(
        rustix::fs::CWD,
        path,
        &times,
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    )
    .unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn any_tree_survives(nodes in prop::collection::vec((prop::collection::vec(name(), 1..4), node()), 1..20)) {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        build(from.path(), &nodes);
        let archive = pack_all(from.path(), &PackOptions::copy());
        prop_assert_eq!(&archive, &pack_all(from.path(), &PackOptions::copy()), "packing is deterministic");
        unpack_all(to.path(), &archive, &UnpackOptions::copy());
        prop_assert_eq!(snapshot(from.path()), snapshot(to.path()));
    }

    #[test]
    fn bytes_that_are_no_archive_never_panic(data in prop::collection::vec(any::<u8>(), 0..4096)) {
        let to = tempfile::tempdir().unwrap();
        let _ = unpack(open(to.path()).as_fd(), Path::new(""), &mut &data[..], &UnpackOptions::layer());
    }

    #[test]
    fn a_damaged_archive_never_panics_or_escapes(at in 0_usize..4096, byte: u8, fix_checksum: bool) {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        build(from.path(), &[
            (vec![b"a".to_vec()], Node::File { data: vec![1; 600], mode: 0o644, uid: 0, mtime: 1 }),
            (vec![b"b".to_vec()], Node::Symlink(b"../x".to_vec())),
            (vec![vec![b'n'; 200]], Node::Link),
        ]);
        let mut archive = pack_all(from.path(), &PackOptions::copy());
        let at = at % archive.len();
        archive[at] = byte;
        if fix_checksum {
            let block = at / 512 * 512;
            let header = &mut archive[block..block + 512];
            let sum: u32 = header.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        fs::create_dir(to.path().join("root")).unwrap();
        let options = UnpackOptions { max_bytes: 1 << 20, ..UnpackOptions::layer() };
        let _ = unpack(open(&to.path().join("root")).as_fd(), Path::new(""), &mut &archive[..], &options);
        prop_assert_eq!(fs::read_dir(to.path()).unwrap().count(), 1);
    }
}

#[test]
fn gnu_tar_reads_ours_and_we_read_all_its_formats() {
    let from = tempfile::tempdir().unwrap();
    let long = "l".repeat(120);
    build(
        from.path(),
        &[
            (
                vec![
                    b"dir".to_vec(),
                    long.clone().into_bytes(),
                    long.into_bytes(),
                ],
                Node::File {
                    data: b"deep".to_vec(),
                    mode: 0o4750,
                    uid: 2_900_000,
                    mtime: 77,
                },
            ),
            (vec![b"link".to_vec()], Node::Symlink(vec![b't'; 150])),
            (vec![b"hard".to_vec()], Node::Link),
            (
                vec!["ümläut".as_bytes().to_vec()],
                Node::Dir {
                    mode: 0o1777,
                    mtime: 99,
                },
            ),
        ],
    );
    let sparse = fs::File::create(from.path().join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_at(&sparse, b"end", 5_000_000).unwrap();
    std::os::unix::fs::FileExt::write_at(&sparse, b"mid", 2_000_000).unwrap();
    drop(sparse);
    set_mtime(&from.path().join("sparse"), 5);
    for name in ["dir", "link", "sparse"] {
        set_mtime(&from.path().join(name), 1_000_000);
    }
    set_mtime(
        from.path()
            .join("dir")
            .read_dir()
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path()
            .as_path(),
        5,
    );
    set_mtime(&from.path().join("dir"), 6);
    let expected = snapshot(from.path());

    let (ours, theirs) = (
        pack_all(from.path(), &PackOptions::copy()),
        tempfile::tempdir().unwrap(),
    );
    let file = theirs.path().join("a.tar");
    fs::write(&file, &ours).unwrap();
    let to = tempfile::tempdir().unwrap();
    let status = Command::new("tar")
        .args(["-xpf"])
        .arg(&file)
        .arg("-C")
        .arg(to.path())
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(
        snapshot(to.path()),
        expected,
        "GNU tar read our archive differently"
    );

    for format in ["gnu", "posix", "oldgnu"] {
        for extra in [&[][..], &["--sparse"][..]] {
            let out = Command::new("tar")
                .arg(format!("--format={format}"))
                .args(extra)
                .args(["-cf", "-", "-C"])
                .arg(from.path())
                .arg(".")
                .output()
                .unwrap();
            assert!(out.status.success());
            let to = tempfile::tempdir().unwrap();
            unpack_all(to.path(), &out.stdout, &UnpackOptions::copy());
            assert_eq!(snapshot(to.path()), expected, "{format} {extra:?}");
            if !extra.is_empty() {
                let blocks = fs::metadata(to.path().join("sparse")).unwrap().blocks();
                assert!(
                    blocks < 1000,
                    "{format}: holes were written out ({blocks} blocks)"
                );
            }
        }
    }
}

#[test]
fn whiteouts_go_both_ways_and_mean_to_overlayfs_what_they_mean_to_docker() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["lower", "upper", "work", "merged", "layer"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    let at = |p: &str| dir.path().join(p);
    fs::create_dir_all(at("lower/opaque/sub")).unwrap();
    fs::write(at("lower/opaque/old"), "old").unwrap();
    fs::write(at("lower/gone"), "x").unwrap();
    fs::write(at("lower/stays"), "x").unwrap();
    let mount = |lower: &Path, upper: Option<&Path>| {
        let mut options = format!("lowerdir={}", lower.display());
        if let Some(upper) = upper {
            options += &format!(
                ",upperdir={},workdir={}",
                upper.display(),
                at("work").display()
            );
        }
        let status = Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &options])
            .arg(at("merged"))
            .status();
        assert!(status.unwrap().success(), "mounting an overlay needs root");
    };
    let umount = || {
        assert!(
            Command::new("umount")
                .arg(at("merged"))
                .status()
                .unwrap()
                .success()
        )
    };
    mount(&at("lower"), Some(&at("upper")));
    fs::remove_file(at("merged/gone")).unwrap();
    fs::remove_dir_all(at("merged/opaque")).unwrap();
    fs::create_dir(at("merged/opaque")).unwrap();
    fs::write(at("merged/opaque/new"), "new").unwrap();
    let expected = snapshot(&at("merged"));
    umount();

    let archive = pack_all(&at("upper"), &PackOptions::layer());
    let names: Vec<String> = tar::Archive::new(&archive[..])
        .entries()
        .unwrap()
        .map(|e| String::from_utf8(e.unwrap().path_bytes().into_owned()).unwrap())
        .collect();
    assert_eq!(
        names,
        [".wh.gone", "opaque/", "opaque/.wh..wh..opq", "opaque/new"]
    );

    unpack_all(&at("layer"), &archive, &UnpackOptions::layer());
    mount(
        Path::new(&format!(
            "{}:{}",
            at("layer").display(),
            at("lower").display()
        )),
        None,
    );
    let got = snapshot(&at("merged"));
    umount();
    assert_eq!(got, expected, "unpacked as an overlay layer");

    let options = UnpackOptions {
        whiteouts: UnpackWhiteouts::Remove,
        ..UnpackOptions::layer()
    };
    unpack_all(&at("lower"), &archive, &options);
    assert_eq!(
        snapshot(&at("lower")),
        expected,
        "applied onto a complete tree"
    );
}

#[test]
fn a_whiteout_and_a_new_directory_of_one_name_hide_the_lower_one_in_either_order() {
    let file = |name: &str| (name.to_owned(), tar::EntryType::Regular);
    let folder = |name: &str| (name.to_owned(), tar::EntryType::Directory);
    for entries in [[file(".wh.d"), folder("d/")], [folder("d/"), file(".wh.d")]] {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind) in entries {
            let mut h = tar::Header::new_ustar();
            h.set_path(name).unwrap();
            h.set_entry_type(kind);
            h.set_mode(0o755);
            h.set_uid(0);
            h.set_gid(0);
            h.set_mtime(0);
            h.set_size(0);
            h.set_cksum();
            builder.append(&h, &b""[..]).unwrap();
        }
        let to = tempfile::tempdir().unwrap();
        unpack_all(
            to.path(),
            &builder.into_inner().unwrap(),
            &UnpackOptions::layer(),
        );
        assert!(caisson_archive::is_opaque(open(&to.path().join("d"))));
    }
}

#[test]
fn names_begin_with_what_the_caller_says() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("etc/sub")).unwrap();
    fs::write(dir.path().join("etc/sub/f"), "x").unwrap();
    symlink("/etc", dir.path().join("link")).unwrap();
    let names = |path: &str, name: &str| -> Vec<String> {
        let mut out = Vec::new();
        pack(
            open(dir.path()).as_fd(),
            Path::new(path),
            Path::new(name),
            &mut out,
            &PackOptions::copy(),
        )
        .unwrap();
        tar::Archive::new(&out[..])
            .entries()
            .unwrap()
            .map(|e| String::from_utf8(e.unwrap().path_bytes().into_owned()).unwrap())
            .collect()
    };
    assert_eq!(names("/etc", "etc"), ["etc/", "etc/sub/", "etc/sub/f"]);
    assert_eq!(
        names("/etc", "other"),
        ["other/", "other/sub/", "other/sub/f"]
    );
    assert_eq!(names("/etc/sub/f", "f"), ["f"]);
    assert_eq!(names("/etc", ""), ["sub/", "sub/f"]);
    assert_eq!(names("/etc/sub", "/"), ["/", "/f"]);
    assert_eq!(names("/link", "link"), ["link"]);
    assert_eq!(
        names("/link/", "link"),
        ["link/", "link/sub/", "link/sub/f"]
    );
    assert_eq!(
        names("/link/.", "link"),
        ["link/", "link/sub/", "link/sub/f"]
    );
}

#[test]
fn stat_tells_what_docker_cp_asks() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    fs::write(dir.path().join("a/b/f"), "12345").unwrap();
    symlink("/a/b", dir.path().join("abs")).unwrap();
    symlink("../abs/f", dir.path().join("a/up")).unwrap();
    symlink("loop", dir.path().join("loop")).unwrap();
    let root = open(dir.path());
    let file = stat(root.as_fd(), Path::new("/abs/f")).unwrap();
    assert_eq!(
        (file.kind, file.size_bytes, file.name.as_bytes()),
        (FileKind::File, 5, &b"f"[..])
    );
    let link = stat(root.as_fd(), Path::new("a/up")).unwrap();
    assert_eq!(
        (link.kind, link.link_target.as_deref()),
        (FileKind::Symlink, Some(Path::new("/a/b/f")))
    );
    assert_eq!(
        stat(root.as_fd(), Path::new("/abs/")).unwrap().kind,
        FileKind::Directory
    );
    assert_eq!(stat(root.as_fd(), Path::new("/")).unwrap().name, "/");
    assert_eq!(
        resolve(root.as_fd(), Path::new("/abs/../x/y")).unwrap(),
        Path::new("/a/x/y")
    );
    assert!(resolve(root.as_fd(), Path::new("/loop/x")).is_err());
    let missing = stat(root.as_fd(), Path::new("/nope")).unwrap_err();
    assert_eq!(missing.kind(), caisson_archive::ErrorKind::NotFound);
}

#[test]
fn a_tree_deeper_than_the_descriptor_limit_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut here = open(dir.path());
    for _ in 0..3000 {
        rustix::fs::mkdirat(&here, "d", rustix::fs::Mode::RWXU).unwrap();
        here = rustix::fs::openat(
            &here,
            "d",
            rustix::fs::OFlags::DIRECTORY,
            rustix::fs::Mode::empty(),
        )
        .unwrap();
        drop(
            rustix::fs::openat(
                &here,
                "f",
                rustix::fs::OFlags::CREATE,
                rustix::fs::Mode::RWXU,
            )
            .unwrap(),
        );
    }
    drop(here);
    remove_all(open(dir.path()).as_fd(), "d".as_ref()).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    remove_all(open(dir.path()).as_fd(), "d".as_ref()).unwrap();
}

#[test]
fn removal_follows_no_link() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("keep")).unwrap();
    fs::write(dir.path().join("keep/f"), "x").unwrap();
    fs::create_dir(dir.path().join("tree")).unwrap();
    symlink("../keep", dir.path().join("tree/link")).unwrap();
    symlink("keep", dir.path().join("link")).unwrap();
    remove_all(open(dir.path()).as_fd(), "tree".as_ref()).unwrap();
    remove_all(open(dir.path()).as_fd(), "link".as_ref()).unwrap();
    assert!(dir.path().join("keep/f").exists() && !dir.path().join("tree").exists());
}
