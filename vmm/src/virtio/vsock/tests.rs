//! The device between a guest, played by a driver on its queues, and clients of its unix socket.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::connection::BUFFER_MAX;
use super::packet::{HEADER_LEN, HOST_CID, Header, Op, SHUTDOWN_BOTH, SHUTDOWN_SEND, STREAM};
use super::*;
use crate::virtio::testing::{self, Driver, Part};

const CID: u32 = 7;
const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
/// What a test's guest can hold.
const ROOM: u32 = 64 << 10;

struct Guest<'a> {
    driver: Driver<'a>,
    vsock: &'a mut Vsock,
    /// Buffers that wait in the rx queue.
    offered: usize,
    room: u32,
    taken: u32,
}

impl<'a> Guest<'a> {
    fn new(memory: &'a GuestMemoryMmap, vsock: &'a mut Vsock) -> Self {
        let driver = Driver::new(memory, vsock);
        Guest {
            driver,
            vsock,
            offered: 0,
            room: ROOM,
            taken: 0,
        }
    }

    fn header(&self, op: Op, guest: u32, host: u32, len: usize) -> Header {
        Header {
            src_cid: u64::from(CID),
            dst_cid: HOST_CID,
            src_port: guest,
            dst_port: host,
            len: len as u32,
            kind: STREAM,
            op: op as u16,
            flags: 0,
            buf_alloc: self.room,
            fwd_cnt: self.taken,
        }
    }

    fn send_raw(&mut self, header: &Header, data: &[u8]) {
        let bytes = header.bytes();
        let mut parts = vec![Part::Readable(&bytes)];
        if !data.is_empty() {
            parts.push(Part::Readable(data));
        }
        self.driver.request(TX, &parts);
    }

    fn send(&mut self, op: Op, guest: u32, host: u32) {
        let header = self.header(op, guest, host, 0);
        self.send_raw(&header, &[]);
    }

    fn shut(&mut self, flags: u32, guest: u32, host: u32) {
        let mut header = self.header(Op::Shutdown, guest, host, 0);
        header.flags = flags;
        self.send_raw(&header, &[]);
    }

    fn send_data(&mut self, guest: u32, host: u32, data: &[u8]) {
        let header = self.header(Op::Data, guest, host, data.len());
        self.send_raw(&header, data);
    }

    fn offer(&mut self) {
        self.driver
            .offer(RX, &[Part::Writable(HEADER_LEN), Part::Writable(4096)]);
        self.driver.kick(RX);
        self.offered += 1;
    }

    fn receive(&mut self) -> (Header, Vec<u8>) {
        if self.offered == 0 {
            self.offer();
        }
        let used = self.driver.used(RX);
        self.offered -= 1;
        parse(&used.written)
    }

    /// Nothing comes, although there is a buffer for it.
    fn receives_nothing(&mut self) {
        if self.offered == 0 {
            self.offer();
        }
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(self.driver.try_used(RX), None);
    }

    fn expect(&mut self, op: Op) -> Header {
        let (header, data) = self.receive();
        assert_eq!(Op::new(header.op), Some(op), "{header:?}");
        assert_eq!((header.src_cid, header.dst_cid), (2, u64::from(CID)));
        assert_eq!(header.len as usize, data.len());
        header
    }

    /// The host has said CONNECT `port`; the guest answers. Returns the host's port.
    fn answer(&mut self, port: u32) -> u32 {
        let request = self.expect(Op::Request);
        assert_eq!(request.dst_port, port);
        self.send(Op::Response, port, request.src_port);
        request.src_port
    }

    fn receive_data(&mut self, len: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < len {
            let (header, data) = self.receive();
            assert_eq!(Op::new(header.op), Some(Op::Data), "{header:?}");
            all.extend(data);
        }
        all
    }
}

fn parse(written: &[u8]) -> (Header, Vec<u8>) {
    let (header, data) = written
        .split_first_chunk::<HEADER_LEN>()
        .expect("a header at least");
    (Header::parse(header), data.to_vec())
}

struct Place {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl Place {
    fn connect(&self, line: &str) -> UnixStream {
        let mut stream = UnixStream::connect(&self.path).expect("it listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a socket");
        stream.write_all(line.as_bytes()).expect("room");
        stream
    }
}

fn device() -> (Vsock, Place) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("vsock.sock");
    let listener = UnixListener::bind(&path).expect("a listener");
    let vsock = Vsock::new(CID, listener).expect("a device");
    let place = Place {
        _directory: directory,
        path,
    };
    (vsock, place)
}

fn line(mut stream: &UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\n") && stream.read(&mut byte).expect("a line") == 1 {
        line.push(byte[0]);
    }
    String::from_utf8(line).expect("text")
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

#[test]
fn the_host_connects_and_data_goes_both_ways_in_small_descriptors() {
    let memory = testing::memory();
    let (mut vsock, place) = device();
    // it says so before the guest has a driver
    let mut stream = place.connect("CONNECT 1024\n");
    let guest = &mut Guest::new(&memory, &mut vsock);
    let port = guest.answer(1024);
    assert_eq!(line(&stream), "OK 1024\n");

    let data = pattern(30);
    let header = guest.header(Op::Data, 1024, port, data.len()).bytes();
    let mut joined = header.to_vec();
    joined.extend(&data);
    let parts: Vec<Part> = joined.chunks(5).map(Part::Readable).collect();
    guest.driver.request(TX, &parts);
    let mut came = [0; 30];
    stream.read_exact(&mut came).expect("the guest's data");
    assert_eq!(&came[..], data);

    stream.write_all(&data).expect("room");
    let parts: Vec<Part> = (0..15).map(|_| Part::Writable(3)).collect();
    let mut came = Vec::new();
    while came.len() < data.len() {
        // 44 bytes of header and one of data
        let used = guest.driver.request(RX, &parts);
        assert_eq!(used.len, 45);
        came.extend(parse(&used.written).1);
    }
    assert_eq!(came, data);
    let mut stats = VmStats::default();
    guest.vsock.count(&mut stats);
    assert_eq!(stats.vsock_connections, 1);
    assert_eq!(
        (stats.vsock_received_bytes, stats.vsock_sent_bytes),
        (30, 30)
    );
}

#[test]
fn the_guest_connects_with_whoever_waits_first_and_is_refused_otherwise() {
    let memory = testing::memory();
    let (mut vsock, place) = device();
    let first = place.connect("ACCEPT 1024\n");
    let second = place.connect("ACCEPT 1024\n");
    let other = place.connect("ACCEPT 9\n");
    let gone = place.connect("ACCEPT 10\n");
    let guest = &mut Guest::new(&memory, &mut vsock);
    for (port, stream) in [(5000, &first), (5001, &second)] {
        guest.send(Op::Request, port, 1024);
        let response = guest.expect(Op::Response);
        assert_eq!((response.src_port, response.dst_port), (1024, port));
        assert_eq!(response.buf_alloc as usize, BUFFER_MAX);
        assert_eq!(line(stream), format!("OK {port}\n"));
    }
    guest.send(Op::Request, 5002, 1024);
    let reset = guest.expect(Op::Reset);
    assert_eq!((reset.src_port, reset.dst_port), (1024, 5002));
    drop(gone);
    std::thread::sleep(Duration::from_millis(50));
    guest.send(Op::Request, 5003, 10);
    guest.expect(Op::Reset);
    guest.send(Op::Request, 5003, 9);
    guest.expect(Op::Response);
    assert_eq!(line(&other), "OK 5003\n");
}

#[test]
fn a_connection_that_the_guest_refuses_is_an_error_for_the_host() {
    let memory = testing::memory();
    let (mut vsock, place) = device();
    let guest = &mut Guest::new(&memory, &mut vsock);
    let refused = place.connect("CONNECT 1\n");
    let request = guest.expect(Op::Request);
    guest.send(Op::Reset, 1, request.src_port);
    assert!(line(&refused).starts_with("ERROR nobody listens"));
    assert_eq!((&refused).read(&mut [0]).expect("the end"), 0);

    for bad in [
        "HELLO\n",
        "CONNECT x\n",
        "CONNECT 00000000000000000000000000\n",
    ] {
        let stream = place.connect(bad);
        assert!(line(&stream).starts_with("ERROR "), "{bad}");
    }
    // one that leaves before the guest has answered
    let leaves = place.connect("CONNECT 2\n");
    let request = guest.expect(Op::Request);
    drop(leaves);
    let reset = guest.expect(Op::Reset);
    assert_eq!(reset.src_port, request.src_port);
}

#[test]
fn the_guest_gets_no_more_than_it_has_room_for() {
    let memory = testing::memory();
    let (mut vsock, place) = device();
    let mut stream = place.connect("CONNECT 3\n");
    let guest = &mut Guest::new(&memory, &mut vsock);
    guest.room = 100;
    let port = guest.answer(3);
    let data = pattern(250);
    stream.write_all(&data).expect("room");
    let mut came = guest.receive_data(100);
    guest.expect(Op::CreditRequest);
    // an answer without room does not make it ask again
    guest.send(Op::CreditUpdate, 3, port);
    guest.receives_nothing();
    guest.taken = 60;
    guest.send(Op::CreditUpdate, 3, port);
    came.extend(guest.receive_data(60));
    guest.expect(Op::CreditRequest);
    // nonsense: more taken than was sent
    guest.taken = 1 << 31;
    guest.send(Op::CreditUpdate, 3, port);
    guest.receives_nothing();
    guest.taken = 160;
    guest.send(Op::CreditUpdate, 3, port);
    came.extend(guest.receive_data(90));
    assert_eq!(came, data);
}

#[test]
fn a_host_that_does_not_read_stops_the_guest_by_credit() {
    let memory = testing::memory();
    let (mut vsock, place) = device();
    let mut stream = place.connect("CONNECT 4\n");
    let guest = &mut Guest::new(&memory, &mut vsock);
    let port = guest.answer(4);
    assert_eq!(line(&stream), "OK 4\n");
    // as an honest guest: sends as long as it has credit
    let (mut sent, mut taken) = (0, 0);
    let piece = pattern(32 << 10);
    while sent - taken < BUFFER_MAX {
        guest.send_data(4, port, &piece);
        sent += piece.len();
        if guest.offered == 0 {
            guest.offer();
        }
        std::thread::sleep(Duration::from_millis(2));
        while let Some(used) = guest.driver.try_used(RX) {
            guest.offered -= 1;
            let (header, _) = parse(&used.written);
            assert_eq!(Op::new(header.op), Some(Op::CreditUpdate));
            taken = header.fwd_cnt as usize;
            guest.offer();
        }
        assert!(sent < 4 << 20, "nothing stops the guest");
    }
    guest.receives_nothing();
    let mut came = vec![0; sent];
    stream.read_exact(&mut came).expect("all that was sent");
    assert!(came.chunks(piece.len()).all(|chunk| chunk == piece));
    assert!(guest.expect(Op::CreditUpdate).fwd_cnt as usize > taken);

    // a guest that does not care about credit is cut off, and what it sent before arrives
    let mut pieces = 0;
    loop {
        guest.send_data(4, port, &piece);
        pieces += 1;
        if guest.offered == 0 {
            guest.offer();
        }
        std::thread::sleep(Duration::from_millis(2));
        let Some(used) = guest.driver.try_used(RX) else {
            continue;
        };
        guest.offered -= 1;
        if parse(&used.written).0.op == Op::Reset as u16 {
            break;
        }
        assert!(pieces < 100, "nothing stops the guest");
    }
    let mut rest = Vec::new();
    stream
        .read_to_end(&mut rest)
        .expect("the end, not an error");
    assert!(rest.chunks(piece.len()).all(|chunk| chunk == piece));
    assert!(rest.len() >= BUFFER_MAX - piece.len());
}

#[test]
fn each_direction_ends_by_itself() {
    let memory = testing::memory();
    let (mut vsock, place) = device();
    let mut stream = place.connect("CONNECT 5\n");
    let guest = &mut Guest::new(&memory, &mut vsock);
    let port = guest.answer(5);
    assert_eq!(line(&stream), "OK 5\n");

    stream.write_all(b"question").expect("room");
    stream.shutdown(Shutdown::Write).expect("a socket");
    assert_eq!(guest.receive_data(8), b"question");
    assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_SEND);
    guest.send_data(5, port, b"answer");
    guest.shut(SHUTDOWN_BOTH, 5, port);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("then the end");
    assert_eq!(answer, "answer");
    guest.expect(Op::Reset);

    // the other way around
    let mut stream = place.connect("CONNECT 5\n");
    let port = guest.answer(5);
    assert_eq!(line(&stream), "OK 5\n");
    guest.send_data(5, port, b"question");
    guest.shut(SHUTDOWN_SEND, 5, port);
    let mut question = String::new();
    stream.read_to_string(&mut question).expect("then the end");
    assert_eq!(question, "question");
    stream.write_all(b"answer").expect("room");
    drop(stream);
    assert_eq!(guest.receive_data(6), b"answer");
    assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_BOTH);
    guest.send(Op::Reset, 5, port);
    // its ports are unknown from now on
    guest.send_data(5, port, b"late");
    guest.expect(Op::Reset);
}

#[test]
fn what_a_guest_sent_before_it_ended_reaches_a_host_that_reads_later() {
    let memory = testing::memory();
    let (mut vsock, place) = device();
    let mut stream = place.connect("ACCEPT 6\n");
    let guest = &mut Guest::new(&memory, &mut vsock);
    guest.send(Op::Request, 60, 6);
    guest.expect(Op::Response);
    stream.write_all(b"nobody reads this").expect("room");
    // more than the socket holds: a part stays with the device
    let data = pattern(BUFFER_MAX);
    for piece in data.chunks(60_000) {
        guest.send_data(60, 6, piece);
    }
    guest.shut(SHUTDOWN_BOTH, 60, 6);
    while guest.receive().0.op != Op::Reset as u16 {}
    // the same ports again, while the first connection is not read yet
    let again = place.connect("ACCEPT 6\n");
    std::thread::sleep(Duration::from_millis(50));
    guest.send(Op::Request, 60, 6);
    guest.expect(Op::Response);
    assert_eq!(line(&again), "OK 60\n");

    assert_eq!(line(&stream), "OK 60\n");
    let mut came = Vec::new();
    stream
        .read_to_end(&mut came)
        .expect("the end, not an error");
    assert!(came == data);
}

/// Room for two descriptors of each connection; false where the host does not allow them.
fn many_descriptors() -> bool {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let enough = setrlimit(Resource::Nofile, raised).is_ok()
        && raised.current.is_none_or(|most| most >= 4096);
    if !enough {
        eprintln!("skipped: it takes 4096 open files");
    }
    enough
}

#[test]
fn a_guest_has_no_more_connections_than_it_may() {
    if !many_descriptors() {
        return;
    }
    let memory = testing::memory();
    let (mut vsock, place) = device();
    let guest = &mut Guest::new(&memory, &mut vsock);
    let waits = place.connect("ACCEPT 5\n");
    let mut clients: Vec<UnixStream> = (0..muxer::CONNECTIONS_MAX)
        .map(|_| place.connect("CONNECT 1\n"))
        .collect();
    let refused = place.connect("CONNECT 1\n");
    assert!(line(&refused).starts_with("ERROR the guest has 1024"));
    let mut hosts = std::collections::BTreeSet::new();
    for _ in 0..muxer::CONNECTIONS_MAX {
        hosts.insert(guest.expect(Op::Request).src_port);
    }
    assert_eq!(hosts.len(), muxer::CONNECTIONS_MAX);
    guest.send(Op::Request, 7, 5);
    guest.expect(Op::Reset);
    // one leaves, one comes
    clients.pop();
    guest.expect(Op::Reset);
    guest.send(Op::Request, 7, 5);
    guest.expect(Op::Response);
    assert_eq!(line(&waits), "OK 7\n");
}

#[test]
fn five_hundred_streams_at_once() {
    if !many_descriptors() {
        return;
    }
    let memory = testing::memory();
    let (mut vsock, place) = device();
    let guest = &mut Guest::new(&memory, &mut vsock);
    for _ in 0..32 {
        guest.offer();
    }
    let clients = std::thread::spawn(move || {
        let open = |i: usize| place.connect(&format!("CONNECT {}\n", 10_000 + i));
        let mut streams: Vec<UnixStream> = (0..500).map(open).collect();
        for (i, stream) in streams.iter_mut().enumerate() {
            stream.write_all(&pattern(100 + i)).expect("room");
        }
        for (i, stream) in streams.iter_mut().enumerate() {
            assert_eq!(line(stream), format!("OK {}\n", 10_000 + i));
            let mut echo = vec![0; 100 + i];
            stream.read_exact(&mut echo).expect("the echo");
            assert_eq!(echo, pattern(100 + i));
        }
    });
    let mut echoed = 0;
    while echoed < (0..500).map(|i| 100 + i).sum() {
        let (header, data) = guest.receive();
        guest.offer();
        let (here, there) = (header.dst_port, header.src_port);
        match Op::new(header.op) {
            Some(Op::Request) => guest.send(Op::Response, here, there),
            Some(Op::Data) => {
                guest.send_data(here, there, &data);
                echoed += data.len();
            }
            _ => panic!("{header:?}"),
        }
    }
    clients.join().expect("every stream has its echo");
}

#[test]
fn buffers_without_room_for_data_do_not_keep_the_device_busy() {
    let memory = testing::memory();
    let (mut vsock, place) = device();
    let mut stream = place.connect("CONNECT 9\n");
    let guest = &mut Guest::new(&memory, &mut vsock);
    guest.answer(9);
    stream.write_all(b"data").expect("room");
    for len in [1, HEADER_LEN - 1, HEADER_LEN] {
        let used = guest.driver.request(RX, &[Part::Writable(len)]);
        assert_eq!(used.len, 0, "{len}");
    }
    assert_eq!(guest.receive_data(4), b"data");
    // data that fills many buffers comes in order, the last one in part
    let data = pattern(50_000);
    for _ in 0..20 {
        guest.offer();
    }
    stream.write_all(&data).expect("room");
    assert!(guest.receive_data(data.len()) == data);
    guest.vsock.stop().expect("it still listens to us");
}

#[test]
fn refusals_that_nobody_takes_stop_the_guest() {
    let memory = testing::memory();
    let (mut vsock, _place) = device();
    let guest = &mut Guest::new(&memory, &mut vsock);
    for port in 0..256 {
        guest.send(Op::Data, port, 1);
    }
    let header = guest.header(Op::Data, 999, 1, 0).bytes();
    guest.driver.offer(TX, &[Part::Readable(&header)]);
    guest.driver.kick(TX);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(guest.driver.try_used(TX), None);
    for port in 0..256 {
        assert_eq!(guest.expect(Op::Reset).dst_port, port);
    }
    guest.driver.used(TX);
    assert_eq!(guest.expect(Op::Reset).dst_port, 999);
}

#[test]
fn a_pause_keeps_connections_and_a_reset_ends_them() {
    let memory = testing::memory();
    let (mut vsock, place) = device();
    let mut stream = place.connect("CONNECT 8\n");
    let guest = &mut Guest::new(&memory, &mut vsock);
    guest.answer(8);
    assert_eq!(line(&stream), "OK 8\n");
    let activation = guest.vsock.stop().expect("it was active");
    stream.write_all(b"meanwhile").expect("room");
    guest.vsock.activate(activation).expect("it goes on");
    assert_eq!(guest.receive_data(9), b"meanwhile");
    guest.vsock.reset();
    assert_eq!(stream.read(&mut [0]).expect("the end"), 0);
    let mut stats = VmStats::default();
    guest.vsock.count(&mut stats);
    assert_eq!(stats.vsock_connections, 0);
}

#[test]
fn after_a_restore_clients_wait_until_the_guest_has_dropped_its_connections() {
    let memory = testing::memory();
    let (mut vsock, place) = device();
    let _waits = place.connect("CONNECT 1\n");
    vsock.restore(Value::Null).expect("nothing to check");
    let guest = &mut Guest::new(&memory, &mut vsock);
    guest.receives_nothing();
    // the buffer comes after the restore: it is told then
    let used = guest.driver.request(EVENT, &[Part::Writable(4)]);
    assert_eq!(used.written, [0; 4]);
    guest.receives_nothing();
    guest.driver.offer(EVENT, &[Part::Writable(4)]);
    guest.answer(1);
    assert_eq!(guest.driver.try_used(EVENT), None);
}

/// A confined machine ended with SIGSYS: the driver's first reset had a vCPU's thread accept.
#[test]
fn a_reset_accepts_nobody() {
    let memory = testing::memory();
    let (mut vsock, place) = device();
    let _waits = place.connect("CONNECT 1\n");
    vsock.reset();
    // nobody who has to say a line in time
    assert_eq!(vsock.muxer.as_ref().and_then(Muxer::alarm), None);
    Guest::new(&memory, &mut vsock).answer(1);
}

#[test]
fn who_does_not_answer_in_time_is_given_up() {
    let (vsock, place) = device();
    let mut muxer = vsock.muxer.expect("it is not active");
    let now = Instant::now();
    let silent = place.connect("CONN");
    let unanswered = place.connect("CONNECT 1\n");
    let mut events = [Default::default(); 8];
    for _ in 0..4 {
        let count = muxer.epoll().wait(20, &mut events).expect("epoll");
        for event in &events[..count] {
            muxer.happened(event.data(), event.event_set(), now);
        }
    }
    let request = muxer.give(&Default::default(), now).expect("a request");
    assert_eq!(Op::new(request.op), Some(Op::Request));
    muxer.expire(now + Duration::from_secs(6));
    assert!(line(&silent).starts_with("ERROR no line"));
    assert!(muxer.give(&Default::default(), now).is_none());
    muxer.expire(now + Duration::from_secs(31));
    assert!(line(&unanswered).starts_with("ERROR the guest does not answer"));
    let reset = muxer.give(&Default::default(), now).expect("a reset");
    assert_eq!(Op::new(reset.op), Some(Op::Reset));
    assert_eq!(muxer.alarm(), None);
}

#[derive(Clone, Debug)]
struct Garbage {
    header: Vec<u8>,
    data: usize,
    cut: usize,
    stray: Option<(u64, u32, u16)>,
}

/// Packets near enough to good ones to reach every state.
fn garbage(ports: u32) -> impl Strategy<Value = Garbage> {
    let near = prop_oneof![8 => Just(u64::from(CID)), 1 => Just(2), 1 => any::<u64>()];
    let dst = prop_oneof![8 => Just(2u64), 1 => any::<u64>()];
    let port = prop_oneof![8 => Just(ports), 1 => any::<u32>()];
    let len = prop_oneof![Just(0), 0..5000u32, any::<u32>()];
    let kind = prop_oneof![8 => Just(STREAM), 1 => any::<u16>()];
    let op = prop_oneof![8 => 0..9u16, 1 => any::<u16>()];
    let stray = prop::option::weighted(0.2, (any::<u64>(), any::<u32>(), 0..4u16));
    (
        near,
        dst,
        port,
        len,
        kind,
        op,
        any::<[u32; 3]>(),
        0..5000usize,
        0..60usize,
        stray,
    )
        .prop_map(
            |(src_cid, dst_cid, src_port, len, kind, op, rest, data, cut, stray)| {
                let header = Header {
                    src_cid,
                    dst_cid,
                    src_port,
                    dst_port: 1,
                    len,
                    kind,
                    op,
                    flags: rest[0],
                    buf_alloc: rest[1],
                    fwd_cnt: rest[2],
                };
                let header = header.bytes().to_vec();
                Garbage {
                    header,
                    data,
                    cut,
                    stray,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn garbage_harms_only_the_guest_that_sends_it(packets in prop::collection::vec(garbage(77), 1..40)) {
        let memory = testing::memory();
        let (mut vsock, place) = device();
        let waits: Vec<UnixStream> = (0..3).map(|_| place.connect("ACCEPT 1\n")).collect();
        let guest = &mut Guest::new(&memory, &mut vsock);
        for packet in packets {
            let data = pattern(packet.data);
            let cut = packet.cut.min(packet.header.len());
            let mut parts = vec![Part::Readable(&packet.header[..cut]), Part::Readable(&packet.header[cut..])];
            if let Some((at, len, flags)) = packet.stray {
                parts.push(Part::Raw(GuestAddress(at), len, flags & 2));
            }
            parts.push(Part::Readable(&data));
            guest.driver.request(TX, &parts);
            // buffers that are too small, or nowhere
            match packet.cut % 5 {
                0 => drop(guest.driver.offer(RX, &[Part::Writable(20)])),
                1 => drop(guest.driver.offer(RX, &[Part::Raw(GuestAddress(u64::MAX - 64), 4096, 2)])),
                2 => drop(guest.driver.offer(RX, &[Part::Writable(HEADER_LEN)])),
                _ => drop(guest.driver.offer(RX, &[Part::Writable(100)])),
            }
            guest.driver.kick(RX);
            while guest.driver.try_used(RX).is_some() {}
        }
        drop(waits);
        let stream = place.connect("CONNECT 42\n");
        loop {
            guest.offer();
            let used = guest.driver.used(RX);
            if used.written.len() < HEADER_LEN {
                continue;
            }
            let (header, _) = parse(&used.written);
            if header.op == Op::Request as u16 {
                guest.send(Op::Response, header.dst_port, header.src_port);
                break;
            }
        }
        prop_assert_eq!(line(&stream), "OK 42\n");
    }
}
