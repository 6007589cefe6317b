//! Bind mounts and their propagation, read-only roots, remapped users.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use caisson_runtime::*;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::bench::*;

crate::contract! {
    a_bind_mount_is_seen, a_file_and_a_read_only_directory, a_shared_bind_mount_propagates_both_ways, a_private_bind_mount_does_not_propagate,
    a_read_only_root, a_directory_as_root, copies_keep_the_ids_of_a_remapped_root,
}

/// A shared tmpfs on the host, gone when dropped.
struct Shared(PathBuf);

impl Shared {
    fn mount(path: PathBuf) -> Self {
        fs::create_dir(&path).expect("made");
        mount(
            Some("tmpfs"),
            &path,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .expect("mounted");
        mount(
            None::<&str>,
            &path,
            None::<&str>,
            MsFlags::MS_SHARED,
            None::<&str>,
        )
        .expect("shared");
        fs::create_dir(path.join("from-host")).expect("made");
        fs::create_dir(path.join("from-container")).expect("made");
        Shared(path)
    }

    fn mounts_below(&self) -> usize {
        let table = fs::read_to_string("/proc/self/mountinfo").expect("readable");
        table
            .lines()
            .filter(|l| l.contains(&format!("{}/", self.0.display())))
            .count()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for below in ["from-host", "from-container", ""] {
            let _ = umount2(&self.0.join(below), MntFlags::MNT_DETACH);
        }
    }
}

fn bind(source: &Path, options: &[&str]) -> Value {
    json!({"destination": "/mnt", "type": "bind", "source": source, "options": options})
}

fn privileged(script: &str) -> oci_spec::runtime::Process {
    let mut process = sh(script);
    let all = serde_json::from_value(json!({
        "bounding": ["CAP_SYS_ADMIN"], "effective": ["CAP_SYS_ADMIN"], "permitted": ["CAP_SYS_ADMIN"]
    }));
    process.set_capabilities(Some(all.expect("capabilities")));
    process
}

/// Mounts do not travel between two kernels.
async fn refused(bench: &Bench, mount: Value) {
    let id = bench.new_id();
    let mut spec = bench.spec(&id, Wish::default());
    let mount = serde_json::from_value(mount).expect("a mount");
    spec.oci.mounts_mut().as_mut().expect("mounts").push(mount);
    let made = bench.runtime.create(&id, spec).await;
    assert_eq!(made.err().expect("refused").kind, ErrorKind::Invalid);
}

async fn with_mount(
    bench: &Bench,
    mount: Value,
    propagation: Option<&str>,
) -> std::sync::Arc<dyn Sandbox> {
    let id = bench.new_id();
    let mut spec = bench.spec(
        &id,
        Wish {
            spec: json!({"linux": {"rootfsPropagation": propagation}}),
            ..Wish::default()
        },
    );
    let mount = serde_json::from_value(mount).expect("a mount");
    spec.oci.mounts_mut().as_mut().expect("mounts").push(mount);
    let sandbox = bench.runtime.create(&id, spec).await.expect("created");
    let init = ProcessId::init();
    sandbox
        .spawn(&init, privileged("exec sleep 1000"), Stdio::default(), None)
        .await
        .expect("spawned");
    sandbox.start(&init).await.expect("started");
    sandbox
}

async fn exec_privileged(
    sandbox: &dyn Sandbox,
    name: &str,
    script: &str,
) -> (Collected, ExitStatus) {
    run_in(
        sandbox,
        &ProcessId(name.into()),
        privileged(script),
        Stdio::default(),
    )
    .await
}

async fn a_bind_mount_is_seen(bench: &Bench) {
    let source = bench.dir.path().join("source");
    fs::create_dir(&source).expect("made");
    fs::write(source.join("f"), "from outside").expect("written");
    let sandbox = with_mount(bench, bind(&source, &["rbind", "rprivate"]), None).await;
    let (output, _) = exec(&*sandbox, "e", "cat /mnt/f; echo back > /mnt/g").await;
    assert_eq!(output.out(), "from outside");
    assert_eq!(fs::read(source.join("g")).expect("there"), b"back\n");
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
    assert!(source.join("f").exists());
}

async fn a_file_and_a_read_only_directory(bench: &Bench) {
    let source = bench.dir.path().join("source");
    fs::create_dir_all(source.join("sub")).expect("made");
    fs::write(source.join("one"), "one file").expect("written");
    fs::write(source.join("sub/other"), "another").expect("written");
    std::os::unix::fs::symlink("/etc/passwd", source.join("link")).expect("linked");
    let mounts = json!([
        {"destination": "/one", "type": "bind", "source": source.join("one"), "options": ["rbind", "rprivate"]},
        {"destination": "/all", "type": "bind", "source": source, "options": ["rbind", "rprivate", "ro"]},
    ]);
    let id = bench.new_id();
    let mut spec = bench.spec(&id, Wish::default());
    let mounts: Vec<_> = serde_json::from_value(mounts).expect("mounts");
    spec.oci
        .mounts_mut()
        .as_mut()
        .expect("mounts")
        .extend(mounts);
    let sandbox = bench.runtime.create(&id, spec).await.expect("created");
    let script = "cat /one; echo written > /one; cat /all/one /all/sub/other; busybox realpath /all/link; \
        busybox chown 12:34 /one; busybox mkfifo /all/fifo || echo refused; echo x > /all/one; echo $?";
    let init = ProcessId::init();
    let (output, _) = run_in(&*sandbox, &init, sh(script), Stdio::default()).await;
    assert_eq!(
        output.out(),
        "one filewritten\nanother/etc/passwd\nrefused\n1\n",
        "{output:?}"
    );
    let one = fs::metadata(source.join("one")).expect("there");
    assert_eq!((one.uid(), one.gid()), (12, 34));
    assert_eq!(fs::read(source.join("one")).expect("there"), b"written\n");
    assert!(!source.join("fifo").exists());
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn a_shared_bind_mount_propagates_both_ways(bench: &Bench) {
    if bench.isolation == Isolation::Vm {
        return refused(bench, bind(bench.dir.path(), &["rbind", "rshared"])).await;
    }
    let shared = Shared::mount(bench.dir.path().join("shared"));
    let sandbox = with_mount(
        bench,
        bind(&shared.0, &["rbind", "rshared"]),
        Some("rshared"),
    )
    .await;
    let (output, status) = exec_privileged(
        &*sandbox,
        "e",
        "busybox mount -t tmpfs t /mnt/from-container",
    )
    .await;
    assert_eq!(status.code, 0, "{output:?}");
    assert_eq!(
        shared.mounts_below(),
        1,
        "the host sees the container's mount"
    );
    let inner = shared.0.join("from-host");
    mount(
        Some("tmpfs"),
        &inner,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .expect("mounted");
    fs::write(inner.join("f"), "x").expect("written");
    assert_eq!(
        exec(&*sandbox, "e2", "cat /mnt/from-host/f").await.0.out(),
        "x"
    );
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
    drop(shared);
}

async fn a_private_bind_mount_does_not_propagate(bench: &Bench) {
    if bench.isolation == Isolation::Vm {
        return refused(bench, bind(bench.dir.path(), &["rbind", "rslave"])).await;
    }
    let shared = Shared::mount(bench.dir.path().join("shared"));
    let sandbox = with_mount(bench, bind(&shared.0, &["rbind", "rprivate"]), None).await;
    let (output, status) = exec_privileged(
        &*sandbox,
        "e",
        "busybox mount -t tmpfs t /mnt/from-container",
    )
    .await;
    assert_eq!(status.code, 0, "{output:?}");
    assert_eq!(shared.mounts_below(), 0);
    let inner = shared.0.join("from-host");
    mount(
        Some("tmpfs"),
        &inner,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .expect("mounted");
    fs::write(inner.join("f"), "x").expect("written");
    assert_eq!(exec(&*sandbox, "e2", "ls /mnt/from-host").await.0.out(), "");
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");

    let sandbox = with_mount(bench, bind(&shared.0, &["rbind", "rslave"]), Some("rslave")).await;
    umount2(&inner, MntFlags::empty()).expect("unmounted");
    mount(
        Some("tmpfs"),
        &inner,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .expect("mounted");
    fs::write(inner.join("f"), "y").expect("written");
    assert_eq!(
        exec(&*sandbox, "e3", "cat /mnt/from-host/f").await.0.out(),
        "y"
    );
    let (_, status) = exec_privileged(
        &*sandbox,
        "e4",
        "busybox mount -t tmpfs t /mnt/from-container",
    )
    .await;
    assert_eq!((status.code, shared.mounts_below()), (0, 1));
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
    drop(shared);
}

async fn a_read_only_root(bench: &Bench) {
    let sandbox = bench
        .create_with(Wish {
            spec: json!({"root": {"readonly": true}}),
            ..Wish::default()
        })
        .await;
    let (output, status) = run_in(
        &*sandbox,
        &ProcessId::init(),
        sh("echo x > /file; echo x > /dev/shm-like && echo tmpfs"),
        Stdio::default(),
    )
    .await;
    assert_eq!((output.out().as_str(), status.code), ("tmpfs\n", 0));
    assert!(!bench.upper(sandbox.id()).join("file").exists());
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn a_directory_as_root(bench: &Bench) {
    let id = bench.new_id();
    let mut spec = bench.spec(&id, Wish::default());
    spec.rootfs = Rootfs::Directory(bench.dir.path().join("layer"));
    if bench.isolation == Isolation::Vm {
        let made = bench.runtime.create(&id, spec).await;
        assert_eq!(made.err().expect("refused").kind, ErrorKind::Invalid);
        return;
    }
    let sandbox = bench.runtime.create(&id, spec).await.expect("created");
    let (output, status) = run_in(
        &*sandbox,
        &ProcessId::init(),
        sh("echo x > /made; cat /made"),
        Stdio::default(),
    )
    .await;
    assert_eq!((output.out().as_str(), status.code), ("x\n", 0));
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
    assert!(bench.dir.path().join("layer/made").exists());
}

async fn copies_keep_the_ids_of_a_remapped_root(bench: &Bench) {
    let map = json!([{"containerID": 0, "hostID": 200_000, "size": 65_536}]);
    let wish = json!({"linux": {
        "uidMappings": map, "gidMappings": map,
        "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}, {"type": "user"}]
    }});
    let archive = || -> TarStream {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        header.set_mode(0o600);
        header.set_uid(7);
        header.set_gid(8);
        builder
            .append_data(&mut header, "f", &b"data"[..])
            .expect("appended");
        Box::pin(std::io::Cursor::new(
            builder.into_inner().expect("finished"),
        ))
    };
    let keep = WriteOptions {
        keep_ownership: true,
        ..WriteOptions::default()
    };
    let sandbox = bench
        .create_with(Wish {
            spec: wish.clone(),
            ..Wish::default()
        })
        .await;
    let init = ProcessId::init();
    // Before there is a process …
    sandbox
        .write_path(Path::new("/root"), archive(), WriteOptions::default())
        .await
        .expect("written");
    sandbox
        .write_path(Path::new("/etc"), archive(), keep)
        .await
        .expect("written");
    sandbox
        .spawn(&init, sh("exec sleep 1000"), Stdio::default(), None)
        .await
        .expect("spawned");
    sandbox.start(&init).await.expect("started");
    // … and with one.
    sandbox
        .write_path(Path::new("/tmp"), archive(), WriteOptions::default())
        .await
        .expect("written");
    sandbox
        .write_path(Path::new("/bin"), archive(), keep)
        .await
        .expect("written");
    let (output, _) = exec(
        &*sandbox,
        "e",
        "for f in /root/f /etc/f /tmp/f /bin/f; do ls -n $f; done; cat /proc/self/uid_map",
    )
    .await;
    let owners: Vec<_> = output
        .out()
        .lines()
        .take(4)
        .map(|l| {
            l.split_whitespace()
                .skip(2)
                .take(2)
                .collect::<Vec<_>>()
                .join(":")
        })
        .collect();
    assert_eq!(owners, ["0:0", "7:8", "0:0", "7:8"], "{}", output.out());
    assert!(output.out().contains("200000"));
    // On disk ids are never shifted (a microVM's disk is its own).
    if bench.isolation == Isolation::Container {
        let there = fs::metadata(bench.upper(sandbox.id()).join("bin/f")).expect("there");
        assert_eq!(there.uid(), 7);
    }
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}
