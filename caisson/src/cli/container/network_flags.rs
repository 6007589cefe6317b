//! `--network` in both of its forms, and the flags that belong to the first one.

use std::collections::BTreeMap;

use caisson_api::{EndpointIpamConfig, EndpointSettings, NetworkingConfig};

use crate::cli::flags::Parsed;

/// `--network name=net,alias=a` names its network inside.
pub fn name(text: &str) -> &str {
    text.split(',')
        .find_map(|f| f.strip_prefix("name="))
        .unwrap_or(text)
}

/// The networks a container is to be connected to; `first` is its network mode.
pub fn networking(parsed: &Parsed, first: &str) -> Result<NetworkingConfig, String> {
    let aliased = parsed.given("network-alias") || parsed.given("net-alias");
    if aliased && ["default", "bridge", "host", "none"].contains(&first) {
        return Err(
            "network-scoped aliases are only supported for user-defined networks".to_owned(),
        );
    }
    let mut endpoints = BTreeMap::new();
    for (i, text) in [parsed.list("network"), parsed.list("net")]
        .concat()
        .iter()
        .enumerate()
    {
        let network = name(text).to_owned();
        let mut settings = EndpointSettings::default();
        let mut ipam = EndpointIpamConfig::default();
        if text.contains("name=") {
            long_form(text, &mut settings, &mut ipam)?;
        }
        if i == 0 {
            single_network(parsed, &mut settings, &mut ipam);
        }
        settings.ipam_config = (ipam != EndpointIpamConfig::default()).then_some(ipam);
        // Docker's own networks take no options, and an empty entry would say nothing.
        if ["host", "none", "bridge"].contains(&network.as_str())
            && settings == EndpointSettings::default()
        {
            continue;
        }
        if endpoints.insert(network.clone(), settings).is_some() {
            return Err(format!("network {network:?} is specified multiple times"));
        }
    }
    if endpoints.is_empty() && first == "default" {
        let mut settings = EndpointSettings::default();
        let mut ipam = EndpointIpamConfig::default();
        single_network(parsed, &mut settings, &mut ipam);
        settings.ipam_config = (ipam != EndpointIpamConfig::default()).then_some(ipam);
        endpoints.insert(first.to_owned(), settings);
    }
    Ok(NetworkingConfig {
        endpoints_config: Some(endpoints),
    })
}

/// `name=net,alias=a,ip=…`.
fn long_form(
    text: &str,
    settings: &mut EndpointSettings,
    ipam: &mut EndpointIpamConfig,
) -> Result<(), String> {
    for field in text.split(',') {
        match field.split_once('=') {
            Some(("name", _)) => {}
            Some(("alias", value)) => settings
                .aliases
                .get_or_insert_default()
                .push(value.to_owned()),
            Some(("ip", value)) => ipam.ipv4_address = value.to_owned(),
            Some(("ip6", value)) => ipam.ipv6_address = value.to_owned(),
            Some(("mac-address", value)) => settings.mac_address = value.to_owned(),
            Some(("driver-opt", value)) => {
                let (k, v) = value.split_once('=').unwrap_or((value, ""));
                settings
                    .driver_opts
                    .get_or_insert_default()
                    .insert(k.to_owned(), v.to_owned());
            }
            _ => return Err(format!("invalid field in --network: {field}")),
        }
    }
    Ok(())
}

/// Flags that belong to the first network: `--ip`, `--network-alias` and their kind.
fn single_network(parsed: &Parsed, settings: &mut EndpointSettings, ipam: &mut EndpointIpamConfig) {
    let aliases = [parsed.list("network-alias"), parsed.list("net-alias")].concat();
    if !aliases.is_empty() {
        settings.aliases.get_or_insert_default().extend(aliases);
    }
    for (flag, field) in [
        ("ip", &mut ipam.ipv4_address),
        ("ip6", &mut ipam.ipv6_address),
    ] {
        if parsed.given(flag) {
            *field = parsed.text(flag).to_owned();
        }
    }
    ipam.link_local_ips
        .extend_from_slice(parsed.list("link-local-ip"));
    if parsed.given("mac-address") {
        settings.mac_address = parsed.text("mac-address").to_owned();
    }
}
