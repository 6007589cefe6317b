//! The vsock device: packets of the guest with any header, clients of the host that come, talk and go.

#![no_main]

use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use caisson_fuzz::guest::{Guest, Steps};
use caisson_fuzz::input::Input;
use caisson_fuzz::seeds;
use caisson_vmm::virtio::vsock::Vsock;
use libfuzzer_sys::fuzz_target;

const CID: u64 = 3;
const CONNECT: u8 = 210;
const SEND: u8 = 220;
const RECEIVE: u8 = 230;
const LEAVE: u8 = 240;
const CLIENTS_MAX: usize = 16;

fuzz_target!(init: seeds::plant(conversations()), |data: &[u8]| run(data));

fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let event_idx = input.u8() & 1 != 0;
    let name = format!("caisson-fuzz-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).expect("a name");
    let listener = UnixListener::bind_addr(&address).expect("a socket");
    let vsock = Vsock::new(CID as u32, listener).expect("a device");
    let mut clients: Vec<UnixStream> = Vec::new();
    Guest::new(Box::new(vsock), event_idx).run(&mut input, |guest, step, input| {
        let number = input.u8();
        let len = input.u8();
        let bytes = input.bytes(len.into());
        match step {
            CONNECT..SEND if clients.len() < CLIENTS_MAX => {
                if let Ok(mut client) = UnixStream::connect_addr(&address) {
                    let _ = client.set_nonblocking(true);
                    let _ = client.write(bytes);
                    clients.push(client);
                }
            }
            SEND.. if !clients.is_empty() => {
                let which = usize::from(number) % clients.len();
                let mut client = &clients[which];
                match step {
                    // a full socket takes no more
                    SEND..RECEIVE => drop(client.write(&bytes.repeat(usize::from(number) + 1))),
                    RECEIVE..LEAVE => drop(client.read(&mut [0; 4096])),
                    _ => drop(clients.swap_remove(which)),
                }
            }
            _ => {}
        }
        guest.work();
    });
}

/// A header as it is on the wire.
fn header(ports: (u32, u32), len: u32, op: u16, flags: u32) -> Vec<u8> {
    let (guest, host) = ports;
    let mut bytes = [CID.to_le_bytes(), 2u64.to_le_bytes()].concat();
    for word in [guest, host, len] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(1u16.to_le_bytes());
    bytes.extend(op.to_le_bytes());
    for word in [flags, 0x1_0000, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes
}

fn line(text: &str) -> Vec<u8> {
    [&[0, text.len() as u8][..], text.as_bytes()].concat()
}

fn conversations() -> Vec<Vec<u8>> {
    let begin = |event_idx: u8| {
        Steps::behind(&[event_idx])
            .offer(0, &[], &[4096])
            .offer(0, &[], &[44, 512])
            .offer(2, &[], &[4])
    };
    let mut seeds = Vec::new();
    for event_idx in [0, 1] {
        // the host connects, the guest answers; both talk; the guest leaves
        let ports = (7, 1 << 30);
        let packet = |len, op, flags| header(ports, len, op, flags);
        seeds.push(
            begin(event_idx)
                .own(CONNECT, &line("CONNECT 7\n"))
                .offer(1, &[&packet(0, 2, 0)], &[])
                .work()
                .own(SEND, &line("hello"))
                .offer(1, &[&packet(5, 5, 0), b"howdy"], &[])
                .offer(1, &[&packet(0, 7, 0)], &[])
                .own(RECEIVE, &[0, 0])
                .save_and_restore()
                .offer(1, &[&packet(0, 4, 3)], &[])
                .work()
                .end(),
        );
        // the guest connects to who waits; the host leaves
        let ports = (9, 1024);
        let packet = |len, op, flags| header(ports, len, op, flags);
        seeds.push(
            begin(event_idx)
                .own(CONNECT, &line("ACCEPT 1024\n"))
                .offer(1, &[&packet(0, 1, 0)], &[])
                .work()
                .offer(1, &[&packet(3, 5, 0), b"abc"], &[])
                .offer(1, &[&packet(0, 4, 2)], &[])
                .own(LEAVE, &[0, 0])
                .offer(1, &[&packet(0, 6, 0)], &[])
                .offer(1, &[&packet(0, 3, 0)], &[])
                .work()
                .end(),
        );
    }
    seeds
}
