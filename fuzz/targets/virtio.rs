//! Every virtio device but the vsock, behind its registers, with a guest that offers it anything.
//!
//! The first byte says which device. A device's peer on the host is there too: the steps of the target are what it sends.

#![no_main]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use caisson_fuzz::guest::{Guest, Steps};
use caisson_fuzz::input::Input;
use caisson_fuzz::seeds;
use caisson_protocol::vmm;
use caisson_vmm::console_log::ConsoleLog;
use caisson_vmm::virtio::Device;
use caisson_vmm::virtio::balloon::Balloon;
use caisson_vmm::virtio::block::Block;
use caisson_vmm::virtio::console::Console;
use caisson_vmm::virtio::fs::Fs;
use caisson_vmm::virtio::net::Net;
use caisson_vmm::virtio::rng::Rng;
use libfuzzer_sys::fuzz_target;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

const PEER_SENDS: u8 = 205;
const DISK_BYTES: u64 = 64 << 10;

fuzz_target!(init: seeds::plant(devices()), |data: &[u8]| run(data));

fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.u8();
    let event_idx = kind & 0x80 != 0;
    match kind & 0x7f {
        0 => disk(&mut input, event_idx, false),
        1 => disk(&mut input, event_idx, true),
        2 => net(&mut input, event_idx),
        3 => share(&mut input, event_idx),
        4 => alone(
            Console::new(ConsoleLog::new(None, 1 << 16, false).expect("a log")),
            &mut input,
            event_idx,
        ),
        5 => alone(Balloon::new(0x9_0000), &mut input, event_idx),
        6 => alone(Rng::new().expect("/dev/urandom"), &mut input, event_idx),
        _ => {}
    }
}

fn alone(device: impl Device + 'static, input: &mut Input, event_idx: bool) {
    Guest::new(Box::new(device), event_idx).run(input, |_, _, _| {});
}

/// A disk keeps its size; one that is read-only keeps its content.
fn disk(input: &mut Input, event_idx: bool, read_only: bool) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file()
        .write_all_at(&[7; DISK_BYTES as usize], 0)
        .expect("a file");
    let spec = vmm::Disk {
        file: vmm::Resource::Path(file.path().into()),
        serial: "fuzz".into(),
        read_only,
        rate: None,
        queues: Some(2),
    };
    let disk = Block::open(&spec).expect("a disk");
    alone(disk, input, event_idx);
    let content = std::fs::read(file.path()).expect("a file");
    assert_eq!(content.len() as u64, DISK_BYTES);
    assert!(!read_only || content.iter().all(|byte| *byte == 7));
}

fn net(input: &mut Input, event_idx: bool) {
    let (ours, theirs) = packets();
    let spec = vmm::Net {
        tap: vmm::Resource::Fd(-1),
        mac: "02:00:00:00:00:01".into(),
        mtu: 1500,
        receive_rate: None,
        transmit_rate: None,
    };
    let net = Net::on_socket(&spec, theirs).expect("a device");
    let mut ours = File::from(ours);
    Guest::new(Box::new(net), event_idx).run(input, |guest, _, input| {
        let len = input.u16();
        // a full socket drops frames, as a full queue does
        let _ = ours.write(input.bytes(len.into()));
        guest.work();
    });
}

/// What the server says is at the input's beginning: for each request a length, and whether the header is proper.
fn share(input: &mut Input, event_idx: bool) {
    let (ours, theirs) = packets();
    let fs = Fs::new("share", UnixStream::from(theirs)).expect("a device");
    let len = input.u8();
    let script = input.bytes(len.into()).to_vec();
    let server = std::thread::spawn(move || {
        let mut script = Input::new(&script);
        let mut socket = File::from(ours);
        let mut request = vec![0; 1 << 20];
        while let Ok(16..) = socket.read(&mut request) {
            let (len, proper) = (script.u8(), script.u8() < 200);
            let body = script.bytes(len.into());
            let whole = 16 + body.len() as u32;
            let header = [&whole.to_le_bytes()[..], &[0; 4], &request[8..16]].concat();
            let answer = if proper {
                [&header, body].concat()
            } else {
                body.to_vec()
            };
            if socket.write(&answer).is_err() {
                break;
            }
        }
    });
    alone(fs, input, event_idx);
    server.join().expect("the server ends with its socket");
}

fn packets() -> (OwnedFd, OwnedFd) {
    socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .expect("a pair of sockets")
}

/// What an honest driver asks of each device.
fn devices() -> Vec<Vec<u8>> {
    let disk =
        |kind: u32, sector: u64| [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
    let segment = [&8u64.to_le_bytes()[..], &4u32.to_le_bytes(), &[0; 4]].concat();
    let lookup = [
        &[46, 0, 0, 0, 1, 0, 0, 0][..],
        &7u64.to_le_bytes(),
        &1u64.to_le_bytes(),
        &[0; 16],
        b"hello\0",
    ]
    .concat();
    let mut seeds = Vec::new();
    for event_idx in [0, 0x80] {
        for kind in [event_idx, event_idx | 1] {
            seeds.push(
                Steps::behind(&[kind])
                    .offer(0, &[&disk(0, 3)], &[1024, 1])
                    .offer(1, &[&disk(1, 5), &[1; 200], &[2; 200], &[3; 112]], &[1])
                    .offer(0, &[&disk(4, 0)], &[1])
                    .work()
                    .offer(0, &[&disk(8, 0)], &[20, 1])
                    .offer(1, &[&disk(11, 0), &segment], &[1])
                    .offer(1, &[&disk(13, 0), &segment], &[1])
                    .save_and_restore()
                    .end(),
            );
        }
        let net = Steps::behind(&[event_idx | 2])
            .offer(0, &[], &[1526])
            .offer(0, &[], &[12, 1514]);
        let frame = [0x55; 76];
        let length = (frame.len() as u16).to_le_bytes();
        let sent = [&length[..], &frame].concat();
        seeds.push(
            net.own(PEER_SENDS, &sent)
                .offer(1, &[&[0; 12], &frame[12..]], &[])
                .own(PEER_SENDS, &sent)
                .end(),
        );
        let share = Steps::behind(&[event_idx | 3, 6, 4, 0, 1, 2, 3, 4]);
        seeds.push(
            share
                .offer(1, &[&lookup[..40], &lookup[40..]], &[16, 128])
                .work()
                .offer(0, &[&lookup], &[])
                .end(),
        );
        seeds.push(
            Steps::behind(&[event_idx | 4])
                .offer(1, &[b"Kernel panic - ", b"not syncing"], &[])
                .work()
                .end(),
        );
        let pages = [
            9u32.to_le_bytes(),
            10u32.to_le_bytes(),
            0x80u32.to_le_bytes(),
        ]
        .concat();
        let balloon = Steps::behind(&[event_idx | 5])
            .offer(0, &[&pages], &[])
            .offer(1, &[&pages], &[]);
        seeds.push(
            balloon
                .offer(2, &[], &[4096, 8192])
                .work()
                .save_and_restore()
                .end(),
        );
        seeds.push(
            Steps::behind(&[event_idx | 6])
                .offer(0, &[], &[64, 64])
                .work()
                .save_and_restore()
                .end(),
        );
    }
    seeds
}
