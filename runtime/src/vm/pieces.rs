//! What a virtual machine is made of, and where it is found.
//!
//! ```text
//!   caisson-vmm, caisson-share     CAISSON_VMM, CAISSON_SHARE; beside caisson; ../libexec/caisson
//!   vmlinux, agent.erofs           CAISSON_GUEST_DIR; guest/ beside caisson; ../lib/caisson/guest
//! ```

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::{Error, ErrorKind, Result};

/// The files that a virtual machine is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pieces {
    /// The program `caisson-vmm`.
    pub vmm: PathBuf,
    /// The program `caisson-share`. Only looked for when a directory is shared: it may be missing.
    pub share_server: PathBuf,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The agent's file system image.
    pub agent: PathBuf,
}

/// What says where the pieces are.
struct Places<'a> {
    /// An environment variable's value.
    variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// The running program.
    current_exe: Option<PathBuf>,
    /// Whether there is such a file.
    is_file: &'a dyn Fn(&Path) -> bool,
}

impl Pieces {
    /// Finds them all, or names those that are missing and how they are made.
    pub fn find() -> Result<Self> {
        find(&Places::here())
    }

    /// The program `caisson-vmm` alone: it can be asked about this host before the rest is there.
    pub fn vmm() -> Option<PathBuf> {
        let mut candidates = Places::here()
            .program("caisson-vmm", "CAISSON_VMM")
            .into_iter();
        candidates.find(|path| path.is_file())
    }
}

fn find(places: &Places<'_>) -> Result<Pieces> {
    let mut missing = Vec::new();
    let mut first = |what: &str, made_by: &str, candidates: Vec<PathBuf>| {
        let found = candidates.iter().find(|path| (places.is_file)(path));
        found.cloned().unwrap_or_else(|| {
            let looked: Vec<String> = candidates.iter().map(|p| p.display().to_string()).collect();
            missing.push(format!(
                "{what}, looked for at {} ({made_by} makes it)",
                looked.join(", ")
            ));
            PathBuf::new()
        })
    };
    let program = |name: &str, variable: &str| places.program(name, variable);
    let share = program("caisson-share", "CAISSON_SHARE");
    let pieces = Pieces {
        vmm: first(
            "the program caisson-vmm",
            "cargo xtask build",
            program("caisson-vmm", "CAISSON_VMM"),
        ),
        share_server: share
            .iter()
            .find(|path| (places.is_file)(path))
            .or(share.first())
            .cloned()
            .unwrap_or_default(),
        kernel: first(
            "the guest's kernel",
            "cargo xtask kernel",
            places.guest_file("vmlinux"),
        ),
        agent: first(
            "the guest's agent",
            "cargo xtask build",
            places.guest_file("agent.erofs"),
        ),
    };
    if missing.is_empty() {
        return Ok(pieces);
    }
    Err(Error::new(
        ErrorKind::HostUnfit,
        format!(
            "no virtual machine can be made, for want of {}",
            missing.join("; ")
        ),
    ))
}

impl Places<'_> {
    /// What this process says.
    fn here() -> Self {
        Places {
            variable: &|name| std::env::var_os(name),
            current_exe: std::env::current_exe().ok(),
            is_file: &Path::is_file,
        }
    }

    /// The directories of the running program, best first. cargo puts test programs one below the others.
    fn beside(&self) -> Vec<PathBuf> {
        let Some(dir) = self.current_exe.as_deref().and_then(Path::parent) else {
            return Vec::new();
        };
        let mut dirs = vec![dir.to_path_buf()];
        if dir.file_name().is_some_and(|name| name == "deps") {
            dirs.extend(dir.parent().map(Path::to_path_buf));
        }
        dirs
    }

    fn prefix(&self) -> Option<&Path> {
        self.current_exe.as_deref()?.parent()?.parent()
    }

    /// Where a program may be. A place that the user names is the only one.
    fn program(&self, name: &str, variable: &str) -> Vec<PathBuf> {
        if let Some(named) = (self.variable)(variable) {
            return vec![named.into()];
        }
        let mut places: Vec<PathBuf> = self.beside().iter().map(|dir| dir.join(name)).collect();
        places.extend(self.prefix().map(|p| p.join("libexec/caisson").join(name)));
        places
    }

    /// Where a file for the guest may be.
    fn guest_file(&self, name: &str) -> Vec<PathBuf> {
        if let Some(dir) = (self.variable)("CAISSON_GUEST_DIR") {
            return vec![Path::new(&dir).join(name)];
        }
        let mut places: Vec<PathBuf> = self
            .beside()
            .iter()
            .map(|dir| dir.join("guest").join(name))
            .collect();
        places.extend(
            self.prefix()
                .map(|p| p.join("lib/caisson/guest").join(name)),
        );
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(there: &[&str], variables: &[(&str, &str)]) -> Result<Pieces> {
        find(&Places {
            variable: &|name| {
                let found = variables.iter().find(|(n, _)| *n == name);
                found.map(|(_, value)| value.into())
            },
            current_exe: Some("/usr/bin/caisson".into()),
            is_file: &|path| there.iter().any(|t| Path::new(t) == path),
        })
    }

    #[test]
    fn installed_below_a_prefix_or_side_by_side() {
        let installed = look(
            &[
                "/usr/libexec/caisson/caisson-vmm",
                "/usr/lib/caisson/guest/vmlinux",
                "/usr/lib/caisson/guest/agent.erofs",
            ],
            &[],
        );
        let installed = installed.expect("found");
        assert_eq!(installed.vmm, Path::new("/usr/libexec/caisson/caisson-vmm"));
        assert_eq!(
            installed.kernel,
            Path::new("/usr/lib/caisson/guest/vmlinux")
        );
        let beside = look(
            &[
                "/usr/bin/caisson-vmm",
                "/usr/bin/guest/vmlinux",
                "/usr/bin/guest/agent.erofs",
            ],
            &[],
        );
        assert_eq!(
            beside.expect("found").agent,
            Path::new("/usr/bin/guest/agent.erofs")
        );
    }

    #[test]
    fn what_is_missing_is_named_with_what_makes_it() {
        let error = look(&["/x/vmlinux"], &[("CAISSON_GUEST_DIR", "/x")]).expect_err("incomplete");
        assert_eq!(error.kind, ErrorKind::HostUnfit);
        for part in ["caisson-vmm", "cargo xtask build", "/x/agent.erofs"] {
            assert!(error.message.contains(part), "{}", error.message);
        }
        assert!(!error.message.contains("vmlinux"), "{}", error.message);
    }
}
