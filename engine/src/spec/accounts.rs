//! Who a process runs as: `--user` and `USER` resolved against the image's own passwd and group files.
//!
//! Must not know: where those files come from; they arrive as text.

use crate::error::{Error, Result};

/// The two account files of a root file system; empty when it has none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Accounts {
    pub passwd: String,
    pub group: String,
}

/// A resolved user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Further groups, from the group file and `--group-add`, ascending, without doubles.
    pub groups: Vec<u32>,
    /// Home directory from the passwd file, `/` otherwise.
    pub home: String,
}

/// Largest id that may be asked for: 2³²−1 means "no id" to the kernel, larger ones wrap around to root (CVE-2024-40635).
const LARGEST_ID: u64 = 0x7fff_ffff;

impl Accounts {
    /// Resolves `user`, `uid`, `user:group`, `uid:gid` or nothing (root).
    pub(crate) fn resolve(&self, user: &str, group_add: &[String]) -> Result<Identity> {
        let (user, group) = match user.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
            None => (user, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let wanted_uid = number(user, "user")?;
        let entry = self
            .passwd
            .lines()
            .filter_map(Passwd::parse)
            .find(|e| e.name == user || wanted_uid == Some(e.uid));
        let (uid, mut gid, home, name) = match (&entry, wanted_uid) {
            (Some(e), _) => (e.uid, e.gid, e.home.to_string(), Some(e.name)),
            (None, Some(uid)) => (uid, 0, "/".to_string(), None),
            (None, None) => {
                return Err(Error::invalid(format!(
                    "unable to find user {user}: no matching entries in passwd file"
                )));
            }
        };
        let mut groups: Vec<u32> = Vec::new();
        match group {
            Some(group) => gid = self.group_id(group)?,
            None => {
                if let Some(name) = name {
                    let member = |g: &Group| g.members.split(',').any(|m| m == name);
                    groups.extend(
                        self.group
                            .lines()
                            .filter_map(Group::parse)
                            .filter(member)
                            .map(|g| g.gid),
                    );
                }
            }
        }
        for extra in group_add {
            groups.push(self.group_id(extra)?);
        }
        // Docker lists the own group among the further ones, so that nobody can drop out of it to evade a denial.
        groups.push(gid);
        groups.sort_unstable();
        groups.dedup();
        let home = if home.is_empty() { "/".into() } else { home };
        Ok(Identity {
            uid,
            gid,
            groups,
            home,
        })
    }

    fn group_id(&self, group: &str) -> Result<u32> {
        let wanted = number(group, "group")?;
        let entry = self
            .group
            .lines()
            .filter_map(Group::parse)
            .find(|g| g.name == group);
        match (entry, wanted) {
            (Some(g), _) => Ok(g.gid),
            (None, Some(gid)) => Ok(gid),
            (None, None) => Err(Error::invalid(format!(
                "unable to find group {group}: no matching entries in group file"
            ))),
        }
    }
}

/// A decimal id within range; `None` when it is a name.
fn number(text: &str, what: &str) -> Result<Option<u32>> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u64>() {
        Ok(id) if id <= LARGEST_ID => Ok(u32::try_from(id).ok()),
        _ => Err(Error::invalid(format!(
            "{what} id {text} is out of range: ids must be between 0 and {LARGEST_ID}"
        ))),
    }
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Passwd<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let name = fields
            .next()
            .filter(|n| !n.is_empty() && !n.starts_with('#'))?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or("");
        Some(Passwd {
            name,
            uid,
            gid,
            home,
        })
    }
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let name = fields
            .next()
            .filter(|n| !n.is_empty() && !n.starts_with('#'))?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Group {
            name,
            gid,
            members: fields.next().unwrap_or(""),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\n# note\nbroken\nwww:x:33:34:www:/srv/www:/bin/false\n1000:x:7:7::/odd:/bin/sh\n".into(),
            group: "root:x:0:root\nadm:x:4:root,www\ntape:x:26:www\nwww:x:34:\nstaff:x:50:\n".into(),
        }
    }

    #[test]
    fn users_are_resolved() {
        let a = accounts();
        let id = |user: &str| {
            a.resolve(user, &[])
                .map(|i| (i.uid, i.gid, i.groups, i.home))
        };
        assert_eq!(id("").unwrap(), (0, 0, vec![0, 4], "/root".into()));
        assert_eq!(
            id("www").unwrap(),
            (33, 34, vec![4, 26, 34], "/srv/www".into())
        );
        assert_eq!(
            id("33").unwrap(),
            (33, 34, vec![4, 26, 34], "/srv/www".into())
        );
        assert_eq!(
            id("www:staff").unwrap(),
            (33, 50, vec![50], "/srv/www".into())
        );
        assert_eq!(id("12345").unwrap(), (12345, 0, vec![0], "/".into()));
        assert_eq!(id("12345:77").unwrap(), (12345, 77, vec![77], "/".into()));
        assert_eq!(id(":50").unwrap(), (0, 50, vec![50], "/root".into()));
        assert_eq!(
            a.resolve("www", &["staff".into(), "26".into()])
                .unwrap()
                .groups,
            [4, 26, 34, 50]
        );
    }

    #[test]
    fn unknown_and_absurd_ids_are_refused() {
        let a = accounts();
        let e = |user: &str| a.resolve(user, &[]).unwrap_err().message;
        assert_eq!(
            e("nobody"),
            "unable to find user nobody: no matching entries in passwd file"
        );
        assert_eq!(
            e("www:nogroup"),
            "unable to find group nogroup: no matching entries in group file"
        );
        assert!(e("4294967296").contains("out of range"));
        assert!(e("0:2147483648").contains("out of range"));
        assert!(e("99999999999999999999999").contains("out of range"));
        assert!(e("-1").contains("unable to find user"));
    }
}
