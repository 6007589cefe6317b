//! Which namespaces a container has of its own and which it shares: `--network`, `--pid`, `--ipc`, `--uts`, `--userns`,
//! `--cgroupns`.
//!
//! Must not know: how a name becomes another container (the engine resolves it before a spec is made).

use crate::error::{Error, Result};

/// A namespace's choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// One of its own.
    Own,
    /// The host's.
    Host,
    /// That of another container, as the user named it.
    Container(String),
}

/// `/dev/shm` and System V IPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ipc {
    /// Own namespace, own `/dev/shm`.
    Own,
    /// Own namespace, no `/dev/shm`.
    NoShm,
    /// Another's.
    Shared(Choice),
}

/// All choices of one container, read once from its host configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Namespaces {
    pub network: Choice,
    pub pid: Choice,
    pub ipc: Ipc,
    pub uts_host: bool,
    /// `None`: what the daemon does by default; `Some(false)`: `--userns host`; `Some(true)`: `--userns private`.
    pub user_private: Option<bool>,
    /// `None`: the cgroup version's default.
    pub cgroup_private: Option<bool>,
}

fn container(mode: &str, flag: &str) -> Result<Option<Choice>> {
    match mode.strip_prefix("container:") {
        Some("") => Err(Error::invalid(format!(
            "invalid {flag} mode: container: needs a container's name or id behind it"
        ))),
        Some(name) => Ok(Some(Choice::Container(name.into()))),
        None => Ok(None),
    }
}

impl Namespaces {
    /// Reads them; nonsense is refused.
    pub(crate) fn read(host: &caisson_api::HostConfig) -> Result<Namespaces> {
        let network = match host.network_mode.as_str() {
            "" | "default" | "bridge" | "none" => Choice::Own,
            "host" => Choice::Host,
            mode => match container(mode, "network")? {
                Some(choice) => choice,
                // see `check_networks`
                None => return Err(Error::invalid(format!("network {mode} not found"))),
            },
        };
        let pid = match host.pid_mode.as_str() {
            "" | "private" => Choice::Own,
            "host" => Choice::Host,
            mode => container(mode, "PID")?
                .ok_or_else(|| Error::invalid(format!("invalid PID mode: {mode}")))?,
        };
        let ipc = match host.ipc_mode.as_str() {
            "" | "private" | "shareable" => Ipc::Own,
            "none" => Ipc::NoShm,
            "host" => Ipc::Shared(Choice::Host),
            mode => Ipc::Shared(
                container(mode, "IPC")?
                    .ok_or_else(|| Error::invalid(format!("invalid IPC mode: {mode}")))?,
            ),
        };
        let uts_host = match host.uts_mode.as_str() {
            "" | "private" => false,
            "host" => true,
            mode => return Err(Error::invalid(format!("invalid UTS mode: {mode}"))),
        };
        let user_private = match host.userns_mode.as_str() {
            "" => None,
            "host" => Some(false),
            "private" => Some(true),
            mode => {
                return Err(Error::invalid(format!(
                    "invalid user namespace mode: {mode}: use host or private"
                )));
            }
        };
        let cgroup_private = match host.cgroupns_mode.as_str() {
            "" => None,
            "host" => Some(false),
            "private" => Some(true),
            mode => return Err(Error::invalid(format!("invalid CgroupNS mode: {mode}"))),
        };
        Ok(Namespaces {
            network,
            pid,
            ipc,
            uts_host,
            user_private,
            cgroup_private,
        })
    }

    /// The containers that must run for this one to start.
    pub(crate) fn joined(&self) -> impl Iterator<Item = &str> {
        let ipc = match &self.ipc {
            Ipc::Shared(choice) => Some(choice),
            Ipc::Own | Ipc::NoShm => None,
        };
        [Some(&self.network), Some(&self.pid), ipc]
            .into_iter()
            .flatten()
            .filter_map(|c| match c {
                Choice::Container(name) => Some(name.as_str()),
                Choice::Own | Choice::Host => None,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use caisson_api::HostConfig;

    #[test]
    fn modes_are_read() {
        let n = Namespaces::read(&HostConfig {
            network_mode: "container:web".into(),
            pid_mode: "host".into(),
            ipc_mode: "none".into(),
            uts_mode: "host".into(),
            userns_mode: "private".into(),
            ..HostConfig::default()
        })
        .unwrap();
        assert_eq!(n.network, Choice::Container("web".into()));
        assert_eq!(
            (n.pid.clone(), n.ipc.clone(), n.uts_host, n.user_private),
            (Choice::Host, Ipc::NoShm, true, Some(true))
        );
        assert_eq!(n.joined().collect::<Vec<_>>(), ["web"]);
    }

    #[test]
    fn nonsense_is_refused() {
        let read = |h: HostConfig| Namespaces::read(&h).unwrap_err();
        let network = read(HostConfig {
            network_mode: "mynet".into(),
            ..HostConfig::default()
        });
        assert_eq!(network.message, "network mynet not found");
        assert_eq!(network.kind, crate::ErrorKind::Invalid);
        for bad in ["container:", "planet"] {
            read(HostConfig {
                pid_mode: bad.into(),
                ..HostConfig::default()
            });
            read(HostConfig {
                ipc_mode: bad.into(),
                ..HostConfig::default()
            });
        }
    }
}
