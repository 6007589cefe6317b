//! The text of `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf` of a container.
//!
//! Must not know: where the files are kept.

use std::fmt::Write as _;
use std::net::IpAddr;

use caisson_api as api;

use crate::error::{Error, Result};

/// Host name of a container: what was asked for, else the short id.
pub(crate) fn hostname(config: &api::ContainerConfig, id: &str) -> String {
    if config.hostname.is_empty() {
        crate::names::short(id).into()
    } else {
        config.hostname.clone()
    }
}

/// Refuses host names that the kernel or programs would choke on.
pub(crate) fn check_hostname(config: &api::ContainerConfig) -> Result<()> {
    for (what, name) in [
        ("hostname", &config.hostname),
        ("domainname", &config.domainname),
    ] {
        let odd = |b: u8| !(b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
        if name.len() > 63 || name.bytes().any(odd) || name.starts_with(['-', '.']) {
            return Err(Error::invalid(format!(
                "invalid {what} format: {name}: use at most 63 letters, digits, '-', '_' and '.'"
            )));
        }
    }
    Ok(())
}

/// `--add-host NAME:ADDRESS` (or `NAME=ADDRESS`), split and checked.
pub(crate) fn extra_host(entry: &str) -> Result<(&str, &str)> {
    let bad = |why: &str| Error::invalid(format!("bad format for add-host: \"{entry}\"{why}"));
    let (name, address) = entry.split_once([':', '=']).ok_or_else(|| bad(""))?;
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(bad(": the name is missing or has spaces"));
    }
    let bare = address.trim_start_matches('[').trim_end_matches(']');
    if bare == "host-gateway" {
        return Ok((name, "127.0.0.1"));
    }
    bare.parse::<IpAddr>()
        .map(|_| (name, bare))
        .map_err(|_| Error::invalid(format!("invalid IP address in add-host: \"{address}\"")))
}

/// `/etc/hosts` of a container with a network namespace of its own that has nothing but loopback.
pub(crate) fn hosts(
    config: &api::ContainerConfig,
    host: &api::HostConfig,
    id: &str,
) -> Result<String> {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for entry in host.extra_hosts.iter().flatten() {
        let (name, address) = extra_host(entry)?;
        let _ = writeln!(text, "{address}\t{name}");
    }
    if host.network_mode != "none" {
        // Until there are networks a container reaches itself over loopback.
        let name = hostname(config, id);
        if config.domainname.is_empty() {
            let _ = writeln!(text, "127.0.0.1\t{name}");
        } else {
            let _ = writeln!(text, "127.0.0.1\t{name}.{} {name}", config.domainname);
        }
    }
    Ok(text)
}

/// Appends `--add-host` to the host's own `/etc/hosts` (`--network host`).
pub(crate) fn hosts_of_host(own: &str, host: &api::HostConfig) -> Result<String> {
    let mut text = own.to_string();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    for entry in host.extra_hosts.iter().flatten() {
        let (name, address) = extra_host(entry)?;
        let _ = writeln!(text, "{address}\t{name}");
    }
    Ok(text)
}

/// Checks `--dns` and `--dns-search`.
pub(crate) fn check_dns(host: &api::HostConfig) -> Result<()> {
    for server in host.dns.iter().flatten() {
        server.parse::<IpAddr>().map_err(|_| {
            Error::invalid(format!(
                "invalid nameserver address \"{server}\" in --dns: use an IP address"
            ))
        })?;
    }
    for text in host
        .dns_search
        .iter()
        .flatten()
        .chain(host.dns_options.iter().flatten())
    {
        if text.contains(char::is_whitespace) {
            return Err(Error::invalid(format!(
                "invalid DNS option or search domain \"{text}\": it has spaces in it"
            )));
        }
    }
    Ok(())
}

/// `/etc/resolv.conf`: the host's, with the user's servers, domains and options in place of its own.
pub(crate) fn resolv_conf(own: &str, host: &api::HostConfig) -> String {
    let given = |list: &Option<Vec<String>>| list.clone().filter(|l| !l.is_empty());
    let (dns, search, options) = (
        given(&host.dns),
        given(&host.dns_search),
        given(&host.dns_options),
    );
    if dns.is_none() && search.is_none() && options.is_none() {
        return own.to_string();
    }
    let from_host = |keyword: &str| -> Vec<String> {
        own.lines()
            .filter_map(|l| l.trim().strip_prefix(keyword)?.strip_prefix([' ', '\t']))
            .flat_map(|rest| {
                rest.split_ascii_whitespace()
                    .map(str::to_string)
                    .collect::<Vec<_>>()
            })
            .collect()
    };
    let mut text = String::new();
    for server in dns.unwrap_or_else(|| from_host("nameserver")) {
        let _ = writeln!(text, "nameserver {server}");
    }
    let search = search.unwrap_or_else(|| from_host("search"));
    if !search.is_empty() && search != ["."] {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    let options = options.unwrap_or_else(|| from_host("options"));
    if !options.is_empty() {
        let _ = writeln!(text, "options {}", options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_takes_what_was_given() {
        let own = "# by hand\nnameserver 10.0.0.1\nnameserver 10.0.0.2\nsearch corp.example\noptions ndots:2\n";
        let list = |s: &str| Some(vec![s.to_string()]);
        assert_eq!(resolv_conf(own, &api::HostConfig::default()), own);
        let host = api::HostConfig {
            dns: list("1.1.1.1"),
            ..Default::default()
        };
        assert_eq!(
            resolv_conf(own, &host),
            "nameserver 1.1.1.1\nsearch corp.example\noptions ndots:2\n"
        );
        let host = api::HostConfig {
            dns_search: list("."),
            ..Default::default()
        };
        assert_eq!(
            resolv_conf(own, &host),
            "nameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:2\n"
        );
    }

    #[test]
    fn hosts_lists_extra_ones() {
        let host = api::HostConfig {
            extra_hosts: Some(vec![
                "db:10.1.2.3".into(),
                "six:fe80::1".into(),
                "b=[::1]".into(),
            ]),
            ..Default::default()
        };
        let text = hosts(&api::ContainerConfig::default(), &host, "abcdef0123456789").unwrap();
        assert!(
            text.contains("10.1.2.3\tdb\n")
                && text.contains("fe80::1\tsix\n")
                && text.contains("::1\tb\n")
        );
        assert!(text.contains("127.0.0.1\tabcdef012345\n"));
        assert!(
            extra_host("nocolon").is_err()
                && extra_host("a:b").is_err()
                && extra_host("x y:1.1.1.1").is_err()
        );
    }

    #[test]
    fn hostnames_are_checked() {
        let c = |hostname: &str| api::ContainerConfig {
            hostname: hostname.into(),
            ..Default::default()
        };
        assert!(check_hostname(&c("web-1.example")).is_ok());
        assert!(check_hostname(&c("web\n127.0.0.1 evil")).is_err());
        assert!(check_hostname(&c(&"a".repeat(64))).is_err());
    }
}
