//! Pulling from and pushing to Debian's docker-registry, run here on loopback, with and without a password.

#![allow(clippy::unwrap_used)]

mod fixture;

use std::io::Cursor;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use caisson_image::{
    Credentials, Error, ErrorKind, Event, Platform, Progress, Reference, Store, silent,
};
use fixture::*;

struct Registry {
    child: Child,
    domain: String,
    _dir: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `secret`, hashed.
const HTPASSWD: &str = "user:$2b$04$nfpjji6L/tddITv1WKiYueRN4R9DBrVvcsfa6OS935DIgm9gRfgCS\n";

impl Registry {
    /// `None`, said aloud, when docker-registry is not installed.
    async fn start(password: bool) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let auth = if password {
            let file = dir.path().join("htpasswd");
            std::fs::write(&file, HTPASSWD).unwrap();
            format!(
                "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
                file.display()
            )
        } else {
            String::new()
        };
        let config = dir.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:{port}\n{auth}",
            dir.path().join("data").display()
        );
        std::fs::write(&config, text).unwrap();
        let started = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(child) = started else {
            eprintln!("skipped: docker-registry is not installed");
            return None;
        };
        let registry = Registry {
            child,
            domain: format!("127.0.0.1:{port}"),
            _dir: dir,
        };
        for _ in 0..200 {
            if tokio::net::TcpStream::connect(&registry.domain)
                .await
                .is_ok()
            {
                return Some(registry);
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("docker-registry does not listen");
    }
    fn name(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.domain).parse().unwrap()
    }
}

fn recorder() -> (Progress, Arc<Mutex<Vec<Event>>>) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = events.clone();
    (
        Arc::new(move |event| sink.lock().unwrap().push(event)),
        events,
    )
}

fn statuses(events: &Mutex<Vec<Event>>) -> Vec<String> {
    let mut out: Vec<String> = events
        .lock()
        .unwrap()
        .iter()
        .map(|e| e.status.clone())
        .collect();
    out.dedup();
    out
}

async fn load(store: &Store, tag: &Reference, layers: &[Vec<u8>]) {
    let archive = docker_archive(&[&tag.familiar()], layers, layers);
    store.load(Cursor::new(archive), silent()).await.unwrap();
}

#[tokio::test]
async fn what_is_pushed_is_pulled_again() {
    let Some(registry) = Registry::start(false).await else {
        return;
    };
    let layers = vec![
        layer(&[("a", "1")]),
        layer(&[("b", "2")]),
        layer(&[("b", "2")]),
    ];
    let name = registry.name("team/app:1");
    let (_dir, store) = store();
    load(&store, &name, &layers).await;
    let id = store.resolve(&name.familiar()).unwrap().id().clone();
    let (progress, events) = recorder();
    let pushed = store
        .push(&name, Credentials::Anonymous, progress)
        .await
        .unwrap();
    let said = statuses(&events);
    for status in ["Preparing", "Pushed"] {
        assert!(said.iter().any(|s| s == status), "{status}: {said:?}");
    }
    assert!(said[0].starts_with("The push refers to repository [127.0.0.1:"));
    assert_eq!(
        *said.last().unwrap(),
        format!("1: digest: {} size: {}", pushed.digest, pushed.size_bytes)
    );
    let image = store.by_id(&id).unwrap();
    assert_eq!(
        image.repo_digests,
        [format!("{}@{}", name.familiar_name(), pushed.digest)]
    );
    assert!(
        image
            .layers()
            .iter()
            .all(|l| l.blob.media_type.ends_with("+gzip")),
        "pushed compressed"
    );

    // Again: nothing to upload.
    let (progress, events) = recorder();
    store
        .push(&name, Credentials::Anonymous, progress)
        .await
        .unwrap();
    assert!(
        statuses(&events)
            .iter()
            .any(|s| s == "Layer already exists")
    );
    // To another repository: mounted, not uploaded.
    let other = registry.name("team/other:2");
    store.tag(&name.familiar(), &other).unwrap();
    let (progress, events) = recorder();
    store
        .push(&other, Credentials::Anonymous, progress)
        .await
        .unwrap();
    assert!(
        statuses(&events)
            .iter()
            .any(|s| s == "Mounted from team/app"),
        "{:?}",
        statuses(&events)
    );

    let (_dir2, fresh) = fixture::store();
    let (progress, events) = recorder();
    let pulled = fresh
        .pull(&name, None, Credentials::Anonymous, progress)
        .await
        .unwrap();
    assert_eq!(
        (&pulled.id, &pulled.digest, pulled.newer),
        (&id, &pushed.digest, true)
    );
    let said = statuses(&events);
    for status in [
        "Pulling from team/app",
        "Pulling fs layer",
        "Downloading",
        "Download complete",
        "Extracting",
        "Pull complete",
    ] {
        assert!(said.iter().any(|s| s == status), "{status}: {said:?}");
    }
    assert_eq!(
        *said.last().unwrap(),
        format!("Status: Downloaded newer image for {}", name.familiar())
    );
    let image = fresh.resolve(&name.familiar()).unwrap();
    assert_eq!(
        std::fs::read_to_string(fresh.layer_dirs(&image)[2].join("a")).unwrap(),
        "1"
    );
    assert!(leftovers(&fresh).is_empty());

    // Again: nothing to download.
    let (progress, events) = recorder();
    let again = fresh
        .pull(&name, None, Credentials::Anonymous, progress)
        .await
        .unwrap();
    assert!(!again.newer);
    let said = statuses(&events);
    assert!(
        said.iter().any(|s| s == "Already exists") && !said.iter().any(|s| s == "Downloading"),
        "{said:?}"
    );
    assert_eq!(
        *said.last().unwrap(),
        format!("Status: Image is up to date for {}", name.familiar())
    );

    // By digest.
    let (_dir3, by_digest) = fixture::store();
    let digest = name.with_digest(pushed.digest.clone());
    by_digest
        .pull(&digest, None, Credentials::Anonymous, silent())
        .await
        .unwrap();
    let image = by_digest.resolve(&digest.familiar()).unwrap();
    assert_eq!((image.repo_tags.len(), image.repo_digests.len()), (0, 1));
}

#[tokio::test]
async fn a_password_is_needed_where_one_is_asked_for() {
    let Some(registry) = Registry::start(true).await else {
        return;
    };
    let layers = vec![layer(&[("a", "1")])];
    let name = registry.name("app:1");
    let (_dir, store) = store();
    load(&store, &name, &layers).await;
    let good = Credentials::Basic {
        username: "user".into(),
        password: "secret".into(),
    };
    let bad = Credentials::Basic {
        username: "user".into(),
        password: "guess".into(),
    };
    for wrong in [Credentials::Anonymous, bad.clone()] {
        let error = store
            .push(&name, wrong.clone(), silent())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
        let error = store.login(&registry.domain, wrong).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    }
    store.login(&registry.domain, good.clone()).await.unwrap();
    store.push(&name, good.clone(), silent()).await.unwrap();
    let (_dir2, fresh) = fixture::store();
    let error = fresh.pull(&name, None, bad, silent()).await.unwrap_err();
    assert!(
        error.to_string().starts_with("pull access denied for"),
        "{error}"
    );
    fresh.pull(&name, None, good, silent()).await.unwrap();
}

#[tokio::test]
async fn what_is_not_there_is_said_so() {
    let Some(registry) = Registry::start(false).await else {
        return;
    };
    let (_dir, store) = store();
    let name = registry.name("nope:1");
    let error = store
        .pull(&name, None, Credentials::Anonymous, silent())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(
        error.to_string(),
        format!(
            "manifest for {} not found: manifest unknown: manifest unknown",
            name.familiar()
        )
    );
    let error = store
        .push(&name, Credentials::Anonymous, silent())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    // Nobody listens.
    let closed: Reference = "127.0.0.1:1/x:1".parse().unwrap();
    let mut options = caisson_image::Options::default();
    options.patience.first_delay = Duration::from_millis(1);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), options).unwrap();
    let error = store
        .pull(&closed, None, Credentials::Anonymous, silent())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn skopeo_reads_what_we_push_and_we_pull_what_skopeo_pushes_for_each_platform() {
    let Some(registry) = Registry::start(false).await else {
        return;
    };
    let layers = vec![layer(&[("a", "1")])];
    let name = registry.name("ours:1");
    let (dir, store) = store();
    load(&store, &name, &layers).await;
    store
        .push(&name, Credentials::Anonymous, silent())
        .await
        .unwrap();
    let to = format!("oci:{}", dir.path().join("layout").display());
    let copy = |args: &[&str]| {
        let out = Command::new("skopeo")
            .arg("--insecure-policy")
            .args(args)
            .output();
        match out {
            Ok(out) => assert!(
                out.status.success(),
                "{args:?}: {}",
                String::from_utf8_lossy(&out.stderr)
            ),
            Err(_) => eprintln!("skipped: skopeo is not installed"),
        }
    };
    copy(&[
        "copy",
        "--src-tls-verify=false",
        &format!("docker://{name}"),
        &to,
    ]);
    for (format, tag) in [("v2s2", "docker"), ("oci", "oci")] {
        let there = registry.name(&format!("theirs:{tag}"));
        copy(&[
            "copy",
            "--dest-tls-verify=false",
            "--format",
            format,
            &to,
            &format!("docker://{there}"),
        ]);
        let (_dir, fresh) = fixture::store();
        let Ok(pulled) = fresh
            .pull(&there, None, Credentials::Anonymous, silent())
            .await
        else {
            panic!("{tag} cannot be pulled");
        };
        assert_eq!(
            fresh.by_id(&pulled.id).unwrap().config().rootfs.diff_ids,
            [caisson_image::Digest::of(&layers[0])]
        );
        let remote = fresh
            .remote_image(&there, Credentials::Anonymous)
            .await
            .unwrap();
        assert_eq!(
            (
                remote.platforms[0].architecture.as_str(),
                &remote.descriptor.digest
            ),
            ("amd64", &pulled.digest)
        );
        let arm = Platform::parse("linux/arm64").unwrap();
        let error = fresh
            .pull(&there, Some(&arm), Credentials::Anonymous, silent())
            .await
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("does not match the specified platform"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn two_pulls_of_one_image_share_the_work() {
    let Some(registry) = Registry::start(false).await else {
        return;
    };
    let big = vec![layer(&[("a", &"some text ".repeat(500_000))])];
    let name = registry.name("app:1");
    let (_dir, store) = store();
    load(&store, &name, &big).await;
    store
        .push(&name, Credentials::Anonymous, silent())
        .await
        .unwrap();
    let (_dir2, fresh) = fixture::store();
    let pull = || fresh.pull(&name, None, Credentials::Anonymous, silent());
    let (a, b, c) = tokio::join!(pull(), pull(), pull());
    assert_eq!(
        (a.unwrap().id, b.unwrap().id),
        (c.as_ref().unwrap().id.clone(), c.unwrap().id)
    );
    assert!(leftovers(&fresh).is_empty());
    assert_eq!(
        (count(&fresh.root().join("layers")), fresh.list().len()),
        (1, 1)
    );
}

#[tokio::test]
async fn a_layer_that_is_here_in_another_compression_is_not_downloaded() {
    let Some(registry) = Registry::start(false).await else {
        return;
    };
    let layers = vec![layer(&[("a", "1")])];
    let name = registry.name("app:1");
    let (_dir, store) = store();
    load(&store, &name, &layers).await;
    store
        .push(&name, Credentials::Anonymous, silent())
        .await
        .unwrap();
    let (_dir2, fresh) = fixture::store();
    load(&fresh, &"local:1".parse().unwrap(), &layers).await;
    let (progress, events) = recorder();
    fresh
        .pull(&name, None, Credentials::Anonymous, progress)
        .await
        .unwrap();
    assert!(
        !statuses(&events).iter().any(|s| s == "Downloading"),
        "{:?}",
        statuses(&events)
    );
    // What it is stored as can be saved.
    let saving = fresh.prepare_save(&[name.familiar()]).unwrap();
    saving.write(std::io::sink()).await.unwrap();
    assert!(matches!(
        fresh.resolve("local:2"),
        Err(Error::NoSuchImage(_))
    ));
}
