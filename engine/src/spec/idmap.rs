//! User namespaces: which ids of the host a container's ids are (`--userns-remap`, `--userns private`).
//!
//! Must not know: how files are shifted.

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder};

use crate::error::{Error, Result};

/// The contiguous range of host ids that a container's ids 0… are mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct IdMap {
    pub first_uid: u32,
    pub first_gid: u32,
    pub count: u32,
}

impl IdMap {
    /// As the spec wants them: users, groups.
    pub(crate) fn to_oci(self) -> (Vec<LinuxIdMapping>, Vec<LinuxIdMapping>) {
        let one = |first| {
            vec![
                LinuxIdMappingBuilder::default()
                    .container_id(0u32)
                    .host_id(first)
                    .size(self.count)
                    .build()
                    .expect("all fields are set"),
            ]
        };
        (one(self.first_uid), one(self.first_gid))
    }
}

/// The user that `--userns-remap=default` and `--userns=private` mean when nobody else is named, and its range when
/// `/etc/subuid` does not know it.
const DEFAULT_USER: &str = "caisson";
const FALLBACK: IdMap = IdMap {
    first_uid: 0x4000_0000,
    first_gid: 0x4000_0000,
    count: 65_536,
};

/// Finds the range for `--userns-remap`'s value: `default`, `USER`, `USER:GROUP`, `UID`, `UID:GID`.
pub(crate) fn find(remap: &str, subuid: &str, subgid: &str) -> Result<IdMap> {
    let (user, group) = remap.split_once(':').unwrap_or((remap, remap));
    let default = remap == "default" || remap.is_empty();
    let (user, group) = if default {
        (DEFAULT_USER, DEFAULT_USER)
    } else {
        (user, group)
    };
    let uids = range(subuid, user);
    let gids = range(subgid, group);
    match (uids, gids) {
        (Some((first_uid, uid_count)), Some((first_gid, gid_count))) => {
            let count = uid_count.min(gid_count);
            if count < 65_536 {
                return Err(Error::invalid(format!(
                    "the subordinate ids of {user} are too few: {count}, containers need 65536 (edit /etc/subuid and /etc/subgid)"
                )));
            }
            Ok(IdMap {
                first_uid,
                first_gid,
                count,
            })
        }
        (None, None) if default => Ok(FALLBACK),
        (None, _) => Err(missing("/etc/subuid", user)),
        (_, None) => Err(missing("/etc/subgid", group)),
    }
}

fn missing(file: &str, who: &str) -> Error {
    Error::invalid(format!(
        "--userns-remap: {file} has no range for \"{who}\": add a line such as {who}:100000:65536"
    ))
}

fn range(file: &str, who: &str) -> Option<(u32, u32)> {
    file.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next()?;
        let (first, count): (u32, u32) =
            (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (name == who && first.checked_add(count).is_some() && first > 0).then_some((first, count))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found() {
        let map = find("ann", "bob:1:2\nann:100000:65536\n", "ann:200000:70000\n").unwrap();
        assert_eq!(
            map,
            IdMap {
                first_uid: 100_000,
                first_gid: 200_000,
                count: 65_536
            }
        );
        assert_eq!(
            find("ann:staff", "ann:1000:65536", "staff:2000:65536")
                .unwrap()
                .first_gid,
            2000
        );
        assert_eq!(find("default", "", "").unwrap(), FALLBACK);
    }

    #[test]
    fn missing_ranges_are_explained() {
        assert!(
            find("ann", "", "")
                .unwrap_err()
                .message
                .contains("/etc/subuid has no range for \"ann\"")
        );
        assert!(
            find("ann", "ann:1000:10", "ann:1000:10")
                .unwrap_err()
                .message
                .contains("too few")
        );
        assert!(
            find("ann", "ann:0:65536", "ann:0:65536").is_err(),
            "the host's root is never handed out"
        );
    }
}
