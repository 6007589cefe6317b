//! The device filter of cgroup v2: a small eBPF program made from the rules, run by the kernel at each open and mknod.
//!
//! ```text
//! r2 kind   r3 accesses not decided yet   r4 major   r5 minor
//! for each rule, last first:
//!     devices differ             → next rule
//!     deny,  names one of r3     → return 0
//!     allow, r3 loses what it names; nothing left → return 1
//! return 0
//! ```

use super::devices::{Access, Kind, Rule};

/// `struct bpf_insn` (include/uapi/linux/bpf.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    pub(super) code: u8,
    /// Destination in the low half, source in the high half.
    pub(super) registers: u8,
    pub(super) offset: i16,
    pub(super) immediate: i32,
}

pub(super) const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
pub(super) const MOVE: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
pub(super) const MOVE_NUMBER: u8 = 0xb4; // BPF_ALU | BPF_MOV | BPF_K
pub(super) const AND_NUMBER: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
pub(super) const SHIFT_RIGHT: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
pub(super) const JUMP_NOT_EQUAL: u8 = 0x55; // BPF_JMP | BPF_JNE | BPF_K
pub(super) const JUMP_EQUAL: u8 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
pub(super) const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

const DEV_BLOCK: i32 = 1; // BPF_DEVCG_DEV_BLOCK
const DEV_CHAR: i32 = 2; // BPF_DEVCG_DEV_CHAR

fn op(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: dst | src << 4,
        offset,
        immediate,
    }
}

fn answer(allow: bool) -> [Instruction; 2] {
    [
        op(MOVE_NUMBER, RESULT, 0, 0, i32::from(allow)),
        op(EXIT, 0, 0, 0, 0),
    ]
}

/// The program for these rules.
pub fn program(rules: &[Rule]) -> Vec<Instruction> {
    // struct bpf_cgroup_dev_ctx { u32 access_type /* access << 16 | kind */; u32 major; u32 minor; }
    let mut code = vec![
        op(LOAD_WORD, KIND, CONTEXT, 0, 0),
        op(MOVE, ACCESS, KIND, 0, 0),
        op(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        op(AND_NUMBER, KIND, 0, 0, 0xffff),
        op(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        op(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let verdict = verdict(rule);
        let kind = rule.devices.kind.map(|kind| match kind {
            Kind::Block => DEV_BLOCK,
            Kind::Char => DEV_CHAR,
        });
        let wanted: Vec<(u8, i32)> = [
            (KIND, kind),
            (MAJOR, rule.devices.major.map(u32::cast_signed)),
            (MINOR, rule.devices.minor.map(u32::cast_signed)),
        ]
        .into_iter()
        .filter_map(|(register, value)| Some((register, value?)))
        .collect();
        for (i, (register, value)) in wanted.iter().enumerate() {
            let skip = wanted.len() - 1 - i + verdict.len();
            code.push(op(JUMP_NOT_EQUAL, *register, 0, skip as i16, *value));
        }
        code.extend(&verdict);
        if wanted.is_empty() && rule.access == Access::ALL {
            // Decides everything; the verifier refuses code that is never reached.
            return code;
        }
    }
    code.extend(answer(false));
    code
}

fn verdict(rule: &Rule) -> Vec<Instruction> {
    let bits = i32::from(rule.access.0);
    let mut code = match (rule.allow, rule.access) {
        (_, Access::ALL) => vec![],
        (true, _) => vec![
            op(AND_NUMBER, ACCESS, 0, 0, !bits),
            op(JUMP_NOT_EQUAL, ACCESS, 0, 2, 0),
        ],
        (false, _) => vec![
            op(MOVE, RESULT, ACCESS, 0, 0),
            op(AND_NUMBER, RESULT, 0, 0, bits),
            op(JUMP_EQUAL, RESULT, 0, 2, 0),
        ],
    };
    code.extend(answer(rule.allow));
    code
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::devices::Pattern;
    use super::super::devices::tests::rule;
    use super::*;

    /// Runs a program the way the kernel would; `Err` on anything that its verifier would refuse.
    fn run(
        code: &[Instruction],
        kind: u32,
        access: u32,
        major: u32,
        minor: u32,
    ) -> Result<u64, String> {
        let mut r = [0u64; 11];
        let mut pc = 0usize;
        for _ in 0..=code.len() {
            let i = code.get(pc).ok_or("fell off the end")?;
            let (dst, src) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
            let number = i64::from(i.immediate).cast_unsigned();
            pc += 1;
            match i.code {
                LOAD_WORD => {
                    r[dst] = u64::from(match i.offset {
                        0 => access << 16 | kind,
                        4 => major,
                        8 => minor,
                        other => return Err(format!("load at {other}")),
                    });
                }
                MOVE => r[dst] = r[src] & 0xffff_ffff,
                MOVE_NUMBER => r[dst] = number & 0xffff_ffff,
                AND_NUMBER => r[dst] = r[dst] & number & 0xffff_ffff,
                SHIFT_RIGHT => r[dst] = (r[dst] & 0xffff_ffff) >> number,
                JUMP_NOT_EQUAL if r[dst] != number => {
                    pc += usize::try_from(i.offset).map_err(|_| "backwards")?
                }
                JUMP_EQUAL if r[dst] == number => {
                    pc += usize::try_from(i.offset).map_err(|_| "backwards")?
                }
                JUMP_NOT_EQUAL | JUMP_EQUAL => {}
                EXIT => return Ok(r[0]),
                other => return Err(format!("opcode {other:#x}")),
            }
        }
        Err("does not end".into())
    }

    /// The rules' meaning, written down plainly: each access by the last rule that matches it.
    fn naive(rules: &[Rule], kind: Kind, access: u8, major: u32, minor: u32) -> bool {
        [1, 2, 4]
            .iter()
            .filter(|bit| access & **bit != 0)
            .all(|bit| {
                rules
                    .iter()
                    .rev()
                    .find(|r| {
                        r.access.0 & bit != 0
                            && r.devices.kind.is_none_or(|k| k == kind)
                            && r.devices.major.is_none_or(|m| m == major)
                            && r.devices.minor.is_none_or(|m| m == minor)
                    })
                    .is_some_and(|r| r.allow)
            })
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let kind = prop_oneof![Just(None), Just(Some(Kind::Block)), Just(Some(Kind::Char))];
        let number = || prop_oneof![Just(None), (0u32..3).prop_map(Some)];
        (any::<bool>(), kind, number(), number(), 1u8..8).prop_map(
            |(allow, kind, major, minor, access)| Rule {
                allow,
                devices: Pattern { kind, major, minor },
                access: Access(access),
            },
        )
    }

    proptest! {
        #[test]
        fn the_program_means_what_the_rules_mean(
            rules in proptest::collection::vec(any_rule(), 0..12),
            char in any::<bool>(), access in 1u8..8, major in 0u32..3, minor in 0u32..3,
        ) {
            let kind = if char { Kind::Char } else { Kind::Block };
            let number = if char { DEV_CHAR } else { DEV_BLOCK } as u32;
            let got = run(&program(&rules), number, access.into(), major, minor);
            prop_assert_eq!(got, Ok(u64::from(naive(&rules, kind, access, major, minor))));
        }
    }

    #[test]
    fn nothing_follows_a_rule_for_everything() {
        let with = program(&[rule("allow c 1:3 rwm"), rule("deny a *:* rwm")]);
        assert_eq!(with, program(&[rule("deny a *:* rwm")]));
        assert_eq!(with.len(), 8);
    }
}
