//! The wall: what a process inside cannot see, do or reach. Each case tries to get out or checks a defence that others
//! have lacked.

use caisson_tests::{IMAGE, Test, cases};

const DEFAULT_CAPABILITIES: &str = "00000000a80425fb";

fn status(field: &str) -> String {
    format!("grep '^{field}:' /proc/self/status | cut -f2")
}

fn capabilities(t: &Test) {
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(t.sh(&[], &status(set)), DEFAULT_CAPABILITIES, "{set}");
    }
    assert_eq!(t.sh(&[], &status("CapAmb")), "0000000000000000");
    assert_eq!(
        t.sh(&["--cap-drop", "ALL"], &status("CapBnd")),
        "0000000000000000"
    );
    assert_eq!(
        t.sh(
            &["--cap-drop", "ALL", "--cap-add", "NET_ADMIN"],
            &status("CapEff")
        ),
        "0000000000001000"
    );
    assert_eq!(
        t.sh(&["--cap-add", "CAP_SYS_TIME"], &status("CapEff")),
        "00000000aa0425fb"
    );
    assert_eq!(
        t.sh(&["--cap-drop", "chown"], &status("CapEff")),
        "00000000a80425fa"
    );
    t.run(&["--rm", "--cap-add", "NONSENSE", IMAGE, "true"])
        .code(125)
        .complains(&["NONSENSE"]);
}

fn capabilities_of_other_users(t: &Test) {
    assert_eq!(t.sh(&["-u", "1000"], &status("CapEff")), "0000000000000000");
    assert_eq!(
        t.sh(&["-u", "1000"], &status("CapBnd")),
        DEFAULT_CAPABILITIES
    );
}

fn privileged_has_all(t: &Test) {
    let seen = t.sh(
        &["--privileged"],
        &format!("{}; {}", status("CapEff"), status("Seccomp")),
    );
    let (caps, seccomp) = seen.split_once('\n').expect("two lines");
    let own = std::fs::read_to_string("/proc/self/status").expect("own status");
    let own = own
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:\t"))
        .expect("a bounding set");
    assert_eq!(caps, own, "as many as the engine itself may have");
    assert_eq!(seccomp, "0");
    assert_eq!(
        t.sh(
            &["--privileged"],
            "mount -t tmpfs none /mnt && echo mounted"
        ),
        "mounted"
    );
    assert_eq!(
        t.sh(
            &["--privileged"],
            "test -e /dev/loop-control -o -e /dev/vda -o -e /dev/sda && echo devices"
        ),
        "devices"
    );
}

fn seccomp_filters(t: &Test) {
    assert_eq!(t.sh(&[], &status("Seccomp")), "2");
    assert_eq!(
        t.sh(
            &["--security-opt", "seccomp=unconfined"],
            &status("Seccomp")
        ),
        "0"
    );
    t.run(&["--rm", IMAGE, "unshare", "-U", "true"])
        .code(1)
        .complains(&["operation not permitted"]);
    t.run(&["--rm", IMAGE, "mount", "-t", "tmpfs", "none", "/mnt"])
        .fails()
        .complains(&["permission denied", "not permitted"]);
}

fn own_seccomp_profile(t: &Test) {
    let profile = t.file("profile.json", r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#);
    let option = format!("seccomp={}", profile.display());
    t.run(&["--rm", "--security-opt", &option, IMAGE, "mkdir", "/x"])
        .fails()
        .complains(&["operation not permitted"]);
    t.run(&["--rm", "--security-opt", &option, IMAGE, "touch", "/x"])
        .ok();
    let broken = t.file("broken.json", "{");
    t.run(&[
        "--rm",
        "--security-opt",
        &format!("seccomp={}", broken.display()),
        IMAGE,
        "true",
    ])
    .code(125);
}

fn no_new_privileges(t: &Test) {
    assert_eq!(t.sh(&[], &status("NoNewPrivs")), "0");
    assert_eq!(
        t.sh(
            &["--security-opt", "no-new-privileges"],
            &status("NoNewPrivs")
        ),
        "1"
    );
}

fn unknown_security_options(t: &Test) {
    t.run(&["--rm", "--security-opt", "nonsense=1", IMAGE, "true"])
        .code(125)
        .complains(&["nonsense"]);
}

fn devices_by_default(t: &Test) {
    let seen = t.sh(&[], "ls /dev");
    let names: Vec<&str> = seen.split_whitespace().collect();
    let expected = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
    let names: Vec<&str> = names
        .into_iter()
        .filter(|name| !["core", "console"].contains(name))
        .collect();
    assert_eq!(names.join(" "), expected);
    assert_eq!(
        t.sh(
            &[],
            "echo x > /dev/null; head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c"
        ),
        "3\n3"
    );
}

fn device_policy_holds(t: &Test) {
    // the node can be made (mknod is a default capability), but not opened
    t.run(&[
        "--rm",
        IMAGE,
        "sh",
        "-c",
        "mknod /disk b 7 0 && head -c 1 /disk",
    ])
    .fails()
    .complains(&["operation not permitted"]);
    t.run(&[
        "--rm",
        IMAGE,
        "sh",
        "-c",
        "mknod /fuse c 10 229 && : < /fuse",
    ])
    .fails()
    .complains(&["operation not permitted"]);
    assert_eq!(
        t.sh(&[], "mknod /null2 c 1 3 && echo x > /null2 && echo allowed"),
        "allowed"
    );
}

fn added_devices(t: &Test) {
    assert_eq!(
        t.sh(
            &["--device", "/dev/fuse"],
            "test -c /dev/fuse && echo there"
        ),
        "there"
    );
    assert_eq!(t.sh(&["--device", "/dev/fuse:/dev/other:r"], "test -c /dev/other && head -c 0 /dev/other; echo x 2>&1 > /dev/other || true; echo done").lines().last(), Some("done"));
    t.run(&["--rm", "--device", "/dev/no-such", IMAGE, "true"])
        .fails()
        .complains(&["/dev/no-such"]);
    let made = t.sh(
        &["--device-cgroup-rule", "c 10:229 rm"],
        "mknod /fuse c 10 229 && : < /fuse; echo $?",
    );
    assert_eq!(made, "0");
}

fn masked_and_read_only_paths(t: &Test) {
    for path in ["/proc/kcore", "/proc/keys", "/proc/timer_list"] {
        assert_eq!(
            t.sh(
                &[],
                &format!(
                    "if [ -e {path} ]; then head -c 10 {path} 2>/dev/null | wc -c; else echo 0; fi"
                )
            ),
            "0",
            "{path}"
        );
    }
    for path in ["/sys/firmware", "/proc/scsi", "/proc/acpi"] {
        assert_eq!(
            t.sh(&[], &format!("ls {path} 2>/dev/null | wc -l")),
            "0",
            "{path}"
        );
    }
    for path in [
        "/proc/sys/kernel/hostname",
        "/proc/sysrq-trigger",
        "/proc/irq/default_smp_affinity",
    ] {
        t.run(&[
            "--rm",
            IMAGE,
            "sh",
            "-c",
            &format!("test -e {path} || exit 1; echo x > {path}"),
        ])
        .fails();
    }
    t.run(&[
        "--rm",
        IMAGE,
        "sh",
        "-c",
        "cd /sys/fs/cgroup; if [ -d memory ]; then mkdir memory/x; else mkdir x; fi",
    ])
    .fails();
    t.run(&[
        "--rm",
        IMAGE,
        "sh",
        "-c",
        "echo 1 > /sys/kernel/uevent_helper",
    ])
    .fails();
    let unmasked = t.sh(
        &["--security-opt", "systempaths=unconfined"],
        "grep -c ' /proc/kcore ' /proc/self/mountinfo; true",
    );
    assert_eq!(unmasked, "0");
}

fn more_is_masked_than_by_others(t: &Test) {
    let interrupts = t.sh(&[], "head -c 10 /proc/interrupts 2>/dev/null | wc -c");
    assert_eq!(interrupts, "0");
    assert_eq!(
        t.sh(&[], "ls /sys/devices/virtual/powercap 2>/dev/null | wc -l"),
        "0"
    );
}

fn sysctls(t: &Test) {
    assert_eq!(
        t.sh(
            &["--sysctl", "net.ipv4.ip_unprivileged_port_start=99"],
            "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"
        ),
        "99"
    );
    assert_eq!(
        t.sh(
            &["--sysctl", "kernel.shmmax=12345678"],
            "cat /proc/sys/kernel/shmmax"
        ),
        "12345678"
    );
    t.run(&["--rm", "--sysctl", "kernel.panic=1", IMAGE, "true"])
        .code(125)
        .complains(&["kernel.panic"]);
    t.run(&[
        "--rm",
        "--network=host",
        "--sysctl",
        "net.ipv4.ip_forward=1",
        IMAGE,
        "true",
    ])
    .code(125);
}

fn namespaces_are_own(t: &Test) {
    for kind in ["mnt", "pid", "uts", "ipc", "net"] {
        let outside = std::fs::read_link(format!("/proc/self/ns/{kind}")).expect("own namespaces");
        assert_ne!(
            t.sh(&[], &format!("readlink /proc/self/ns/{kind}")),
            outside.display().to_string(),
            "{kind}"
        );
    }
    assert_eq!(t.sh(&[], "echo $$"), "1");
    assert_eq!(t.sh(&["--hostname", "inner"], "hostname"), "inner");
}

fn cgroup_is_hidden(t: &Test) {
    let private = t.sh(&["--cgroupns=private"], "cat /proc/self/cgroup");
    assert!(
        private.lines().all(|line| line.ends_with(":/")),
        "{private}"
    );
}

fn the_old_root_is_gone(t: &Test) {
    let mounts = t.sh(&[], "cat /proc/self/mountinfo");
    assert!(
        !mounts.contains(" /oldroot") && !mounts.contains(".pivot"),
        "{mounts}"
    );
    let root = mounts
        .lines()
        .filter(|m| m.split(' ').nth(4) == Some("/"))
        .count();
    assert_eq!(root, 1, "one root: {mounts}");
    // chroot out through a directory kept open: the classic escape
    let script = "mkdir -p /x; cd /; chroot /x /bin/true 2>/dev/null; cd ../../../../../../..; cat etc/os-release";
    assert!(t.sh(&[], script).contains("caisson toolbox"));
    assert!(
        t.sh(&[], "cat /proc/1/root/etc/os-release")
            .contains("caisson toolbox")
    );
}

fn no_descriptor_leaks_in(t: &Test) {
    let seen = t.sh(
        &[],
        "ls -l /proc/self/fd | sed 1d | awk '{print $9}' | tr '\\n' ' '",
    );
    let extra: Vec<&str> = seen
        .split_whitespace()
        .filter(|fd| !["0", "1", "2", "3"].contains(fd))
        .collect();
    assert!(extra.is_empty(), "descriptors {extra:?} are open inside");
    let id = t.sleeper(&[]);
    let seen = t.exec(
        &id,
        "ls -l /proc/1/fd | sed 1d | awk '{print $9}' | tr '\\n' ' '",
    );
    assert_eq!(
        seen.split_whitespace().collect::<Vec<_>>(),
        ["0", "1", "2"],
        "of the first process"
    );
    // by exec as well; 3 is the directory that ls reads
    let seen = t.exec(&id, "ls /proc/self/fd | tr '\\n' ' '");
    assert!(
        seen.split_whitespace()
            .all(|fd| ["0", "1", "2", "3"].contains(&fd)),
        "{seen}"
    );
}

fn working_directory_cannot_be_outside(t: &Test) {
    // CVE-2024-21626: a working directory that is a leaked descriptor of the host
    for fd in 3..12 {
        let outcome = t.run(&[
            "--rm",
            "-w",
            &format!("/proc/self/fd/{fd}"),
            IMAGE,
            "sh",
            "-c",
            "cat ../../../../etc/os-release 2>/dev/null",
        ]);
        let release = outcome.out();
        assert!(
            outcome.code != 0 || release.is_empty() || release.contains("caisson toolbox"),
            "{}",
            outcome.dump()
        );
    }
}

fn the_engine_binary_cannot_be_overwritten(t: &Test) {
    // CVE-2019-5736: /proc/PID/exe of whatever enters the container leads to a program of the host
    let id = t.sleeper(&[]);
    let script = "for i in $(seq 200); do for p in /proc/[0-9]*; do case $(readlink $p/exe) in /bin/busybox) ;; '') ;; *) echo found $(readlink $p/exe); (echo overwritten > $p/exe) 2>/dev/null && echo WRITTEN ;; esac; done; done; echo finished";
    let watcher = t.background(&["exec", &id, "sh", "-c", script]);
    for _ in 0..10 {
        t.cli(&["exec", &id, "true"]).ok();
    }
    watcher
        .stdout
        .expect_from(0, "finished", std::time::Duration::from_secs(60));
    assert!(
        !watcher.stdout.text().contains("WRITTEN"),
        "{}",
        watcher.stdout.text()
    );
    t.cli(&["exec", &id, "true"]).ok();
}

fn magic_links_do_not_lead_out(t: &Test) {
    let id = t.sleeper(&[]);
    for path in [
        "/proc/1/root/../../../../etc/shadow",
        "/proc/self/cwd/../../../etc/shadow",
    ] {
        t.cli(&["exec", &id, "cat", path]).fails();
    }
}

fn user_namespace_can_be_remapped(t: &Test) {
    let own = t.own_daemon(&["--userns-remap=default"]);
    let map = own.sh(&[], "cat /proc/self/uid_map");
    let fields: Vec<u64> = map
        .split_whitespace()
        .filter_map(|n| n.parse().ok())
        .collect();
    assert!(
        fields.len() == 3 && fields[0] == 0 && fields[1] >= 1000,
        "{map}"
    );
    assert_eq!(
        own.sh(
            &[],
            "id -u; touch /root/mine && stat -c %u /root/mine /etc/passwd"
        ),
        "0\n0\n0"
    );
    let id = own.sleeper(&[]);
    let pid = own.inspect(&id, "{{.State.Pid}}");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
    let uid = status
        .lines()
        .find_map(|l| l.strip_prefix("Uid:"))
        .and_then(|l| l.split_whitespace().next())
        .map(str::to_string);
    assert_eq!(
        uid,
        Some(fields[1].to_string()),
        "root inside is nobody special outside"
    );
    let secret = t.file("secret", "root only");
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).expect("own file");
    own.run(&[
        "--rm",
        "-v",
        &format!("{}:/secret", secret.display()),
        IMAGE,
        "cat",
        "/secret",
    ])
    .code(1)
    .complains(&["permission denied"]);
    own.cli(&[
        "cp",
        &secret.display().to_string(),
        &format!("{id}:/root/copy"),
    ])
    .ok();
    assert_eq!(own.exec(&id, "stat -c %u /root/copy"), "0");
    let host = own.sh(&["--userns=host"], "cat /proc/self/uid_map");
    assert!(
        host.split_whitespace().eq(["0", "0", "4294967295"]),
        "{host}"
    );
}

fn keyrings_are_not_shared(t: &Test) {
    // CVE-like leaks through the session keyring of the engine: /proc/keys is masked and keyctl is filtered
    assert_eq!(t.sh(&[], "cat /proc/keys 2>/dev/null | wc -l"), "0");
}

fn host_processes_are_invisible(t: &Test) {
    assert_eq!(
        t.sh(
            &[],
            "ls -d /proc/[0-9]* | wc -l | xargs test 5 -gt && echo few"
        ),
        "few"
    );
    t.run(&["--rm", IMAGE, "kill", "-0", &std::process::id().to_string()])
        .fails();
}

fn labels_do_not_steer_the_engine(t: &Test) {
    let seen = t.sh(
        &[
            "-l",
            "run.oci.keep_original_groups=1",
            "-l",
            "io.caisson.isolation=none",
            "--label",
            "org.systemd.property.Foo=1",
        ],
        &status("CapEff"),
    );
    assert_eq!(seen, DEFAULT_CAPABILITIES);
}

cases![
    capabilities,
    capabilities_of_other_users,
    privileged_has_all
        .container_only()
        .ours("its runc wants capabilities that this machine lacks"),
    seccomp_filters,
    own_seccomp_profile,
    no_new_privileges,
    unknown_security_options,
    devices_by_default,
    device_policy_holds,
    added_devices.container_only(),
    masked_and_read_only_paths,
    more_is_masked_than_by_others.ours("it masks less"),
    sysctls,
    namespaces_are_own.container_only(),
    cgroup_is_hidden.core(),
    the_old_root_is_gone,
    no_descriptor_leaks_in,
    working_directory_cannot_be_outside,
    the_engine_binary_cannot_be_overwritten.container_only(),
    magic_links_do_not_lead_out,
    user_namespace_can_be_remapped.container_only(),
    keyrings_are_not_shared,
    host_processes_are_invisible,
    labels_do_not_steer_the_engine,
];
