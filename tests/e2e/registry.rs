//! `pull`, `push`, `login`: against Debian's docker-registry, sound, locked, lying and broken.

use std::sync::atomic::Ordering;

use caisson_tests::fixture::{self, Entry};
use caisson_tests::registry::{LOGIN, Registry};
use caisson_tests::{IMAGE, Test, cases};

fn registry(t: &Test, authenticated: bool) -> Registry {
    Registry::start(authenticated).unwrap_or_else(|reason| t.skip(&reason))
}

/// Pushes an image with a large layer of its own and forgets it here; returns its name.
fn pushed(t: &Test, registry: &Registry, bytes: usize) -> String {
    let name = format!("{}/{}:1", registry.name(), t.unique("image").to_lowercase());
    let mut state = 7_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
        (state >> 40) as u8
    })
    .take(bytes)
    .collect();
    let layer = fixture::layer(&[
        Entry::File("large", &noise),
        Entry::File("name", name.as_bytes()),
    ]);
    let archive = fixture::docker_archive(&name, &[fixture::toolbox_layer(), layer], |_| {});
    t.cli_with_input(&["load"], &archive).ok();
    t.cli(&["push", &name]).ok().has("digest: sha256:");
    t.cli(&["rmi", &name]).ok();
    name
}

fn push_then_pull(t: &Test) {
    let registry = registry(t, false);
    let name = pushed(t, &registry, 3 << 20);
    let outcome = t.cli(&["pull", &name]);
    outcome
        .ok()
        .has("Pull complete")
        .has("Digest: sha256:")
        .has("Downloaded newer image")
        .has(&name);
    t.run(&["--rm", &name, "/bin/busybox", "cat", "/name"])
        .ok()
        .prints(&name);
    t.cli(&["pull", &name]).ok().has("Image is up to date");
    let digest = t
        .cli(&[
            "image",
            "inspect",
            "--format",
            "{{index .RepoDigests 0}}",
            &name,
        ])
        .ok()
        .trimmed();
    assert!(
        digest.starts_with(name.trim_end_matches(":1")) && digest.contains("@sha256:"),
        "{digest}"
    );
    t.cli(&["rmi", &name]).ok();
    t.cli(&["pull", "-q", &digest]).ok().has("@sha256:");
    t.run(&["--rm", &digest, "/bin/busybox", "true"]).ok();
    t.cli(&["rmi", "-f", &digest]).ok();
}

fn run_pulls_what_is_missing(t: &Test) {
    let registry = registry(t, false);
    let name = pushed(t, &registry, 1000);
    t.run(&["--rm", "--pull=never", &name, "/bin/busybox", "true"])
        .code(125);
    let outcome = t.run(&["--rm", &name, "/bin/busybox", "echo", "pulled"]);
    outcome
        .ok()
        .prints("pulled\n")
        .complains(&["unable to find image"]);
    t.run(&[
        "--rm",
        "--pull=always",
        "-q",
        &name,
        "/bin/busybox",
        "echo",
        "again",
    ])
    .ok()
    .has("again");
    t.cli(&["rmi", &name]).ok();
}

fn login_is_needed_and_remembered(t: &Test) {
    let own = t.own_daemon(&[]);
    let registry = registry(t, true);
    let name = format!("{}/private:1", registry.name());
    own.cli(&["tag", IMAGE, &name]).ok();
    own.cli(&["push", &name]).fails().complains(&[
        "no basic auth",
        "unauthorized",
        "authentication required",
        "denied",
    ]);
    let login = |password: &str| {
        own.cli_with_input(
            &["login", "-u", LOGIN.0, "--password-stdin", &registry.name()],
            password.as_bytes(),
        )
    };
    login("wrong")
        .fails()
        .complains(&["unauthorized", "incorrect", "401"]);
    login(LOGIN.1).ok().has("Login Succeeded");
    let config = own.daemon.home().join(".docker/config.json");
    let text = std::fs::read_to_string(&config).expect("credentials are kept");
    assert!(
        text.contains(&registry.name()) && !text.contains(LOGIN.1),
        "{text}"
    );
    own.cli(&["push", &name]).ok();
    own.cli(&["rmi", &name]).ok();
    own.cli(&["pull", &name]).ok();
    own.cli(&["rmi", &name]).ok();
    own.cli(&["logout", &registry.name()]).ok();
    own.cli(&["pull", &name]).fails();
}

fn unknown_images_and_tags(t: &Test) {
    let registry = registry(t, false);
    let name = pushed(t, &registry, 10);
    let unknown_tag = name.replace(":1", ":2");
    t.cli(&["pull", &unknown_tag])
        .code(1)
        .complains(&["not found", "manifest unknown"]);
    t.cli(&["pull", &format!("{}/no/such", registry.name())])
        .code(1)
        .complains(&["not found", "manifest unknown", "name unknown"]);
    t.cli(&["pull", "localhost:1/nothing/listens"])
        .code(1)
        .complains(&["refused"]);
    t.run(&["--rm", &unknown_tag, "true"]).code(125);
    t.cli(&["push", &format!("{}/never/tagged", registry.name())])
        .code(1)
        .complains(&["does not exist", "no such image"]);
}

fn several_platforms(t: &Test) {
    let registry = registry(t, false);
    let name = pushed(t, &registry, 10);
    let (_, repository) = name
        .trim_end_matches(":1")
        .split_once('/')
        .expect("a registry");
    let accept = "Accept: application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json";
    let manifest = registry.request(
        "GET",
        &format!("/v2/{repository}/manifests/1"),
        &[accept],
        b"",
    );
    assert_eq!(manifest.status, 200, "{}", manifest.head);
    let media_type = manifest.json()["mediaType"]
        .as_str()
        .unwrap_or("application/vnd.oci.image.manifest.v1+json")
        .to_string();
    let digest = format!("sha256:{}", fixture::sha256(&manifest.body));
    let entry = |architecture: &str| serde_json::json!({"mediaType": media_type, "digest": digest, "size": manifest.body.len(), "platform": {"os": "linux", "architecture": architecture}});
    let list = "application/vnd.docker.distribution.manifest.list.v2+json";
    for (tag, architectures) in [
        ("both", vec!["arm64", "amd64"]),
        ("foreign", vec!["arm64", "s390x"]),
    ] {
        let manifests: Vec<_> = architectures.iter().map(|a| entry(a)).collect();
        let index =
            serde_json::json!({"schemaVersion": 2, "mediaType": list, "manifests": manifests})
                .to_string();
        let path = format!("/v2/{repository}/manifests/{tag}");
        let put = registry.request(
            "PUT",
            &path,
            &[&format!("Content-Type: {list}")],
            index.as_bytes(),
        );
        assert_eq!(put.status, 201, "{}", String::from_utf8_lossy(&put.body));
    }
    let both = name.replace(":1", ":both");
    t.run(&["--rm", &both, "/bin/busybox", "cat", "/name"])
        .ok()
        .prints(&name);
    t.cli(&["rmi", &both]).ok();
    t.cli(&["pull", &name.replace(":1", ":foreign")])
        .fails()
        .complains(&["no matching manifest", "platform"]);
}

fn broken_connections_are_resumed(t: &Test) {
    let registry = registry(t, false);
    let name = pushed(t, &registry, 6 << 20);
    let (proxy, left) = registry.unreliable(3, 1 << 20);
    let through = name.replace(&registry.name(), &proxy);
    t.cli(&["pull", &through]).ok();
    assert_eq!(
        left.load(Ordering::SeqCst),
        0,
        "the connections were not cut"
    );
    t.run(&["--rm", &through, "/bin/busybox", "cat", "/name"])
        .ok()
        .prints(&name);
    t.cli(&["rmi", &through]).ok();
}

fn changed_blobs_are_refused(t: &Test) {
    let own = t.own_daemon(&[]);
    let registry = registry(t, false);
    let name = pushed(&own, &registry, 100_000);
    let (_, repository) = name
        .trim_end_matches(":1")
        .split_once('/')
        .expect("a registry");
    let accept = "Accept: application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json";
    let manifest = registry
        .request(
            "GET",
            &format!("/v2/{repository}/manifests/1"),
            &[accept],
            b"",
        )
        .json();
    let digest = manifest["layers"][1]["digest"]
        .as_str()
        .expect("two layers")
        .to_string();
    let blob = registry.blob(&digest);
    let mut bytes = std::fs::read(&blob).expect("a blob");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&blob, bytes).expect("a blob");
    let before = own.cli(&["images", "-aq"]).ok().out();
    own.cli(&["pull", &name]).fails();
    own.cli(&["image", "inspect", &name]).fails();
    assert_eq!(own.cli(&["images", "-aq"]).ok().out(), before);
    own.run(&["--rm", IMAGE, "true"]).ok();
}

fn progress_is_shown_on_a_terminal(t: &Test) {
    let registry = registry(t, false);
    let name = pushed(t, &registry, 4 << 20);
    let mut terminal = t.terminal(&["pull", &name]);
    terminal.expect("Status: Downloaded newer image");
    assert_eq!(terminal.exit_code(), 0);
    assert!(
        terminal.shown().contains("Pull complete"),
        "{:?}",
        terminal.shown()
    );
    t.cli(&["rmi", &name]).ok();
}

fn concurrent_pulls_of_one_image(t: &Test) {
    let registry = registry(t, false);
    let name = pushed(t, &registry, 2 << 20);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| t.cli(&["pull", &name]).code(0).took);
        }
    });
    t.run(&["--rm", &name, "/bin/busybox", "true"]).ok();
    t.cli(&["rmi", &name]).ok();
}

cases![
    push_then_pull,
    run_pulls_what_is_missing,
    login_is_needed_and_remembered,
    unknown_images_and_tags,
    several_platforms,
    broken_connections_are_resumed,
    changed_blobs_are_refused,
    progress_is_shown_on_a_terminal,
    concurrent_pulls_of_one_image,
];
