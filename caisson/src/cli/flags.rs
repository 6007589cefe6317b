//! flag tables and the parser over them: the command-line grammar Docker's users have in their fingers.
//!
//! That grammar is not clap's: `--rm=false`, `-itd`, `-m512m`, `-e=X`, options that end at the first operand for `run` and `exec`
//! but not for `ps`, and error texts scripts match on. So flags are plain data here, parsed by one pure function; help, shell
//! completion and man pages are made from the same tables (`usage`, `completion`). Knows nothing of what any flag means.

use std::collections::HashMap;

use super::units;

/// What a flag's value looks like; decides whether it takes one and how it is checked.
#[derive(Clone, Copy)]
pub enum Kind {
    /// Present or absent; `--flag=false` is allowed.
    Bool,
    /// Any text, the last one wins.
    Text,
    /// A signed integer.
    Int,
    /// An unsigned integer of 16 bits.
    Uint16,
    /// A decimal number of CPUs.
    Decimal,
    /// A size such as `512m`; `-1` where the flag allows it.
    Bytes,
    /// A Go duration such as `1m30s`.
    Duration,
    /// May be repeated. The name is the one shown in help; the check returns the value to keep.
    List(&'static str, fn(&str) -> Result<String, String>),
}

impl Kind {
    /// The word after the flag in help; empty for booleans.
    pub fn type_name(self) -> &'static str {
        match self {
            Kind::Bool => "",
            Kind::Text => "string",
            Kind::Int => "int",
            Kind::Uint16 => "uint16",
            Kind::Decimal => "decimal",
            Kind::Bytes => "bytes",
            Kind::Duration => "duration",
            Kind::List(name, _) => name,
        }
    }

    /// Whether the flag stands alone.
    pub fn is_bool(self) -> bool {
        matches!(self, Kind::Bool)
    }

    fn check(self, value: &str) -> Result<String, String> {
        let kept = || value.to_owned();
        match self {
            Kind::Bool => match value {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok("true".to_owned()),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok("false".to_owned()),
                _ => Err(format!(
                    "strconv.ParseBool: parsing {value:?}: invalid syntax"
                )),
            },
            Kind::Text => Ok(kept()),
            Kind::Int => parse_int(value).map(|n| n.to_string()),
            Kind::Uint16 => match value.parse::<u64>() {
                Ok(n) if n <= u64::from(u16::MAX) => Ok(kept()),
                Ok(_) => Err(format!(
                    "strconv.ParseUint: parsing {value:?}: value out of range"
                )),
                Err(_) => Err(format!(
                    "strconv.ParseUint: parsing {value:?}: invalid syntax"
                )),
            },
            Kind::Decimal => units::nano_cpus(value).map(|_| kept()),
            Kind::Bytes => {
                if value == "-1" {
                    return Ok(kept());
                }
                units::ram_in_bytes(value).map(|_| kept())
            }
            Kind::Duration => units::go_duration(value).map(|_| kept()),
            Kind::List(_, check) => check(value),
        }
    }
}

fn parse_int(value: &str) -> Result<i64, String> {
    let text = value.strip_prefix('+').unwrap_or(value);
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => i64::from_str_radix(hex, 16),
        None => text.parse::<i64>(),
    };
    parsed.map_err(|e| match e.kind() {
        std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => {
            format!("strconv.ParseInt: parsing {value:?}: value out of range")
        }
        _ => format!("strconv.ParseInt: parsing {value:?}: invalid syntax"),
    })
}

/// Accepts any value of a repeatable flag.
pub fn any(value: &str) -> Result<String, String> {
    Ok(value.to_owned())
}

/// One flag of one command.
pub struct Flag {
    /// One letter, or empty.
    pub short: &'static str,
    /// The name after `--`.
    pub long: &'static str,
    /// What its value is.
    pub kind: Kind,
    /// The help text, Docker's words, with its default in brackets; empty hides the flag.
    pub help: &'static str,
}

/// A row of a flag table.
pub const fn flag(short: &'static str, long: &'static str, kind: Kind, help: &'static str) -> Flag {
    Flag {
        short,
        long,
        kind,
        help,
    }
}

/// `--format` of commands that print tables.
pub const FORMAT_TABLE: &str = "Format output using a custom template:\n'table':            Print output in table format with column headers (default)\n'table TEMPLATE':   Print output in table format using the given Go template\n'json':             Print in JSON format\n'TEMPLATE':         Print output using the given Go template.\nThe template functions are Docker's: json, join, split, lower, upper, title, truncate, table, println, len, index";
/// `--format` of commands that print objects.
pub const FORMAT_OBJECT: &str = "Format output using a custom template:\n'json':             Print in JSON format\n'TEMPLATE':         Print output using the given Go template.\nThe template functions are Docker's: json, join, split, lower, upper, title, truncate, println, len, index";

/// `--filter` wants `name=value`; names are folded to lower case as Docker does.
pub fn filter(value: &str) -> Result<String, String> {
    match value.split_once('=') {
        Some((name, rest)) => Ok(format!("{}={}", name.trim().to_lowercase(), rest.trim())),
        None => Err("bad format of filter (expected name=value)".to_owned()),
    }
}

/// What was typed, checked against a table.
#[derive(Debug, Default, PartialEq)]
pub struct Parsed {
    values: HashMap<&'static str, Vec<String>>,
    /// The operands, in order.
    pub operands: Vec<String>,
    /// Whether help was asked for.
    pub help: bool,
}

impl Parsed {
    /// Words taken as they are, for a command that is another program's.
    pub fn of_operands(words: &[String]) -> Self {
        Parsed {
            operands: words.to_vec(),
            ..Parsed::default()
        }
    }
    /// Whether the flag was given at all.
    pub fn given(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }
    /// A boolean flag, false unless given.
    pub fn flag(&self, name: &str) -> bool {
        self.flag_or(name, false)
    }
    /// A boolean flag with another default.
    pub fn flag_or(&self, name: &str, default: bool) -> bool {
        self.last(name).map_or(default, |v| v == "true")
    }
    /// The last value of a text flag, or the empty string.
    pub fn text(&self, name: &str) -> &str {
        self.last(name).unwrap_or("")
    }
    /// The last value, if the flag was given.
    pub fn last(&self, name: &str) -> Option<&str> {
        self.values
            .get(name)
            .and_then(|v| v.last())
            .map(String::as_str)
    }
    /// All values of a repeatable flag.
    pub fn list(&self, name: &str) -> &[String] {
        self.values.get(name).map_or(&[], Vec::as_slice)
    }
    /// An integer flag, if given.
    pub fn int(&self, name: &str) -> Option<i64> {
        self.last(name).and_then(|v| v.parse().ok())
    }
    /// A size flag in bytes, 0 unless given.
    pub fn bytes(&self, name: &str) -> i64 {
        match self.last(name) {
            Some("-1") => -1,
            Some(value) => units::ram_in_bytes(value).unwrap_or(0),
            None => 0,
        }
    }
    /// A duration flag in nanoseconds, 0 unless given.
    pub fn duration_ns(&self, name: &str) -> i64 {
        self.last(name)
            .and_then(|v| units::go_duration(v).ok())
            .unwrap_or(0)
    }
}

/// Parses `arguments` by the tables. With `interspersed` options may follow operands; without, the first operand ends them.
pub fn parse(
    tables: &[&'static [Flag]],
    interspersed: bool,
    arguments: &[String],
) -> Result<Parsed, String> {
    let find_long = |name: &str| {
        tables
            .iter()
            .flat_map(|t| t.iter())
            .find(|f| f.long == name)
    };
    let find_short = |c: char| {
        tables
            .iter()
            .flat_map(|t| t.iter())
            .find(|f| f.short.starts_with(c))
    };
    let mut parsed = Parsed::default();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if argument == "--" {
            parsed.operands.extend(rest.cloned());
            break;
        }
        if let Some(long) = argument.strip_prefix("--") {
            let (name, inline) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (long, None),
            };
            if name.is_empty() || name.starts_with('-') {
                return Err(format!("bad flag syntax: {argument}"));
            }
            let Some(flag) = find_long(name) else {
                if name == "help" {
                    parsed.help = true;
                    continue;
                }
                return Err(format!("unknown flag: --{name}"));
            };
            let value = match inline {
                Some(value) => value,
                None if flag.kind.is_bool() => "true",
                None => rest
                    .next()
                    .ok_or_else(|| format!("flag needs an argument: --{name}"))?,
            };
            keep(&mut parsed, flag, value)?;
        } else if argument.len() > 1 && argument.starts_with('-') {
            let cluster = &argument[1..];
            for (at, c) in cluster.char_indices() {
                let Some(flag) = find_short(c) else {
                    if c == 'h' {
                        parsed.help = true;
                        continue;
                    }
                    return Err(format!("unknown shorthand flag: '{c}' in -{cluster}"));
                };
                let after = &cluster[at + c.len_utf8()..];
                if let Some(value) = after.strip_prefix('=') {
                    keep(&mut parsed, flag, value)?;
                    break;
                }
                if flag.kind.is_bool() {
                    keep(&mut parsed, flag, "true")?;
                    continue;
                }
                if after.is_empty() {
                    let value = rest
                        .next()
                        .ok_or_else(|| format!("flag needs an argument: '{c}' in -{cluster}"))?;
                    keep(&mut parsed, flag, value)?;
                } else {
                    keep(&mut parsed, flag, after)?;
                }
                break;
            }
        } else {
            parsed.operands.push(argument.clone());
            if !interspersed {
                parsed.operands.extend(rest.cloned());
                break;
            }
        }
    }
    Ok(parsed)
}

fn keep(parsed: &mut Parsed, flag: &'static Flag, value: &str) -> Result<(), String> {
    let kept = flag.kind.check(value).map_err(|reason| {
        let name = if flag.short.is_empty() {
            format!("--{}", flag.long)
        } else {
            format!("-{}, --{}", flag.short, flag.long)
        };
        format!("invalid argument {value:?} for \"{name}\" flag: {reason}")
    })?;
    parsed.values.entry(flag.long).or_default().push(kept);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Flag] = &[
        flag("i", "interactive", Kind::Bool, "x"),
        flag("t", "tty", Kind::Bool, "x"),
        flag("m", "memory", Kind::Bytes, "x"),
        flag("e", "env", Kind::List("list", any), "x"),
        flag("", "rm", Kind::Bool, "x"),
        flag("h", "hostname", Kind::Text, "x"),
        flag("n", "last", Kind::Int, "x"),
    ];

    fn parsed(interspersed: bool, words: &[&str]) -> Result<Parsed, String> {
        let owned: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        parse(&[TABLE], interspersed, &owned)
    }

    #[test]
    fn clusters_inline_values_and_negation() {
        let p = parsed(
            false,
            &[
                "-it",
                "-m512m",
                "-e=A=B",
                "-e",
                "C",
                "--rm=false",
                "img",
                "-x",
                "--rm",
            ],
        )
        .expect("parses");
        assert!(p.flag("interactive") && p.flag("tty") && !p.flag("rm") && p.given("rm"));
        assert_eq!(p.bytes("memory"), 512 << 20);
        assert_eq!(p.list("env"), ["A=B", "C"]);
        assert_eq!(p.operands, ["img", "-x", "--rm"]);
    }

    #[test]
    fn options_may_follow_operands_only_when_interspersed() {
        let p = parsed(true, &["a", "--rm", "b", "--", "--rm"]).expect("parses");
        assert!(p.flag("rm"));
        assert_eq!(p.operands, ["a", "b", "--rm"]);
        assert!(!parsed(false, &["a", "--rm"]).expect("parses").flag("rm"));
    }

    #[test]
    fn a_short_flag_that_takes_text_wins_over_help() {
        assert_eq!(
            parsed(false, &["-h", "box"])
                .expect("parses")
                .text("hostname"),
            "box"
        );
        assert!(parsed(false, &["--help"]).expect("parses").help);
    }

    #[test]
    fn errors_are_worded_as_docker_words_them() {
        for (words, message) in [
            (&["--foo"][..], "unknown flag: --foo"),
            (&["-ix"], "unknown shorthand flag: 'x' in -ix"),
            (&["-e"], "flag needs an argument: 'e' in -e"),
            (&["--env"], "flag needs an argument: --env"),
            (
                &["-m", "abc"],
                "invalid argument \"abc\" for \"-m, --memory\" flag: invalid size: 'abc'",
            ),
            (
                &["--rm=x"],
                "invalid argument \"x\" for \"--rm\" flag: strconv.ParseBool: parsing \"x\": invalid syntax",
            ),
            (
                &["-n", "x"],
                "invalid argument \"x\" for \"-n, --last\" flag: strconv.ParseInt: parsing \"x\": invalid syntax",
            ),
        ] {
            assert_eq!(parsed(false, words).expect_err("refused"), message);
        }
    }
}
