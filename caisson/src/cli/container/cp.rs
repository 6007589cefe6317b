//! `cp`: files between a container and this machine, as tar through the API.
//!
//! ```text
//! C:SRC → DST   stat header ─▶ GET archive ─▶ rename the first path component ─▶ unpack beneath DST's directory
//! SRC → C:DST   stat DST in the container ─▶ pack SRC under its new name ─▶ PUT archive
//! ```
//! The rules of where things land are `cp -a`'s; [`landing`] decides them. Unpacking never follows a symlink out of the target.

use std::io::{IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use base64::Engine as _;
use bytes::Bytes;
use caisson_api::PathStatHeader;
use http::Method;
use serde_json::Value;
use tokio::sync::mpsc;

use super::path;
use crate::cli::command::{COMMAND, Command, Failure, Operands, Outcome, go_io_error};
use crate::cli::flags::{Flag, Kind, Parsed, flag};
use crate::cli::session::Session;
use crate::cli::upload::Chunks;
use crate::cli::{output, units};
use crate::client::{self, Client};

const FLAGS: &[Flag] = &[
    flag(
        "a",
        "archive",
        Kind::Bool,
        "Archive mode (copy all uid/gid information)",
    ),
    flag(
        "L",
        "follow-link",
        Kind::Bool,
        "Always follow symbol link in SRC_PATH",
    ),
    flag(
        "q",
        "quiet",
        Kind::Bool,
        "Suppress progress output during copy. Progress output is automatically suppressed if no terminal is attached",
    ),
];

/// `cp`.
pub const COMMANDS: &[Command] = &[Command {
    paths: &["cp", "container cp"],
    usage: "[OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n[OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH",
    about: "Copy files/folders between a container and the local filesystem",
    details: "Use '-' as the source to read a tar archive from stdin\nand extract it to a directory destination in a container.\nUse '-' as the destination to stream a tar archive of a\ncontainer source to stdout.",
    examples: &[
        "cp web:/etc/nginx ./nginx",
        "cp ./index.html web:/usr/share/nginx/html/",
        "cp web:/var/log - | tar -t",
    ],
    flags: &[FLAGS],
    operands: Operands::Exactly(2),
    run: |s, p| Box::pin(cp(s, p)),
    ..COMMAND
}];

/// Splits `container:path`; a path that begins with `/` or `.` is never a container's.
fn side(argument: &str) -> (Option<&str>, &str) {
    if argument.starts_with('/') || argument.starts_with('.') {
        return (None, argument);
    }
    match argument.split_once(':') {
        Some((container, path)) if !container.contains('/') => (Some(container), path),
        _ => (None, argument),
    }
}

/// Whether text asks for a directory: `x/`, `x/.`, `.`.
fn asserts_directory(text: &str) -> bool {
    text.ends_with('/') || text.ends_with("/.") || text == "."
}

/// `x/.` copies what is in `x`, not `x`.
fn copies_contents(text: &str) -> bool {
    text.ends_with("/.") || text == "."
}

fn base_name(text: &str) -> String {
    let trimmed = text.trim_end_matches("/.").trim_end_matches('/');
    Path::new(trimmed)
        .file_name()
        .map_or_else(|| "/".to_owned(), |n| n.to_string_lossy().into_owned())
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A directory.
    Directory,
    /// Anything else.
    File,
}

/// Where a copy lands: the directory to unpack in and what the source's top entry is renamed to.
#[derive(Debug, PartialEq, Eq)]
pub struct Landing {
    /// Directory to unpack in, as typed.
    pub directory: String,
    /// The new name of the top entry; `.` when a directory's contents are copied.
    pub name: String,
}

/// `cp -a`'s rules.
pub fn landing(
    source: &str,
    source_is_directory: bool,
    destination: &str,
    found: Found,
) -> Result<Landing, String> {
    let parent = || {
        let path = Path::new(destination.trim_end_matches('/'));
        let directory = path
            .parent()
            .map(|p| p.display().to_string())
            .filter(|p| !p.is_empty());
        directory.unwrap_or_else(|| {
            if destination.starts_with('/') {
                "/".to_owned()
            } else {
                ".".to_owned()
            }
        })
    };
    match (source_is_directory, found) {
        (true, Found::File) => Err("cannot copy directory".to_owned()),
        (_, Found::Directory) if copies_contents(source) && source_is_directory => Ok(Landing {
            directory: destination.to_owned(),
            name: ".".to_owned(),
        }),
        (_, Found::Directory) => Ok(Landing {
            directory: destination.to_owned(),
            name: base_name(source),
        }),
        (false, Found::Nothing) if asserts_directory(destination) => {
            Err("no such directory".to_owned())
        }
        (false, Found::File) if destination.ends_with('/') => {
            Err(format!("{destination:?} is not a directory"))
        }
        (true | false, Found::Nothing) | (false, Found::File) => Ok(Landing {
            directory: parent(),
            name: base_name(destination),
        }),
    }
}

async fn cp(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let client = session.client()?;
    let (from, to) = (&parsed.operands[0], &parsed.operands[1]);
    let ((source_container, source), (target_container, target)) = (side(from), side(to));
    if from == "-" && to == "-" || source.is_empty() {
        return Err(if source.is_empty() {
            "source can not be empty".into()
        } else {
            "must specify at least one container source".into()
        });
    }
    if target.is_empty() {
        return Err("destination can not be empty".into());
    }
    let say = |bytes: u64, place: &str| {
        if !parsed.flag("quiet") && std::io::stderr().is_terminal() {
            output::complain(format!(
                "Successfully copied {} to {place}",
                units::human_size_digits(bytes as f64, 3)
            ));
        }
    };
    match (source_container, target_container) {
        (Some(container), None) => {
            let bytes = copy_out(client, container, source, target, &parsed).await?;
            if target != "-" {
                say(bytes, &absolute(target).display().to_string());
            }
            Ok(0)
        }
        (None, Some(container)) => {
            let bytes = copy_in(client, source, container, target, &parsed).await?;
            if source != "-" {
                say(bytes, to);
            }
            Ok(0)
        }
        (Some(_), Some(_)) => Err("copying between containers is not supported".into()),
        (None, None) => Err("must specify at least one container source".into()),
    }
}

fn absolute(text: &str) -> PathBuf {
    std::path::absolute(text).unwrap_or_else(|_| PathBuf::from(text))
}

const GO_MODE_DIR: u32 = 1 << 31;
const GO_MODE_SYMLINK: u32 = 1 << 27;

async fn stat(client: &Client, container: &str, at: &str) -> client::Result<PathStatHeader> {
    let response = client
        .send::<Value>(
            Method::HEAD,
            path(container, "/archive").with("path", at),
            None,
        )
        .await?;
    decode_stat(&response)
}

fn decode_stat<B>(response: &http::Response<B>) -> client::Result<PathStatHeader> {
    let header = response
        .headers()
        .get("X-Docker-Container-Path-Stat")
        .and_then(|h| h.to_str().ok())
        .unwrap_or_default();
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(header)
        .map_err(|_| {
            client::Error::Answer("the daemon did not say what is at the path".to_owned())
        })?;
    caisson_api::from_json(&bytes).map_err(|e| client::Error::Answer(e.to_string()))
}

/// Resolves one path against the directory of another, textually, as Docker does for symlinks it follows.
fn join_link(at: &str, target: &str) -> String {
    if target.starts_with('/') {
        return target.to_owned();
    }
    Path::new(at)
        .parent()
        .unwrap_or_else(|| Path::new("/"))
        .join(target)
        .display()
        .to_string()
}

async fn copy_out(
    client: &Client,
    container: &str,
    source: &str,
    target: &str,
    parsed: &Parsed,
) -> Result<u64, Failure> {
    let mut source = source.to_owned();
    if parsed.flag("follow-link")
        && let Ok(found) = stat(client, container, &source).await
        && found.mode & GO_MODE_SYMLINK != 0
    {
        source = join_link(&source, &found.link_target);
    }
    let response = client
        .send::<Value>(
            Method::GET,
            path(container, "/archive").with("path", &source),
            None,
        )
        .await?;
    let found = decode_stat(&response)?;
    let body = response.into_body();
    if target == "-" {
        if std::io::stdout().is_terminal() {
            return Err("cowardly refusing to copy to a terminal".into());
        }
        return crate::cli::download::save(body, "").await.map(|_| 0);
    }
    let is_directory = found.mode & GO_MODE_DIR != 0;
    let here = match std::fs::metadata(target) {
        Ok(m) if m.is_dir() => Found::Directory,
        Ok(_) => Found::File,
        Err(_) => Found::Nothing,
    };
    let landing = landing(&source, is_directory, target, here)?;
    let directory = PathBuf::from(&landing.directory);
    if !directory.is_dir() {
        let shown = absolute(&landing.directory);
        return Err(format!(
            "invalid output path: directory {:?} does not exist",
            shown.display().to_string()
        )
        .into());
    }
    let keep_owner = parsed.flag("archive");
    let top = found.name.clone();
    let (sender, receiver) = mpsc::channel::<Result<Bytes, String>>(16);
    let unpacking = tokio::task::spawn_blocking(move || {
        unpack(
            ChannelReader::new(receiver),
            &directory,
            &top,
            &landing.name,
            keep_owner,
        )
    });
    let mut body = body;
    loop {
        match client::next_chunk(&mut body).await {
            Ok(Some(chunk)) => {
                if sender.send(Ok(chunk)).await.is_err() {
                    break;
                }
            }
            Ok(None) => break,
            Err(e) => {
                // The receiver reports it.
                let _ = sender.send(Err(e.to_string())).await;
                break;
            }
        }
    }
    drop(sender);
    unpacking
        .await
        .map_err(|e| Failure::new(e.to_string()))?
        .map_err(Failure::new)
}

/// A blocking reader fed from async code.
struct ChannelReader {
    chunks: mpsc::Receiver<Result<Bytes, String>>,
    current: Bytes,
}

impl ChannelReader {
    fn new(chunks: mpsc::Receiver<Result<Bytes, String>>) -> Self {
        ChannelReader {
            chunks,
            current: Bytes::new(),
        }
    }
}

impl Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(Ok(chunk)) => self.current = chunk,
                Some(Err(e)) => return Err(std::io::Error::other(e)),
                None => return Ok(0),
            }
        }
        let n = buffer.len().min(self.current.len());
        buffer[..n].copy_from_slice(&self.current.split_to(n));
        Ok(n)
    }
}

/// An entry's place below the target: the top component renamed, nothing that climbs.
fn renamed(entry: &Path, top: &str, name: &str) -> Option<PathBuf> {
    let mut parts = Vec::new();
    for component in entry.components() {
        match component {
            std::path::Component::Normal(part) => parts.push(part.to_owned()),
            std::path::Component::CurDir | std::path::Component::RootDir => {}
            _ => return None,
        }
    }
    let rest = match parts.first() {
        Some(first) if *first == *std::ffi::OsStr::new(top) => &parts[1..],
        // A source of `/` has no name of its own in the archive.
        _ => &parts[..],
    };
    let mut out = if name == "." {
        PathBuf::new()
    } else {
        PathBuf::from(name)
    };
    out.extend(rest);
    Some(if out.as_os_str().is_empty() {
        PathBuf::from(".")
    } else {
        out
    })
}

/// Unpacks beneath `directory`; every path is opened relative to it and may not leave it.
fn unpack(
    input: impl Read,
    directory: &Path,
    top: &str,
    name: &str,
    keep_owner: bool,
) -> Result<u64, String> {
    let mut archive = tar::Archive::new(input);
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    archive.set_preserve_ownerships(keep_owner && nix::unistd::geteuid().is_root());
    archive.set_overwrite(true);
    let root = directory
        .canonicalize()
        .map_err(|e| format!("{}: {}", directory.display(), go_io_error(&e)))?;
    let mut bytes = 0;
    let mut directories = Vec::new();
    for entry in archive.entries().map_err(|e| e.to_string())? {
        let mut entry = entry.map_err(|e| e.to_string())?;
        bytes += entry.size();
        let original = entry.path().map_err(|e| e.to_string())?.into_owned();
        let place = renamed(&original, top, name)
            .ok_or_else(|| format!("refusing a path that climbs: {}", original.display()))?;
        let parent = place.parent().unwrap_or_else(|| Path::new(""));
        inside(&root, parent)?;
        let full = root.join(&place);
        let failed = |e: std::io::Error| format!("{}: {e}", full.display());
        match entry.header().entry_type() {
            tar::EntryType::Link => {
                let link = entry
                    .link_name()
                    .map_err(failed)?
                    .ok_or("a hard link without a target")?;
                let linked = renamed(&link, top, name)
                    .ok_or_else(|| format!("refusing a link that climbs: {}", link.display()))?;
                inside(&root, linked.parent().unwrap_or_else(|| Path::new("")))?;
                // A former file of that name gives way, as with cp.
                let _ = std::fs::remove_file(&full);
                std::fs::hard_link(root.join(&linked), &full).map_err(failed)?;
            }
            tar::EntryType::Directory => {
                if std::fs::symlink_metadata(&full).is_ok_and(|m| !m.is_dir()) {
                    std::fs::remove_file(&full).map_err(failed)?;
                }
                std::fs::create_dir_all(&full).map_err(failed)?;
                directories.push((
                    full.clone(),
                    entry.header().mode().unwrap_or(0o755),
                    entry.header().mtime().unwrap_or(0),
                ));
                if keep_owner && nix::unistd::geteuid().is_root() {
                    let (uid, gid) = (
                        entry.header().uid().unwrap_or(0) as u32,
                        entry.header().gid().unwrap_or(0) as u32,
                    );
                    std::os::unix::fs::chown(&full, Some(uid), Some(gid)).map_err(failed)?;
                }
            }
            _ => {
                if std::fs::symlink_metadata(&full).is_ok_and(|m| !m.is_dir()) {
                    std::fs::remove_file(&full).map_err(failed)?;
                }
                entry.unpack(&full).map_err(failed)?;
            }
        }
    }
    // Modes and times of directories last: a read-only one must first be filled.
    for (path, mode, mtime) in directories.into_iter().rev() {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
            .map_err(|e| e.to_string())?;
        let since = std::time::Duration::from_secs(mtime);
        // an archive may say what is no time
        let Some(time) = std::time::UNIX_EPOCH.checked_add(since) else {
            continue;
        };
        std::fs::File::open(&path)
            .and_then(|f| f.set_modified(time))
            .map_err(|e| e.to_string())?;
    }
    Ok(bytes)
}

/// Refuses a parent that leads out of `root` by a symlink.
fn inside(root: &Path, parent: &Path) -> Result<(), String> {
    use rustix::fs::{Mode, OFlags, ResolveFlags};
    if parent.as_os_str().is_empty() {
        return Ok(());
    }
    let directory = std::fs::File::open(root).map_err(|e| e.to_string())?;
    rustix::fs::openat2(
        directory.as_fd(),
        parent,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
    )
    .map(|_| ())
    .map_err(|e| {
        format!(
            "{} does not stay beneath {}: {e}",
            parent.display(),
            root.display()
        )
    })
}

async fn copy_in(
    client: &Client,
    source: &str,
    container: &str,
    target: &str,
    parsed: &Parsed,
) -> Result<u64, Failure> {
    let mut target = target.to_owned();
    let mut found = match stat(client, container, &target).await {
        Ok(found) => Some(found),
        Err(e) if e.is_not_found() && !e.to_string().contains("No such container") => None,
        Err(e) => return Err(e.into()),
    };
    if let Some(link) = found.clone().filter(|f| f.mode & GO_MODE_SYMLINK != 0) {
        target = join_link(&target, &link.link_target);
        found = stat(client, container, &target).await.ok();
    }
    let there = match &found {
        Some(f) if f.mode & GO_MODE_DIR != 0 => Found::Directory,
        Some(_) => Found::File,
        None => Found::Nothing,
    };
    let (sender, receiver) = mpsc::channel::<std::io::Result<Bytes>>(16);
    let (directory, packing) = if source == "-" {
        if there != Found::Directory {
            return Err(format!("destination \"{container}:{target}\" must be a directory").into());
        }
        let packing = tokio::task::spawn_blocking(move || forward_stdin(&sender));
        (target, packing)
    } else {
        let follow = parsed.flag("follow-link") || source.ends_with('/');
        let metadata = if follow {
            std::fs::metadata(source)
        } else {
            std::fs::symlink_metadata(source)
        };
        let metadata = metadata.map_err(|e| {
            let shown = absolute(source);
            Failure::new(format!("lstat {}: {}", shown.display(), go_io_error(&e)))
        })?;
        let landing =
            landing(source, metadata.is_dir(), &target, there).map_err(|e| match e.as_str() {
                "cannot copy directory" => "cannot copy directory".to_owned(),
                _ => e,
            })?;
        let source = source.to_owned();
        let name = landing.name;
        let packing = tokio::task::spawn_blocking(move || pack(&source, &name, follow, &sender));
        (landing.directory, packing)
    };
    let mut request = path(container, "/archive")
        .with("path", &directory)
        .with("noOverwriteDirNonDir", "true");
    if parsed.flag("archive") {
        request = request.with("copyUIDGID", "true");
    }
    let sent = client
        .upload(
            Method::PUT,
            request,
            "application/x-tar",
            Chunks::new(receiver),
        )
        .await;
    let packed = packing.await.map_err(|e| Failure::new(e.to_string()))?;
    match (sent, packed) {
        (_, Err(e)) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(e.to_string()))
        }
        (Err(e), _) => Err(e.into()),
        (Ok(_), packed) => Ok(packed.unwrap_or(0)),
    }
}

/// A blocking writer that feeds async code.
struct ChannelWriter<'a> {
    chunks: &'a mpsc::Sender<std::io::Result<Bytes>>,
    bytes: u64,
}

impl Write for ChannelWriter<'_> {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.bytes += data.len() as u64;
        self.chunks
            .blocking_send(Ok(Bytes::copy_from_slice(data)))
            .map_err(|_| std::io::ErrorKind::BrokenPipe)?;
        Ok(data.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn forward_stdin(sender: &mpsc::Sender<std::io::Result<Bytes>>) -> std::io::Result<u64> {
    let mut writer = ChannelWriter {
        chunks: sender,
        bytes: 0,
    };
    let mut buffered = std::io::BufWriter::with_capacity(64 * 1024, &mut writer);
    std::io::copy(&mut std::io::stdin().lock(), &mut buffered)?;
    buffered.flush()?;
    drop(buffered);
    Ok(writer.bytes)
}

/// Packs a file or tree under its new name; an error ends the upload too.
fn pack(
    source: &str,
    name: &str,
    follow: bool,
    sender: &mpsc::Sender<std::io::Result<Bytes>>,
) -> std::io::Result<u64> {
    let mut writer = ChannelWriter {
        chunks: sender,
        bytes: 0,
    };
    let result = (|| {
        let buffered = std::io::BufWriter::with_capacity(64 * 1024, &mut writer);
        let mut builder = tar::Builder::new(buffered);
        builder.follow_symlinks(false);
        let path = Path::new(source);
        let metadata = if follow {
            std::fs::metadata(path)?
        } else {
            std::fs::symlink_metadata(path)?
        };
        if metadata.is_dir() {
            builder.append_dir_all(name, path)?;
        } else if follow {
            builder.append_file(name, &mut std::fs::File::open(path)?)?;
        } else {
            builder.append_path_with_name(path, name)?;
        }
        builder.into_inner()?.flush()
    })();
    if let Err(e) = &result {
        // Breaks the request off instead of ending it as if it were whole.
        let _ = sender.blocking_send(Err(std::io::Error::new(e.kind(), e.to_string())));
    }
    result.map(|()| writer.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_name_a_container_or_a_path() {
        assert_eq!(side("c:/a"), (Some("c"), "/a"));
        assert_eq!(side("/a:b"), (None, "/a:b"));
        assert_eq!(side("./a:b"), (None, "./a:b"));
        assert_eq!(side("a"), (None, "a"));
        assert_eq!(side("a/b:c"), (None, "a/b:c"));
    }

    #[test]
    fn things_land_where_cp_puts_them() {
        let l = |d: &str, n: &str| {
            Ok(Landing {
                directory: d.into(),
                name: n.into(),
            })
        };
        for (source, is_dir, destination, found, expected) in [
            ("/etc/passwd", false, "out", Found::Nothing, l(".", "out")),
            (
                "/etc/passwd",
                false,
                "/tmp",
                Found::Directory,
                l("/tmp", "passwd"),
            ),
            (
                "/etc/passwd",
                false,
                "/tmp/old",
                Found::File,
                l("/tmp", "old"),
            ),
            ("/etc", true, "/tmp", Found::Directory, l("/tmp", "etc")),
            ("/etc/.", true, "/tmp", Found::Directory, l("/tmp", ".")),
            ("/etc/", true, "/tmp/new", Found::Nothing, l("/tmp", "new")),
            ("/etc/.", true, "/tmp/new", Found::Nothing, l("/tmp", "new")),
            ("f", false, "/x", Found::Nothing, l("/", "x")),
        ] {
            assert_eq!(
                landing(source, is_dir, destination, found),
                expected,
                "{source} {destination}"
            );
        }
        assert!(landing("/etc", true, "/tmp/f", Found::File).is_err());
        assert!(landing("/f", false, "/no/", Found::Nothing).is_err());
    }

    #[test]
    fn entries_are_renamed_and_never_climb() {
        let r = |e: &str, top: &str, name: &str| renamed(Path::new(e), top, name);
        assert_eq!(r("etc/passwd", "etc", "new"), Some("new/passwd".into()));
        assert_eq!(r("etc/", "etc", "."), Some(".".into()));
        assert_eq!(r("passwd", "passwd", "p2"), Some("p2".into()));
        assert_eq!(r("/bin/sh", "/", "root"), Some("root/bin/sh".into()));
        assert_eq!(r("../x", "x", "y"), None);
    }

    #[test]
    fn a_directory_may_say_that_it_is_of_any_time() {
        let target = tempfile::tempdir().expect("directory");
        let mut builder = tar::Builder::new(Vec::new());
        let mut directory = tar::Header::new_gnu();
        directory.set_entry_type(tar::EntryType::Directory);
        directory.set_size(0);
        directory.set_mode(0o755);
        directory.set_mtime(u64::MAX);
        builder
            .append_data(&mut directory, "top/", &b""[..])
            .expect("appended");
        let bytes = builder.into_inner().expect("finished");
        unpack(&bytes[..], target.path(), "top", "top", false).expect("unpacked");
        assert!(target.path().join("top").is_dir());
    }

    #[test]
    fn a_symlink_in_the_archive_does_not_lead_out_of_the_target() {
        let outside = tempfile::tempdir().expect("directory");
        let target = tempfile::tempdir().expect("directory");
        let mut builder = tar::Builder::new(Vec::new());
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        builder
            .append_link(&mut link, "top/link", outside.path())
            .expect("appended");
        let mut file = tar::Header::new_gnu();
        file.set_size(1);
        file.set_mode(0o644);
        builder
            .append_data(&mut file, "top/link/evil", &b"x"[..])
            .expect("appended");
        let bytes = builder.into_inner().expect("finished");
        std::fs::create_dir(target.path().join("top")).expect("created");
        assert!(unpack(&bytes[..], target.path(), "top", "top", false).is_err());
        assert!(
            std::fs::read_dir(outside.path())
                .expect("readable")
                .next()
                .is_none()
        );
    }
}
