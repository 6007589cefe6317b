//! `--filter` of `docker images` and `docker image prune`: pure, on rows of the list.

use caisson_api::{Filters, ImageSummary};
use chrono::{DateTime, Utc};
use globset::GlobBuilder;

use crate::{Error, Result};

/// What a list of images is narrowed to.
#[derive(Debug, Default)]
pub struct ImageFilter {
    filters: Filters,
    dangling: Option<bool>,
    references: Vec<globset::GlobMatcher>,
    /// Created before and after these, in seconds since 1970.
    before: Option<i64>,
    since: Option<i64>,
}

const KNOWN: [&str; 9] = [
    "dangling",
    "label",
    "label!",
    "before",
    "since",
    "reference",
    "until",
    "intermediate",
    "containers",
];

impl ImageFilter {
    /// Checks the filters. `created` finds out when the image of a name was made.
    pub fn parse(
        filters: &Filters,
        now: DateTime<Utc>,
        created: impl Fn(&str) -> Result<i64>,
    ) -> Result<Self> {
        if let Some(key) = filters.unknown_key(&KNOWN) {
            return Err(Error::invalid(format!("invalid filter '{key}'")));
        }
        let mut filter = ImageFilter {
            dangling: filters
                .boolean("dangling")
                .map_err(|v| Error::invalid(format!("invalid filter 'dangling={v}'")))?,
            ..ImageFilter::default()
        };
        for name in filters.get("before") {
            let made = created(name)?;
            filter.before = Some(filter.before.map_or(made, |b| b.min(made)));
        }
        for name in filters.get("since") {
            let made = created(name)?;
            filter.since = Some(filter.since.map_or(made, |s| s.max(made)));
        }
        for text in filters.get("until") {
            let limit = parse_until(text, now)?;
            filter.before = Some(filter.before.map_or(limit, |b| b.min(limit)));
        }
        for pattern in filters.get("reference") {
            let glob = GlobBuilder::new(pattern)
                .literal_separator(true)
                .build()
                .map_err(|e| {
                    Error::invalid(format!("invalid filter 'reference={pattern}': {e}"))
                })?;
            filter.references.push(glob.compile_matcher());
        }
        filter.filters = filters.clone();
        Ok(filter)
    }

    /// Whether a row stays; its tags are narrowed to those that match `reference`.
    pub fn admits(&self, row: &mut ImageSummary) -> bool {
        let tags = row.repo_tags.as_deref().unwrap_or_default();
        if self
            .dangling
            .is_some_and(|wanted| wanted != tags.is_empty())
        {
            return false;
        }
        if self.before.is_some_and(|limit| row.created >= limit)
            || self.since.is_some_and(|limit| row.created <= limit)
        {
            return false;
        }
        let none = std::collections::BTreeMap::new();
        if !self
            .filters
            .admits_labels(row.labels.as_ref().unwrap_or(&none))
        {
            return false;
        }
        if self.references.is_empty() {
            return true;
        }
        let matches = |name: &String| {
            self.references
                .iter()
                .any(|glob| names(name).any(|n| glob.is_match(n)))
        };
        for list in [&mut row.repo_tags, &mut row.repo_digests]
            .into_iter()
            .flatten()
        {
            list.retain(matches);
        }
        [&row.repo_tags, &row.repo_digests]
            .into_iter()
            .flatten()
            .any(|list| !list.is_empty())
    }
}

/// What a pattern may match of `repo:tag` or `repo@digest`: all of it, or the repository alone.
fn names(reference: &str) -> impl Iterator<Item = &str> {
    let repository = match reference.split_once('@') {
        Some((repository, _)) => repository,
        // A colon after the last slash begins the tag; one before it, a port.
        None => match reference.rfind(':') {
            Some(colon) if !reference[colon..].contains('/') => &reference[..colon],
            _ => reference,
        },
    };
    [reference, repository].into_iter()
}

/// A point in time or a duration before now: `2006-01-02T15:04:05`, `1257894000`, `24h`, `1h30m`; in seconds since 1970.
pub fn parse_until(text: &str, now: DateTime<Utc>) -> Result<i64> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Ok(seconds as i64);
    }
    if let Some(ago) = parse_go_duration(text) {
        return Ok((now - ago).timestamp());
    }
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.timestamp());
    }
    for format in ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M"] {
        if let Ok(time) = chrono::NaiveDateTime::parse_from_str(text, format) {
            return Ok(time.and_utc().timestamp());
        }
    }
    if let Ok(date) = chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d") {
        return Ok(date.and_time(chrono::NaiveTime::MIN).and_utc().timestamp());
    }
    Err(Error::invalid(format!(
        "invalid filter 'until={text}': it is neither a time nor a duration such as 24h"
    )))
}

/// Go's durations: `1h30m`, `1.5h`, `300ms`.
pub fn parse_go_duration(text: &str) -> Option<chrono::Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return None;
    }
    let mut nanos = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let scale = match &rest[..unit] {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        nanos += number * scale;
        rest = &rest[unit..];
    }
    (nanos < i64::MAX as f64).then(|| chrono::Duration::nanoseconds(nanos as i64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn row(tags: &[&str], created: i64) -> ImageSummary {
        ImageSummary {
            repo_tags: Some(tags.iter().map(|t| (*t).to_owned()).collect()),
            repo_digests: Some(Vec::new()),
            created,
            labels: Some(BTreeMap::from([("a".to_owned(), "1".to_owned())])),
            ..Default::default()
        }
    }

    fn admits(filters: &str, row: &mut ImageSummary) -> bool {
        let filters = Filters::parse(filters).expect("valid JSON");
        let now = DateTime::from_timestamp(10_000, 0).expect("valid");
        ImageFilter::parse(&filters, now, |_| Ok(100))
            .expect("valid filters")
            .admits(row)
    }

    #[test]
    fn references_match_like_paths_and_narrow_tags() {
        let mut image = row(
            &["alpine:3.19", "localhost:5000/a/alpine:3", "busybox:1"],
            1,
        );
        assert!(admits(r#"{"reference":["alp*"]}"#, &mut image));
        assert_eq!(
            image.repo_tags.as_deref(),
            Some(&["alpine:3.19".to_owned()][..])
        );
        assert!(admits(
            r#"{"reference":["*/a/alpine"]}"#,
            &mut row(&["localhost:5000/a/alpine:3"], 1)
        ));
        assert!(
            !admits(r#"{"reference":["*"]}"#, &mut row(&["a/b:1"], 1)),
            "a star does not cross a slash"
        );
        assert!(admits(
            r#"{"reference":["*:3.19"]}"#,
            &mut row(&["alpine:3.19"], 1)
        ));
    }

    #[test]
    fn times_dangling_and_labels() {
        assert!(admits(r#"{"before":["x"]}"#, &mut row(&["a:1"], 99)));
        assert!(!admits(r#"{"before":["x"]}"#, &mut row(&["a:1"], 100)));
        assert!(!admits(r#"{"since":["x"]}"#, &mut row(&["a:1"], 100)));
        assert!(admits(r#"{"until":["1h"]}"#, &mut row(&["a:1"], 6399)));
        assert!(!admits(r#"{"until":["1h"]}"#, &mut row(&["a:1"], 6400)));
        assert!(admits(r#"{"dangling":["true"]}"#, &mut row(&[], 1)));
        assert!(!admits(r#"{"dangling":["true"]}"#, &mut row(&["a:1"], 1)));
        assert!(!admits(r#"{"dangling":["false"]}"#, &mut row(&[], 1)));
        assert!(admits(r#"{"label":["a=1"]}"#, &mut row(&["a:1"], 1)));
        assert!(!admits(r#"{"label":["a=2"]}"#, &mut row(&["a:1"], 1)));
    }

    #[test]
    fn nonsense_is_refused() {
        let parse = |text| {
            ImageFilter::parse(&Filters::parse(text).expect("JSON"), Utc::now(), |_| Ok(1)).err()
        };
        assert!(
            parse(r#"{"colour":["red"]}"#)
                .expect("refused")
                .message
                .contains("colour")
        );
        assert!(parse(r#"{"dangling":["perhaps"]}"#).is_some());
        assert!(parse(r#"{"until":["soon"]}"#).is_some());
        assert!(parse(r#"{"reference":["a["]}"#).is_some());
    }

    #[test]
    fn until_forms() {
        let now = DateTime::from_timestamp(100_000, 0).expect("valid");
        let until = |text| parse_until(text, now).expect("valid");
        assert_eq!(until("1h30m"), 100_000 - 5400);
        assert_eq!(until("1.5h"), 100_000 - 5400);
        assert_eq!(until("1257894000"), 1_257_894_000);
        assert_eq!(until("2006-01-02T15:04:05Z"), 1_136_214_245);
        assert_eq!(until("2006-01-02T15:04:05"), 1_136_214_245);
        assert_eq!(until("2006-01-02"), 1_136_160_000);
    }
}
