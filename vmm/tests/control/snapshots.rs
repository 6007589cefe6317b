//! A machine that goes on in other processes.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use caisson_protocol::ErrorKind;
use caisson_protocol::vmm::{AssistMode, Resource, SnapshotFiles, VmEnd, VmSpec, VmmRequest};

use crate::guest::COUNTING;
use crate::program::{COMMAND_LINE, Program};
use crate::vm::Vm;
use crate::{confinement, kvm};

struct Files {
    state: PathBuf,
    memory: PathBuf,
}

fn snapshot(vm: &mut Vm, into: &Path, name: &str) -> Files {
    let files = Files {
        state: into.join(format!("{name}.state")),
        memory: into.join(format!("{name}.memory")),
    };
    let create = |path| File::create_new(path).expect("a file");
    let (state, memory) = (create(&files.state), create(&files.memory));
    vm.request_with(VmmRequest::Snapshot, &[state.as_fd(), memory.as_fd()])
        .expect("a snapshot");
    files
}

fn restore(files: &Files, change: impl FnOnce(&mut VmSpec)) -> Vm {
    Vm::boot(&[], |spec| {
        spec.kernel = Resource::Path("/nowhere".into());
        spec.restore = Some(SnapshotFiles {
            state: Resource::Path(files.state.clone()),
            memory: Resource::Path(files.memory.clone()),
        });
        change(spec);
    })
}

/// Whether `text` is what a guest writes that has written `before` already.
fn goes_on(before: &str, text: &str) -> bool {
    let letters = ('a'..='p').cycle().skip(before.len() % 16);
    letters.take(text.len()).eq(text.chars())
}

#[test]
fn a_snapshot_goes_on_in_two_processes_and_again_from_one_of_them() {
    if !kvm() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    for vcpus in [1, 2] {
        let mut first = Vm::boot(COUNTING, |spec| spec.vcpus = vcpus);
        first.console_of(21);
        first.done(VmmRequest::Pause);
        let before = first.console();
        let files = snapshot(&mut first, directory.path(), &format!("first{vcpus}"));
        let meta = std::fs::metadata(&files.memory).expect("a file");
        assert_eq!(meta.len(), 32 << 20);
        assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
        first.done(VmmRequest::Resume);
        assert!(goes_on("", &first.console_of(before.len() + 20)));

        let mut second = restore(&files, |spec| spec.vcpus = vcpus);
        let third = restore(&files, |spec| spec.vcpus = vcpus);
        assert!(
            goes_on(&before, &second.console_of(40)),
            "{before} {}",
            second.console()
        );
        assert!(
            goes_on(&before, &third.console_of(40)),
            "{before} {}",
            third.console()
        );

        second.done(VmmRequest::Pause);
        let before = before + &second.console();
        let again = snapshot(&mut second, directory.path(), &format!("again{vcpus}"));
        let fourth = restore(&again, |spec| spec.vcpus = vcpus);
        assert!(goes_on(&before, &fourth.console_of(40)));
    }
}

/// Programs of a Linux guest, caught in whatever they do, on hosts that emulate ring 0 also between their SYSCALL and the
/// kernel's entry: nothing of theirs changes.
#[test]
fn programs_go_on_as_they_were() {
    let directory = tempfile::tempdir().expect("a directory");
    let Some(linux) = Program::with_init("control/steady.c", directory.path()) else {
        return;
    };
    let configure = |spec: &mut VmSpec| {
        spec.vcpus = 2;
        spec.memory_bytes = 128 << 20;
        spec.assist = AssistMode::Auto;
    };
    let mut vm = Vm::boot(&[], |spec| {
        configure(spec);
        spec.kernel = Resource::Path(linux.kernel);
        spec.initramfs = Some(Resource::Path(linux.initramfs));
        spec.command_line = COMMAND_LINE.into();
    });
    dots(&vm, 4);
    for turn in 0..3 {
        for _ in 0..5 {
            vm.done(VmmRequest::Pause);
            vm.done(VmmRequest::Resume);
        }
        vm.done(VmmRequest::Pause);
        let files = snapshot(&mut vm, directory.path(), &format!("linux{turn}"));
        vm = restore(&files, configure);
        dots(&vm, 4);
    }
}

/// Waits until programs have written so many dots, and nothing else.
fn dots(vm: &Vm, count: usize) {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        let text = vm.console();
        // the kernel's own lines come before
        let said = text.rsplit('\n').next().unwrap_or_default();
        if said.trim_matches('.').is_empty() && said.len() >= count {
            return;
        }
        assert!(Instant::now() < end, "the console stays at {text:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_confined_machine_is_saved_and_restored() {
    if !kvm() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let confine = |spec: &mut VmSpec| {
        spec.vcpus = 2;
        spec.confinement = confinement(directory.path());
    };
    let mut first = Vm::boot(COUNTING, confine);
    first.console_of(5);
    first.done(VmmRequest::Pause);
    let before = first.console();
    let files = snapshot(&mut first, directory.path(), "confined");
    let mut second = restore(&files, confine);
    assert!(goes_on(&before, &second.console_of(40)));
    second.done(VmmRequest::Stop);
    assert_eq!(second.end(), VmEnd::Stopped);
}

#[test]
fn a_running_machine_has_no_snapshot() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::boot(COUNTING, |_| {});
    let file = tempfile::tempfile().expect("a file");
    let error = vm
        .request_with(VmmRequest::Snapshot, &[file.as_fd(), file.as_fd()])
        .expect_err("it runs");
    assert_eq!(error.kind, ErrorKind::Conflict);
    let error = vm.request(VmmRequest::Snapshot).expect_err("no files");
    assert!(error.message.contains("descriptor"), "{error}");
}

#[test]
fn a_snapshot_that_does_not_fit_is_refused_by_name() {
    if !kvm() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let mut first = Vm::boot(COUNTING, |_| {});
    first.console_of(5);
    first.done(VmmRequest::Pause);
    let files = snapshot(&mut first, directory.path(), "snapshot");
    let refused = |files: &Files, change: fn(&mut VmSpec), word: &str| {
        let VmEnd::Failed(why) = restore(files, change).end() else {
            panic!("{word}: it ran");
        };
        assert!(why.contains(word), "{word}: {why}");
    };
    refused(&files, |s| s.vcpus = 2, "vCPUs");
    refused(&files, |s| s.memory_bytes = 64 << 20, "bytes of memory");

    let text = std::fs::read_to_string(&files.state).expect("a file");
    let changed = |name: &str, text: &str| {
        let state = directory.path().join(name);
        std::fs::write(&state, text).expect("a file");
        Files {
            state,
            memory: files.memory.clone(),
        }
    };
    refused(&changed("cut", &text[..text.len() / 2]), |_| {}, "snapshot");
    let other = text.replacen("\"memory_bytes\":33554432", "\"memory_bytes\":67108864", 1);
    assert_ne!(other, text);
    refused(&changed("other", &other), |_| {}, "digest");
    let newer = text.replacen("\"version\":1", "\"version\":7", 1);
    refused(&changed("newer", &newer), |_| {}, "version");

    let memory = File::options()
        .write(true)
        .open(&files.memory)
        .expect("a file");
    memory.set_len(1 << 20).expect("a file");
    refused(&files, |_| {}, "memory's file");
}
