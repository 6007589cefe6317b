//! Content digests: `sha256:` and 64 lowercase hexadecimal digits, nothing else.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};

/// The digest of some bytes, always SHA-256.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

const PREFIX: &str = "sha256:";

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Digest::finish(Sha256::new_with_prefix(bytes))
    }

    /// The digest of what was fed to a hasher.
    pub fn finish(hasher: Sha256) -> Self {
        Digest(format!("{PREFIX}{}", hex::encode(hasher.finalize())))
    }

    /// A digest from its 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`Error::InvalidDigest`].
    pub fn from_hex(hex: &str) -> Result<Self> {
        format!("{PREFIX}{hex}").parse()
    }

    /// `sha256:…`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 hexadecimal digits.
    pub fn hex(&self) -> &str {
        &self.0[PREFIX.len()..]
    }

    /// The first 12 hexadecimal digits, as Docker shows ids.
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }

    /// The chain id of a layer lying on `parent`: itself when it is the lowest, else the digest of both.
    pub(crate) fn chain(parent: Option<&Digest>, diff_id: &Digest) -> Self {
        match parent {
            None => diff_id.clone(),
            Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()),
        }
    }
}

impl FromStr for Digest {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        let valid = s.strip_prefix(PREFIX).is_some_and(is_sha256_hex);
        if valid {
            Ok(Digest(s.to_owned()))
        } else {
            Err(Error::InvalidDigest(s.to_owned()))
        }
    }
}

/// 64 lowercase hexadecimal digits.
pub(crate) fn is_sha256_hex(s: &str) -> bool {
    s.len() == 64 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_sha256_in_lowercase() {
        let good = format!("sha256:{}", "a1".repeat(32));
        assert_eq!(good.parse::<Digest>().unwrap().short(), "a1a1a1a1a1a1");
        for bad in [
            "",
            "sha256:",
            &"a".repeat(64),
            &good.to_uppercase(),
            &good[..70],
            &format!("{good}0"),
            "sha512:abc",
            &format!("sha256:../{}", "a".repeat(61)),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn chain_ids_follow_the_image_spec() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(Digest::chain(None, &a), a);
        assert_eq!(
            Digest::chain(Some(&a), &b),
            Digest::of(format!("{a} {b}").as_bytes())
        );
    }
}
