//! `--publish` and `--expose`: port specifications with ranges. Pure.

use std::collections::BTreeMap;

use caisson_api::PortBinding;

/// Container ports (`80/tcp`) and the host addresses each is published at.
pub type Bindings = BTreeMap<String, Option<Vec<PortBinding>>>;

fn range(text: &str) -> Result<(u16, u16), String> {
    if text.is_empty() {
        return Err("empty string specified for ports".to_owned());
    }
    let one = |t: &str| {
        t.parse::<u64>()
            .map_err(|_| format!("strconv.ParseUint: parsing {t:?}: invalid syntax"))
            .and_then(|n| {
                u16::try_from(n)
                    .map_err(|_| format!("strconv.ParseUint: parsing {t:?}: value out of range"))
            })
    };
    match text.split_once('-') {
        None => one(text).map(|p| (p, p)),
        Some((low, high)) => {
            let (low, high) = (one(low)?, one(high)?);
            if high < low {
                Err(format!("invalid range specified for port: {text}"))
            } else {
                Ok((low, high))
            }
        }
    }
}

fn protocol(text: &str) -> Result<(&str, String), String> {
    let (ports, proto) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    let proto = if proto.is_empty() { "tcp" } else { proto };
    match proto.to_lowercase().as_str() {
        p @ ("tcp" | "udp" | "sctp") => Ok((ports, p.to_owned())),
        _ => Err(format!("invalid proto: {proto}")),
    }
}

/// Reads one `--publish` into `bindings`.
pub fn publish(spec: &str, bindings: &mut Bindings) -> Result<(), String> {
    let spec = &long_form(spec)?;
    let (ports, proto) = protocol(spec)?;
    let (address, host, container) = match ports.rsplit_once(':') {
        None => ("", "", ports),
        Some((front, container)) => match front.rsplit_once(':') {
            Some((address, host)) => (address, host, container),
            // `[::1]:80`-like text has its colons before the last one; a lone front is a host port.
            None => ("", front, container),
        },
    };
    if container.is_empty() {
        return Err(format!("no port specified: {spec}<empty>"));
    }
    let address = address
        .strip_prefix('[')
        .and_then(|a| a.strip_suffix(']'))
        .unwrap_or(address);
    if !address.is_empty() && address.parse::<std::net::IpAddr>().is_err() {
        return Err(format!("invalid IP address: {address}"));
    }
    let (first, last) =
        range(container).map_err(|_| format!("invalid containerPort: {container}"))?;
    let host_range = if host.is_empty() {
        None
    } else {
        Some(range(host).map_err(|_| format!("invalid hostPort: {host}"))?)
    };
    if let Some((host_first, host_last)) = host_range
        && host_last - host_first != last - first
        && first != last
    {
        return Err(format!(
            "invalid ranges specified for container and host Ports: {container} and {host}"
        ));
    }
    for (offset, port) in (first..=last).enumerate() {
        let host_port = match host_range {
            None => String::new(),
            // One container port and many host ports: the daemon picks one of the range.
            Some((low, high)) if first == last && high > low => format!("{low}-{high}"),
            Some((low, _)) => (usize::from(low) + offset).to_string(),
        };
        let binding = PortBinding {
            host_ip: address.to_owned(),
            host_port,
        };
        bindings
            .entry(format!("{port}/{proto}"))
            .or_default()
            .get_or_insert_default()
            .push(binding);
    }
    Ok(())
}

/// `published=8080,target=80,protocol=tcp` as the short form.
fn long_form(spec: &str) -> Result<String, String> {
    if !spec.contains('=') {
        return Ok(spec.to_owned());
    }
    let (mut target, mut published, mut proto) = ("", "", "tcp");
    for field in spec.split(',') {
        let Some((key, value)) = field.split_once('=') else {
            return Err(format!("invalid field: {field}"));
        };
        match key.to_lowercase().as_str() {
            "target" => target = value,
            "published" => published = value,
            "protocol" => proto = value,
            "mode" => {}
            other => return Err(format!("invalid field key: {other}")),
        }
    }
    Ok(if published.is_empty() {
        format!("{target}/{proto}")
    } else {
        format!("{published}:{target}/{proto}")
    })
}

/// Reads one `--expose`.
pub fn expose(spec: &str) -> Result<Vec<String>, String> {
    if spec.contains(':') {
        return Err(format!("invalid port format for --expose: {spec}"));
    }
    let (ports, proto) = protocol(spec)
        .map_err(|e| format!("invalid range format for --expose: {spec}, error: {e}"))?;
    let (first, last) = range(ports)
        .map_err(|e| format!("invalid range format for --expose: {spec}, error: {e}"))?;
    Ok((first..=last).map(|p| format!("{p}/{proto}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(spec: &str) -> Result<Vec<(String, String, String)>, String> {
        let mut bindings = Bindings::new();
        publish(spec, &mut bindings)?;
        Ok(bindings
            .into_iter()
            .flat_map(|(port, list)| {
                list.unwrap_or_default()
                    .into_iter()
                    .map(move |b| (port.clone(), b.host_ip, b.host_port))
            })
            .collect())
    }

    #[test]
    fn every_form_of_publish() {
        let row = |p: &str, a: &str, h: &str| (p.to_owned(), a.to_owned(), h.to_owned());
        for (spec, expected) in [
            ("80", vec![row("80/tcp", "", "")]),
            ("8080:80", vec![row("80/tcp", "", "8080")]),
            (
                "127.0.0.1:8080:80/udp",
                vec![row("80/udp", "127.0.0.1", "8080")],
            ),
            ("127.0.0.1::80", vec![row("80/tcp", "127.0.0.1", "")]),
            ("[::1]:8080:80", vec![row("80/tcp", "::1", "8080")]),
            (
                "8000-8001:80-81",
                vec![row("80/tcp", "", "8000"), row("81/tcp", "", "8001")],
            ),
            ("8000-8010:80", vec![row("80/tcp", "", "8000-8010")]),
            (
                "published=1,target=2,protocol=udp",
                vec![row("2/udp", "", "1")],
            ),
        ] {
            assert_eq!(published(spec), Ok(expected), "{spec}");
        }
        for (spec, message) in [
            ("99999:1", "invalid hostPort: 99999"),
            ("1:x", "invalid containerPort: x"),
            ("1:2/foo", "invalid proto: foo"),
            (
                "1-2:1-3",
                "invalid ranges specified for container and host Ports: 1-3 and 1-2",
            ),
            ("a:1:2", "invalid IP address: a"),
        ] {
            assert_eq!(published(spec).expect_err(spec), message);
        }
    }

    #[test]
    fn expose_expands_ranges() {
        assert_eq!(
            expose("80-81/udp"),
            Ok(vec!["80/udp".into(), "81/udp".into()])
        );
        assert!(expose("1:2").is_err() && expose("x").is_err());
    }
}
