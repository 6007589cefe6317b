//! Query parameters the way Docker reads them.

use axum::extract::FromRequestParts;
use caisson_api::{Filters, Timestamp};
use chrono::{DateTime, Utc};
use http::request::Parts;

use super::error::{ApiError, ApiResult};

/// The query, in order; names may repeat.
#[derive(Clone, Debug, Default)]
pub struct Params(Vec<(String, String)>);

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Params::parse(parts.uri.query().unwrap_or_default()))
    }
}

impl Params {
    pub fn parse(query: &str) -> Self {
        Params(
            url::form_urlencoded::parse(query.as_bytes())
                .into_owned()
                .collect(),
        )
    }

    /// The first value, unless empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
            .filter(|v| !v.is_empty())
    }

    /// The first value, `""` when absent.
    pub fn text(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }

    /// All values.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(n, v)| n == name && !v.is_empty())
            .map(|(_, v)| v.as_str())
    }

    /// Docker's notion of truth: anything but absence, `0`, `no`, `false` and `none`.
    pub fn flag(&self, name: &str) -> bool {
        self.flag_or(name, false)
    }

    /// Like [`Self::flag`], with a default for absence.
    pub fn flag_or(&self, name: &str, default: bool) -> bool {
        match self.get(name) {
            None => default,
            Some(value) => !matches!(
                value.to_ascii_lowercase().as_str(),
                "0" | "no" | "false" | "none"
            ),
        }
    }

    /// A number; absence and what is not one are told apart.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> ApiResult<Option<T>> {
        self.get(name)
            .map(|text| {
                text.parse().map_err(|_| {
                    ApiError::bad(format!(
                        "invalid value for {name}: {text:?} is not a number"
                    ))
                })
            })
            .transpose()
    }

    /// `filters`.
    pub fn filters(&self) -> ApiResult<Filters> {
        Filters::parse(self.text("filters"))
            .map_err(|e| ApiError::bad(format!("invalid filter: {e}")))
    }

    /// A point in time: seconds since 1970 with an optional fraction, or RFC 3339.
    pub fn time(&self, name: &str) -> ApiResult<Option<DateTime<Utc>>> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        let time = parse_time(text).ok_or_else(|| {
            ApiError::bad(format!("invalid value for {name}: {text:?} is not a time"))
        })?;
        Ok(Some(time))
    }
}

fn parse_time(text: &str) -> Option<DateTime<Utc>> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if let Ok(seconds) = seconds.parse::<i64>() {
        if !fraction.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let nanos: u32 = format!("{:0<9.9}", fraction).parse().ok()?;
        return DateTime::from_timestamp(seconds, nanos);
    }
    text.parse::<Timestamp>().ok().map(|t| t.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truth_is_dockers() {
        let params = Params::parse("a=1&b=true&c=True&d=0&e=false&f=no&g=none&h=&i=yes&j=False");
        for (name, expected) in [
            ("a", true),
            ("b", true),
            ("c", true),
            ("d", false),
            ("e", false),
            ("f", false),
            ("g", false),
            ("h", false),
            ("i", true),
            ("j", false),
            ("z", false),
        ] {
            assert_eq!(params.flag(name), expected, "{name}");
        }
        assert!(
            params.flag_or("z", true) && params.flag_or("h", true) && !params.flag_or("d", true)
        );
    }

    #[test]
    fn times() {
        let time = |t: &str| parse_time(t).map(|t| (t.timestamp(), t.timestamp_subsec_nanos()));
        assert_eq!(time("1795229161"), Some((1_795_229_161, 0)));
        assert_eq!(time("1795229161.5"), Some((1_795_229_161, 500_000_000)));
        assert_eq!(time("1795229161.000000007"), Some((1_795_229_161, 7)));
        assert_eq!(
            time("1795229161.12345678999"),
            Some((1_795_229_161, 123_456_789))
        );
        assert_eq!(time("2026-11-21T02:46:01Z"), Some((1_795_229_161, 0)));
        assert_eq!(time("yesterday"), None);
        assert_eq!(time("1.x"), None);
        assert_eq!(Params::parse("since=").time("since"), Ok(None));
        assert_eq!(
            Params::parse("since=0").time("since"),
            Ok(Some(DateTime::UNIX_EPOCH)),
            "events since ever"
        );
        assert!(Params::parse("since=x").time("since").is_err());
    }

    #[test]
    fn values_are_decoded_and_repeat() {
        let params = Params::parse("names=a%2Fb&names=c+d&n=x&m=7");
        assert_eq!(params.all("names").collect::<Vec<_>>(), ["a/b", "c d"]);
        assert!(params.number::<u32>("n").is_err());
        assert_eq!(params.number("m"), Ok(Some(7)));
        assert_eq!(params.number::<u32>("k"), Ok(None));
    }
}
