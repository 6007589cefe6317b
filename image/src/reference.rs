//! Names of images: `[domain/]path[:tag][@digest]`, with Docker's defaults.
//!
//! ```text
//! alpine                      docker.io/library/alpine      (tag latest where one is needed)
//! user/app:1                  docker.io/user/app:1
//! localhost:5000/app          localhost:5000/app
//! ghcr.io/a/b@sha256:…        ghcr.io/a/b@sha256:…
//! ```
//!
//! The grammar is that of Docker's `distribution/reference`; its test tables are in this file's tests.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, is_sha256_hex};
use crate::error::{Error, Result};

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
const OFFICIAL_PREFIX: &str = "library/";
/// The tag where none is given.
pub const DEFAULT_TAG: &str = "latest";
const MAX_PATH_BYTES: usize = 255;

/// The name of an image, normalised.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry's host, with its port: `docker.io`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry: `library/alpine`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag, when given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, when given.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Domain and path: `docker.io/library/alpine`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The name as people write it: `alpine`.
    pub fn familiar_name(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.name();
        }
        match self.path.strip_prefix(OFFICIAL_PREFIX) {
            // "library/a/b" must keep its prefix, or it would mean "docker.io/a/b".
            Some(rest) if !rest.contains('/') => rest.to_owned(),
            _ => self.path.clone(),
        }
    }

    /// The whole reference as people write it: `alpine:3.19`.
    pub fn familiar(&self) -> String {
        format!("{}{}", self.familiar_name(), self.suffix())
    }

    /// This reference, with the tag `latest` when it has neither tag nor digest.
    #[must_use]
    pub fn with_default_tag(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some(DEFAULT_TAG.into());
        }
        self
    }

    /// The same repository under another tag.
    ///
    /// # Errors
    /// [`Error::InvalidReference`].
    pub fn with_tag(&self, tag: &str) -> Result<Self> {
        if !is_tag(tag) {
            return Err(invalid(tag, "invalid tag format"));
        }
        Ok(Reference {
            tag: Some(tag.into()),
            digest: None,
            ..self.clone()
        })
    }

    /// The same repository, at a digest.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Reference {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    fn suffix(&self) -> String {
        let tag = self
            .tag
            .as_ref()
            .map(|t| format!(":{t}"))
            .unwrap_or_default();
        let digest = self
            .digest
            .as_ref()
            .map(|d| format!("@{d}"))
            .unwrap_or_default();
        tag + &digest
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.domain, self.path, self.suffix())
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        if is_sha256_hex(s) {
            return Err(invalid(s, "cannot specify 64-byte hexadecimal strings"));
        }
        let (rest, digest) = match s.split_once('@') {
            Some((rest, digest)) => (rest, Some(parse_digest(s, digest)?)),
            None => (s, None),
        };
        let (domain, remainder) = split_domain(rest);
        let (path, tag) = match remainder.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (remainder, None),
        };
        if tag.is_some_and(|t| !is_tag(t)) {
            return Err(invalid(s, "invalid reference format"));
        }
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(invalid(
                s,
                "invalid reference format: repository name must be lowercase",
            ));
        }
        if !is_domain(domain) || !path.split('/').all(is_path_component) {
            return Err(invalid(s, "invalid reference format"));
        }
        let (domain, path) = match domain {
            DEFAULT_DOMAIN | LEGACY_DEFAULT_DOMAIN if !path.contains('/') => {
                (DEFAULT_DOMAIN, format!("{OFFICIAL_PREFIX}{path}"))
            }
            LEGACY_DEFAULT_DOMAIN => (DEFAULT_DOMAIN, path.to_owned()),
            domain => (domain, path.to_owned()),
        };
        if path.len() > MAX_PATH_BYTES {
            return Err(invalid(
                s,
                "repository name must not be more than 255 characters",
            ));
        }
        Ok(Reference {
            domain: domain.to_owned(),
            path,
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

fn invalid(reference: &str, reason: &str) -> Error {
    Error::InvalidReference {
        reference: reference.to_owned(),
        reason: reason.to_owned(),
    }
}

fn parse_digest(whole: &str, digest: &str) -> Result<Digest> {
    digest.parse().map_err(|_| {
        if digest.starts_with("sha384:") || digest.starts_with("sha512:") {
            invalid(whole, "only sha256 digests are supported")
        } else {
            invalid(whole, "invalid reference format")
        }
    })
}

/// The first component is a domain when it looks like a host: a dot, a port, `localhost`, or an uppercase letter.
fn split_domain(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    }
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(v6) => match v6.split_once(']') {
            Some((address, rest)) => {
                let hex = !address.is_empty()
                    && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
                return hex && (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port));
            }
            None => return false,
        },
        None => match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        },
    };
    let component = |c: &str| {
        let bytes = c.as_bytes();
        !bytes.is_empty()
            && bytes
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || *b == b'-')
            && bytes[0] != b'-'
            && bytes[bytes.len() - 1] != b'-'
    };
    host.split('.').all(component) && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(component: &str) -> bool {
    let bytes = component.as_bytes();
    let alnum = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !bytes.first().is_some_and(alnum) || !bytes.last().is_some_and(alnum) {
        return false;
    }
    let separators = component
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .filter(|s| !s.is_empty());
    let valid = |s: &str| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-');
    separators.into_iter().all(valid)
}

/// `[\w][\w.-]{0,127}`
fn is_tag(tag: &str) -> bool {
    let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    let bytes = tag.as_bytes();
    (1..=128).contains(&bytes.len())
        && word(&bytes[0])
        && bytes.iter().all(|b| word(b) || *b == b'.' || *b == b'-')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rstest::rstest;

    const HEX: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";

    /// From Docker's normalize_test.go: what is given, its familiar and its full form.
    #[rstest]
    #[case("fooo", "fooo", "docker.io/library/fooo")]
    #[case("library/fooo", "fooo", "docker.io/library/fooo")]
    #[case("docker.io/library/fooo", "fooo", "docker.io/library/fooo")]
    #[case("docker.io/fooo", "fooo", "docker.io/library/fooo")]
    #[case("index.docker.io/fooo", "fooo", "docker.io/library/fooo")]
    #[case("index.docker.io/library/fooo", "fooo", "docker.io/library/fooo")]
    #[case("fooo/bar", "fooo/bar", "docker.io/fooo/bar")]
    #[case("docker.io/fooo/bar", "fooo/bar", "docker.io/fooo/bar")]
    #[case(
        "127.0.0.1:8000/private/moonbase",
        "127.0.0.1:8000/private/moonbase",
        "127.0.0.1:8000/private/moonbase"
    )]
    #[case("127.0.0.1:8000/moon", "127.0.0.1:8000/moon", "127.0.0.1:8000/moon")]
    #[case(
        "docker.io/library/foo/bar",
        "library/foo/bar",
        "docker.io/library/foo/bar"
    )]
    #[case("foo_bar.com:8080/x", "foo_bar.com:8080/x", "")]
    #[case("localhost/bar", "localhost/bar", "localhost/bar")]
    #[case("Foo/bar", "Foo/bar", "Foo/bar")]
    #[case("[::1]:5000/a", "[::1]:5000/a", "[::1]:5000/a")]
    #[case("alpine:3.19", "alpine:3.19", "docker.io/library/alpine:3.19")]
    #[case("test.com:8080/a:T", "test.com:8080/a:T", "test.com:8080/a:T")]
    #[case("a-b__c--e/f", "a-b__c--e/f", "docker.io/a-b__c--e/f")]
    fn forms(#[case] given: &str, #[case] familiar: &str, #[case] full: &str) {
        match given.parse::<Reference>() {
            Ok(got) => {
                assert_eq!(
                    (got.familiar().as_str(), got.to_string().as_str()),
                    (familiar, full)
                );
                assert_eq!(
                    got.familiar().parse::<Reference>().unwrap(),
                    got,
                    "the familiar form means the same"
                );
            }
            Err(error) => assert_eq!(full, "", "{error}"),
        }
    }

    #[rstest]
    #[case("")]
    #[case(":justtag")]
    #[case("@sha256:ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff")]
    #[case("repo@sha256:ffffffffffffffffffffffffffffffffff")]
    #[case("validname@invaliddigest:ffff")]
    #[case("Uppercase:tag")]
    #[case("test:5000/Uppercase/lowercase:tag")]
    #[case("aa/asdf$$^/aa")]
    #[case("a//b")]
    #[case("/a")]
    #[case("a/")]
    #[case("a/-b")]
    #[case("a_-b")]
    #[case("a___b")]
    #[case("a..b")]
    #[case("-foo/bar.com/x")]
    #[case("foo.com:/x")]
    #[case("foo.com:http/x")]
    #[case("-test.com/a")]
    #[case("a:")]
    #[case("a:-b")]
    #[case("a:b/c")]
    #[case("a b")]
    #[case("docker.io//x")]
    #[case("../etc/passwd")]
    #[case("a@b@c")]
    fn refused(#[case] given: &str) {
        assert!(
            given.parse::<Reference>().is_err(),
            "{:?}",
            given.parse::<Reference>()
        );
    }

    #[test]
    fn limits() {
        assert!(HEX.parse::<Reference>().is_err(), "an id is no name");
        assert!(HEX[1..].parse::<Reference>().is_ok());
        assert!(
            format!("a.b/{}", "a".repeat(255))
                .parse::<Reference>()
                .is_ok()
        );
        assert!(
            format!("a.b/{}", "a".repeat(256))
                .parse::<Reference>()
                .is_err()
        );
        assert!(
            format!("a:{}", "t".repeat(128))
                .parse::<Reference>()
                .is_ok()
        );
        assert!(
            format!("a:{}", "t".repeat(129))
                .parse::<Reference>()
                .is_err()
        );
    }

    #[test]
    fn default_tag_only_where_nothing_is_given() {
        let tag = |s: &str| {
            s.parse::<Reference>()
                .unwrap()
                .with_default_tag()
                .familiar()
        };
        assert_eq!(tag("a"), "a:latest");
        assert_eq!(tag("a:b"), "a:b");
        assert_eq!(tag(&format!("a@sha256:{HEX}")), format!("a@sha256:{HEX}"));
        let both: Reference = format!("a:b@sha256:{HEX}").parse().unwrap();
        assert_eq!((both.tag(), both.digest().unwrap().hex()), (Some("b"), HEX));
    }

    proptest::proptest! {
        #[test]
        fn parsing_never_panics_and_printing_is_stable(s in "[a-zA-Z0-9:./@_\\[\\]-]{0,80}") {
            if let Ok(parsed) = s.parse::<Reference>() {
                proptest::prop_assert_eq!(&parsed.to_string().parse::<Reference>().unwrap(), &parsed);
                proptest::prop_assert_eq!(&parsed.familiar().parse::<Reference>().unwrap(), &parsed);
            }
        }
    }
}
