//! Where the kernel's source comes from.
//!
//! In this order: `CAISSON_KERNEL_SOURCE` (any linux-6.1.y tarball, for machines without a network), Debian's
//! `linux-source-6.1` when it is installed, the same package through apt (whose signature chain vouches for it; its version
//! moves with Debian's security updates), and elsewhere kernel.org's tarball, which must be the pinned one.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

const INSTALLED: &str = "/usr/src/linux-source-6.1.tar.xz";

/// Debian's linux-source-6.1 6.1.192-2, the version that the measurements in docs/ were made with.
pub const MEASURED_SHA256: &str =
    "4d415b3d364834fd818270e88813e90323bbfce4f519a0e6bd4940ddcd7df693";

/// Who vouches for a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The user: `CAISSON_KERNEL_SOURCE`.
    Given,
    /// Debian's package.
    Debian,
}

/// A tarball with a kernel's source.
#[derive(Clone, Debug)]
pub struct Source {
    /// The tarball.
    pub tarball: PathBuf,
    /// Its sha256, in hexadecimal.
    pub sha256: String,
    /// Who vouches for it.
    pub origin: Origin,
}

impl Source {
    /// Finds the source, fetching Debian's package into `download_dir` when nothing else is there.
    pub fn locate(download_dir: &Path) -> Result<Source> {
        if let Some(given) = std::env::var_os("CAISSON_KERNEL_SOURCE") {
            return Source::of(PathBuf::from(given), Origin::Given);
        }
        let fetched = download_dir.join("linux-source-6.1.tar.xz");
        for tarball in [Path::new(INSTALLED), &fetched] {
            if tarball.exists() {
                return Source::of(tarball.into(), Origin::Debian);
            }
        }
        fetch(download_dir, &fetched)?;
        Source::of(fetched, Origin::Debian)
    }

    /// Whether this is the very source that the published measurements were made with.
    pub fn is_measured(&self) -> bool {
        self.sha256 == MEASURED_SHA256
    }

    fn of(tarball: PathBuf, origin: Origin) -> Result<Source> {
        let sha256 = sha256(&tarball)?;
        Ok(Source {
            tarball,
            sha256,
            origin,
        })
    }
}

fn fetch(dir: &Path, tarball: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let quiet = |command: &mut Command| -> Result<()> {
        let status = command
            .current_dir(dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        status
            .ok()
            .filter(|s| s.success())
            .map(drop)
            .ok_or(Error::NoSource)
    };
    quiet(Command::new("apt-get").args(["download", "linux-source-6.1"]))?;
    let packages = std::fs::read_dir(dir).map_err(Error::io(dir))?;
    let deb = packages
        .flatten()
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "deb"))
        .ok_or(Error::NoSource)?;
    quiet(Command::new("dpkg-deb").arg("-x").arg(&deb).arg("unpacked"))?;
    std::fs::rename(
        dir.join("unpacked").join(INSTALLED.trim_start_matches('/')),
        tarball,
    )
    .map_err(Error::io(tarball))?;
    std::fs::remove_file(&deb).map_err(Error::io(&deb))?;
    std::fs::remove_dir_all(dir.join("unpacked")).map_err(Error::io(dir))
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(Error::io(path))? {
            0 => return Ok(hex::encode(hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}
