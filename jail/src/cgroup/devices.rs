//! Device rules: from the spec's list to what v1 and v2 can express.
//!
//! Meaning of a list, here and in runc: everything is denied at first, later rules win over earlier ones, each for the
//! accesses it names; at the end the devices that every container needs are allowed.

use std::fmt;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::error::Error;

/// Accesses, as bits of `BPF_DEVCG_ACC_*` (include/uapi/linux/bpf.h).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access(pub u8);

impl Access {
    /// mknod(2).
    pub const MKNOD: Access = Access(1);
    /// Opening for reading.
    pub const READ: Access = Access(2);
    /// Opening for writing.
    pub const WRITE: Access = Access(4);
    /// All of them.
    pub const ALL: Access = Access(7);

    fn parse(text: &str) -> Result<Access, Error> {
        let mut bits = 0;
        for c in text.chars() {
            bits |= match c {
                'm' => Access::MKNOD.0,
                'r' => Access::READ.0,
                'w' => Access::WRITE.0,
                _ => {
                    return Err(Error::BadLimit {
                        limit: "device rule".into(),
                        why: format!("access {text:?} is not made of r, w and m"),
                    });
                }
            };
        }
        // Left out: all.
        Ok(if bits == 0 { Access::ALL } else { Access(bits) })
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (bit, c) in [
            (Access::READ, "r"),
            (Access::WRITE, "w"),
            (Access::MKNOD, "m"),
        ] {
            if self.0 & bit.0 != 0 {
                f.write_str(c)?;
            }
        }
        Ok(())
    }
}

/// Kind of device node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Block device.
    Block,
    /// Character device.
    Char,
}

/// Devices: `None` matches any.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pattern {
    /// Kind.
    pub kind: Option<Kind>,
    /// Major number.
    pub major: Option<u32>,
    /// Minor number.
    pub minor: Option<u32>,
}

impl Pattern {
    const EVERYTHING: Pattern = Pattern {
        kind: None,
        major: None,
        minor: None,
    };

    /// Whether every device of `other` is one of `self`.
    fn covers(&self, other: &Pattern) -> bool {
        fn part<T: PartialEq>(wide: Option<T>, narrow: Option<T>) -> bool {
            wide.is_none() || wide == narrow
        }
        part(self.kind, other.kind)
            && part(self.major, other.major)
            && part(self.minor, other.minor)
    }

    fn overlaps(&self, other: &Pattern) -> bool {
        fn part<T: PartialEq>(a: Option<T>, b: Option<T>) -> bool {
            a.is_none() || b.is_none() || a == b
        }
        part(self.kind, other.kind)
            && part(self.major, other.major)
            && part(self.minor, other.minor)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        let kind = match self.kind {
            None => 'a',
            Some(Kind::Block) => 'b',
            Some(Kind::Char) => 'c',
        };
        write!(f, "{kind} {}:{}", number(self.major), number(self.minor))
    }
}

/// One rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rule {
    /// Allow or deny.
    pub allow: bool,
    /// Which devices.
    pub devices: Pattern,
    /// Which accesses.
    pub access: Access,
}

/// What every container may do: make any node (using it is another matter), the devices of its /dev, terminals.
/// The list of runc (libcontainer/specconv, `AllowedDevices`).
fn always_allowed() -> Vec<Rule> {
    let char = |major, minor, access| Rule {
        allow: true,
        devices: Pattern {
            kind: Some(Kind::Char),
            major,
            minor,
        },
        access,
    };
    let mut rules = vec![
        char(None, None, Access::MKNOD),
        Rule {
            allow: true,
            devices: Pattern {
                kind: Some(Kind::Block),
                ..Pattern::EVERYTHING
            },
            access: Access::MKNOD,
        },
    ];
    let nodes = [
        (1, Some(3)), // null
        (1, Some(5)), // zero
        (1, Some(7)), // full
        (1, Some(8)), // random
        (1, Some(9)), // urandom
        (5, Some(0)), // tty
        (5, Some(1)), // console
        (5, Some(2)), // ptmx
        (136, None),  // pts/*
    ];
    rules.extend(nodes.map(|(major, minor)| char(Some(major), minor, Access::ALL)));
    rules
}

/// The complete list for a container: the spec's rules, then what is always allowed.
pub fn rules(spec: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>, Error> {
    let mut rules = Vec::new();
    for rule in spec {
        let number = |n: Option<i64>| match n {
            None | Some(..=-1) => Ok(None),
            Some(n) => match i32::try_from(n) {
                Ok(n) => Ok(Some(n.unsigned_abs())),
                Err(_) => Err(Error::BadLimit {
                    limit: "device rule".into(),
                    why: format!("{n} is not a device number"),
                }),
            },
        };
        let kind = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => None,
            LinuxDeviceType::B => Some(Kind::Block),
            LinuxDeviceType::C | LinuxDeviceType::U => Some(Kind::Char),
            LinuxDeviceType::P => {
                return Err(Error::BadLimit {
                    limit: "device rule".into(),
                    why: "a fifo (type p) is not a device; use a, b or c".into(),
                });
            }
        };
        rules.push(Rule {
            allow: rule.allow(),
            devices: Pattern {
                kind,
                major: number(rule.major())?,
                minor: number(rule.minor())?,
            },
            access: Access::parse(rule.access().as_deref().unwrap_or(""))?,
        });
    }
    rules.extend(always_allowed());
    Ok(rules)
}

/// v1 writes: file name and value. The kernel keeps a default and exceptions from it, and can only take an exception away as
/// it was given (Documentation/admin-guide/cgroup-v1/devices.rst); what it cannot express is refused here, never weakened.
pub fn plan_v1(rules: &[Rule]) -> Result<Vec<(&'static str, String)>, Error> {
    let mut default_allow = false;
    let mut exceptions: Vec<(Pattern, Access)> = Vec::new();
    for rule in rules {
        if rule.devices == Pattern::EVERYTHING && rule.access == Access::ALL {
            default_allow = rule.allow;
            exceptions.clear();
            continue;
        }
        // The kernel's `a` means everything, always: spelled out as block and character devices.
        let kinds = match rule.devices.kind {
            Some(kind) => vec![kind],
            None => vec![Kind::Block, Kind::Char],
        };
        for kind in kinds {
            let devices = Pattern {
                kind: Some(kind),
                ..rule.devices
            };
            if rule.allow != default_allow {
                match exceptions.iter_mut().find(|(d, _)| *d == devices) {
                    Some((_, access)) => access.0 |= rule.access.0,
                    None => exceptions.push((devices, rule.access)),
                }
                continue;
            }
            // Back to the default for these devices.
            for (pattern, access) in &mut exceptions {
                let shared = access.0 & rule.access.0;
                if shared == 0 || !pattern.overlaps(&devices) {
                    continue;
                }
                if devices.covers(pattern) {
                    access.0 &= !shared;
                } else if !rule.allow {
                    return Err(Error::Unsupported {
                        limit: format!("device rule deny {devices} {}", rule.access),
                        why: format!(
                            "cgroup v1 cannot take it out of the wider \"allow {pattern} {access}\"; allow narrower, or use cgroup v2"
                        ),
                    });
                }
                // Allowing a part of what is denied as a whole cannot be expressed either, and stays denied.
            }
            exceptions.retain(|(_, access)| access.0 != 0);
        }
    }
    let (first, then) = if default_allow {
        ("devices.allow", "devices.deny")
    } else {
        ("devices.deny", "devices.allow")
    };
    let mut writes = vec![(first, "a".to_owned())];
    writes.extend(
        exceptions
            .iter()
            .map(|(d, access)| (then, format!("{d} {access}"))),
    );
    Ok(writes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn rule(text: &str) -> Rule {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (major, minor) = words[2].split_once(':').expect("major:minor");
        Rule {
            allow: words[0] == "allow",
            devices: Pattern {
                kind: match words[1] {
                    "b" => Some(Kind::Block),
                    "c" => Some(Kind::Char),
                    _ => None,
                },
                major: major.parse().ok(),
                minor: minor.parse().ok(),
            },
            access: Access::parse(words[3]).expect("access"),
        }
    }

    fn v1(texts: &[&str]) -> Result<Vec<String>, Error> {
        let rules: Vec<Rule> = texts.iter().map(|t| rule(t)).collect();
        Ok(plan_v1(&rules)?
            .into_iter()
            .map(|(f, v)| format!("{f} {v}"))
            .collect())
    }

    #[test]
    fn docker_default_on_v1() {
        let wanted = [
            "devices.deny a",
            "devices.allow c 1:3 rwm",
            "devices.allow c *:* m",
        ];
        assert_eq!(
            v1(&["deny a *:* rwm", "allow c 1:3 rwm", "allow c *:* m"]).expect("plan"),
            wanted
        );
        // Nothing is allowed before something says so.
        assert_eq!(
            v1(&["allow c 1:3 rwm", "allow c *:* m"]).expect("plan"),
            wanted
        );
    }

    #[test]
    fn privileged_on_v1() {
        assert_eq!(
            v1(&["deny a *:* rwm", "allow a *:* rwm", "allow c 1:3 rwm"]).expect("plan"),
            ["devices.allow a"]
        );
        assert_eq!(
            v1(&["allow a *:* rwm", "deny b 8:0 w"]).expect("plan"),
            ["devices.allow a", "devices.deny b 8:0 w"]
        );
    }

    #[test]
    fn any_kind_with_numbers_is_not_everything() {
        // Written as "a 8:0 r" the kernel would allow all devices.
        assert_eq!(
            v1(&["allow a 8:0 r"]).expect("plan"),
            [
                "devices.deny a",
                "devices.allow b 8:0 r",
                "devices.allow c 8:0 r"
            ]
        );
    }

    #[test]
    fn a_denial_inside_a_wider_permission_is_refused_on_v1() {
        let error = v1(&["allow c 1:* rwm", "deny c 1:3 w"]).expect_err("kernel would ignore it");
        assert!(error.to_string().contains("c 1:3 w"), "{error}");
        assert_eq!(
            v1(&["allow c 1:3 rwm", "deny c 1:* w"]).expect("wider"),
            ["devices.deny a", "devices.allow c 1:3 rm"]
        );
        assert_eq!(
            v1(&["allow c 1:3 rw", "deny c 1:3 rwm"]).expect("whole"),
            ["devices.deny a"]
        );
    }

    #[test]
    fn the_spec_is_read() {
        let parse = |json: &str| {
            let list: Vec<LinuxDeviceCgroup> = serde_json::from_str(json).expect("parses");
            rules(&list)
        };
        let list = parse(r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":-1,"access":"r"}]"#)
            .expect("good rules");
        assert_eq!(list[..2], [rule("deny a *:* rwm"), rule("allow c 1:* r")]);
        assert_eq!(list[2..], always_allowed());
        for bad in [
            r#"[{"allow":true,"type":"p","access":"r"}]"#,
            r#"[{"allow":true,"type":"c","access":"x"}]"#,
            r#"[{"allow":true,"type":"c","major":4294967296}]"#,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
