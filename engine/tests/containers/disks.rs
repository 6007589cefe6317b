//! Containers whose isolation wants block devices: what they are made of, and what of them is left.

use std::os::unix::fs::MetadataExt as _;

use caisson_engine::runtime::{Rootfs, RootfsForm};

use super::*;

async fn house() -> House {
    House::of(RootfsForm::Block).await
}

fn disk(house: &House, id: &str) -> std::path::PathBuf {
    house
        .dir
        .path()
        .join("data/containers")
        .join(id)
        .join("disk.ext4")
}

fn sized(size: &str) -> api::HostConfig {
    api::HostConfig {
        storage_opt: Some([("size".to_string(), size.to_string())].into()),
        ..Default::default()
    }
}

#[tokio::test]
async fn the_image_is_one_device_that_all_share_and_each_has_a_disk() {
    let house = house().await;
    let a = house
        .run("one", &["exit", "0"], api::HostConfig::default())
        .await;
    let b = house.run("two", &["exit", "0"], sized("64m")).await;
    let [first, second] = &house.ledger.rootfs()[..] else {
        panic!("{:?}", house.ledger.rootfs());
    };
    let devices = |rootfs: &Rootfs| match rootfs {
        Rootfs::Block { lower, upper } => (lower.clone(), upper.clone()),
        other => panic!("{other:?}"),
    };
    let ((lower, upper), (other_lower, other_upper)) = (devices(first), devices(second));
    assert_eq!(lower, other_lower);
    assert_eq!(
        (&upper, &other_upper),
        (&disk(&house, &a), &disk(&house, &b))
    );
    let meta = std::fs::metadata(&upper).unwrap();
    assert_eq!(meta.len(), 10 << 30);
    assert!(meta.blocks() * 512 < 1 << 20);
    assert_eq!(std::fs::metadata(&other_upper).unwrap().len(), 64 << 20);
    // The magic numbers: of EROFS, of ext4.
    let at = |path: &Path, at: usize| std::fs::read(path).unwrap()[at..at + 4].to_vec();
    assert_eq!(at(&lower, 1024), [0xe2, 0xe1, 0xf5, 0xe0]);
    assert_eq!(at(&other_upper, 1024 + 56)[..2], [0x53, 0xef]);
    // The image's files and the mount points that every container needs.
    let bytes = std::fs::read(&lower).unwrap();
    for name in [&b"passwd"[..], b"resolv.conf", b"proc"] {
        assert!(bytes.windows(name.len()).any(|w| w == name));
    }
    for id in [&a, &b] {
        house
            .engine()
            .remove(id, RemoveOptions::default())
            .await
            .unwrap();
        assert!(!disk(&house, id).exists());
    }
    assert!(lower.exists());
}

#[tokio::test]
async fn a_disk_is_as_large_as_asked_or_refused() {
    let house = house().await;
    for wrong in ["1k", "many", "999999t"] {
        let error = house
            .create("one", &["exit", "0"], sized(wrong))
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    }
    house
        .create("one", &["exit", "0"], sized("20000001"))
        .await
        .unwrap();
    let overlay = House::new().await;
    let error = overlay
        .create("one", &["exit", "0"], sized("1g"))
        .await
        .unwrap_err();
    assert!(error.message.contains("--isolation=vm"), "{error}");
}

#[tokio::test]
async fn a_lost_disk_is_an_error_and_not_an_empty_one() {
    let house = house().await;
    let id = house
        .create("one", &["exit", "0"], sized("64m"))
        .await
        .unwrap();
    std::fs::remove_file(disk(&house, &id)).unwrap();
    let error = house.engine().start(&id).await.unwrap_err();
    assert!(error.message.contains("disk.ext4"), "{error}");
    assert_eq!(house.ledger.left(), 0);
}

#[tokio::test]
async fn diff_and_commit_ask_the_sandbox() {
    let house = house().await;
    let id = house
        .create("one", &["exit", "0"], sized("64m"))
        .await
        .unwrap();
    let changes = house.engine().changes(&id).await.unwrap();
    let told: Vec<_> = changes.iter().map(|c| (c.kind, c.path.as_str())).collect();
    assert_eq!(told, [(0, "/etc"), (2, "/etc/passwd"), (1, "/new")]);
    let options = CommitOptions {
        container: id.clone(),
        reference: Some("made".into()),
        ..CommitOptions::default()
    };
    let image = house.engine().commit(options).await.unwrap();
    let made = house.engine().image_inspect(&image).await.unwrap();
    assert_eq!(made.root_fs.layers.len(), 2);
    // The sandbox that was made for it is gone again.
    for _ in 0..100 {
        if house.ledger.left() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(house.ledger.left(), 0);
    let inspected = house.engine().inspect(&id, true).await.unwrap();
    assert_eq!(inspected.graph_driver.name, "block");
    assert_eq!(inspected.size_rw, Some(0));
}
