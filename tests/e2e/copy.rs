//! `cp` in both directions: files, directories, links, streams, and paths that try to leave the container.

use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use caisson_tests::{IMAGE, Test, cases, client};

fn shown(path: &std::path::Path) -> String {
    path.display().to_string()
}

fn file_in_and_out(t: &Test) {
    let source = t.file("source", "content\n");
    std::fs::set_permissions(&source, std::fs::Permissions::from_mode(0o750)).expect("own file");
    let id = t.sleeper(&[]);
    t.cli(&["cp", &shown(&source), &format!("{id}:/root/copy")])
        .ok();
    assert_eq!(
        t.exec(&id, "cat /root/copy; stat -c '%a %u' /root/copy"),
        "content\n750 0"
    );
    let back = t.directory().join("back");
    t.cli(&["cp", &format!("{id}:/root/copy"), &shown(&back)])
        .ok();
    assert_eq!(std::fs::read_to_string(&back).expect("a copy"), "content\n");
    assert_eq!(
        std::fs::metadata(&back).expect("a copy").mode() & 0o777,
        0o750
    );
}

fn into_an_existing_directory(t: &Test) {
    let source = t.file("named", "x");
    let id = t.sleeper(&[]);
    t.cli(&["cp", &shown(&source), &format!("{id}:/tmp")]).ok();
    t.cli(&["cp", &shown(&source), &format!("{id}:/tmp/")]).ok();
    assert_eq!(t.exec(&id, "cat /tmp/named"), "x");
    t.cli(&["cp", &shown(&source), &format!("{id}:/missing/")])
        .fails();
    t.cli(&["cp", &shown(&source), &format!("{id}:/missing/file")])
        .fails();
}

fn directories(t: &Test) {
    t.file("tree/a", "1");
    t.file("tree/sub/b", "2");
    let tree = t.directory().join("tree");
    let id = t.sleeper(&[]);
    t.cli(&["cp", &shown(&tree), &format!("{id}:/tmp/new")])
        .ok();
    assert_eq!(t.exec(&id, "cat /tmp/new/a /tmp/new/sub/b"), "12");
    t.cli(&["cp", &shown(&tree), &format!("{id}:/tmp/new")])
        .ok();
    assert_eq!(t.exec(&id, "cat /tmp/new/tree/sub/b"), "2");
    t.cli(&["cp", &format!("{}/.", shown(&tree)), &format!("{id}:/home")])
        .ok();
    assert_eq!(t.exec(&id, "cat /home/sub/b"), "2");
    let back = t.directory().join("back");
    t.cli(&["cp", &format!("{id}:/tmp/new"), &shown(&back)])
        .ok();
    assert_eq!(
        std::fs::read_to_string(back.join("tree/sub/b")).expect("a copy"),
        "2"
    );
}

fn stopped_container(t: &Test) {
    let source = t.file("source", "early");
    let id = t.create(&[IMAGE, "cat", "/etc/early"]);
    t.cli(&["cp", &shown(&source), &format!("{id}:/etc/early")])
        .ok();
    t.cli(&["start", "-a", &id]).ok().prints("early");
    let back = t.directory().join("back");
    t.cli(&["cp", &format!("{id}:/etc/early"), &shown(&back)])
        .ok();
    assert_eq!(std::fs::read_to_string(back).expect("a copy"), "early");
}

fn symlinks(t: &Test) {
    let id = t.sleeper(&[]);
    t.exec(&id, "echo target > /root/file; ln -s file /root/link");
    let (link, followed) = (t.directory().join("link"), t.directory().join("followed"));
    t.cli(&["cp", &format!("{id}:/root/link"), &shown(&link)])
        .ok();
    assert_eq!(
        std::fs::read_link(&link).expect("a symbolic link").to_str(),
        Some("file")
    );
    t.cli(&["cp", "-L", &format!("{id}:/root/link"), &shown(&followed)])
        .ok();
    assert_eq!(
        std::fs::read_to_string(&followed).expect("a copy"),
        "target\n"
    );
}

fn absolute_links_stay_inside(t: &Test) {
    // /root/out points at the host's scratch directory: writing through it must land in the container
    let outside = t.directory().join("outside");
    std::fs::create_dir(&outside).expect("a directory");
    let source = t.file("source", "x");
    let id = t.sleeper(&[]);
    t.exec(
        &id,
        &format!("mkdir -p {0}; ln -s {0} /root/out", shown(&outside)),
    );
    t.cli(&["cp", &shown(&source), &format!("{id}:/root/out/file")])
        .ok();
    assert!(!outside.join("file").exists(), "it escaped");
    assert_eq!(t.exec(&id, &format!("cat {}/file", shown(&outside))), "x");
}

fn dot_dot_stays_inside(t: &Test) {
    let id = t.sleeper(&[]);
    let out = t.directory().join("out");
    t.cli(&[
        "cp",
        &format!("{id}:/../../../../etc/os-release"),
        &shown(&out),
    ])
    .ok();
    assert!(
        std::fs::read_to_string(&out)
            .expect("a copy")
            .contains("caisson toolbox")
    );
    t.exec(&id, "ln -s ../../../../../../../../etc/hostname /tmp/up");
    let up = t.directory().join("up");
    t.cli(&["cp", "-L", &format!("{id}:/tmp/up"), &shown(&up)])
        .ok();
    assert_eq!(
        std::fs::read_to_string(&up).expect("a copy").trim(),
        &id[..12]
    );
}

fn tar_out_to_stdout(t: &Test) {
    let id = t.sleeper(&[]);
    t.exec(&id, "mkdir /d; echo one > /d/1");
    let outcome = t.cli(&["cp", &format!("{id}:/d"), "-"]);
    let mut archive = tar::Archive::new(outcome.ok().stdout.as_slice());
    let mut seen = Vec::new();
    for entry in archive.entries().expect("a tar archive") {
        let mut entry = entry.expect("a tar archive");
        let mut text = String::new();
        entry.read_to_string(&mut text).expect("text");
        seen.push((
            entry
                .path()
                .expect("a path")
                .display()
                .to_string()
                .trim_end_matches('/')
                .to_string(),
            text,
        ));
    }
    assert_eq!(
        seen,
        [("d".into(), String::new()), ("d/1".into(), "one\n".into())]
    );
}

fn tar_in_from_stdin(t: &Test) {
    let id = t.sleeper(&[]);
    let tar = caisson_tests::fixture::pack(&[("x/y".into(), b"streamed".to_vec())]);
    t.cli_with_input(&["cp", "-", &format!("{id}:/tmp")], &tar)
        .ok();
    assert_eq!(t.exec(&id, "cat /tmp/x/y"), "streamed");
    t.cli_with_input(&["cp", "-", &format!("{id}:/etc/passwd")], &tar)
        .fails();
}

fn evil_archives_stay_inside(t: &Test) {
    use caisson_tests::fixture::{Entry, layer};
    let id = t.sleeper(&[]);
    let outside = t.directory().join("pwned");
    let path = shown(&outside);
    for entries in [
        vec![Entry::File(
            "../../../../../../../../tmp/caisson-pwned",
            b"x",
        )],
        vec![
            Entry::Symlink("link", "/"),
            Entry::File("link/caisson-pwned", b"x"),
        ],
        vec![Entry::File(&path, b"x")],
    ] {
        let _ = t.cli_with_input(&["cp", "-", &format!("{id}:/tmp")], &layer(&entries));
        for escaped in [
            outside.as_path(),
            "/tmp/caisson-pwned".as_ref(),
            "/caisson-pwned".as_ref(),
        ] {
            assert!(
                !escaped.exists(),
                "{} was written on the host",
                escaped.display()
            );
        }
    }
}

fn missing_paths(t: &Test) {
    let id = t.sleeper(&[]);
    t.cli(&["cp", &format!("{id}:/missing"), "-"])
        .fails()
        .complains(&["could not find the file", "no such file"]);
    t.cli(&["cp", "/missing/on/host", &format!("{id}:/tmp")])
        .fails()
        .complains(&["no such file"]);
    t.cli(&["cp", "no-such-container:/etc", "-"])
        .fails()
        .complains(&["no such container"]);
}

fn ownership(t: &Test) {
    let source = t.file("owned", "x");
    std::os::unix::fs::chown(&source, Some(1234), Some(2345)).expect("tests run as root");
    let id = t.sleeper(&[]);
    t.cli(&["cp", "-a", &shown(&source), &format!("{id}:/tmp/kept")])
        .ok();
    t.cli(&["cp", &shown(&source), &format!("{id}:/tmp/taken")])
        .ok();
    assert_eq!(
        t.exec(&id, "stat -c '%u:%g' /tmp/kept /tmp/taken"),
        "1234:2345\n1234:2345"
    );
}

fn bind_mounts_are_reached(t: &Test) {
    let shared = t.directory().join("shared");
    std::fs::create_dir(&shared).expect("a directory");
    let source = t.file("source", "through");
    let id = t.sleeper(&["-v", &format!("{}:/data", shown(&shared))]);
    t.cli(&["cp", &shown(&source), &format!("{id}:/data/file")])
        .ok();
    assert_eq!(
        std::fs::read_to_string(shared.join("file")).expect("on the host"),
        "through"
    );
}

fn read_only_root_refuses(t: &Test) {
    let source = t.file("source", "x");
    let id = t.sleeper(&["--read-only"]);
    t.cli(&["cp", &shown(&source), &format!("{id}:/etc/x")])
        .fails()
        .complains(&["read-only", "read only"]);
}

fn large_files(t: &Test) {
    let source = t.file("large", vec![7_u8; 30 << 20]);
    let id = t.sleeper(&[]);
    t.cli(&["cp", &shown(&source), &format!("{id}:/tmp/large")])
        .ok();
    let outcome = client::run(t.command(["cp", &format!("{id}:/tmp/large"), "-"]), b"");
    assert!(outcome.ok().stdout.len() >= 30 << 20);
    assert_eq!(t.exec(&id, "wc -c < /tmp/large"), (30 << 20).to_string());
}

fn symlinked_source_on_the_host(t: &Test) {
    let source = t.file("real", "pointed at");
    let link = t.directory().join("link");
    symlink(&source, &link).expect("a link");
    let id = t.sleeper(&[]);
    t.cli(&["cp", "-L", &shown(&link), &format!("{id}:/tmp/followed")])
        .ok();
    assert_eq!(t.exec(&id, "cat /tmp/followed"), "pointed at");
}

cases![
    file_in_and_out.core(),
    into_an_existing_directory,
    directories,
    stopped_container.core(),
    symlinks,
    absolute_links_stay_inside,
    dot_dot_stays_inside,
    tar_out_to_stdout,
    tar_in_from_stdin,
    evil_archives_stay_inside,
    missing_paths,
    ownership,
    bind_mounts_are_reached,
    read_only_root_refuses,
    large_files,
    symlinked_source_on_the_host,
];
