//! The server alone: what it serves, what it refuses, what cannot break it.

#[path = "client/mod.rs"]
mod client;

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

use client::*;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("hello"), "hello, guest").expect("a file");
    std::fs::create_dir(directory.path().join("sub")).expect("a directory");
    directory
}

#[test]
fn files_are_read_written_and_belong_to_the_caller() {
    if !is_possible() {
        return;
    }
    let directory = directory();
    let mut client = Client::start(directory.path(), &[]);
    let (node, mode) = client.lookup(ROOT, "hello").expect("it is there");
    assert_eq!(mode & libc::S_IFMT, libc::S_IFREG);
    let handle = client.open(node, libc::O_RDWR).expect("it opens");
    assert_eq!(client.read(node, handle, 7, 100), (0, b"guest".to_vec()));
    assert_eq!(client.write(node, handle, 7, b"world, a long one").0, 0);
    let content = std::fs::read(directory.path().join("hello")).expect("a file");
    assert_eq!(content, b"hello, world, a long one");
    assert_eq!(client.lookup(ROOT, "nothing"), Err(libc::ENOENT));

    (client.uid, client.gid) = (1234, 5678);
    // the root's directory is closed to this user: the guest's kernel is who decides
    let closed = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(directory.path(), closed).expect("a mode");
    let (new, handle) = client
        .create(ROOT, "new", libc::O_RDWR)
        .expect("it is made");
    let data = vec![7; 128 << 10];
    assert_eq!(client.write(new, handle, 0, &data).0, 0);
    assert_eq!(client.read(new, handle, 0, 128 << 10), (0, data));
    let made = std::fs::metadata(directory.path().join("new")).expect("it is there");
    assert_eq!(
        (made.uid(), made.gid(), made.mode() & 0o7777),
        (1234, 5678, 0o644)
    );
    let mut mkdir = words(&[0o40755, 0]);
    mkdir.extend(text("dir"));
    assert_eq!(client.request(MKDIR, ROOT, &mkdir).0, 0);
    assert_eq!(
        std::fs::metadata(directory.path().join("dir"))
            .expect("it is there")
            .uid(),
        1234
    );

    (client.uid, client.gid) = (0, 0);
    let mut link = longs(&[new]);
    link.extend(text("hard"));
    assert_eq!(client.request(LINK, ROOT, &link).0, 0);
    assert_eq!(
        std::fs::metadata(directory.path().join("hard"))
            .expect("it is there")
            .nlink(),
        2
    );
    let mut rename = longs(&[client.lookup(ROOT, "sub").expect("it is there").0]);
    rename.extend(text("hard"));
    rename.extend(text("moved"));
    assert_eq!(client.request(RENAME, ROOT, &rename).0, 0);
    assert!(directory.path().join("sub/moved").exists());
    assert_eq!(client.request(UNLINK, ROOT, &text("new")).0, 0);
    assert!(!directory.path().join("new").exists());
    assert_eq!(client.request(STATFS, ROOT, &[]).0, 0);

    let mut release = longs(&[handle]);
    release.resize(24, 0);
    assert_eq!(client.request(RELEASE, new, &release).0, 0);
    assert_eq!(client.read(new, handle, 0, 1).0, libc::EBADF);
    assert!(client.finish().success());
}

#[test]
fn extended_attributes_and_special_files_work_and_devices_do_not() {
    if !is_possible() {
        return;
    }
    let directory = directory();
    let mut client = Client::start(directory.path(), &[]);
    let (node, _) = client.lookup(ROOT, "hello").expect("it is there");
    let mut set = words(&[5, 0]);
    set.extend(text("user.colour"));
    set.extend(b"green");
    let (error, _) = client.request(SETXATTR, node, &set);
    // a tmpfs may not have them: then that is what the host says
    if error != libc::EOPNOTSUPP {
        assert_eq!(error, 0);
        let mut get = words(&[100, 0]);
        get.extend(text("user.colour"));
        assert_eq!(client.request(GETXATTR, node, &get), (0, b"green".to_vec()));
    }
    for (name, mode) in [("fifo", libc::S_IFIFO), ("socket", libc::S_IFSOCK)] {
        let mut make = words(&[mode | 0o666, 0, 0, 0]);
        make.extend(text(name));
        let (error, body) = client.request(MKNOD, ROOT, &make);
        let (node, made) = entry(error, &body).expect("it is made");
        assert_eq!(made & libc::S_IFMT, mode);
        // the server would wait for a writer if it opened it
        assert_eq!(client.open(node, libc::O_RDONLY), Err(libc::EBADF));
    }
    assert!(
        std::fs::metadata(directory.path().join("fifo"))
            .expect("it is there")
            .file_type()
            .is_fifo()
    );
    for mode in [libc::S_IFCHR, libc::S_IFBLK] {
        // device 1:3 is /dev/null
        let mut make = words(&[mode | 0o666, 0x103, 0, 0]);
        make.extend(text("device"));
        assert_eq!(client.request(MKNOD, ROOT, &make).0, libc::EPERM);
    }
}

#[test]
fn nothing_leads_out_of_the_directory() {
    if !is_possible() {
        return;
    }
    let outside = tempfile::tempdir().expect("a directory");
    std::fs::write(outside.path().join("secret"), "secret").expect("a file");
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    symlink("/etc/passwd", at("passwd")).expect("a link");
    symlink(outside.path(), at("out")).expect("a link");
    symlink("..", at("up")).expect("a link");
    let mut client = Client::start(directory.path(), &[]);
    let (sub, _) = client.lookup(ROOT, "sub").expect("it is there");
    for parent in [ROOT, sub] {
        for name in [
            "..",
            ".",
            "",
            "../etc",
            "/etc",
            "sub/..",
            "out/secret",
            "/proc/self/fd",
        ] {
            assert_eq!(client.lookup(parent, name), Err(libc::EINVAL), "{name:?}");
        }
        for name in ["..", "../x", "/tmp/x", "out/x"] {
            assert!(
                client.create(parent, name, libc::O_RDWR).is_err(),
                "{name:?}"
            );
            let mut rename = longs(&[parent]);
            rename.extend(text("hello"));
            rename.extend(text(name));
            assert_ne!(client.request(RENAME, ROOT, &rename).0, 0);
            let mut mkdir = words(&[0o40755, 0]);
            mkdir.extend(text(name));
            assert_ne!(client.request(MKDIR, parent, &mkdir).0, 0);
            assert_ne!(client.request(UNLINK, parent, &text(name)).0, 0);
        }
    }
    for name in ["passwd", "out", "up"] {
        let (node, mode) = client.lookup(ROOT, name).expect("it is there");
        assert_eq!(mode & libc::S_IFMT, libc::S_IFLNK);
        for flags in [
            libc::O_RDONLY,
            libc::O_RDWR,
            libc::O_PATH,
            libc::O_RDWR | libc::O_TRUNC,
        ] {
            assert_eq!(client.open(node, flags), Err(libc::EBADF), "{name}");
        }
        assert_ne!(client.request(OPENDIR, node, &words(&[0, 0])).0, 0);
        assert_eq!(client.lookup(node, "secret"), Err(libc::ENOTDIR));
        assert!(client.create(node, "made", libc::O_RDWR).is_err());
        // creating what is a link opens the link, which cannot be opened
        assert!(client.create(ROOT, name, libc::O_RDWR).is_err());
        // mode, size: of the link or refused, never of what it points to
        let mut chmod = words(&[1, 0]);
        chmod.resize(68, 0);
        chmod.extend(words(&[0o777]));
        chmod.resize(88, 0);
        client.request(SETATTR, node, &chmod);
        let mut truncate = words(&[8, 0]);
        truncate.resize(88, 0);
        assert_ne!(client.request(SETATTR, node, &truncate).0, 0);
    }
    let (link, _) = client.lookup(ROOT, "passwd").expect("it is there");
    assert_eq!(
        client.request(READLINK, link, &[]),
        (0, b"/etc/passwd".to_vec())
    );
    let passwd = std::fs::metadata("/etc/passwd").expect("it is there");
    assert_eq!(passwd.mode() & 0o777, 0o644);
    assert!(passwd.len() > 0);
    assert_eq!(
        std::fs::read_dir(outside.path())
            .expect("a directory")
            .count(),
        1
    );

    // a directory that the host moves out of the share keeps its node, and is no way up
    std::fs::rename(at("sub"), outside.path().join("sub")).expect("it is moved");
    assert_eq!(client.lookup(sub, ".."), Err(libc::EINVAL));
    assert_eq!(client.lookup(sub, "../secret"), Err(libc::EINVAL));
    // nodes that were never given out
    for node in [0, 77, u64::MAX] {
        assert_ne!(client.request(GETATTR, node, &[0; 16]).0, 0);
        assert!(client.lookup(node, "hello").is_err());
    }
}

#[test]
fn the_server_sees_its_share_only_and_can_do_little() {
    if !is_possible() {
        return;
    }
    let directory = directory();
    let client = Client::start(directory.path(), &[]);
    let proc = std::path::PathBuf::from(format!("/proc/{}", client.server_pid()));
    let threads: Vec<_> = std::fs::read_dir(proc.join("task"))
        .expect("its threads")
        .map(|thread| thread.expect("a thread").path())
        .collect();
    assert!(threads.len() > 1);
    for thread in threads {
        let status = std::fs::read_to_string(thread.join("status")).expect("its status");
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_whitespace().nth(1))
                .expect("a field")
                .to_owned()
        };
        assert_eq!(
            (field("Seccomp:"), field("NoNewPrivs:")),
            ("2".into(), "1".into())
        );
        // CHOWN 0, DAC_OVERRIDE 1, DAC_READ_SEARCH 2, FOWNER 3, FSETID 4, SETGID 6, SETUID 7, SETFCAP 31
        for set in ["CapEff:", "CapPrm:"] {
            assert_eq!(
                u64::from_str_radix(&field(set), 16),
                Ok(0x8000_00df),
                "{set}"
            );
        }
        for set in ["CapBnd:", "CapInh:", "CapAmb:"] {
            assert_eq!(u64::from_str_radix(&field(set), 16), Ok(0), "{set}");
        }
    }
    let mut seen: Vec<_> = std::fs::read_dir(proc.join("root"))
        .expect("its root")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    seen.sort();
    assert_eq!(seen, ["proc", "share"]);
    let mounts = std::fs::read_to_string(proc.join("mountinfo")).expect("its mounts");
    let mut points: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .collect();
    points.sort();
    assert_eq!(points, ["/", "/proc/self/fd", "/share"]);
    assert!(std::fs::write(proc.join("root/x"), "").is_err());
}

#[test]
fn a_read_only_share_refuses_every_change() {
    if !is_possible() {
        return;
    }
    let directory = directory();
    let mut client = Client::start(directory.path(), &["--read-only", "--recursive"]);
    let (node, _) = client.lookup(ROOT, "hello").expect("it is there");
    assert_eq!(client.open(node, libc::O_RDWR), Err(libc::EROFS));
    assert_eq!(
        client.open(node, libc::O_RDONLY | libc::O_TRUNC),
        Err(libc::EROFS)
    );
    assert_eq!(client.create(ROOT, "new", libc::O_RDWR), Err(libc::EROFS));
    assert_eq!(client.request(UNLINK, ROOT, &text("hello")).0, libc::EROFS);
    let mut chmod = words(&[1, 0]);
    chmod.resize(88, 0);
    assert_eq!(client.request(SETATTR, node, &chmod).0, libc::EROFS);
    let handle = client.open(node, libc::O_RDONLY).expect("it opens");
    assert_eq!(client.write(node, handle, 0, b"x").0, libc::EBADF);
    assert_eq!(client.read(node, handle, 0, 5), (0, b"hello".to_vec()));
}

#[test]
fn a_file_is_served_alone() {
    if !is_possible() {
        return;
    }
    let directory = directory();
    let mut client = Client::start(&directory.path().join("hello"), &[]);
    let (node, _) = client.lookup(ROOT, "file").expect("it is there");
    let handle = client.open(node, libc::O_RDWR).expect("it opens");
    assert_eq!(client.write(node, handle, 0, b"HELLO").0, 0);
    let content = std::fs::read(directory.path().join("hello")).expect("a file");
    assert_eq!(content, b"HELLO, guest");
    for name in ["hello", "sub", "proc"] {
        assert_eq!(client.lookup(ROOT, name), Err(libc::ENOENT));
    }
    assert_eq!(
        client.create(ROOT, "beside", libc::O_RDWR),
        Err(libc::EROFS)
    );
    assert_ne!(client.request(UNLINK, ROOT, &text("file")).0, 0);
}

#[test]
fn what_is_mounted_below_is_served_when_asked_for() {
    if !is_possible() {
        return;
    }
    let directory = directory();
    let (other, at) = (self::directory(), directory.path().join("sub"));
    rustix::mount::mount_bind(other.path(), &at).expect("a bind mount");
    let seen = |options: &[&str]| {
        let mut client = Client::start(directory.path(), options);
        let (sub, _) = client.lookup(ROOT, "sub").expect("it is there");
        let found = client.lookup(sub, "hello");
        let made = client.create(sub, "made", libc::O_RDWR).map(drop);
        (found.map(drop), made)
    };
    let alone = seen(&[]);
    let both = seen(&["--recursive"]);
    let read_only = seen(&["--recursive", "--read-only"]);
    rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH).expect("it is unmounted");
    assert_eq!(alone, (Err(libc::ENOENT), Ok(())));
    assert_eq!(both, (Ok(()), Ok(())));
    assert_eq!(read_only, (Ok(()), Err(libc::EROFS)));
    assert!(other.path().join("made").exists());
    assert!(at.join("made").exists());
}

#[test]
fn directories_are_listed_in_pieces() {
    if !is_possible() {
        return;
    }
    let directory = directory();
    for number in 0..200 {
        std::fs::write(directory.path().join(format!("file-{number:03}")), "").expect("a file");
    }
    let mut client = Client::start(directory.path(), &[]);
    let (error, body) = client.request(OPENDIR, ROOT, &words(&[0, 0]));
    assert_eq!(error, 0);
    let (handle, mut offset, mut names) = (long(&body, 0), 0, Vec::new());
    loop {
        let mut read = longs(&[handle, offset]);
        read.extend(words(&[1024, 0, 0, 0, 0, 0]));
        let (error, body) = client.request(READDIR, ROOT, &read);
        assert_eq!(error, 0);
        if body.is_empty() {
            break;
        }
        let mut rest = &body[..];
        while !rest.is_empty() {
            offset = long(rest, 8);
            let len = u32::from_le_bytes(rest[16..20].try_into().expect("four bytes")) as usize;
            names.push(String::from_utf8(rest[24..24 + len].to_vec()).expect("a name"));
            rest = &rest[(24 + len).next_multiple_of(8)..];
        }
    }
    names.sort();
    names.retain(|name| name.starts_with("file-"));
    assert_eq!(names.len(), 200);
    // more than an answer can hold
    let mut read = longs(&[handle, 0]);
    read.extend(words(&[u32::MAX, 0, 0, 0, 0, 0]));
    assert_eq!(client.request(READDIR, ROOT, &read).0, libc::ENOMEM);
}

#[test]
fn the_session_is_opened_in_a_version_both_speak() {
    if !is_possible() {
        return;
    }
    let directory = directory();
    let mut client = Client::start_only(directory.path(), &[]);
    assert_eq!(client.init(6, 0).0, libc::EPROTO);
    assert_eq!(client.init(7, 19).0, libc::EPROTO);
    let (error, body) = client.init(8, 0);
    assert_eq!((error, &body[..4]), (0, &7u32.to_le_bytes()[..]));
    let (error, body) = client.init(7, 38);
    assert_eq!(error, 0);
    let flags = u32::from_le_bytes(body[12..16].try_into().expect("four bytes"));
    // linux/fuse.h: POSIX_LOCKS, FLOCK_LOCKS and WRITEBACK_CACHE stay the guest's, MAX_PAGES is offered
    assert_eq!(flags & (1 << 1 | 1 << 10 | 1 << 16), 0);
    assert_ne!(flags & 1 << 22, 0);
    assert_eq!(body[20..24], (128u32 << 10).to_le_bytes());
    assert_eq!(body[28..30], 32u16.to_le_bytes());
    assert_eq!(client.request(DESTROY, 0, &[]).0, 0);
    assert_eq!(client.init(7, 38).0, 0);
    assert!(client.lookup(ROOT, "hello").is_ok());
}

#[test]
fn what_is_no_request_ends_the_server() {
    if !is_possible() {
        return;
    }
    let directory = directory();
    for message in [&b"hello"[..], &[0xff; 60], &[0; 40]] {
        let mut client = Client::start(directory.path(), &[]);
        client.send_raw(message);
        assert!(!client.exit_status().success());
    }
}

/// Requests with any operation and any content: the server answers, refuses, and goes on.
#[test]
fn no_request_breaks_the_server() {
    if !is_possible() {
        return;
    }
    let directory = directory();
    let mut client = Client::start(directory.path(), &[]);
    let small = prop_oneof![0u64..6, any::<u64>()];
    let word = prop_oneof![
        small.prop_map(|w| w.to_le_bytes().to_vec()),
        Just(text("hello")),
        Just(text("sub")),
        proptest::collection::vec(any::<u8>(), 0..20),
    ];
    let request = (
        prop_oneof![0u32..54, any::<u32>()],
        prop_oneof![0u64..6, any::<u64>()],
        proptest::collection::vec(word, 0..12),
    );
    let mut runner = TestRunner::deterministic();
    for _ in 0..4000 {
        let (opcode, node, body) = request.new_tree(&mut runner).expect("a request").current();
        match opcode {
            FORGET => {
                client.send(opcode, node, &body.concat());
                continue;
            }
            // nodes end with it: no driver asks for one before it has the answer
            DESTROY => drop(client.request(opcode, node, &body.concat())),
            _ => drop(client.send(opcode, node, &body.concat())),
        }
        let (error, _) = client.request(GETATTR, ROOT, &[0; 16]);
        assert_eq!(error, 0, "after {opcode} of {node}: {body:x?}");
    }
    assert!(client.lookup(ROOT, "hello").is_ok() || !directory.path().join("hello").exists());
}
