//! Reading single files of a container's root file system without mounting it: the topmost layer that has it wins.
//!
//! Only ever beneath a layer's own directory, never through a symbolic link: what needs one is treated as absent.
//!
//! Must not know: what the files say.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use crate::error::{Error, Result};
use crate::spec::accounts::Accounts;

const LARGEST_BYTES: u64 = 4 << 20;

/// The passwd and group files. Blocks.
pub(crate) fn accounts(upper: &Path, lower: &[PathBuf]) -> Result<Accounts> {
    let read = |name: &str| {
        read_etc(upper, lower, name)
            .map_err(|e| Error::io(format!("cannot read /etc/{name} of the container"), &e))
    };
    Ok(Accounts {
        passwd: read("passwd")?,
        group: read("group")?,
    })
}

enum Found {
    Text(String),
    /// Deleted here, or hidden: lower layers do not count.
    Hidden,
    NotHere,
}

fn read_etc(upper: &Path, lower: &[PathBuf], name: &str) -> std::io::Result<String> {
    for layer in std::iter::once(upper).chain(lower.iter().map(PathBuf::as_path)) {
        match look(layer, name)? {
            Found::Text(text) => return Ok(text),
            Found::Hidden => return Ok(String::new()),
            Found::NotHere => {}
        }
    }
    Ok(String::new())
}

fn look(layer: &Path, name: &str) -> std::io::Result<Found> {
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let root = match rustix::fs::open(
        layer,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(root) => root,
        Err(rustix::io::Errno::NOENT) => return Ok(Found::NotHere),
        Err(e) => return Err(e.into()),
    };
    let open = |at: &OwnedFd, path: &str, flags: OFlags| {
        rustix::fs::openat2(at, path, flags | OFlags::CLOEXEC, Mode::empty(), beneath)
    };
    let etc = match open(&root, "etc", OFlags::PATH | OFlags::NOFOLLOW) {
        Ok(etc) => etc,
        Err(rustix::io::Errno::NOENT) => return Ok(Found::NotHere),
        Err(rustix::io::Errno::LOOP) => return Ok(Found::Hidden),
        Err(e) => return Err(e.into()),
    };
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&etc)?.st_mode);
    if kind != FileType::Directory {
        return Ok(Found::Hidden);
    }
    match open(
        &etc,
        name,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
    ) {
        Ok(file) => {
            let stat = rustix::fs::fstat(&file)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Ok(Found::Hidden);
            }
            let mut bytes = Vec::new();
            File::from(file)
                .take(LARGEST_BYTES)
                .read_to_end(&mut bytes)?;
            Ok(Found::Text(String::from_utf8_lossy(&bytes).into_owned()))
        }
        // A link, a whiteout (device 0:0 cannot be opened) or another odd thing.
        Err(rustix::io::Errno::LOOP | rustix::io::Errno::NXIO | rustix::io::Errno::NODEV) => {
            Ok(Found::Hidden)
        }
        Err(rustix::io::Errno::NOENT) => {
            let mut value = [0u8; 8];
            let opaque =
                rustix::fs::getxattr(layer.join("etc"), "trusted.overlay.opaque", &mut value)
                    .is_ok_and(|n| n == 1 && value[0] == b'y');
            Ok(if opaque {
                Found::Hidden
            } else {
                Found::NotHere
            })
        }
        Err(e) => Err(e.into()),
    }
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
}
