//! What a container finds in its file system: mounts, devices, masks, overlays.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use caisson_jail::{ErrorKind, Gate, Root, Setup, create};
use nix::sys::wait::waitpid;
use serde_json::json;

use crate::cell::{Cell, alone, code, is_root, piped, read_all, said};
use crate::host_mounts;

#[test]
fn devices_links_masks_and_read_only_paths() {
    if !is_root() {
        return;
    }
    let text = said(&Cell::new(
        "for d in null zero full random urandom tty; do stat -c '%n %t:%T %a' /dev/$d; done; readlink /dev/fd; readlink /dev/ptmx; \
         cat /proc/keys | wc -c; ls /sys/firmware | wc -l; stat -c %t:%T /proc/interrupts; \
         (echo 1 > /proc/sys/kernel/hostname) 2>&1; mount | grep -E ' /(proc/sys|sys) '; echo ok > /dev/null && echo written",
    ));
    for line in [
        "/dev/null 1:3 666",
        "/dev/full 1:7 666",
        "/dev/tty 5:0 666",
        "/proc/self/fd\n",
        "pts/ptmx\n",
        "written",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(text.contains("\n0\n0\n1:3\n"), "masked: {text}");
    assert!(text.contains("Read-only file system"), "{text}");
    assert!(
        text.lines()
            .any(|l| l.contains(" /proc/sys ") && l.contains("(ro,nosuid,nodev,noexec")),
        "{text}"
    );
}

#[test]
fn mounts_have_their_options() {
    if !is_root() {
        return;
    }
    let host = tempfile::tempdir().expect("dir");
    std::fs::create_dir(host.path().join("sub")).expect("mkdir");
    std::fs::write(host.path().join("file"), "text").expect("write");
    let mut container = Cell::new(
        "cat /f; touch /ro/x; touch /rw/made && echo wrote; mount | grep -E ' (/ro|/rw|/t) '; stat -c %a /t; touch /t/x; cat /up/kept; ls /deep/er",
    );
    std::fs::create_dir(container.root().join("up")).expect("mkdir");
    std::fs::write(container.root().join("up/kept"), "image\n").expect("write");
    let source = host.path().to_str().expect("text").to_string();
    container.mount(json!({"destination": "/f", "type": "bind", "source": format!("{source}/file"), "options": ["rbind", "ro"]}));
    container.mount(json!({"destination": "/ro", "type": "bind", "source": source, "options": ["rbind", "rro", "nosuid", "rprivate"]}));
    container.mount(json!({"destination": "/rw", "type": "bind", "source": source, "options": ["bind", "noexec"]}));
    container.mount(json!({"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["ro", "size=64k", "mode=1710"]}));
    container.mount(
        json!({"destination": "/up", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}),
    );
    container.mount(json!({"destination": "/deep/er/est", "type": "bind", "source": source, "options": ["bind"]}));
    let (text, _) = container.run().expect("runs");
    assert!(text.starts_with("text"), "{text}");
    assert!(
        text.contains("touch: /ro/x: Read-only file system"),
        "{text}"
    );
    assert!(
        text.contains("wrote") && host.path().join("made").exists(),
        "{text}"
    );
    assert!(
        text.lines()
            .any(|l| l.contains(" /ro ") && l.contains("ro,nosuid")),
        "{text}"
    );
    assert!(
        text.lines()
            .any(|l| l.contains(" /rw ") && l.contains("noexec")),
        "{text}"
    );
    assert!(
        text.contains("1710") && text.contains("touch: /t/x: Read-only file system"),
        "{text}"
    );
    assert!(text.contains("image\n") && text.contains("est\n"), "{text}");
}

#[test]
fn a_recursive_read_only_bind_covers_what_is_mounted_below() {
    if !is_root() {
        return;
    }
    let mut container = Cell::new(
        "touch /mnt/below/x; mount | grep /mnt/below; mount | grep -c ' on /other/below .*(rw'",
    );
    // /sys of the host has mounts below it: any tree with a submount will do. /dev/shm is one.
    container.mount(json!({"destination": "/mnt", "type": "bind", "source": "/dev", "options": ["rbind", "rro"]}));
    container.spec["process"]["args"] = json!(["/bin/sh", "-c", "touch /mnt/shm/x; touch /mnt/x"]);
    let (text, _) = container.run().expect("runs");
    assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
}

#[test]
fn symlinks_of_the_image_lead_nowhere_outside() {
    if !is_root() {
        return;
    }
    let host = tempfile::tempdir().expect("dir");
    let outside = host.path().join("outside");
    std::fs::create_dir(&outside).expect("mkdir");
    // A mount destination through a link to a host path, a /dev that is a link (CVE-2026-41579), a masked path that is one.
    let mut container = Cell::new("ls /data; ls -d /dev/null");
    symlink(&outside, container.root().join("data")).expect("symlink");
    container
        .mount(json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": []}));
    let (text, code) = container.run().expect("runs");
    assert_eq!(code, 0, "{text}");
    assert!(
        std::fs::read_dir(&outside).expect("reads").next().is_none(),
        "nothing was made on the host"
    );

    let container = Cell::new("true");
    std::fs::remove_dir(container.root().join("dev")).expect("rmdir");
    symlink(&outside, container.root().join("dev")).expect("symlink");
    let _ = container.run();
    assert!(
        std::fs::read_dir(&outside).expect("reads").next().is_none(),
        "no device was made on the host"
    );

    let container = Cell::new("true");
    std::fs::remove_dir(container.root().join("proc")).expect("rmdir");
    symlink("/tmp", container.root().join("proc")).expect("symlink");
    let error = container
        .run()
        .expect_err("a proc that is a link (CVE-2019-19921)");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

#[test]
fn proc_cannot_be_mounted_over() {
    if !is_root() {
        return;
    }
    let mut container = Cell::new("true");
    container.mount(json!({"destination": "/proc/self/attr", "type": "tmpfs", "source": "tmpfs", "options": []}));
    assert_eq!(
        container.run().expect_err("refused").kind(),
        ErrorKind::Invalid
    );
    let mut container = Cell::new("true");
    container.mount(json!({"destination": "/proc/sys/kernel", "type": "bind", "source": "/tmp", "options": ["bind"]}));
    assert_eq!(
        container.run().expect_err("refused").kind(),
        ErrorKind::Invalid
    );
}

#[test]
fn a_read_only_root_is_read_only() {
    if !is_root() {
        return;
    }
    let mut container =
        Cell::new("touch /x; touch /dev/shm/x && echo shm; touch /dev/y && echo dev");
    container.spec["root"]["readonly"] = json!(true);
    let (text, _) = container.run().expect("runs");
    assert!(
        text.contains("touch: /x: Read-only file system")
            && text.contains("shm")
            && text.contains("dev"),
        "{text}"
    );
}

#[test]
fn no_pivot_works_too() {
    if !is_root() {
        return;
    }
    let container = Cell::new("ls /proc/1/root/; cat /proc/mounts");
    let (spec, cgroup) = (container.spec(), container.cgroup());
    let (stdio, read) = piped();
    let held = alone();
    let mut init = create(Setup {
        id: &container.id,
        spec: &spec,
        root: Root::Mounted(container.root()),
        stdio,
        gate: Gate::Pipe,
        cgroup: &cgroup,
        reaper: false,
        preserve_fds: 0,
        no_pivot: true,
        no_new_keyring: true,
        die_with_parent: true,
    })
    .expect("creates");
    drop(held);
    init.start().expect("starts");
    let text = read_all(read);
    assert_eq!(
        code(waitpid(init.pid, None).expect("our child")),
        0,
        "{text}"
    );
    assert!(text.contains("bin\n") && !text.contains("work\n"), "{text}");
}

#[test]
fn overlays_of_120_layers_mount() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("dir");
    // Upper and work cannot be on an overlay themselves: a tmpfs of our own, where /tmp might be one.
    let layers: Vec<PathBuf> = (0..120)
        .map(|n| {
            let layer = dir.path().join(format!("layer-{n:03}-{}", "x".repeat(64)));
            std::fs::create_dir(&layer).expect("mkdir");
            std::fs::write(layer.join(format!("f{n}")), n.to_string()).expect("write");
            std::fs::write(layer.join("top"), n.to_string()).expect("write");
            layer
        })
        .collect();
    for name in ["upper", "work", "merged"] {
        std::fs::create_dir(dir.path().join(name)).expect("mkdir");
    }
    let at = |name: &str| dir.path().join(name);
    caisson_jail::mount_overlay(&layers, &at("upper"), &at("work"), &at("merged"), None)
        .expect("mounts");
    let merged = at("merged");
    let check = || -> Result<(), std::io::Error> {
        assert_eq!(
            std::fs::read_to_string(merged.join("top"))?,
            "0",
            "the first layer is the topmost"
        );
        assert_eq!(std::fs::read_to_string(merged.join("f119"))?, "119");
        std::fs::write(merged.join("new"), "n")?;
        assert!(at("upper").join("new").exists());
        Ok(())
    };
    let checked = check();
    nix::mount::umount2(&merged, nix::mount::MntFlags::MNT_DETACH).expect("unmounts");
    checked.expect("reads and writes");
}

#[test]
fn overlays_can_be_idmapped() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("dir");
    for name in ["lower", "own/upper", "own/work", "merged"] {
        std::fs::create_dir_all(dir.path().join(name)).expect("mkdir");
    }
    std::fs::write(dir.path().join("lower/f"), "x").expect("write");
    let at = |name: &str| dir.path().join(name);
    let map = |host: u32| {
        vec![
            serde_json::from_value(json!({"containerID": 0, "hostID": host, "size": 65536}))
                .expect("a map"),
        ]
    };
    let maps = caisson_jail::IdMappings {
        uids: map(100000),
        gids: map(200000),
    };
    let made = caisson_jail::mount_overlay(
        &[at("lower")],
        &at("own/upper"),
        &at("own/work"),
        &at("merged"),
        Some(&maps),
    );
    match made {
        Err(e) if e.kind() == ErrorKind::HostUnfit => eprintln!("skipped: {e}"),
        Err(e) => panic!("{e}"),
        Ok(()) => {
            use std::os::unix::fs::MetadataExt;
            let seen = std::fs::metadata(at("merged").join("f")).map(|m| (m.uid(), m.gid()));
            nix::mount::umount2(&at("merged"), nix::mount::MntFlags::MNT_DETACH).expect("unmounts");
            assert_eq!(seen.expect("stat"), (100000, 200000));
            assert!(
                !host_mounts().contains(dir.path().to_str().expect("text")),
                "nothing stays mounted"
            );
        }
    }
}
