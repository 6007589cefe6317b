//! What the host gives a guest before its container is made: the time, randomness, shared directories, small files.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path};
use std::time::{SystemTime, UNIX_EPOCH};

use caisson_protocol::{Error, GuestFile, Share};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

/// Sets the guest's clock.
pub fn set_clock(now: SystemTime) -> Result<(), Error> {
    let since = now
        .duration_since(UNIX_EPOCH)
        .map_err(|_| Error::invalid("the host's clock stands before 1970"))?;
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(since))
        .map_err(|e| Error::failed("cannot set the guest's clock", e))
}

/// Makes the guest's random numbers its own.
pub fn add_entropy(bytes: &[u8]) -> Result<(), Error> {
    if bytes.is_empty() {
        return Ok(());
    }
    let failed = |e: std::io::Error| Error::failed("cannot seed the guest's random numbers", e);
    let random = File::open("/dev/urandom").map_err(failed)?;
    crate::sys::credit_entropy(random.as_fd(), bytes).map_err(|e| failed(e.into()))
}

/// Mounts a virtio-fs share.
pub fn mount_share(share: &Share) -> Result<(), Error> {
    let Share {
        tag,
        target,
        read_only,
    } = share;
    check_path(target)?;
    fs::create_dir_all(target)
        .map_err(|e| Error::failed(format!("cannot make {}", target.display()), e))?;
    let flags = if *read_only {
        MsFlags::MS_RDONLY
    } else {
        MsFlags::empty()
    };
    mount(
        Some(tag.as_str()),
        target,
        Some("virtiofs"),
        flags,
        None::<&str>,
    )
    .map_err(|e| {
        let why = match e {
            Errno::EINVAL => format!("the guest has no virtio-fs device with the tag {tag:?}"),
            Errno::ENODEV => "this guest kernel has no virtio-fs".into(),
            other => other.to_string(),
        };
        Error::internal(format!(
            "cannot mount a directory of the host at {}: {why}",
            target.display()
        ))
    })
}

/// Writes a small file of the host.
pub fn write_file(file: &GuestFile) -> Result<(), Error> {
    let GuestFile {
        path,
        mode,
        content,
    } = file;
    check_path(path)?;
    let failed = |e: std::io::Error| Error::failed(format!("cannot write {}", path.display()), e);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let mut new = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode & 0o7777)
        .open(path)
        .map_err(failed)?;
    new.write_all(content).map_err(failed)?;
    // What the umask took.
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode & 0o7777);
    new.set_permissions(permissions).map_err(failed)
}

/// The guest's own files live elsewhere.
fn check_path(path: &Path) -> Result<(), Error> {
    let below_run = path.starts_with("/run")
        && path != Path::new("/run")
        && !path.components().any(|c| c == Component::ParentDir);
    if below_run {
        Ok(())
    } else {
        Err(Error::invalid(format!(
            "{} is not a path below /run",
            path.display()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_shares_stay_below_run() {
        for bad in [
            "/etc/passwd",
            "run/x",
            "/run",
            "/run/../etc",
            "",
            "/runner/x",
        ] {
            assert!(check_path(Path::new(bad)).is_err(), "{bad:?}");
        }
        assert!(check_path(Path::new("/run/caisson/files/hosts")).is_ok());
    }
}
