//! Loading archives of every kind, and refusing those that lie.

#![allow(clippy::unwrap_used, clippy::cloned_ref_to_slice_refs)]

mod fixture;

use std::io::Cursor;

use caisson_image::{Digest, Error, ErrorKind, Limits, Options, Store, silent};
use fixture::*;
use serde_json::json;

async fn load(store: &Store, archive: Vec<u8>) -> Result<Vec<caisson_image::Loaded>, Error> {
    store.load(Cursor::new(archive), silent()).await
}

/// A refused load leaves no image, blob, layer or temporary file.
async fn refused(archive: Vec<u8>) -> Error {
    let (_dir, store) = store();
    let error = load(&store, archive).await.unwrap_err();
    assert_eq!(store.list().len(), 0);
    assert_eq!(leftovers(&store), Vec::<String>::new(), "{error}");
    assert_eq!(count(&store.root().join("blobs/sha256")), 0, "{error}");
    assert_eq!(count(&store.root().join("layers")), 0, "{error}");
    error
}

#[tokio::test]
async fn a_docker_archive_becomes_layers_and_a_name() {
    let (_dir, store) = store();
    let layers = vec![
        layer(&[("bin/", ""), ("bin/sh", "#!")]),
        layer(&[("etc/", ""), ("etc/x", "top")]),
    ];
    let archive = docker_archive(&["app:1", "other/app:2"], &layers, &layers);
    let loaded = load(&store, archive).await.unwrap();
    assert_eq!(
        loaded[0]
            .references
            .iter()
            .map(|r| r.familiar())
            .collect::<Vec<_>>(),
        ["app:1", "other/app:2"]
    );
    let image = store.resolve("app:1").unwrap();
    assert_eq!(image.id(), &loaded[0].id);
    assert_eq!(Digest::of(image.config_json().as_bytes()), *image.id());
    assert_eq!(image.repo_tags, ["app:1", "other/app:2"]);
    assert_eq!(image.size_bytes(), 5);
    let dirs = store.layer_dirs(&image);
    assert_eq!(
        std::fs::read_to_string(dirs[0].join("etc/x")).unwrap(),
        "top"
    );
    assert_eq!(
        std::fs::read_to_string(dirs[1].join("bin/sh")).unwrap(),
        "#!"
    );
    assert_eq!(leftovers(&store), Vec::<String>::new());
    assert_eq!(
        store
            .history(&image)
            .iter()
            .map(|(_, size)| *size)
            .collect::<Vec<_>>(),
        [3, 2]
    );
}

#[tokio::test]
async fn every_compression_unpacks_to_the_same_layer() {
    let (_dir, store) = store();
    let plain = vec![layer(&[("f", "x")])];
    for (tag, stored) in [
        ("a:plain", plain[0].clone()),
        ("a:gzip", gzip(&plain[0])),
        ("a:zstd", zstd(&plain[0])),
    ] {
        load(&store, docker_archive(&[tag], &plain, &[stored]))
            .await
            .unwrap();
    }
    assert_eq!(store.list().len(), 1, "one configuration is one image");
    assert_eq!(store.list()[0].repo_tags.len(), 3);
    assert_eq!(count(&store.root().join("layers")), 1);
    // The archive as a whole may be compressed too.
    load(&store, gzip(&docker_archive(&["b:1"], &plain, &plain)))
        .await
        .unwrap();
    load(&store, zstd(&docker_archive(&["b:2"], &plain, &plain)))
        .await
        .unwrap();
}

#[tokio::test]
async fn oci_layouts_load_from_a_stream_and_a_directory() {
    let plain = vec![layer(&[("f", "x")])];
    let stored = vec![gzip(&plain[0])];
    let files = oci_layout("example.com/a/b:1", &plain, &stored);
    let (_dir, store) = store();
    load(&store, archive(&files)).await.unwrap();
    let image = store.resolve("example.com/a/b:1").unwrap();
    assert_eq!(
        image.manifest().digest,
        Digest::of(&oci_image(&plain, &stored).0),
        "the manifest is kept as it came"
    );

    let layout = tempfile::tempdir().unwrap();
    for (name, data) in &files {
        let path = layout.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, data).unwrap();
    }
    let (_dir, store) = fixture::store();
    store
        .load_directory(layout.path().to_owned(), silent())
        .await
        .unwrap();
    assert!(store.resolve("example.com/a/b:1").is_ok());
}

#[tokio::test]
async fn a_nested_index_gives_the_platform_that_runs_here() {
    let (ours, theirs) = (
        vec![layer(&[("f", "ours")])],
        vec![layer(&[("f", "theirs")])],
    );
    let (m1, b1) = oci_image(&ours, &ours);
    let (m2, b2) = oci_image(&theirs, &theirs);
    let mut d1 = descriptor(OCI_MANIFEST, &m1);
    let arch = caisson_image::Platform::host().architecture;
    d1["platform"] = json!({"os": "linux", "architecture": arch});
    let mut d2 = descriptor(OCI_MANIFEST, &m2);
    d2["platform"] = json!({"os": "linux", "architecture": "s390x"});
    let inner = serde_json::to_vec(
        &json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [d2, d1]}),
    )
    .unwrap();
    let mut entry = descriptor(OCI_INDEX, &inner);
    entry["annotations"] = json!({"io.containerd.image.name": "docker.io/library/multi:1"});
    let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [entry]})).unwrap();
    let mut files = vec![
        ("index.json".to_owned(), index),
        blob_file(&inner),
        blob_file(&m1),
        blob_file(&m2),
    ];
    files.extend(b1.iter().chain(&b2).map(|b| blob_file(b)));
    let (_dir, store) = store();
    load(&store, archive(&files)).await.unwrap();
    let image = store.resolve("multi:1").unwrap();
    assert_eq!(
        std::fs::read_to_string(store.layer_dirs(&image)[0].join("f")).unwrap(),
        "ours"
    );
}

#[tokio::test]
async fn contents_that_are_not_what_they_should_be_are_refused() {
    let (a, b) = (layer(&[("f", "a")]), layer(&[("f", "b")]));
    // The configuration promises another layer.
    let error = refused(docker_archive(&["x:1"], &[a.clone()], &[b.clone()])).await;
    assert!(
        matches!(error, Error::DiffIdMismatch { index: 0, .. }),
        "{error}"
    );
    let error = refused(docker_archive(&["x:1"], &[a.clone()], &[gzip(&b)])).await;
    assert!(matches!(error, Error::DiffIdMismatch { .. }), "{error}");
    // Bytes after the archive's end count.
    let mut longer = a.clone();
    longer.extend_from_slice(&[0; 512]);
    let error = refused(docker_archive(&["x:1"], &[a.clone()], &[gzip(&longer)])).await;
    assert!(matches!(error, Error::DiffIdMismatch { .. }), "{error}");
    // The number of layers differs.
    let error = refused(docker_archive(
        &["x:1"],
        &[a.clone(), b.clone()],
        &[a.clone()],
    ))
    .await;
    assert!(matches!(error, Error::InvalidImage(_)), "{error}");
    // A blob is not what its name says.
    let mut files = oci_layout("a:1", &[a.clone()], &[a.clone()]);
    files[1].1 = b.clone();
    let error = refused(archive(&files)).await;
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    // So with the manifest.
    let mut files = oci_layout("a:1", &[a.clone()], &[a.clone()]);
    let at = files.len() - 3;
    files[at].1.push(b' ');
    let error = refused(archive(&files)).await;
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
}

#[tokio::test]
async fn ambiguous_and_malformed_archives_are_refused() {
    let a = vec![layer(&[("f", "a")])];
    let good = docker_archive(&["x:1"], &a, &a);
    // Two different files of one name.
    let twice = archive(&[
        ("manifest.json".into(), b"[]".to_vec()),
        ("manifest.json".into(), b"[{}]".to_vec()),
    ]);
    let error = refused(twice).await;
    assert!(error.to_string().contains("ambiguous"), "{error}");
    // An index that is a manifest too.
    let (manifest, blobs) = oci_image(&a, &a);
    let mut both: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    both["manifests"] = json!([]);
    let mut files = vec![("index.json".to_owned(), serde_json::to_vec(&both).unwrap())];
    files.extend(blobs.iter().map(|b| blob_file(b)));
    let error = refused(archive(&files)).await;
    assert!(error.to_string().contains("ambiguous"), "{error}");
    // Cut off anywhere.
    for len in [0, 100, 600, good.len() / 2, good.len() - 3000] {
        assert_eq!(
            refused(good[..len].to_vec()).await.kind(),
            ErrorKind::InvalidInput,
            "{len}"
        );
    }
    assert_eq!(
        refused(gzip(&good)[..200].to_vec()).await.kind(),
        ErrorKind::InvalidInput
    );
    for text in ["", "not an archive at all", "BZh91AY&SY"] {
        assert_eq!(
            refused(text.into()).await.kind(),
            ErrorKind::InvalidInput,
            "{text}"
        );
    }
    // Names that lead out, links in circles, tags that are none.
    for (name, link) in [("../x", None), ("a", Some("b"))] {
        let mut builder = tar::Builder::new(Vec::new());
        let mut h = tar::Header::new_gnu();
        h.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        if let Some(link) = link {
            h.set_entry_type(tar::EntryType::Symlink);
            h.set_link_name(link).unwrap();
            h.set_size(0);
            h.set_cksum();
            builder.append(&h, &b""[..]).unwrap();
            h.as_old_mut().name[..1].copy_from_slice(b"b");
            h.set_link_name("a").unwrap();
        }
        h.set_size(0);
        h.set_cksum();
        builder.append(&h, &b""[..]).unwrap();
        let manifest = br#"[{"Config":"a","RepoTags":null,"Layers":[]}]"#;
        let mut m = tar::Header::new_gnu();
        m.set_size(manifest.len() as u64);
        m.set_mode(0o644);
        builder
            .append_data(&mut m, "manifest.json", &manifest[..])
            .unwrap();
        assert_eq!(
            refused(builder.into_inner().unwrap()).await.kind(),
            ErrorKind::InvalidInput
        );
    }
    for tag in ["Upper:1", "a", "../x:1", ""] {
        assert_eq!(
            refused(docker_archive(&[tag], &a, &a)).await.kind(),
            ErrorKind::InvalidInput,
            "{tag}"
        );
    }
    let mut xz = config(&a);
    xz["rootfs"]["diff_ids"] = json!(["sha256:../../../etc/passwd"]);
    assert_eq!(
        refused(docker_archive_with(&["x:1"], &xz, &a)).await.kind(),
        ErrorKind::InvalidInput
    );
}

#[tokio::test]
async fn bombs_are_stopped_by_bytes_entries_and_ratio() {
    let zeros = "\0".repeat(4 << 20);
    let big = vec![layer(&[("zeros", &zeros)])];
    let many: Vec<(String, &str)> = (0..200).map(|i| (format!("f{i}"), "")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(n, d)| (n.as_str(), *d)).collect();
    let many = vec![layer(&many)];
    let limits = |layer_bytes, layer_entries, ratio_free_bytes| Limits {
        layer_bytes,
        layer_entries,
        ratio_free_bytes,
        ratio: 50,
        ..Limits::default()
    };
    for (limits, plain) in [
        (limits(1 << 20, 1000, 1 << 30), &big),
        (limits(1 << 30, 100, 1 << 30), &many),
        (limits(1 << 30, 1000, 1 << 20), &big),
    ] {
        for stored in [gzip(&plain[0]), zstd(&plain[0])] {
            let dir = tempfile::tempdir().unwrap();
            let options = Options {
                limits: limits.clone(),
                ..Options::default()
            };
            let store = Store::open(dir.path(), options).unwrap();
            let error = load(&store, docker_archive(&["x:1"], plain, &[stored]))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            assert!(error.to_string().contains("limit"), "{error}");
            assert_eq!(
                (leftovers(&store).len(), count(&dir.path().join("layers"))),
                (0, 0)
            );
        }
    }
}

#[tokio::test]
async fn a_store_is_opened_once_and_finds_its_images_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Options::default()).unwrap();
    let a = vec![layer(&[("f", "a")])];
    load(&store, docker_archive(&["x:1"], &a, &a))
        .await
        .unwrap();
    assert!(matches!(
        Store::open(dir.path(), Options::default()),
        Err(Error::Locked(_))
    ));
    let before = store.resolve("x:1").unwrap();
    drop(store);
    let store = Store::open(dir.path(), Options::default()).unwrap();
    let after = store.resolve("x:1").unwrap();
    assert_eq!(
        (before.id(), before.size_bytes(), before.config_json()),
        (after.id(), after.size_bytes(), after.config_json())
    );
    assert!(store.layer_dirs(&after)[0].join("f").exists());
}

#[tokio::test]
async fn what_a_crash_left_is_cleared_at_opening() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Options::default()).unwrap();
    let a = vec![layer(&[("f", "a")])];
    load(&store, docker_archive(&["x:1"], &a, &a))
        .await
        .unwrap();
    drop(store);
    let hex = "ab".repeat(32);
    std::fs::create_dir_all(dir.path().join("ingest/tmp-1/sub")).unwrap();
    std::fs::create_dir_all(dir.path().join("layers").join(&hex[..32])).unwrap();
    std::fs::write(dir.path().join("blobs/sha256").join(&hex), "half a blob").unwrap();
    let old = dir
        .path()
        .join("ingest")
        .join(format!("{}.partial", "cd".repeat(32)));
    let file = std::fs::File::create(&old).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    let store = Store::open(dir.path(), Options::default()).unwrap();
    assert_eq!(
        leftovers(&store),
        [format!("{hex}.partial")],
        "an unverified blob is a download to be resumed"
    );
    assert_eq!(count(&dir.path().join("layers")), 1);
    assert!(store.resolve("x:1").is_ok());
}

#[tokio::test]
async fn images_are_found_by_name_id_and_prefix() {
    let (_dir, store) = store();
    let mut ids = Vec::new();
    for i in 0..40 {
        let l = vec![layer(&[("f", &i.to_string())])];
        ids.push(
            load(&store, docker_archive(&[&format!("img:{i}")], &l, &l))
                .await
                .unwrap()[0]
                .id
                .clone(),
        );
    }
    let id = &ids[7];
    for name in [
        id.as_str(),
        id.hex(),
        id.short(),
        &format!("sha256:{}", id.short()),
        "img:7",
        "docker.io/library/img:7",
    ] {
        assert_eq!(store.resolve(name).unwrap().id(), id, "{name}");
    }
    // Forty ids share first digits.
    assert!(
        ids.iter()
            .any(|id| matches!(store.resolve(&id.hex()[..1]), Err(Error::Ambiguous(_))))
    );
    for (name, message) in [
        ("nope", "No such image: nope:latest"),
        ("nope:1", "No such image: nope:1"),
        ("img", "No such image: img:latest"),
    ] {
        assert_eq!(store.resolve(name).unwrap_err().to_string(), message);
    }
    assert_eq!(
        store.resolve("UPPER").unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    let tagged = store.tag("img:7", &"seven".parse().unwrap()).unwrap();
    assert_eq!(
        (tagged.id(), &tagged.repo_tags[..]),
        (id, &["img:7".to_owned(), "seven:latest".into()][..])
    );
    // A tag moves; the image it leaves stays.
    store.tag("img:8", &"seven".parse().unwrap()).unwrap();
    assert_eq!(store.resolve("seven").unwrap().id(), &ids[8]);
    assert_eq!(store.by_id(id).unwrap().repo_tags, ["img:7"]);
}
