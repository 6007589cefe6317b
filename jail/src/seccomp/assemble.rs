//! Writes the classic BPF program for a plan. Emitted back to front, because BPF jumps forward only and then every target is
//! known; conditional jumps reach 255 instructions, farther ones go over a plain jump.

use std::collections::HashMap;

use super::rules::{AbiPlan, Condition, Outcome, Test};
use super::table::{Abi, X32_BIT};
use super::{Error, Instruction};

pub(super) const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
pub(super) const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
pub(super) const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
pub(super) const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
pub(super) const JUMP_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
pub(super) const JUMP_GREATER_EQUAL: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
pub(super) const RETURN: u16 = 0x06; // BPF_RET | BPF_K

// struct seccomp_data (include/uapi/linux/seccomp.h)
const NR: u32 = 0;
const ARCH: u32 = 4;

/// BPF_MAXINSNS
const LIMIT: usize = 4096;
/// How far a jump may go, with room for two instructions that come in between.
const NEAR: usize = 250;

/// The whole program.
pub fn program(plan: &[AbiPlan]) -> Result<Vec<Instruction>, Error> {
    let mut out = Code::default();
    let kill = libc::SECCOMP_RET_KILL_THREAD;
    let mut entries = Vec::new();
    for abi in plan.iter().filter(|p| p.abi != Abi::X32) {
        let x32 = (abi.abi == Abi::X86_64).then(|| match plan.iter().find(|p| p.abi == Abi::X32) {
            Some(x32) => (out.search(Abi::X32, &x32.ranges), true),
            None => (out.ret(kill), false),
        });
        let mut entry = out.search(abi.abi, &abi.ranges);
        if let Some((x32, all)) = x32 {
            // -1 is what a tracer or a test program calls, not x32.
            let above = if all {
                x32
            } else {
                out.branch(JUMP_EQUAL, u32::MAX, entry, x32)
            };
            entry = out.branch(JUMP_GREATER_EQUAL, X32_BIT, above, entry);
        }
        entries.push((abi.abi.audit(), out.load(NR, entry)));
    }
    let mut start = out.ret(kill);
    for (audit, entry) in entries.into_iter().rev() {
        start = out.branch(JUMP_EQUAL, audit, entry, start);
    }
    out.load(ARCH, start);
    let mut code = out.reversed;
    if code.len() > LIMIT {
        return Err(Error::TooLong {
            instructions: code.len(),
        });
    }
    code.reverse();
    Ok(code)
}

/// An instruction, counted from the end of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Label(usize);

#[derive(Default)]
struct Code {
    reversed: Vec<Instruction>,
    /// The copy of each `return` that was emitted last.
    returns: HashMap<u32, Label>,
}

impl Code {
    fn push(&mut self, code: u16, jump_true: u8, jump_false: u8, k: u32) -> Label {
        self.reversed.push(Instruction {
            code,
            jump_true,
            jump_false,
            k,
        });
        Label(self.reversed.len() - 1)
    }

    /// How many instructions the next one has to skip to arrive at `label`.
    fn distance(&self, label: Label) -> usize {
        self.reversed.len() - 1 - label.0
    }

    fn ret(&mut self, verdict: u32) -> Label {
        if let Some(&label) = self.returns.get(&verdict)
            && self.distance(label) < NEAR / 2
        {
            return label;
        }
        let label = self.push(RETURN, 0, 0, verdict);
        self.returns.insert(verdict, label);
        label
    }

    /// `label`, or something near that leads there.
    fn near(&mut self, label: Label) -> Label {
        if self.distance(label) < NEAR {
            return label;
        }
        match self.reversed[label.0] {
            Instruction {
                code: RETURN, k, ..
            } => self.ret(k),
            _ => {
                let distance = self.distance(label);
                self.push(JUMP, 0, 0, distance as u32)
            }
        }
    }

    fn branch(&mut self, code: u16, k: u32, yes: Label, no: Label) -> Label {
        if yes == no {
            return yes;
        }
        let yes = self.near(yes);
        let no = self.near(no);
        // Fits: `near` leaves room for the two instructions it may add.
        let (yes, no) = (self.distance(yes) as u8, self.distance(no) as u8);
        self.push(code, yes, no, k)
    }

    /// An instruction that goes on with `next`.
    fn then(&mut self, code: u16, k: u32, next: Label) -> Label {
        match self.distance(next) {
            0 => {}
            distance => {
                self.push(JUMP, 0, 0, distance as u32);
            }
        }
        self.push(code, 0, 0, k)
    }

    fn load(&mut self, offset: u32, next: Label) -> Label {
        self.then(LOAD, offset, next)
    }

    /// Binary search of the number in the accumulator.
    fn search(&mut self, abi: Abi, ranges: &[(u32, Outcome)]) -> Label {
        match ranges {
            [] => self.ret(libc::SECCOMP_RET_KILL_THREAD),
            [(_, outcome)] => self.outcome(abi, outcome),
            several => {
                let (left, right) = several.split_at(several.len() / 2);
                let middle = right[0].0;
                let right = self.search(abi, right);
                let left = self.search(abi, left);
                self.branch(JUMP_GREATER_EQUAL, middle, right, left)
            }
        }
    }

    fn outcome(&mut self, abi: Abi, outcome: &Outcome) -> Label {
        match outcome {
            Outcome::Always(verdict) => self.ret(*verdict),
            Outcome::Tested(alternatives, otherwise) => {
                let mut next = self.ret(*otherwise);
                for (conditions, verdict) in alternatives.iter().rev() {
                    let mut holds = self.ret(*verdict);
                    for condition in conditions.iter().rev() {
                        holds = self.condition(abi, condition, holds, next);
                    }
                    next = holds;
                }
                next
            }
        }
    }

    fn condition(&mut self, abi: Abi, condition: &Condition, yes: Label, no: Label) -> Label {
        let at = Words {
            high: (!abi.is_32_bit()).then(|| abi.high_word(condition.index)),
            low: abi.low_word(condition.index),
        };
        match condition.test {
            Test::Equal(value) => self.masked(at, u64::MAX, value, yes, no),
            Test::NotEqual(value) => self.masked(at, u64::MAX, value, no, yes),
            Test::Masked { mask, value } => self.masked(at, mask, value, yes, no),
            Test::Less(value) => self.below(at, value, JUMP_GREATER_EQUAL, yes, no),
            Test::LessOrEqual(value) => self.below(at, value, JUMP_GREATER, yes, no),
            Test::Greater(value) => self.below(at, value, JUMP_GREATER, no, yes),
            Test::GreaterOrEqual(value) => self.below(at, value, JUMP_GREATER_EQUAL, no, yes),
        }
    }

    /// `(argument & mask) == value`
    fn masked(&mut self, at: Words, mask: u64, value: u64, yes: Label, no: Label) -> Label {
        let mut label = self.masked_word(at.low, mask as u32, value as u32, yes, no);
        if let Some(high) = at.high {
            label = self.masked_word(high, (mask >> 32) as u32, (value >> 32) as u32, label, no);
        }
        label
    }

    fn masked_word(&mut self, offset: u32, mask: u32, value: u32, yes: Label, no: Label) -> Label {
        if value & !mask != 0 {
            return no;
        }
        if mask == 0 {
            return yes;
        }
        let mut label = self.branch(JUMP_EQUAL, value, yes, no);
        if mask != u32::MAX {
            label = self.then(AND, mask, label);
        }
        self.load(offset, label)
    }

    /// Whether the argument is below `value`; `not_below` is the comparison of the lower words that says no.
    fn below(&mut self, at: Words, value: u64, not_below: u16, yes: Label, no: Label) -> Label {
        let label = self.branch(not_below, value as u32, no, yes);
        let low = self.load(at.low, label);
        let Some(high) = at.high else { return low };
        let value = (value >> 32) as u32;
        let label = self.branch(JUMP_EQUAL, value, low, yes);
        let label = self.branch(JUMP_GREATER, value, no, label);
        self.load(high, label)
    }
}

/// Offsets of an argument's halves; a 32-bit architecture has one.
#[derive(Clone, Copy)]
struct Words {
    high: Option<u32>,
    low: u32,
}
