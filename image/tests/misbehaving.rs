//! A registry that truncates, stalls, lies and fails: what can be resumed is, what cannot be trusted is not used.

#![allow(clippy::unwrap_used)]

mod fixture;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use caisson_image::{
    Credentials, Digest, Error, ErrorKind, Options, Pulled, Reference, Store, silent,
};
use fixture::*;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// How blobs are answered; each request takes the next, the last stays.
#[derive(Clone, Debug)]
enum Fault {
    None,
    /// A status instead of an answer.
    Status(u16),
    /// The connection ends after so many bytes of the body.
    Drop(usize),
    /// Whole answers only, whatever range is asked for.
    NoRange,
    /// Other bytes of the same length.
    Lie,
    /// More bytes than promised by the manifest.
    Long,
    /// Nothing comes for a while.
    Stall(Duration),
    /// The range answered with is not the one asked for.
    WrongRange,
    /// So many bytes at a time, with pauses.
    Slow(usize, Duration),
}

/// Which blobs were asked for, and which ranges of them.
type Asked = Arc<Mutex<Vec<(Digest, Option<String>)>>>;

struct Fake {
    address: String,
    blob_requests: Asked,
    manifest_requests: Arc<AtomicU32>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Site {
    /// Path to content type and body.
    manifests: Arc<HashMap<String, (String, Vec<u8>)>>,
    blobs: Arc<HashMap<Digest, Vec<u8>>>,
    faults: Arc<Mutex<HashMap<Digest, Vec<Fault>>>>,
    manifest_faults: Arc<Mutex<Vec<Fault>>>,
    blob_requests: Asked,
    manifest_requests: Arc<AtomicU32>,
}

impl Fake {
    async fn start(
        manifests: Vec<(&str, &str, Vec<u8>)>,
        blobs: &[Vec<u8>],
        faults: Vec<(Digest, Vec<Fault>)>,
        manifest_faults: Vec<Fault>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let manifests = manifests
            .into_iter()
            .map(|(n, t, b)| (n.to_owned(), (t.to_owned(), b)));
        let site = Site {
            manifests: Arc::new(manifests.collect()),
            blobs: Arc::new(blobs.iter().map(|b| (Digest::of(b), b.clone())).collect()),
            faults: Arc::new(Mutex::new(faults.into_iter().collect())),
            manifest_faults: Arc::new(Mutex::new(manifest_faults)),
            blob_requests: Arc::default(),
            manifest_requests: Arc::default(),
        };
        let (blob_requests, manifest_requests) =
            (site.blob_requests.clone(), site.manifest_requests.clone());
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    return;
                };
                tokio::spawn(serve(stream, site.clone()));
            }
        });
        Fake {
            address,
            blob_requests,
            manifest_requests,
            task,
        }
    }

    fn name(&self) -> Reference {
        format!("{}/app:1", self.address).parse().unwrap()
    }
}

async fn serve(stream: TcpStream, site: Site) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let path = line.split_whitespace().nth(1)?.to_owned();
        let mut range = None;
        loop {
            let mut header = String::new();
            stream.read_line(&mut header).await.ok()?;
            if header.trim().is_empty() {
                break;
            }
            if let Some(value) = header.to_lowercase().strip_prefix("range: ") {
                range = Some(value.trim().to_owned());
            }
        }
        if path == "/v2/" {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                .await
                .ok()?;
        } else if let Some(name) = path.strip_prefix("/v2/app/manifests/") {
            site.manifest_requests.fetch_add(1, Ordering::SeqCst);
            let fault = next(&mut site.manifest_faults.lock().unwrap());
            if let Fault::Status(code) = fault {
                let head = format!("HTTP/1.1 {code} No\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(head.as_bytes()).await.ok()?;
                continue;
            }
            let (kind, body) = site.manifests.get(name)?.clone();
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes()).await.ok()?;
            stream.write_all(&body).await.ok()?;
        } else {
            let digest: Digest = path.strip_prefix("/v2/app/blobs/")?.parse().ok()?;
            blob(&mut stream, &site, digest, range).await?;
        }
    }
}

fn next(faults: &mut Vec<Fault>) -> Fault {
    match faults.len() {
        0 => Fault::None,
        1 => faults[0].clone(),
        _ => faults.remove(0),
    }
}

async fn blob(
    stream: &mut BufReader<TcpStream>,
    site: &Site,
    digest: Digest,
    range: Option<String>,
) -> Option<()> {
    site.blob_requests
        .lock()
        .unwrap()
        .push((digest.clone(), range.clone()));
    let mut body = site.blobs.get(&digest)?.clone();
    let fault = site
        .faults
        .lock()
        .unwrap()
        .get_mut(&digest)
        .map_or(Fault::None, next);
    let total = body.len();
    let mut start: usize = range
        .as_deref()
        .and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
        .unwrap_or(0);
    let mut claimed = start;
    let mut cut = None;
    let mut slow = None;
    match fault {
        Fault::None => {}
        Fault::Status(code) => {
            let head = format!("HTTP/1.1 {code} No\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(head.as_bytes()).await.ok()?;
            return Some(());
        }
        Fault::Drop(after) => cut = Some(after),
        Fault::NoRange => {
            start = 0;
            claimed = 0;
        }
        Fault::Lie => body.iter_mut().for_each(|b| *b = b.wrapping_add(1)),
        Fault::Long => body.extend_from_slice(b"more"),
        Fault::Stall(time) => tokio::time::sleep(time).await,
        Fault::WrongRange => claimed += 1,
        Fault::Slow(bytes, pause) => slow = Some((bytes, pause)),
    }
    let status = if claimed > 0 {
        format!(
            "206 Partial\r\ncontent-range: bytes {claimed}-{}/{total}",
            total - 1
        )
    } else {
        "200 OK".into()
    };
    let body = &body[start..];
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.ok()?;
    if let Some((bytes, pause)) = slow {
        for chunk in body.chunks(bytes) {
            stream.write_all(chunk).await.ok()?;
            stream.flush().await.ok()?;
            tokio::time::sleep(pause).await;
        }
        return Some(());
    }
    match cut {
        Some(after) => {
            stream
                .write_all(&body[..after.min(body.len())])
                .await
                .ok()?;
            stream.flush().await.ok()?;
            stream.get_mut().shutdown().await.ok()?;
            None
        }
        None => stream.write_all(body).await.ok(),
    }
}

fn impatient(dir: &std::path::Path) -> Store {
    let mut options = Options::default();
    options.patience.first_delay = Duration::from_millis(2);
    options.patience.read_timeout = Duration::from_millis(400);
    options.patience.attempts = 3;
    Store::open(dir.join("image"), options).unwrap()
}

struct Scene {
    _dir: tempfile::TempDir,
    store: Store,
    fake: Fake,
    layer: Digest,
}

/// An image of one big layer whose blob meets these faults.
async fn scene(faults: Vec<Fault>) -> Scene {
    scene_with(faults, vec![]).await
}

async fn scene_with(faults: Vec<Fault>, manifest_faults: Vec<Fault>) -> Scene {
    let text: String = (0..60_000).map(|i| format!("{i} ")).collect();
    let plain = vec![layer(&[("f", &text)])];
    let stored = vec![zstd(&plain[0])];
    let layer = Digest::of(&stored[0]);
    let (manifest, blobs) = oci_image(&plain, &stored);
    let faults = vec![(layer.clone(), faults)];
    let fake = Fake::start(
        vec![("1", OCI_MANIFEST, manifest)],
        &blobs,
        faults,
        manifest_faults,
    )
    .await;
    let dir = tempfile::tempdir().unwrap();
    let store = impatient(dir.path());
    Scene {
        _dir: dir,
        store,
        fake,
        layer,
    }
}

impl Scene {
    async fn pull(&self) -> Result<Pulled, Error> {
        self.store
            .pull(&self.fake.name(), None, Credentials::Anonymous, silent())
            .await
    }
    fn ranges(&self) -> Vec<Option<String>> {
        let requests = self.fake.blob_requests.lock().unwrap();
        requests
            .iter()
            .filter(|(d, _)| *d == self.layer)
            .map(|(_, r)| r.clone())
            .collect()
    }
    fn assert_complete(&self) {
        let image = self.store.resolve(&self.fake.name().familiar()).unwrap();
        assert!(self.store.layer_dirs(&image)[0].join("f").exists());
        assert!(
            leftovers(&self.store).is_empty(),
            "{:?}",
            leftovers(&self.store)
        );
    }
}

#[tokio::test]
async fn a_broken_connection_is_resumed_where_it_broke() {
    let scene = scene(vec![
        Fault::Drop(1000),
        Fault::Drop(5000),
        Fault::Status(503),
        Fault::None,
    ])
    .await;
    scene.pull().await.unwrap();
    scene.assert_complete();
    let ranges = scene.ranges();
    assert_eq!(
        ranges,
        [
            None,
            Some("bytes=1000-".into()),
            Some("bytes=6000-".into()),
            Some("bytes=6000-".into())
        ]
    );
}

#[tokio::test]
async fn attempts_are_counted_anew_after_progress_and_end_without() {
    // Seven breaks, each after some bytes: never three failures in a row without progress.
    let mut faults = vec![Fault::Drop(700); 7];
    faults.push(Fault::None);
    let s = scene(faults).await;
    s.pull().await.unwrap();
    s.assert_complete();
    let s = scene(vec![Fault::Status(500)]).await;
    let error = s.pull().await.unwrap_err();
    assert_eq!(
        (error.kind(), s.ranges().len()),
        (ErrorKind::Unavailable, 3),
        "{error}"
    );
    assert!(s.store.list().is_empty());
}

#[tokio::test]
async fn what_was_downloaded_is_kept_for_the_next_pull() {
    let s = scene(vec![
        Fault::Drop(3000),
        Fault::Status(500),
        Fault::Status(500),
        Fault::Status(500),
        Fault::None,
    ])
    .await;
    s.pull().await.unwrap_err();
    assert_eq!(leftovers(&s.store), [format!("{}.partial", s.layer.hex())]);
    s.pull().await.unwrap();
    assert_eq!(s.ranges().last().unwrap().as_deref(), Some("bytes=3000-"));
    s.assert_complete();
}

#[tokio::test]
async fn a_registry_without_ranges_starts_again() {
    let s = scene(vec![Fault::Drop(1000), Fault::NoRange]).await;
    s.pull().await.unwrap();
    s.assert_complete();
    let s = scene(vec![Fault::Drop(1000), Fault::Status(416), Fault::None]).await;
    s.pull().await.unwrap();
    s.assert_complete();
    let s = scene(vec![Fault::Drop(1000), Fault::WrongRange, Fault::None]).await;
    s.pull().await.unwrap();
    s.assert_complete();
}

#[tokio::test]
async fn a_stalled_connection_is_given_up_and_resumed() {
    let s = scene(vec![Fault::Stall(Duration::from_secs(20)), Fault::None]).await;
    tokio::time::timeout(Duration::from_secs(10), s.pull())
        .await
        .unwrap()
        .unwrap();
    s.assert_complete();
}

#[tokio::test]
async fn bytes_that_do_not_match_are_never_used() {
    let s = scene(vec![Fault::Lie]).await;
    let error = s.pull().await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    assert!(s.store.list().is_empty());
    assert_eq!(
        count(&s.store.root().join("layers")),
        0,
        "nothing was unpacked"
    );
    assert!(leftovers(&s.store).is_empty(), "the wrong bytes are gone");
    let s = scene(vec![Fault::Long]).await;
    let error = s.pull().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    // A wrong start, found when the whole is there, is not kept either.
    let s = scene(vec![Fault::None]).await;
    let partial = s
        .store
        .root()
        .join("ingest")
        .join(format!("{}.partial", s.layer.hex()));
    std::fs::write(&partial, "not how it begins").unwrap();
    assert!(matches!(s.pull().await, Err(Error::DigestMismatch { .. })));
    s.pull().await.unwrap();
    s.assert_complete();
}

#[tokio::test]
async fn a_cancelled_pull_stops_and_the_next_one_resumes() {
    let s = scene(vec![
        Fault::Drop(2000),
        Fault::Stall(Duration::from_secs(30)),
        Fault::None,
    ])
    .await;
    let cancelled = tokio::time::timeout(Duration::from_millis(200), s.pull()).await;
    assert!(cancelled.is_err());
    s.pull().await.unwrap();
    s.assert_complete();
    assert_eq!(s.ranges().last().unwrap().as_deref(), Some("bytes=2000-"));
}

#[tokio::test]
async fn manifests_are_retried_verified_and_never_ambiguous() {
    let s = scene_with(
        vec![],
        vec![Fault::Status(502), Fault::Status(429), Fault::None],
    )
    .await;
    s.pull().await.unwrap();
    assert_eq!(s.fake.manifest_requests.load(Ordering::SeqCst), 3);
    // 404 is an answer, not a failure.
    let s = scene_with(vec![], vec![Fault::Status(404)]).await;
    assert_eq!(s.pull().await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(s.fake.manifest_requests.load(Ordering::SeqCst), 1);

    let plain = vec![layer(&[("f", "x")])];
    let (manifest, blobs) = oci_image(&plain, &plain);
    let dir = tempfile::tempdir().unwrap();
    let store = impatient(dir.path());
    // The type the registry gives contradicts the contents.
    let fake = Fake::start(
        vec![("1", OCI_INDEX, manifest.clone())],
        &blobs,
        vec![],
        vec![],
    )
    .await;
    let error = store
        .pull(&fake.name(), None, Credentials::Anonymous, silent())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("ambiguous"), "{error}");
    // Another manifest than the digest asked for.
    let wanted = Digest::of(b"something else");
    let fake = Fake::start(
        vec![(wanted.as_str(), OCI_MANIFEST, manifest.clone())],
        &blobs,
        vec![],
        vec![],
    )
    .await;
    let name = fake.name().with_digest(wanted);
    let error = store
        .pull(&name, None, Credentials::Anonymous, silent())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    // A manifest that never ends.
    let endless = vec![b' '; 9 << 20];
    let fake = Fake::start(vec![("1", OCI_MANIFEST, endless)], &blobs, vec![], vec![]).await;
    let error = store
        .pull(&fake.name(), None, Credentials::Anonymous, silent())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(store.list().is_empty());
}

#[tokio::test]
async fn a_layer_that_is_not_what_the_configuration_says_is_not_used() {
    let (promised, given) = (
        vec![layer(&[("f", "promised")])],
        vec![layer(&[("f", "given")])],
    );
    let (manifest, blobs) = oci_image(&promised, &given);
    let fake = Fake::start(vec![("1", OCI_MANIFEST, manifest)], &blobs, vec![], vec![]).await;
    let dir = tempfile::tempdir().unwrap();
    let store = impatient(dir.path());
    let error = store
        .pull(&fake.name(), None, Credentials::Anonymous, silent())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::DiffIdMismatch { .. }), "{error}");
    assert!(store.list().is_empty());
    assert_eq!(count(&store.root().join("layers")), 0);
}

const STORE: &str = "CAISSON_TEST_PULL_STORE";
const NAME: &str = "CAISSON_TEST_PULL_NAME";

/// The part of the test below that gets killed; by itself it does nothing.
#[tokio::test]
async fn child_that_pulls() {
    let (Ok(root), Ok(name)) = (std::env::var(STORE), std::env::var(NAME)) else {
        return;
    };
    let store = Store::open(root, Options::default()).unwrap();
    store
        .pull(
            &name.parse().unwrap(),
            None,
            Credentials::Anonymous,
            silent(),
        )
        .await
        .unwrap();
}

#[tokio::test]
async fn killed_while_pulling_the_next_pull_resumes() {
    let s = scene(vec![Fault::Slow(8192, Duration::from_millis(20))]).await;
    let mut resumed = false;
    for step in 0..6_u32 {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_pulls"])
            .env(STORE, dir.path().join("image"))
            .env(NAME, s.fake.name().to_string())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Let it get somewhere: to the layer's first bytes, and then some.
        let partial = dir
            .path()
            .join("image/ingest")
            .join(format!("{}.partial", s.layer.hex()));
        for _ in 0..2000 {
            if std::fs::metadata(&partial).is_ok_and(|m| m.len() > 0) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(60) * step).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let store = impatient(dir.path());
        let before = s.ranges().len();
        store
            .pull(&s.fake.name(), None, Credentials::Anonymous, silent())
            .await
            .unwrap();
        resumed |= s.ranges()[before..].iter().any(|range| range.is_some());
        let image = store.resolve(&s.fake.name().familiar()).unwrap();
        assert!(store.layer_dirs(&image)[0].join("f").exists());
        assert!(leftovers(&store).is_empty(), "{:?}", leftovers(&store));
    }
    assert!(resumed, "no pull went on where the killed one stopped");
}
