//! Saving images: an OCI layout with Docker's `manifest.json` beside it, as docker has written it since version 25.
//!
//! ```text
//! blobs/sha256/…   every blob once        index.json     one entry for each name
//! oci-layout                              manifest.json  for docker load of any age, podman, skopeo
//! ```
//!
//! The same images give the same bytes.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use serde_json::json;

use crate::digest::Digest;
use crate::error::{Context, Error, Result};
use crate::images::Image;
use crate::load::to_json;
use crate::manifest::{Descriptor, Index, OCI_INDEX};
use crate::reference::Reference;
use crate::store::{Lease, Store};

/// Images chosen to be saved; they stay until this is dropped.
pub struct Saving {
    store: Store,
    images: Vec<(Arc<Image>, Vec<Reference>)>,
    lease: Lease,
}

impl Store {
    /// Chooses images to save: a name means its image under this name, a name without a tag every tag of it, an id the
    /// image without a name. Memory only: a request can be refused before its answer begins.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::Ambiguous`], [`Error::InvalidReference`].
    pub fn prepare_save(&self, names: &[String]) -> Result<Saving> {
        let lease = Lease::new(&self.0);
        let mut images: Vec<(Arc<Image>, Vec<Reference>)> = Vec::new();
        let mut add = |image: Arc<Image>, reference: Option<Reference>| {
            let known = images.iter_mut().find(|(i, _)| i.id() == image.id());
            let references = match known {
                Some((_, references)) => references,
                None => {
                    images.push((image, Vec::new()));
                    &mut images.last_mut().expect("just pushed").1
                }
            };
            references.extend(reference.filter(|r| !references.contains(r)));
        };
        for name in names {
            match name.parse::<Reference>() {
                Ok(reference) if reference.tag().is_none() && reference.digest().is_none() => {
                    let tags = self.tags_of(&reference);
                    if tags.is_empty() {
                        add(self.resolve(name)?, None);
                    }
                    for (tag, image) in tags {
                        add(image, Some(tag));
                    }
                }
                Ok(reference) => {
                    let image = self.resolve(name)?;
                    add(image, reference.digest().is_none().then_some(reference));
                }
                Err(_) => add(self.resolve(name)?, None),
            }
        }
        for (image, _) in &images {
            let layers = image.layers().iter().map(|l| &l.blob.digest);
            for blob in layers.chain([image.id(), &image.manifest().digest]) {
                let gone = || Error::NoSuchImage(image.id().to_string());
                self.0.lease_blob(&lease, blob).ok_or_else(gone)?;
            }
        }
        Ok(Saving {
            store: self.clone(),
            images,
            lease,
        })
    }

    fn tags_of(&self, reference: &Reference) -> Vec<(Reference, Arc<Image>)> {
        let index = self.0.index();
        let name = reference.name();
        let tags = index
            .tags
            .iter()
            .filter_map(|(tag, id)| Some((tag.parse::<Reference>().ok()?, id)));
        let tags = tags.filter(|(tag, _)| tag.name() == name);
        tags.filter_map(|(tag, id)| Some((tag, index.images.get(id)?.clone())))
            .collect()
    }
}

impl Saving {
    /// Writes the archive, on a thread where blocking is fine.
    ///
    /// # Errors
    /// [`Error::Stream`] when `out` fails, [`Error::Io`] when a blob cannot be read.
    pub async fn write(self, out: impl Write + Send + 'static) -> Result<()> {
        let store = self.store.clone();
        store.blocking(move |_, _| self.write_now(out)).await
    }

    fn write_now(self, out: impl Write) -> Result<()> {
        let _held = &self.lease;
        let mut tar = tar::Builder::new(std::io::BufWriter::with_capacity(256 * 1024, out));
        for dir in ["blobs/", "blobs/sha256/"] {
            let mut header = header(tar::EntryType::Directory, 0o755, 0);
            tar.append_data(&mut header, dir, std::io::empty())
                .map_err(Error::Stream)?;
        }
        let mut written = HashSet::new();
        let mut entries: Vec<Descriptor> = Vec::new();
        let mut docker = Vec::new();
        for (image, references) in &self.images {
            let config = Descriptor::new("", image.id().clone(), image.config_json().len() as u64);
            let layers = image.layers().iter().map(|l| &l.blob);
            let manifest = image.manifest();
            for blob in layers.chain([&config, manifest]) {
                if written.insert(blob.digest.clone()) {
                    self.blob(&mut tar, &blob.digest)?;
                }
            }
            let mut names: Vec<Option<&Reference>> = references.iter().map(Some).collect();
            if names.is_empty() {
                names.push(None);
            }
            for name in names {
                let mut entry = manifest.clone();
                entry.annotations = name.map(|reference| {
                    BTreeMap::from([
                        ("io.containerd.image.name".to_owned(), reference.to_string()),
                        (
                            "org.opencontainers.image.ref.name".to_owned(),
                            reference.tag().unwrap_or_default().to_owned(),
                        ),
                    ])
                });
                entries.push(entry);
            }
            docker.push(json!({
                "Config": path(image.id()),
                "RepoTags": references.iter().map(Reference::familiar).collect::<Vec<_>>(),
                "Layers": image.layers().iter().map(|l| path(&l.blob.digest)).collect::<Vec<_>>(),
            }));
        }
        let index = Index {
            schema_version: 2,
            media_type: Some(OCI_INDEX.into()),
            manifests: entries,
        };
        let files = [
            ("index.json", to_json(&index)),
            ("manifest.json", to_json(&docker)),
            ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ];
        for (name, bytes) in files {
            let mut header = header(tar::EntryType::Regular, 0o644, bytes.len() as u64);
            tar.append_data(&mut header, name, &bytes[..])
                .map_err(Error::Stream)?;
        }
        let mut out = tar.into_inner().map_err(Error::Stream)?;
        out.flush().map_err(Error::Stream)
    }

    fn blob(&self, tar: &mut tar::Builder<impl Write>, digest: &Digest) -> Result<()> {
        let from = self.store.0.blob_path(digest);
        let file = File::open(&from).context("open", &from)?;
        let size = file.metadata().context("stat", &from)?.len();
        let mut header = header(tar::EntryType::Regular, 0o644, size);
        tar.append_data(&mut header, path(digest), file)
            .map_err(Error::Stream)
    }
}

fn path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}
