//! The device between a guest, played by a driver on its queues, and a tap, played by a socket that keeps messages apart.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::time::{Duration, Instant};

use caisson_protocol::vmm::{Bucket, RateLimits, Resource};
use proptest::prelude::*;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;
use crate::virtio::testing::{self, Driver, Part};

const RX: usize = 0;
const TX: usize = 1;

fn spec() -> vmm::Net {
    vmm::Net {
        tap: Resource::Fd(-1),
        mac: "02:00:00:0a:0B:0c".into(),
        mtu: 1500,
        receive_rate: None,
        transmit_rate: None,
    }
}

fn sockets() -> (OwnedFd, OwnedFd) {
    let kind = SocketType::SEQPACKET;
    let pair = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None);
    pair.expect("a socket pair")
}

/// The device, and the other end of its tap.
fn device(spec: &vmm::Net) -> (Net, File) {
    let (here, there) = sockets();
    let here = File::from(here);
    crate::sys::set_nonblocking(&here).expect("a socket");
    (Net::on_socket(spec, there).expect("a device"), here)
}

fn frame(len: usize, seed: u8) -> Vec<u8> {
    let mut frame = vec![0; HEADER_LEN];
    frame.extend((0..len).map(|i| (i % 251) as u8 ^ seed));
    frame
}

/// The next frame that the device wrote to its tap.
fn from_tap(mut tap: &File) -> Vec<u8> {
    let mut frame = vec![0; 70_000];
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match tap.read(&mut frame) {
            Ok(len) => {
                frame.truncate(len);
                return frame;
            }
            Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(1)),
            Err(e) => panic!("no frame: {e}"),
        }
    }
}

/// Takes the next frame out of as many buffers as it says that it is in.
fn received(driver: &mut Driver) -> Vec<u8> {
    let first = driver.used(RX);
    let count = u16::from_le_bytes([first.written[10], first.written[11]]);
    let mut frame = first.written[HEADER_LEN..].to_vec();
    for _ in 1..count {
        // with the first all of them are there
        let more = driver.try_used(RX).expect("the frame's next buffer");
        frame.extend(more.written);
    }
    frame
}

#[test]
fn the_configuration_is_the_address_and_the_mtu() {
    let (net, _tap) = device(&spec());
    let mut config = [0xff; 12];
    net.read_config(0, &mut config);
    assert_eq!(config, [2, 0, 0, 0xa, 0xb, 0xc, 0, 0, 0, 0, 0xdc, 5]);
    for bad in [
        "",
        "02:00:00:00:00",
        "02:00:00:00:00:00:00",
        "2:0:0:0:0:0",
        "02:00:00:00:00:+1",
        "01:00:00:00:00:00",
    ] {
        let mac = bad.to_owned();
        let refused = Net::on_socket(&vmm::Net { mac, ..spec() }, sockets().1);
        assert!(matches!(refused, Err(Error::Spec(_))), "{bad}");
    }
}

#[test]
fn frames_leave_the_guest_whole_from_any_descriptors() {
    let memory = testing::memory();
    let (mut net, tap) = device(&spec());
    let mut driver = Driver::new(&memory, &mut net);
    for (len, piece) in [(60, 5), (1514, 100), (65_000, 4096)] {
        let sent = frame(len, 3);
        let parts: Vec<Part> = sent.chunks(piece).map(Part::Readable).collect();
        driver.request(TX, &parts);
        assert!(from_tap(&tap) == sent);
    }
    // too short, too long, nowhere: dropped and counted
    driver.request(TX, &[Part::Readable(&[0; 20])]);
    driver.request(TX, &[Part::Raw(GuestAddress(0), 1 << 20, 0)]);
    driver.request(TX, &[Part::Raw(GuestAddress(u64::MAX - 20), 100, 0)]);
    let mut stats = VmStats::default();
    net.count(&mut stats);
    let NetStats {
        tx_packets,
        tx_bytes,
        tx_dropped,
        ..
    } = stats.nets[0];
    assert_eq!((tx_packets, tx_bytes, tx_dropped), (3, 66_574, 3));
}

#[test]
fn a_large_frame_comes_in_several_buffers_at_once() {
    let memory = testing::memory();
    let (mut net, mut tap) = device(&spec());
    let mut driver = Driver::new(&memory, &mut net);
    for _ in 0..100 {
        driver.offer(RX, &[Part::Writable(1500)]);
    }
    driver.kick(RX);
    for len in [60, 1488, 1489, 20_000, 65_000, 42] {
        tap.write_all(&frame(len, len as u8)).expect("room");
        let came = received(&mut driver);
        assert!(came == frame(len, len as u8)[HEADER_LEN..], "{len}");
        for _ in 0..len / 1500 + 1 {
            driver.offer(RX, &[Part::Writable(1000), Part::Writable(500)]);
        }
        driver.kick(RX);
    }
    let mut stats = VmStats::default();
    net.count(&mut stats);
    assert_eq!(stats.nets[0].rx_packets, 6);
    assert_eq!(
        stats.nets[0].rx_bytes,
        60 + 1488 + 1489 + 20_000 + 65_000 + 42
    );
}

#[test]
fn a_driver_without_mergeable_buffers_gets_each_frame_in_one() {
    let memory = testing::memory();
    let (mut net, mut tap) = device(&spec());
    let mut driver = Driver::with_features(&memory, &mut net, features::MAC);
    for seed in 0..3 {
        tap.write_all(&frame(1514, seed)).expect("room");
    }
    for seed in 0..3 {
        let used = driver.request(RX, &[Part::Writable(12), Part::Writable(1600)]);
        assert_eq!(used.written[10..12], [1, 0]);
        assert!(used.written[HEADER_LEN..] == frame(1514, seed)[HEADER_LEN..]);
    }
}

#[test]
fn without_buffers_the_tap_is_not_read_and_nothing_is_lost() {
    let memory = testing::memory();
    let (mut net, mut tap) = device(&spec());
    let mut driver = Driver::with_features(&memory, &mut net, features::MAC | F_EVENT_IDX);
    let mut sent = 0u8;
    while tap.write(&frame(1000, sent)).is_ok() {
        sent += 1;
    }
    for seed in 0..sent {
        let used = driver.request(RX, &[Part::Writable(1600)]);
        assert!(used.written[HEADER_LEN..] == frame(1000, seed)[HEADER_LEN..]);
    }
}

#[test]
fn offered_buffers_survive_a_pause() {
    let memory = testing::memory();
    let (mut net, mut tap) = device(&spec());
    let mut driver = Driver::new(&memory, &mut net);
    for _ in 0..80 {
        driver.offer(RX, &[Part::Writable(1500)]);
    }
    driver.kick(RX);
    for round in 0..5 {
        tap.write_all(&frame(2000, round)).expect("room");
        assert!(received(&mut driver) == frame(2000, round)[HEADER_LEN..]);
        let activation = net.stop().expect("it was active");
        tap.write_all(&frame(100, round)).expect("room");
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(driver.try_used(RX), None);
        net.activate(activation).expect("it goes on");
        assert!(received(&mut driver) == frame(100, round)[HEADER_LEN..]);
    }
}

#[test]
fn each_direction_keeps_its_rate() {
    let memory = testing::memory();
    let ten_a_second = Some(RateLimits {
        bytes: None,
        operations: Some(Bucket {
            per_second: 50,
            burst: 2,
        }),
    });
    let (mut net, mut tap) = device(&vmm::Net {
        receive_rate: ten_a_second,
        transmit_rate: ten_a_second,
        ..spec()
    });
    let mut driver = Driver::new(&memory, &mut net);
    let begin = Instant::now();
    for seed in 0..7 {
        let sent = frame(60, seed);
        driver.offer(TX, &[Part::Readable(&sent)]);
    }
    driver.kick(TX);
    for seed in 0..7 {
        assert_eq!(from_tap(&tap), frame(60, seed));
    }
    // two at once, five at 20 ms each
    assert!(begin.elapsed() >= Duration::from_millis(95));

    for _ in 0..60 {
        driver.offer(RX, &[Part::Writable(1500)]);
    }
    driver.kick(RX);
    let begin = Instant::now();
    for seed in 0..7 {
        tap.write_all(&frame(60, seed)).expect("room");
    }
    for seed in 0..7 {
        assert!(received(&mut driver) == frame(60, seed)[HEADER_LEN..]);
    }
    assert!(begin.elapsed() >= Duration::from_millis(95));
}

#[test]
fn what_is_not_a_tap_is_refused() {
    let file = OwnedFd::from(File::open("/dev/null").expect("/dev/null"));
    let number = file.into_raw_fd();
    let tap = Resource::Fd(number);
    let refused = Net::open(&vmm::Net { tap, ..spec() })
        .err()
        .expect("an error");
    assert!(
        refused
            .to_string()
            .starts_with("a network device's descriptor")
    );
    let tap = Resource::Path("/dev/net/tun".into());
    assert!(Net::open(&vmm::Net { tap, ..spec() }).is_err());
}

#[test]
fn frames_go_through_a_real_tap() {
    let in_own_namespace = || {
        let tap = match sys::tap_in_own_namespace() {
            Ok(tap) => tap,
            Err(e) => return eprintln!("skipped: no tap device here: {e}"),
        };
        let tap = Resource::Fd(tap.into_raw_fd());
        let mut net = Net::open(&vmm::Net { tap, ..spec() }).expect("a tap");
        let memory = testing::memory();
        let mut driver = Driver::new(&memory, &mut net);
        for _ in 0..60 {
            driver.offer(RX, &[Part::Writable(1536)]);
        }
        driver.kick(RX);
        // the host's IPv6 says hello to an interface that is up
        let hello = received(&mut driver);
        assert_eq!(hello[..2], [0x33, 0x33], "{hello:x?}");
        assert_eq!(hello[12..14], [0x86, 0xdd], "{hello:x?}");

        let mut arp = frame(42, 0);
        arp[HEADER_LEN..HEADER_LEN + 14]
            .copy_from_slice(b"\xff\xff\xff\xff\xff\xff\x02\0\0\x0a\x0b\x0c\x08\x06");
        driver.request(TX, &[Part::Readable(&arp)]);
        let counters = std::fs::read_to_string("/proc/thread-self/net/dev").expect("counters");
        let line = counters
            .lines()
            .find(|l| l.trim_start().starts_with("tap0:"));
        let mut fields = line.expect("the tap's counters").split_whitespace();
        assert_eq!((fields.nth(1), fields.next()), (Some("42"), Some("1")));
    };
    std::thread::spawn(in_own_namespace)
        .join()
        .expect("frames go both ways");
}

fn part(memory_len: u64) -> impl Strategy<Value = (u64, u32, u16)> {
    let address = prop_oneof![4 => 0x40_0000..memory_len, 1 => any::<u64>()];
    let len = prop_oneof![4 => 0..4096u32, 1 => any::<u32>()];
    (address, len, prop_oneof![Just(0u16), Just(2), 0..8u16])
}

fn work_goes_on(memory: &GuestMemoryMmap, chains: Vec<Vec<(u64, u32, u16)>>) {
    let (mut net, mut tap) = device(&spec());
    let mut driver = Driver::new(memory, &mut net);
    let chains_len = chains.len();
    for (i, chain) in chains.into_iter().enumerate() {
        let raw = |(at, len, flags): (u64, u32, u16)| Part::Raw(GuestAddress(at), len, flags & !4);
        let parts: Vec<Part> = chain.into_iter().map(raw).collect();
        driver.offer(i % 2, &parts);
        driver.kick(i % 2);
        // nobody may be there to take it, or nowhere to put it
        let _ = tap.write(&frame(200, 1));
    }
    for _ in 0..chains_len.div_ceil(2).min(chains_len / 2) {
        driver.used(TX);
    }
    while tap.read(&mut [0; 70_000]).is_ok() {}
    let sent = frame(60, 9);
    driver.request(TX, &[Part::Readable(&sent)]);
    loop {
        if from_tap(&tap) == sent {
            break;
        }
    }
    // and frames still come in
    let end = Instant::now() + Duration::from_secs(10);
    let mut next = 0u8;
    loop {
        driver.offer(RX, &[Part::Writable(66_000)]);
        driver.kick(RX);
        let _ = tap.write(&frame(77, 0x55));
        next = next.wrapping_add(1);
        std::thread::sleep(Duration::from_millis(1));
        while let Some(used) = driver.try_used(RX) {
            if used.len as usize == HEADER_LEN + 77 {
                return;
            }
        }
        assert!(Instant::now() < end && next < 150, "no frame comes in");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_chain_comes_back_and_work_goes_on(
        chains in prop::collection::vec(prop::collection::vec(part(64 << 20), 1..5), 0..30),
    ) {
        let memory = testing::memory();
        work_goes_on(&memory, chains);
    }
}
