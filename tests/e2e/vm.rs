//! What only a microVM has: a kernel of its own, vCPUs, a VMM process; and what happens when one of them fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use caisson_tests::case::Clients;
use caisson_tests::{IMAGE, Test, cases, patience};

/// The VMM's process id.
fn vmm(t: &Test, id: &str) -> i32 {
    t.inspect(id, "{{.State.Pid}}").parse().expect("a number")
}

fn kill9(pid: i32) {
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("it runs");
}

fn the_kernel_is_its_own(t: &Test) {
    let host = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("procfs");
    let seen = t.sh(
        &[],
        "cat /proc/sys/kernel/random/boot_id; cat /proc/version; dmesg | wc -l",
    );
    let mut lines = seen.lines();
    assert_ne!(lines.next(), Some(host.trim()));
    let version = fs::read_to_string("/proc/version").expect("procfs");
    assert_ne!(lines.next(), Some(version.trim()));
    let one = t.sh(&[], "cat /proc/sys/kernel/random/boot_id");
    let other = t.sh(&[], "cat /proc/sys/kernel/random/boot_id");
    assert_ne!(one, other, "two containers share a kernel");
}

fn the_clock_is_the_hosts(t: &Test) {
    let before = now_s();
    let inside: u64 = t.sh(&[], "date +%s").parse().expect("a number");
    assert!(
        (before..=now_s()).contains(&inside),
        "{inside} is not now, {before}"
    );
}

fn now_s() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.expect("after 1970").as_secs()
}

fn vcpus_follow_the_cpu_limit(t: &Test) {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        t.skip("--cpus 1.5 wants a host with two");
    }
    assert_eq!(t.sh(&["--cpus", "1"], "nproc"), "1");
    assert_eq!(t.sh(&["--cpus", "1.5"], "nproc"), "2");
}

fn two_machines_with_four_cpus_each(t: &Test) {
    if std::thread::available_parallelism().map_or(1, usize::from) < 4 {
        t.skip("--cpus 4 wants a host with four");
    }
    let script = "for i in 1 2 3 4; do (head -c 3000000 /dev/zero | sha256sum | cut -c1-8) & done; wait; nproc";
    let both = std::thread::scope(|scope| {
        let machines = [(); 2].map(|()| scope.spawn(|| t.sh(&["--cpus", "4"], script)));
        machines.map(|machine| machine.join().expect("it ran"))
    });
    for seen in both {
        let lines: Vec<&str> = seen.lines().collect();
        assert_eq!(lines.len(), 5, "{seen}");
        assert!(lines[..4].iter().all(|sum| *sum == lines[0]), "{seen}");
        assert_eq!(lines[4], "4");
    }
}

fn memory_of_the_guest_follows_the_limit(t: &Test) {
    let kib: u64 = t
        .sh(&["-m", "700m"], "awk '/MemTotal/ {print $2}' /proc/meminfo")
        .parse()
        .expect("a number");
    assert!(kib > 700 << 10, "the limit does not fit into {kib} KiB");
}

fn a_killed_vmm_is_an_exit_of_137(t: &Test) {
    let id = t.sleeper(&[]);
    kill9(vmm(t, &id));
    t.cli(&["wait", &id]).ok().prints("137\n");
    t.await_state(&id, "exited");
    assert_eq!(
        t.inspect(&id, "{{.State.ExitCode}} {{.State.OOMKilled}}"),
        "137 false"
    );
    t.cli(&["start", &id]).ok();
    assert_eq!(t.exec(&id, "echo again"), "again");
}

fn a_killed_shim_takes_its_machine_with_it(t: &Test) {
    let id = t.sleeper(&[]);
    let machine = vmm(t, &id);
    kill9(parent(machine));
    t.eventually("the VMM ends", || {
        !Path::new(&format!("/proc/{machine}")).exists()
    });
    t.await_state(&id, "exited");
    assert_eq!(t.inspect(&id, "{{.State.ExitCode}}"), "137");
}

fn parent(pid: i32) -> i32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|l| l.strip_prefix("PPid:"));
    line.and_then(|l| l.trim().parse().ok()).expect("a parent")
}

fn a_panicking_guest_is_told(t: &Test) {
    // the guest's kernel has no sysrq; memory that runs out is told to be the end of it
    let id = t.start_sh(
        &["--privileged", "-m", "24m", "--memory-swap", "24m"],
        "echo 2 > /proc/sys/vm/panic_on_oom; echo last words; sleep 0.5; head -c 100000000 /dev/zero | tail",
    );
    t.await_state(&id, "exited");
    assert_eq!(t.inspect(&id, "{{.State.ExitCode}}"), "137");
    t.cli(&["logs", &id]).ok().prints("last words\n");
}

fn a_flood_of_the_console_harms_nothing(t: &Test) {
    let id = t.start_sh(
        &["--privileged"],
        "echo 8 > /proc/sys/kernel/printk; echo on > /proc/sys/kernel/printk_devkmsg; \
         i=0; while [ $i -lt 30000 ]; do echo flood $i > /dev/kmsg; i=$((i+1)); done; echo done",
    );
    t.cli(&["wait", &id]).ok().prints("0\n");
    t.cli(&["logs", &id]).ok().prints("done\n");
    let grown = largest_file(&t.daemon.root().join("exec"));
    assert!(grown < 8 << 20, "a file of {grown} bytes in the exec root");
}

fn largest_file(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => largest_file(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    });
    sizes.max().unwrap_or(0)
}

fn a_full_disk_is_the_guests_own(t: &Test) {
    let id = t.start_sh(
        &["--storage-opt", "size=64m"],
        "dd if=/dev/zero of=/big bs=64k 2>&1; echo $?; rm /big; echo room > /small && cat /small",
    );
    t.cli(&["wait", &id]).ok().prints("0\n");
    let log = t.cli(&["logs", &id]).ok().out();
    assert!(log.to_lowercase().contains("no space left"), "{log}");
    assert!(log.ends_with("room\n"), "{log}");
}

fn full_memory_of_the_guest_ends_its_process(t: &Test) {
    let id = t.start_sh(
        &["-m", "64m", "--memory-swap", "64m"],
        "head -c 900000000 /dev/zero | tail",
    );
    t.cli(&["wait", &id]).ok().prints("137\n");
    assert_eq!(t.inspect(&id, "{{.State.OOMKilled}}"), "true");
}

/// Files of the data root that are EROFS images.
fn block_images(t: &Test) -> Vec<PathBuf> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => walk(&path, found),
                Ok(kind) if kind.is_file() && is_erofs(&path) => found.push(path),
                _ => {}
            }
        }
    }
    let mut found = Vec::new();
    walk(&t.daemon.data_root(), &mut found);
    found
}

fn is_erofs(path: &Path) -> bool {
    use std::io::{Read, Seek, SeekFrom};
    let mut magic = [0; 4];
    fs::File::open(path)
        .and_then(|mut file| {
            file.seek(SeekFrom::Start(1024))?;
            file.read_exact(&mut magic)
        })
        .is_ok_and(|()| magic == [0xe2, 0xe1, 0xf5, 0xe0])
}

fn a_changed_block_image_is_noticed(t: &Test) {
    let own = t.own_daemon(&[]);
    own.sh(&[], "true");
    let images = block_images(&own);
    let [image] = images.as_slice() else {
        panic!("one image was used: {images:?}")
    };
    own.daemon.stop();
    let mut bytes = fs::read(image).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(image, bytes).expect("writable");
    own.daemon.launch();
    // made anew from the layers, or refused; never run
    let outcome = own.run(&["--rm", IMAGE, "echo", "fine"]);
    if outcome.code == 0 {
        outcome.prints("fine\n");
        let bytes = fs::read(image).expect("readable");
        assert!(!bytes.is_empty());
    } else {
        outcome
            .code(125)
            .complains(&["digest", "corrupt", "changed"]);
    }
}

fn block_images_are_shared_and_removed(t: &Test) {
    let own = t.own_daemon(&[]);
    let first = own.sleeper(&[]);
    let second = own.sleeper(&[]);
    assert_eq!(block_images(&own).len(), 1);
    own.cli(&["rm", "-f", &first, &second]).ok();
    own.cli(&["rmi", "-f", IMAGE]).ok();
    own.eventually("the block image goes with its image", || {
        block_images(&own).is_empty()
    });
}

fn the_vmm_is_confined(t: &Test) {
    let id = t.sleeper(&[]);
    let pid = vmm(t, &id);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name));
        line.unwrap_or_default().trim().to_string()
    };
    assert!(!field("Uid:").starts_with("0\t"), "it runs as root");
    assert_eq!(field("CapEff:"), "0000000000000000");
    assert_eq!(field("Seccomp:"), "2");
    assert_eq!(field("NoNewPrivs:"), "1");
    for namespace in ["mnt", "net", "ipc", "uts"] {
        let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/{namespace}")).expect("procfs");
        assert_ne!(
            of(&pid.to_string()),
            of("self"),
            "it shares the {namespace} namespace"
        );
    }
    let root = fs::read_dir(format!("/proc/{pid}/root")).expect("procfs");
    assert_eq!(root.count(), 0, "its root is not empty");
}

fn what_a_vm_cannot_do_is_refused_at_create(t: &Test) {
    for options in [
        &["--network", "host"][..],
        &["--pid", "host"],
        &["--ipc", "host"],
        &["--uts", "host"],
        &["--device", "/dev/null"],
        &["-v", "/tmp:/tmp:shared"],
    ] {
        let name = t.unique("refused");
        let outcome = t.run(&[&["--rm", "--name", &name], options, &[IMAGE, "true"]].concat());
        outcome.code(125).complains(&["vm", "isolation"]);
        t.cli(&["container", "inspect", &name]).code(1);
    }
}

/// What a daemon holds: descriptors, and its memory in KiB.
fn holdings(pid: i32) -> (usize, u64) {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("it runs")
        .count();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let memory = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    let kib = memory.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok());
    (descriptors, kib.unwrap_or(0))
}

fn a_hundred_starts_leave_nothing(t: &Test) {
    let own = t.own_daemon(&[]);
    let interfaces = || fs::read_dir("/sys/class/net").map_or(0, Iterator::count);
    let run = |times| {
        for _ in 0..times {
            own.run(&["--rm", IMAGE, "true"]).ok();
        }
    };
    run(5);
    let (descriptors, kib) = holdings(own.daemon.pid());
    let before = interfaces();
    run(95);
    own.eventually("descriptors are given back", || {
        holdings(own.daemon.pid()).0 <= descriptors + 2
    });
    let after = holdings(own.daemon.pid()).1;
    assert!(
        after < kib + (16 << 10),
        "the daemon grew from {kib} to {after} KiB"
    );
    assert_eq!(interfaces(), before);
    assert_eq!(
        caisson_tests::residue::of("caisson-vmm", &[]),
        Vec::<String>::new()
    );
}

fn an_image_with_a_layer_of_two_gigabytes(t: &Test) {
    let directory = t.directory();
    let tree = directory.join("tree");
    fs::create_dir(&tree).expect("a directory");
    // zeros would be a hole: the beginning, the middle and the end are looked at
    let file = fs::File::create(tree.join("large")).expect("a file");
    let size: u64 = (2 << 30) + 4096 * 3 + 17;
    file.set_len(size).expect("room");
    for at in [0, 1 << 30, size - 5] {
        std::os::unix::fs::FileExt::write_all_at(&file, b"marks", at).expect("writable");
    }
    fs::create_dir(tree.join("bin")).expect("a directory");
    fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("busybox-static is installed");
    let archive = directory.join("large.tar");
    let packed = Command::new("tar")
        .arg("-C")
        .arg(&tree)
        .arg("-cf")
        .arg(&archive)
        .arg(".")
        .stdout(Stdio::null())
        .status();
    assert!(packed.expect("tar").success());
    let tag = t.unique("large");
    let import = t.command(["import", &archive.display().to_string(), &tag]);
    caisson_tests::client::run_within(import, b"", patience(180)).ok();
    let script = format!(
        "dd if=/large bs=1 count=5 2>/dev/null; dd if=/large bs=1 skip={} count=5 2>/dev/null; tail -c 5 /large; wc -c </large",
        1u64 << 30
    );
    let run = t.command(t.verb("run", &["--rm", &tag, "/bin/busybox", "sh", "-c", &script]));
    let seen = caisson_tests::client::run_within(run, b"", patience(180))
        .ok()
        .trimmed();
    assert_eq!(seen, format!("marksmarksmarks{size}"));
    t.cli(&["rmi", &tag]).ok();
}

cases![
    the_kernel_is_its_own.vm_only(),
    the_clock_is_the_hosts.vm_only().core(),
    vcpus_follow_the_cpu_limit.vm_only(),
    two_machines_with_four_cpus_each
        .vm_only()
        .clients(Clients::Native),
    memory_of_the_guest_follows_the_limit.vm_only(),
    a_killed_vmm_is_an_exit_of_137
        .vm_only()
        .core()
        .clients(Clients::Native),
    a_killed_shim_takes_its_machine_with_it
        .vm_only()
        .core()
        .clients(Clients::Native),
    a_panicking_guest_is_told.vm_only().clients(Clients::Native),
    a_flood_of_the_console_harms_nothing
        .vm_only()
        .clients(Clients::Native),
    a_full_disk_is_the_guests_own.vm_only(),
    full_memory_of_the_guest_ends_its_process.vm_only(),
    a_changed_block_image_is_noticed
        .vm_only()
        .clients(Clients::Native),
    block_images_are_shared_and_removed
        .vm_only()
        .clients(Clients::Native),
    the_vmm_is_confined
        .vm_only()
        .core()
        .clients(Clients::Native),
    what_a_vm_cannot_do_is_refused_at_create.vm_only(),
    a_hundred_starts_leave_nothing
        .vm_only()
        .alone()
        .clients(Clients::Native),
    an_image_with_a_layer_of_two_gigabytes
        .vm_only()
        .alone()
        .clients(Clients::Native),
];
