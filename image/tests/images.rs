//! Saving, importing, committing, comparing, removing and pruning.

#![allow(clippy::unwrap_used)]

mod fixture;

use std::io::Cursor;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use caisson_image::{
    Change, ChangeKind, Commit, CommitSource, Digest, Error, Import, InUse, PruneFilter, Removed,
    RunConfig, Store, changes, changes_in_archive, silent,
};
use fixture::*;

async fn load(store: &Store, tags: &[&str], layers: &[Vec<u8>]) -> Digest {
    let archive = docker_archive(tags, layers, layers);
    store
        .load(Cursor::new(archive), silent())
        .await
        .unwrap()
        .remove(0)
        .id
}

/// A writer whose bytes can be had afterwards.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);
impl std::io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn save(store: &Store, names: &[&str]) -> Vec<u8> {
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let out = Shared::default();
    store
        .prepare_save(&names)
        .unwrap()
        .write(out.clone())
        .await
        .unwrap();

    out.0.lock().unwrap().clone()
}

#[tokio::test]
async fn what_is_saved_loads_again_and_is_the_same_each_time() {
    let (_dir, store) = store();
    let layers = vec![layer(&[("a", "1")]), layer(&[("b", "2")])];
    let id = load(&store, &["app:1", "app:2", "other:1"], &layers).await;
    let saved = save(&store, &["app", "other:1"]).await;
    assert_eq!(saved, save(&store, &["app", "other:1"]).await);
    let (_dir2, other) = fixture::store();
    let loaded = other.load(Cursor::new(saved), silent()).await.unwrap();
    assert_eq!(loaded.len(), 1);
    assert_eq!(loaded[0].id, id);
    assert_eq!(
        other.resolve("app:2").unwrap().repo_tags,
        ["app:1", "app:2", "other:1"]
    );
    assert_eq!(
        other.resolve("app:1").unwrap().manifest().digest,
        store.resolve("app:1").unwrap().manifest().digest
    );
    // By id it has no name.
    let saved = save(&store, &[id.short()]).await;
    let (_dir3, third) = fixture::store();
    assert_eq!(
        third.load(Cursor::new(saved), silent()).await.unwrap()[0].references,
        []
    );
    assert!(matches!(
        store.prepare_save(&["nope".into()]),
        Err(Error::NoSuchImage(_))
    ));
}

#[tokio::test]
async fn skopeo_reads_what_is_saved_and_we_read_what_skopeo_writes() {
    if Command::new("skopeo").arg("--version").output().is_err() {
        eprintln!("skipped: skopeo is not installed");
        return;
    }
    let (dir, store) = store();
    let layers = vec![layer(&[("a", "1")]), layer(&[("b", "2")])];
    let id = load(&store, &["app:1"], &layers).await;
    let file = dir.path().join("saved.tar");
    std::fs::write(&file, save(&store, &["app:1"]).await).unwrap();
    let target = |kind: &str, name: &str| format!("{kind}:{}", dir.path().join(name).display());
    for (from, to) in [
        (
            format!("docker-archive:{}", file.display()),
            target("docker-archive", "d.tar") + ":re/exported:1",
        ),
        (
            format!("oci-archive:{}", file.display()),
            target("oci-archive", "o.tar") + ":example.com/re/exported:1",
        ),
        (
            format!("docker-archive:{}", file.display()),
            target("oci", "layout") + ":example.com/re/exported:1",
        ),
    ] {
        let out = Command::new("skopeo")
            .args(["--insecure-policy", "copy", &from, &to])
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{from} → {to}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
    for name in ["d.tar", "o.tar"] {
        let (_dir, other) = fixture::store();
        let file = std::fs::File::open(dir.path().join(name)).unwrap();
        let loaded = other.load(file, silent()).await.unwrap();
        assert!(
            loaded[0].references[0]
                .familiar()
                .ends_with("re/exported:1"),
            "{name}: {loaded:?}"
        );
        let image = other.by_id(&loaded[0].id).unwrap();
        assert_eq!(
            image
                .layers()
                .iter()
                .map(|l| l.diff_id.clone())
                .collect::<Vec<_>>(),
            layers.iter().map(|l| Digest::of(l)).collect::<Vec<_>>()
        );
    }
    let (_dir, other) = fixture::store();
    other
        .load_directory(dir.path().join("layout"), silent())
        .await
        .unwrap();
    assert!(other.resolve("example.com/re/exported:1").is_ok());
    assert!(store.by_id(&id).is_some());
}

#[tokio::test]
async fn a_tarball_becomes_an_image() {
    let (_dir, store) = store();
    let tarball = layer(&[("etc/", ""), ("etc/x", "y")]);
    let import = |tag: &str| Import {
        config: RunConfig {
            cmd: Some(vec!["sh".into()]),
            ..RunConfig::default()
        },
        message: "Imported from -".into(),
        platform: None,
        tag: Some(tag.parse().unwrap()),
    };
    for (tag, data) in [
        ("i:plain", tarball.clone()),
        ("i:gzip", gzip(&tarball)),
        ("i:zstd", zstd(&tarball)),
    ] {
        let id = store
            .import(Cursor::new(data), import(tag), silent())
            .await
            .unwrap();
        let image = store.resolve(tag).unwrap();
        assert_eq!(
            (image.id(), &image.layers()[0].diff_id),
            (&id, &Digest::of(&tarball))
        );
        assert_eq!(image.config().config.cmd.as_deref().unwrap(), ["sh"]);
        assert_eq!(
            std::fs::read_to_string(store.layer_dirs(&image)[0].join("etc/x")).unwrap(),
            "y"
        );
        assert_eq!(store.history(&image)[0].0.comment, "Imported from -");
    }
    assert_eq!(count(&store.root().join("layers")), 1);
    let bad = store
        .import(
            Cursor::new(b"no tarball at all".repeat(100)),
            import("bad"),
            silent(),
        )
        .await;
    assert!(bad.is_err());
    assert!(store.resolve("bad").is_err() && leftovers(&store).is_empty());
}

/// An overlay whose merged tree is changed by `change`; answers the upper directory.
fn overlay(dir: &Path, lowers: &[PathBuf], change: impl FnOnce(&Path)) -> PathBuf {
    let at = |name: &str| dir.join(name);
    for name in ["upper", "work", "merged"] {
        std::fs::create_dir_all(at(name)).unwrap();
    }
    let lower: Vec<String> = lowers.iter().map(|l| l.display().to_string()).collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        at("upper").display(),
        at("work").display()
    );
    let mounted = Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &options])
        .arg(at("merged"))
        .status();
    assert!(mounted.unwrap().success(), "mounting an overlay needs root");
    let changed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| change(&at("merged"))));
    assert!(
        Command::new("umount")
            .arg(at("merged"))
            .status()
            .unwrap()
            .success()
    );
    changed.unwrap();
    at("upper")
}

#[tokio::test]
async fn a_commit_holds_what_the_container_changed() {
    let (dir, store) = store();
    let base = vec![
        layer(&[
            ("d/", ""),
            ("d/old", "x"),
            ("gone", "x"),
            ("o/", ""),
            ("o/hidden", "x"),
        ]),
        layer(&[("top", "t")]),
    ];
    let parent = load(&store, &["base:1"], &base).await;
    let lowers = store.layer_dirs(&store.by_id(&parent).unwrap());
    let upper = overlay(dir.path(), &lowers, |root| {
        std::fs::write(root.join("d/new"), "n").unwrap();
        std::fs::remove_file(root.join("gone")).unwrap();
        std::fs::remove_dir_all(root.join("o")).unwrap();
        std::fs::create_dir(root.join("o")).unwrap();
    });
    let commit = |source, tag: Option<&str>| Commit {
        parent: Some(parent.clone()),
        source,
        config: RunConfig {
            user: "me".into(),
            ..RunConfig::default()
        },
        author: "An Author".into(),
        comment: "why".into(),
        created_by: "sh -c true".into(),
        created: None,
        tag: tag.map(|t| t.parse().unwrap()),
    };
    let id = store
        .commit(commit(CommitSource::Upper(upper.clone()), Some("child")))
        .await
        .unwrap();
    let image = store.resolve("child:latest").unwrap();
    assert_eq!((image.id(), image.parent.as_ref()), (&id, Some(&parent)));
    assert_eq!(
        (image.layers().len(), image.config().config.user.as_str()),
        (3, "me")
    );
    let (step, size) = store.history(&image).remove(0);
    assert_eq!(
        (step.created_by.as_str(), step.author.as_str(), size),
        ("sh -c true", "An Author", 1)
    );
    let merged = tempfile::tempdir().unwrap();
    overlay(merged.path(), &store.layer_dirs(&image), |root| {
        assert!(
            root.join("d/new").exists() && root.join("d/old").exists() && root.join("top").exists()
        );
        assert!(
            !root.join("gone").exists()
                && !root.join("o/hidden").exists()
                && root.join("o").is_dir()
        );
    });
    // It goes through an archive unharmed.
    let (_dir2, other) = fixture::store();
    other
        .load(Cursor::new(save(&store, &["child"]).await), silent())
        .await
        .unwrap();
    assert_eq!(other.resolve("child").unwrap().id(), &id);

    let empty = tempfile::tempdir().unwrap();
    for nothing in [
        CommitSource::Upper(empty.path().to_owned()),
        CommitSource::Archive(Box::new(Cursor::new(vec![0; 1024]))),
    ] {
        let id = store.commit(commit(nothing, None)).await.unwrap();
        let image = store.by_id(&id).unwrap();
        assert_eq!(
            (image.layers().len(), store.history(&image)[0].0.empty_layer),
            (2, true)
        );
    }
}

#[tokio::test]
async fn changes_are_told_as_docker_diff_tells_them() {
    let (dir, store) = store();
    let base = vec![
        layer(&[
            ("d/", ""),
            ("d/old", "x"),
            ("gone/", ""),
            ("gone/f", "x"),
            ("o/", ""),
            ("o/hidden", "x"),
            ("same", "s"),
            ("deep/", ""),
            ("deep/er/", ""),
            ("deep/er/f", "x"),
        ]),
        layer(&[("top", "t")]),
    ];
    let id = load(&store, &["base:1"], &base).await;
    let lowers = store.layer_dirs(&store.by_id(&id).unwrap());
    let upper = overlay(dir.path(), &lowers, |root| {
        std::fs::write(root.join("d/new"), "n").unwrap();
        std::fs::remove_dir_all(root.join("gone")).unwrap();
        std::fs::remove_dir_all(root.join("o")).unwrap();
        std::fs::create_dir(root.join("o")).unwrap();
        std::fs::write(root.join("o/fresh"), "x").unwrap();
        std::fs::write(root.join("deep/er/f"), "changed").unwrap();
        std::fs::create_dir_all(root.join("n1/n2")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("link")).unwrap();
        std::fs::write(root.join("born"), "").unwrap();
        std::fs::remove_file(root.join("born")).unwrap();
    });
    let told: Vec<String> = changes(&upper, &lowers)
        .unwrap()
        .iter()
        .map(|Change { path, kind }| {
            let letter = match kind {
                ChangeKind::Modified => 'C',
                ChangeKind::Added => 'A',
                ChangeKind::Deleted => 'D',
            };
            format!("{letter} {}", path.display())
        })
        .collect();
    assert_eq!(
        told,
        [
            "C /d",
            "A /d/new",
            "C /deep/er/f",
            "D /gone",
            "A /link",
            "A /n1",
            "A /n1/n2",
            "C /o",
            "A /o/fresh",
            "D /o/hidden",
        ]
    );
    // The same as a layer's archive, which is how a microVM tells it.
    let mut archive = Vec::new();
    let root = std::fs::File::open(&upper).unwrap();
    let options = caisson_archive::PackOptions::layer();
    let (all, bare) = (Path::new("/"), Path::new(""));
    caisson_archive::pack(root.as_fd(), all, bare, &mut archive, &options).unwrap();
    assert_eq!(
        changes_in_archive(&archive[..], &lowers).unwrap(),
        changes(&upper, &lowers).unwrap()
    );
    assert!(changes_in_archive(&archive[..archive.len() / 2], &lowers).is_err());
}

fn in_use(image: &Digest, running: bool) -> Vec<InUse> {
    vec![InUse {
        image: image.clone(),
        container: "c0ffee0123456789".into(),
        running,
    }]
}

async fn conflict(store: &Store, name: &str, force: bool, users: Vec<InUse>) -> String {
    match store.remove(name, force, true, users).await {
        Err(Error::Conflict(message)) => message,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn removing_by_name_untags_until_the_last_name() {
    let (_dir, store) = store();
    let layers = vec![layer(&[("a", "1")]), layer(&[("b", "2")])];
    let id = load(&store, &["app:1", "app:2"], &layers).await;
    let first = store.remove("app:1", false, true, vec![]).await.unwrap();
    assert_eq!(first.removed, [Removed::Untagged("app:1".into())]);
    let chains: Vec<Digest> = store
        .by_id(&id)
        .unwrap()
        .layers()
        .iter()
        .rev()
        .map(|l| l.chain_id.clone())
        .collect();
    let last = store.remove("app:2", false, true, vec![]).await.unwrap();
    let mut expected = vec![
        Removed::Untagged("app:2".into()),
        Removed::Deleted(id.clone()),
    ];
    expected.extend(chains.into_iter().map(Removed::Deleted));
    assert_eq!(last.removed, expected);
    assert!(last.freed_bytes > 0);
    assert_eq!(
        count(&store.root().join("layers")) + count(&store.root().join("blobs/sha256")),
        0
    );
    assert!(matches!(
        store.remove("app:2", false, true, vec![]).await,
        Err(Error::NoSuchImage(_))
    ));
}

#[tokio::test]
async fn layers_another_image_needs_stay() {
    let (_dir, store) = store();
    let (a, b, c) = (
        layer(&[("a", "1")]),
        layer(&[("b", "2")]),
        layer(&[("c", "3")]),
    );
    load(&store, &["one:1"], &[a.clone(), b]).await;
    load(&store, &["two:1"], &[a, c]).await;
    assert_eq!(count(&store.root().join("layers")), 3);
    let usage = store.disk_usage();
    assert_eq!(
        (
            usage.layers_bytes,
            usage.images[0].size_bytes,
            usage.images[0].shared_bytes
        ),
        (3, 2, 1)
    );
    store.remove("one:1", false, true, vec![]).await.unwrap();
    assert_eq!(count(&store.root().join("layers")), 2);
    let image = store.resolve("two:1").unwrap();
    assert!(store.layer_dirs(&image).iter().all(|d| d.is_dir()));
    assert!(!save(&store, &["two:1"]).await.is_empty());
}

#[tokio::test]
async fn what_is_in_use_is_kept_and_docker_s_words_say_why() {
    let (_dir, store) = store();
    let id = load(&store, &["app:1"], &[layer(&[("a", "1")])]).await;
    let short = id.short().to_owned();
    assert_eq!(
        conflict(&store, "app:1", false, in_use(&id, false)).await,
        format!(
            "unable to remove repository reference \"app:1\" (must force) - container c0ffee012345 is using its referenced image {short}"
        )
    );
    assert_eq!(
        conflict(&store, &short, false, in_use(&id, false)).await,
        format!(
            "unable to delete {short} (must be forced) - image is being used by stopped container c0ffee012345"
        )
    );
    assert_eq!(
        conflict(&store, &short, true, in_use(&id, true)).await,
        format!(
            "unable to delete {short} (cannot be forced) - image is being used by running container c0ffee012345"
        )
    );
    store.tag("app:1", &"other:1".parse().unwrap()).unwrap();
    assert_eq!(
        conflict(&store, &short, false, vec![]).await,
        format!(
            "unable to delete {short} (must be forced) - image is referenced in multiple repositories"
        )
    );
    // A name of a running container's image may go while another stays, or when forced.
    store
        .remove("other:1", false, true, in_use(&id, true))
        .await
        .unwrap();
    let forced = store
        .remove("app:1", true, true, in_use(&id, true))
        .await
        .unwrap();
    assert_eq!(forced.removed, [Removed::Untagged("app:1".into())]);
    assert!(store.by_id(&id).is_some_and(|i| i.is_dangling()));
}

#[tokio::test]
async fn an_image_forced_away_under_a_stopped_container_keeps_its_layers() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), caisson_image::Options::default()).unwrap();
    let id = load(&store, &["app:1"], &[layer(&[("a", "1")])]).await;
    let removal = store
        .remove(id.short(), true, true, in_use(&id, false))
        .await
        .unwrap();
    assert_eq!(
        removal.removed,
        [
            Removed::Untagged("app:1".into()),
            Removed::Deleted(id.clone())
        ]
    );
    assert!(store.list().is_empty() && store.resolve(id.as_str()).is_err());
    drop(store);
    let store = Store::open(dir.path(), caisson_image::Options::default()).unwrap();
    let image = store.by_id(&id).expect("the container still finds it");
    store.collect_garbage(in_use(&id, false)).await.unwrap();
    assert!(store.layer_dirs(&image)[0].join("a").exists());
    store.collect_garbage(vec![]).await.unwrap();
    assert!(store.by_id(&id).is_none());
    assert_eq!(count(&dir.path().join("layers")), 0);
}

#[tokio::test]
async fn children_keep_their_parent_and_unnamed_parents_go_with_the_last_child() {
    let (_dir, store) = store();
    let parent = load(&store, &["base:1"], &[layer(&[("a", "1")])]).await;
    let commit = |parent: &Digest, tag: Option<&str>, comment: &str| Commit {
        parent: Some(parent.clone()),
        source: CommitSource::Nothing,
        config: RunConfig::default(),
        author: String::new(),
        comment: comment.into(),
        created_by: String::new(),
        created: None,
        tag: tag.map(|t| t.parse().unwrap()),
    };
    let middle = store.commit(commit(&parent, None, "middle")).await.unwrap();
    let child = store
        .commit(commit(&middle, Some("child:1"), "child"))
        .await
        .unwrap();
    assert!(
        conflict(&store, middle.short(), true, vec![])
            .await
            .contains("image has dependent child images")
    );
    // Nothing dangling to prune: the middle one is needed.
    let pruned = store.prune(PruneFilter::default(), vec![]).await.unwrap();
    assert_eq!(pruned.removed, []);
    // The parent has a name, which may go; the image stays for its children.
    let untagged = store.remove("base:1", false, true, vec![]).await.unwrap();
    assert_eq!(untagged.removed, [Removed::Untagged("base:1".into())]);
    store
        .tag(parent.as_str(), &"base:1".parse().unwrap())
        .unwrap();
    let gone = store.remove("child:1", false, true, vec![]).await.unwrap();
    assert_eq!(
        gone.removed,
        [
            Removed::Untagged("child:1".into()),
            Removed::Deleted(child),
            Removed::Deleted(middle)
        ]
    );
    assert!(store.resolve("base:1").is_ok());
}

#[tokio::test]
async fn prune_takes_the_dangling_or_all_unused_by_age_and_label() {
    let (_dir, store) = store();
    let old = load(&store, &["app:1"], &[layer(&[("a", "1")])]).await;
    let new = load(&store, &["app:1"], &[layer(&[("a", "2")])]).await;
    let used = load(&store, &["used:1"], &[layer(&[("a", "3")])]).await;
    assert_eq!(store.list().len(), 3, "the tag moved, the image stays");
    std::fs::write(
        store
            .root()
            .join("ingest")
            .join(format!("{}.partial", "a".repeat(64))),
        "12345",
    )
    .unwrap();
    let early = chrono::DateTime::parse_from_rfc3339("2020-01-01T00:00:00Z")
        .unwrap()
        .to_utc();
    let label = |key: &str, value: &str| (key.to_owned(), Some(value.to_owned()));
    for nothing in [
        PruneFilter {
            until: Some(early),
            ..PruneFilter::default()
        },
        PruneFilter {
            labels: vec![label("kind", "other")],
            ..PruneFilter::default()
        },
        PruneFilter {
            without_labels: vec![("kind".into(), None)],
            ..PruneFilter::default()
        },
    ] {
        assert_eq!(store.prune(nothing, vec![]).await.unwrap().removed, []);
    }
    let filter = PruneFilter {
        labels: vec![label("kind", "test")],
        ..PruneFilter::default()
    };
    let pruned = store.prune(filter, in_use(&used, true)).await.unwrap();
    assert_eq!(pruned.removed[0], Removed::Deleted(old));
    assert!(leftovers(&store).is_empty());
    let all = store
        .prune(
            PruneFilter {
                all: true,
                ..PruneFilter::default()
            },
            in_use(&used, false),
        )
        .await
        .unwrap();
    assert!(all.removed.contains(&Removed::Deleted(new)));
    assert_eq!(store.list().len(), 1);
    assert!(store.resolve("used:1").is_ok());
}
