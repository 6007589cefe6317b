//! Users inside a container: names and numbers from its own /etc/passwd and /etc/group.
//!
//! Parsing is pure; reading goes through a descriptor of the root. Numbers are range-checked: nothing overflows into root
//! (CVE-2024-40635).
//! Must not know: processes, user namespaces.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, OFlags};

use crate::beneath::{RootDir, open_host_path};
use crate::error::{Context, Error, Result};

/// The largest id that is not a special value of setresuid(2) and friends: what Docker accepts.
pub const ID_MAX: u32 = i32::MAX as u32;

/// /etc/passwd and /etc/group are read up to this size.
const FILE_MAX_BYTES: u64 = 8 << 20;

/// Who a process runs as.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
    /// Home directory; `/` if /etc/passwd does not say.
    pub home: String,
}

/// Resolves Docker's `user[:group]` and `--group-add` against the files of a container mounted at `root`.
pub fn resolve_in(root: &Path, user: &str, add_groups: &[String]) -> Result<ResolvedUser> {
    let root = RootDir::new(open_host_path(root).step_at("open the container's root", root)?);
    let passwd = read_small(&root, "/etc/passwd");
    let group = read_small(&root, "/etc/group");
    resolve(&passwd, &group, user, add_groups)
}

/// The same on the files' text. Pure.
pub fn resolve(
    passwd: &str,
    group: &str,
    user: &str,
    add_groups: &[String],
) -> Result<ResolvedUser> {
    let (name, group_name) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|g| !g.is_empty())),
        None => (user, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    // A name wins over a number, as with Docker; numbers need no entry.
    let account = accounts(passwd).find(|a| a.name == name);
    let number = id(name)?;
    let account = account.or_else(|| accounts(passwd).find(|a| Some(a.uid) == number));
    let uid = match (&account, number) {
        (Some(account), _) => account.uid,
        (None, Some(uid)) => uid,
        (None, None) => {
            return Err(Error::invalid(format!(
                "unable to find user {name}: no matching entries in passwd file"
            )));
        }
    };
    let gid = match group_name {
        Some(wanted) => group_id(group, wanted)?,
        None => account.as_ref().map_or(0, |a| a.gid),
    };
    let mut additional_gids = Vec::new();
    if let (Some(account), None) = (&account, group_name) {
        additional_gids.extend(
            groups(group)
                .filter(|g| g.members.split(',').any(|m| m == account.name))
                .map(|g| g.gid),
        );
    }
    for wanted in add_groups {
        additional_gids.push(group_id(group, wanted)?);
    }
    additional_gids.sort_unstable();
    additional_gids.dedup();
    let home = account
        .map_or("/", |a| if a.home.is_empty() { "/" } else { a.home })
        .to_string();
    Ok(ResolvedUser {
        uid,
        gid,
        additional_gids,
        home,
    })
}

/// The home directory of a uid in the root this process lives in.
pub(crate) fn home_of(root: &RootDir, uid: u32) -> String {
    let passwd = read_small(root, "/etc/passwd");
    let home = accounts(&passwd)
        .find(|a| a.uid == uid)
        .map(|a| a.home)
        .filter(|h| !h.is_empty());
    home.unwrap_or("/").to_string()
}

struct Account<'t> {
    name: &'t str,
    uid: u32,
    gid: u32,
    home: &'t str,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|n| !n.is_empty())?;
        let _password = fields.next()?;
        let (uid, gid) = (id(fields.next()?).ok()??, id(fields.next()?).ok()??);
        let home = fields.nth(1).unwrap_or_default();
        Some(Account {
            name,
            uid,
            gid,
            home,
        })
    })
}

struct Group<'t> {
    name: &'t str,
    gid: u32,
    members: &'t str,
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|n| !n.is_empty())?;
        let gid = id(fields.nth(1)?).ok()??;
        Some(Group {
            name,
            gid,
            members: fields.next().unwrap_or_default(),
        })
    })
}

fn group_id(group: &str, wanted: &str) -> Result<u32> {
    if let Some(found) = groups(group).find(|g| g.name == wanted) {
        return Ok(found.gid);
    }
    id(wanted)?.ok_or_else(|| {
        Error::invalid(format!(
            "unable to find group {wanted}: no matching entries in group file"
        ))
    })
}

/// A number within range, `None` for a name, an error for a number out of range.
fn id(text: &str) -> Result<Option<u32>> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(id) if id <= ID_MAX => Ok(Some(id)),
        _ => Err(Error::invalid(format!(
            "uids and gids must be in range 0-{ID_MAX}, not {text}"
        ))),
    }
}

/// A small text file of the container; empty if it is missing or not a regular file (a FIFO would hold us).
fn read_small(root: &RootDir, path: &str) -> String {
    use std::io::Read;
    let Ok(fd) = root.open(
        Path::new(path),
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
    ) else {
        return String::new();
    };
    if !is_regular(&fd) {
        return String::new();
    }
    let mut bytes = Vec::new();
    match std::fs::File::from(fd)
        .take(FILE_MAX_BYTES)
        .read_to_end(&mut bytes)
    {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}

fn is_regular(fd: &OwnedFd) -> bool {
    rustix::fs::fstat(fd.as_fd())
        .is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::RegularFile)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:w:/var/www:\nbad line\n1000:x:5:5::/five:\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nstaff:x:50:web,other\nlog:x:51:other,web\n";

    fn user(text: &str) -> Result<ResolvedUser> {
        resolve(PASSWD, GROUP, text, &[])
    }

    #[test]
    fn names_bring_their_groups_and_home() {
        let web = user("web").expect("resolves");
        assert_eq!((web.uid, web.gid, web.home.as_str()), (33, 34, "/var/www"));
        assert_eq!(web.additional_gids, [50, 51]);
        // An explicit group replaces the supplementary ones, as with Docker.
        let explicit = user("web:staff").expect("resolves");
        assert_eq!((explicit.gid, explicit.additional_gids.len()), (50, 0));
    }

    #[test]
    fn numbers_need_no_entry_and_names_win_over_them() {
        let stranger = user("4242").expect("resolves");
        assert_eq!(
            (stranger.uid, stranger.gid, stranger.home.as_str()),
            (4242, 0, "/")
        );
        assert_eq!(user("1000").expect("resolves").uid, 5);
        assert_eq!(user("7:8").expect("resolves").gid, 8);
        assert_eq!(user("").expect("resolves").uid, 0);
        assert_eq!(user(":www").expect("resolves").gid, 34);
    }

    #[test]
    fn out_of_range_ids_fail_closed() {
        // CVE-2024-40635: 4294967296 must not wrap to 0.
        for bad in [
            "4294967296",
            "4294967295",
            "2147483648",
            "99999999999999999999",
            "0:4294967296",
            "nobody",
            "0:nogroup",
            "-1",
        ] {
            assert!(user(bad).is_err(), "{bad}");
        }
        assert!(resolve(PASSWD, GROUP, "0", &["4294967296".into()]).is_err());
        // An account with such a number does not exist.
        assert!(resolve("evil:x:4294967296:0::/:\n", "", "evil", &[]).is_err());
    }
}
