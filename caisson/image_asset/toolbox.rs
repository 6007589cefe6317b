//! Makes the default image, `caisson/toolbox:latest`, out of a static busybox: a docker-archive with reproducible bytes.
//!
//! Compiled into `caisson/build.rs` (which embeds the archive) and into the test harness (which hands the same archive to
//! the reference engine). Must not know how images are stored or loaded.
//!
//! ```text
//! manifest.json                       which config, which tag, which layer
//! CONFIG.json                         the image: environment, command, diff id; named by its sha256
//! LAYER/layer.tar                     /bin/busybox, one link per applet, /etc, /tmp, …
//! ```

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

/// The name under which the image is loaded.
pub const REFERENCE: &str = "caisson/toolbox:latest";

/// Names the busybox to use instead of the system's.
pub const BUSYBOX_VARIABLE: &str = "CAISSON_BUSYBOX";

const CREATED: &str = "2026-01-01T00:00:00Z";
const PATH_VALUE: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
toolbox:x:1000:1000:toolbox:/home/toolbox:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
";
const GROUP: &str = "root:x:0:
daemon:x:1:
tty:x:5:
disk:x:6:
www-data:x:33:
users:x:100:toolbox
toolbox:x:1000:
nogroup:x:65534:
";
const OS_RELEASE: &str = "NAME=\"caisson toolbox\"
ID=caisson-toolbox
PRETTY_NAME=\"caisson toolbox\"
HOME_URL=\"https://busybox.net\"
";

/// Finds the static busybox: `$CAISSON_BUSYBOX`, then where Debian, Ubuntu, Fedora and Alpine put theirs. The error says
/// how to get one.
pub fn find_busybox() -> Result<PathBuf, String> {
    let named = std::env::var_os(BUSYBOX_VARIABLE).map(PathBuf::from);
    let usual = [
        "/bin/busybox",
        "/usr/bin/busybox",
        "/sbin/busybox",
        "/bin/busybox.static",
    ]
    .map(PathBuf::from);
    let candidates: Vec<PathBuf> = match named {
        Some(path) => vec![path],
        None => usual.into_iter().collect(),
    };
    let mut seen = Vec::new();
    for path in &candidates {
        match is_static(path) {
            Ok(true) => return Ok(path.clone()),
            Ok(false) => seen.push(format!("{} is dynamically linked", path.display())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => seen.push(format!("{}: {e}", path.display())),
        }
    }
    let found = if seen.is_empty() {
        "none was found".to_string()
    } else {
        seen.join("; ")
    };
    Err(format!(
        "the default image is made from a static busybox, but {found}.\n\
         Install one (`cargo xtask setup`, or `apt-get install busybox-static`) or name one: {BUSYBOX_VARIABLE}=/path/to/busybox"
    ))
}

/// A 64-bit ELF without a program interpreter.
fn is_static(path: &Path) -> io::Result<bool> {
    const PT_INTERP: u32 = 3;
    let mut head = Vec::new();
    std::fs::File::open(path)?
        .take(4096)
        .read_to_end(&mut head)?;
    if head.len() < 64 || &head[..5] != b"\x7fELF\x02" {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "not a 64-bit ELF program",
        ));
    }
    let u16_at = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]) as usize;
    let table = u64::from_le_bytes(head[32..40].try_into().expect("eight bytes")) as usize;
    let (size, count) = (u16_at(54), u16_at(56));
    for index in 0..count {
        let at = table + index * size;
        let Some(kind) = head.get(at..at + 4) else {
            break;
        };
        if u32::from_le_bytes(kind.try_into().expect("four bytes")) == PT_INTERP {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The names busybox answers to.
fn applets(busybox: &Path) -> Result<Vec<String>, String> {
    let output = Command::new(busybox)
        .arg("--list")
        .output()
        .map_err(|e| format!("cannot run {}: {e}", busybox.display()))?;
    if !output.status.success() {
        return Err(format!(
            "{} --list failed: {}",
            busybox.display(),
            output.status
        ));
    }
    let mut names: Vec<String> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::trim)
        .filter(|name| !name.is_empty() && *name != "busybox" && !name.contains('/'))
        .map(str::to_string)
        .collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// The docker-archive, the same bytes for the same busybox.
pub fn build(busybox: &Path) -> Result<Vec<u8>, String> {
    let failed = |e: io::Error| format!("cannot write the default image: {e}");
    let program =
        std::fs::read(busybox).map_err(|e| format!("cannot read {}: {e}", busybox.display()))?;
    let layer = layer(&program, &applets(busybox)?).map_err(failed)?;
    let diff_id = hex(&layer);
    let config = format!(
        concat!(
            r#"{{"architecture":"{arch}","os":"linux","created":"{created}","author":"caisson","#,
            r#""config":{{"Env":["PATH={path}"],"Cmd":["sh"],"WorkingDir":"/","#,
            r#""Labels":{{"org.opencontainers.image.title":"caisson toolbox"}}}},"#,
            r#""rootfs":{{"type":"layers","diff_ids":["sha256:{diff_id}"]}},"#,
            r#""history":[{{"created":"{created}","created_by":"static busybox and its applet links"}},"#,
            r#"{{"created":"{created}","created_by":"CMD [\"sh\"]","empty_layer":true}}]}}"#
        ),
        arch = architecture(),
        created = CREATED,
        path = PATH_VALUE,
        diff_id = diff_id,
    );
    let config_id = hex(config.as_bytes());
    let layer_name = format!("{diff_id}/layer.tar");
    let manifest = format!(
        r#"[{{"Config":"{config_id}.json","RepoTags":["{REFERENCE}"],"Layers":["{layer_name}"]}}]"#
    );

    let mut archive = Archive::new();
    archive
        .file("manifest.json", 0o644, (0, 0), manifest.as_bytes())
        .map_err(failed)?;
    archive
        .file(
            &format!("{config_id}.json"),
            0o644,
            (0, 0),
            config.as_bytes(),
        )
        .map_err(failed)?;
    archive
        .directory(&format!("{diff_id}/"), 0o755, (0, 0))
        .map_err(failed)?;
    archive
        .file(&layer_name, 0o644, (0, 0), &layer)
        .map_err(failed)?;
    archive.finish().map_err(failed)
}

fn layer(busybox: &[u8], applets: &[String]) -> io::Result<Vec<u8>> {
    const ROOT: (u64, u64) = (0, 0);
    let mut tar = Archive::new();
    for name in [
        "bin/", "dev/", "etc/", "home/", "mnt/", "opt/", "proc/", "root/", "run/", "sbin/", "srv/",
        "sys/",
    ] {
        tar.directory(name, if name == "root/" { 0o700 } else { 0o755 }, ROOT)?;
    }
    tar.directory("tmp/", 0o1777, ROOT)?;
    for name in [
        "usr/",
        "usr/bin/",
        "usr/local/",
        "usr/local/bin/",
        "usr/sbin/",
        "var/",
        "var/lib/",
        "var/www/",
    ] {
        tar.directory(name, 0o755, ROOT)?;
    }
    tar.directory("var/tmp/", 0o1777, ROOT)?;
    tar.directory("home/toolbox/", 0o755, (1000, 1000))?;
    tar.file("bin/busybox", 0o755, ROOT, busybox)?;
    for applet in applets {
        tar.link(&format!("bin/{applet}"), "busybox")?;
    }
    tar.link("usr/bin/env", "../../bin/busybox")?;
    tar.file("etc/passwd", 0o644, ROOT, PASSWD.as_bytes())?;
    tar.file("etc/group", 0o644, ROOT, GROUP.as_bytes())?;
    tar.file("etc/os-release", 0o644, ROOT, OS_RELEASE.as_bytes())?;
    tar.file("etc/nsswitch.conf", 0o644, ROOT, b"hosts: files dns\n")?;
    tar.file(
        "etc/profile",
        0o644,
        ROOT,
        b"export PS1='\\u@\\h:\\w\\$ '\n",
    )?;
    tar.finish()
}

/// A tar archive in memory with every changeable field pinned.
struct Archive(tar::Builder<Vec<u8>>);

impl Archive {
    fn new() -> Self {
        Archive(tar::Builder::new(Vec::new()))
    }

    fn header(kind: tar::EntryType, mode: u32, owner: (u64, u64), size: u64) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(1_767_225_600); // CREATED
        header.set_size(size);
        header
    }

    fn directory(&mut self, name: &str, mode: u32, owner: (u64, u64)) -> io::Result<()> {
        let mut header = Self::header(tar::EntryType::Directory, mode, owner, 0);
        self.0.append_data(&mut header, name, io::empty())
    }

    fn file(&mut self, name: &str, mode: u32, owner: (u64, u64), content: &[u8]) -> io::Result<()> {
        let mut header = Self::header(tar::EntryType::Regular, mode, owner, content.len() as u64);
        self.0.append_data(&mut header, name, content)
    }

    fn link(&mut self, name: &str, target: &str) -> io::Result<()> {
        let mut header = Self::header(tar::EntryType::Symlink, 0o777, (0, 0), 0);
        self.0.append_link(&mut header, name, target)
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        self.0.into_inner()
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Docker's name for the architecture that is compiled for.
fn architecture() -> &'static str {
    // In a build script the target is told by the environment; elsewhere this program runs where it was compiled for.
    match std::env::var("CARGO_CFG_TARGET_ARCH")
        .as_deref()
        .unwrap_or(std::env::consts::ARCH)
    {
        "aarch64" => "arm64",
        _ => "amd64",
    }
}
