//! What a guest's program sees of SYSCALL, and what it can make of the assist's gate: a hostile program (`hostile.c`) says
//! it as an ordinary process of this host, where it does not know a gate, and as the init of a guest. Both must say the same.
//!
//! Needs KVM, a C compiler and the guest's kernel (in `CAISSON_GUEST_DIR` or `target/dist/guest`); says so otherwise.

#[path = "../program/mod.rs"]
mod program;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use program::{COMMAND_LINE, Program};

const PATIENCE: Duration = Duration::from_secs(240);

/// What the hosts that need the assist do differently by themselves, without its having a part in it: the local descriptor
/// table and INT n do not exist for programs, NT is lost on the way out of the kernel; SYSENTER in 64-bit mode is what it is
/// on processors of AMD.
const HOST: &[(&str, &str)] = &[
    ("nested", "rip 1 rax 1 kept 1 r11 4202 flags 202 rsp 0"),
    ("ldt data", "cs 33 ss 2b ds 0 es 0 fs 0 gs 0"),
    ("ldt data", "nothing"),
    ("ldt stack", "nothing"),
    ("ldt", "signal 11"),
    ("int 0x80", "signal 4"),
    ("32 bit int 0x80", "signal 4"),
    ("sysenter", "signal 4"),
];

/// What the gate is worth: where nothing else is said, a segmentation fault.
const GATE: &[(&str, &[&str])] = &[
    // with a SYSCALL instruction in front of RCX, to which the program might have jumped instead
    ("gate as by syscall", &["exit 77"]),
    ("gate r11", &["exit 77"]),
    ("gate nested", &["exit 77"]),
    // inside an instruction, and behind the last
    ("gate+5", &["signal 4", "signal 11"]),
    ("gate+8", &["signal 4"]),
    // nothing is there: ones
    ("gate read trap", &["exit 55", "signal 11"]),
    ("gate in a syscall", &["exit 42"]),
    ("gate mapped over", &["exit 42"]),
    ("gate unmapped", &["exit 42"]),
];

#[test]
fn a_guests_program_gains_nothing_that_syscall_does_not_give() {
    let files = tempfile::tempdir().expect("a directory");
    let Some(linux) = Program::with_init("gate/hostile.c", files.path()) else {
        return;
    };
    let native = Command::new(&linux.file).output().expect("it runs");
    let native = lines(&String::from_utf8_lossy(&native.stdout));
    assert_eq!(
        native.get("end").map(String::as_str),
        Some("0"),
        "{native:?}"
    );

    // two, so that interrupts between processors come on top of what the program does
    let console = boot(&linux, files.path(), 2);
    let said = lines(&console);
    assert_eq!(said.get("end").map(String::as_str), Some("0"), "{console}");
    let emulated = Path::new("/sys/module/kvm_pvm").exists();
    for (name, natively) in &native {
        let here = said.get(name).map_or("nothing", String::as_str);
        let excused = emulated && HOST.contains(&(name, here));
        assert!(
            here == natively || excused,
            "{name}: {here}, natively {natively}"
        );
    }
    if !emulated {
        println!("skipped: this host needs no gate");
        return;
    }
    let mut counted = 0;
    for (name, here) in said.iter().filter(|(name, _)| name.starts_with("gate")) {
        if ["gate speed", "gate interrupted"].contains(&name.as_str()) {
            println!("{name}: {here}");
            continue;
        }
        let expected = GATE.iter().find(|(n, _)| n == name);
        let expected = expected.map_or(&["signal 11"][..], |(_, outcomes)| outcomes);
        assert!(
            expected.contains(&here.as_str()),
            "{name}: {here}, not {expected:?}"
        );
        counted += 1;
    }
    assert!(counted >= GATE.len(), "{console}");
}

/// Lines of the program, by name; those of one name in their order.
fn lines(text: &str) -> BTreeMap<String, String> {
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    let lines = text
        .lines()
        .filter_map(|line| line.trim_end().split_once(": "));
    // what else is on a console is the kernel's
    for (name, value) in lines.filter(|(name, _)| !name.contains(['[', '{'])) {
        let all = found.entry(name.to_owned()).or_default();
        if !all.is_empty() {
            all.push_str("; ");
        }
        all.push_str(value);
    }
    found
}

/// Runs a guest with this program as its init to its end; what it wrote.
fn boot(linux: &Program, files: &Path, vcpus: u8) -> String {
    let spec = serde_json::json!({
        "id": "hostile", "vcpus": vcpus, "memory_bytes": 128 << 20,
        "kernel": {"path": linux.kernel}, "initramfs": {"path": linux.initramfs},
        "command_line": COMMAND_LINE,
    });
    let file = files.join("spec");
    std::fs::write(&file, spec.to_string()).expect("a spec");
    let console = files.join("console");
    let child = Command::new(env!("CARGO_BIN_EXE_caisson-vmm"))
        .arg("run")
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&console).expect("a file"))
        .spawn()
        .expect("caisson-vmm");
    finish(child);
    let console = std::fs::read(&console).expect("the console");
    String::from_utf8_lossy(&console).into_owned()
}

fn finish(mut child: Child) {
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().expect("wait").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("kill");
            child.wait().expect("wait");
            panic!("the guest does not end in {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
