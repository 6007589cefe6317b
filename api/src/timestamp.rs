//! Points in time as Docker prints them: RFC 3339 in UTC, nanoseconds without trailing zeros, year 1 for "never".

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Datelike, NaiveDate, SecondsFormat, TimeDelta, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in time; the default is Go's zero time, `0001-01-01T00:00:00Z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub DateTime<Utc>);

impl Timestamp {
    /// The present.
    pub fn now() -> Self {
        Timestamp(Utc::now())
    }

    /// It never happened.
    pub fn is_zero(&self) -> bool {
        self.0.year() <= 1
    }

    /// Seconds since 1970.
    pub fn unix_seconds(&self) -> i64 {
        self.0.timestamp()
    }

    /// Nanoseconds since 1970, saturating.
    pub fn unix_nanos(&self) -> i64 {
        self.0
            .timestamp_nanos_opt()
            .unwrap_or(if self.0.timestamp() < 0 {
                i64::MIN
            } else {
                i64::MAX
            })
    }

    /// From nanoseconds since 1970.
    pub fn from_unix_nanos(nanos: i64) -> Self {
        Timestamp(DateTime::from_timestamp_nanos(nanos))
    }
}

impl Default for Timestamp {
    fn default() -> Self {
        let midnight = NaiveDate::from_ymd_opt(1, 1, 1)
            .and_then(|d| d.and_hms_opt(0, 0, 0))
            .expect("year 1 is a valid date");
        Timestamp(midnight.and_utc())
    }
}

impl From<SystemTime> for Timestamp {
    /// Saturates at the years 1 and 9999, between which clients understand it: a file's time may be anything.
    fn from(t: SystemTime) -> Self {
        let first = Timestamp::default().0;
        let last = NaiveDate::from_ymd_opt(9999, 12, 31)
            .and_then(|d| d.and_hms_opt(23, 59, 59))
            .expect("year 9999 has an end")
            .and_utc();
        let signed = |d: Duration| TimeDelta::from_std(d).ok();
        let (since, latest) = match t.duration_since(UNIX_EPOCH) {
            Ok(after) => (signed(after), last),
            Err(before) => (signed(before.duration()).map(|d| -d), first),
        };
        let exact = since.and_then(|d| DateTime::UNIX_EPOCH.checked_add_signed(d));
        Timestamp(exact.unwrap_or(latest).clamp(first, last))
    }
}

impl From<Timestamp> for SystemTime {
    fn from(t: Timestamp) -> Self {
        t.0.into()
    }
}

impl From<DateTime<Utc>> for Timestamp {
    fn from(t: DateTime<Utc>) -> Self {
        Timestamp(t)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let full = self.0.to_rfc3339_opts(SecondsFormat::Nanos, true);
        let digits = full
            .trim_end_matches('Z')
            .trim_end_matches('0')
            .trim_end_matches('.');
        // "…:00.000000000Z" loses the seconds' own zeros too: give them back.
        let digits = if full.contains('.') && !digits.contains('.') {
            &full[..19]
        } else {
            digits
        };
        write!(f, "{digits}Z")
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Timestamp {
    type Err = chrono::ParseError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if s.is_empty() {
            return Ok(Timestamp::default());
        }
        DateTime::parse_from_rfc3339(s).map(|t| Timestamp(t.with_timezone(&Utc)))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_docker_does() {
        for text in [
            "0001-01-01T00:00:00Z",
            "2026-11-21T02:46:01.62901966Z",
            "2026-11-21T10:20:00.5Z",
            "2026-11-21T10:20:30Z",
            "2026-11-21T10:20:00Z",
        ] {
            assert_eq!(text.parse::<Timestamp>().expect("valid").to_string(), text);
        }
        assert!(Timestamp::default().is_zero());
        assert!(!Timestamp::now().is_zero());
        assert_eq!(
            "2026-11-21T04:46:01+02:00"
                .parse::<Timestamp>()
                .expect("valid")
                .to_string(),
            "2026-11-21T02:46:01Z"
        );
    }

    #[test]
    fn nanoseconds_go_both_ways() {
        let t = Timestamp::from_unix_nanos(1_795_229_161_424_018_371);
        assert_eq!(t.unix_nanos(), 1_795_229_161_424_018_371);
        assert_eq!(t.unix_seconds(), 1_795_229_161);
        let zero: SystemTime = Timestamp::default().into();
        assert!(Timestamp::from(zero).is_zero());
    }

    #[test]
    fn any_time_of_a_file_has_a_timestamp() {
        let at = |seconds: i64| {
            let distance = Duration::from_secs(seconds.unsigned_abs());
            let time = match seconds {
                0.. => UNIX_EPOCH + distance,
                _ => UNIX_EPOCH - distance,
            };
            Timestamp::from(time).to_string()
        };
        assert_eq!(at(1_795_229_161), "2026-11-21T02:46:01Z");
        assert_eq!(at(-1), "1969-12-31T23:59:59Z");
        for late in [253_402_300_800, 1 << 43, i64::MAX] {
            assert_eq!(at(late), "9999-12-31T23:59:59Z", "{late}");
        }
        for early in [-(1 << 43), i64::MIN] {
            assert_eq!(at(early), "0001-01-01T00:00:00Z", "{early}");
        }
    }
}
