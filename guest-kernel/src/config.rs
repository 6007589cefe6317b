//! The fragments, and the check that a finished configuration keeps what they ask for.

use std::collections::BTreeMap;
use std::fmt;

/// The fragments by name, in the order in which they are merged; a later one wins.
pub fn fragments() -> [(&'static str, &'static str); 7] {
    [
        ("10-base", include_str!("../config/10-base.config")),
        ("20-virtio", include_str!("../config/20-virtio.config")),
        (
            "30-filesystems",
            include_str!("../config/30-filesystems.config"),
        ),
        (
            "40-containers",
            include_str!("../config/40-containers.config"),
        ),
        ("50-network", include_str!("../config/50-network.config")),
        (
            "60-hardening",
            include_str!("../config/60-hardening.config"),
        ),
        ("70-lean", include_str!("../config/70-lean.config")),
    ]
}

/// An option that a fragment asks for and the configuration does not have so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The fragment's name.
    pub fragment: &'static str,
    /// `CONFIG_…`.
    pub option: String,
    /// What the fragment asks for; `n` for off.
    pub wanted: String,
    /// What the configuration says; `n` when it does not name it.
    pub found: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "  {}={} (fragment {}), found {}",
            self.option, self.wanted, self.fragment, self.found
        )
    }
}

/// Compares a finished configuration (`.config`'s text) with the fragments.
pub fn check(config: &str) -> Vec<Mismatch> {
    let found = options(config);
    let mut wanted: BTreeMap<&str, (&'static str, &str)> = BTreeMap::new();
    for (name, text) in fragments() {
        for (option, value) in options(text) {
            wanted.insert(option, (name, value));
        }
    }
    wanted
        .into_iter()
        .filter_map(|(option, (fragment, value))| {
            let is = found.get(option).copied().unwrap_or("n");
            (is != value).then(|| Mismatch {
                fragment,
                option: option.into(),
                wanted: value.into(),
                found: is.into(),
            })
        })
        .collect()
}

fn options(text: &str) -> BTreeMap<&str, &str> {
    text.lines()
        .filter(|l| l.starts_with("CONFIG_"))
        .filter_map(|l| l.trim().split_once('='))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_a_fragment_is_an_option_or_a_comment() {
        for (name, text) in fragments() {
            for line in text.lines() {
                let option = line
                    .strip_prefix("CONFIG_")
                    .is_some_and(|l| l.contains('='));
                assert!(
                    option || line.starts_with('#') || line.is_empty(),
                    "{name}: {line}"
                );
            }
        }
    }

    #[test]
    fn no_option_stands_in_two_fragments() {
        let mut seen = BTreeMap::new();
        for (name, text) in fragments() {
            for option in options(text).keys() {
                assert_eq!(
                    seen.insert(option.to_string(), name),
                    None,
                    "{option} in {name} and another"
                );
            }
        }
    }

    #[test]
    fn a_missing_option_is_found() {
        let all: String = fragments().iter().map(|(_, text)| *text).collect();
        assert_eq!(check(&all), []);
        let without = all.replace("CONFIG_EROFS_FS=y", "# CONFIG_EROFS_FS is not set");
        let found = check(&without);
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].option.as_str(), found[0].found.as_str()),
            ("CONFIG_EROFS_FS", "n")
        );
    }

    #[test]
    fn an_option_that_should_be_off_is_found() {
        let all: String = fragments().iter().map(|(_, text)| *text).collect();
        let found = check(&all.replace("CONFIG_ACPI=n", "CONFIG_ACPI=y"));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].wanted, "n");
    }
}
