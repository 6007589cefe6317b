//! A container in a root of busybox, for the tests that make real ones.

#![allow(dead_code)] // not every test file uses all of it

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use caisson_jail::cgroup::Cgroup;
use caisson_jail::{Error, Gate, Init, Root, Setup, Stdio, create};
use nix::sys::wait::{WaitStatus, waitpid};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

/// A root of busybox and a spec to run in it; its cgroup goes with it.
pub struct Cell {
    pub dir: tempfile::TempDir,
    pub spec: Value,
    pub id: String,
}

/// Held while a program is being written and while this process forks: a child that inherits the writing descriptor would make
/// the program busy. Real callers have one thread.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

static COUNT: AtomicU32 = AtomicU32::new(0);

pub fn is_root() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    eprintln!("skipped: needs root");
    false
}

impl Cell {
    pub fn new(script: &str) -> Cell {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))
            .expect("chmod");
        let root = dir.path().join("root");
        for name in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
            std::fs::create_dir_all(root.join(name)).expect("mkdir");
        }
        let alone = alone();
        std::fs::copy("/bin/busybox", root.join("bin/busybox"))
            .expect("busybox-static is installed");
        drop(alone);
        for name in [
            "sh", "cat", "ls", "id", "echo", "sleep", "true", "stat", "mount", "hostname", "env",
            "pwd", "ip", "ps", "kill", "touch", "readlink", "tty", "stty", "umask", "grep", "test",
            "dd", "mkdir", "head", "wc", "ulimit",
        ] {
            symlink("busybox", root.join("bin").join(name)).expect("symlink");
        }
        std::fs::write(
            root.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\n",
        )
        .expect("write");
        let id = format!(
            "jailtest-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": ["/bin/sh", "-c", script],
                "env": ["PATH=/bin:/usr/bin"],
                "cwd": "/",
                "capabilities": caps(&["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_NET_BIND_SERVICE"]),
                "noNewPrivileges": true,
            },
            "root": {"path": "root", "readonly": false},
            "hostname": "jailed",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
                {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
            ],
            "linux": {
                "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}],
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts", "/proc/acpi", "/sys/firmware", "/proc/none"],
                "readonlyPaths": ["/proc/sys", "/proc/bus", "/proc/irq", "/proc/sysrq-trigger"],
            },
        });
        Cell { dir, spec, id }
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub fn mount(&mut self, mount: Value) {
        self.spec["mounts"]
            .as_array_mut()
            .expect("a list")
            .push(mount);
    }

    pub fn cgroup(&self) -> Cgroup {
        Cgroup::new(Path::new(&format!("/caisson-jailtest/{}", self.id))).expect("plans")
    }

    pub fn spec(&self) -> Spec {
        serde_json::from_value(self.spec.clone()).expect("a spec")
    }

    pub fn create(&self, stdio: Stdio, reaper: bool) -> Result<Init, Error> {
        let (spec, cgroup) = (self.spec(), self.cgroup());
        let _alone = alone();
        create(Setup {
            id: &self.id,
            spec: &spec,
            root: Root::FromSpec {
                bundle: self.dir.path().to_path_buf(),
            },
            stdio,
            gate: Gate::Pipe,
            cgroup: &cgroup,
            reaper,
            preserve_fds: 0,
            no_pivot: false,
            no_new_keyring: false,
            die_with_parent: true,
        })
    }

    /// Runs to its end: what it wrote to stdout and stderr, and its code (128 + signal).
    pub fn run(&self) -> Result<(String, i32), Error> {
        self.run_with(false)
    }

    pub fn run_with(&self, reaper: bool) -> Result<(String, i32), Error> {
        let (stdio, read) = piped();
        let mut init = self.create(stdio, reaper)?;
        if let Err(e) = init.start() {
            let _ = waitpid(init.pid, None);
            return Err(e);
        }
        let text = read_all(read);
        Ok((
            text,
            code(waitpid(init.pid, None).expect("a child of ours")),
        ))
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        let _ = self.cgroup().kill();
        let _ = self.cgroup().remove();
    }
}

pub fn caps(names: &[&str]) -> Value {
    json!({"bounding": names, "effective": names, "permitted": names})
}

pub fn piped() -> (Stdio, OwnedFd) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("pipe");
    let stdin = File::open("/dev/null").expect("null").into();
    let stderr = write.try_clone().expect("dup");
    (
        Stdio::Fds {
            stdin,
            stdout: write,
            stderr,
        },
        read,
    )
}

pub fn read_all(fd: OwnedFd) -> String {
    let mut text = String::new();
    // A pty says EIO at its end.
    let mut file = File::from(fd);
    let mut buffer = [0u8; 4096];
    while let Ok(n @ 1..) = file.read(&mut buffer) {
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    text
}

pub fn code(status: WaitStatus) -> i32 {
    match status {
        WaitStatus::Exited(_, code) => code,
        WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
        other => panic!("unexpected status {other:?}"),
    }
}

pub fn said(container: &Cell) -> String {
    let (text, code) = container.run().expect("runs");
    assert_eq!(code, 0, "it said: {text}");
    text
}
