//! values of repeatable `run` flags: checked while parsing, read again while resolving. Pure; texts are Docker's.

use caisson_api::{DeviceMapping, DeviceRequest, ThrottleDevice, Ulimit, WeightDevice};

use super::mount_flag::csv;
use crate::cli::units;

type Checked = Result<String, String>;

/// `--attach`.
pub fn attach(value: &str) -> Checked {
    match value.to_lowercase().as_str() {
        s @ ("stdin" | "stdout" | "stderr") => Ok(s.to_owned()),
        _ => Err("valid streams are STDIN, STDOUT and STDERR".to_owned()),
    }
}

/// `--env`: a bare name takes the caller's value.
pub fn env(value: &str) -> Checked {
    match value.split_once('=') {
        Some(("", _)) => Err(format!("invalid environment variable: {value}")),
        Some(_) => Ok(value.to_owned()),
        None if value.is_empty() => Err("invalid environment variable: ".to_owned()),
        None => Ok(match std::env::var(value) {
            Ok(found) => format!("{value}={found}"),
            Err(_) => value.to_owned(),
        }),
    }
}

/// `--label`.
pub fn label(value: &str) -> Checked {
    let name = value.split('=').next().unwrap_or("");
    if name.trim().is_empty() {
        Err(format!("invalid label '{value}': empty name"))
    } else {
        Ok(value.to_owned())
    }
}

/// `--add-host name:ip` (or `name=ip`).
pub fn add_host(value: &str) -> Checked {
    let cut = value.split_once('=').or_else(|| value.split_once(':'));
    let Some((name, address)) = cut.filter(|(name, _)| !name.is_empty()) else {
        return Err(format!("bad format for add-host: {value:?}"));
    };
    if address == "host-gateway" {
        return Ok(format!("{name}:{address}"));
    }
    let bare = address
        .strip_prefix('[')
        .and_then(|a| a.strip_suffix(']'))
        .unwrap_or(address);
    match bare.parse::<std::net::IpAddr>() {
        Ok(_) => Ok(format!("{name}:{bare}")),
        Err(_) => Err(format!("invalid IP address in add-host: {address:?}")),
    }
}

/// `--dns`.
pub fn ip_address(value: &str) -> Checked {
    match value.trim().parse::<std::net::IpAddr>() {
        Ok(ip) => Ok(ip.to_string()),
        Err(_) => Err(format!("IP address is not correctly formatted: {value}")),
    }
}

/// `--dns-search`; `.` clears the list.
pub fn dns_search(value: &str) -> Checked {
    let domain = value.trim();
    let valid = !domain.is_empty()
        && domain.len() < 255
        && domain.split('.').all(|l| {
            !l.is_empty()
                && l.chars()
                    .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        });
    if domain == "." || valid {
        Ok(domain.to_owned())
    } else {
        Err(format!("{value} is not a valid domain"))
    }
}

/// `--link`.
pub fn link(value: &str) -> Checked {
    if value.is_empty() {
        return Err("empty string specified for links".to_owned());
    }
    if value.split(':').count() > 2 {
        Err(format!("bad format for links: {value}"))
    } else {
        Ok(value.to_owned())
    }
}

/// `--device-cgroup-rule`.
pub fn cgroup_rule(value: &str) -> Checked {
    let parts: Vec<&str> = value.split(' ').collect();
    let number = |n: &str| n == "*" || (!n.is_empty() && n.chars().all(|c| c.is_ascii_digit()));
    let valid = matches!(parts.as_slice(), [kind, numbers, mode]
        if matches!(*kind, "a" | "b" | "c")
            && numbers.split_once(':').is_some_and(|(a, b)| number(a) && number(b))
            && (1..=3).contains(&mode.len()) && mode.chars().all(|c| "rwm".contains(c)));
    if valid {
        Ok(value.to_owned())
    } else {
        Err(format!("invalid device cgroup format '{value}'"))
    }
}

/// `--sysctl`: only what belongs to a namespace can be a container's own.
pub fn sysctl(value: &str) -> Checked {
    const NAMED: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let key = value.split_once('=').map_or("", |(k, _)| k);
    if NAMED.contains(&key) || key.starts_with("net.") || key.starts_with("fs.mqueue.") {
        return Ok(value.to_owned());
    }
    Err(format!("sysctl '{value}' is not allowed"))
}

/// Checks a `--mount` where it stands.
pub fn mount(value: &str) -> Checked {
    super::mount_flag::mount(value).map(|_| value.to_owned())
}

/// Checks a `--ulimit`.
pub fn ulimit_text(value: &str) -> Checked {
    ulimit(value).map(|_| value.to_owned())
}

/// Reads `name=soft[:hard]`.
pub fn ulimit(value: &str) -> Result<Ulimit, String> {
    const NAMES: [&str; 15] = [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    let invalid = || format!("invalid ulimit argument: {value}");
    let (name, limits) = value.split_once('=').ok_or_else(invalid)?;
    if !NAMES.contains(&name) {
        return Err(format!("invalid ulimit type: {name}"));
    }
    let number = |t: &str| {
        t.parse::<i64>()
            .map_err(|_| format!("strconv.ParseInt: parsing {t:?}: invalid syntax"))
    };
    let parts: Vec<&str> = limits.split(':').collect();
    let (soft, hard) = match parts.as_slice() {
        [one] => {
            let n = number(one)?;
            (n, n)
        }
        [soft, hard] => (number(soft)?, number(hard)?),
        _ => {
            return Err(format!(
                "too many limit value arguments - {limits}, can only have up to two, `soft[:hard]`"
            ));
        }
    };
    if hard != -1 && (soft == -1 || soft > hard) {
        return Err(format!(
            "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
        ));
    }
    Ok(Ulimit {
        name: name.to_owned(),
        soft,
        hard,
    })
}

/// Checks `--blkio-weight-device`.
pub fn weight_text(value: &str) -> Checked {
    weight(value).map(|_| value.to_owned())
}

/// Reads `path:weight`.
pub fn weight(value: &str) -> Result<WeightDevice, String> {
    let (path, weight) = value
        .split_once(':')
        .filter(|(p, _)| !p.is_empty())
        .ok_or_else(|| format!("bad format: {value}"))?;
    if !path.starts_with("/dev/") {
        return Err(format!("bad format for device path: {value}"));
    }
    match weight.parse::<u16>() {
        Ok(w) if w == 0 || (10..=1000).contains(&w) => Ok(WeightDevice {
            path: path.to_owned(),
            weight: w,
        }),
        _ => Err(format!("invalid weight for device: {value}")),
    }
}

/// Checks `--device-read-bps` and `--device-write-bps`.
pub fn bps_text(value: &str) -> Checked {
    bps(value).map(|_| value.to_owned())
}

fn device_and_rate(value: &str) -> Result<(&str, &str), String> {
    let (path, rate) = value
        .split_once(':')
        .filter(|(p, _)| !p.is_empty())
        .ok_or_else(|| format!("bad format: {value}"))?;
    if path.starts_with("/dev/") {
        Ok((path, rate))
    } else {
        Err(format!("bad format for device path: {value}"))
    }
}

/// Reads `path:rate` with a size.
pub fn bps(value: &str) -> Result<ThrottleDevice, String> {
    let (path, rate) = device_and_rate(value)?;
    let rate = units::ram_in_bytes(rate).map_err(|_| {
        format!("invalid rate for device: {value}. The correct format is <device-path>:<number>[<unit>]. Number must be a positive integer. Unit is optional and can be kb, mb, or gb")
    })?;
    Ok(ThrottleDevice {
        path: path.to_owned(),
        rate: rate as u64,
    })
}

/// Checks `--device-read-iops` and `--device-write-iops`.
pub fn iops_text(value: &str) -> Checked {
    iops(value).map(|_| value.to_owned())
}

/// Reads `path:rate` with a count.
pub fn iops(value: &str) -> Result<ThrottleDevice, String> {
    let (path, rate) = device_and_rate(value)?;
    let rate = rate.parse().map_err(|_| {
        format!("invalid rate for device: {value}. The correct format is <device-path>:<number>. Number must be a positive integer")
    })?;
    Ok(ThrottleDevice {
        path: path.to_owned(),
        rate,
    })
}

/// Reads `--device host[:container[:rwm]]`.
pub fn device(value: &str) -> Result<DeviceMapping, String> {
    let mode = |m: &str| {
        !m.is_empty()
            && m.chars().all(|c| "rwm".contains(c))
            && m.chars().enumerate().all(|(i, c)| !m[..i].contains(c))
    };
    let parts: Vec<&str> = value.split(':').collect();
    let (source, target, permissions) = match parts.as_slice() {
        [source] if !source.is_empty() => (*source, *source, "rwm"),
        [source, second] if mode(second) => (*source, *source, *second),
        [source, target] => (
            *source,
            if target.is_empty() { *source } else { *target },
            "rwm",
        ),
        [source, target, permissions] => {
            if !mode(permissions) {
                return Err(format!("bad mode specified: {permissions}"));
            }
            (*source, *target, *permissions)
        }
        _ => return Err(format!("invalid device specification: {value}")),
    };
    if !target.starts_with('/') {
        return Err(format!("{target} is not an absolute path"));
    }
    Ok(DeviceMapping {
        path_on_host: source.to_owned(),
        path_in_container: target.to_owned(),
        cgroup_permissions: permissions.to_owned(),
    })
}

/// Checks `--gpus`.
pub fn gpus_text(value: &str) -> Checked {
    gpus(value).map(|_| value.to_owned())
}

/// Reads `--gpus`: `all`, a number, or CSV.
pub fn gpus(value: &str) -> Result<DeviceRequest, String> {
    let mut request = DeviceRequest::default();
    let count = |t: &str| match t {
        "all" => Ok(-1),
        n => n.parse::<i64>().map_err(|_| {
            format!(
                "invalid count ({t}): value must be either \"all\" or an integer: invalid syntax"
            )
        }),
    };
    let mut seen = Vec::new();
    let mut capabilities = vec!["gpu".to_owned()];
    for field in csv(value)? {
        let (key, text) = field.split_once('=').unwrap_or((field.as_str(), ""));
        if seen.contains(&key.to_owned()) {
            return Err(format!(
                "gpu request key '{key}' can be specified only once"
            ));
        }
        seen.push(key.to_owned());
        if !field.contains('=') {
            seen.push("count".to_owned());
            request.count = count(key)?;
            continue;
        }
        match key {
            "driver" => request.driver = text.to_owned(),
            "count" => request.count = count(text)?,
            "device" => request.device_ids = Some(text.split(',').map(str::to_owned).collect()),
            "capabilities" => {
                capabilities.extend(text.split(',').filter(|c| *c != "gpu").map(str::to_owned))
            }
            "options" => {
                let options = csv(text)?;
                request.options = Some(
                    options
                        .iter()
                        .map(|o| {
                            o.split_once('=')
                                .map_or((o.clone(), String::new()), |(k, v)| (k.into(), v.into()))
                        })
                        .collect(),
                );
            }
            _ => return Err(format!("unexpected key '{key}' in '{field}'")),
        }
    }
    if !seen.iter().any(|k| k == "count") && request.device_ids.is_none() {
        request.count = 1;
    }
    request.options.get_or_insert_default();
    request.capabilities = Some(vec![capabilities]);
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ulimits() {
        assert_eq!(
            ulimit("nofile=1024:2048"),
            Ok(Ulimit {
                name: "nofile".into(),
                soft: 1024,
                hard: 2048
            })
        );
        assert_eq!(
            ulimit("core=-1"),
            Ok(Ulimit {
                name: "core".into(),
                soft: -1,
                hard: -1
            })
        );
        assert_eq!(ulimit("x"), Err("invalid ulimit argument: x".into()));
        assert_eq!(ulimit("x=1"), Err("invalid ulimit type: x".into()));
        assert!(
            ulimit("nofile=3:2").is_err()
                && ulimit("nofile=1:2:3").is_err()
                && ulimit("nofile=a").is_err()
        );
    }

    #[test]
    fn devices() {
        for (text, expected) in [
            ("/dev/a", ("/dev/a", "/dev/a", "rwm")),
            ("/dev/a:r", ("/dev/a", "/dev/a", "r")),
            ("/dev/a:/dev/b", ("/dev/a", "/dev/b", "rwm")),
            ("/dev/a:/dev/b:rw", ("/dev/a", "/dev/b", "rw")),
        ] {
            let d = device(text).expect("valid");
            assert_eq!(
                (
                    d.path_on_host.as_str(),
                    d.path_in_container.as_str(),
                    d.cgroup_permissions.as_str()
                ),
                expected
            );
        }
        assert_eq!(device("x:y:z"), Err("bad mode specified: z".into()));
        assert!(
            device("/dev/a:/dev/b:rr").is_err()
                && device("").is_err()
                && device("a:b:r:w").is_err()
        );
    }

    #[test]
    fn lists_are_checked() {
        assert_eq!(add_host("h:::1"), Ok("h:::1".into()));
        assert_eq!(add_host("h=10.0.0.1"), Ok("h:10.0.0.1".into()));
        assert_eq!(add_host("h:host-gateway"), Ok("h:host-gateway".into()));
        assert!(
            add_host("h").is_err() && add_host("h:x").is_err() && add_host(":1.1.1.1").is_err()
        );
        assert!(
            ip_address("1.2.3").is_err()
                && label("=x").is_err()
                && attach("foo").is_err()
                && env("=x").is_err()
        );
        assert!(
            cgroup_rule("c 1:3 mr").is_ok()
                && cgroup_rule("c 1 mr").is_err()
                && cgroup_rule("x 1:1 r").is_err()
        );
        assert!(weight("/dev/sda:5").is_err() && weight("/dev/sda:500").is_ok());
        assert_eq!(bps("/dev/sda:1mb").map(|d| d.rate), Ok(1 << 20));
        assert!(iops("/dev/sda:1mb").is_err());
    }

    #[test]
    fn gpu_requests() {
        assert_eq!(gpus("all").map(|r| r.count), Ok(-1));
        assert_eq!(gpus("2").map(|r| r.count), Ok(2));
        let r = gpus("\"device=0,1\",driver=x").expect("valid");
        assert_eq!(
            (r.device_ids, r.driver.as_str()),
            (Some(vec!["0".into(), "1".into()]), "x")
        );
        assert!(gpus("foo").is_err());
    }
}
