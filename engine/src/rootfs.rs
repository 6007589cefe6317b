//! Looking at single paths of a container's root file system without mounting it: what overlayfs would show.
//!
//! Only ever beneath a layer's own directory, never through a symbolic link: what needs one is `Other` to us.
//!
//! Must not know: what the files say.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::spec::accounts::Accounts;

const LARGEST_BYTES: u64 = 4 << 20;

/// What is at a path.
pub(crate) enum Seen {
    /// Nothing.
    Missing,
    /// A directory; the attributes that show are those of the topmost layer.
    Directory(Stat),
    /// A regular file, opened `O_PATH`.
    File(OwnedFd),
    /// A link, a device, …
    Other,
}

/// The passwd and group files. Blocks.
pub(crate) fn accounts(upper: &Path, lower: &[PathBuf]) -> Result<Accounts> {
    let stack = open_layers(std::iter::once(upper).chain(lower.iter().map(PathBuf::as_path)))
        .map_err(|e| Error::io("cannot open the container's layers", &e))?;
    let read = |name: &str| {
        read_file(&stack, &["etc", name])
            .map_err(|e| Error::io(format!("cannot read /etc/{name} of the container"), &e))
    };
    Ok(Accounts {
        passwd: read("passwd")?,
        group: read("group")?,
    })
}

/// The layers' directories, topmost first; one that is not there is left out.
pub(crate) fn open_layers<'a>(layers: impl Iterator<Item = &'a Path>) -> io::Result<Vec<OwnedFd>> {
    let mut open = Vec::new();
    for layer in layers {
        match rustix::fs::open(
            layer,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Ok(fd) => open.push(fd),
            Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(open)
}

fn read_file(stack: &[OwnedFd], path: &[&str]) -> io::Result<String> {
    let Seen::File(fd) = look(stack, path)? else {
        return Ok(String::new());
    };
    // The fd is a regular file's, so opening it again by its number cannot block or lead elsewhere.
    let file = File::open(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    let mut bytes = Vec::new();
    file.take(LARGEST_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What overlayfs over these layers would show at a path, given by its components.
pub(crate) fn look(stack: &[OwnedFd], path: &[&str]) -> io::Result<Seen> {
    let mut dirs: Vec<OwnedFd> = Vec::new();
    for (depth, name) in path.iter().enumerate() {
        let above: &[OwnedFd] = if depth == 0 { stack } else { &dirs };
        let mut found = Vec::new();
        for dir in above {
            let Some(fd) = open_in(dir, name)? else {
                continue;
            };
            let stat = rustix::fs::fstat(&fd)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    let opaque = is_opaque(&fd);
                    found.push(fd);
                    if opaque {
                        break;
                    }
                }
                // A whiteout, or a file hidden below a directory.
                FileType::CharacterDevice if stat.st_rdev == 0 => break,
                _ if !found.is_empty() => break,
                FileType::RegularFile if depth + 1 == path.len() => return Ok(Seen::File(fd)),
                _ => return Ok(Seen::Other),
            }
        }
        if found.is_empty() {
            return Ok(Seen::Missing);
        }
        dirs = found;
    }
    match dirs.first() {
        Some(top) => Ok(Seen::Directory(rustix::fs::fstat(top)?)),
        None => Ok(Seen::Missing),
    }
}

fn open_in(dir: &OwnedFd, name: &str) -> io::Result<Option<OwnedFd>> {
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat2(dir, name, flags, Mode::empty(), beneath) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn is_opaque(dir: &OwnedFd) -> bool {
    let mut value = [0u8; 8];
    let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
    rustix::fs::getxattr(path, "trusted.overlay.opaque", &mut value)
        .is_ok_and(|n| n == 1 && value[0] == b'y')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_layer_wins_and_links_do_not_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let (upper, low) = (dir.path().join("upper"), dir.path().join("low"));
        std::fs::create_dir_all(upper.join("etc")).unwrap();
        std::fs::create_dir_all(low.join("etc")).unwrap();
        std::fs::write(low.join("etc/passwd"), "low").unwrap();
        std::fs::write(low.join("etc/group"), "lowgroup").unwrap();
        let read = || accounts(&upper, std::slice::from_ref(&low)).unwrap();
        assert_eq!(
            (read().passwd.as_str(), read().group.as_str()),
            ("low", "lowgroup")
        );
        std::fs::write(upper.join("etc/passwd"), "up").unwrap();
        assert_eq!(read().passwd, "up");
        std::fs::remove_file(upper.join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("/etc/shadow", upper.join("etc/passwd")).unwrap();
        assert_eq!(
            read().passwd,
            "",
            "a link is not followed, and what is below it is hidden"
        );
    }

    #[test]
    fn a_linked_etc_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("etc")).unwrap();
        assert_eq!(
            accounts(Path::new("/nonexistent"), &[dir.path().to_path_buf()])
                .unwrap()
                .passwd,
            ""
        );
    }

    #[test]
    fn a_whiteout_hides_what_is_below() {
        let dir = tempfile::tempdir().unwrap();
        let (upper, low) = (dir.path().join("upper"), dir.path().join("low"));
        std::fs::create_dir_all(upper.join("etc")).unwrap();
        std::fs::create_dir_all(low.join("etc")).unwrap();
        std::fs::write(low.join("etc/passwd"), "low").unwrap();
        let made = rustix::fs::mknodat(
            rustix::fs::CWD,
            upper.join("etc/passwd"),
            FileType::CharacterDevice,
            Mode::empty(),
            rustix::fs::makedev(0, 0),
        );
        if made.is_err() {
            eprintln!("skipped: device nodes cannot be made here");
            return;
        }
        assert_eq!(accounts(&upper, &[low]).unwrap().passwd, "");
    }
}
