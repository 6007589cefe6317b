//! `exec`: another process in a running container.

use anyhow::{Context, Result, anyhow, bail};
use caisson_jail::{Exec as JailExec, Stdio, exec as jail_exec};
use nix::unistd::Pid;
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, Process, Spec, User};

use super::{could_not_start, listen_fds, send_console, write_pid_file};
use crate::cli::Exec;
use crate::foreground::{self, Signals};
use crate::store::{Status, Store};

/// Runs it and, unless detached, stays; returns its code.
pub fn exec(store: &Store, options: Exec) -> Result<u8> {
    let entry = store.find(&options.id)?;
    let record = entry.record()?;
    match entry.status(record.as_ref())? {
        Status::Stopped | Status::Creating => bail!("cannot exec in a stopped container"),
        Status::Paused if !options.ignore_paused => {
            bail!("cannot exec in a paused container (use --ignore-paused to override)")
        }
        _ => {}
    }
    let record = record.ok_or_else(|| anyhow!("cannot exec in a stopped container"))?;
    let spec = entry.spec()?;
    let process = process(&spec, &options)?;
    let terminal = process.terminal().unwrap_or(false);
    if terminal && options.detach && options.console_socket.is_none() {
        bail!("cannot allocate tty if caisson-oci will detach without setting console socket");
    }
    if options.console_socket.is_some() && !(terminal && options.detach) {
        bail!("cannot use console socket if caisson-oci will not detach or allocate tty");
    }
    let size = process.console_size().and_then(|s| {
        Some((
            u16::try_from(s.height()).ok()?,
            u16::try_from(s.width()).ok()?,
        ))
    });
    let cgroup = entry.cgroup(Some(&record))?;
    let signals = if options.detach {
        None
    } else {
        Some(Signals::take()?)
    };
    let mut held = jail_exec(JailExec {
        init_pid: Pid::from_raw(record.pid),
        spec: &spec,
        process: &process,
        stdio: if terminal {
            Stdio::Terminal {
                size: size.filter(|s| *s != (0, 0)),
            }
        } else {
            Stdio::Inherit
        },
        cgroup: &cgroup,
        preserve_fds: options.preserve_fds + listen_fds(),
        hold: true,
    })
    .map_err(exec_failed)?;
    let mut publish = || -> Result<()> {
        if let Some(socket) = &options.console_socket {
            send_console(socket, &mut held)?;
        }
        match &options.pid_file {
            Some(file) => write_pid_file(file, &held),
            None => Ok(()),
        }
    };
    // An error drops the held process' channel, which ends it.
    publish()?;
    held.start().map_err(exec_failed)?;
    match signals {
        None => Ok(0),
        Some(signals) => foreground::stay(&held, &signals),
    }
}

fn exec_failed(error: caisson_jail::Error) -> anyhow::Error {
    could_not_start(error).context("exec failed")
}

/// The process to run: a document, or the container's own with other words. Pure but for reading the document.
fn process(spec: &Spec, options: &Exec) -> Result<Process> {
    if let Some(path) = &options.process {
        let text =
            std::fs::read(path).with_context(|| format!("read process file {}", path.display()))?;
        let mut process: Process = serde_json::from_slice(&text)
            .with_context(|| format!("parse process file {}", path.display()))?;
        if options.tty {
            process.set_terminal(Some(true));
        }
        return Ok(process);
    }
    let mut process = spec
        .process()
        .clone()
        .ok_or_else(|| anyhow!("the container's spec has no process"))?;
    process.set_args(Some(options.args.clone()));
    process.set_terminal(Some(options.tty));
    process.set_console_size(None);
    if let Some(cwd) = &options.cwd {
        process.set_cwd(cwd.clone());
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(options.env.iter().cloned());
    process.set_env(Some(env));
    let mut user = match &options.user {
        Some(text) => parse_user(text)?,
        None => process.user().clone(),
    };
    if !options.additional_gids.is_empty() {
        user.set_additional_gids(Some(options.additional_gids.clone()));
    }
    process.set_user(user);
    if options.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if let Some(profile) = &options.apparmor {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    if let Some(label) = &options.process_label {
        process.set_selinux_label(Some(label.clone()));
    }
    if !options.caps.is_empty() {
        let caps = add_capabilities(
            process.capabilities().clone().unwrap_or_default(),
            &options.caps,
        )?;
        process.set_capabilities(Some(caps));
    }
    Ok(process)
}

/// `uid[:gid]`, in range: runc takes no names here.
fn parse_user(text: &str) -> Result<User> {
    let (uid, gid) = match text.split_once(':') {
        Some((uid, gid)) => (uid, Some(gid)),
        None => (text, None),
    };
    let id = |what: &str, text: &str| -> Result<u32> {
        text.parse::<u32>()
            .ok()
            .filter(|id| *id <= caisson_jail::user::ID_MAX)
            .ok_or_else(|| {
                anyhow!(
                    "parsing {text:?} as int for {what} failed: ids must be in range 0-{}",
                    caisson_jail::user::ID_MAX
                )
            })
    };
    let mut user = User::default();
    user.set_uid(id("uid", uid)?);
    user.set_gid(gid.map(|gid| id("gid", gid)).transpose()?.unwrap_or(0));
    Ok(user)
}

fn add_capabilities(mut caps: LinuxCapabilities, names: &[String]) -> Result<LinuxCapabilities> {
    let mut wanted = Capabilities::new();
    for name in names {
        let parsed: Capability = serde_json::from_value(serde_json::Value::String(name.clone()))
            .map_err(|_| anyhow!("unknown capability {name:?}"))?;
        wanted.insert(parsed);
    }
    let with = |set: &Option<Capabilities>| {
        Some(
            set.iter()
                .flatten()
                .chain(&wanted)
                .copied()
                .collect::<Capabilities>(),
        )
    };
    let (bounding, effective, permitted) = (
        with(caps.bounding()),
        with(caps.effective()),
        with(caps.permitted()),
    );
    caps.set_bounding(bounding)
        .set_effective(effective)
        .set_permitted(permitted);
    Ok(caps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers_in_range() {
        let user = parse_user("1000:5").expect("parses");
        assert_eq!((user.uid(), user.gid()), (1000, 5));
        for bad in ["4294967296", "-1", "root", "1:4294967295", "", ":1"] {
            assert!(parse_user(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_containers_process_is_the_base() {
        let spec: Spec = serde_json::from_value(serde_json::json!({
            "ociVersion": "1.0.2",
            "process": {"cwd": "/w", "user": {"uid": 7, "gid": 8}, "args": ["x"], "env": ["A=1"], "terminal": true,
                        "capabilities": {"bounding": ["CAP_CHOWN"]}},
        }))
        .expect("spec");
        let options = Exec {
            args: vec!["ls".into()],
            env: vec!["B=2".into()],
            caps: vec!["CAP_KILL".into()],
            ..Exec::default()
        };
        let made = process(&spec, &options).expect("makes");
        assert_eq!(made.args().as_deref(), Some(&["ls".to_string()][..]));
        assert_eq!(
            made.env().as_deref(),
            Some(&["A=1".to_string(), "B=2".to_string()][..])
        );
        assert_eq!((made.user().uid(), made.terminal()), (7, Some(false)));
        let caps = made.capabilities().as_ref().expect("caps");
        assert_eq!(caps.bounding().as_ref().map(|c| c.len()), Some(2));
        assert!(add_capabilities(LinuxCapabilities::default(), &["CAP_NONSENSE".into()]).is_err());
    }
}
