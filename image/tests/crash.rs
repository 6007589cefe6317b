//! Killed at any moment, or with the disk full: the store is usable afterwards and holds whole images only.

#![allow(clippy::unwrap_used)]

mod fixture;

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use caisson_image::{
    Commit, CommitSource, Error, ErrorKind, Import, Options, RunConfig, Store, silent,
};
use fixture::*;

const STORE: &str = "CAISSON_TEST_STORE";
const ARCHIVE: &str = "CAISSON_TEST_ARCHIVE";

/// The part of the tests below that gets killed; by itself it does nothing.
#[tokio::test]
async fn child_that_loads() {
    let (Ok(store), Ok(archive)) = (std::env::var(STORE), std::env::var(ARCHIVE)) else {
        return;
    };
    let store = Store::open(store, Options::default()).unwrap();
    store
        .load(std::fs::File::open(archive).unwrap(), silent())
        .await
        .unwrap();
}

fn files(n: usize) -> Vec<(String, String)> {
    (0..n)
        .map(|i| {
            (
                format!("dir{}/file{i}", i % 17),
                format!("contents of {i} ").repeat(50),
            )
        })
        .collect()
}

fn many(n: usize) -> Vec<u8> {
    let files = files(n);
    let files: Vec<(&str, &str)> = files
        .iter()
        .map(|(n, d)| (n.as_str(), d.as_str()))
        .collect();
    layer(&files)
}

fn assert_whole(store: &Store, name: &str, n: usize) {
    let image = store.resolve(name).unwrap();
    for dir in store.layer_dirs(&image) {
        for (name, data) in files(n) {
            assert_eq!(
                std::fs::read_to_string(dir.join(&name)).unwrap(),
                data,
                "{name}"
            );
        }
    }
}

#[tokio::test]
async fn killed_while_loading_the_store_opens_and_loads_again() {
    let dir = tempfile::tempdir().unwrap();
    let plain = vec![many(400)];
    let archive = dir.path().join("image.tar");
    std::fs::write(
        &archive,
        docker_archive(&["app:1"], &plain, &[gzip(&plain[0])]),
    )
    .unwrap();
    let child = |root: &Path| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_loads"])
            .env(STORE, root)
            .env(ARCHIVE, &archive)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let began = Instant::now();
    assert!(child(&dir.path().join("whole")).wait().unwrap().success());
    let whole = began.elapsed();
    let (mut before, mut after) = (0, 0);
    for step in 0..12_u32 {
        let root = dir.path().join(format!("store{step}"));
        let mut child = child(&root);
        tokio::time::sleep(whole * step / 10).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let store = Store::open(&root, Options::default()).unwrap();
        match store.list().len() {
            0 => before += 1,
            _ => after += 1,
        }
        if !store.list().is_empty() {
            assert_whole(&store, "app:1", 400);
        }
        let stray: Vec<String> = leftovers(&store)
            .into_iter()
            .filter(|n| !n.ends_with(".partial"))
            .collect();
        assert_eq!(stray, Vec::<String>::new());
        store
            .load(std::fs::File::open(&archive).unwrap(), silent())
            .await
            .unwrap();
        assert_whole(&store, "app:1", 400);
        store
            .prune(caisson_image::PruneFilter::default(), vec![])
            .await
            .unwrap();
        assert_eq!(
            (leftovers(&store).len(), count(&root.join("layers"))),
            (0, 1)
        );
        drop(store);
        std::fs::remove_dir_all(&root).unwrap();
    }
    assert!(before > 0, "no kill came before the image was there");
    eprintln!("killed {before} times before, {after} times after");
}

/// A file system of this size.
struct Small {
    dir: tempfile::TempDir,
}

impl Small {
    fn mount(megabytes: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(dir.path())
            .status();
        assert!(mounted.unwrap().success(), "mounting a tmpfs needs root");
        Small { dir }
    }
    fn path(&self) -> &Path {
        self.dir.path()
    }
    /// Leaves so many bytes free.
    fn fill(&self, leave: u64) -> PathBuf {
        let free = || {
            let st = rustix::fs::statvfs(self.path()).unwrap();
            st.f_bavail * st.f_frsize
        };
        let path = self.path().join("filler");
        let file = std::fs::File::create(&path).unwrap();
        let amount = free().saturating_sub(leave);
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, amount).unwrap();
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.dir.path())
            .status();
    }
}

fn assert_empty(store: &Store, error: &Error) {
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert!(error.to_string().contains("No space left"), "{error}");
    assert!(leftovers(store).is_empty(), "{:?}", leftovers(store));
    assert_eq!(
        (
            count(&store.root().join("layers")),
            count(&store.root().join("blobs/sha256"))
        ),
        (1, 3)
    );
}

#[tokio::test]
async fn a_full_disk_fails_the_step_and_leaves_the_store_usable() {
    let disk = Small::mount(12);
    let store = Store::open(disk.path().join("image"), Options::default()).unwrap();
    let small = vec![layer(&[("f", "x")])];
    store
        .load(
            Cursor::new(docker_archive(&["small:1"], &small, &small)),
            silent(),
        )
        .await
        .unwrap();
    let parent = store.resolve("small:1").unwrap().id().clone();
    let mut random = vec![0_u8; 7 << 20];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).unwrap();
    let random: String = random.iter().map(|b| char::from(b % 64 + 48)).collect();
    let big = vec![layer(&[("big", &random)])];
    // The blob fits, the unpacked layer does not; and neither the blob.
    let error = store
        .load(
            Cursor::new(docker_archive(&["big:1"], &big, &big)),
            silent(),
        )
        .await
        .unwrap_err();
    assert_empty(&store, &error);
    let huge = vec![layer(&[("big", &random.repeat(2))])];
    let error = store
        .load(
            Cursor::new(docker_archive(&["big:1"], &huge, &huge)),
            silent(),
        )
        .await
        .unwrap_err();
    assert_empty(&store, &error);
    let import = Import {
        config: RunConfig::default(),
        message: String::new(),
        platform: None,
        tag: None,
    };
    let error = store
        .import(Cursor::new(big[0].clone()), import, silent())
        .await
        .unwrap_err();
    assert_empty(&store, &error);
    let upper = tempfile::tempdir().unwrap();
    std::fs::write(upper.path().join("big"), random.repeat(2)).unwrap();
    let commit = Commit {
        parent: Some(parent),
        source: CommitSource::Upper(upper.path().to_owned()),
        config: RunConfig::default(),
        author: String::new(),
        comment: String::new(),
        created_by: String::new(),
        created: None,
        tag: None,
    };
    let error = store.commit(commit).await.unwrap_err();
    assert_empty(&store, &error);
    // Not even the database can grow.
    let filler = disk.fill(0);
    let mut failed = None;
    for i in 0..200 {
        let target = format!("small:{}{i}", "t".repeat(100)).parse().unwrap();
        if let Err(error) = store.tag("small:1", &target) {
            failed = Some(error);
            break;
        }
    }
    let error = failed.expect("the disk is full");
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    std::fs::remove_file(filler).unwrap();
    store.tag("small:1", &"small:2".parse().unwrap()).unwrap();
    let other = vec![layer(&[("f", "y")])];
    store
        .load(
            Cursor::new(docker_archive(&["other:1"], &other, &other)),
            silent(),
        )
        .await
        .unwrap();
    drop(store);
    let store = Store::open(disk.path().join("image"), Options::default()).unwrap();
    assert!(store.resolve("small:2").is_ok() && store.resolve("other:1").is_ok());
}
