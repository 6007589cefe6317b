//! Images: load, save, import, export, commit, tag, rmi, history, prune, list, and archives that must be refused.

use caisson_tests::fixture::{self, Compression, Entry};
use caisson_tests::{IMAGE, Outcome, Test, cases, client, residue};

fn reference(t: &Test, suffix: &str) -> String {
    format!("{}:latest", t.unique(suffix).to_lowercase())
}

fn load(t: &Test, archive: &[u8]) -> Outcome {
    t.cli_with_input(&["load"], archive)
}

fn remove(t: &Test, references: &[&str]) {
    for reference in references {
        let _ = t.cli(&["rmi", "-f", reference]);
    }
}

fn id_of(t: &Test, reference: &str) -> String {
    t.cli(&["image", "inspect", "--format", "{{.Id}}", reference])
        .ok()
        .trimmed()
}

fn the_default_image_is_there(t: &Test) {
    t.cli(&["images", IMAGE, "--format", "{{.Repository}}:{{.Tag}}"])
        .ok()
        .prints(&format!("{IMAGE}\n"));
    let all = t.inspect_json(IMAGE);
    assert_eq!(all["Os"], "linux");
    assert_eq!(all["Config"]["Cmd"][0], "sh");
    assert_eq!(all["RepoTags"][0], IMAGE);
    assert_eq!(all["RootFS"]["Layers"].as_array().map(Vec::len), Some(1));
    assert!(all["Size"].as_u64().is_some_and(|bytes| bytes > 1 << 20));
    assert!(
        all["Created"]
            .as_str()
            .is_some_and(|time| time.starts_with("2026-01-01T"))
    );
}

fn a_removed_default_image_stays_removed(t: &Test) {
    let own = t.own_daemon(&[]);
    own.cli(&["rmi", IMAGE]).ok();
    own.daemon.stop();
    own.daemon.launch();
    own.cli(&["images", "-q"]).ok().prints("");
}

fn save_and_load(t: &Test) {
    let name = reference(t, "saved");
    t.cli(&["tag", IMAGE, &name]).ok();
    let id = id_of(t, &name);
    let path = t.directory().join("image.tar").display().to_string();
    t.cli(&["save", "-o", &path, &name]).ok();
    t.cli(&["rmi", &name]).ok().has("Untagged:");
    t.cli(&["image", "inspect", &name])
        .code(1)
        .complains(&["no such image"]);
    t.cli(&["load", "-i", &path])
        .ok()
        .has(&format!("Loaded image: {name}"));
    assert_eq!(id_of(t, &name), id);
    let piped = t.cli(&["save", &name]);
    load(t, &piped.ok().stdout).ok().has("Loaded image");
    let quiet = t.cli_with_input(&["load", "-q"], &piped.stdout);
    quiet.ok().has("Loaded image");
    remove(t, &[&name]);
}

fn save_several(t: &Test) {
    let (first, second) = (reference(t, "first"), reference(t, "second"));
    t.cli(&["tag", IMAGE, &first]).ok();
    t.cli(&["tag", IMAGE, &second]).ok();
    let saved = t.cli(&["save", &first, &second]).ok().stdout.clone();
    remove(t, &[&first, &second]);
    load(t, &saved).ok().has(&first).has(&second);
    remove(t, &[&first, &second]);
    t.cli(&["save", "no/such:image"])
        .fails()
        .complains(&["no such image", "does not exist"]);
}

fn compressed_archives(t: &Test) {
    let name = reference(t, "gz");
    let archive = fixture::docker_archive(&name, &[fixture::toolbox_layer()], |_| {});
    load(t, &fixture::gzip(&archive)).ok().has(&name);
    t.run(&["--rm", &name, "/bin/busybox", "echo", "fine"])
        .ok()
        .prints("fine\n");
    remove(t, &[&name]);
}

fn layers_stack_with_whiteouts(t: &Test) {
    let name = reference(t, "layers");
    let lower = fixture::layer(&[
        Entry::Directory("d/"),
        Entry::File("d/gone", b"1"),
        Entry::File("d/kept", b"2"),
        Entry::Directory("opaque/"),
        Entry::File("opaque/hidden", b"3"),
        Entry::File("replaced", b"old"),
    ]);
    let upper = fixture::layer(&[
        Entry::File("d/.wh.gone", b""),
        Entry::Directory("opaque/"),
        Entry::File("opaque/.wh..wh..opq", b""),
        Entry::File("opaque/shown", b"4"),
        Entry::File("replaced", b"new"),
        Entry::File("hard", b"linked"),
        Entry::Hardlink("hard2", "hard"),
        Entry::Symlink("soft", "hard"),
    ]);
    load(
        t,
        &fixture::docker_archive(&name, &[fixture::toolbox_layer(), lower, upper], |_| {}),
    )
    .ok();
    let script = "ls /d /opaque; cat /replaced /soft /hard2; stat -c %h /hard";
    let outcome = t.run(&["--rm", "-e", "PATH=/bin", &name, "sh", "-c", script]);
    outcome
        .ok()
        .prints("/d:\nkept\n\n/opaque:\nshown\nnewlinkedlinked2\n");
    remove(t, &[&name]);
}

fn oci_layout(t: &Test) {
    for compression in [Compression::Gzip, Compression::Zstd] {
        let name = reference(t, "oci");
        let archive = fixture::oci_layout(
            &format!("docker.io/library/{name}"),
            &fixture::toolbox_layer(),
            compression,
        );
        load(t, &archive).ok().has(&name);
        t.run(&["--rm", &name, "busybox", "echo", "from a layout"])
            .ok()
            .prints("from a layout\n");
        remove(t, &[&name]);
    }
}

/// The store is as it was: nothing new is listed, and the default image still runs.
fn unharmed(t: &Test, before: &str) {
    assert_eq!(
        t.cli(&["images", "-aq", "--no-trunc"]).ok().out(),
        before,
        "images changed"
    );
    t.run(&["--rm", IMAGE, "true"]).ok();
}

fn evil(t: &Test, what: &str, archive: &[u8], complaints: &[&str]) {
    let own = t.own_daemon(&[]);
    let before = own.cli(&["images", "-aq", "--no-trunc"]).ok().out();
    let outcome = load(&own, archive);
    assert!(
        outcome.code != 0 || outcome.err().contains("rror"),
        "{what} was accepted\n{}",
        outcome.dump()
    );
    if !own.is_reference() {
        outcome.complains(complaints);
    }
    unharmed(&own, &before);
}

fn bad_digest_is_refused(t: &Test) {
    let name = reference(t, "bad");
    let layer = fixture::layer(&[Entry::File("file", &[b'x'; 10_000])]);
    let archive = fixture::docker_archive(&name, &[layer], |files| {
        let layer = &mut files[2].1;
        let middle = layer.len() / 2;
        layer[middle] ^= 1;
    });
    evil(
        t,
        "a changed layer",
        &archive,
        &["digest", "diffid", "does not match", "mismatch"],
    );
}

fn truncated_archives_are_refused(t: &Test) {
    let name = reference(t, "short");
    let archive = fixture::docker_archive(&name, &[fixture::toolbox_layer()], |_| {});
    evil(
        t,
        "half an archive",
        &archive[..archive.len() / 2],
        &["truncated", "unexpected end", "ends", "incomplete", "eof"],
    );
}

fn truncated_layers_are_refused(t: &Test) {
    let name = reference(t, "short");
    let layer = fixture::toolbox_layer();
    let archive = fixture::docker_archive(&name, &[layer[..layer.len() / 2].to_vec()], |_| {});
    evil(
        t,
        "half a layer",
        &archive,
        &["truncated", "unexpected end", "ends", "incomplete", "eof"],
    );
}

fn not_an_archive_is_refused(t: &Test) {
    evil(
        t,
        "text",
        b"this is not a tar archive at all, just a few words of text\n",
        &["archive", "tar", "manifest"],
    );
    evil(
        t,
        "an archive of something else",
        &fixture::pack(&[("readme".into(), b"hello".to_vec())]),
        &["manifest.json", "index.json", "not an image"],
    );
}

fn traversal_in_a_layer_stays_inside(t: &Test) {
    let own = t.own_daemon(&[]);
    let mark = format!("caisson-pwned-{}", std::process::id());
    let (up, absolute) = (
        format!("../../../../../../../../../../tmp/{mark}"),
        format!("/tmp/{mark}"),
    );
    let through = format!("link/{mark}");
    let attacks = [
        vec![Entry::File(&up, b"x")],
        vec![Entry::File(&absolute, b"x")],
        vec![Entry::Symlink("link", "/tmp"), Entry::File(&through, b"x")],
        vec![
            Entry::Symlink("link", "../../../../../../../../../../tmp"),
            Entry::File(&through, b"x"),
        ],
        vec![
            Entry::Hardlink("shadow", "/etc/shadow"),
            Entry::File("shadow", b"x"),
        ],
        vec![Entry::Hardlink(
            "shadow",
            "../../../../../../../../../../etc/shadow",
        )],
    ];
    for (number, attack) in attacks.iter().enumerate() {
        let name = reference(t, &format!("evil{number}"));
        // accepted and harmless, or refused: both are right; written outside is wrong
        let _ = load(
            &own,
            &fixture::docker_archive(
                &name,
                &[fixture::toolbox_layer(), fixture::layer(attack)],
                |_| {},
            ),
        );
        let _ = own.run(&["--rm", &name, "/bin/busybox", "true"]);
        assert!(
            !std::path::Path::new(&absolute).exists(),
            "attack {number} wrote {absolute} on the host"
        );
        let found = residue::of(&mark, &[std::path::Path::new("/tmp")]);
        let outside: Vec<_> = found
            .iter()
            .filter(|f| !f.contains(&own.daemon.root().display().to_string()))
            .collect();
        assert!(
            outside.iter().all(|f| !f.starts_with("file")),
            "attack {number}: {outside:?}"
        );
    }
    own.run(&["--rm", IMAGE, "true"]).ok();
}

fn overlay_attributes_in_layers_are_dropped(t: &Test) {
    // a layer that brings trusted.overlay.redirect or opaque attributes could show files of other layers
    let name = reference(t, "xattr");
    let mut tar = tar::Builder::new(Vec::new());
    let record = |key: &str, value: &str| {
        let body = format!(" SCHILY.xattr.{key}={value}\n");
        let mut length = body.len() + 2;
        while format!("{length}").len() + body.len() != length {
            length += 1;
        }
        format!("{length}{body}")
    };
    let pax = record("trusted.overlay.opaque", "y") + &record("user.overlay.opaque", "y");
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::XHeader);
    header.set_size(pax.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "pax", pax.as_bytes())
        .expect("memory");
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o755);
    header.set_size(0);
    tar.append_data(&mut header, "etc/", std::io::empty())
        .expect("memory");
    let layer = tar.into_inner().expect("memory");
    let outcome = load(
        t,
        &fixture::docker_archive(&name, &[fixture::toolbox_layer(), layer], |_| {}),
    );
    outcome.ok();
    let seen = t.run(&["--rm", &name, "/bin/busybox", "cat", "/etc/os-release"]);
    remove(t, &[&name]);
    seen.ok().has("caisson toolbox");
}

fn a_bomb_is_refused(t: &Test) {
    // 40 GiB of zeros in a few dozen KiB of nested gzip members is what a bomb is; a tenth shows the same
    let own = t.own_daemon(&[]);
    let name = reference(t, "bomb");
    let size: u64 = 4 << 30;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros").expect("a short name");
    header.set_mode(0o644);
    header.set_size(size);
    header.set_cksum();
    use std::io::Write;
    encoder.write_all(header.as_bytes()).expect("memory");
    let zeros = vec![0_u8; 1 << 20];
    for _ in 0..64 {
        encoder.write_all(&zeros).expect("memory");
    }
    let blob = encoder.finish().expect("memory");
    let archive = fixture::docker_archive(&name, &[blob], |_| {});
    let outcome = load(&own, &archive);
    outcome.fails();
    own.run(&["--rm", IMAGE, "true"]).ok();
}

fn import_and_export(t: &Test) {
    let name = reference(t, "flat");
    let id = t.start_sh(&["-e", "X=1"], "echo content > /root/file; mkdir /empty");
    t.cli(&["wait", &id]).ok();
    let exported = t.cli(&["export", &id]);
    let path = t
        .file("root.tar", &exported.ok().stdout)
        .display()
        .to_string();
    let outcome = t.cli(&[
        "import",
        "--message",
        "flattened",
        "--change",
        "CMD [\"cat\", \"/root/file\"]",
        "--change",
        "ENV Y=2",
        &path,
        &name,
    ]);
    outcome.ok().has("sha256:");
    t.run(&["--rm", &name]).ok().prints("content\n");
    t.run(&[
        "--rm",
        &name,
        "sh",
        "-c",
        "echo $X $Y; ls -d /empty /bin/busybox",
    ])
    .ok()
    .prints("2\n/bin/busybox\n/empty\n");
    t.cli(&["history", &name]).ok().has("flattened");
    let piped = t.cli_with_input(&["import", "-", &name], &exported.stdout);
    piped.ok();
    remove(t, &[&name]);
    let to_file = t.directory().join("again.tar").display().to_string();
    t.cli(&["export", "-o", &to_file, &id]).ok();
    assert!(std::fs::metadata(&to_file).is_ok_and(|m| m.len() > 1 << 20));
}

fn commit(t: &Test) {
    let name = reference(t, "committed");
    let id = t.start_sh(
        &["-e", "KEPT=1"],
        "echo new > /root/file; rm /etc/os-release; sleep 1000",
    );
    t.eventually("it is written", || {
        t.cli(&["exec", &id, "cat", "/root/file"]).code == 0
    });
    let outcome = t.cli(&[
        "commit",
        "-m",
        "a message",
        "-a",
        "an author",
        "-c",
        "CMD cat /root/file",
        "-c",
        "LABEL l=v",
        &id,
        &name,
    ]);
    outcome.ok().has("sha256:");
    t.run(&["--rm", &name]).ok().prints("new\n");
    t.run(&["--rm", &name, "sh", "-c", "echo $KEPT; ls /etc/os-release"])
        .fails()
        .prints("1\n");
    let image = t.inspect_json(&name);
    assert_eq!(image["Author"], "an author");
    assert_eq!(image["Config"]["Labels"]["l"], "v");
    assert_eq!(image["RootFS"]["Layers"].as_array().map(Vec::len), Some(2));
    t.cli(&["history", "--no-trunc", &name])
        .ok()
        .has("a message");
    // the layer also travels
    let saved = t.cli(&["save", &name]).ok().stdout.clone();
    t.cli(&["rmi", &name]).ok();
    load(t, &saved).ok();
    t.run(&["--rm", &name]).ok().prints("new\n");
    remove(t, &[&name]);
}

fn tags(t: &Test) {
    let name = t.unique("tagged").to_lowercase();
    t.cli(&["tag", IMAGE, &format!("{name}:one")]).ok();
    t.cli(&["tag", &format!("{name}:one"), &format!("{name}:two")])
        .ok();
    let listed = t.cli(&["images", "--format", "{{.Tag}}", &name]).ok().out();
    let mut tags: Vec<&str> = listed.lines().collect();
    tags.sort();
    assert_eq!(tags, ["one", "two"]);
    t.cli(&["rmi", &format!("{name}:one")])
        .ok()
        .prints(&format!("Untagged: {name}:one\n"));
    t.run(&["--rm", "--pull=never", &format!("{name}:one"), "true"])
        .code(125);
    t.run(&["--rm", &format!("{name}:two"), "true"]).ok();
    remove(t, &[&format!("{name}:two")]);
    for bad in ["UPPER", "a b", "x:ta g", "-x", ":x"] {
        t.cli(&["tag", IMAGE, bad]).fails();
    }
    t.cli(&["tag", "no/such:image", "x"])
        .fails()
        .complains(&["no such image"]);
}

fn rmi_deletes_and_refuses(t: &Test) {
    let name = reference(t, "mine");
    let unique = fixture::layer(&[Entry::File("unique", name.as_bytes())]);
    load(
        t,
        &fixture::docker_archive(&name, &[fixture::toolbox_layer(), unique], |_| {}),
    )
    .ok();
    let id = t.create(&[&name, "true"]);
    t.cli(&["rmi", &name])
        .code(1)
        .complains(&["conflict", "container"]);
    t.cli(&["rm", &id]).ok();
    let outcome = t.cli(&["rmi", &name]);
    outcome
        .ok()
        .has(&format!("Untagged: {name}"))
        .has("Deleted: sha256:");
    t.cli(&["rmi", &name]).code(1).complains(&["no such image"]);
}

fn an_image_in_use_can_be_untagged_by_force(t: &Test) {
    let name = reference(t, "forced");
    let unique = fixture::layer(&[Entry::File("unique", name.as_bytes())]);
    load(
        t,
        &fixture::docker_archive(&name, &[fixture::toolbox_layer(), unique], |_| {}),
    )
    .ok();
    let id = t.create(&["-e", "PATH=/bin", &name, "sh", "-c", "cat /unique"]);
    let image = id_of(t, &name);
    t.cli(&["rmi", "-f", &name]).ok();
    t.cli(&["start", "-a", &id]).ok().prints(&name);
    t.cli(&["rm", &id]).ok();
    let _ = t.cli(&["rmi", &image]);
}

fn ids_and_prefixes(t: &Test) {
    let id = id_of(t, IMAGE);
    let hex = id.trim_start_matches("sha256:");
    for name in [
        id.as_str(),
        hex,
        &hex[..12],
        "caisson/toolbox",
        "docker.io/caisson/toolbox:latest",
    ] {
        t.run(&["--rm", "--pull=never", name, "true"]).ok();
    }
}

fn history(t: &Test) {
    let outcome = t.cli(&["history", IMAGE]);
    for text in ["IMAGE", "CREATED", "CREATED BY", "SIZE", "static busybox"] {
        outcome.ok().has(text);
    }
    assert_eq!(
        t.cli(&["history", "-q", IMAGE]).ok().out().lines().count(),
        2
    );
}

fn list_formats_and_filters(t: &Test) {
    let name = reference(t, "listed");
    t.cli(&["tag", IMAGE, &name]).ok();
    let table = t.cli(&["images"]);
    for text in [
        "REPOSITORY",
        "TAG",
        "IMAGE ID",
        "CREATED",
        "SIZE",
        "caisson/toolbox",
    ] {
        table.ok().has(text);
    }
    let id = id_of(t, &name);
    t.cli(&["images", "-q", "--no-trunc", &name])
        .ok()
        .prints(&format!("{id}\n"));
    t.cli(&[
        "images",
        "-q",
        "--filter",
        &format!("reference={}*", &name[..name.len() - 8]),
    ])
    .ok()
    .prints(&format!("{}\n", &id[7..19]));
    t.cli(&["images", "--digests"]).ok().has("DIGEST");
    t.cli(&["images", "--filter", "dangling=true", "-q"])
        .ok()
        .lacks(&id[7..19]);
    t.cli(&["images", "--format", "{{json .}}", &name])
        .ok()
        .has(r#""Repository":"#);
    remove(t, &[&name]);
}

fn prune_removes_dangling_images(t: &Test) {
    let own = t.own_daemon(&[]);
    let name = reference(t, "dangling");
    for content in [b"first".as_slice(), b"second"] {
        let layer = fixture::layer(&[Entry::File("unique", content)]);
        load(&own, &fixture::docker_archive(&name, &[layer], |_| {})).ok();
    }
    assert_eq!(
        own.cli(&["images", "-q", "--filter", "dangling=true"])
            .ok()
            .out()
            .lines()
            .count(),
        1
    );
    own.cli(&["image", "prune", "-f"])
        .ok()
        .has("eleted: sha256:")
        .has("Total reclaimed space");
    assert_eq!(
        own.cli(&["images", "-q", "--filter", "dangling=true"])
            .ok()
            .out(),
        ""
    );
    own.cli(&["image", "inspect", &name]).ok();
    own.cli(&["image", "prune", "-af"]).ok();
    own.cli(&["images", "-aq"]).ok().prints("");
    own.cli(&["system", "prune", "-af"]).ok();
}

fn unknown_images(t: &Test) {
    t.cli(&["image", "inspect", "no/such:image"])
        .code(1)
        .complains(&["no such image"]);
    t.cli(&["rmi", "no/such:image"])
        .code(1)
        .complains(&["no such image"]);
    t.cli(&["history", "no/such:image"])
        .code(1)
        .complains(&["no such image"]);
    t.run(&["--rm", "Not A Name", "true"])
        .code(125)
        .complains(&["invalid reference", "repository name"]);
}

fn exchange_with_podman_and_skopeo(t: &Test) {
    if caisson_tests::target::on_path("skopeo").is_none() {
        t.skip("no skopeo: apt-get install skopeo");
    }
    let name = reference(t, "exchanged");
    t.cli(&["tag", IMAGE, &name]).ok();
    let ours = t.directory().join("ours.tar").display().to_string();
    t.cli(&["save", "-o", &ours, &name]).ok();
    let skopeo = |from: String, to: String| {
        let mut command = std::process::Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "-q", &from, &to]);
        client::run(command, b"").ok();
    };
    let (oci, back) = (
        t.directory().join("oci.tar").display().to_string(),
        t.directory().join("back.tar").display().to_string(),
    );
    skopeo(
        format!("docker-archive:{ours}"),
        format!("oci-archive:{oci}:{name}"),
    );
    skopeo(
        format!("oci-archive:{oci}:{name}"),
        format!("docker-archive:{back}:{name}"),
    );
    t.cli(&["rmi", &name]).ok();
    for archive in if t.is_reference() {
        vec![&back]
    } else {
        vec![&back, &oci]
    } {
        let loaded = t.cli(&["load", "-i", archive]);
        let image = loaded
            .ok()
            .trimmed()
            .rsplit("image: ")
            .next()
            .map(str::to_string);
        let image = image
            .map(|i| i.trim_start_matches("ID: ").to_string())
            .expect("a loaded image");
        t.run(&["--rm", &image, "echo", "exchanged"])
            .ok()
            .prints("exchanged\n");
        remove(t, &[&image]);
    }
}

cases![
    the_default_image_is_there,
    a_removed_default_image_stays_removed
        .ours("it has no default image")
        .clients(caisson_tests::case::Clients::Native),
    save_and_load,
    save_several,
    compressed_archives,
    layers_stack_with_whiteouts,
    oci_layout.ours("it does not load image layouts"),
    bad_digest_is_refused.clients(caisson_tests::case::Clients::Native),
    truncated_archives_are_refused.clients(caisson_tests::case::Clients::Native),
    truncated_layers_are_refused.clients(caisson_tests::case::Clients::Native),
    not_an_archive_is_refused.clients(caisson_tests::case::Clients::Native),
    traversal_in_a_layer_stays_inside.clients(caisson_tests::case::Clients::Native),
    overlay_attributes_in_layers_are_dropped.ours("it keeps them"),
    a_bomb_is_refused.clients(caisson_tests::case::Clients::Native),
    import_and_export,
    commit.core(),
    tags,
    rmi_deletes_and_refuses,
    an_image_in_use_can_be_untagged_by_force,
    ids_and_prefixes,
    history,
    list_formats_and_filters,
    prune_removes_dangling_images.clients(caisson_tests::case::Clients::Native),
    unknown_images,
    exchange_with_podman_and_skopeo,
];
