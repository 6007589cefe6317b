//! The lab: a whole Linux machine in software, on any machine.
//!
//! QEMU's software CPU emulates AMD-V, so a Linux in it has a hardware-like `/dev/kvm`; it also has cgroup v2, whatever
//! the host has. `cargo xtask lab` boots Debian's cloud kernel there, carries a folder in, runs one command and brings its
//! output, its exit code and a folder out. Nothing on the host is mounted, no privilege is needed to run it.
//!
//! ```text
//! target/lab/
//!   qemu/          a QEMU, if the installed one is too old (qemu.rs)
//!   kernel/        vmlinuz and modules, from Debian's linux-image-cloud-amd64
//!   root/          a Debian minbase with what the cases need, from debootstrap
//!   root.ext4      the same as a disk; the machine writes to a throw-away overlay of it (snapshot=on)
//!   run-PID/       initramfs.cpio (busybox and the modules that reach the disk), payload.ext4 (carried in, at /payload),
//!                  results.img (a tar of /results, carried out), console.log
//! ```
//!
//! Must not know: what it runs.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::qemu;
use crate::shell::{on_path, run as run_tool};

/// Packages of the lab's Debian.
const ROOT_PACKAGES: &str =
    "kmod,iproute2,nftables,procps,busybox-static,e2fsprogs,ca-certificates,socat";
/// Peers that end-to-end cases talk to. debootstrap cannot configure all of them, and cases do without.
const PEER_PACKAGES: [&str; 4] = ["docker-registry", "python3-docker", "skopeo", "podman"];
/// Its disk: a layer of 2 GB is there as an archive, as it was sent, unpacked and as a block device.
const ROOT_BYTES: u64 = 16 << 30;
/// What the initramfs loads, in this order, to see the disks.
const BOOT_MODULES: [&str; 2] = ["virtio_pci", "virtio_blk"];

/// One run of the lab.
#[derive(clap::Args, Debug)]
pub struct Lab {
    /// A folder to carry in; it appears as /payload
    #[arg(long)]
    payload: Option<PathBuf>,
    /// Where to put what the command leaves in /results
    #[arg(long)]
    results: Option<PathBuf>,
    /// Memory of the machine in MiB
    #[arg(long, default_value_t = 4096)]
    memory_mib: u32,
    /// Its CPUs
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Room on the payload disk beyond the payload's own size, in MiB
    #[arg(long, default_value_t = 256)]
    spare_mib: u64,
    /// Give up after so many seconds
    #[arg(long, default_value_t = 1800)]
    timeout_s: u64,
    /// What to run, in a shell, as root
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Boots the lab, runs the command, prints its output. Returns the command's exit code.
pub fn run(target: &Path, lab: &Lab) -> Result<i32> {
    let home = target.join("lab");
    let (kernel, root) = prepare(&home)?;
    let run_dir = RunDir::new(&home)?;
    let initramfs = initramfs(&run_dir.0, &kernel)?;
    let payload = payload_disk(&run_dir.0, lab)?;
    let results = run_dir.0.join("results.img");
    fs::File::create(&results)?.set_len(512 << 20)?;
    let console = run_dir.0.join("console.log");

    let status = boot(
        lab,
        qemu::command(&home)?,
        &kernel,
        &initramfs,
        &[(&root, true), (&payload, true), (&results, false)],
        &console,
    )?;
    let brought = run_dir.0.join("out");
    fs::create_dir_all(&brought)?;
    let unpacked = Command::new("tar")
        .arg("-C")
        .arg(&brought)
        .arg("-xf")
        .arg(&results)
        .stderr(Stdio::null())
        .status()?;
    if !unpacked.success() || !status.success() {
        std::io::stderr().write_all(&tail(&fs::read(&console).unwrap_or_default(), 8192))?;
        bail!("the lab's machine ended without results ({status}); its console is above");
    }
    let Ok(code) = fs::read_to_string(brought.join("exit-code")) else {
        std::io::stderr().write_all(&tail(&fs::read(&console).unwrap_or_default(), 8192))?;
        bail!("the lab's machine ended before its command did; its console is above");
    };
    if let Some(dir) = &lab.results {
        fs::create_dir_all(dir)?;
        run_tool(
            Command::new("cp")
                .arg("-a")
                .arg(brought.join("results/."))
                .arg(dir),
        )?;
    }
    code.trim()
        .parse()
        .context("the lab's exit code is not a number")
}

/// Fetches and makes what every run shares, if it is not there. Not to be called by two at once.
pub fn prepare_all(target: &Path) -> Result<()> {
    prepare(&target.join("lab")).map(drop)
}

fn prepare(home: &Path) -> Result<(Kernel, PathBuf)> {
    fs::create_dir_all(home)?;
    qemu::command(home)?;
    let kernel = kernel(home)?;
    let root = root_disk(home, &kernel)?;
    Ok((kernel, root))
}

/// What this machine lacks to run the lab, and how to get it.
pub fn missing() -> Option<String> {
    let tools = [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("debootstrap", "debootstrap"),
        ("mke2fs", "e2fsprogs"),
        ("cpio", "cpio"),
        ("modprobe", "kmod"),
    ];
    let absent: Vec<&str> = tools
        .iter()
        .filter(|(tool, _)| on_path(tool).is_none())
        .map(|(_, package)| *package)
        .collect();
    (!absent.is_empty()).then(|| format!("no lab: apt-get install {}", absent.join(" ")))
}

struct Kernel {
    image: PathBuf,
    /// The folder above `lib/modules`.
    tree: PathBuf,
    release: String,
}

fn kernel(home: &Path) -> Result<Kernel> {
    let tree = home.join("kernel");
    if !tree.join("done").exists() {
        eprintln!("lab: fetching Debian's cloud kernel");
        let _ = fs::remove_dir_all(&tree);
        fs::create_dir_all(&tree)?;
        let depends = Command::new("apt-cache")
            .args(["depends", "linux-image-cloud-amd64"])
            .output()?;
        let package = String::from_utf8_lossy(&depends.stdout)
            .lines()
            .find_map(|l| l.trim().strip_prefix("Depends: ").map(str::to_owned))
            .context("linux-image-cloud-amd64 is not known to apt: run apt-get update")?;
        run_tool(
            Command::new("apt-get")
                .args(["download", "-qq", &package])
                .current_dir(&tree)
                .stderr(Stdio::null()),
        )?;
        let deb = fs::read_dir(&tree)?
            .flatten()
            .map(|e| e.path())
            .find(|p| p.extension().is_some_and(|x| x == "deb"));
        let deb = deb.context("apt-get download left no package")?;
        run_tool(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&tree))?;
        fs::remove_file(deb)?;
        let release = release_of(&tree)?;
        run_tool(
            Command::new("/sbin/depmod")
                .arg("-b")
                .arg(&tree)
                .arg(&release),
        )?;
        fs::write(tree.join("done"), "")?;
    }
    let release = release_of(&tree)?;
    Ok(Kernel {
        image: tree.join(format!("boot/vmlinuz-{release}")),
        tree,
        release,
    })
}

fn release_of(tree: &Path) -> Result<String> {
    let mut releases = fs::read_dir(tree.join("lib/modules"))?.flatten();
    let release = releases
        .next()
        .context("the kernel package has no modules")?
        .file_name();
    Ok(release.to_string_lossy().into_owned())
}

fn root_disk(home: &Path, kernel: &Kernel) -> Result<PathBuf> {
    let disk = home.join("root.ext4");
    let stamp = home.join("root.stamp");
    let wanted = format!(
        "{ROOT_PACKAGES} {PEER_PACKAGES:?} {ROOT_BYTES} {}\n{LAB_INIT}",
        kernel.release
    );
    if fs::read_to_string(&stamp).is_ok_and(|s| s == wanted) && disk.exists() {
        return Ok(disk);
    }
    eprintln!("lab: making its Debian (debootstrap)");
    let root = home.join("root");
    let _ = fs::remove_dir_all(&root);
    let suite = fs::read_to_string("/etc/os-release")?
        .lines()
        .find_map(|l| l.strip_prefix("VERSION_CODENAME=").map(str::to_owned))
        .context("/etc/os-release names no VERSION_CODENAME")?;
    let log = fs::File::create(home.join("debootstrap.log"))?;
    let made = Command::new("debootstrap")
        .args([
            "--variant=minbase",
            &format!("--include={ROOT_PACKAGES}"),
            &suite,
        ])
        .arg(&root)
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?)
        .status()?;
    let log_path = home.join("debootstrap.log");
    ensure!(
        made.success(),
        "debootstrap failed: see {}",
        log_path.display()
    );
    let peers = Command::new("chroot")
        .arg(&root)
        .args([
            "sh",
            "-c",
            "apt-get -q update && exec apt-get -qy install --no-install-recommends \"$@\"",
            "sh",
        ])
        .args(PEER_PACKAGES)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()?;
    if !peers.success() {
        eprintln!(
            "lab: without {}: the cases that need them will be skipped; see {}",
            PEER_PACKAGES.join(", "),
            log_path.display()
        );
    }
    for litter in ["var/cache/apt/archives", "var/lib/apt/lists"] {
        let _ = fs::remove_dir_all(root.join(litter));
    }
    run_tool(
        Command::new("cp")
            .arg("-a")
            .arg(kernel.tree.join("lib/modules"))
            .arg(root.join("lib/")),
    )?;
    fs::write(root.join("lab-init"), LAB_INIT)?;
    run_tool(Command::new("chmod").arg("755").arg(root.join("lab-init")))?;
    make_ext4(&root, &disk, ROOT_BYTES)?;
    fs::remove_dir_all(&root)?;
    fs::write(stamp, wanted)?;
    Ok(disk)
}

/// PID 1 of the lab's machine once its root is mounted.
const LAB_INIT: &str = r#"#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm /payload /results
mount -t devpts -o ptmxmode=666 devpts /dev/pts; mount -t tmpfs shm /dev/shm; mount -t tmpfs run /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --make-rshared /
hostname lab; ip link set lo up
for m in overlay loop tun veth bridge br_netfilter nf_tables erofs fuse irqbypass kvm virtio_net; do modprobe -q $m || true; done
modprobe -q kvm-amd
mount -o noatime /dev/vdb /payload
cd /payload
setsid -w sh /payload/.lab-command </dev/null >/dev/ttyS1 2>&1
echo $? > /exit-code
mkdir -p /out; cp -a /results /exit-code /out/
tar -C /out -cf /dev/vdc . ; sync
echo o > /proc/sysrq-trigger; sleep 60
"#;

fn initramfs(run_dir: &Path, kernel: &Kernel) -> Result<PathBuf> {
    let file = run_dir.join("initramfs.cpio");
    let tree = run_dir.join("initramfs");
    for dir in ["bin", "dev", "proc", "root", "modules"] {
        fs::create_dir_all(tree.join(dir))?;
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox"))
        .context("/bin/busybox: install busybox-static")?;
    let mut init = String::from("#!/bin/busybox sh\n/bin/busybox mount -t devtmpfs dev /dev\n");
    let mut loaded = Vec::new();
    for module in BOOT_MODULES {
        let shown = Command::new("/sbin/modprobe")
            .args(["--show-depends", "-S", &kernel.release, "-d"])
            .arg(&kernel.tree)
            .arg(module)
            .output()?;
        for path in String::from_utf8_lossy(&shown.stdout)
            .lines()
            .filter_map(|l| l.strip_prefix("insmod "))
        {
            let path = Path::new(path.trim());
            let name = path
                .file_name()
                .context("a module without a name")?
                .to_string_lossy()
                .into_owned();
            if !loaded.contains(&name) {
                fs::copy(path, tree.join("modules").join(&name))?;
                init.push_str(&format!("/bin/busybox insmod /modules/{name}\n"));
                loaded.push(name);
            }
        }
    }
    init.push_str("while [ ! -b /dev/vdc ]; do /bin/busybox usleep 20000; done\n");
    init.push_str("/bin/busybox mount -t ext4 -o noatime /dev/vda /root\nexec /bin/busybox switch_root /root /lab-init\n");
    fs::write(tree.join("init"), init)?;
    run_tool(Command::new("chmod").arg("755").arg(tree.join("init")))?;
    let out = fs::File::create(&file)?;
    let made = Command::new("sh")
        .args(["-c", "find . | cpio --quiet -o -H newc"])
        .current_dir(&tree)
        .stdout(out)
        .status()?;
    ensure!(made.success(), "cpio failed");
    Ok(file)
}

fn payload_disk(run_dir: &Path, lab: &Lab) -> Result<PathBuf> {
    let tree = run_dir.join("payload");
    fs::create_dir_all(&tree)?;
    if let Some(payload) = &lab.payload {
        run_tool(
            Command::new("cp")
                .arg("-a")
                .arg("--reflink=auto")
                .arg(payload.join("."))
                .arg(&tree),
        )?;
    }
    fs::write(tree.join(".lab-command"), lab.command.join(" ") + "\n")?;
    let disk = run_dir.join("payload.ext4");
    let used = String::from_utf8(Command::new("du").arg("-sb").arg(&tree).output()?.stdout)?;
    let used: u64 = used
        .split_whitespace()
        .next()
        .context("du said nothing")?
        .parse()?;
    make_ext4(&tree, &disk, used * 12 / 10 + (lab.spare_mib << 20))?;
    fs::remove_dir_all(tree)?;
    Ok(disk)
}

fn make_ext4(tree: &Path, disk: &Path, bytes: u64) -> Result<()> {
    let _ = fs::remove_file(disk);
    fs::File::create(disk)?.set_len(bytes)?;
    run_tool(
        Command::new("/sbin/mke2fs")
            .args([
                "-q",
                "-F",
                "-t",
                "ext4",
                "-O",
                "^has_journal",
                "-m",
                "0",
                "-d",
            ])
            .arg(tree)
            .arg(disk),
    )
}

fn boot(
    lab: &Lab,
    mut qemu: Command,
    kernel: &Kernel,
    initramfs: &Path,
    disks: &[(&Path, bool)],
    console: &Path,
) -> Result<ExitStatus> {
    qemu.args([
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max",
        "-display",
        "none",
        "-no-reboot",
        "-nodefaults",
    ])
    .args([
        "-m",
        &lab.memory_mib.to_string(),
        "-smp",
        &lab.cpus.to_string(),
    ])
    .arg("-kernel")
    .arg(&kernel.image)
    .arg("-initrd")
    .arg(initramfs)
    .args([
        "-append",
        // a clock that ticks all the time: of QEMU's interrupts one in many thousand is lost when a guest is entered or left,
        // and a machine that sleeps until just that one never wakes
        "console=ttyS0 quiet panic=-1 mitigations=off nohz=off highres=off rdinit=/init",
    ])
    .args([
        "-serial",
        &format!("file:{}", console.display()),
        "-serial",
        "stdio",
    ])
    .stdin(Stdio::null());
    for (disk, throw_away) in disks {
        let snapshot = if *throw_away { "on" } else { "off" };
        qemu.args([
            "-drive",
            &format!(
                "file={},format=raw,if=virtio,cache=unsafe,snapshot={snapshot}",
                disk.display()
            ),
        ]);
    }
    let mut machine = qemu.spawn().context("qemu-system-x86_64")?;
    let begun = Instant::now();
    loop {
        if let Some(status) = machine.try_wait()? {
            return Ok(status);
        }
        if begun.elapsed() > Duration::from_secs(lab.timeout_s) {
            machine.kill()?;
            machine.wait()?;
            std::io::stderr().write_all(&tail(&fs::read(console).unwrap_or_default(), 8192))?;
            bail!("the lab's command took more than {} s", lab.timeout_s);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The folder of one run, removed with everything in it.
struct RunDir(PathBuf);

impl RunDir {
    fn new(home: &Path) -> Result<Self> {
        let dir = home.join(format!("run-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        Ok(RunDir(dir))
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn tail(bytes: &[u8], most: usize) -> Vec<u8> {
    bytes[bytes.len().saturating_sub(most)..].to_vec()
}
