//! What profiles mean: tables, and a comparison of the compiled filter with the profile on random system calls.

use std::collections::BTreeSet;
use std::time::Instant;

use oci_spec::runtime::LinuxSeccomp;
use proptest::prelude::*;
use serde_json::json;

use super::table::{Abi, Cpu, X32_BIT};
use super::*;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_THREAD;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// Runs a filter as the kernel would. Panics on what the kernel's checker refuses. Also says how many instructions it took.
fn run(filter: &Filter, audit: u32, nr: u32, args: [u64; 6]) -> (u32, usize) {
    let mut data = Vec::new();
    data.extend(nr.to_le_bytes());
    data.extend(audit.to_le_bytes());
    data.extend([0; 8]);
    for arg in args {
        data.extend(arg.to_le_bytes());
    }
    let (mut a, mut pc) = (0u32, 0usize);
    for steps in 1..=filter.program.len() {
        let i = filter.program[pc];
        pc += 1;
        let jump = |yes: bool| usize::from(if yes { i.jump_true } else { i.jump_false });
        match i.code {
            assemble::LOAD => {
                assert!(i.k.is_multiple_of(4) && i.k < 64, "load at {}", i.k);
                let at = i.k as usize;
                a = u32::from_le_bytes(data[at..at + 4].try_into().expect("four bytes"));
            }
            assemble::AND => a &= i.k,
            assemble::JUMP => pc += i.k as usize,
            assemble::JUMP_EQUAL => pc += jump(a == i.k),
            assemble::JUMP_GREATER => pc += jump(a > i.k),
            assemble::JUMP_GREATER_EQUAL => pc += jump(a >= i.k),
            assemble::RETURN => return (i.k, steps),
            code => panic!("opcode {code:#x}"),
        }
    }
    panic!("did not return");
}

fn profile(json: &serde_json::Value) -> LinuxSeccomp {
    serde_json::from_value(json.clone()).expect("profile parses")
}

fn compiled(json: &serde_json::Value) -> Filter {
    compile_for(&profile(json), Cpu::X86_64).expect("compiles")
}

fn nr(abi: Abi, name: &str) -> u32 {
    *abi.numbers()
        .get(name)
        .unwrap_or_else(|| panic!("no {name} on {abi:?}"))
}

fn answer(filter: &Filter, abi: Abi, name: &str, args: [u64; 6]) -> u32 {
    run(filter, abi.audit(), nr(abi, name), args).0
}

#[test]
fn architectures_are_told_apart() {
    let rules = json!([{"names": ["read", "open"], "action": "SCMP_ACT_ALLOW"}]);
    let native = compiled(&json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}));
    assert_eq!(answer(&native, Abi::X86_64, "read", [0; 6]), ALLOW);
    assert_eq!(answer(&native, Abi::X86, "read", [0; 6]), KILL);
    assert_eq!(answer(&native, Abi::X32, "read", [0; 6]), KILL);
    assert_eq!(answer(&native, Abi::Aarch64, "read", [0; 6]), KILL);
    assert_eq!(
        run(&native, Abi::X86_64.audit(), u32::MAX, [0; 6]).0,
        ENOSYS
    );

    let all = compiled(
        &json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_ARM"]}),
    );
    for abi in [Abi::X86_64, Abi::X86, Abi::X32] {
        assert_eq!(answer(&all, abi, "read", [0; 6]), ALLOW, "{abi:?}");
        assert_eq!(answer(&all, abi, "write", [0; 6]), EPERM, "{abi:?}");
    }
    // i386's number of open is x86-64's of fstat.
    assert_eq!(answer(&all, Abi::X86_64, "fstat", [0; 6]), ENOSYS);
    assert_eq!(answer(&all, Abi::Arm, "read", [0; 6]), KILL);
}

#[test]
fn numbers_beyond_what_the_profile_knows_are_not_implemented() {
    let deny = |action: &str| {
        compiled(&json!({"defaultAction": action, "defaultErrnoRet": 13,
            "syscalls": [{"names": ["read", "statx"], "action": "SCMP_ACT_ALLOW"}]}))
    };
    let errno = deny("SCMP_ACT_ERRNO");
    assert_eq!(
        answer(&errno, Abi::X86_64, "rseq", [0; 6]),
        ENOSYS,
        "334, after statx, 332"
    );
    assert_eq!(
        answer(&errno, Abi::X86_64, "pkey_free", [0; 6]),
        libc::SECCOMP_RET_ERRNO | 13
    );
    assert_eq!(
        answer(
            &deny("SCMP_ACT_KILL_PROCESS"),
            Abi::X86_64,
            "clone3",
            [0; 6]
        ),
        ENOSYS
    );
    assert_eq!(
        answer(&deny("SCMP_ACT_ALLOW"), Abi::X86_64, "clone3", [0; 6]),
        ALLOW
    );
    assert_eq!(
        answer(&deny("SCMP_ACT_LOG"), Abi::X86_64, "clone3", [0; 6]),
        libc::SECCOMP_RET_LOG
    );
    // A rule that says nothing new still shows that its call is known.
    let known = compiled(&json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW"}, {"names": ["clone3"], "action": "SCMP_ACT_ERRNO"}]}));
    assert_eq!(answer(&known, Abi::X86_64, "clone3", [0; 6]), EPERM);
    assert_eq!(answer(&known, Abi::X86_64, "rseq", [0; 6]), EPERM);
}

#[test]
fn comparisons_are_of_64_bits() {
    let value: u64 = 0x1_0000_0005;
    let with = |op: &str| {
        compiled(
            &json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86"],
            "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 3, "value": value, "op": op}]}]}),
        )
    };
    type Compare = fn(&u64, &u64) -> bool;
    let ops: [(&str, Compare); 6] = [
        ("SCMP_CMP_EQ", PartialEq::eq),
        ("SCMP_CMP_NE", PartialEq::ne),
        ("SCMP_CMP_LT", PartialOrd::lt),
        ("SCMP_CMP_LE", PartialOrd::le),
        ("SCMP_CMP_GT", PartialOrd::gt),
        ("SCMP_CMP_GE", PartialOrd::ge),
    ];
    for (op, compare) in ops {
        let filter = with(op);
        for arg in [
            0,
            4,
            5,
            6,
            value - 1,
            value,
            value + 1,
            0x2_0000_0000,
            0x2_0000_0005,
            u64::MAX,
        ] {
            let got = answer(&filter, Abi::X86_64, "read", [9, 9, 9, arg, 9, 9]) == ALLOW;
            assert_eq!(got, compare(&arg, &value), "{arg:#x} {op} {value:#x}");
            // 32-bit programs have 32-bit arguments, and are compared by those.
            let short = arg & 0xffff_ffff;
            let got = answer(&filter, Abi::X86, "read", [9, 9, 9, short, 9, 9]) == ALLOW;
            assert_eq!(got, compare(&short, &5), "i386 {short:#x} {op}");
        }
    }
}

#[test]
fn masks_are_of_64_bits() {
    // The clone rule of Docker's profile: no CLONE_NEW* flag.
    let filter = compiled(
        &json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["clone"],
        "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 2114060288u64, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]}]}),
    );
    assert_eq!(
        answer(&filter, Abi::X86_64, "clone", [0x11, 0, 0, 0, 0, 0]),
        ALLOW
    );
    assert_eq!(
        answer(
            &filter,
            Abi::X86_64,
            "clone",
            [0x1_0000_0011, 0, 0, 0, 0, 0]
        ),
        ALLOW
    );
    assert_eq!(
        answer(&filter, Abi::X86_64, "clone", [0x1000_0011, 0, 0, 0, 0, 0]),
        EPERM
    );
    let high = compiled(
        &json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["clone"],
        "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 0xff_0000_0000u64, "valueTwo": 0x12_0000_0000u64, "op": "SCMP_CMP_MASKED_EQ"}]}]}),
    );
    assert_eq!(
        answer(
            &high,
            Abi::X86_64,
            "clone",
            [0x3412_0000_0099, 0, 0, 0, 0, 0]
        ),
        ALLOW
    );
    assert_eq!(
        answer(
            &high,
            Abi::X86_64,
            "clone",
            [0x3413_0000_0099, 0, 0, 0, 0, 0]
        ),
        EPERM
    );
}

#[test]
fn several_rules_for_one_call() {
    let personality = |value: u64| {
        json!({"names": ["personality"], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]})
    };
    let filter = compiled(&json!({"defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [personality(0), personality(8), personality(0xffff_ffff)]}));
    let ask = |arg: u64| answer(&filter, Abi::X86_64, "personality", [arg, 0, 0, 0, 0, 0]);
    assert_eq!(
        [0, 1, 8, 0xffff_ffff, 0x1_ffff_ffff].map(ask),
        [ALLOW, EPERM, ALLOW, ALLOW, EPERM]
    );

    // One argument twice: any condition is enough, as runc has it.
    let twice = compiled(
        &json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["personality"],
        "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]}]}),
    );
    let ask = |arg: u64| answer(&twice, Abi::X86_64, "personality", [arg, 0, 0, 0, 0, 0]);
    assert_eq!([0, 1, 2, 3].map(ask), [EPERM, ALLOW, ALLOW, EPERM]);

    // Different arguments: all of them.
    let both = compiled(
        &json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["socket"],
        "action": "SCMP_ACT_ERRNO", "errnoRet": 22, "args": [{"index": 0, "value": 16, "op": "SCMP_CMP_EQ"}, {"index": 2, "value": 9, "op": "SCMP_CMP_EQ"}]}]}),
    );
    let ask = |a: u64, b: u64| answer(&both, Abi::X86_64, "socket", [a, 0, b, 0, 0, 0]);
    assert_eq!(
        [ask(16, 9), ask(16, 8), ask(15, 9)],
        [libc::SECCOMP_RET_ERRNO | 22, ALLOW, ALLOW]
    );

    // An unconditional rule decides alone.
    let whole = compiled(&json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_TRAP", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
        {"names": ["read"], "action": "SCMP_ACT_ALLOW"}, {"names": ["read"], "action": "SCMP_ACT_KILL"}]}));
    assert_eq!(
        answer(&whole, Abi::X86_64, "read", [1, 0, 0, 0, 0, 0]),
        ALLOW
    );
}

#[test]
fn socketcall_follows_the_calls_it_multiplexes() {
    let filter = compiled(
        &json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"],
        "syscalls": [{"names": ["bind", "send", "shmget"], "action": "SCMP_ACT_ERRNO"}]}),
    );
    let call = |name: &str, which: u64| answer(&filter, Abi::X86, name, [which, 0, 0, 0, 0, 0]);
    assert_eq!(call("bind", 0), EPERM);
    assert_eq!(
        [1, 2, 3, 9].map(|n| call("socketcall", n)),
        [ALLOW, EPERM, ALLOW, EPERM]
    );
    assert_eq!([23, 24].map(|n| call("ipc", n)), [EPERM, ALLOW]);
}

#[test]
fn unknown_names_are_ignored_and_bad_rules_named() {
    let filter = compiled(&json!({"defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["no_such_call", "read"], "action": "SCMP_ACT_ALLOW"}]}));
    assert_eq!(answer(&filter, Abi::X86_64, "read", [0; 6]), ALLOW);
    let refuse = |json: serde_json::Value| {
        let error = compile_for(&profile(&json), Cpu::X86_64).expect_err("refused");
        assert_eq!(error.kind(), crate::ErrorKind::Invalid);
        error.to_string()
    };
    let notify = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]});
    assert!(refuse(notify).contains("SCMP_ACT_NOTIFY"));
    assert!(
        refuse(json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}))
            .contains("listenerPath")
    );
    let index = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_KILL",
        "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]});
    assert!(refuse(index).contains("\"read\""));
    assert!(
        refuse(json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5000}))
            .contains("5000")
    );
}

#[test]
fn flags() {
    let of = |flags: serde_json::Value| {
        super::flags(&profile(
            &json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags}),
        ))
    };
    assert_eq!(
        of(json!([
            "SECCOMP_FILTER_FLAG_LOG",
            "SECCOMP_FILTER_FLAG_TSYNC"
        ])),
        Ok(3)
    );
    assert_eq!(of(json!([])), Ok(0));
    assert_eq!(of(json!(null)), Ok(4));
    assert!(of(json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"])).is_err());
}

#[test]
fn a_large_profile_is_short_to_run() {
    // Every second system call of three architectures allowed: the worst case of ranges.
    let mut names: Vec<&str> = Abi::X86_64.numbers().into_keys().collect();
    names.sort_by_key(|n| nr(Abi::X86_64, n));
    let half: Vec<&str> = names.iter().copied().step_by(2).collect();
    let json = json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{"names": half, "action": "SCMP_ACT_ALLOW"}]});
    let started = Instant::now();
    let filter = compiled(&json);
    println!(
        "{} instructions, compiled in {:?}",
        filter.program.len(),
        started.elapsed()
    );
    assert!(filter.program.len() < 2000);
    for name in names {
        let number = nr(Abi::X86_64, name);
        let (verdict, steps) = run(&filter, Abi::X86_64.audit(), number, [0; 6]);
        assert_eq!(verdict == ALLOW, half.contains(&name), "{name}");
        assert!(steps <= 16, "{name} takes {steps}");
    }
}

/// What a profile means, written down plainly: the oracle.
fn naive(profile: &LinuxSeccomp, abi: Abi, number: u32, args: [u64; 6]) -> u32 {
    let default =
        verdict(profile.default_action(), profile.default_errno_ret()).expect("good action");
    let numbers = abi.numbers();
    let width = if abi.is_32_bit() {
        0xffff_ffff
    } else {
        u64::MAX
    };
    let mut known = BTreeSet::new();
    let (mut always, mut tested) = (None, None);
    for rule in profile.syscalls().iter().flatten() {
        let numbers: BTreeSet<u32> = rule
            .names()
            .iter()
            .filter_map(|n| numbers.get(n.as_str()).copied())
            .collect();
        known.extend(&numbers);
        let action = verdict(rule.action(), rule.errno_ret()).expect("good action");
        if !numbers.contains(&number) || action == default {
            continue;
        }
        let conditions = rule.args().clone().unwrap_or_default();
        let holds = |a: &oci_spec::runtime::LinuxSeccompArg| {
            use oci_spec::runtime::LinuxSeccompOperator as Op;
            let (arg, value) = (args[a.index()] & width, a.value() & width);
            match a.op() {
                Op::ScmpCmpNe => arg != value,
                Op::ScmpCmpLt => arg < value,
                Op::ScmpCmpLe => arg <= value,
                Op::ScmpCmpEq => arg == value,
                Op::ScmpCmpGe => arg >= value,
                Op::ScmpCmpGt => arg > value,
                Op::ScmpCmpMaskedEq => arg & value == a.value_two().unwrap_or(0) & width,
            }
        };
        let indices: BTreeSet<usize> = conditions.iter().map(|a| a.index()).collect();
        let matched = if conditions.is_empty() {
            always = always.or(Some(action));
            false
        } else if indices.len() < conditions.len() {
            conditions.iter().any(holds)
        } else {
            conditions.iter().all(holds)
        };
        if matched {
            tested = tested.or(Some(action));
        }
    }
    let allows = [libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_LOG].contains(&default)
        || default & 0xffff_0000 == libc::SECCOMP_RET_TRACE;
    let beyond = known.last().is_some_and(|last| number > *last) && !allows;
    always
        .or(tested)
        .unwrap_or(if beyond { ENOSYS } else { default })
}

fn any_action() -> impl Strategy<Value = (&'static str, Option<u32>)> {
    let action = prop_oneof![
        Just("SCMP_ACT_ALLOW"),
        Just("SCMP_ACT_ERRNO"),
        Just("SCMP_ACT_KILL"),
        Just("SCMP_ACT_KILL_PROCESS"),
        Just("SCMP_ACT_TRAP"),
        Just("SCMP_ACT_LOG"),
        Just("SCMP_ACT_TRACE"),
    ];
    (action, proptest::option::of(0u32..200))
}

/// Values that meet each other often, in both halves.
fn any_value() -> impl Strategy<Value = u64> {
    let word = || {
        prop_oneof![
            Just(0u64),
            Just(1),
            Just(2),
            Just(0x8000_0000),
            Just(0xffff_ffff),
            0u64..0x1_0000_0000
        ]
    };
    (word(), word()).prop_map(|(high, low)| high << 32 | low)
}

fn any_argument() -> impl Strategy<Value = serde_json::Value> {
    let op = prop_oneof![
        Just("SCMP_CMP_NE"),
        Just("SCMP_CMP_LT"),
        Just("SCMP_CMP_LE"),
        Just("SCMP_CMP_EQ"),
        Just("SCMP_CMP_GE"),
        Just("SCMP_CMP_GT"),
        Just("SCMP_CMP_MASKED_EQ"),
    ];
    (0usize..3, any_value(), proptest::option::of(any_value()), op)
        .prop_map(|(index, value, two, op)| json!({"index": index, "value": value, "valueTwo": two, "op": op}))
}

/// Names with no multiplexer on i386, the neighbours of each other, some on one architecture only.
const NAMES: [&str; 12] = [
    "read", "write", "open", "close", "stat", "fstat", "clone", "statx", "clone3", "waitpid",
    "pwritev2", "nonsense",
];

fn any_profile() -> impl Strategy<Value = LinuxSeccomp> {
    let rule = (
        proptest::sample::subsequence(&NAMES, 1..6),
        any_action(),
        proptest::collection::vec(any_argument(), 0..4),
    )
        .prop_map(|(names, (action, errno), args)| json!({"names": names, "action": action, "errnoRet": errno, "args": args}));
    let archs = proptest::sample::subsequence(
        vec!["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        0..=3,
    );
    (any_action(), archs, proptest::collection::vec(rule, 0..8)).prop_map(|((action, errno), archs, rules)| {
        profile(&json!({"defaultAction": action, "defaultErrnoRet": errno, "architectures": archs, "syscalls": rules}))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(160))]

    #[test]
    fn the_program_means_what_the_profile_means(
        profile in any_profile(),
        calls in proptest::collection::vec((0usize..3, 0usize..NAMES.len() + 2, [any_value(), any_value(), any_value()]), 32),
    ) {
        let filter = compile_for(&profile, Cpu::X86_64).expect("compiles");
        for (abi, name, [a, b, c]) in calls {
            let abi = [Abi::X86_64, Abi::X86, Abi::X32][abi];
            let bit = if abi == Abi::X32 { X32_BIT } else { 0 };
            let number = NAMES.get(name).and_then(|n| abi.numbers().get(n).copied()).unwrap_or(bit + 300 + 300 * name as u32);
            let mut args = [a, b, c, 0, 0, 0];
            if abi.is_32_bit() {
                args = args.map(|arg| arg & 0xffff_ffff);
            }
            let archs = profile.architectures().clone().unwrap_or_default();
            let listed = abi == Abi::X86_64 || archs.iter().any(|arch| Cpu::X86_64.find(*arch) == Some(abi));
            let wanted = if listed { naive(&profile, abi, number, args) } else { KILL };
            let (got, _) = run(&filter, abi.audit(), number, args);
            prop_assert_eq!(got, wanted, "{:?} {} {:?}", abi, number, args);
        }
    }

    /// Whatever a profile says, compiling answers, and what it answers runs to an end on any input.
    #[test]
    fn no_profile_panics(
        syscalls in proptest::collection::vec((
            proptest::collection::vec(prop_oneof!["[a-z_0-9]{0,12}".boxed(), proptest::sample::select(&NAMES[..]).prop_map(str::to_owned).boxed()], 0..4),
            any_action(),
            proptest::collection::vec((0usize..8, any::<u64>(), any::<Option<u64>>()), 0..7),
        ), 0..40),
        default in any_action(),
        errno in any::<Option<u32>>(),
        call in (any::<u32>(), any::<u32>(), any::<[u64; 6]>()),
    ) {
        let rules: Vec<_> = syscalls.into_iter().map(|(names, (action, errno), args)| {
            let args: Vec<_> = args.into_iter().map(|(index, value, two)| json!({"index": index, "value": value, "valueTwo": two, "op": "SCMP_CMP_LT"})).collect();
            json!({"names": names, "action": action, "errnoRet": errno, "args": args})
        }).collect();
        let profile = profile(&json!({"defaultAction": default.0, "defaultErrnoRet": errno, "syscalls": rules,
            "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_MIPS"]}));
        for cpu in [Cpu::X86_64, Cpu::Aarch64, Cpu::S390x, Cpu::Riscv64, Cpu::Ppc64le, Cpu::Loongarch64] {
            if let Ok(filter) = compile_for(&profile, cpu) {
                prop_assert!(filter.program.len() <= 4096);
                for audit in [call.0, cpu.abi().audit()] {
                    run(&filter, audit, call.1, call.2);
                }
            }
        }
    }
}
