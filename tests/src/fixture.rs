//! Images that cases bring along: the default image as a file, the real images made by `cargo xtask images`, and images
//! made of a few entries, good and evil.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::toolbox;

/// The default image as a docker-archive file.
pub fn toolbox_archive() -> PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let bytes = toolbox::find_busybox()
            .and_then(|busybox| toolbox::build(&busybox))
            .unwrap_or_else(|e| panic!("{e}"));
        let path = crate::daemon::test_directory().join(format!(
            "caisson-test-toolbox-{}.tar",
            &sha256(&bytes)[..12]
        ));
        if !path.exists() {
            let partial = path.with_extension(format!("{}.partial", std::process::id()));
            std::fs::write(&partial, bytes).expect("a writable test directory");
            std::fs::rename(&partial, &path).expect("a writable test directory");
        }
        path
    })
    .clone()
}

/// A real image, made by `cargo xtask images`: an archive for `load`, or why there is none.
pub fn real_image(name: &str) -> Result<PathBuf, String> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ is in the workspace");
    let default = workspace.join("target/images");
    let directory = std::env::var_os("CAISSON_TEST_IMAGES").map_or(default, PathBuf::from);
    let path = directory.join(format!("{name}.tar"));
    if path.exists() {
        Ok(path)
    } else {
        Err(format!("no {}: run `cargo xtask images`", path.display()))
    }
}

/// Lower-case hexadecimal SHA-256.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// One entry of a layer.
pub enum Entry<'a> {
    /// A directory.
    Directory(&'a str),
    /// A file and its content.
    File(&'a str, &'a [u8]),
    /// A symbolic link and its target.
    Symlink(&'a str, &'a str),
    /// A hard link and its target.
    Hardlink(&'a str, &'a str),
}

/// A layer. Names are written as they are, `..` and leading slashes included.
pub fn layer(entries: &[Entry]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for entry in entries {
        let (kind, name, target, content): (_, _, _, &[u8]) = match entry {
            Entry::Directory(name) => (tar::EntryType::Directory, name, "", b""),
            Entry::File(name, content) => (tar::EntryType::Regular, name, "", content),
            Entry::Symlink(name, target) => (tar::EntryType::Symlink, name, *target, b""),
            Entry::Hardlink(name, target) => (tar::EntryType::Link, name, *target, b""),
        };
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_767_225_600);
        header.set_size(content.len() as u64);
        let old = header.as_old_mut(); // past the checks of the tar crate, on purpose
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        tar.append(&header, content).expect("memory is writable");
    }
    tar.into_inner().expect("memory is writable")
}

/// A docker-archive with these layers; `corrupt` may change the list of files before it is written.
pub fn docker_archive(
    reference: &str,
    layers: &[Vec<u8>],
    corrupt: impl FnOnce(&mut Vec<(String, Vec<u8>)>),
) -> Vec<u8> {
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|layer| format!("sha256:{}", sha256(layer)))
        .collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string();
    let config_name = format!("{}.json", sha256(config.as_bytes()));
    let names: Vec<String> = (0..layers.len())
        .map(|i| format!("layer{i}/layer.tar"))
        .collect();
    let manifest =
        json!([{"Config": config_name, "RepoTags": [reference], "Layers": names}]).to_string();
    let mut files = vec![
        ("manifest.json".to_string(), manifest.into_bytes()),
        (config_name, config.into_bytes()),
    ];
    files.extend(names.into_iter().zip(layers.iter().cloned()));
    corrupt(&mut files);
    pack(&files)
}

/// The layer of the default image, for images that need a shell.
pub fn toolbox_layer() -> Vec<u8> {
    let bytes = std::fs::read(toolbox_archive()).expect("the default image is readable");
    let mut archive = tar::Archive::new(bytes.as_slice());
    for entry in archive.entries().expect("a tar archive") {
        let mut entry = entry.expect("a tar archive");
        if entry.path().expect("a path").ends_with("layer.tar") {
            let mut layer = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut layer).expect("a tar archive");
            return layer;
        }
    }
    panic!("the default image has no layer")
}

/// A tar archive of plain files.
pub fn pack(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content.as_slice())
            .expect("memory is writable");
    }
    tar.into_inner().expect("memory is writable")
}

/// An OCI image layout with one layer, compressed as the media type says.
pub fn oci_layout(reference: &str, layer: &[u8], compression: Compression) -> Vec<u8> {
    let (blob, media_type) = match compression {
        Compression::Gzip => (gzip(layer), "application/vnd.oci.image.layer.v1.tar+gzip"),
        Compression::Zstd => {
            let blob = zstd::encode_all(layer, 3).expect("memory is writable");
            (blob, "application/vnd.oci.image.layer.v1.tar+zstd")
        }
    };
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(layer))]},
    })
    .to_string()
    .into_bytes();
    let descriptor = |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": format!("sha256:{}", sha256(bytes)), "size": bytes.len()});
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor(media_type, &blob)],
    })
    .to_string()
    .into_bytes();
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = json!({"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": "latest"});
    let index = json!({"schemaVersion": 2, "manifests": [entry]})
        .to_string()
        .into_bytes();
    let blob_name = |bytes: &[u8]| format!("blobs/sha256/{}", sha256(bytes));
    pack(&[
        (
            "oci-layout".into(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ),
        ("index.json".into(), index),
        (blob_name(&manifest), manifest.clone()),
        (blob_name(&config), config.clone()),
        (blob_name(&blob), blob.clone()),
    ])
}

/// How a layer of [`oci_layout`] is compressed.
#[derive(Clone, Copy, Debug)]
pub enum Compression {
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// Compresses.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder
        .write_all(bytes)
        .and_then(|()| encoder.finish())
        .expect("memory is writable")
}
