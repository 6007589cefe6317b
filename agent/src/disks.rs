//! The container's root file system: two disks and the overlay of them.
//!
//! ```text
//!   /run/caisson/image     EROFS, read-only                      ─┐ lower
//!   /run/caisson/scratch   ext4                                   │
//!     ├── upper            what differs from the image           ─┤ upper
//!     └── work                                                   ─┘
//!   /run/caisson/rootfs    the overlay
//! ```

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use caisson_jail::IdMappings;
use caisson_protocol::Error;
use caisson_supervisor::{Mounted, jail_error};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

const IMAGE: &str = "/run/caisson/image";
const SCRATCH: &str = "/run/caisson/scratch";
const ROOTFS: &str = "/run/caisson/rootfs";

/// Deleted files give their space back to the host. The inode tables of a new disk are zeros already.
const SCRATCH_OPTIONS: &str = "discard,noinit_itable";

/// Mounts the two devices and their overlay.
pub fn mount_root(lower: &Path, upper: &Path, maps: Option<&IdMappings>) -> Result<Mounted, Error> {
    mount_device(lower, IMAGE, "erofs", MsFlags::MS_RDONLY, None)?;
    mount_device(
        upper,
        SCRATCH,
        "ext4",
        MsFlags::empty(),
        Some(SCRATCH_OPTIONS),
    )?;
    let (changes, work) = (
        Path::new(SCRATCH).join("upper"),
        Path::new(SCRATCH).join("work"),
    );
    make_upper(&changes)?;
    make_dir(&work)?;
    make_dir(Path::new(ROOTFS))?;
    caisson_jail::mount_overlay(
        &[PathBuf::from(IMAGE)],
        &changes,
        &work,
        Path::new(ROOTFS),
        maps,
    )
    .map_err(jail_error)?;
    Ok(Mounted {
        root: ROOTFS.into(),
        changes: Some(changes),
    })
}

/// Unmounts whatever is mounted; idempotent. What is still in use is written to its disk and let go.
pub fn unmount_root() -> Result<(), Error> {
    for target in [ROOTFS, SCRATCH, IMAGE] {
        unmount(Path::new(target))?;
    }
    Ok(())
}

/// Unmounts all layers at one place.
pub fn unmount(target: &Path) -> Result<(), Error> {
    loop {
        match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(Errno::EBUSY) => {
                tracing::warn!("{} is still in use", target.display());
                if let Ok(open) = fs::File::open(target) {
                    let _ = rustix::fs::syncfs(&open);
                }
                umount2(target, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH).map_err(|e| {
                    Error::failed(format!("cannot unmount {}", target.display()), e)
                })?;
            }
            Err(e) => {
                return Err(Error::failed(
                    format!("cannot unmount {}", target.display()),
                    e,
                ));
            }
        }
    }
}

fn mount_device(
    device: &Path,
    target: &str,
    kind: &str,
    flags: MsFlags,
    options: Option<&str>,
) -> Result<(), Error> {
    let what = format!("cannot mount the disk {} as {kind}", device.display());
    match fs::metadata(device) {
        Ok(found) if found.file_type().is_block_device() => {}
        Ok(_) => return Err(Error::failed(what, "it is not a block device")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::failed(what, "the guest has no such disk"));
        }
        Err(e) => return Err(Error::failed(what, e)),
    }
    make_dir(Path::new(target))?;
    mount(Some(device), target, Some(kind), flags, options).map_err(|e| match e {
        // EFSBADCRC is EBADMSG, EFSCORRUPTED is EUCLEAN.
        Errno::EINVAL | Errno::EBADMSG | Errno::EUCLEAN | Errno::EIO | Errno::EOPNOTSUPP => {
            Error::failed(
                what,
                format!("it does not hold such a file system, or a damaged one ({e})"),
            )
        }
        Errno::ENODEV => Error::failed(what, "this guest kernel does not know it"),
        other => Error::failed(what, other),
    })
}

/// The overlay's root takes owner and mode from the upper directory: those of the image's root.
fn make_upper(upper: &Path) -> Result<(), Error> {
    let step = |e: std::io::Error| Error::failed(format!("cannot make {}", upper.display()), e);
    match fs::create_dir(upper) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        Err(e) => return Err(step(e)),
    }
    let image = fs::metadata(IMAGE).map_err(step)?;
    std::os::unix::fs::chown(upper, Some(image.uid()), Some(image.gid())).map_err(step)?;
    fs::set_permissions(upper, fs::Permissions::from_mode(image.mode() & 0o7777)).map_err(step)
}

fn make_dir(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path)
        .map_err(|e| Error::failed(format!("cannot make {}", path.display()), e))
}
