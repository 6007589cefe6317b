//! The process part of a spec: the first process, and those that `exec` adds.
//!
//! Must not know: the rest of the spec.

use caisson_api as api;
use oci_spec::runtime::{
    BoxBuilder, LinuxCapabilitiesBuilder, PosixRlimit, Process, ProcessBuilder, UserBuilder,
};

use super::accounts::Identity;
use super::security::Security;
use super::{Plan, capabilities, files, resources};
use crate::error::{Error, Result};

/// What a container's `PATH` is unless its image says otherwise.
pub(crate) const DEFAULT_PATH: &str =
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Later assignments win over earlier ones of the same name; a name without `=` removes it.
pub(crate) fn merge_env(base: Vec<String>, over: &[String]) -> Vec<String> {
    let name = |s: &str| s.split('=').next().unwrap_or(s).to_string();
    let mut env = base;
    for entry in over {
        let key = name(entry);
        let at = env.iter().position(|e| name(e) == key);
        match (at, entry.contains('=')) {
            (Some(at), true) => env[at] = entry.clone(),
            (Some(at), false) => {
                env.remove(at);
            }
            (None, true) => env.push(entry.clone()),
            (None, false) => {}
        }
    }
    env
}

/// Environment of a container's processes.
pub(crate) fn environment(
    config: &api::ContainerConfig,
    id: &str,
    tty: bool,
    home: &str,
) -> Vec<String> {
    let mut env = vec![
        DEFAULT_PATH.to_string(),
        format!("HOSTNAME={}", files::hostname(config, id)),
    ];
    if tty {
        env.push("TERM=xterm".into());
    }
    let mut env = merge_env(env, config.env.as_deref().unwrap_or_default());
    if !env.iter().any(|e| e.starts_with("HOME=")) {
        env.push(format!("HOME={home}"));
    }
    env
}

fn rlimits(host: &api::HostConfig, defaults: &[(String, i64, i64)]) -> Result<Vec<PosixRlimit>> {
    let mut all = Vec::new();
    for u in host.resources.ulimits.iter().flatten() {
        all.push(resources::rlimit(&u.name, u.soft, u.hard)?);
    }
    for (name, soft, hard) in defaults {
        if !host
            .resources
            .ulimits
            .iter()
            .flatten()
            .any(|u| &u.name == name)
        {
            all.push(resources::rlimit(name, *soft, *hard)?);
        }
    }
    Ok(all)
}

fn cwd(path: &str) -> Result<String> {
    match path {
        "" => Ok("/".into()),
        p if p.starts_with('/') => Ok(p.into()),
        p => Err(Error::invalid(format!(
            "the working directory '{p}' is invalid, it needs to be an absolute path"
        ))),
    }
}

struct Parts<'a> {
    args: Vec<String>,
    env: Vec<String>,
    cwd: String,
    tty: bool,
    identity: &'a Identity,
    privileged: bool,
    host: &'a api::HostConfig,
    ulimits: &'a [(String, i64, i64)],
    security: &'a Security,
    console_size: Option<(u16, u16)>,
}

fn assemble(p: Parts<'_>) -> Result<Process> {
    let add = p.host.cap_add.clone().unwrap_or_default();
    let drop = p.host.cap_drop.clone().unwrap_or_default();
    let set = super::capability_set(&capabilities::bounding(&add, &drop, p.privileged)?);
    // A user other than root starts without effective capabilities, as with Docker: execve would drop them anyway.
    let active = if p.identity.uid == 0 {
        set.clone()
    } else {
        Default::default()
    };
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(set)
        .permitted(active.clone())
        .effective(active)
        .inheritable(std::collections::HashSet::new())
        .ambient(std::collections::HashSet::new())
        .build()
        .expect("every field of the capabilities is set");
    let user = UserBuilder::default()
        .uid(p.identity.uid)
        .gid(p.identity.gid)
        .additional_gids(p.identity.groups.clone())
        .build()
        .expect("uid and gid are set");
    let mut builder = ProcessBuilder::default()
        .terminal(p.tty)
        .user(user)
        .args(p.args)
        .env(p.env)
        .cwd(cwd(&p.cwd)?)
        .capabilities(capabilities)
        .rlimits(rlimits(p.host, p.ulimits)?)
        .no_new_privileges(p.security.no_new_privileges);
    if let Some(profile) = &p.security.apparmor {
        builder = builder.apparmor_profile(profile);
    }
    if p.host.oom_score_adj != 0 {
        let adj = i32::try_from(p.host.oom_score_adj)
            .ok()
            .filter(|a| (-1000..=1000).contains(a))
            .ok_or_else(|| {
                Error::invalid(format!(
                    "Invalid value {}, range for oom score adj is [-1000, 1000]",
                    p.host.oom_score_adj
                ))
            })?;
        builder = builder.oom_score_adj(adj);
    }
    if let Some((rows, columns)) = p.console_size.filter(|(r, c)| p.tty && *r > 0 && *c > 0) {
        let size = BoxBuilder::default()
            .height(rows)
            .width(columns)
            .build()
            .expect("height and width are set");
        builder = builder.console_size(size);
    }
    builder
        .build()
        .map_err(|e| Error::internal(format!("cannot build the process: {e}")))
}

/// The first process.
pub(crate) fn init(plan: &Plan<'_>) -> Result<Process> {
    assemble(Parts {
        args: plan.args.clone(),
        env: environment(plan.config, plan.id, plan.config.tty, &plan.identity.home),
        cwd: plan.config.working_dir.clone(),
        tty: plan.config.tty,
        identity: &plan.identity,
        privileged: plan.host.privileged,
        host: plan.host,
        ulimits: plan.default_ulimits,
        security: plan.security,
        console_size: plan.console_size,
    })
}

/// A further process: as the first, with what the exec's request changes.
pub(crate) fn exec(
    id: &str,
    config: &api::ContainerConfig,
    host: &api::HostConfig,
    request: &api::ExecCreateBody,
    identity: &Identity,
    security: &Security,
    ulimits: &[(String, i64, i64)],
) -> Result<Process> {
    let env = environment(config, id, request.tty, &identity.home);
    let cwd = if request.working_dir.is_empty() {
        config.working_dir.clone()
    } else {
        request.working_dir.clone()
    };
    assemble(Parts {
        args: request.cmd.clone().unwrap_or_default(),
        env: merge_env(env, request.env.as_deref().unwrap_or_default()),
        cwd,
        tty: request.tty,
        identity,
        privileged: host.privileged || request.privileged,
        host,
        ulimits,
        security,
        console_size: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_is_layered() {
        let config = api::ContainerConfig {
            env: Some(vec![
                "PATH=/x".into(),
                "A=1".into(),
                "A=2".into(),
                "TERM".into(),
            ]),
            hostname: "box".into(),
            ..Default::default()
        };
        assert_eq!(
            environment(&config, "id", true, "/root"),
            ["PATH=/x", "HOSTNAME=box", "A=2", "HOME=/root"]
        );
        let own_home = api::ContainerConfig {
            env: Some(vec!["HOME=/h".into()]),
            ..config
        };
        assert!(environment(&own_home, "id", false, "/root").contains(&"HOME=/h".to_string()));
    }
}
