//! Signals by name or number, as users type them.

/// `9`, `KILL`, `SIGKILL`, `sigkill`, `RTMIN+3`.
pub(crate) fn parse(text: &str) -> Option<i32> {
    const LARGEST: i32 = 64;
    let text = text.trim();
    if let Ok(number) = text.parse::<i32>() {
        return (1..=LARGEST).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    let (rtmin, rtmax) = (34, LARGEST);
    let real_time = |rest: &str, base: i32| match rest {
        "" => Some(base),
        rest => rest.parse::<i32>().ok().map(|n| base + n),
    };
    if let Some(rest) = bare.strip_prefix("RTMIN") {
        return real_time(rest, rtmin).filter(|n| (rtmin..=rtmax).contains(n));
    }
    if let Some(rest) = bare.strip_prefix("RTMAX") {
        return real_time(rest, rtmax).filter(|n| (rtmin..=rtmax).contains(n));
    }
    let name = match bare {
        "CLD" => "SIGCHLD".into(),
        "POLL" => "SIGIO".into(),
        "IOT" => "SIGABRT".into(),
        other => format!("SIG{other}"),
    };
    name.parse::<nix::sys::signal::Signal>()
        .ok()
        .map(|s| s as i32)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn all_spellings() {
        for text in ["9", "KILL", "SIGKILL", "sigkill", " Kill "] {
            assert_eq!(parse(text), Some(9), "{text}");
        }
        assert_eq!(parse("RTMIN+3"), Some(37));
        assert_eq!(parse("SIGRTMAX-1"), Some(63));
        assert_eq!(parse("STKFLT"), Some(16));
        for bad in ["", "0", "65", "-9", "FOO", "SIG", "RTMIN+99"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
