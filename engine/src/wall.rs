//! What a container cannot have behind the wall that it asks for: refused when it is created, with the reason
//! (`docs/parity.md`). Decided by what the isolation says it can do, never by which one it is.

use caisson_api as api;
use caisson_runtime::{Capabilities, Isolation};

use crate::error::{Error, Result};
use crate::spec::mounts::{Requested, What};
use crate::spec::namespaces::{Choice, Ipc, Namespaces};

/// Refuses what this isolation cannot give.
pub(crate) fn check(
    capabilities: &Capabilities,
    host: &api::HostConfig,
    namespaces: &Namespaces,
    mounts: &[Requested],
) -> Result<()> {
    let isolation = capabilities.isolation;
    let refuse = |what: String, why: &str| {
        Err(Error::invalid(format!(
            "{what} is not possible with --isolation={isolation}: {why}"
        )))
    };
    if !capabilities.share_host_namespaces {
        if let Some(flag) = shared(namespaces) {
            return refuse(
                flag,
                "the container has a kernel of its own and can share nothing of another's; leave it out, or use \
                 --isolation=container",
            );
        }
        for mount in mounts {
            if let What::Bind {
                propagation: Some(mode),
                ..
            } = &mount.what
                && !matches!(mode.as_str(), "private" | "rprivate")
            {
                return refuse(
                    format!(
                        "{mode} propagation of the mount at {}",
                        mount.target.display()
                    ),
                    "mounts do not travel between two kernels; leave it out, or use --isolation=container",
                );
            }
        }
    }
    if !capabilities.host_devices
        && let Some(device) = host.resources.devices.iter().flatten().next()
    {
        return refuse(
            format!("--device {}", device.path_on_host),
            "the host's devices belong to the host's kernel; use --isolation=container",
        );
    }
    Ok(())
}

/// The flag by which something of the host's or of another container's would be shared.
fn shared(namespaces: &Namespaces) -> Option<String> {
    let flag = |name: &str, choice: &Choice| match choice {
        Choice::Own => None,
        Choice::Host => Some(format!("--{name} host")),
        Choice::Container(other) => Some(format!("--{name} container:{other}")),
    };
    let ipc = match &namespaces.ipc {
        Ipc::Shared(choice) => flag("ipc", choice),
        Ipc::Own | Ipc::NoShm => None,
    };
    flag("network", &namespaces.network)
        .or_else(|| flag("pid", &namespaces.pid))
        .or(ipc)
        .or_else(|| namespaces.uts_host.then(|| "--uts host".into()))
}

/// Refuses to join the namespaces of a container that has a kernel of its own: outside there is only its VMM.
pub(crate) fn check_joined(name: &str, isolation: Isolation) -> Result<()> {
    match isolation {
        Isolation::Container => Ok(()),
        Isolation::Vm => Err(Error::invalid(format!(
            "container {name} has a kernel of its own (--isolation=vm): its namespaces cannot be joined from outside"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use caisson_runtime::RootfsForm;

    use super::*;
    use crate::spec::mounts;

    fn checked(host: &api::HostConfig, walled: bool) -> Result<()> {
        let capabilities = Capabilities {
            isolation: if walled {
                Isolation::Vm
            } else {
                Isolation::Container
            },
            rootfs: RootfsForm::Block,
            share_host_namespaces: !walled,
            host_devices: !walled,
            snapshot: false,
            controllers: Vec::new(),
        };
        let namespaces = Namespaces::read(host)?;
        check(&capabilities, host, &namespaces, &mounts::requested(host)?)
    }

    #[test]
    fn what_is_the_hosts_is_refused_by_the_flag_that_asks_for_it() {
        let host = api::HostConfig::default;
        let device = api::DeviceMapping {
            path_on_host: "/dev/fuse".into(),
            ..Default::default()
        };
        for (asked, flag) in [
            (
                api::HostConfig {
                    network_mode: "host".into(),
                    ..host()
                },
                "--network host",
            ),
            (
                api::HostConfig {
                    network_mode: "container:x".into(),
                    ..host()
                },
                "--network container:x",
            ),
            (
                api::HostConfig {
                    pid_mode: "host".into(),
                    ..host()
                },
                "--pid host",
            ),
            (
                api::HostConfig {
                    ipc_mode: "host".into(),
                    ..host()
                },
                "--ipc host",
            ),
            (
                api::HostConfig {
                    uts_mode: "host".into(),
                    ..host()
                },
                "--uts host",
            ),
            (
                api::HostConfig {
                    binds: Some(vec!["/a:/b:rshared".into()]),
                    ..host()
                },
                "rshared propagation of the mount at /b",
            ),
            (
                api::HostConfig {
                    resources: api::Resources {
                        devices: Some(vec![device]),
                        ..Default::default()
                    },
                    ..host()
                },
                "--device /dev/fuse",
            ),
        ] {
            let error = checked(&asked, true).expect_err("refused");
            assert!(error.message.starts_with(flag), "{}", error.message);
            assert!(
                error.message.contains("--isolation=vm"),
                "{}",
                error.message
            );
            checked(&asked, false).expect("the other wall can");
        }
    }

    #[test]
    fn what_a_guest_can_do_is_not() {
        let host = api::HostConfig {
            privileged: true,
            userns_mode: "host".into(),
            cgroupns_mode: "host".into(),
            ipc_mode: "shareable".into(),
            binds: Some(vec!["/a:/b:rprivate".into(), "/c:/d".into()]),
            ..Default::default()
        };
        checked(&host, true).expect("allowed");
    }
}
