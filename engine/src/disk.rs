//! A container's root file system in the form that its isolation wants, and the disk that it may have of its own.
//!
//! ```text
//! overlay   image layers, init layer │ DIR/upper, DIR/work     directories that the host stacks      container
//! block     image's block form       │ DIR/disk.ext4           devices that the guest stacks         vm
//! ```
//!
//! The block form is made of the same layers, the init layer included, so that both show the same files. The disk is sparse:
//! it takes what was written to it, and at most its size (`--storage-opt size=`).
//!
//! Must not know: what is on a disk.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use caisson_api as api;
use caisson_blockfs::ext4;
use caisson_runtime::{Isolation, Rootfs, RootfsForm};

use crate::Inner;
use crate::container::Dir;
use crate::db::Durability;
use crate::error::{Error, Result};
use crate::records::View;
use crate::size::parse_bytes;

/// Disks are whole blocks.
const BLOCK_BYTES: u64 = 4096;
/// Shown by `lsblk -f` and `dumpe2fs`.
const LABEL: &str = "caisson";

/// What an isolation wants; as it usually is where this host has no runtime for it.
pub(crate) fn form(inner: &Inner, isolation: Isolation) -> RootfsForm {
    match (inner.runtimes.for_recovery(isolation), isolation) {
        (Some(runtime), _) => runtime.capabilities().rootfs,
        (None, Isolation::Container) => RootfsForm::Overlay,
        (None, Isolation::Vm) => RootfsForm::Block,
    }
}

/// How large the container's own disk is to be: `None` where it has none. Refuses what cannot be.
pub(crate) fn size_bytes(
    form: RootfsForm,
    host: &api::HostConfig,
    default_bytes: u64,
) -> Result<Option<u64>> {
    let mut size = default_bytes;
    for (key, value) in host.storage_opt.iter().flatten() {
        if form == RootfsForm::Overlay {
            return Err(Error::invalid(format!(
                "--storage-opt {key}: the size of a container's file system cannot be limited with overlay directories; put \
                 --data-root on a file system of its own to bound all of them, or use --isolation=vm"
            )));
        }
        if key != "size" {
            return Err(Error::invalid(format!(
                "--storage-opt {key}: unknown: only size is known"
            )));
        }
        size = parse_bytes(value).ok_or_else(|| {
            Error::invalid(format!(
                "--storage-opt size={value}: not a size: write 512m, 20g, …"
            ))
        })?;
    }
    if form == RootfsForm::Overlay {
        return Ok(None);
    }
    let size = size.checked_next_multiple_of(BLOCK_BYTES).unwrap_or(size);
    ext4::stored_bytes(size).map_err(|e| {
        Error::invalid(format!(
            "{e} (--storage-opt size= or the daemon's default-disk-size)"
        ))
    })?;
    Ok(Some(size))
}

/// Makes the container's disk. Blocks.
pub(crate) fn make(dir: &Dir, size_bytes: u64, durability: Durability) -> Result<()> {
    let path = dir.disk();
    let options = ext4::Options {
        label: LABEL.into(),
        ..ext4::Options::new(size_bytes)
    };
    let made = match durability {
        Durability::Flushed => ext4::create(&path, &options),
        // What vanishes with its container need not reach the disk first.
        Durability::Written => std::fs::File::create_new(&path)
            .map_err(|source| caisson_blockfs::Error::Io {
                action: "create",
                path,
                source,
            })
            .and_then(|file| ext4::format(&file, &options)),
    };
    made.map(drop).map_err(|e| {
        let message = format!("cannot make the container's disk: {e}");
        match e.kind() {
            caisson_blockfs::ErrorKind::InvalidInput => Error::invalid(message),
            _ => Error::internal(message),
        }
    })
}

/// The root file system of a container, to be handed to its runtime.
pub(crate) async fn rootfs(inner: &Inner, view: &View) -> Result<Rootfs> {
    let dir = Dir::new(&inner.config.data_root, &view.id);
    let layers = layers(inner, view);
    if let Some(layer) = layers.iter().find(|layer| !layer.is_dir()) {
        return Err(Error::internal(format!(
            "a layer of the container's image is missing: {}: load or pull the image {} again",
            layer.display(),
            view.definition.config.image
        )));
    }
    match form(inner, view.definition.isolation) {
        RootfsForm::Overlay => Ok(Rootfs::Overlay {
            lower: layers,
            upper: dir.upper(),
            work: dir.work(),
        }),
        RootfsForm::Block => {
            let upper = dir.disk();
            if !upper.is_file() {
                return Err(Error::internal(format!(
                    "the disk of the container is missing: {}: create the container again",
                    upper.display()
                )));
            }
            let lower = inner
                .image_source
                .block_form(&view.definition.image_id, layers)
                .await?;
            Ok(Rootfs::Block { lower, upper })
        }
    }
}

/// The directories that a container's root file system is stacked on, topmost first.
pub(crate) fn layers(inner: &Inner, view: &View) -> Vec<PathBuf> {
    let layers = view.definition.layers.iter();
    layers.map(|l| inner.config.data_root.join(l)).collect()
}

/// What a disk stores beyond an empty one: files, the journal, what was deleted and not given back. Blocks.
pub(crate) fn written_bytes(disk: &Path) -> u64 {
    let Ok(meta) = std::fs::metadata(disk) else {
        return 0;
    };
    let empty = ext4::stored_bytes(meta.len()).unwrap_or(0);
    (meta.blocks() * 512).saturating_sub(empty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn asked(form: RootfsForm, options: &[(&str, &str)]) -> Result<Option<u64>> {
        let options = options
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect();
        let host = api::HostConfig {
            storage_opt: Some(options),
            ..api::HostConfig::default()
        };
        size_bytes(form, &host, 10 << 30)
    }

    #[test]
    fn sizes_are_for_disks_only() {
        use RootfsForm::{Block, Overlay};
        assert_eq!(asked(Overlay, &[]).unwrap(), None);
        assert_eq!(asked(Block, &[]).unwrap(), Some(10 << 30));
        assert_eq!(asked(Block, &[("size", "2g")]).unwrap(), Some(2 << 30));
        assert_eq!(asked(Block, &[("size", "1T")]).unwrap(), Some(1 << 40));
        // Rounded up to whole blocks.
        assert_eq!(
            asked(Block, &[("size", "20000001")]).unwrap(),
            Some(20000768)
        );
        for (form, key, value) in [
            (Overlay, "size", "2g"),
            (Block, "size", "much"),
            (Block, "size", ""),
            (Block, "size", "1m"),
            (Block, "size", "99999t"),
            (Block, "size", "18446744073709551615"),
            (Block, "inodes", "2"),
        ] {
            let error = asked(form, &[(key, value)]).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid, "{key}={value}: {error}");
        }
    }
}
