//! Manifests and indexes of both families, read strictly and written in OCI's form.
//!
//! A document that could be read as two things (an index and a manifest in one, GHSA-5j5w-g665-5m35) is refused, as is one
//! whose own `mediaType` contradicts its contents.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::Digest;
use crate::error::{Error, Result};

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Manifests and configurations above this are refused; registries cap manifests at 4 MiB.
pub(crate) const MAX_DOCUMENT_BYTES: u64 = 8 << 20;
/// As many layers as overlayfs takes and more than Docker's 127.
pub(crate) const MAX_LAYERS: usize = 500;

/// Points at a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length.
    #[serde(rename = "size")]
    pub size_bytes: u64,
    /// What it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<ManifestPlatform>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// The platform of an index's entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestPlatform {
    /// `amd64`, …
    #[serde(default)]
    pub architecture: String,
    /// `linux`, …
    #[serde(default)]
    pub os: String,
    /// `v8`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// One image's configuration and layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

/// Several manifests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    pub manifests: Vec<Descriptor>,
}

/// What a document is.
#[derive(Clone, Debug)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Index),
}

impl Manifest {
    /// An OCI manifest over these blobs.
    pub(crate) fn new(config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Manifest {
            schema_version: 2,
            media_type: Some(OCI_MANIFEST.into()),
            config,
            layers,
        }
    }

    pub(crate) fn media_type(&self) -> &str {
        self.media_type.as_deref().unwrap_or(OCI_MANIFEST)
    }
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, digest: Digest, size_bytes: u64) -> Self {
        Descriptor {
            media_type: media_type.into(),
            digest,
            size_bytes,
            platform: None,
            annotations: None,
        }
    }

    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }
}

/// Reads a manifest or an index.
///
/// # Errors
/// [`Error::InvalidImage`].
pub(crate) fn parse(bytes: &[u8]) -> Result<Document> {
    let bad = |reason: String| Error::InvalidImage(reason);
    let value: Value =
        serde_json::from_slice(bytes).map_err(|e| bad(format!("the manifest is not JSON: {e}")))?;
    let object = value
        .as_object()
        .ok_or_else(|| bad("the manifest is not a JSON object".into()))?;
    let has = |key: &str| object.get(key).is_some_and(|v| !v.is_null());
    if object.get("schemaVersion").and_then(Value::as_u64) == Some(1) {
        return Err(bad("the image has a schema 1 manifest, which is deprecated: push it again with a newer client".into()));
    }
    let is_index = has("manifests");
    let is_manifest = has("config") || has("layers") || has("fsLayers");
    if is_index && is_manifest {
        return Err(bad(
            "the manifest is ambiguous: it lists both manifests and layers".into(),
        ));
    }
    let parsed = if is_index {
        let index: Index = serde_json::from_value(value)
            .map_err(|e| bad(format!("the index is malformed: {e}")))?;
        expect_type(index.media_type.as_deref(), &[OCI_INDEX, DOCKER_LIST])?;
        Document::Index(index)
    } else {
        let manifest: Manifest = serde_json::from_value(value)
            .map_err(|e| bad(format!("the manifest is malformed: {e}")))?;
        expect_type(
            manifest.media_type.as_deref(),
            &[OCI_MANIFEST, DOCKER_MANIFEST],
        )?;
        if manifest.layers.len() > MAX_LAYERS {
            return Err(bad(format!(
                "the manifest lists more than {MAX_LAYERS} layers"
            )));
        }
        Document::Manifest(manifest)
    };
    Ok(parsed)
}

fn expect_type(found: Option<&str>, allowed: &[&str]) -> Result<()> {
    match found {
        Some(found) if !found.is_empty() && !allowed.contains(&found) => Err(Error::InvalidImage(
            format!("the manifest says it is {found}, its contents say otherwise"),
        )),
        _ => Ok(()),
    }
}

/// A manifest and nothing else.
pub(crate) fn parse_manifest(bytes: &[u8]) -> Result<Manifest> {
    match parse(bytes)? {
        Document::Manifest(manifest) => Ok(manifest),
        Document::Index(_) => Err(Error::InvalidImage(
            "expected a manifest, found an index".into(),
        )),
    }
}

/// The platform an image is wanted for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `v7`, `v8`, …
    pub variant: Option<String>,
}

impl Platform {
    /// This host's.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "x86" => ("386", None),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        Platform {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: variant.map(Into::into),
        }
    }

    /// `linux/amd64`, `linux/arm/v7`, or an architecture alone.
    ///
    /// # Errors
    /// [`Error::InvalidImage`].
    pub fn parse(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let valid = |p: &&str| {
            !p.is_empty()
                && p.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        };
        if !parts.iter().all(valid) || parts.len() > 3 {
            return Err(Error::InvalidImage(format!(
                "\"{text}\" is an invalid platform: expected os/arch[/variant]"
            )));
        }
        let (os, architecture, variant) = match parts[..] {
            ["linux"] => return Ok(Platform::host()),
            [architecture] => ("linux", architecture, None),
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => unreachable!("one to three parts"),
        };
        let (architecture, variant) = normalise(architecture, variant);
        Ok(Platform {
            os: os.to_lowercase(),
            architecture,
            variant,
        })
    }

    /// How well an entry fits: lower is better, `None` not at all.
    fn distance(&self, offered: &ManifestPlatform) -> Option<u32> {
        let (architecture, variant) = normalise(&offered.architecture, offered.variant.as_deref());
        if offered.os.to_lowercase() != self.os || architecture != self.architecture {
            return None;
        }
        match (&self.variant, &variant) {
            (wanted, offered) if wanted == offered => Some(0),
            (None, Some(_)) | (Some(_), None) => Some(1),
            // An ARM of version 7 runs what was built for 6 and 5.
            (Some(wanted), Some(offered)) if self.architecture == "arm" && offered < wanted => {
                Some(
                    10 - u32::from(offered.as_bytes().last().copied().unwrap_or(b'0') - b'0')
                        .min(9),
                )
            }
            _ => None,
        }
    }

    /// Whether what was built for a platform runs on this one.
    pub(crate) fn runs(&self, offered: &ManifestPlatform) -> bool {
        self.distance(offered).is_some()
    }

    /// The best entry of an index for this platform. Attestations (`unknown/unknown`) are never chosen.
    pub(crate) fn choose<'a>(&self, manifests: &'a [Descriptor]) -> Option<&'a Descriptor> {
        let image = |d: &&Descriptor| {
            d.annotation("vnd.docker.reference.type")
                .is_none_or(|kind| kind != "attestation-manifest")
        };
        let fitting = manifests
            .iter()
            .filter(image)
            .enumerate()
            .filter_map(|(i, d)| {
                let distance = match &d.platform {
                    Some(platform) => self.distance(platform)?,
                    None => 100,
                };
                Some((distance, i, d))
            });
        fitting
            .min_by_key(|(distance, i, _)| (*distance, *i))
            .map(|(_, _, d)| d)
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |v| write!(f, "/{v}"))
    }
}

fn normalise(architecture: &str, variant: Option<&str>) -> (String, Option<String>) {
    let variant = variant.filter(|v| !v.is_empty()).map(str::to_lowercase);
    let (architecture, variant) = match (architecture.to_lowercase().as_str(), variant.as_deref()) {
        ("x86_64" | "x86-64" | "amd64", v) => ("amd64", v.filter(|v| *v != "v1")),
        ("aarch64" | "arm64", None | Some("8" | "v8")) => ("arm64", Some("v8")),
        ("armhf", _) => ("arm", Some("v7")),
        ("armel", _) => ("arm", Some("v6")),
        ("arm", None) => ("arm", Some("v7")),
        ("i386", _) => ("386", None),
        (other, v) => return (other.to_owned(), v.map(str::to_owned)),
    };
    (architecture.to_owned(), variant.map(str::to_owned))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn descriptor(os: &str, architecture: &str, variant: Option<&str>) -> Descriptor {
        let mut d = Descriptor::new(
            OCI_MANIFEST,
            Digest::of(format!("{os}{architecture}{variant:?}").as_bytes()),
            1,
        );
        d.platform = Some(ManifestPlatform {
            architecture: architecture.into(),
            os: os.into(),
            variant: variant.map(Into::into),
        });
        d
    }

    #[test]
    fn two_things_in_one_document_are_refused() {
        let d = Digest::of(b"");
        let descriptor = format!(r#"{{"mediaType":"x","digest":"{d}","size":1}}"#);
        for bad in [
            format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[],"manifests":[]}}"#),
            format!(r#"{{"schemaVersion":2,"manifests":[],"layers":[{descriptor}]}}"#),
            format!(
                r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","config":{descriptor},"layers":[]}}"#
            ),
            format!(r#"{{"schemaVersion":2,"mediaType":"{DOCKER_MANIFEST}","manifests":[]}}"#),
            r#"{"schemaVersion":1,"fsLayers":[]}"#.into(),
            r#"{"schemaVersion":2}"#.into(),
            "[]".into(),
            "".into(),
            r#"{"schemaVersion":2,"config":{"mediaType":"x","digest":"sha256:../..","size":1},"layers":[]}"#.to_string(),
        ] {
            assert!(
                matches!(parse(bad.as_bytes()), Err(Error::InvalidImage(_))),
                "{bad}"
            );
        }
        assert!(
            parse(format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[]}}"#).as_bytes())
                .is_ok()
        );
    }

    #[test]
    fn the_platform_chosen_is_the_one_that_runs() {
        let list = [
            descriptor("unknown", "unknown", None),
            descriptor("windows", "amd64", None),
            descriptor("linux", "arm", Some("v5")),
            descriptor("linux", "arm", Some("v6")),
            descriptor("linux", "arm64", None),
            descriptor("linux", "amd64", None),
        ];
        let choose = |p: &str| {
            Platform::parse(p).unwrap().choose(&list).map(|d| {
                let p = d.platform.clone().unwrap();
                format!(
                    "{}/{}/{}",
                    p.os,
                    p.architecture,
                    p.variant.unwrap_or_default()
                )
            })
        };
        assert_eq!(choose("linux/amd64").unwrap(), "linux/amd64/");
        assert_eq!(choose("x86_64").unwrap(), "linux/amd64/");
        assert_eq!(choose("linux/arm64/v8").unwrap(), "linux/arm64/");
        assert_eq!(choose("linux/arm/v7").unwrap(), "linux/arm/v6");
        assert_eq!(choose("linux/s390x"), None);
        assert!(Platform::parse("a/b/c/d").is_err() && Platform::parse("linux/").is_err());
    }
}
