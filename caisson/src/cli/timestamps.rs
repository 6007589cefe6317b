//! points in time as `--since` and `--until` take them: RFC 3339 in parts, Unix seconds, or a duration before now.

use chrono::{DateTime, Local, NaiveDate, NaiveDateTime, TimeZone, Utc};

use super::units;

/// Reads one; returns `seconds.nanoseconds`, as the API wants it.
pub fn parse(text: &str) -> Result<String, String> {
    parse_at(text, Utc::now())
}

fn parse_at(text: &str, now: DateTime<Utc>) -> Result<String, String> {
    let stamp = |t: DateTime<Utc>| format!("{}.{:09}", t.timestamp(), t.timestamp_subsec_nanos());
    if let Ok(nanoseconds) = units::go_duration(text)
        && text != "0"
    {
        return Ok(stamp(now - chrono::Duration::nanoseconds(nanoseconds)));
    }
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(stamp(time.with_timezone(&Utc)));
    }
    let local = |naive: NaiveDateTime, utc: bool| -> Option<DateTime<Utc>> {
        if utc {
            Some(naive.and_utc())
        } else {
            Local
                .from_local_datetime(&naive)
                .earliest()
                .map(|t| t.with_timezone(&Utc))
        }
    };
    let (bare, utc) = match text.strip_suffix('Z') {
        Some(bare) => (bare, true),
        None => (text, false),
    };
    for format in ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H"] {
        if let Ok(naive) = NaiveDateTime::parse_from_str(bare, format)
            && let Some(time) = local(naive, utc)
        {
            return Ok(stamp(time));
        }
    }
    if let Ok(date) = NaiveDate::parse_from_str(bare, "%Y-%m-%d")
        && let Some(time) = date.and_hms_opt(0, 0, 0).and_then(|n| local(n, utc))
    {
        return Ok(stamp(time));
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |t: &str| !t.is_empty() && t.chars().all(|c| c.is_ascii_digit());
    if digits(seconds.trim_start_matches('-')) && digits(fraction) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "failed to parse value as time or duration: {text:?}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        let now = Utc.timestamp_opt(1_000_000, 5).single().expect("valid");
        for (text, expected) in [
            ("10m", "999400.000000005"),
            ("1970-01-02T00:00:00Z", "86400.000000000"),
            ("1970-01-02T00:00:00.5+01:00", "82800.500000000"),
            ("1970-01-02T00:00Z", "86400.000000000"),
            ("1970-01-02Z", "86400.000000000"),
            ("123", "123"),
            ("123.5", "123.5"),
            ("0", "0"),
        ] {
            assert_eq!(parse_at(text, now).as_deref(), Ok(expected), "{text}");
        }
        assert!(parse_at("x", now).is_err() && parse_at("", now).is_err());
    }
}
