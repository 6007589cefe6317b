//! the numbers people read: sizes, durations, ages, in Docker's (go-units') notation, both ways. Pure.

use std::time::Duration;

const DECIMAL: [&str; 9] = ["B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"];
const BINARY: [&str; 9] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"];

/// Formats `value` with `digits` significant digits the way Go's `%.*g` does, trailing zeros removed.
fn significant(value: f64, digits: usize) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let scientific = format!("{:.*e}", digits - 1, value);
    let exponent: i32 = scientific
        .split_once('e')
        .and_then(|(_, e)| e.parse().ok())
        .unwrap_or(0);
    if exponent < -4 || exponent >= digits as i32 {
        let mantissa = scientific.split('e').next().unwrap_or("0");
        let mantissa = if mantissa.contains('.') {
            mantissa.trim_end_matches('0').trim_end_matches('.')
        } else {
            mantissa
        };
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    let fixed = format!(
        "{:.*}",
        (digits as i32 - 1 - exponent).max(0) as usize,
        value
    );
    if fixed.contains('.') {
        fixed.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        fixed
    }
}

fn scaled(mut size: f64, base: f64, names: &[&'static str]) -> (f64, &'static str) {
    let mut i = 0;
    while size >= base && i < names.len() - 1 {
        size /= base;
        i += 1;
    }
    (size, names[i])
}

/// `1.923kB`: base 1000, four significant digits.
pub fn human_size(bytes: f64) -> String {
    human_size_digits(bytes, 4)
}

/// Base 1000 with the given number of significant digits.
pub fn human_size_digits(bytes: f64, digits: usize) -> String {
    let (value, unit) = scaled(bytes, 1000.0, &DECIMAL);
    format!("{}{unit}", significant(value, digits))
}

/// `1.234MiB`: base 1024, four significant digits.
pub fn bytes_size(bytes: f64) -> String {
    let (value, unit) = scaled(bytes, 1024.0, &BINARY);
    format!("{}{unit}", significant(value, 4))
}

/// Reads `512m`, `1.5GiB`, `0` as bytes; base 1024 whatever the suffix.
pub fn ram_in_bytes(text: &str) -> Result<i64, String> {
    let invalid = || format!("invalid size: '{text}'");
    let split = text
        .rfind(|c: char| c.is_ascii_digit() || c == '.')
        .map_or(0, |i| i + 1);
    let (number, suffix) = text.split_at(split);
    let number = number.trim_end();
    if number.is_empty() || number.starts_with('+') {
        return Err(invalid());
    }
    let value: f64 = number.parse().map_err(|_| invalid())?;
    if value < 0.0 || !number.chars().all(|c| c.is_ascii_digit() || c == '.') {
        return Err(invalid());
    }
    let suffix = suffix.strip_prefix(' ').unwrap_or(suffix).to_lowercase();
    let power = match suffix.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return Err(format!("invalid suffix: '{suffix}'")),
    };
    Ok((value * 1024f64.powi(power)) as i64)
}

/// Reads a decimal number of CPUs as billionths of one.
pub fn nano_cpus(text: &str) -> Result<i64, String> {
    let failed = || format!("failed to parse {text} as a rational number");
    let (numerator, denominator) = text.split_once('/').unwrap_or((text, "1"));
    let n: f64 = numerator.parse().map_err(|_| failed())?;
    let d: f64 = denominator.parse().map_err(|_| failed())?;
    if !n.is_finite() || !d.is_finite() || d == 0.0 {
        return Err(failed());
    }
    let nano = n / d * 1e9;
    if (nano - nano.round()).abs() > 1e-3 {
        return Err("value is too precise".to_owned());
    }
    Ok(nano.round() as i64)
}

/// Reads a Go duration (`1h2m3.5s`) as nanoseconds.
pub fn go_duration(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0f64;
    while !rest.is_empty() {
        let number_end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let value: f64 = rest[..number_end].parse().map_err(|_| invalid())?;
        rest = &rest[number_end..];
        let unit_end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let unit = &rest[..unit_end];
        rest = &rest[unit_end..];
        total += value
            * match unit {
                "ns" => 1.0,
                "us" | "µs" | "μs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                "" => return Err(format!("time: missing unit in duration {text:?}")),
                _ => return Err(format!("time: unknown unit {unit:?} in duration {text:?}")),
            };
    }
    if total > i64::MAX as f64 {
        return Err(invalid());
    }
    Ok(if negative {
        -(total as i64)
    } else {
        total as i64
    })
}

/// `About a minute`, `3 weeks`: how long something took or is ago.
pub fn human_duration(d: Duration) -> String {
    let seconds = d.as_secs();
    let minutes = seconds / 60;
    let hours = (d.as_secs_f64() / 3600.0 + 0.5) as u64;
    match () {
        () if seconds < 1 => "Less than a second".to_owned(),
        () if seconds == 1 => "1 second".to_owned(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".to_owned(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".to_owned(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", (seconds / 3600) / 24 / 365),
    }
}

/// The age of a Unix time in seconds, as `3 minutes ago`.
pub fn ago(unix_seconds: i64) -> String {
    let now = chrono::Utc::now().timestamp();
    format!(
        "{} ago",
        human_duration(Duration::from_secs(
            now.saturating_sub(unix_seconds).max(0) as u64
        ))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_four_significant_digits() {
        for (bytes, text) in [
            (0.0, "0B"),
            (1923.0, "1.923kB"),
            (999.0, "999B"),
            (1000.0, "1kB"),
            (1_999_000.0, "1.999MB"),
            (123_456_789.0, "123.5MB"),
            (999_999.0, "1000kB"),
        ] {
            assert_eq!(human_size(bytes), text);
        }
        assert_eq!(bytes_size(1_048_576.0 * 1.5), "1.5MiB");
        assert_eq!(human_size_digits(7_650_123.0, 3), "7.65MB");
    }

    #[test]
    fn sizes_are_read_with_any_suffix() {
        for (text, bytes) in [
            ("0", 0),
            ("5b", 5),
            ("1k", 1024),
            ("1kb", 1024),
            ("1.5g", 1_610_612_736),
            ("512M", 512 << 20),
            ("2 GiB", 2 << 30),
        ] {
            assert_eq!(ram_in_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "abc", "-5", "+5", "1x", "k", "1.2.3"] {
            assert!(ram_in_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_read_as_go_reads_them() {
        assert_eq!(go_duration("1m30s"), Ok(90_000_000_000));
        assert_eq!(go_duration("1.5h"), Ok(5_400_000_000_000));
        assert_eq!(go_duration("-2ms"), Ok(-2_000_000));
        assert_eq!(
            go_duration("5"),
            Err("time: missing unit in duration \"5\"".to_owned())
        );
        assert_eq!(
            go_duration("5x"),
            Err("time: unknown unit \"x\" in duration \"5x\"".to_owned())
        );
        assert!(go_duration("").is_err() && go_duration("s").is_err());
    }

    #[test]
    fn ages_are_rounded_the_docker_way() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (125, "2 minutes"),
            (3600, "About an hour"),
            (5400, "2 hours"),
            (86400, "24 hours"),
            (172_800, "2 days"),
            (86400 * 15, "2 weeks"),
            (86400 * 61, "2 months"),
            (86400 * 900, "2 years"),
        ] {
            assert_eq!(human_duration(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn cpus_are_rational() {
        assert_eq!(nano_cpus("1.5"), Ok(1_500_000_000));
        assert_eq!(nano_cpus("1/2"), Ok(500_000_000));
        assert_eq!(
            nano_cpus("x"),
            Err("failed to parse x as a rational number".to_owned())
        );
        assert_eq!(
            nano_cpus("0.0000000001"),
            Err("value is too precise".to_owned())
        );
    }
}
