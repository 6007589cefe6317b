//! Root in a container tries to get out, or to learn of the host: each attempt that has worked against some engine is made
//! and has to fail. The containers have Docker's capabilities and no seccomp filter: what holds here holds without it.

mod cell;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use caisson_jail::{Exec, Stdio, exec};
use cell::{Cell, alone, caps, code, is_root, piped, read_all, said};
use nix::sys::wait::waitpid;
use serde_json::json;

const DOCKERS: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

fn attacker(script: &str) -> Cell {
    let mut cell = Cell::new(script);
    cell.spec["process"]["capabilities"] = caps(&DOCKERS);
    cell.spec["process"]["noNewPrivileges"] = json!(false);
    cell.spec["process"]["args"] =
        json!(["/bin/busybox", "sh", "-c", format!("PATH=/bb; {script}")]);
    let root = cell.root();
    std::fs::create_dir_all(root.join("bb")).expect("mkdir");
    let list = std::process::Command::new("/bin/busybox")
        .arg("--list")
        .output()
        .expect("busybox");
    for applet in String::from_utf8_lossy(&list.stdout).lines() {
        symlink("/bin/busybox", root.join("bb").join(applet)).expect("symlink");
    }
    cell
}

/// Nothing of what the attempts print with a leading `!` may appear.
#[track_caller]
fn harmless(cell: &Cell, reaper: bool) -> String {
    let (text, code) = cell.run_with(reaper).expect("runs");
    assert_eq!(code, 0, "{text}");
    let bad: Vec<&str> = text.lines().filter(|l| l.starts_with('!')).collect();
    assert!(bad.is_empty(), "{bad:?} in\n{text}");
    text
}

/// A file of the host that attempts aim at.
struct Prize {
    dir: tempfile::TempDir,
}

impl Prize {
    fn new() -> Prize {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::write(dir.path().join("prize"), "untouched").expect("write");
        Prize { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    #[track_caller]
    fn assert_untouched(&self) {
        let names: Vec<_> = std::fs::read_dir(self.path())
            .expect("list")
            .flatten()
            .map(|e| e.file_name())
            .collect();
        assert_eq!(names, ["prize"], "something was made on the host");
        assert_eq!(
            std::fs::read(self.path().join("prize")).expect("read"),
            b"untouched"
        );
    }
}

#[test]
fn no_descriptor_of_ours_arrives() {
    if !is_root() {
        return;
    }
    // Close-on-exec is off for this one: whoever embeds us may have such.
    let leak = File::open("/").expect("open");
    nix::fcntl::fcntl(
        &leak,
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
    )
    .expect("fcntl");
    for reaper in [false, true] {
        let cell = attacker(
            "for p in 1 $$; do for f in /proc/$p/fd/*; do n=${f##*/}; [ $n -gt 2 ] 2>/dev/null && [ -e $f ] && echo \"!fd $p $n $(readlink $f)\"; done; done; true",
        );
        harmless(&cell, reaper);
    }
    drop(leak);
}

#[test]
fn a_working_directory_outside_is_refused() {
    if !is_root() {
        return;
    }
    let leak = File::open("/etc").expect("open");
    nix::fcntl::fcntl(
        &leak,
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
    )
    .expect("fcntl");
    for number in 3..40 {
        let mut cell = attacker(
            "[ -e shadow ] && [ -e debian_version ] && echo '!host'; cat ../etc/hostname; pwd; true",
        );
        cell.spec["process"]["cwd"] = json!(format!("/proc/self/fd/{number}"));
        if let Ok((text, _)) = cell.run() {
            assert!(!text.contains("!host"), "fd {number}: {text}");
        }
    }
    drop(leak);
    let cell = attacker("cd ../../../../..; pwd; [ -d /work ] && echo '!host'; true");
    assert!(harmless(&cell, false).starts_with('/'));
}

#[test]
fn the_program_around_it_cannot_be_written_or_read() {
    if !is_root() {
        return;
    }
    // With the reaper PID 1 is this very program.
    let cell = attacker(
        "echo \"cmdline $(tr -d '\\0' < /proc/1/cmdline)\"; [ \"$(cat /proc/1/comm)\" = caisson-init ] || echo '!comm'
         for f in exe mem environ maps auxv stack; do (echo 0 >> /proc/1/$f) 2>/dev/null && echo \"!write $f\"; done
         cat /proc/1/environ 2>/dev/null | grep -q . && echo '!environ'
         head -c1 /proc/1/mem 2>/dev/null | grep -q . && echo '!mem'
         readlink /proc/1/fd/* 2>/dev/null | grep -q . && echo '!fds'
         readlink /proc/1/exe 2>/dev/null | grep -q . && echo '!exe'
         ls /proc/1/root/ >/dev/null 2>&1 && echo '!root'; true",
    );
    let text = harmless(&cell, true);
    let own = std::fs::read_to_string("/proc/self/status").expect("status");
    let caps = own
        .lines()
        .find_map(|l| l.strip_prefix("CapEff:\t"))
        .expect("CapEff");
    if u64::from_str_radix(caps, 16).expect("a number") & 1 << 24 == 0 {
        println!("skipped in part: the command line can only be changed with CAP_SYS_RESOURCE");
    } else {
        assert_eq!(text, "cmdline caisson-init\n");
    }
}

#[test]
fn an_exec_shows_nothing_to_who_waits_for_it() {
    if !is_root() {
        return;
    }
    // Watches /proc for processes that are not its own and tries to open what they are made of.
    let cell = attacker(
        "end=$(($(date +%s)+6)); while [ $(date +%s) -lt $end ]; do
           for p in /proc/[0-9]*; do
             case $(readlink $p/exe 2>/dev/null) in /bin/busybox|'') ;; *) echo \"!exe $p $(readlink $p/exe)\";; esac
             for f in $p/fd/*; do case $(readlink $f 2>/dev/null) in ''|pipe:*|/dev/null|/proc/*|/dev/pts/*) ;; *) echo \"!fd $f $(readlink $f)\";; esac; done
             c=$(readlink $p/cwd 2>/dev/null); case $c in ''|/) ;; *) echo \"!cwd $p $c\";; esac
           done; done; true",
    );
    let (stdio, read) = piped();
    let mut init = cell.create(stdio, false).expect("create");
    init.start().expect("start");
    let (spec, cgroup) = (cell.spec(), cell.cgroup());
    let process = serde_json::from_value(json!({
        "user": {"uid": 0, "gid": 0}, "args": ["/bin/busybox", "true"], "env": [], "cwd": "/", "capabilities": caps(&DOCKERS),
    }))
    .expect("process");
    let until = Instant::now() + Duration::from_millis(2500);
    let mut count = 0;
    while Instant::now() < until {
        let null = || {
            File::options()
                .read(true)
                .write(true)
                .open("/dev/null")
                .expect("null")
                .into()
        };
        let guard = alone();
        let made = exec(Exec {
            init_pid: init.pid,
            spec: &spec,
            process: &process,
            stdio: Stdio::Fds {
                stdin: null(),
                stdout: null(),
                stderr: null(),
            },
            cgroup: &cgroup,
            preserve_fds: 0,
            hold: false,
        })
        .expect("exec");
        drop(guard);
        assert_eq!(code(waitpid(made.pid, None).expect("wait")), 0);
        count += 1;
    }
    let text = read_all(read);
    assert_eq!(code(waitpid(init.pid, None).expect("wait")), 0, "{text}");
    assert!(count > 10, "only {count} execs");
    assert_eq!(text, "", "seen in {count} execs");
}

#[test]
fn kernel_files_are_closed() {
    if !is_root() {
        return;
    }
    let cell = attacker(
        "for f in /proc/kcore /proc/keys /proc/timer_list /proc/interrupts; do
           [ \"$(head -c1 $f 2>/dev/null | wc -c)\" = 0 ] || echo \"!readable $f\"; (echo x > $f) 2>/dev/null; done
         [ \"$(ls /sys/firmware /proc/acpi 2>/dev/null | grep -v : | grep -c .)\" = 0 ] || echo '!firmware'
         for f in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sysrq-trigger /proc/sys/vm/overcommit_memory /sys/kernel/uevent_helper /sys/power/state /proc/irq/default_smp_affinity; do
           (: >> $f) 2>/dev/null && echo \"!writable $f\"; done
         for d in /sys/fs/cgroup/*; do (: >> $d/cgroup.procs) 2>/dev/null && echo \"!writable $d\"; mkdir $d/x 2>/dev/null && echo \"!mkdir $d\"; [ -e $d/release_agent ] && echo \"!release_agent $d\"; done
         umount /proc/kcore 2>/dev/null && echo '!umount'; mount -o remount,rw /proc/sys 2>/dev/null && echo '!remount'
         mount -t proc p /tmp 2>/dev/null && echo '!mount'; unshare -m true 2>/dev/null && echo '!unshare'; true",
    );
    harmless(&cell, false);
}

#[test]
fn devices_are_not_usable() {
    if !is_root() {
        return;
    }
    let cell = attacker(
        "for d in 'b 8 0' 'b 254 0' 'b 259 0' 'b 7 0' 'c 1 1' 'c 1 2' 'c 1 4' 'c 1 11' 'c 10 237' 'c 10 232' 'c 10 229' 'c 4 1' 'c 5 3'; do
           rm -f /tmp/n; mknod /tmp/n $d 2>/dev/null || continue; (: < /tmp/n) 2>/dev/null && echo \"!open $d\"; done
         head -c1 /dev/zero >/dev/null || echo '!zero'; true",
    );
    harmless(&cell, false);
}

#[test]
fn an_image_full_of_links_stays_inside() {
    if !is_root() {
        return;
    }
    let prize = Prize::new();
    let out = |up: &str| format!("{up}{}", prize.path().display());
    // Where mounts and devices go, the image has put links to the host.
    for (place, destination) in [
        ("data", "/data/made"),
        ("data", "/data"),
        ("etc/hosts", "/etc/hosts"),
        ("var", "/var/lib/x/y"),
    ] {
        for up in [
            "",
            "../../../../../../../../../..",
            "/proc/self/root",
            "/proc/1/root",
        ] {
            let mut cell = attacker("true");
            let link = cell.root().join(place);
            if let Some(parent) = link.parent() {
                std::fs::create_dir_all(parent).expect("mkdir");
            }
            symlink(out(up), &link).expect("symlink");
            cell.mount(json!({"destination": destination, "type": "bind", "source": "/etc/passwd", "options": ["bind", "ro"]}));
            let _ = cell.run();
            prize.assert_untouched();
        }
    }
}

#[test]
fn links_in_place_of_proc_sys_dev_do_not_lead_out() {
    if !is_root() {
        return;
    }
    let prize = Prize::new();
    for place in [
        "proc",
        "sys",
        "dev",
        "dev/pts",
        "dev/shm",
        "dev/mqueue",
        "sys/fs/cgroup",
    ] {
        let mut cell = attacker("true");
        // The spec's own mounts would cover what is below.
        let covered = ["/dev", "/sys"];
        cell.spec["mounts"]
            .as_array_mut()
            .expect("list")
            .retain(|m| {
                let destination = m["destination"].as_str().expect("text");
                !(place.contains('/') && covered.contains(&destination))
            });
        let link = cell.root().join(place);
        if place.contains('/') {
            std::fs::create_dir_all(link.parent().expect("parent")).expect("mkdir");
        } else {
            std::fs::remove_dir_all(&link).expect("rmdir");
        }
        symlink(prize.path(), &link).expect("symlink");
        let _ = cell.run();
        prize.assert_untouched();
        let before = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        assert!(
            !before.contains(prize.path().to_str().expect("text")),
            "mounted on the host: {place}"
        );
    }
}

#[test]
fn a_dev_of_the_image_does_not_fool_us() {
    if !is_root() {
        return;
    }
    let prize = Prize::new();
    for name in [
        "null", "zero", "tty", "ptmx", "console", "fd", "stdin", "core",
    ] {
        // /dev is the image's own directory.
        let mut cell = attacker("true");
        cell.spec["mounts"]
            .as_array_mut()
            .expect("list")
            .retain(|m| {
                !m["destination"]
                    .as_str()
                    .is_some_and(|d| d.starts_with("/dev"))
            });
        symlink(
            prize.path().join("prize"),
            cell.root().join("dev").join(name),
        )
        .expect("symlink");
        let _ = cell.run();
        prize.assert_untouched();
        // Masking with the image's /dev/null would bind what it points to.
        let (stdio, read) = piped();
        if let Ok(mut init) = cell.create(stdio, false) {
            let _ = init.start();
            let _ = read_all(read);
            let _ = waitpid(init.pid, None);
        }
        prize.assert_untouched();
    }
}

#[test]
fn mounts_do_not_travel_to_the_host() {
    if !is_root() {
        return;
    }
    let mut cell = attacker(
        "mount -t tmpfs t /shared && mount -t tmpfs t /tmp && touch /shared/in && echo done",
    );
    let mut all = DOCKERS.to_vec();
    all.push("CAP_SYS_ADMIN");
    cell.spec["process"]["capabilities"] = caps(&all);
    let prize = Prize::new();
    cell.mount(json!({"destination": "/shared", "type": "bind", "source": prize.path(), "options": ["rbind", "rprivate"]}));
    assert_eq!(said(&cell), "done\n");
    prize.assert_untouched();
    let mut text = String::new();
    File::open("/proc/self/mountinfo")
        .and_then(|mut f| f.read_to_string(&mut text))
        .expect("mounts");
    assert!(
        !text.contains(prize.path().to_str().expect("text")),
        "{text}"
    );
}

#[test]
fn a_container_that_could_not_be_made_leaves_nothing() {
    if !is_root() {
        return;
    }
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let before = mounts();
    for break_it in ["cwd", "args", "mount", "sysctl"] {
        let mut cell = attacker("true");
        match break_it {
            "cwd" => cell.spec["process"]["cwd"] = json!("/bin/busybox"),
            "args" => cell.spec["process"]["args"] = json!(["/no/such/program"]),
            "mount" => cell.mount(json!({"destination": "/x", "type": "bind", "source": "/no/such/source", "options": ["bind"]})),
            _ => cell.spec["linux"]["sysctl"] = json!({"kernel.core_pattern": "|/x"}),
        }
        let error = cell.run().expect_err(break_it);
        assert!(!error.to_string().is_empty());
        assert!(!cell.cgroup().exists(), "{break_it}: cgroup left");
        assert_eq!(mounts(), before, "{break_it}: mount left");
        let children = waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
        let _ = children;
    }
}
