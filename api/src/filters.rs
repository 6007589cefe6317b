//! The `filters` query parameter: `{"key":["value"]}`, or the older `{"key":{"value":true}}`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Filters by key. All keys must match; within a key any value does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Filters(pub BTreeMap<String, Vec<String>>);

#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    List(Vec<String>),
    Set(BTreeMap<String, bool>),
}

impl Filters {
    /// Parses the query parameter; empty means no filters.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        if text.trim().is_empty() {
            return Ok(Filters::default());
        }
        let raw: Option<BTreeMap<String, Values>> = serde_json::from_str(text)?;
        let map = raw.unwrap_or_default().into_iter().map(|(key, values)| {
            let values = match values {
                Values::List(list) => list,
                Values::Set(set) => set
                    .into_iter()
                    .filter(|(_, on)| *on)
                    .map(|(value, _)| value)
                    .collect(),
            };
            (key, values)
        });
        Ok(Filters(map.collect()))
    }

    /// Values of a key; none when it is not given.
    pub fn get(&self, key: &str) -> &[String] {
        self.0.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether the key is given with at least one value.
    pub fn contains(&self, key: &str) -> bool {
        !self.get(key).is_empty()
    }

    /// The key is absent, or one of its values satisfies `test`.
    pub fn admits(&self, key: &str, test: impl Fn(&str) -> bool) -> bool {
        let values = self.get(key);
        values.is_empty() || values.iter().any(|v| test(v))
    }

    /// `label=key` and `label=key=value` (all of them) against labels; `label!` (none of them) too.
    pub fn admits_labels(&self, labels: &BTreeMap<String, String>) -> bool {
        let has = |wanted: &String| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|v| v == value),
            None => labels.contains_key(wanted),
        };
        self.get("label").iter().all(has) && !self.get("label!").iter().any(has)
    }

    /// The first key that is not among `known`.
    pub fn unknown_key(&self, known: &[&str]) -> Option<&str> {
        self.0
            .keys()
            .map(String::as_str)
            .find(|k| !known.contains(k))
    }

    /// A boolean filter: `true`/`1`, `false`/`0`; `None` when absent or both; `Err` holds what cannot be read.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>, String> {
        let mut seen = None;
        for value in self.get(key) {
            let this = match value.to_ascii_lowercase().as_str() {
                "1" | "true" | "t" => true,
                "0" | "false" | "f" => false,
                _ => return Err(value.clone()),
            };
            match seen {
                Some(before) if before != this => return Ok(None),
                _ => seen = Some(this),
            }
        }
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_mean_the_same() {
        let new = Filters::parse(r#"{"status":["exited","dead"]}"#).expect("list form");
        let old = Filters::parse(r#"{"status":{"exited":true,"dead":true,"paused":false}}"#)
            .expect("map form");
        assert!(new.admits("status", |v| v == "dead") && old.admits("status", |v| v == "dead"));
        assert!(!old.admits("status", |v| v == "paused"));
        assert!(
            new.admits("name", |_| false),
            "an absent key admits everything"
        );
        assert_eq!(Filters::parse("").expect("nothing"), Filters::default());
        assert_eq!(Filters::parse("null").expect("null"), Filters::default());
        assert!(Filters::parse(r#"{"a":1}"#).is_err());
        assert!(Filters::parse("{").is_err());
    }

    #[test]
    fn labels_must_all_match() {
        let labels = BTreeMap::from([
            ("a".to_owned(), "1".to_owned()),
            ("b".to_owned(), String::new()),
        ]);
        let admits = |text| Filters::parse(text).expect("valid").admits_labels(&labels);
        assert!(admits(r#"{"label":["a","b"]}"#));
        assert!(admits(r#"{"label":["a=1"]}"#));
        assert!(!admits(r#"{"label":["a=1","c"]}"#));
        assert!(!admits(r#"{"label!":["a"]}"#));
    }

    #[test]
    fn booleans() {
        let boolean = |text| Filters::parse(text).expect("valid").boolean("dangling");
        assert_eq!(boolean(r#"{"dangling":["true"]}"#), Ok(Some(true)));
        assert_eq!(boolean(r#"{"dangling":{"0":true}}"#), Ok(Some(false)));
        assert_eq!(boolean(r#"{"dangling":["1","0"]}"#), Ok(None));
        assert_eq!(boolean("{}"), Ok(None));
        assert_eq!(
            boolean(r#"{"dangling":["maybe"]}"#),
            Err("maybe".to_owned())
        );
    }
}
