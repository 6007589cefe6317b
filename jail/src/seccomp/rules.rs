//! A profile, resolved for one processor: for each architecture, ranges of system call numbers with what happens there.

use std::collections::{BTreeMap, BTreeSet};

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

/// What is known of one system call while the rules are read.
#[derive(Default)]
struct Call {
    always: Option<u32>,
    tested: Vec<(Vec<Condition>, u32)>,
}

fn for_abi(abi: Abi, rules: &[Rule<'_>], default: u32) -> AbiPlan {
    let numbers = abi.numbers();
    let mut calls: BTreeMap<u32, Call> = BTreeMap::new();
    let mut highest = None;
    for rule in rules {
        for name in rule.names {
            let multiplexed = abi.multiplexed(name);
            // `send` and `recv` have no number of their own on i386.
            let Some(&nr) = numbers.get(name.as_str()).or_else(|| {
                let (multiplexer, _) = multiplexed?;
                numbers.get(multiplexer)
            }) else {
                continue;
            };
            if nr < ARM_PRIVATE || abi == Abi::X32 {
                highest = highest.max(Some(nr));
            }
            let direct = numbers.contains_key(name.as_str());
            for conditions in &rule.alternatives {
                if direct {
                    calls
                        .entry(nr)
                        .or_default()
                        .add(conditions.clone(), rule.verdict);
                }
                // The multiplexer's further arguments are behind a pointer: conditions on them cannot be looked at.
                if conditions.is_empty()
                    && let Some((multiplexer, call)) = multiplexed
                    && let Some(&nr) = numbers.get(multiplexer)
                {
                    let is_call = Condition {
                        index: 0,
                        test: Test::Equal(call),
                    };
                    calls
                        .entry(nr)
                        .or_default()
                        .add(vec![is_call], rule.verdict);
                }
            }
        }
    }
    let above = match (is_denial(default), highest) {
        (true, Some(highest)) => Some((
            highest + 1,
            libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned(),
        )),
        _ => None,
    };
    AbiPlan {
        abi,
        ranges: ranges(calls, default, above),
    }
}

impl Call {
    fn add(&mut self, conditions: Vec<Condition>, verdict: u32) {
        if conditions.is_empty() {
            self.always.get_or_insert(verdict);
        } else {
            self.tested.push((conditions, verdict));
        }
    }

    fn outcome(self, default: u32) -> Outcome {
        match self.always {
            Some(verdict) => Outcome::Always(verdict),
            None if self.tested.is_empty() => Outcome::Always(default),
            None => Outcome::Tested(self.tested, default),
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

/// `above`: from this number on, what happens to calls without a rule, instead of the default.
fn ranges(
    calls: BTreeMap<u32, Call>,
    default: u32,
    above: Option<(u32, u32)>,
) -> Vec<(u32, Outcome)> {
    let background = |nr: u32| {
        Outcome::Always(match above {
            Some((from, verdict)) if nr >= from => verdict,
            _ => default,
        })
    };
    let mut starts = BTreeMap::from([(0, background(0))]);
    starts.extend(above.map(|(from, _)| (from, background(from))));
    starts.extend(calls.keys().map(|nr| (nr + 1, background(nr + 1))));
    starts.extend(
        calls
            .into_iter()
            .map(|(nr, call)| (nr, call.outcome(default))),
    );
    let mut ranges: Vec<_> = starts.into_iter().collect();
    ranges.dedup_by(|later, earlier| later.1 == earlier.1);
    ranges
}
