//! A profile, resolved for one processor: for each architecture, ranges of system call numbers with what happens there.

use std::borrow::Cow;
use std::collections::BTreeSet;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompArg, LinuxSeccompOperator};

use super::table::{ARM_PRIVATE, Abi, Cpu};
use super::{Error, verdict};

/// What happens at a system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Always this `SECCOMP_RET_*`.
    Always(u32),
    /// The first of these whose conditions all hold; otherwise the second.
    Tested(Vec<(Vec<Condition>, u32)>, u32),
}

/// A comparison of one argument, unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Which, 0 to 5.
    pub index: usize,
    /// How.
    pub test: Test,
}

/// How an argument is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Test {
    Equal(u64),
    NotEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    Greater(u64),
    GreaterOrEqual(u64),
    /// `(argument & mask) == value`
    Masked {
        mask: u64,
        value: u64,
    },
}

/// One architecture's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbiPlan {
    /// Which.
    pub abi: Abi,
    /// Where each range begins, ascending, the first at 0; it ends where the next begins. Neighbours differ.
    pub ranges: Vec<(u32, Outcome)>,
}

/// Resolves `profile`. The native architecture comes first.
pub fn plan(profile: &LinuxSeccomp, cpu: Cpu) -> Result<Vec<AbiPlan>, Error> {
    if profile.listener_path().is_some() {
        return Err(Error::Listener {
            what: "listenerPath",
        });
    }
    let default = verdict(profile.default_action(), profile.default_errno_ret())?;
    let mut abis = vec![cpu.abi()];
    for arch in profile.architectures().iter().flatten() {
        if let Some(abi) = cpu.find(*arch)
            && !abis.contains(&abi)
        {
            abis.push(abi);
        }
    }
    let rules = Rule::all(profile, default)?;
    Ok(abis
        .into_iter()
        .map(|abi| for_abi(abi, &rules, default))
        .collect())
}

/// An entry of the profile, checked.
struct Rule<'a> {
    names: &'a [String],
    verdict: u32,
    /// Any of these; one without conditions always holds.
    alternatives: Vec<Vec<Condition>>,
}

impl Rule<'_> {
    fn all(profile: &LinuxSeccomp, default: u32) -> Result<Vec<Rule<'_>>, Error> {
        let mut rules = Vec::new();
        for entry in profile.syscalls().iter().flatten() {
            let args = entry.args().as_deref().unwrap_or_default();
            let conditions = args
                .iter()
                .map(|arg| condition(arg, entry.names()))
                .collect::<Result<Vec<_>, _>>()?;
            let indices: BTreeSet<usize> = conditions.iter().map(|c| c.index).collect();
            let alternatives = if indices.len() == conditions.len() {
                vec![conditions]
            } else {
                conditions.into_iter().map(|c| vec![c]).collect()
            };
            let verdict = verdict(entry.action(), entry.errno_ret())?;
            // It says nothing, but its names are known to the author: kept for the highest number.
            let alternatives = if verdict == default {
                Vec::new()
            } else {
                alternatives
            };
            rules.push(Rule {
                names: entry.names(),
                verdict,
                alternatives,
            });
        }
        Ok(rules)
    }
}

fn condition(arg: &LinuxSeccompArg, names: &[String]) -> Result<Condition, Error> {
    let (index, value) = (arg.index(), arg.value());
    if index > 5 {
        return Err(Error::ArgumentIndex {
            syscall: names.first().cloned().unwrap_or_default(),
            index,
        });
    }
    let test = match arg.op() {
        LinuxSeccompOperator::ScmpCmpEq => Test::Equal(value),
        LinuxSeccompOperator::ScmpCmpNe => Test::NotEqual(value),
        LinuxSeccompOperator::ScmpCmpLt => Test::Less(value),
        LinuxSeccompOperator::ScmpCmpLe => Test::LessOrEqual(value),
        LinuxSeccompOperator::ScmpCmpGt => Test::Greater(value),
        LinuxSeccompOperator::ScmpCmpGe => Test::GreaterOrEqual(value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => Test::Masked {
            mask: value,
            value: arg.value_two().unwrap_or(0),
        },
    };
    Ok(Condition { index, test })
}

/// What a rule says about one number: some of its conditions, all of which must hold.
struct Saying<'a> {
    nr: u32,
    conditions: Cow<'a, [Condition]>,
    verdict: u32,
}

fn for_abi(abi: Abi, rules: &[Rule<'_>], default: u32) -> AbiPlan {
    let numbers = abi.numbers();
    let mut sayings: Vec<Saying<'_>> = Vec::with_capacity(512);
    let mut highest = None;
    for rule in rules {
        for name in rule.names {
            let direct = numbers.get(name.as_str()).copied();
            let multiplexed = abi
                .multiplexed(name)
                .and_then(|(multiplexer, call)| Some((*numbers.get(multiplexer)?, call)));
            // `send` and `recv` have no number of their own on i386.
            let Some(nr) = direct.or(multiplexed.map(|(nr, _)| nr)) else {
                continue;
            };
            if nr < ARM_PRIVATE || abi == Abi::X32 {
                highest = highest.max(Some(nr));
            }
            for conditions in &rule.alternatives {
                sayings.extend(direct.map(|nr| Saying {
                    nr,
                    conditions: conditions.into(),
                    verdict: rule.verdict,
                }));
                // The multiplexer's further arguments are behind a pointer: conditions on them cannot be looked at.
                if conditions.is_empty()
                    && let Some((nr, call)) = multiplexed
                {
                    let is_call = Condition {
                        index: 0,
                        test: Test::Equal(call),
                    };
                    sayings.push(Saying {
                        nr,
                        conditions: vec![is_call].into(),
                        verdict: rule.verdict,
                    });
                }
            }
        }
    }
    // Stable: of one number in the order of the rules.
    sayings.sort_by_key(|saying| saying.nr);
    let above = match (is_denial(default), highest) {
        (true, Some(highest)) => Some((
            highest + 1,
            libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned(),
        )),
        _ => None,
    };
    AbiPlan {
        abi,
        ranges: ranges(&sayings, default, above),
    }
}

/// What all that is said about one number comes to.
fn outcome(sayings: &[Saying<'_>], default: u32) -> Outcome {
    match sayings.iter().find(|s| s.conditions.is_empty()) {
        Some(unconditional) => Outcome::Always(unconditional.verdict),
        None => {
            let tested = sayings.iter().map(|s| (s.conditions.to_vec(), s.verdict));
            Outcome::Tested(tested.collect(), default)
        }
    }
}

/// Whether a call that nobody thought of is stopped. A tracer is expected to know what it does.
fn is_denial(verdict: u32) -> bool {
    let action = verdict & 0xffff_0000;
    !matches!(
        action,
        libc::SECCOMP_RET_ALLOW | libc::SECCOMP_RET_LOG | libc::SECCOMP_RET_TRACE
    )
}

/// `above`: from this number on, what happens to calls without a rule, instead of the default. `sayings` are sorted.
fn ranges(sayings: &[Saying<'_>], default: u32, above: Option<(u32, u32)>) -> Vec<(u32, Outcome)> {
    let mut ranges: Vec<(u32, Outcome)> = Vec::new();
    let mut push = |start: u32, outcome: Outcome| {
        if ranges.last().is_none_or(|(_, last)| *last != outcome) {
            ranges.push((start, outcome));
        }
    };
    // What holds between the calls with a rule, from `next` up to `end`.
    let background = |push: &mut dyn FnMut(u32, Outcome), next: u32, end: Option<u32>| {
        let is_before = |nr: u32| end.is_none_or(|end| nr < end);
        match above {
            Some((from, verdict)) if next >= from => push(next, Outcome::Always(verdict)),
            Some((from, verdict)) => {
                push(next, Outcome::Always(default));
                if is_before(from) {
                    push(from, Outcome::Always(verdict));
                }
            }
            None => push(next, Outcome::Always(default)),
        }
    };
    let mut next = 0;
    for same in sayings.chunk_by(|a, b| a.nr == b.nr) {
        let nr = same[0].nr;
        if next < nr {
            background(&mut push, next, Some(nr));
        }
        push(nr, outcome(same, default));
        next = nr + 1;
    }
    background(&mut push, next, None);
    ranges
}
