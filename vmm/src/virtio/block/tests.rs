//! A disk from its driver's side: what it does for honest drivers, and what hostile ones cannot make it do.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use caisson_protocol::vmm::{Bucket, RateLimits, Resource};
use proptest::prelude::*;
use tempfile::NamedTempFile;
use vm_memory::GuestAddress;

use super::*;
use crate::virtio::testing::{self, Driver, Part, Used};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const ZEROES: u32 = 13;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

const SECTORS: usize = 2048;

/// A file in which every sector begins with its number.
fn file() -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    let mut bytes = vec![0xaa; SECTORS * 512];
    for (number, sector) in bytes.chunks_mut(512).enumerate() {
        sector[..8].copy_from_slice(&(number as u64).to_le_bytes());
    }
    file.write_all(&bytes).unwrap();
    file
}

fn spec(file: &NamedTempFile) -> vmm::Disk {
    vmm::Disk {
        file: Resource::Path(file.path().into()),
        serial: "upper".into(),
        read_only: false,
        rate: None,
        queues: None,
    }
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

fn status(used: &Used) -> u8 {
    *used.written.last().expect("a status")
}

fn read(driver: &mut Driver, sector: u64, len: usize) -> Used {
    let parts = [
        Part::Readable(&header(IN, sector)),
        Part::Writable(len),
        Part::Writable(1),
    ];
    driver.request(0, &parts)
}

fn out(driver: &mut Driver, kind: u32, sector: u64, data: &[u8]) -> u8 {
    let header = header(kind, sector);
    let mut parts = vec![Part::Readable(&header)];
    if !data.is_empty() {
        parts.push(Part::Readable(data));
    }
    parts.push(Part::Writable(1));
    status(&driver.request(0, &parts))
}

#[test]
fn sectors_are_read_and_written_where_they_belong() {
    let (file, memory) = (file(), testing::memory());
    let mut disk = Block::open(&spec(&file)).unwrap();
    let mut driver = Driver::new(&memory, &mut disk);
    let used = read(&mut driver, 7, 1024);
    assert_eq!((status(&used), used.len), (OK, 1025));
    assert_eq!(used.written[..8], 7u64.to_le_bytes());
    assert_eq!(used.written[512..520], 8u64.to_le_bytes());

    assert_eq!(out(&mut driver, OUT, 9, &[0x55; 512]), OK);
    assert_eq!(out(&mut driver, FLUSH, 0, &[]), OK);
    let mut stored = Vec::new();
    file.reopen().unwrap().read_to_end(&mut stored).unwrap();
    assert_eq!(stored[9 * 512..10 * 512], [0x55; 512]);
    assert_eq!(stored[10 * 512..][..8], 10u64.to_le_bytes());

    // the header and the data in odd pieces, the status behind the last byte of the data
    let header = header(IN, 3);
    let used = driver.request(
        0,
        &[
            Part::Readable(&header[..5]),
            Part::Readable(&header[5..]),
            Part::Writable(3),
            Part::Writable(510),
        ],
    );
    assert_eq!(status(&used), OK);
    assert_eq!(used.written[..8], 3u64.to_le_bytes());

    let mut stats = VmStats::default();
    disk.count(&mut stats);
    let counted = &stats.disks[0];
    assert_eq!((counted.read_ops, counted.read_bytes), (2, 1536));
    assert_eq!(
        (counted.write_ops, counted.write_bytes, counted.errors),
        (1, 512, 0)
    );
}

#[test]
fn nothing_beyond_the_end_is_touched() {
    let (file, memory) = (file(), testing::memory());
    let mut disk = Block::open(&spec(&file)).unwrap();
    let mut driver = Driver::new(&memory, &mut disk);
    let last = SECTORS as u64 - 1;
    assert_eq!(status(&read(&mut driver, last, 512)), OK);
    for sector in [last + 1, last + 2, u64::MAX / 512, u64::MAX - 1, u64::MAX] {
        assert_eq!(status(&read(&mut driver, sector, 512)), IO_ERROR);
        assert_eq!(out(&mut driver, OUT, sector, &[1; 512]), IO_ERROR);
        for kind in [DISCARD, ZEROES] {
            assert_eq!(out(&mut driver, kind, 0, &segment(sector, 1, 0)), IO_ERROR);
        }
    }
    assert_eq!(status(&read(&mut driver, last, 1024)), IO_ERROR);
    // no sectors are half read or half written
    assert_eq!(status(&read(&mut driver, 0, 511)), IO_ERROR);
    assert_eq!(out(&mut driver, OUT, 0, &[1; 513]), IO_ERROR);
    assert_eq!(
        file.as_file().metadata().unwrap().len(),
        SECTORS as u64 * 512
    );
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let (file, memory) = (file(), testing::memory());
    // the file itself is open for writing: the device is what refuses
    let mut disk = Block::open(&spec(&file)).unwrap();
    let command = Command::UpdateDisk {
        file: file.reopen().unwrap(),
        read_only: true,
    };
    disk.command(&command).unwrap();
    assert_ne!(disk.features() & 1 << VIRTIO_BLK_F_RO, 0);
    let before = std::fs::read(file.path()).unwrap();
    let mut driver = Driver::new(&memory, &mut disk);
    assert_eq!(out(&mut driver, OUT, 1, &[1; 512]), IO_ERROR);
    assert_eq!(out(&mut driver, DISCARD, 0, &segment(1, 8, 0)), IO_ERROR);
    assert_eq!(out(&mut driver, ZEROES, 0, &segment(1, 8, 0)), IO_ERROR);
    assert_eq!(out(&mut driver, ZEROES, 0, &segment(1, 8, 1)), IO_ERROR);
    assert_eq!(out(&mut driver, FLUSH, 0, &[]), OK);
    assert_eq!(status(&read(&mut driver, 1, 512)), OK);
    assert_eq!(std::fs::read(file.path()).unwrap(), before);
}

#[test]
fn discarded_space_is_given_up_and_zeroes_are_zeroes() {
    let (file, memory) = (file(), testing::memory());
    let mut disk = Block::open(&spec(&file)).unwrap();
    let mut driver = Driver::new(&memory, &mut disk);
    let blocks = || file.as_file().metadata().unwrap().blocks();
    let before = blocks();
    let mut two = segment(8, 8, 0);
    two.extend(segment(1024, 1024, 0));
    assert_eq!(out(&mut driver, DISCARD, 0, &two), OK);
    assert!(
        blocks() <= before - 1024,
        "{before} blocks, then {}",
        blocks()
    );
    assert_eq!(out(&mut driver, ZEROES, 0, &segment(33, 3, 0)), OK);
    assert_eq!(out(&mut driver, ZEROES, 0, &segment(40, 8, 1)), OK);
    let used = read(&mut driver, 32, 32 * 512);
    assert_eq!(used.written[..8], 32u64.to_le_bytes());
    assert!(used.written[512..4 * 512].iter().all(|b| *b == 0));
    assert_eq!(used.written[4 * 512..][..8], 36u64.to_le_bytes());
    assert!(used.written[8 * 512..16 * 512].iter().all(|b| *b == 0));
    assert_eq!(used.written[16 * 512..][..8], 48u64.to_le_bytes());

    assert_eq!(out(&mut driver, DISCARD, 0, &segment(0, 1, 1)), UNSUPPORTED);
    assert_eq!(out(&mut driver, ZEROES, 0, &segment(0, 1, 2)), UNSUPPORTED);
    assert_eq!(
        out(&mut driver, DISCARD, 0, &segment(0, 1, 0)[..15]),
        IO_ERROR
    );
    assert_eq!(out(&mut driver, DISCARD, 0, &[]), IO_ERROR);
    assert_eq!(
        out(&mut driver, DISCARD, 0, &segment(0, 1, 0).repeat(33)),
        IO_ERROR
    );
    assert_eq!(out(&mut driver, 77, 0, &[]), UNSUPPORTED);
}

#[test]
fn the_serial_number_is_told_and_its_length_checked() {
    let (file, memory) = (file(), testing::memory());
    let mut disk = Block::open(&spec(&file)).unwrap();
    let mut driver = Driver::new(&memory, &mut disk);
    let parts = [
        Part::Readable(&header(GET_ID, 0)),
        Part::Writable(20),
        Part::Writable(1),
    ];
    let used = driver.request(0, &parts);
    assert_eq!(used.written, b"upper\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    let long = vmm::Disk {
        serial: "x".repeat(21),
        ..spec(&file)
    };
    assert!(Block::open(&long).is_err());
    for queues in [0, 17] {
        let wrong = vmm::Disk {
            queues: Some(queues),
            ..spec(&file)
        };
        assert!(Block::open(&wrong).is_err());
    }
}

#[test]
fn a_new_file_is_used_at_once_and_its_size_is_seen() {
    let (old, memory) = (file(), testing::memory());
    let mut disk = Block::open(&spec(&old)).unwrap();
    let mut driver = Driver::new(&memory, &mut disk);
    assert_eq!(status(&read(&mut driver, 0, 512)), OK);
    let mut new = NamedTempFile::new().unwrap();
    new.write_all(&[7; 4 * 512 + 100]).unwrap();
    let command = Command::UpdateDisk {
        file: new.reopen().unwrap(),
        read_only: false,
    };
    assert_eq!(disk.command(&command).unwrap(), Changed::Config);
    let mut capacity = [0; 8];
    disk.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 4);
    assert_eq!(read(&mut driver, 3, 512).written[..512], [7; 512]);
    assert_eq!(status(&read(&mut driver, 4, 512)), IO_ERROR);

    let saved = disk.save();
    assert!(disk.restore(saved).is_ok());
    assert!(disk.restore(json!({ "sectors": 5 })).is_err());
    assert!(disk.restore(json!({})).is_err());
}

#[test]
fn a_file_cut_behind_our_back_is_an_error_of_the_request() {
    let (file, memory) = (file(), testing::memory());
    let mut disk = Block::open(&spec(&file)).unwrap();
    let mut driver = Driver::new(&memory, &mut disk);
    file.as_file().set_len(512 + 100).unwrap();
    assert_eq!(status(&read(&mut driver, 0, 512)), OK);
    assert_eq!(status(&read(&mut driver, 1, 512)), IO_ERROR);
}

#[test]
fn several_queues_work_side_by_side_and_survive_a_pause() {
    let (file, memory) = (file(), testing::memory());
    let mut disk = Block::open(&vmm::Disk {
        queues: Some(3),
        ..spec(&file)
    })
    .unwrap();
    assert_ne!(disk.features() & 1 << VIRTIO_BLK_F_MQ, 0);
    let mut queues = [0; 2];
    disk.read_config(34, &mut queues);
    assert_eq!((u16::from_le_bytes(queues), disk.workers()), (3, 3));
    let mut driver = Driver::inactive(&memory, &disk, disk.features());
    let mut activation = driver.activation();
    // the driver uses two of the three
    activation.queues[2].set_ready(false);
    disk.activate(activation).unwrap();
    for round in 0..50u64 {
        for queue in [0, 1] {
            let parts = [
                Part::Readable(&header(IN, round)),
                Part::Writable(512),
                Part::Writable(1),
            ];
            let used = driver.request(queue, &parts);
            assert_eq!(used.written[..8], round.to_le_bytes());
        }
        if round % 10 == 0 {
            let activation = disk.stop().expect("it was active");
            assert_eq!(activation.queues.len(), 3);
            assert!(!activation.queues[2].ready());
            disk.activate(activation).unwrap();
        }
    }
    disk.stop().unwrap();
    assert!(disk.stop().is_none());
}

#[test]
fn what_is_offered_while_stopped_is_done_after_the_resume() {
    let (file, memory) = (file(), testing::memory());
    let mut disk = Block::open(&spec(&file)).unwrap();
    let mut driver = Driver::new(&memory, &mut disk);
    let activation = disk.stop().unwrap();
    let parts = [
        Part::Readable(&header(IN, 5)),
        Part::Writable(512),
        Part::Writable(1),
    ];
    let heads: Vec<u16> = (0..20).map(|_| driver.offer(0, &parts)).collect();
    assert_eq!(driver.try_used(0), None);
    disk.activate(activation).unwrap();
    let done: Vec<u16> = heads.iter().map(|_| driver.used(0).head).collect();
    assert_eq!(done, heads);
    assert!(driver.interrupted());
}

#[test]
fn a_limited_disk_waits_and_goes_on_by_itself() {
    let (file, memory) = (file(), testing::memory());
    let operations = Some(Bucket {
        per_second: 100,
        burst: 5,
    });
    let rate = RateLimits {
        operations,
        bytes: None,
    };
    let mut disk = Block::open(&vmm::Disk {
        rate: Some(rate),
        ..spec(&file)
    })
    .unwrap();
    let mut driver = Driver::new(&memory, &mut disk);
    let parts = [
        Part::Readable(&header(IN, 5)),
        Part::Writable(512),
        Part::Writable(1),
    ];
    let begin = Instant::now();
    for _ in 0..15 {
        driver.offer(0, &parts);
    }
    driver.kick(0);
    for _ in 0..15 {
        driver.used(0);
    }
    assert!(
        begin.elapsed() >= Duration::from_millis(95),
        "{:?}",
        begin.elapsed()
    );
    let mut stats = VmStats::default();
    disk.count(&mut stats);
    assert!(stats.disks[0].throttled >= 2, "{stats:?}");

    // an endless wait ends when the limits change
    let none = RateLimits {
        operations: Some(Bucket {
            per_second: 0,
            burst: 1,
        }),
        bytes: None,
    };
    disk.command(&Command::LimitDisk(none)).unwrap();
    driver.request(0, &parts);
    driver.offer(0, &parts);
    driver.kick(0);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(driver.try_used(0), None);
    // and a waiting disk can be stopped
    let activation = disk.stop().unwrap();
    disk.activate(activation).unwrap();
    disk.command(&Command::LimitDisk(RateLimits::default()))
        .unwrap();
    driver.used(0);
}

#[test]
fn zeroes_count_as_what_is_written() {
    let (file, memory) = (file(), testing::memory());
    let bytes = Some(Bucket {
        per_second: 1 << 20,
        burst: 1,
    });
    let rate = RateLimits {
        bytes,
        operations: None,
    };
    let mut disk = Block::open(&vmm::Disk {
        rate: Some(rate),
        ..spec(&file)
    })
    .unwrap();
    let mut driver = Driver::new(&memory, &mut disk);
    let begin = Instant::now();
    // 128 KiB at 1 MiB a second
    assert_eq!(out(&mut driver, ZEROES, 0, &segment(0, 256, 0)), OK);
    assert_eq!(status(&read(&mut driver, 0, 512)), OK);
    assert!(begin.elapsed() >= Duration::from_millis(120));
    let two = [segment(0, 1, 0), segment(0, 0, 2)].concat();
    assert_eq!(out(&mut driver, ZEROES, 0, &two), UNSUPPORTED);
    assert_eq!(status(&read(&mut driver, 0, 512)), OK);
}

#[test]
fn malformed_chains_are_given_back_and_the_next_request_works() {
    let (file, memory) = (file(), testing::memory());
    let mut disk = Block::open(&spec(&file)).unwrap();
    let mut driver = Driver::new(&memory, &mut disk);
    let before = std::fs::read(file.path()).unwrap();
    let header = header(OUT, 0);
    let end = memory_end();
    let hostile: Vec<Vec<Part>> = vec![
        // no status
        vec![Part::Readable(&header), Part::Readable(&[1; 512])],
        // a status that may only be read, before and after the data
        vec![
            Part::Readable(&header),
            Part::Raw(GuestAddress(0x9000), 1, 0),
        ],
        // no header, half a header
        vec![Part::Writable(1)],
        vec![Part::Readable(&header[..15]), Part::Writable(1)],
        // the readable part behind the writable one
        vec![Part::Writable(1), Part::Readable(&header)],
        vec![
            Part::Readable(&header),
            Part::Writable(1),
            Part::Readable(&[1; 512]),
        ],
        // out of memory, across its end, around the end of the address space
        vec![
            Part::Readable(&header),
            Part::Raw(GuestAddress(end), 512, 0),
            Part::Writable(1),
        ],
        vec![
            Part::Readable(&header),
            Part::Raw(GuestAddress(end - 256), 512, 0),
            Part::Writable(1),
        ],
        vec![
            Part::Readable(&header),
            Part::Raw(GuestAddress(u64::MAX - 10), 512, 0),
            Part::Writable(1),
        ],
        vec![
            Part::Readable(&header),
            Part::Raw(GuestAddress(0), u32::MAX, 0),
            Part::Writable(1),
        ],
        // nothing
        vec![
            Part::Readable(&header),
            Part::Raw(GuestAddress(0x9000), 0, 0),
            Part::Writable(1),
        ],
        // the chain goes on in itself: the descriptor after the last is the first
        (0..256)
            .map(|_| Part::Raw(GuestAddress(0x9000), 1, 1))
            .collect(),
        // an indirect table outside of the memory, one of a size that is none, one inside another
        vec![Part::Raw(GuestAddress(end), 32, 4)],
        vec![Part::Raw(GuestAddress(0x9000), 17, 4)],
    ];
    for (number, parts) in hostile.iter().enumerate() {
        let used = driver.request(0, parts);
        assert_eq!(used.len, 0, "chain {number}");
        assert_eq!(
            status(&read(&mut driver, 1, 512)),
            OK,
            "after chain {number}"
        );
    }
    assert_eq!(std::fs::read(file.path()).unwrap(), before);
}

fn memory_end() -> u64 {
    use vm_memory::{Address, GuestMemoryBackend};
    testing::memory().last_addr().raw_value() + 1
}

#[test]
fn a_broken_ring_ends_the_queue_and_not_the_processor() {
    use vm_memory::Bytes;
    let (file, memory) = (file(), testing::memory());
    let mut disk = Block::open(&spec(&file)).unwrap();
    let mut driver = Driver::new(&memory, &mut disk);
    // more chains are said to be available than the ring has places
    let available = driver.activation().queues[0].avail_ring();
    memory
        .write_obj(40_000u16, GuestAddress(available + 2))
        .unwrap();
    driver.kick(0);
    let parts = [
        Part::Readable(&header(IN, 0)),
        Part::Writable(512),
        Part::Writable(1),
    ];
    driver.offer(0, &parts);
    driver.kick(0);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(driver.try_used(0), None);
    // a reset makes it whole
    assert!(disk.stop().is_some());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever a chain looks like, it comes back, and a read-only disk does not change.
    #[test]
    fn any_chain_comes_back(
        kind in prop_oneof![0u32..15, any::<u32>()],
        sector in prop_oneof![0u64..2100, any::<u64>()],
        parts in proptest::collection::vec(
            (prop_oneof![0u64..0x500_0000, any::<u64>()], prop_oneof![0u32..70_000, any::<u32>()], 0u16..8),
            0..12,
        ),
        with_header in any::<bool>(),
        writable in any::<bool>(),
    ) {
        let (file, memory) = (file(), testing::memory());
        let mut disk = Block::open(&vmm::Disk { read_only: !writable, ..spec(&file) }).unwrap();
        let before = std::fs::read(file.path()).unwrap();
        let mut driver = Driver::new(&memory, &mut disk);
        let header = header(kind, sector);
        let mut chain = Vec::new();
        if with_header || parts.is_empty() {
            chain.push(Part::Readable(&header));
        }
        // rings, tables and the next request's buffers stay whole: hostile writes go to the last 16 MiB
        for (address, len, flags) in &parts {
            let writes = flags & 2 != 0;
            let address = if writes { address | 0x300_0000 } else { *address };
            chain.push(Part::Raw(GuestAddress(address), *len, *flags & !1));
        }
        driver.request(0, &chain);
        prop_assert_eq!(status(&read(&mut driver, 1, 512)), OK);
        let after = std::fs::read(file.path()).unwrap();
        prop_assert_eq!(after.len(), before.len());
        prop_assert!(writable || after == before);
    }
}
