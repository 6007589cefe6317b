//! Copies in and out, stat, export.

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use caisson_runtime::*;
use tokio::io::AsyncReadExt;

use crate::bench::*;

crate::contract! {
    stat_tells_what_a_path_is, a_tree_is_read, a_tree_is_written, links_do_not_lead_out, copies_without_a_process,
    export_is_the_bare_root, missing_paths, a_broken_archive_is_refused, a_large_file_both_ways, writing_over,
}

fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o640);
        header.set_uid(1234);
        header.set_gid(4321);
        builder
            .append_data(&mut header, name, *content)
            .expect("appended");
    }
    builder.into_inner().expect("finished")
}

fn stream(bytes: Vec<u8>) -> TarStream {
    Box::pin(std::io::Cursor::new(bytes))
}

async fn entries(mut tar: TarStream) -> Vec<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    tar.read_to_end(&mut bytes).await.expect("read");
    let mut archive = tar::Archive::new(&bytes[..]);
    let entries = archive.entries().expect("an archive");
    entries
        .map(|entry| {
            let mut entry = entry.expect("an entry");
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("read");
            (entry.path().expect("a path").display().to_string(), content)
        })
        .collect()
}

async fn stat_tells_what_a_path_is(bench: &Bench) {
    let sandbox = bench.running("echo hello > /tmp/f; sleep 1000").await;
    bench
        .eventually("the file is there", async || {
            sandbox
                .stat_path(Path::new("/tmp/f"))
                .await
                .is_ok_and(|s| s.size == 6)
        })
        .await;
    let stat = sandbox
        .stat_path(Path::new("/tmp/f"))
        .await
        .expect("a stat");
    assert_eq!(
        (stat.name.as_str(), stat.mode & 0o170000, stat.link_target),
        ("f", 0o100000, None)
    );
    let stat = sandbox.stat_path(Path::new("/tmp")).await.expect("a stat");
    assert_eq!(stat.mode & 0o170000, 0o040000);
    let stat = sandbox
        .stat_path(Path::new("/bin/sh"))
        .await
        .expect("a stat");
    assert_eq!(stat.mode & 0o170000, 0o120000);
    assert!(stat.link_target.is_some_and(|t| t.ends_with("busybox")));
    // What is mounted is seen, too.
    assert!(
        sandbox
            .stat_path(Path::new("/proc/1/cmdline"))
            .await
            .is_ok()
    );
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn a_tree_is_read(bench: &Bench) {
    let sandbox = bench.running("mkdir -p /tmp/d/e; echo one > /tmp/d/1; echo two > /tmp/d/e/2; echo > /tmp/done; sleep 1000").await;
    bench
        .eventually("it is there", async || {
            sandbox.stat_path(Path::new("/tmp/done")).await.is_ok()
        })
        .await;
    let mut found = entries(
        sandbox
            .read_path(Path::new("/tmp/d"))
            .await
            .expect("a tree"),
    )
    .await;
    found.sort();
    let names: Vec<_> = found
        .iter()
        .map(|(name, _)| name.trim_end_matches('/'))
        .collect();
    assert_eq!(names, ["d", "d/1", "d/e", "d/e/2"]);
    assert_eq!(found[3].1, b"two\n");
    let found = entries(
        sandbox
            .read_path(Path::new("/tmp/d/1"))
            .await
            .expect("a file"),
    )
    .await;
    assert_eq!(found, [("1".to_string(), b"one\n".to_vec())]);
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn a_tree_is_written(bench: &Bench) {
    let sandbox = bench.running("sleep 1000").await;
    let tar = archive(&[("a/b", b"content"), ("c", b"")]);
    sandbox
        .write_path(
            Path::new("/tmp"),
            stream(tar.clone()),
            WriteOptions::default(),
        )
        .await
        .expect("written");
    let (output, _) = exec(&*sandbox, "look", "cat /tmp/a/b; ls -n /tmp/c").await;
    assert!(
        output
            .out()
            .starts_with("content-rw-r-----    1 0        0"),
        "{output:?}"
    );
    let keep = WriteOptions {
        keep_ownership: true,
        ..WriteOptions::default()
    };
    sandbox
        .write_path(Path::new("/root"), stream(tar), keep)
        .await
        .expect("written");
    let (output, _) = exec(&*sandbox, "look2", "ls -n /root/c").await;
    assert!(output.out().contains("1234     4321"), "{output:?}");
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn writing_over(bench: &Bench) {
    let sandbox = bench.running("mkdir /tmp/x; sleep 1000").await;
    bench
        .eventually("it is there", async || {
            sandbox.stat_path(Path::new("/tmp/x")).await.is_ok()
        })
        .await;
    let strict = WriteOptions {
        no_overwrite_dir_non_dir: true,
        ..WriteOptions::default()
    };
    let error = sandbox
        .write_path(
            Path::new("/tmp"),
            stream(archive(&[("x", b"file")])),
            strict,
        )
        .await;
    assert!(error.is_err());
    let error = sandbox
        .write_path(
            Path::new("/bin/busybox"),
            stream(archive(&[("x", b"")])),
            strict,
        )
        .await;
    assert_eq!(error.expect_err("no directory").kind, ErrorKind::Invalid);
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn links_do_not_lead_out(bench: &Bench) {
    let secret = bench.dir.path().join("secret");
    fs::create_dir(&secret).expect("made");
    fs::write(secret.join("key"), "private").expect("written");
    let outside = secret.display();
    let script = format!(
        "ln -s {outside} /tmp/abs; ln -s ../../../../../../../..{outside} /tmp/rel; ln -s /proc/1/root/../..{outside} /tmp/proc; \
         ln -s /etc /tmp/etc; echo > /tmp/done; sleep 1000"
    );
    let sandbox = bench.running(&script).await;
    bench
        .eventually("it is there", async || {
            sandbox.stat_path(Path::new("/tmp/done")).await.is_ok()
        })
        .await;
    for link in ["/tmp/abs/key", "/tmp/rel/key", "/tmp/../../../etc/shadow"] {
        let path = Path::new(link);
        assert_eq!(
            sandbox.stat_path(path).await.expect_err(link).kind,
            ErrorKind::NotFound,
            "{link}"
        );
        assert!(sandbox.read_path(path).await.is_err(), "{link}");
    }
    // A link that only a process could follow is not followed at all.
    assert!(sandbox.stat_path(Path::new("/tmp/proc/key")).await.is_err());
    let tar = archive(&[("planted", b"x")]);
    for link in ["/tmp/abs", "/tmp/rel"] {
        assert!(
            sandbox
                .write_path(
                    Path::new(link),
                    stream(tar.clone()),
                    WriteOptions::default()
                )
                .await
                .is_err(),
            "{link}"
        );
    }
    assert_eq!(fs::read_dir(&secret).expect("there").count(), 1);
    // Inside, links are followed.
    sandbox
        .write_path(Path::new("/tmp/etc"), stream(tar), WriteOptions::default())
        .await
        .expect("written");
    assert!(sandbox.stat_path(Path::new("/etc/planted")).await.is_ok());
    // An archive cannot lead out either: neither by its names nor by a link it brings itself.
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder
        .append_link(&mut header, "way", &secret)
        .expect("appended");
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o644);
    builder
        .append_data(&mut header, "way/planted", &b"x"[..])
        .expect("appended");
    let evil = builder.into_inner().expect("finished");
    let _ = sandbox
        .write_path(Path::new("/tmp"), stream(evil), WriteOptions::default())
        .await;
    assert_eq!(fs::read_dir(&secret).expect("there").count(), 1);
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn copies_without_a_process(bench: &Bench) {
    let sandbox = bench.create().await;
    let tar = archive(&[("new", b"content")]);
    sandbox
        .write_path(Path::new("/etc"), stream(tar), WriteOptions::default())
        .await
        .expect("written");
    let written = entries(
        sandbox
            .read_path(Path::new("/etc/new"))
            .await
            .expect("a file"),
    )
    .await;
    assert_eq!(written.len(), 1);
    // What a guest stacks is on its disk, which nobody looks into from outside.
    let seen = bench.isolation == Isolation::Container;
    if seen {
        assert_eq!(
            fs::read(bench.upper(sandbox.id()).join("etc/new")).expect("in the upper layer"),
            b"content"
        );
    }
    let found = entries(
        sandbox
            .read_path(Path::new("/etc/passwd"))
            .await
            .expect("a file"),
    )
    .await;
    assert_eq!(found.len(), 1);
    if seen {
        symlink("/etc/hostname", bench.upper(sandbox.id()).join("host")).expect("linked");
    }
    assert!(
        sandbox
            .read_path(Path::new("/host/../../../../etc/shadow"))
            .await
            .is_err()
    );
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn export_is_the_bare_root(bench: &Bench) {
    let sandbox = bench.running("echo x > /new; sleep 1000").await;
    bench
        .eventually("it is there", async || {
            sandbox.stat_path(Path::new("/new")).await.is_ok()
        })
        .await;
    let names: Vec<String> = entries(sandbox.export().await.expect("a tree"))
        .await
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    for expected in ["new", "bin/busybox", "etc/passwd", "proc/"] {
        assert!(
            names.iter().any(|n| n == expected),
            "{expected} in {names:?}"
        );
    }
    assert!(
        !names
            .iter()
            .any(|n| n.starts_with("proc/1") || n.starts_with("dev/null") || n.starts_with('/')),
        "{names:?}"
    );
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn missing_paths(bench: &Bench) {
    let sandbox = bench.running("sleep 1000").await;
    let missing = Path::new("/no/such");
    assert_eq!(
        sandbox.stat_path(missing).await.expect_err("none").kind,
        ErrorKind::NotFound
    );
    assert_eq!(
        sandbox.read_path(missing).await.err().expect("none").kind,
        ErrorKind::NotFound
    );
    let write = sandbox
        .write_path(missing, stream(archive(&[])), WriteOptions::default())
        .await;
    assert_eq!(write.expect_err("none").kind, ErrorKind::NotFound);
    assert_eq!(
        sandbox
            .stat_path(Path::new("relative"))
            .await
            .expect_err("relative")
            .kind,
        ErrorKind::Invalid
    );
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn a_broken_archive_is_refused(bench: &Bench) {
    let sandbox = bench.running("sleep 1000").await;
    let whole = archive(&[("f", &[7; 100_000])]);
    let error = sandbox
        .write_path(
            Path::new("/tmp"),
            stream(whole[..50_000].to_vec()),
            WriteOptions::default(),
        )
        .await;
    assert!(error.is_err());
    let error = sandbox
        .write_path(
            Path::new("/tmp"),
            stream(vec![0xff; 5_000_000]),
            WriteOptions::default(),
        )
        .await;
    assert_eq!(error.expect_err("no archive").kind, ErrorKind::Invalid);
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn a_large_file_both_ways(bench: &Bench) {
    let sandbox = bench.running("sleep 1000").await;
    let size = bench.many(30_000_000, 3_000_000);
    let content: Vec<u8> = (0..size).map(|n| (n / 7 % 251) as u8).collect();
    let tar = archive(&[("large", &content)]);
    sandbox
        .write_path(Path::new("/tmp"), stream(tar), WriteOptions::default())
        .await
        .expect("written");
    let stat = sandbox.stat_path(Path::new("/tmp/large")).await;
    assert_eq!(stat.expect("there").size as usize, size);
    let found = entries(
        sandbox
            .read_path(Path::new("/tmp/large"))
            .await
            .expect("a file"),
    )
    .await;
    assert!(found[0].1 == content);
    // A reader that goes away in the middle leaves nothing waiting.
    let mut half = sandbox
        .read_path(Path::new("/tmp/large"))
        .await
        .expect("a file");
    half.read_exact(&mut [0; 1000]).await.expect("read");
    drop(half);
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}
