//! Bearer tokens, redirects and indexes: a registry as the big public ones are.

#![allow(clippy::unwrap_used)]

mod fixture;

use std::sync::{Arc, Mutex};

use caisson_image::{Credentials, Digest, ErrorKind, Platform, Reference, Store, silent};
use fixture::*;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

#[derive(Clone, Debug)]
struct Request {
    path: String,
    authorization: Option<String>,
    body: String,
}

struct Answer {
    status: &'static str,
    headers: Vec<String>,
    body: Vec<u8>,
}

fn answer(status: &'static str, headers: &[String], body: &[u8]) -> Answer {
    Answer {
        status,
        headers: headers.to_vec(),
        body: body.to_vec(),
    }
}

type Handler = Arc<dyn Fn(&Request) -> Answer + Send + Sync>;
type Log = Arc<Mutex<Vec<Request>>>;

/// A server on this address; what it was asked is recorded.
async fn serve(listener: TcpListener, handler: Handler) -> Log {
    let log: Log = Arc::default();
    let seen = log.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(connection(stream, handler.clone(), seen.clone()));
        }
    });
    log
}

async fn connection(stream: TcpStream, handler: Handler, log: Log) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let path = line.split_whitespace().nth(1)?.to_owned();
        let (mut authorization, mut length) = (None, 0);
        loop {
            let mut header = String::new();
            stream.read_line(&mut header).await.ok()?;
            let Some((name, value)) = header.split_once(':') else {
                break;
            };
            match name.to_lowercase().as_str() {
                "authorization" => authorization = Some(value.trim().to_owned()),
                "content-length" => length = value.trim().parse().ok()?,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.ok()?;
        let request = Request {
            path,
            authorization,
            body: String::from_utf8_lossy(&body).into_owned(),
        };
        let answer = handler(&request);
        log.lock().unwrap().push(request);
        let mut head = format!(
            "HTTP/1.1 {}\r\ncontent-length: {}\r\n",
            answer.status,
            answer.body.len()
        );
        for header in &answer.headers {
            head += &format!("{header}\r\n");
        }
        stream
            .write_all(format!("{head}\r\n").as_bytes())
            .await
            .ok()?;
        stream.write_all(&answer.body).await.ok()?;
    }
}

struct Hub {
    name: Reference,
    registry: Log,
    storage: Log,
    layer: Digest,
}

/// A registry that wants tokens, redirects blobs to another host and has images for two platforms.
async fn hub() -> Hub {
    let registry = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let storage = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let domain = registry.local_addr().unwrap().to_string();
    let storage_address = storage.local_addr().unwrap().to_string();
    let (ours, theirs) = (
        vec![layer(&[("f", "ours")])],
        vec![layer(&[("f", "theirs")])],
    );
    let stored = vec![gzip(&ours[0])];
    let (m1, b1) = oci_image(&ours, &stored);
    let (m2, b2) = oci_image(&theirs, &[gzip(&theirs[0])]);
    let entry = |manifest: &[u8], architecture: &str| {
        let mut d = descriptor(OCI_MANIFEST, manifest);
        d["platform"] = json!({"os": "linux", "architecture": architecture});
        d
    };
    let host = Platform::host().architecture;
    let mut attestation = entry(&m2, "unknown");
    attestation["platform"]["os"] = json!("unknown");
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [attestation, entry(&m2, "s390x"), entry(&m1, &host)],
    }))
    .unwrap();
    let mut manifests = vec![("1".to_owned(), OCI_INDEX, index.clone())];
    manifests.push((Digest::of(&index).to_string(), OCI_INDEX, index));
    for m in [m1, m2] {
        manifests.push((Digest::of(&m).to_string(), OCI_MANIFEST, m));
    }
    let blobs: Vec<Vec<u8>> = b1.into_iter().chain(b2).collect();
    let realm = format!("http://{domain}/token");
    let token_for = |name: &str| format!("Bearer token-of-{name}");
    let (allowed, readers) = (token_for("user"), token_for("refreshed"));
    let registry_log = serve(
        registry,
        Arc::new(move |request| {
            if let Some(query) = request.path.strip_prefix("/token") {
                let who = match request.authorization.as_deref() {
                    // user:secret
                    Some("Basic dXNlcjpzZWNyZXQ=") => "user",
                    Some(_) => return answer("401 No", &[], br#"{"details":"incorrect username or password"}"#),
                    None if request.body.contains("refresh_token=the-refresh-token") => "refreshed",
                    None => "nobody",
                };
                assert!(query.contains("service=my+service") || request.body.contains("service=my+service"));
                return answer("200 OK", &[], format!(r#"{{"token":"token-of-{who}"}}"#).as_bytes());
            }
            let known = request.authorization.as_ref().is_some_and(|a| *a == allowed || *a == readers);
            if !known {
                let challenge =
                    format!("www-authenticate: Bearer realm=\"{realm}\",service=\"my service\",scope=\"repository:a/b:pull\"");
                let denied = br#"{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}"#;
                return answer("401 Unauthorized", &[challenge], denied);
            }
            if let Some(name) = request.path.strip_prefix("/v2/a/b/manifests/") {
                return match manifests.iter().find(|(n, _, _)| n == name) {
                    Some((_, kind, body)) => answer("200 OK", &[format!("content-type: {kind}")], body),
                    None => answer("404 No", &[], b""),
                };
            }
            if let Some(digest) = request.path.strip_prefix("/v2/a/b/blobs/") {
                return answer("307 Elsewhere", &[format!("location: http://{storage_address}/{digest}")], b"");
            }
            answer("200 OK", &[], b"{}")
        }),
    )
    .await;
    let storage_log = serve(
        storage,
        Arc::new(move |request| {
            let found = blobs
                .iter()
                .find(|b| request.path.ends_with(Digest::of(b).as_str()));
            found.map_or_else(|| answer("404 No", &[], b""), |b| answer("200 OK", &[], b))
        }),
    )
    .await;
    Hub {
        name: format!("{domain}/a/b:1").parse().unwrap(),
        registry: registry_log,
        storage: storage_log,
        layer: Digest::of(&stored[0]),
    }
}

fn user(password: &str) -> Credentials {
    Credentials::Basic {
        username: "user".into(),
        password: password.into(),
    }
}

async fn pulled(store: &Store, hub: &Hub) {
    let image = store.resolve(&hub.name.familiar()).unwrap();
    assert_eq!(
        std::fs::read_to_string(store.layer_dirs(&image)[0].join("f")).unwrap(),
        "ours"
    );
}

#[tokio::test]
async fn a_token_is_got_used_and_not_carried_elsewhere() {
    let hub = hub().await;
    let (_dir, store) = store();
    let result = store
        .pull(&hub.name, None, user("secret"), silent())
        .await
        .unwrap();
    pulled(&store, &hub).await;
    let requests = hub.registry.lock().unwrap().clone();
    let tokens: Vec<_> = requests
        .iter()
        .filter(|r| r.path.starts_with("/token"))
        .collect();
    assert!(
        tokens
            .iter()
            .all(|t| t.path.contains("scope=repository%3Aa%2Fb%3Apull")),
        "{tokens:?}"
    );
    assert!(tokens.len() <= 2, "a token is kept: {tokens:?}");
    let stored = hub.storage.lock().unwrap().clone();
    assert!(stored.iter().any(|r| r.path.ends_with(hub.layer.as_str())));
    assert!(
        stored.iter().all(|r| r.authorization.is_none()),
        "{stored:?}"
    );
    // The name means the index, the image is of one of its manifests; both are kept.
    let image = store.resolve(&hub.name.familiar()).unwrap();
    assert_eq!(
        image.repo_digests,
        [format!("{}@{}", hub.name.familiar_name(), result.digest)]
    );
    assert_ne!(image.manifest().digest, result.digest);
    store.collect_garbage(vec![]).await.unwrap();
    assert!(
        store
            .root()
            .join("blobs/sha256")
            .join(result.digest.hex())
            .exists()
    );
    let remote = store.remote_image(&hub.name, user("secret")).await.unwrap();
    assert_eq!(
        (remote.platforms.len(), &remote.descriptor.digest),
        (2, &result.digest)
    );
}

#[tokio::test]
async fn a_refresh_token_serves_too() {
    let hub = hub().await;
    let (_dir, store) = store();
    store
        .pull(
            &hub.name,
            None,
            Credentials::IdentityToken("the-refresh-token".into()),
            silent(),
        )
        .await
        .unwrap();
    pulled(&store, &hub).await;
    let (_dir, store) = fixture::store();
    store
        .pull(
            &hub.name,
            None,
            Credentials::RegistryToken("token-of-user".into()),
            silent(),
        )
        .await
        .unwrap();
}

#[tokio::test]
async fn wrong_credentials_are_told_in_the_registry_s_words() {
    let hub = hub().await;
    let (_dir, store) = store();
    let error = store
        .pull(&hub.name, None, user("guess"), silent())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(
        error.to_string().contains("incorrect username or password"),
        "{error}"
    );
    let error = store
        .pull(&hub.name, None, Credentials::Anonymous, silent())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(
        error
            .to_string()
            .contains("denied: requested access to the resource is denied"),
        "{error}"
    );
    store
        .login(hub.name.domain(), user("secret"))
        .await
        .unwrap();
    let error = store
        .login(hub.name.domain(), user("guess"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
}

#[tokio::test]
async fn another_platform_is_pulled_when_asked_for() {
    let hub = hub().await;
    let (_dir, store) = store();
    let other = Platform::parse("linux/s390x").unwrap();
    // The test's configurations all say amd64, so the index leads on but the image itself does not match.
    let error = store
        .pull(&hub.name, Some(&other), user("secret"), silent())
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("does not match the specified platform"),
        "{error}"
    );
    let none = Platform::parse("linux/riscv64").unwrap();
    let error = store
        .pull(&hub.name, Some(&none), user("secret"), silent())
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("no matching manifest for linux/riscv64"),
        "{error}"
    );
    assert!(store.list().is_empty());
}
