//! An image as one block device: built once, found again, checked, collected.

#![allow(clippy::unwrap_used)]

mod fixture;

use std::io::{Cursor, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use caisson_image::{BlockForm, Digest, ErrorKind, InUse, Options, Store, silent};
use erofs_rs::backend::SliceImage;
use fixture::*;

const STORE: &str = "CAISSON_TEST_BLOCK_STORE";

fn plain() -> Vec<Vec<u8>> {
    let big = "some text ".repeat(20_000);
    vec![
        layer(&[
            ("etc/", ""),
            ("etc/name", "lower"),
            ("gone", "x"),
            ("big", &big),
        ]),
        layer(&[("etc/name", "upper"), (".wh.gone", "")]),
    ]
}

async fn load(store: &Store) -> Digest {
    let archive = docker_archive(&["app:1"], &plain(), &plain());
    store.load(Cursor::new(archive), silent()).await.unwrap();
    store.resolve("app:1").unwrap().id().clone()
}

fn read(form: &BlockForm, path: &str) -> Option<String> {
    let bytes = std::fs::read(&form.path).unwrap();
    assert_eq!(bytes.len() as u64, form.size_bytes);
    assert_eq!(Digest::of(&bytes), form.digest);
    let fs = erofs_rs::EroFS::new(SliceImage::new(&bytes)).unwrap();
    let mut text = String::new();
    fs.open(path).ok()?.read_to_string(&mut text).unwrap();
    Some(text)
}

fn blocks(store: &Store) -> usize {
    count(&store.root().join("blocks"))
}

fn reopen(store: Store) -> Store {
    let root = store.root().to_owned();
    drop(store);
    Store::open(root, Options::default()).unwrap()
}

#[tokio::test]
async fn it_is_the_union_of_the_layers_and_built_once() {
    let (_dir, store) = store();
    let id = load(&store).await;
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (store, id) = (store.clone(), id.clone());
            tokio::spawn(async move {
                let form = store.block_form(&id, vec![]).await.unwrap();
                let inode = std::fs::metadata(&form.path).unwrap().ino();
                (form, inode)
            })
        })
        .collect();
    let mut found = Vec::new();
    for task in tasks {
        found.push(task.await.unwrap());
    }
    assert!(found.iter().all(|other| *other == found[0]), "{found:?}");
    let form = &found[0].0;
    assert_eq!(read(form, "/etc/name").as_deref(), Some("upper"));
    assert_eq!(read(form, "/gone"), None);
    assert_eq!((blocks(&store), leftovers(&store).len()), (1, 0));
    // Found again by the next daemon.
    let store = reopen(store);
    let again = store.block_form(&id, vec![]).await.unwrap();
    assert_eq!(again, *form);
    assert_eq!(std::fs::metadata(&again.path).unwrap().ino(), found[0].1);
}

#[tokio::test]
async fn a_directory_above_makes_another_one() {
    let (dir, store) = store();
    let id = load(&store).await;
    let above = dir.path().join("mount-points");
    std::fs::create_dir_all(above.join("proc")).unwrap();
    std::fs::write(above.join("hosts"), "empty").unwrap();
    let bare = store.block_form(&id, vec![]).await.unwrap();
    let form = store.block_form(&id, vec![above]).await.unwrap();
    assert_ne!(form.path, bare.path);
    assert_eq!(read(&form, "/hosts").as_deref(), Some("empty"));
    assert_eq!(read(&form, "/etc/name").as_deref(), Some("upper"));
    store.remove("app:1", false, true, vec![]).await.unwrap();
    assert_eq!(blocks(&store), 0);
}

#[tokio::test]
async fn a_damaged_or_lost_one_is_built_again() {
    let (_dir, mut store) = store();
    let id = load(&store).await;
    let form = store.block_form(&id, vec![]).await.unwrap();
    for reopened in [false, true] {
        let file = std::fs::File::options()
            .write(true)
            .open(&form.path)
            .unwrap();
        let before = file.metadata().unwrap().modified().unwrap();
        file.write_all_at(b"X", form.size_bytes - 5000).unwrap();
        if reopened {
            // As a disk that forgets would have it: nothing but the bytes differ.
            file.set_modified(before).unwrap();
            store = reopen(store);
        }
        let again = store.block_form(&id, vec![]).await.unwrap();
        assert_eq!(again, form);
        assert_eq!(read(&again, "/etc/name").as_deref(), Some("upper"));
    }
    std::fs::remove_file(&form.path).unwrap();
    assert_eq!(store.block_form(&id, vec![]).await.unwrap(), form);
    let file = std::fs::File::options()
        .write(true)
        .open(&form.path)
        .unwrap();
    file.set_len(form.size_bytes - 4096).unwrap();
    assert_eq!(store.block_form(&id, vec![]).await.unwrap(), form);
    assert!(read(&form, "/big").is_some());
}

#[tokio::test]
async fn it_goes_with_its_image_and_not_before() {
    let (_dir, store) = store();
    let id = load(&store).await;
    // Another name and configuration of the same layers.
    let mut config = config(&plain());
    config["config"]["Cmd"] = serde_json::json!(["other"]);
    let other = docker_archive_with(&["other:1"], &config, &plain());
    store.load(Cursor::new(other), silent()).await.unwrap();
    let other = store.resolve("other:1").unwrap().id().clone();
    let form = store.block_form(&id, vec![]).await.unwrap();
    assert_eq!(store.block_form(&other, vec![]).await.unwrap(), form);
    store.remove("app:1", false, true, vec![]).await.unwrap();
    assert_eq!(blocks(&store), 1);
    let users = vec![InUse {
        image: other.clone(),
        container: "c0ffee".into(),
        running: false,
    }];
    store
        .remove("other:1", true, true, users.clone())
        .await
        .unwrap();
    assert!(store.resolve("other:1").is_err());
    assert_eq!(store.block_form(&other, vec![]).await.unwrap(), form);
    let store = reopen(store);
    store.collect_garbage(users).await.unwrap();
    assert_eq!(store.block_form(&other, vec![]).await.unwrap(), form);
    let collected = store.collect_garbage(vec![]).await.unwrap();
    assert_eq!(collected.blocks.len(), 1);
    assert!(collected.bytes() > form.size_bytes);
    assert_eq!((blocks(&store), leftovers(&store).len()), (0, 0));
    let error = store.block_form(&other, vec![]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_store_of_the_generation_before_is_brought_up_to_date() {
    let (_dir, store) = store();
    let id = load(&store).await;
    let root = store.root().to_owned();
    drop(store);
    let db = rusqlite::Connection::open(root.join("images.db")).unwrap();
    db.execute_batch("DROP TABLE blocks; PRAGMA user_version = 1")
        .unwrap();
    drop(db);
    std::fs::remove_dir(root.join("blocks")).unwrap();
    let store = Store::open(root, Options::default()).unwrap();
    let form = store.block_form(&id, vec![]).await.unwrap();
    assert_eq!(reopen(store).block_form(&id, vec![]).await.unwrap(), form);
}

/// The part of the test below that gets killed; by itself it does nothing.
#[tokio::test]
async fn child_that_builds() {
    let Ok(root) = std::env::var(STORE) else {
        return;
    };
    let store = Store::open(root, Options::default()).unwrap();
    let id = store.resolve("app:1").unwrap().id().clone();
    store.block_form(&id, vec![]).await.unwrap();
}

#[tokio::test]
async fn killed_while_building_nothing_wrong_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str| {
        let root = dir.path().join(name);
        Store::open(root, Options::default()).unwrap()
    };
    let child = |root: &Path| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_builds"])
            .env(STORE, root)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let store = make("whole");
    load(&store).await;
    let root = store.root().to_owned();
    drop(store);
    let began = Instant::now();
    assert!(child(&root).wait().unwrap().success());
    let whole = began.elapsed();
    for step in 0..12_u32 {
        let store = make(&format!("store{step}"));
        let id = load(&store).await;
        let root = store.root().to_owned();
        drop(store);
        let mut child = child(&root);
        tokio::time::sleep(whole * step / 10).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let store = Store::open(&root, Options::default()).unwrap();
        assert_eq!(leftovers(&store), Vec::<String>::new());
        let form = store.block_form(&id, vec![]).await.unwrap();
        assert_eq!(read(&form, "/etc/name").as_deref(), Some("upper"));
        assert_eq!(blocks(&store), 1);
    }
}

/// A file system of this size.
struct Small(tempfile::TempDir);

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_nothing_is_left() {
    let disk = Small(tempfile::tempdir().unwrap());
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
        .arg(disk.0.path())
        .status();
    assert!(mounted.unwrap().success(), "mounting a tmpfs needs root");
    let store = Store::open(disk.0.path().join("image"), Options::default()).unwrap();
    let id = load(&store).await;
    let filler: PathBuf = disk.0.path().join("filler");
    let stat = rustix::fs::statvfs(disk.0.path()).unwrap();
    let free = (stat.f_bavail * stat.f_frsize).saturating_sub(100_000);
    let file = std::fs::File::create(&filler).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, free).unwrap();
    let error = store.block_form(&id, vec![]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert!(error.to_string().contains("No space left"), "{error}");
    assert_eq!((blocks(&store), leftovers(&store).len()), (0, 0));
    drop(file);
    std::fs::remove_file(filler).unwrap();
    let form = store.block_form(&id, vec![]).await.unwrap();
    assert_eq!(read(&form, "/etc/name").as_deref(), Some("upper"));
}
