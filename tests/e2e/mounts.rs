//! Bind mounts, tmpfs, read-only roots.

use caisson_tests::{IMAGE, Test, cases};

fn shared(t: &Test) -> String {
    t.file("shared/file", "from the host\n");
    t.directory().join("shared").display().to_string()
}

fn bind_both_ways(t: &Test) {
    let shared = shared(t);
    assert_eq!(
        t.sh(
            &["-v", &format!("{shared}:/data")],
            "cat /data/file; echo back > /data/new"
        ),
        "from the host"
    );
    assert_eq!(
        std::fs::read_to_string(format!("{shared}/new")).expect("written inside"),
        "back\n"
    );
}

fn bind_read_only(t: &Test) {
    let shared = shared(t);
    let bind = format!("{shared}:/data:ro");
    t.run(&["--rm", "-v", &bind, IMAGE, "touch", "/data/new"])
        .code(1)
        .complains(&["read-only"]);
    let mount = format!("type=bind,source={shared},target=/data,readonly");
    t.run(&["--rm", "--mount", &mount, IMAGE, "touch", "/data/new"])
        .code(1)
        .complains(&["read-only"]);
}

fn bind_of_a_file(t: &Test) {
    let file = t.file("one", "single\n").display().to_string();
    assert_eq!(
        t.sh(&["-v", &format!("{file}:/etc/one")], "cat /etc/one"),
        "single"
    );
}

fn bind_makes_a_missing_source(t: &Test) {
    let missing = t.directory().join("made/by/mount").display().to_string();
    t.sh(&["-v", &format!("{missing}:/data")], "touch /data/x");
    assert!(std::path::Path::new(&missing).join("x").exists());
    let other = t.directory().join("not/made").display().to_string();
    t.run(&[
        "--rm",
        "--mount",
        &format!("type=bind,src={other},dst=/data"),
        IMAGE,
        "true",
    ])
    .code(125)
    .complains(&["bind source path does not exist"]);
}

fn bind_over_a_missing_target(t: &Test) {
    let shared = shared(t);
    assert_eq!(
        t.sh(
            &["-v", &format!("{shared}:/made/up/target")],
            "cat /made/up/target/file"
        ),
        "from the host"
    );
}

fn bind_targets_are_resolved_inside(t: &Test) {
    // /var/run → /run in many images: a link in the image must not lead the mount out of it
    let shared = shared(t);
    let reference = t.unique("image").to_lowercase();
    let id = t.start_sh(&[], &format!("ln -s {} /escape", t.directory().display()));
    t.cli(&["wait", &id]).ok();
    t.cli(&["commit", &id, &reference]).ok();
    let outcome = t.run(&[
        "--rm",
        "-v",
        &format!("{shared}:/escape/inner"),
        &reference,
        "cat",
        "/escape/inner/file",
    ]);
    t.cli(&["rmi", "-f", &reference]);
    outcome.ok().prints("from the host\n");
    assert!(
        !t.directory().join("inner").exists(),
        "the mount point was made on the host"
    );
}

fn bind_propagation(t: &Test) {
    let shared = shared(t);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("own mounts");
    if !mounts
        .lines()
        .filter(|m| m.split(' ').nth(4) == Some("/"))
        .any(|m| m.contains(" shared:"))
    {
        t.skip("the root of this host is not a shared mount");
    }
    let seen = t.sh(
        &["-v", &format!("{shared}:/data:rslave")],
        "grep ' /data ' /proc/self/mountinfo",
    );
    assert!(seen.contains("master:"), "{seen}");
    let seen = t.sh(
        &["-v", &format!("{shared}:/data")],
        "grep ' /data ' /proc/self/mountinfo",
    );
    assert!(
        !seen.contains("shared:") && !seen.contains("master:"),
        "{seen}"
    );
}

fn nested_binds_are_ordered(t: &Test) {
    let shared = shared(t);
    let inner = t.file("inner/leaf", "leaf").display().to_string();
    let inner = inner.trim_end_matches("/leaf");
    std::fs::create_dir(format!("{shared}/sub")).expect("a directory");
    assert_eq!(
        t.sh(
            &[
                "-v",
                &format!("{inner}:/data/sub"),
                "-v",
                &format!("{shared}:/data")
            ],
            "cat /data/sub/leaf"
        ),
        "leaf"
    );
}

fn bad_mounts(t: &Test) {
    for bad in ["/a:/b:/c:/d", "/a:relative", "/a:/b:nonsense", "/a:/"] {
        t.run(&["--rm", "-v", bad, IMAGE, "true"]).code(125);
    }
    t.run(&["--rm", "--mount", "type=bind,target=/x", IMAGE, "true"])
        .code(125);
    t.run(&["--rm", "-v", "/tmp:/x", "-v", "/var:/x", IMAGE, "true"])
        .code(125)
        .complains(&["duplicate mount point"]);
}

fn tmpfs(t: &Test) {
    assert_eq!(
        t.sh(
            &["--tmpfs", "/scratch"],
            "stat -f -c %T /scratch; touch /scratch/x && echo ok"
        ),
        "tmpfs\nok"
    );
    let options = t.sh(
        &["--tmpfs", "/scratch:size=1m,mode=1777,exec"],
        "grep ' /scratch ' /proc/mounts",
    );
    assert!(
        options.contains("size=1024k") && options.contains("nosuid") && !options.contains("noexec"),
        "{options}"
    );
    t.run(&[
        "--rm",
        "--tmpfs",
        "/s:size=64k",
        IMAGE,
        "dd",
        "if=/dev/zero",
        "of=/s/x",
        "bs=1k",
        "count=100",
    ])
    .code(1)
    .complains(&["no space left"]);
    let mounted = t.sh(
        &[
            "--mount",
            "type=tmpfs,dst=/scratch,tmpfs-size=2m,tmpfs-mode=700",
        ],
        "grep ' /scratch ' /proc/mounts; stat -c %a /scratch",
    );
    assert!(
        mounted.contains("size=2048k") && mounted.ends_with("\n700"),
        "{mounted}"
    );
}

fn shm_size(t: &Test) {
    let default = t.sh(&[], "df -k /dev/shm | tail -1 | awk '{print $2}'");
    assert_eq!(default, "65536");
    let larger = t.sh(
        &["--shm-size", "128m"],
        "df -k /dev/shm | tail -1 | awk '{print $2}'",
    );
    assert_eq!(larger, "131072");
}

fn read_only_root(t: &Test) {
    t.run(&["--rm", "--read-only", IMAGE, "touch", "/x"])
        .code(1)
        .complains(&["read-only"]);
    assert_eq!(
        t.sh(
            &["--read-only", "--tmpfs", "/tmp"],
            "touch /tmp/x && touch /dev/shm/y && echo fine"
        ),
        "fine"
    );
}

fn volumes_from_another_container(t: &Test) {
    let shared = shared(t);
    let first = t.create(&["-v", &format!("{shared}:/data"), IMAGE]);
    assert_eq!(
        t.sh(&["--volumes-from", &first], "cat /data/file"),
        "from the host"
    );
    t.run(&[
        "--rm",
        "--volumes-from",
        &format!("{first}:ro"),
        IMAGE,
        "touch",
        "/data/x",
    ])
    .code(1)
    .complains(&["read-only"]);
}

fn mounts_are_inspectable(t: &Test) {
    let shared = shared(t);
    let id = t.create(&["-v", &format!("{shared}:/data:ro"), "--tmpfs", "/t", IMAGE]);
    let mounts = &t.inspect_json(&id)["Mounts"][0];
    assert_eq!(mounts["Type"], "bind");
    assert_eq!(mounts["Source"], shared.as_str());
    assert_eq!(mounts["Destination"], "/data");
    assert_eq!(mounts["RW"], false);
}

fn named_volumes_are_refused_for_now(t: &Test) {
    t.run(&["--rm", "-v", "named:/data", IMAGE, "true"])
        .code(125)
        .complains(&["volume"]);
}

cases![
    bind_both_ways.core(),
    bind_read_only,
    bind_of_a_file,
    bind_makes_a_missing_source,
    bind_over_a_missing_target,
    bind_targets_are_resolved_inside,
    bind_propagation.container_only(),
    nested_binds_are_ordered,
    bad_mounts,
    tmpfs.core(),
    shm_size,
    read_only_root,
    volumes_from_another_container.later("volumes come with their own issue"),
    mounts_are_inspectable,
    named_volumes_are_refused_for_now.ours("it has named volumes"),
];
