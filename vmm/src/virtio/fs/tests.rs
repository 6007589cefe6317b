//! The device between a driver and a server that the test plays.

use std::io::{Read, Write};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use vm_memory::GuestAddress;

use super::message::MESSAGE_MAX;
use super::*;
use crate::virtio::testing::{self, Driver, Part, Used};

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const INTERRUPT: u32 = 36;
const WAIT: Duration = Duration::from_secs(10);

fn share() -> (Fs, UnixStream) {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .expect("a socket pair");
    let server = UnixStream::from(ours);
    server.set_read_timeout(Some(WAIT)).unwrap();
    (Fs::new("data", UnixStream::from(theirs)).unwrap(), server)
}

fn request(opcode: u32, unique: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = (40 + body.len() as u32).to_le_bytes().to_vec();
    bytes.extend(opcode.to_le_bytes());
    bytes.extend(unique.to_le_bytes());
    bytes.extend([0; 24]);
    bytes.extend(body);
    bytes
}

fn answer(unique: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = (16 + body.len() as u32).to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(unique.to_le_bytes());
    bytes.extend(body);
    bytes
}

/// A message that the server receives: opcode, unique, body.
fn receive(mut server: &UnixStream) -> (u32, u64, Vec<u8>) {
    let mut bytes = vec![0; MESSAGE_MAX];
    let len = server.read(&mut bytes).expect("a message");
    bytes.truncate(len);
    assert_eq!(bytes[..4], (len as u32).to_le_bytes());
    let opcode = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
    (opcode, message::unique(&bytes), bytes.split_off(40))
}

fn error_of(used: &Used) -> i32 {
    assert_eq!(used.len, 16);
    -i32::from_le_bytes(used.written[4..8].try_into().unwrap())
}

#[test]
fn requests_reach_the_server_and_answers_the_guest_in_any_order() {
    let memory = testing::memory();
    let (mut fs, mut server) = share();
    let mut driver = Driver::new(&memory, &mut fs);
    let long = vec![7; 100_000];
    let a = request(LOOKUP, 10, b"a\0");
    let b = request(LOOKUP, 12, &long);
    let first = driver.offer(
        1,
        &[Part::Readable(&a), Part::Writable(16), Part::Writable(100)],
    );
    let second = driver.offer(
        1,
        &[
            Part::Readable(&b[..40]),
            Part::Readable(&b[40..]),
            Part::Writable(200_000),
        ],
    );
    driver.kick(1);
    let (opcode, number, body) = receive(&server);
    assert_eq!((opcode, body.as_slice()), (LOOKUP, &b"a\0"[..]));
    let (_, other, body) = receive(&server);
    assert_eq!(body, long);
    server.write_all(&answer(other, &[9; 120_000])).unwrap();
    let used = driver.used(1);
    assert_eq!(used.head, second);
    assert_eq!(used.written, answer(12, &[9; 120_000]));
    server.write_all(&answer(number, b"yes")).unwrap();
    let used = driver.used(1);
    assert_eq!((used.head, used.written), (first, answer(10, b"yes")));
    assert!(driver.interrupted());

    let (_, unnamed) = UnixStream::pair().unwrap();
    assert!(Fs::new("", unnamed.try_clone().unwrap()).is_err());
    assert!(Fs::new(&"x".repeat(37), unnamed).is_err());
    let mut tag = [1; 40];
    fs.read_config(0, &mut tag);
    assert_eq!(&tag[..5], b"data\0");
    assert_eq!(tag[36..], [1, 0, 0, 0]);
}

#[test]
fn what_has_no_answer_is_given_back_at_once() {
    let memory = testing::memory();
    let (mut fs, server) = share();
    let mut driver = Driver::new(&memory, &mut fs);
    let forget = request(FORGET, 2, &[1; 8]);
    assert_eq!(driver.request(0, &[Part::Readable(&forget)]).len, 0);
    assert_eq!(receive(&server).0, FORGET);
    let interrupt = request(INTERRUPT, 3, &[1; 8]);
    assert_eq!(driver.request(0, &[Part::Readable(&interrupt)]).len, 0);
    // the interrupt was not passed on: what comes next is the next request
    let lookup = request(LOOKUP, 4, b"x\0");
    driver.offer(1, &[Part::Readable(&lookup), Part::Writable(64)]);
    driver.kick(1);
    assert_eq!(receive(&server).0, LOOKUP);
}

#[test]
fn a_server_that_dies_fails_its_requests_and_all_that_follow() {
    let memory = testing::memory();
    let (mut fs, server) = share();
    let mut driver = Driver::new(&memory, &mut fs);
    let lookup = request(LOOKUP, 4, b"x\0");
    driver.offer(1, &[Part::Readable(&lookup), Part::Writable(64)]);
    driver.kick(1);
    receive(&server);
    drop(server);
    let used = driver.used(1);
    assert_eq!(
        (error_of(&used), message::unique(&used.written)),
        (libc::ENOTCONN, 4)
    );
    for _ in 0..300 {
        let used = driver.request(1, &[Part::Readable(&lookup), Part::Writable(64)]);
        assert_eq!(error_of(&used), libc::ENOTCONN);
    }
    assert_eq!(
        driver
            .request(0, &[Part::Readable(&request(FORGET, 1, &[0; 8]))])
            .len,
        0
    );
}

#[test]
fn a_server_that_answers_nonsense_is_not_asked_again() {
    let long = answer(1, &[0; MESSAGE_MAX]);
    for nonsense in [&b"hello"[..], &[0xff; 16], &long] {
        let memory = testing::memory();
        let (mut fs, server) = share();
        let mut driver = Driver::new(&memory, &mut fs);
        let lookup = request(LOOKUP, 4, b"x\0");
        driver.offer(1, &[Part::Readable(&lookup), Part::Writable(64)]);
        driver.kick(1);
        receive(&server);
        (&server).write_all(nonsense).unwrap();
        assert_eq!(error_of(&driver.used(1)), libc::ENOTCONN);
    }
}

#[test]
fn answers_nobody_asked_for_are_dropped_and_long_ones_do_not_overflow() {
    let memory = testing::memory();
    let (mut fs, mut server) = share();
    let mut driver = Driver::new(&memory, &mut fs);
    for number in [0, 127, 128, u64::MAX, 5 << 32] {
        server.write_all(&answer(number, b"surprise")).unwrap();
    }
    let lookup = request(LOOKUP, 4, b"x\0");
    driver.offer(1, &[Part::Readable(&lookup), Part::Writable(20)]);
    driver.kick(1);
    let (_, number, _) = receive(&server);
    server.write_all(&answer(number, b"five!")).unwrap();
    assert_eq!(error_of(&driver.used(1)), libc::EIO);
    // the second answer to the same request is one nobody asked for
    server.write_all(&answer(number, b"")).unwrap();
    driver.offer(1, &[Part::Readable(&lookup), Part::Writable(20)]);
    driver.kick(1);
    let (_, number, _) = receive(&server);
    server.write_all(&answer(number, b"four")).unwrap();
    assert_eq!(driver.used(1).written, answer(4, b"four"));
}

#[test]
fn malformed_requests_do_not_reach_the_server() {
    let memory = testing::memory();
    let (mut fs, mut server) = share();
    let mut driver = Driver::new(&memory, &mut fs);
    let good = request(LOOKUP, 4, b"x\0");
    let mut short = good.clone();
    short[0] = 41;
    let huge = vec![1; MESSAGE_MAX + 1];
    for bytes in [&good[..39], &short, &huge, &good[..1]] {
        let used = driver.request(1, &[Part::Readable(bytes), Part::Writable(64)]);
        assert_eq!(error_of(&used), libc::EINVAL);
    }
    assert_eq!(
        driver
            .request(1, &[Part::Readable(&good), Part::Writable(15)])
            .len,
        0
    );
    assert_eq!(driver.request(1, &[Part::Readable(&good)]).len, 0);
    assert_eq!(
        driver.request(1, &[Part::Writable(100)]).written[4..8],
        (-libc::EINVAL).to_le_bytes()
    );
    let outside = Part::Raw(GuestAddress(u64::MAX - 40), 42, 0);
    assert_eq!(driver.request(1, &[outside, Part::Writable(64)]).len, 0);
    driver.offer(1, &[Part::Readable(&good), Part::Writable(64)]);
    driver.kick(1);
    let (_, number, _) = receive(&server);
    server.write_all(&answer(number, b"")).unwrap();
    assert_eq!(driver.used(1).written, answer(4, b""));
}

#[test]
fn a_server_that_does_not_read_stops_the_driver_and_not_the_device() {
    let memory = testing::memory();
    let (mut fs, mut server) = share();
    let mut driver = Driver::new(&memory, &mut fs);
    let big = request(LOOKUP, 6, &[3; 60_000]);
    // 60 requests of 60 kB: more than a socket holds
    for _ in 0..60 {
        driver.offer(1, &[Part::Readable(&big), Part::Writable(64)]);
    }
    driver.kick(1);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(driver.try_used(1), None);
    for _ in 0..60 {
        let (_, number, body) = receive(&server);
        assert_eq!(body.len(), 60_000);
        server.write_all(&answer(number, b"")).unwrap();
        assert_eq!(driver.used(1).written, answer(6, b""));
    }
}

#[test]
fn a_stop_waits_for_answers_and_a_resume_goes_on() {
    let memory = testing::memory();
    let (mut fs, mut server) = share();
    let mut driver = Driver::new(&memory, &mut fs);
    let lookup = request(LOOKUP, 4, b"x\0");
    driver.offer(1, &[Part::Readable(&lookup), Part::Writable(64)]);
    driver.kick(1);
    let (_, number, _) = receive(&server);
    let answers = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        server.write_all(&answer(number, b"late")).unwrap();
        server
    });
    let activation = fs.stop().expect("it was active");
    assert_eq!(driver.used(1).written, answer(4, b"late"));
    let mut server = answers.join().unwrap();
    driver.offer(1, &[Part::Readable(&lookup), Part::Writable(64)]);
    fs.activate(activation).unwrap();
    let (_, number, _) = receive(&server);
    server.write_all(&answer(number, b"on")).unwrap();
    assert_eq!(driver.used(1).written, answer(4, b"on"));
    assert!(fs.restore(Value::Null).is_err());
}
