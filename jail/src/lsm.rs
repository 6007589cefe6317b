//! AppArmor profile and SELinux label of a process, taking effect at its exec.
//!
//! The attribute file is opened while the host's /proc is still there and written last.
//! Must not know: what a profile allows.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::Process;
use rustix::fs::{Mode, OFlags};

use crate::error::{Context, Error, Result};

/// Attributes to be written just before exec.
#[derive(Default)]
pub(crate) struct OnExec {
    writes: Vec<(OwnedFd, String)>,
}

/// Whether the kernel has AppArmor switched on.
pub(crate) fn apparmor_enabled() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|text| text.first() == Some(&b'Y'))
}

/// Whether the kernel has SELinux switched on.
pub(crate) fn selinux_enabled() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

impl OnExec {
    /// Opens what the process needs, in `proc`, the host's /proc. Must run in the process itself.
    pub(crate) fn open(proc: BorrowedFd<'_>, process: &Process) -> Result<OnExec> {
        let mut on_exec = OnExec::default();
        let profile = process
            .apparmor_profile()
            .as_deref()
            .filter(|p| !p.is_empty());
        if let Some(profile) = profile {
            if apparmor_enabled() {
                on_exec.add(
                    proc,
                    &["self/attr/apparmor/exec", "self/attr/exec"],
                    format!("exec {profile}"),
                )?;
            } else if profile != "unconfined" {
                return Err(Error::HostUnfit {
                    need: format!("apply AppArmor profile {profile:?}"),
                    why: "AppArmor is not enabled in this kernel".into(),
                });
            }
        }
        // Like runc: a label without SELinux is no label.
        if let Some(label) = process
            .selinux_label()
            .as_deref()
            .filter(|l| !l.is_empty() && selinux_enabled())
        {
            on_exec.add(proc, &["self/attr/exec"], label.to_string())?;
        }
        Ok(on_exec)
    }

    fn add(&mut self, proc: BorrowedFd<'_>, paths: &[&str], text: String) -> Result<()> {
        let mut last = Error::invalid("no attribute file");
        for path in paths {
            match rustix::fs::openat(proc, *path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
                Ok(fd) => {
                    self.writes.push((fd, text));
                    return Ok(());
                }
                Err(e) => last = Error::sys_at("open", path, e),
            }
        }
        Err(last)
    }

    /// Writes them.
    pub(crate) fn apply(&self) -> Result<()> {
        for (fd, text) in &self.writes {
            rustix::io::write(fd, text.as_bytes()).step("set the security label of the process")?;
        }
        Ok(())
    }
}
