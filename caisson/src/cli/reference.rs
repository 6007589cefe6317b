//! image references as people type them: parsed, checked and shown in their familiar form. Pure.

/// A parsed reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The name in its familiar form: no `docker.io/`, no `library/`.
    pub name: String,
    /// The tag, if written.
    pub tag: Option<String>,
    /// The digest, if written.
    pub digest: Option<String>,
    /// Whether the text is an image id, not a name.
    pub is_id: bool,
}

fn valid_path(path: &str) -> bool {
    let component = |c: &str| {
        let bytes = c.as_bytes();
        let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let inner_ok = c
            .split(|ch: char| ch.is_ascii_lowercase() || ch.is_ascii_digit())
            .all(|separator| {
                matches!(separator, "" | "." | "_" | "__") || separator.chars().all(|ch| ch == '-')
            });
        bytes.first().is_some_and(alphanumeric)
            && bytes.last().is_some_and(alphanumeric)
            && inner_ok
    };
    !path.is_empty() && path.split('/').all(component)
}

fn valid_domain(domain: &str) -> bool {
    let host = match domain.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.chars().all(|c| c.is_ascii_digit()) => host,
        Some(_) if !domain.starts_with('[') => return false,
        _ => domain,
    };
    if let Some(v6) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        return v6.parse::<std::net::Ipv6Addr>().is_ok();
    }
    host.split('.').all(|l| {
        !l.is_empty()
            && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    })
}

fn valid_tag(tag: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (1..=128).contains(&tag.len())
        && tag.starts_with(word)
        && tag.chars().all(|c| word(c) || c == '.' || c == '-')
}

fn valid_digest(digest: &str) -> bool {
    digest.split_once(':').is_some_and(|(algorithm, hex)| {
        !algorithm.is_empty()
            && algorithm
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "+.-_".contains(c))
            && hex.len() >= 32
            && hex.chars().all(|c| c.is_ascii_hexdigit())
            && (algorithm != "sha256" || hex.len() == 64)
    })
}

impl Reference {
    /// Parses a reference; errors are worded as Docker's.
    pub fn parse(text: &str) -> Result<Self, String> {
        let invalid = || "invalid reference format".to_owned();
        let hex = |t: &str| t.len() == 64 && t.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'));
        if hex(text) || text.strip_prefix("sha256:").is_some_and(hex) {
            return Ok(Reference {
                name: text.to_owned(),
                tag: None,
                digest: None,
                is_id: true,
            });
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) if valid_digest(digest) => (rest, Some(digest.to_owned())),
            Some(_) => return Err(invalid()),
            None => (text, None),
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => {
                if !valid_tag(tag) {
                    return Err(invalid());
                }
                (path, Some(tag.to_owned()))
            }
            _ => (rest, None),
        };
        let (domain, remainder) = match path.split_once('/') {
            Some((first, remainder))
                if first.contains('.')
                    || first.contains(':')
                    || first == "localhost"
                    || first.to_lowercase() != first =>
            {
                (first, remainder.to_owned())
            }
            _ => ("docker.io", path.to_owned()),
        };
        let domain = if domain == "index.docker.io" {
            "docker.io"
        } else {
            domain
        };
        if !valid_domain(domain) {
            return Err(invalid());
        }
        if remainder.chars().any(|c| c.is_ascii_uppercase())
            && valid_path(&remainder.to_lowercase())
        {
            let shown = if domain == "docker.io" && !remainder.contains('/') {
                format!("library/{remainder}")
            } else {
                remainder
            };
            return Err(format!(
                "invalid reference format: repository name ({shown}) must be lowercase"
            ));
        }
        if !valid_path(&remainder) {
            return Err(invalid());
        }
        let name = if domain == "docker.io" {
            remainder
                .strip_prefix("library/")
                .filter(|r| !r.contains('/'))
                .unwrap_or(&remainder)
                .to_owned()
        } else {
            format!("{domain}/{remainder}")
        };
        Ok(Reference {
            name,
            tag,
            digest,
            is_id: false,
        })
    }

    /// `name:tag` with `latest` filled in; `name@digest` when pinned.
    pub fn familiar_tagged(&self) -> String {
        if self.is_id {
            return self.name.clone();
        }
        match (&self.tag, &self.digest) {
            (Some(tag), Some(digest)) => format!("{}:{tag}@{digest}", self.name),
            (None, Some(digest)) => format!("{}@{digest}", self.name),
            (Some(tag), None) => format!("{}:{tag}", self.name),
            (None, None) => format!("{}:latest", self.name),
        }
    }

    /// What `/images/create` takes as `tag`: the digest or the tag.
    pub fn tag_or_digest(&self) -> String {
        self.digest
            .clone()
            .or_else(|| self.tag.clone())
            .unwrap_or_else(|| "latest".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_have_a_familiar_form() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, familiar) in [
            ("busybox", "busybox:latest".to_owned()),
            ("docker.io/library/busybox:1", "busybox:1".to_owned()),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest".to_owned()),
            ("user/x:v1.0-rc", "user/x:v1.0-rc".to_owned()),
            (&format!("x@{digest}"), format!("x@{digest}")),
            ("ghcr.io/a__b/c-d.e", "ghcr.io/a__b/c-d.e:latest".to_owned()),
        ] {
            assert_eq!(
                Reference::parse(text).expect(text).familiar_tagged(),
                familiar
            );
        }
        assert!(Reference::parse(&"0".repeat(64)).expect("an id").is_id);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "a b",
            "busybox@foo",
            ":x",
            "a:",
            "a:b:c",
            "a//b",
            "-a",
            "a_-b",
            "a/../b",
            "x:-1",
        ] {
            assert_eq!(
                Reference::parse(text),
                Err("invalid reference format".to_owned()),
                "{text}"
            );
        }
        assert_eq!(
            Reference::parse("UPPER"),
            Err(
                "invalid reference format: repository name (library/UPPER) must be lowercase"
                    .to_owned()
            )
        );
    }
}
