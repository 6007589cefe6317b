//! The guest's network, which is its sandbox': what the host asks for, checked and turned into changes, then made.
//!
//! ```text
//!   Interface (strings) ── check ──▶ Wanted ── plan, knowing what is there ──▶ Change* ──▶ netlink
//! ```
//!
//! An interface is found by its hardware address. Names that are taken by another interface (two cards that the kernel found
//! in the other order) are freed first.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use caisson_protocol::{Error, Interface, Route, parse_mac};

use crate::netlink::{Change, Link, Netlink};

/// `IFNAMSIZ`, the final NUL not counted.
const NAME_BYTES: usize = 15;

/// An interface that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    name: String,
    mac: [u8; 6],
    mtu: u32,
    addresses: Vec<(IpAddr, u8)>,
    routes: Vec<(IpAddr, u8, Option<IpAddr>)>,
}

/// Raises `lo`; the kernel gives it its addresses.
pub fn raise_loopback() -> io::Result<()> {
    let failed = |e: io::Error| {
        io::Error::new(
            e.kind(),
            format!("cannot raise the loopback interface: {e}"),
        )
    };
    // Always the first interface of a network namespace.
    let up = Change::Up { index: 1 };
    Netlink::open()
        .and_then(|mut netlink| netlink.apply(&up))
        .map_err(failed)
}

/// Sets all interfaces up.
pub fn configure(interfaces: &[Interface]) -> Result<(), Error> {
    if interfaces.is_empty() {
        return Ok(());
    }
    let wanted = interfaces
        .iter()
        .map(check)
        .collect::<Result<Vec<Wanted>, Error>>()?;
    let failed = |e: io::Error| Error::failed("cannot ask the kernel for its interfaces", e);
    let mut netlink = Netlink::open().map_err(failed)?;
    let links = netlink.links().map_err(failed)?;
    let changes = plan(&wanted, &links)?;
    for (name, changes) in changes {
        for change in &changes {
            netlink.apply(change).map_err(|e| {
                Error::failed(format!("cannot set up the interface {name}: {change:?}"), e)
            })?;
            // Before it is raised, so that it never has an address that nobody asked for.
            if let Change::Rename { .. } | Change::Mtu { .. } = change
                && let Some(wanted) = wanted.iter().find(|w| w.name == name)
            {
                choose_ipv6(wanted)?;
            }
        }
    }
    Ok(())
}

/// IPv6 only where the interface has such an address; then nothing that a router says counts, the host decides.
fn choose_ipv6(wanted: &Wanted) -> Result<(), Error> {
    let has_ipv6 = wanted.addresses.iter().any(|(a, _)| a.is_ipv6());
    let (file, value) = if has_ipv6 {
        ("accept_ra", "0")
    } else {
        ("disable_ipv6", "1")
    };
    let path = format!("/proc/sys/net/ipv6/conf/{}/{file}", wanted.name);
    match fs::write(&path, value) {
        // A kernel without IPv6.
        Err(e) if e.kind() == io::ErrorKind::NotFound && !has_ipv6 => Ok(()),
        other => other.map_err(|e| Error::failed(format!("cannot write {path}"), e)),
    }
}

/// The changes, by interface. Pure.
fn plan(wanted: &[Wanted], links: &[Link]) -> Result<Vec<(String, Vec<Change>)>, Error> {
    let mut found = Vec::new();
    for want in wanted {
        let link = links.iter().find(|l| l.mac == want.mac).ok_or_else(|| {
            let there: Vec<&str> = links.iter().map(|l| l.name.as_str()).collect();
            Error::internal(format!(
                "the guest has no network device with the address {} for {} (it has {})",
                show_mac(&want.mac),
                want.name,
                there.join(", ")
            ))
        })?;
        found.push((want, link));
    }
    let mut changes = Vec::new();
    for (number, (_, link)) in found.iter().enumerate() {
        let in_the_way = found
            .iter()
            .any(|(want, other)| want.name == link.name && other.index != link.index);
        if in_the_way {
            let name = format!("moving{number}");
            changes.push((
                link.name.clone(),
                vec![Change::Rename {
                    index: link.index,
                    name,
                }],
            ));
        }
    }
    for (want, link) in found {
        let index = link.index;
        let mut steps = vec![
            Change::Rename {
                index,
                name: want.name.clone(),
            },
            Change::Mtu {
                index,
                mtu: want.mtu,
            },
            Change::Up { index },
        ];
        steps.extend(
            want.addresses
                .iter()
                .map(|&(address, prefix)| Change::Address {
                    index,
                    address,
                    prefix,
                }),
        );
        steps.extend(
            want.routes
                .iter()
                .map(|&(destination, prefix, gateway)| Change::Route {
                    index,
                    destination,
                    prefix,
                    gateway,
                }),
        );
        changes.push((want.name.clone(), steps));
    }
    Ok(changes)
}

fn check(interface: &Interface) -> Result<Wanted, Error> {
    let Interface {
        name,
        mac,
        mtu,
        addresses,
        routes,
    } = interface;
    let bad = |what: String| Error::invalid(format!("the network interface {name:?}: {what}"));
    let plain = |c: u8| c.is_ascii_graphic() && !matches!(c, b'/' | b':');
    if name.is_empty()
        || name.len() > NAME_BYTES
        || !name.bytes().all(plain)
        || matches!(name.as_str(), "." | ".." | "lo")
    {
        return Err(bad("that is no name for one".into()));
    }
    let network = |text: &str| {
        parse_network(text)
            .ok_or_else(|| bad(format!("{text:?} is not an address with its prefix length")))
    };
    let route = |route: &Route| {
        let (destination, prefix) = network(&route.destination)?;
        let gateway = route
            .gateway
            .as_deref()
            .map(|text| {
                text.parse::<IpAddr>()
                    .ok()
                    .filter(|gateway| gateway.is_ipv4() == destination.is_ipv4())
                    .ok_or_else(|| bad(format!("{text:?} is not a gateway to {destination}")))
            })
            .transpose()?;
        Ok((masked(destination, prefix), prefix, gateway))
    };
    Ok(Wanted {
        name: name.clone(),
        mac: parse_mac(mac).ok_or_else(|| bad(format!("{mac:?} is not a hardware address")))?,
        mtu: *mtu,
        addresses: addresses
            .iter()
            .map(|text| network(text))
            .collect::<Result<_, _>>()?,
        routes: routes.iter().map(route).collect::<Result<_, _>>()?,
    })
}

fn show_mac(mac: &[u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn parse_network(text: &str) -> Option<(IpAddr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let prefix: u8 = prefix.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    (prefix <= most).then_some((address, prefix))
}

/// The kernel refuses a route whose destination has bits beyond its prefix.
fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            Ipv4Addr::from(u32::from(v4) & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            Ipv6Addr::from(u128::from(v6) & mask).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn interface(name: &str, mac: &str) -> Interface {
        Interface {
            name: name.into(),
            mac: mac.into(),
            mtu: 1500,
            addresses: vec!["10.0.0.2/24".into(), "fd00::2/64".into()],
            routes: vec![Route {
                destination: "0.0.0.0/0".into(),
                gateway: Some("10.0.0.1".into()),
            }],
        }
    }

    fn link(index: u32, name: &str, mac: [u8; 6]) -> Link {
        Link {
            index,
            name: name.into(),
            mac: mac.to_vec(),
        }
    }

    #[test]
    fn an_interface_is_found_by_its_address_and_set_up_in_order() {
        let wanted = [check(&interface("net0", "02:00:00:00:00:07")).expect("fine")];
        let links = [link(1, "lo", [0; 6]), link(4, "eth0", [2, 0, 0, 0, 0, 7])];
        let plan = plan(&wanted, &links).expect("plans");
        assert_eq!(plan.len(), 1);
        let (name, changes) = &plan[0];
        assert_eq!(name, "net0");
        let rename = Change::Rename {
            index: 4,
            name: "net0".into(),
        };
        assert_eq!(changes[0], rename);
        assert_eq!(changes[2], Change::Up { index: 4 });
        assert_eq!(changes.len(), 6);
        assert!(matches!(
            changes[5],
            Change::Route {
                index: 4,
                prefix: 0,
                gateway: Some(_),
                ..
            }
        ));
    }

    #[test]
    fn two_cards_in_the_wrong_order_change_names() {
        let wanted: Vec<Wanted> = [("eth0", "02:00:00:00:00:01"), ("eth1", "02:00:00:00:00:02")]
            .map(|(name, mac)| check(&interface(name, mac)).expect("fine"))
            .into();
        let links = [
            link(2, "eth0", [2, 0, 0, 0, 0, 2]),
            link(3, "eth1", [2, 0, 0, 0, 0, 1]),
        ];
        let mut names: Vec<(u32, String)> =
            links.iter().map(|l| (l.index, l.name.clone())).collect();
        for change in plan(&wanted, &links)
            .expect("plans")
            .into_iter()
            .flat_map(|(_, c)| c)
        {
            let Change::Rename { index, name } = change else {
                continue;
            };
            assert!(
                !names.iter().any(|(i, n)| *n == name && *i != index),
                "{name} is taken"
            );
            if let Some(mine) = names.iter_mut().find(|(i, _)| *i == index) {
                mine.1 = name;
            }
        }
        assert_eq!(names, [(2, "eth1".into()), (3, "eth0".into())]);
    }

    /// `ip` in the calling thread's network namespace.
    fn ip(arguments: &str) -> String {
        let output = std::process::Command::new("ip")
            .args(arguments.split(' '))
            .output()
            .expect("iproute2 is installed");
        assert!(output.status.success(), "ip {arguments}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    fn the_kernel_takes_every_change() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: a network namespace needs root");
            return;
        }
        // Its thread's alone: the namespace goes with it.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a namespace");
        ip("link add eth7 address 02:00:00:00:00:07 type veth peer name other");
        ip("link set other up");
        raise_loopback().expect("raised");
        let mut wanted = interface("eth0", "02:00:00:00:00:07");
        wanted.mtu = 1400;
        wanted.routes.push(Route {
            destination: "fd01::1/48".into(),
            gateway: Some("fd00::1".into()),
        });
        wanted.routes.push(Route {
            destination: "10.9.0.0/16".into(),
            gateway: None,
        });
        configure(&[wanted]).expect("configured");
        let shown = ip("-o addr show");
        for part in [
            "127.0.0.1/8",
            "10.0.0.2/24 brd 10.0.0.255",
            "fd00::2/64 scope global nodad",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        assert!(ip("link show eth0").contains("mtu 1400"));
        let routes = ip("route show") + &ip("-6 route show");
        for part in [
            "default via 10.0.0.1 dev eth0",
            "10.9.0.0/16 dev eth0 scope link",
            "fd01::/48 via fd00::1 dev eth0",
        ] {
            assert!(routes.contains(part), "{part}: {routes}");
        }
    }

    #[test]
    fn a_missing_card_is_named() {
        let wanted = [check(&interface("eth0", "02:00:00:00:00:07")).expect("fine")];
        let error = plan(&wanted, &[link(1, "lo", [0; 6])]).expect_err("nothing there");
        assert!(error.message.contains("02:00:00:00:00:07"), "{error}");
    }

    #[test]
    fn nonsense_is_refused() {
        let good = interface("eth0", "02:00:00:00:00:07");
        assert!(check(&good).is_ok());
        for bad in ["", "lo", "a/b", "..", "a b", "sixteen-letters-"] {
            assert!(check(&interface(bad, &good.mac)).is_err(), "{bad:?}");
        }
        for bad in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:0g",
            "02:00:00:00:00:07:08",
            "+1:00:00:00:00:0",
        ] {
            assert!(check(&interface("eth0", bad)).is_err(), "{bad:?}");
        }
        for bad in [
            "10.0.0.2",
            "10.0.0.2/33",
            "fd00::/129",
            "x/1",
            "10.0.0.2/-1",
        ] {
            let mut interface = good.clone();
            interface.addresses = vec![bad.into()];
            assert!(check(&interface).is_err(), "{bad:?}");
        }
        let mut mixed = good.clone();
        mixed.routes[0].gateway = Some("fd00::1".into());
        assert!(check(&mixed).is_err());
    }

    proptest! {
        #[test]
        fn a_masked_destination_has_no_bits_left(address: u32, wide: u128, prefix in 0u8..=128) {
            let short = prefix.min(32);
            let IpAddr::V4(v4) = masked(Ipv4Addr::from(address).into(), short) else { panic!("v4") };
            prop_assert_eq!(u64::from(u32::from(v4)) & ((1u64 << (32 - short)) - 1), 0);
            let IpAddr::V6(v6) = masked(Ipv6Addr::from(wide).into(), prefix) else { panic!("v6") };
            prop_assert!(prefix == 128 || u128::from(v6) & (u128::MAX >> prefix) == 0);
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,30}") {
            let _ = parse_mac(&text);
            let _ = parse_network(&text);
        }
    }
}
