//! Archives made to escape, exhaust or confuse: each must be refused or contained, and the host outside untouched.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use caisson_archive::{Error, ErrorKind, UnpackOptions, UnpackWhiteouts, Unpacked, unpack};
use tar::{EntryType, Header};

/// A tree with a root to unpack into and a secret beside it.
struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/secret"), "secret").unwrap();
        Scene { dir }
    }
    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("root")
    }
    fn unpack(&self, archive: &[u8], options: &UnpackOptions) -> Result<Unpacked, Error> {
        let root: OwnedFd = fs::File::open(self.root()).unwrap().into();
        unpack(root.as_fd(), Path::new("."), &mut &archive[..], options)
    }
    fn layer(&self, archive: &[u8]) -> Result<Unpacked, Error> {
        self.unpack(archive, &UnpackOptions::layer())
    }
    fn assert_outside_untouched(&self) {
        let names: Vec<_> = fs::read_dir(self.dir.path().join("outside"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, ["secret"]);
        assert_eq!(
            fs::read_to_string(self.dir.path().join("outside/secret")).unwrap(),
            "secret"
        );
        assert_eq!(
            fs::metadata(self.dir.path().join("outside/secret"))
                .unwrap()
                .nlink(),
            1
        );
        assert_eq!(fs::read_dir(self.dir.path()).unwrap().count(), 2);
    }
}

fn header(name: &str, kind: EntryType, size: u64) -> Header {
    let mut h = Header::new_ustar();
    h.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    h.set_entry_type(kind);
    h.set_mode(0o644);
    h.set_uid(0);
    h.set_gid(0);
    h.set_mtime(1);
    h.set_size(size);
    h
}

#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn raw(mut self, mut h: Header, data: &[u8]) -> Self {
        h.set_cksum();
        self.0.extend_from_slice(h.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }
    fn file(self, name: &str, data: &str) -> Self {
        self.raw(
            header(name, EntryType::Regular, data.len() as u64),
            data.as_bytes(),
        )
    }
    fn dir(self, name: &str) -> Self {
        let mut h = header(name, EntryType::Directory, 0);
        h.set_mode(0o755);
        self.raw(h, b"")
    }
    fn link(self, name: &str, target: &str, kind: EntryType) -> Self {
        let mut h = header(name, kind, 0);
        h.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        self.raw(h, b"")
    }
    fn symlink(self, name: &str, target: &str) -> Self {
        self.link(name, target, EntryType::Symlink)
    }
    fn hardlink(self, name: &str, target: &str) -> Self {
        self.link(name, target, EntryType::Link)
    }
    fn pax(self, records: &[u8]) -> Self {
        self.raw(
            header("pax", EntryType::XHeader, records.len() as u64),
            records,
        )
    }
    fn done(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let len = (rest..).find(|n| *n == rest + n.to_string().len()).unwrap();
    let mut out = format!("{len} {key}=").into_bytes();
    out.extend_from_slice(value);
    out.push(b'\n');
    out
}

#[test]
fn dot_dot_is_refused() {
    let scene = Scene::new();
    for name in [
        "../outside/new",
        "a/../../outside/new",
        "/../outside/new",
        "..",
    ] {
        let got = scene.layer(&Tar::default().file(name, "x").done());
        assert!(matches!(got, Err(Error::Escapes(_))), "{name}: {got:?}");
    }
    scene.assert_outside_untouched();
}

#[test]
fn absolute_names_land_in_the_root() {
    let scene = Scene::new();
    scene
        .layer(&Tar::default().file("/etc/x", "x").done())
        .unwrap();
    assert_eq!(fs::read_to_string(scene.root().join("etc/x")).unwrap(), "x");
}

#[test]
fn writing_through_a_symlink_stays_inside() {
    let scene = Scene::new();
    let outside = scene.dir.path().join("outside");
    // Absolute, relative, and in two hops; the names beneath are resolved as in a chroot, or refused.
    for (name, target) in [
        ("abs", outside.to_str().unwrap()),
        ("rel", "../outside"),
        ("up", "../../../../../.."),
    ] {
        let archive = Tar::default()
            .symlink(name, target)
            .file(&format!("{name}/secret"), "owned")
            .done();
        let _ = scene.layer(&archive);
        scene.assert_outside_untouched();
    }
    let hops = Tar::default()
        .symlink("a", "..")
        .symlink("b", "a/outside")
        .file("b/secret", "owned")
        .done();
    let _ = scene.layer(&hops);
    scene.assert_outside_untouched();
}

#[test]
fn an_entry_over_a_symlink_replaces_the_link() {
    let scene = Scene::new();
    symlink("../outside/secret", scene.root().join("f")).unwrap();
    symlink("../outside", scene.root().join("d")).unwrap();
    scene
        .layer(
            &Tar::default()
                .file("f", "mine")
                .dir("d")
                .file("d/secret", "mine")
                .done(),
        )
        .unwrap();
    assert_eq!(fs::read_to_string(scene.root().join("f")).unwrap(), "mine");
    assert!(
        fs::symlink_metadata(scene.root().join("d"))
            .unwrap()
            .is_dir()
    );
    scene.assert_outside_untouched();
}

#[test]
fn hard_links_never_reach_outside() {
    let scene = Scene::new();
    let up = scene.layer(&Tar::default().hardlink("h", "../outside/secret").done());
    assert!(matches!(up, Err(Error::Escapes(_))), "{up:?}");
    let archive = Tar::default()
        .symlink("d", "../outside")
        .hardlink("h", "d/secret")
        .done();
    assert!(scene.layer(&archive).is_err());
    let outside = scene.dir.path().join("outside");
    let archive = Tar::default()
        .symlink("e", outside.to_str().unwrap())
        .hardlink("h", "e/secret")
        .done();
    assert!(scene.layer(&archive).is_err());
    assert!(!scene.root().join("h").exists());
    scene.assert_outside_untouched();
}

#[test]
fn a_hard_link_to_a_symlink_links_the_link_and_a_later_file_does_not_write_through_it() {
    let scene = Scene::new();
    let archive = Tar::default()
        .symlink("s", "../outside/secret")
        .hardlink("h", "s")
        .file("h", "mine")
        .done();
    scene.layer(&archive).unwrap();
    assert_eq!(fs::read_to_string(scene.root().join("h")).unwrap(), "mine");
    scene.assert_outside_untouched();
}

#[test]
fn whiteouts_of_dots_are_refused() {
    for whiteouts in [UnpackWhiteouts::Overlay, UnpackWhiteouts::Remove] {
        for name in [".wh.", ".wh..", ".wh...", "a/.wh..."] {
            let scene = Scene::new();
            let options = UnpackOptions {
                whiteouts,
                ..UnpackOptions::layer()
            };
            let got = scene.unpack(&Tar::default().file(name, "").done(), &options);
            assert!(matches!(got, Err(Error::Invalid(_))), "{name}: {got:?}");
            scene.assert_outside_untouched();
        }
    }
}

#[test]
fn a_whiteout_through_a_symlink_removes_nothing_outside() {
    for name in ["d/.wh.secret", "d/.wh..wh..opq"] {
        let scene = Scene::new();
        symlink("../outside", scene.root().join("d")).unwrap();
        let options = UnpackOptions {
            whiteouts: UnpackWhiteouts::Remove,
            ..UnpackOptions::layer()
        };
        let _ = scene.unpack(&Tar::default().file(name, "").done(), &options);
        scene.assert_outside_untouched();
    }
}

#[test]
fn caps_stop_the_flood() {
    let scene = Scene::new();
    let three = Tar::default()
        .file("a", "12345")
        .file("b", "12345")
        .file("c", "12345")
        .done();
    let entries = UnpackOptions {
        max_entries: 2,
        ..UnpackOptions::layer()
    };
    let bytes = UnpackOptions {
        max_bytes: 14,
        ..UnpackOptions::layer()
    };
    for options in [entries, bytes] {
        let error = scene.unpack(&three, &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    }
    let exact = UnpackOptions {
        max_entries: 3,
        max_bytes: 15,
        ..UnpackOptions::layer()
    };
    scene.unpack(&three, &exact).unwrap();
}

#[test]
fn a_size_without_its_bytes_is_truncated_and_allocates_nothing() {
    let scene = Scene::new();
    let mut huge = header("f", EntryType::Regular, 0);
    huge.set_size(1 << 50);
    let error = scene.layer(&Tar::default().raw(huge, b"x").0).unwrap_err();
    assert!(matches!(error, Error::Truncated(_)), "{error:?}");
}

#[test]
fn long_names_and_pax_headers_are_bounded() {
    let scene = Scene::new();
    for kind in [
        EntryType::XHeader,
        EntryType::XGlobalHeader,
        EntryType::GNULongName,
        EntryType::GNULongLink,
    ] {
        let mut archive = Tar::default().raw(header("x", kind, 1 << 40), b"").0;
        archive.resize(64 * 1024, b'a');
        let endless = archive.chain(std::io::repeat(b'a'));
        let root: OwnedFd = fs::File::open(scene.root()).unwrap().into();
        let mut limited = endless.take(1 << 30);
        let error = unpack(
            root.as_fd(),
            Path::new(""),
            &mut limited,
            &UnpackOptions::layer(),
        )
        .unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{kind:?}: {error:?}");
        assert!(
            limited.limit() > (1 << 29),
            "{kind:?} was read before it was refused"
        );
    }
}

#[test]
fn every_truncation_is_an_error_and_never_a_panic() {
    let whole = Tar::default()
        .dir("d")
        .file("d/a", &"x".repeat(700))
        .symlink("s", "d/a")
        .hardlink("h", "d/a")
        .done();
    for len in 0..whole.len() - 1024 {
        let scene = Scene::new();
        let got = scene.layer(&whole[..len]);
        // A stream may end between entries: Go's reader allows it, so images rely on it.
        if len % 512 != 0 {
            assert!(matches!(got, Err(Error::Truncated(_))), "{len}: {got:?}");
        }
        scene.assert_outside_untouched();
    }
}

#[test]
fn pax_smuggling_every_reader_of_sizes_agrees() {
    // CVE-2025-62518: the PAX size counts, the header says 0. A reader that believes the header would take the file's
    // contents for an entry of its own.
    let inner = Tar::default().file("smuggled", "x").done();
    let records = pax_record("size", inner.len().to_string().as_bytes());
    let archive = Tar::default()
        .pax(&records)
        .raw(header("carrier", EntryType::Regular, 0), &inner)
        .done();
    let scene = Scene::new();
    scene.layer(&archive).unwrap();
    assert_eq!(fs::read(scene.root().join("carrier")).unwrap(), inner);
    assert!(!scene.root().join("smuggled").exists());
    // A binary attribute with a newline before the size must not hide it.
    let mut records = pax_record("SCHILY.xattr.user.x", b"a\nb");
    records.extend(pax_record("size", inner.len().to_string().as_bytes()));
    let archive = Tar::default()
        .pax(&records)
        .raw(header("carrier", EntryType::Regular, 0), &inner)
        .done();
    let scene = Scene::new();
    scene.layer(&archive).unwrap();
    assert!(!scene.root().join("smuggled").exists());
}

#[test]
fn two_extended_headers_for_one_entry_are_refused() {
    let one = pax_record("path", b"a");
    let archive = Tar::default().pax(&one).pax(&one).file("f", "x").done();
    assert!(matches!(
        Scene::new().layer(&archive),
        Err(Error::Invalid(_))
    ));
    let archive = Tar::default().pax(&one).done();
    assert!(matches!(
        Scene::new().layer(&archive),
        Err(Error::Invalid(_))
    ));
}

#[test]
fn ids_out_of_range_are_refused() {
    for id in ["4294967296", "4294967295", "-1", "9223372036854775807"] {
        for key in ["uid", "gid"] {
            let archive = Tar::default()
                .pax(&pax_record(key, id.as_bytes()))
                .file("f", "x")
                .done();
            let got = Scene::new().layer(&archive);
            assert!(matches!(got, Err(Error::Invalid(_))), "{key} {id}: {got:?}");
        }
    }
    let scene = Scene::new();
    scene
        .layer(
            &Tar::default()
                .pax(&pax_record("uid", b"4294967294"))
                .file("f", "x")
                .done(),
        )
        .unwrap();
    assert_eq!(
        fs::metadata(scene.root().join("f")).unwrap().uid(),
        4_294_967_294
    );
}

#[test]
fn overlay_attributes_are_stripped_and_capabilities_kept() {
    let scene = Scene::new();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut records = pax_record("SCHILY.xattr.trusted.overlay.redirect", b"/etc");
    records.extend(pax_record("SCHILY.xattr.user.overlay.redirect", b"/etc"));
    records.extend(pax_record("SCHILY.xattr.trusted.overlay.opaque", b"y"));
    records.extend(pax_record("SCHILY.xattr.security.capability", &capability));
    scene
        .layer(&Tar::default().pax(&records).file("ping", "x").done())
        .unwrap();
    let mut value = [0_u8; 64];
    let ping = scene.root().join("ping");
    let len = rustix::fs::getxattr(&ping, "security.capability", &mut value).unwrap();
    assert_eq!(value[..len], capability);
    for name in [
        "trusted.overlay.redirect",
        "user.overlay.redirect",
        "trusted.overlay.opaque",
    ] {
        assert!(
            rustix::fs::getxattr(&ping, name, &mut value).is_err(),
            "{name}"
        );
    }
}

#[test]
fn setuid_survives_the_change_of_owner() {
    let scene = Scene::new();
    let mut h = header("su", EntryType::Regular, 1);
    h.set_mode(0o4755);
    h.set_uid(1000);
    h.set_gid(1000);
    scene.layer(&Tar::default().raw(h, b"x").done()).unwrap();
    let meta = fs::metadata(scene.root().join("su")).unwrap();
    assert_eq!(
        (meta.mode() & 0o7777, meta.uid(), meta.gid()),
        (0o4755, 1000, 1000)
    );
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let sparse = |map: &str, size: &str, stored: usize| {
        let mut records = pax_record("GNU.sparse.major", b"1");
        records.extend(pax_record("GNU.sparse.minor", b"0"));
        records.extend(pax_record("GNU.sparse.realsize", size.as_bytes()));
        let mut data = map.as_bytes().to_vec();
        data.resize(512, 0);
        // The map is padded with zero bytes after its last line, which the reader must not look at.
        data.extend(vec![b'd'; stored]);
        Tar::default()
            .pax(&records)
            .raw(header("s", EntryType::Regular, data.len() as u64), &data)
            .done()
    };
    let scene = Scene::new();
    scene
        .layer(&sparse("2\n0\n3\n1000\n2\n", "2000", 5))
        .unwrap();
    let got = fs::read(scene.root().join("s")).unwrap();
    assert_eq!(
        (got.len(), &got[..4], &got[999..1003]),
        (2000, &b"ddd\0"[..], &b"\0dd\0"[..])
    );
    for (map, size, stored) in [
        ("2\n1000\n3\n0\n2\n", "2000", 5),
        ("1\n0\n3\n", "2", 3),
        ("1\n0\n3\n", "10", 2),
        ("1\n18446744073709551615\n3\n", "10", 3),
        ("9999999999\n0\n3\n", "10", 3),
        ("1\n0\n", "10", 3),
    ] {
        let got = Scene::new().layer(&sparse(map, size, stored));
        assert!(
            matches!(got, Err(Error::Invalid(_) | Error::Truncated(_))),
            "{map:?}: {got:?}"
        );
    }
    // A hole counts: a petabyte of it does not pass a cap.
    let options = UnpackOptions {
        max_bytes: 1 << 30,
        ..UnpackOptions::layer()
    };
    let got = Scene::new().unpack(&sparse("1\n0\n3\n", "1125899906842624", 3), &options);
    assert!(matches!(got, Err(Error::LimitExceeded { .. })), "{got:?}");
}

#[test]
fn a_file_is_no_parent() {
    let got = Scene::new().layer(&Tar::default().file("f", "x").file("f/g", "y").done());
    assert!(matches!(got, Err(Error::Io { .. })), "{got:?}");
}

#[test]
fn devices_and_pipes_are_made_as_the_archive_says() {
    use std::os::unix::fs::FileTypeExt;
    let scene = Scene::new();
    let mut null = header("null", EntryType::Char, 0);
    null.set_mode(0o666);
    null.set_device_major(1).unwrap();
    null.set_device_minor(3).unwrap();
    scene
        .layer(
            &Tar::default()
                .raw(null, b"")
                .raw(header("pipe", EntryType::Fifo, 0), b"")
                .done(),
        )
        .unwrap();
    let meta = fs::metadata(scene.root().join("null")).unwrap();
    assert_eq!((meta.rdev(), meta.mode() & 0o7777), (0x103, 0o666));
    assert!(
        fs::metadata(scene.root().join("pipe"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
}

#[test]
fn directories_and_files_do_not_replace_each_other_when_forbidden() {
    let scene = Scene::new();
    fs::create_dir(scene.root().join("d")).unwrap();
    fs::write(scene.root().join("f"), "x").unwrap();
    let options = UnpackOptions {
        no_overwrite_dir_non_dir: true,
        ..UnpackOptions::copy()
    };
    for archive in [
        Tar::default().file("d", "x").done(),
        Tar::default().dir("f").done(),
    ] {
        assert!(matches!(
            scene.unpack(&archive, &options),
            Err(Error::KindConflict { .. })
        ));
    }
    assert!(scene.root().join("d").is_dir() && scene.root().join("f").is_file());
    scene
        .unpack(
            &Tar::default().file("d", "x").done(),
            &UnpackOptions::copy(),
        )
        .unwrap();
    assert!(scene.root().join("d").is_file());
}

#[test]
fn a_removed_directory_is_not_written_into_through_its_descriptor() {
    let scene = Scene::new();
    let archive = Tar::default()
        .file("d/a", "1")
        .file("d", "file")
        .file("e", "x")
        .dir("d")
        .file("d/b", "2")
        .done();
    scene.layer(&archive).unwrap();
    assert_eq!(fs::read_to_string(scene.root().join("d/b")).unwrap(), "2");
    assert!(!scene.root().join("d/a").exists());
}
