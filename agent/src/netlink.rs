//! The few rtnetlink messages that set up a network interface: encoded, sent, their answers understood.
//!
//! ```text
//!   nlmsghdr  length:u32 type:u16 flags:u16 sequence:u32 port:u32          all in the machine's byte order, every part
//!   body      ifinfomsg | ifaddrmsg | rtmsg                                padded to a multiple of four bytes
//!   rtattr*   length:u16 kind:u16 value
//! ```
//!
//! See rtnetlink(7) and linux/rtnetlink.h. Must not know: which interfaces there should be.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

const HEADER_BYTES: usize = 16;
/// `struct ifinfomsg`.
const LINK_BYTES: usize = 16;
/// The kernel sends no larger part of a dump to a reader with this much room.
const RECEIVE_BYTES: usize = 32 << 10;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const REPLACE: u16 = 0x100;
const CREATE: u16 = 0x400;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

const IFF_UP: u32 = 1;
/// No duplicate address detection: the host gives each address once, and a tentative one cannot be bound.
const IFA_F_NODAD: u8 = 0x02;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const SCOPE_HOST: u8 = 254;

/// An interface as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// Empty for an interface that has none.
    pub mac: Vec<u8>,
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Rename {
        index: u32,
        name: String,
    },
    Mtu {
        index: u32,
        mtu: u32,
    },
    Up {
        index: u32,
    },
    Address {
        index: u32,
        address: IpAddr,
        prefix: u8,
    },
    Route {
        index: u32,
        destination: IpAddr,
        prefix: u8,
        gateway: Option<IpAddr>,
    },
}

/// A conversation with the kernel.
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens one, for the network namespace of the caller.
    pub fn open() -> io::Result<Netlink> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        Ok(Netlink {
            socket,
            sequence: 0,
        })
    }

    /// Every interface.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let body = link_body(0, 0, 0);
        let mut links = Vec::new();
        self.ask(RTM_GETLINK, REQUEST | DUMP, &body, |kind, body| {
            if kind == RTM_NEWLINK {
                links.extend(parse_link(body));
            }
        })?;
        Ok(links)
    }

    /// Makes one change.
    pub fn apply(&mut self, change: &Change) -> io::Result<()> {
        let (kind, flags, body) = encode(change);
        self.ask(kind, REQUEST | ACK | flags, &body, |_, _| {})
    }

    /// Sends a request and hands its answers to `each` until the last of them.
    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let message = message(kind, flags, self.sequence, body);
        let kernel = NetlinkAddr::new(0, 0);
        sendto(
            self.socket.as_raw_fd(),
            &message,
            &kernel,
            MsgFlags::empty(),
        )?;
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            let count = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            match understand(&buffer[..count], self.sequence, &mut each) {
                Answer::More => {}
                Answer::Done => return Ok(()),
                Answer::Refused(errno) => return Err(io::Error::from_raw_os_error(errno)),
                Answer::Garbled => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "the kernel's answer makes no sense",
                    ));
                }
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    More,
    Done,
    Refused(i32),
    Garbled,
}

/// Goes through the messages of one datagram.
fn understand(mut bytes: &[u8], sequence: u32, each: &mut impl FnMut(u16, &[u8])) -> Answer {
    while !bytes.is_empty() {
        let (Some(length), Some(kind), Some(theirs)) =
            (u32_at(bytes, 0), u16_at(bytes, 4), u32_at(bytes, 8))
        else {
            return Answer::Garbled;
        };
        let length = length as usize;
        let Some(body) = bytes.get(HEADER_BYTES..length) else {
            return Answer::Garbled;
        };
        if theirs == sequence {
            match kind {
                NLMSG_DONE => return Answer::Done,
                NLMSG_ERROR => {
                    return match u32_at(body, 0).map(|e| e as i32) {
                        Some(0) => Answer::Done,
                        Some(errno) => Answer::Refused(errno.saturating_neg()),
                        None => Answer::Garbled,
                    };
                }
                kind => each(kind, body),
            }
        }
        bytes = bytes.get(padded(length)..).unwrap_or_default();
    }
    Answer::More
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let mut link = Link {
        index: u32_at(body, 4)?,
        name: String::new(),
        mac: Vec::new(),
    };
    let mut attributes = body.get(LINK_BYTES..)?;
    while let (Some(length), Some(kind)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
        let length = usize::from(length);
        let value = attributes.get(4..length)?;
        match kind {
            IFLA_ADDRESS => link.mac = value.to_vec(),
            IFLA_IFNAME => {
                let name = value.split(|&b| b == 0).next().unwrap_or_default();
                link.name = String::from_utf8_lossy(name).into_owned();
            }
            _ => {}
        }
        attributes = attributes.get(padded(length)..).unwrap_or_default();
    }
    (!link.name.is_empty()).then_some(link)
}

/// The type of the request, what it needs beside the usual flags, its body.
fn encode(change: &Change) -> (u16, u16, Vec<u8>) {
    match change {
        Change::Rename { index, name } => {
            let mut body = link_body(*index, 0, 0);
            attribute(&mut body, IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
            (RTM_NEWLINK, 0, body)
        }
        Change::Mtu { index, mtu } => {
            let mut body = link_body(*index, 0, 0);
            attribute(&mut body, IFLA_MTU, &mtu.to_ne_bytes());
            (RTM_NEWLINK, 0, body)
        }
        Change::Up { index } => (RTM_NEWLINK, 0, link_body(*index, IFF_UP, IFF_UP)),
        Change::Address {
            index,
            address,
            prefix,
        } => {
            let flags = if address.is_ipv6() { IFA_F_NODAD } else { 0 };
            let scope = if address.is_loopback() {
                SCOPE_HOST
            } else {
                SCOPE_UNIVERSE
            };
            let mut body = vec![family(address), *prefix, flags, scope];
            body.extend(index.to_ne_bytes());
            attribute(&mut body, IFA_LOCAL, &octets(address));
            attribute(&mut body, IFA_ADDRESS, &octets(address));
            if let (IpAddr::V4(v4), 0..=30) = (address, prefix) {
                let broadcast = u32::from(*v4) | (u32::MAX >> prefix);
                attribute(&mut body, IFA_BROADCAST, &broadcast.to_be_bytes());
            }
            (RTM_NEWADDR, CREATE | REPLACE, body)
        }
        Change::Route {
            index,
            destination,
            prefix,
            gateway,
        } => {
            let scope = if gateway.is_some() || destination.is_ipv6() {
                SCOPE_UNIVERSE
            } else {
                SCOPE_LINK
            };
            let (source_bits, tos) = (0, 0);
            let mut body = vec![
                family(destination),
                *prefix,
                source_bits,
                tos,
                RT_TABLE_MAIN,
                RTPROT_BOOT,
                scope,
                RTN_UNICAST,
            ];
            body.extend(0u32.to_ne_bytes());
            if *prefix > 0 {
                attribute(&mut body, RTA_DST, &octets(destination));
            }
            if let Some(gateway) = gateway {
                attribute(&mut body, RTA_GATEWAY, &octets(gateway));
            }
            attribute(&mut body, RTA_OIF, &index.to_ne_bytes());
            (RTM_NEWROUTE, CREATE | REPLACE, body)
        }
    }
}

fn link_body(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    for number in [index, flags, change] {
        body.extend(number.to_ne_bytes());
    }
    body
}

fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER_BYTES + body.len());
    message.extend(((HEADER_BYTES + body.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend(0u32.to_ne_bytes());
    message.extend(body);
    message
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend(((4 + value.len()) as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(padded(body.len()), 0);
}

fn family(address: &IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn padded(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_loopback_is_listed_by_this_kernel() {
        let mut netlink = Netlink::open().expect("netlink");
        let links = netlink.links().expect("links");
        assert!(links.iter().any(|l| l.name == "lo" && l.mac == [0; 6]));
    }

    #[test]
    fn a_refusal_is_an_error_with_the_kernels_number() {
        let mut netlink = Netlink::open().expect("netlink");
        let nowhere = Change::Up { index: 0x7fff_0000 };
        let error = netlink.apply(&nowhere).expect_err("no such interface");
        assert!(matches!(
            error.raw_os_error(),
            Some(libc::ENODEV | libc::EPERM)
        ));
    }

    #[test]
    fn requests_are_laid_out_as_the_kernel_reads_them() {
        let (kind, _, body) = encode(&Change::Address {
            index: 2,
            address: "10.1.2.3".parse().expect("address"),
            prefix: 24,
        });
        assert_eq!(kind, RTM_NEWADDR);
        assert_eq!(body[..8], [2, 24, 0, 0, 2, 0, 0, 0]);
        assert_eq!(body[8..16], [8, 0, 2, 0, 10, 1, 2, 3]);
        assert_eq!(body[24..32], [8, 0, 4, 0, 10, 1, 2, 255]);
        let (_, _, body) = encode(&Change::Rename {
            index: 7,
            name: "eth0".into(),
        });
        assert_eq!(body[16..], [9, 0, 3, 0, b'e', b't', b'h', b'0', 0, 0, 0, 0]);
    }

    #[test]
    fn lengths_that_lie_are_garbage() {
        let mut none = |_: u16, _: &[u8]| {};
        let lying = message(RTM_NEWLINK, 0, 1, &[]);
        assert_eq!(understand(&lying, 1, &mut none), Answer::More);
        for length in [0u32, 15, 17, u32::MAX] {
            let mut lying = lying.clone();
            lying[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(understand(&lying, 1, &mut none), Answer::Garbled);
        }
        assert_eq!(understand(&lying[..9], 1, &mut none), Answer::Garbled);
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic_or_loop(bytes in proptest::collection::vec(any::<u8>(), 0..300), sequence in 0u32..3) {
            let mut links = Vec::new();
            understand(&bytes, sequence, &mut |_, body: &[u8]| links.extend(parse_link(body)));
        }

        #[test]
        fn no_attributes_make_it_panic(attributes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let body = [&link_body(1, 0, 0)[..], &attributes].concat();
            let answer = message(RTM_NEWLINK, 0, 1, &body);
            let mut links = Vec::new();
            let got = understand(&answer, 1, &mut |_, body: &[u8]| links.extend(parse_link(body)));
            prop_assert_eq!(got, Answer::More);
        }
    }
}
