//! Beginning, pausing and ending.

use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use caisson_protocol::ErrorKind;
use caisson_protocol::vmm::{
    Bucket, Disk, DiskLimit, DiskUpdate, RateLimits, Resource, VmEnd, VmSpec, VmmRequest,
    VmmResponse,
};

use crate::guest::{COUNTING, CRASHING, RESETTING, panicking};
use crate::vm::Vm;
use crate::{confinement, kvm};

#[test]
fn a_guest_runs_pauses_goes_on_and_is_stopped() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::boot(COUNTING, |_| {});
    vm.console_of(20);
    vm.done(VmmRequest::Pause);
    let paused = vm.console();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(vm.console(), paused);
    let error = vm.request(VmmRequest::Pause).expect_err("it is paused");
    assert_eq!(error.kind, ErrorKind::Conflict);
    vm.done(VmmRequest::Resume);
    let more = vm.console_of(paused.len() + 20);
    let expected: String = ('a'..='p').cycle().take(more.len()).collect();
    assert_eq!(more, expected, "no letter is lost or twice");

    let Ok(VmmResponse::Stats(stats)) = vm.request(VmmRequest::Stats) else {
        panic!("no stats");
    };
    assert!(stats.exits_io as usize >= more.len());
    assert!(stats.guest_resident_bytes > 0 && stats.guest_resident_bytes < 16 << 20);
    assert!(stats.boot.built_us.is_some() && stats.boot.agent_us.is_none());

    let waiting = vm.ask(VmmRequest::Wait, &[]);
    let stop = vm.ask(VmmRequest::Stop, &[]);
    assert_eq!(vm.answer().expect("an answer").id, stop);
    let answer = vm.answer().expect("an answer");
    assert_eq!(answer.id, waiting);
    let (status, _) = vm.exit();
    assert!(status.success());
}

#[test]
fn several_vcpus_pause_and_stop() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::boot(COUNTING, |spec| spec.vcpus = 4);
    vm.console_of(5);
    for _ in 0..5 {
        vm.done(VmmRequest::Pause);
        vm.done(VmmRequest::Resume);
    }
    vm.done(VmmRequest::Stop);
    assert_eq!(vm.end(), VmEnd::Stopped);
}

#[test]
fn each_end_is_told_and_has_its_status() {
    if !kvm() {
        return;
    }
    let panic = panicking();
    let cases: [(&[u8], i32, &str); 3] = [
        (RESETTING, 0, "Reset"),
        (
            &panic,
            3,
            "Panicked(\"Kernel panic - not syncing: on purpose\")",
        ),
        (CRASHING, 1, "Failed(\"the guest crashed"),
    ];
    for (code, status, how) in cases {
        let mut vm = Vm::boot(code, |_| {});
        let end = format!("{:?}", vm.end());
        assert!(end.starts_with(how), "{end}");
        assert_eq!(vm.exit().0.code(), Some(status), "{how}");
    }
}

#[test]
fn the_end_of_the_connection_is_the_end_of_the_machine() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::boot(COUNTING, |_| {});
    vm.console_of(5);
    vm.hang_up();
    assert!(vm.exit().0.success());
}

#[test]
fn sigterm_ends_it_and_is_seen() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::boot(COUNTING, |_| {});
    vm.console_of(5);
    let pid = rustix::process::Pid::from_raw(vm.pid() as i32).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it lives");
    assert_eq!(vm.answer().map(|a| a.id), None);
    assert_eq!(vm.exit().0.signal(), Some(15));
}

#[test]
fn what_cannot_be_built_says_why_on_the_connection_and_on_standard_error() {
    if !kvm() {
        return;
    }
    type Change = fn(&mut VmSpec);
    let cases: [(&str, Change); 7] = [
        ("/nowhere/disk", |s| {
            s.disks = vec![Disk {
                file: Resource::Path("/nowhere/disk".into()),
                serial: String::new(),
                read_only: true,
                rate: None,
                queues: None,
            }]
        }),
        ("/nowhere", |s| s.kernel = Resource::Path("/nowhere".into())),
        ("guest kernel", |s| {
            s.kernel = Resource::Path("/proc/self/status".into())
        }),
        ("0 bytes of memory", |s| s.memory_bytes = 0),
        ("65 vCPUs", |s| s.vcpus = 65),
        ("descriptor 77", |s| s.kernel = Resource::Fd(77)),
        ("more than this host's", |s| s.memory_bytes = 1 << 50),
    ];
    for (word, change) in cases {
        let mut vm = Vm::boot(COUNTING, change);
        let error = vm.request(VmmRequest::Resume).expect_err("there is none");
        assert!(error.message.contains(word), "{word}: {error}");
        let VmEnd::Failed(why) = vm.end() else {
            panic!("{word}: it ran");
        };
        assert!(why.contains(word), "{word}: {why}");
        let (status, said) = vm.exit();
        assert_eq!(status.code(), Some(1));
        assert!(said.contains(word), "{word}: {said}");
    }
}

#[test]
fn commands_reach_their_devices_and_no_others() {
    if !kvm() {
        return;
    }
    let disk = tempfile::NamedTempFile::new().expect("a file");
    disk.as_file().set_len(1 << 20).expect("a file");
    let root = tempfile::tempdir().expect("a directory");
    let mut vm = Vm::boot(COUNTING, |spec| {
        spec.confinement = confinement(root.path());
        spec.disks = vec![Disk {
            file: Resource::Path(disk.path().to_owned()),
            serial: "disk".into(),
            read_only: false,
            rate: None,
            queues: None,
        }];
    });
    let limits = RateLimits {
        bytes: Some(Bucket {
            per_second: 1 << 20,
            burst: 1 << 20,
        }),
        operations: None,
    };
    let limit = |disk| VmmRequest::LimitDisk(DiskLimit { disk, rate: limits });
    let update = |disk| {
        VmmRequest::UpdateDisk(DiskUpdate {
            disk,
            read_only: true,
        })
    };
    vm.done(limit(0));
    let error = vm.request(limit(1)).expect_err("there is one");
    assert!(error.message.contains("no disk 1"), "{error}");
    let larger = tempfile::tempfile().expect("a file");
    larger.set_len(2 << 20).expect("a file");
    let outcome = vm.request_with(update(0), &[larger.as_fd()]);
    assert_eq!(outcome, Ok(VmmResponse::Done));
    let error = vm.request(update(0)).expect_err("no file came");
    assert!(error.message.contains("descriptor"), "{error}");
    vm.done(VmmRequest::SetBalloon(1 << 20));
    let Ok(VmmResponse::Stats(stats)) = vm.request(VmmRequest::Stats) else {
        panic!("no stats");
    };
    assert_eq!(stats.disks.len(), 1);
    assert_eq!(stats.balloon_bytes, 0, "its driver is not there");
}

#[test]
fn garbage_in_place_of_a_spec_is_refused() {
    for bytes in [
        &b"\x05\0\0\0hello"[..],
        b"\xff\xff\xff\xffhello",
        b"\0\0\0\0",
    ] {
        let mut vm = Vm::start(tempfile::tempdir().expect("a directory"));
        vm.send(bytes);
        vm.hang_up();
        let (status, said) = vm.exit();
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.starts_with("caisson-vmm: "), "{said}");
    }
}

#[test]
fn a_confined_machine_runs_and_has_nothing_left() {
    if !kvm() {
        return;
    }
    let root = tempfile::tempdir().expect("a directory");
    let Some(confinement) = confinement(root.path()) else {
        return;
    };
    let mut vm = Vm::boot(COUNTING, |spec| {
        spec.vcpus = 2;
        spec.confinement = Some(confinement);
    });
    vm.console_of(5);
    let status = std::fs::read_to_string(format!("/proc/{}/status", vm.pid())).expect("a status");
    for line in [
        "Uid:\t54321\t54321\t54321\t54321",
        "Gid:\t54322\t54322\t54322\t54322",
        "Groups:\t ",
        "CapInh:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        assert!(status.contains(line), "{line} is not in {status}");
    }
    for thread in std::fs::read_dir(format!("/proc/{}/task", vm.pid())).expect("threads") {
        let path = thread.expect("a thread").path().join("status");
        let status = std::fs::read_to_string(path).expect("a status");
        assert!(status.contains("Seccomp:\t2"), "{status}");
    }
    let inside = std::fs::read_dir(format!("/proc/{}/root/", vm.pid())).expect("its root");
    assert_eq!(inside.count(), 0);
    for namespace in ["mnt", "net", "ipc", "uts"] {
        let of = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/{namespace}")).ok();
        assert_ne!(of(&vm.pid().to_string()), of("self"), "{namespace}");
    }
    vm.done(VmmRequest::Pause);
    vm.done(VmmRequest::Resume);
    assert!(matches!(
        vm.request(VmmRequest::Stats),
        Ok(VmmResponse::Stats(_))
    ));
    vm.done(VmmRequest::Stop);
    assert_eq!(vm.end(), VmEnd::Stopped);
    assert!(vm.exit().0.success());
}
