//! `--security-opt`: read, refused or warned about.
//!
//! Must not know: what a seccomp profile says.

use crate::error::{Error, Result};

/// Which system calls are let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seccomp {
    /// Docker's default profile.
    Default,
    /// All.
    Unconfined,
    /// A profile of the user's, as JSON.
    Profile(String),
}

/// What `--security-opt` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Security {
    pub no_new_privileges: bool,
    pub seccomp: Seccomp,
    /// The profile to switch to.
    pub apparmor: Option<String>,
    /// `systempaths=unconfined`: nothing masked, nothing read-only.
    pub system_paths_unconfined: bool,
    /// `writable-cgroups=true`.
    pub writable_cgroups: bool,
    pub warnings: Vec<String>,
}

impl Security {
    /// Reads all options.
    pub(crate) fn read(options: &[String], privileged: bool) -> Result<Security> {
        let mut security = Security {
            no_new_privileges: false,
            seccomp: if privileged {
                Seccomp::Unconfined
            } else {
                Seccomp::Default
            },
            apparmor: None,
            system_paths_unconfined: false,
            writable_cgroups: false,
            warnings: Vec::new(),
        };
        for option in options {
            if option == "no-new-privileges" {
                security.no_new_privileges = true;
                continue;
            }
            let (key, value) = option
                .split_once('=')
                .or_else(|| option.split_once(':'))
                .ok_or_else(|| Error::invalid(format!("invalid --security-opt 1: \"{option}\"")))?;
            let flag = || {
                value.parse::<bool>().map_err(|_| {
                    Error::invalid(format!(
                        "invalid --security-opt 2: \"{option}\": use true or false"
                    ))
                })
            };
            match key {
                "no-new-privileges" => security.no_new_privileges = flag()?,
                "writable-cgroups" => security.writable_cgroups = flag()?,
                "seccomp" => {
                    security.seccomp = match value {
                        "unconfined" => Seccomp::Unconfined,
                        "builtin" | "default" | "" => Seccomp::Default,
                        json => Seccomp::Profile(json.into()),
                    }
                }
                "systempaths" if value == "unconfined" => security.system_paths_unconfined = true,
                "apparmor" => match value {
                    "unconfined" => security.apparmor = None,
                    profile if apparmor_enabled() => security.apparmor = Some(profile.into()),
                    profile => security.warnings.push(format!(
                        "AppArmor is not enabled on this host: the profile \"{profile}\" has no effect."
                    )),
                },
                "label" => {
                    if value != "disable" {
                        security.warnings.push(format!(
                            "SELinux labels have no effect here: label={value} is ignored."
                        ));
                    }
                }
                _ => {
                    return Err(Error::invalid(format!(
                        "invalid --security-opt 2: \"{option}\""
                    )));
                }
            }
        }
        Ok(security)
    }
}

fn apparmor_enabled() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|s| s.trim() == "Y")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &[&str]) -> Result<Security> {
        Security::read(
            &options.iter().map(|s| s.to_string()).collect::<Vec<_>>(),
            false,
        )
    }

    #[test]
    fn options_are_read_in_all_spellings() {
        assert!(read(&["no-new-privileges"]).unwrap().no_new_privileges);
        assert!(read(&["no-new-privileges:true"]).unwrap().no_new_privileges);
        assert!(
            !read(&["no-new-privileges=false"])
                .unwrap()
                .no_new_privileges
        );
        assert_eq!(
            read(&["seccomp=unconfined"]).unwrap().seccomp,
            Seccomp::Unconfined
        );
        assert_eq!(
            read(&["seccomp:{}"]).unwrap().seccomp,
            Seccomp::Profile("{}".into())
        );
        assert_eq!(read(&[]).unwrap().seccomp, Seccomp::Default);
        assert!(
            read(&["systempaths=unconfined"])
                .unwrap()
                .system_paths_unconfined
        );
        assert_eq!(
            Security::read(&[], true).unwrap().seccomp,
            Seccomp::Unconfined
        );
    }

    #[test]
    fn nonsense_is_refused_not_ignored() {
        for bad in [
            "nothing",
            "no-new-privileges=perhaps",
            "secomp=unconfined",
            "systempaths=confined",
        ] {
            assert!(read(&[bad]).is_err(), "{bad}");
        }
    }
}
