//! `create` and `run`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use caisson_jail::cgroup::Cgroup;
use caisson_jail::{Gate, HookKind, Init, Root, Setup, Stdio, run_hooks};
use oci_spec::runtime::Spec;

use super::{could_not_start, listen_fds, send_console, write_pid_file};
use crate::cli::Create;
use crate::foreground::{self, Signals};
use crate::store::{Entry, Record, Store, cgroups_path};

/// A container's directory that goes away again unless kept.
struct Claim {
    entry: Entry,
    kept: bool,
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.kept {
            let _ = self.entry.remove();
        }
    }
}

struct Bundle {
    dir: PathBuf,
    text: Vec<u8>,
    spec: Spec,
}

fn load(bundle: Option<&Path>) -> Result<Bundle> {
    let given = bundle.unwrap_or(Path::new("."));
    let dir =
        std::fs::canonicalize(given).with_context(|| format!("open bundle {}", given.display()))?;
    let path = dir.join("config.json");
    let text = match std::fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            bail!("JSON specification file config.json not found")
        }
        other => other.with_context(|| format!("read {}", path.display()))?,
    };
    let mut spec: Spec =
        serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))?;
    hand_over_sockets(&mut spec);
    Ok(Bundle { dir, text, spec })
}

/// Socket activation reaches through: LISTEN_FDS of ours becomes the container's.
fn hand_over_sockets(spec: &mut Spec) {
    let count = listen_fds();
    if count == 0 {
        return;
    }
    if let Some(process) = spec.process_mut() {
        let mut env = process.env().clone().unwrap_or_default();
        env.push(format!("LISTEN_FDS={count}"));
        env.push("LISTEN_PID=1".into());
        process.set_env(Some(env));
    }
}

fn wants_terminal(spec: &Spec) -> bool {
    spec.process()
        .as_ref()
        .and_then(|p| p.terminal())
        .unwrap_or(false)
}

fn stdio(spec: &Spec) -> Stdio {
    if !wants_terminal(spec) {
        return Stdio::Inherit;
    }
    let size = spec.process().as_ref().and_then(|p| p.console_size());
    let size = size.and_then(|s| {
        Some((
            u16::try_from(s.height()).ok()?,
            u16::try_from(s.width()).ok()?,
        ))
    });
    Stdio::Terminal {
        size: size.filter(|s| *s != (0, 0)),
    }
}

fn check_terminal(spec: &Spec, detached: bool, socket: Option<&Path>) -> Result<()> {
    match (wants_terminal(spec), detached, socket) {
        (true, true, None) => {
            bail!("cannot allocate tty if caisson-oci will detach without setting console socket")
        }
        (false, _, Some(_)) => {
            bail!("cannot use console socket if caisson-oci will not detach or allocate tty")
        }
        (true, false, Some(_)) => {
            bail!("cannot use console socket if caisson-oci will not detach or allocate tty")
        }
        _ => Ok(()),
    }
}

fn make(claim: &mut Claim, bundle: &Bundle, options: &Create, gate: Gate) -> Result<Init> {
    let path = cgroups_path(&bundle.spec, &options.id);
    let cgroup = Cgroup::new(&path)?;
    claim.entry.save_spec(&bundle.text)?;
    let mut init = caisson_jail::create(Setup {
        id: &options.id,
        spec: &bundle.spec,
        root: Root::FromSpec {
            bundle: bundle.dir.clone(),
        },
        stdio: stdio(&bundle.spec),
        gate,
        cgroup: &cgroup,
        reaper: false,
        preserve_fds: options.preserve_fds + listen_fds(),
        no_pivot: options.no_pivot,
        no_new_keyring: options.no_new_keyring,
        die_with_parent: false,
    })
    .map_err(could_not_start)?;
    let publish = |init: &mut Init| -> Result<()> {
        claim
            .entry
            .save_record(&Record::new(init.pid, &bundle.dir, &bundle.spec, &path)?)?;
        if let Some(socket) = &options.console_socket {
            send_console(socket, init)?;
        }
        match &options.pid_file {
            Some(file) => write_pid_file(file, init),
            None => Ok(()),
        }
    };
    if let Err(e) = publish(&mut init) {
        abandon(&cgroup, &init);
        return Err(e);
    }
    claim.kept = true;
    Ok(init)
}

fn abandon(cgroup: &Cgroup, init: &Init) {
    let _ = cgroup.kill();
    let _ = nix::sys::wait::waitpid(init.pid, None);
    let _ = cgroup.remove();
}

/// `create`.
pub fn create(store: &Store, options: Create) -> Result<()> {
    let bundle = load(options.bundle.as_deref())?;
    check_terminal(&bundle.spec, true, options.console_socket.as_deref())?;
    let mut claim = Claim {
        entry: store.claim(&options.id)?,
        kept: false,
    };
    let fifo = claim.entry.make_fifo()?;
    make(&mut claim, &bundle, &options, Gate::Fifo(fifo)).map(drop)
}

/// `run`: create and start, then stay unless detached.
pub fn run(store: &Store, options: Create) -> Result<u8> {
    let bundle = load(options.bundle.as_deref())?;
    check_terminal(
        &bundle.spec,
        options.detach,
        options.console_socket.as_deref(),
    )?;
    let mut claim = Claim {
        entry: store.claim(&options.id)?,
        kept: false,
    };
    let signals = if options.detach {
        None
    } else {
        Some(Signals::take()?)
    };
    let mut init = make(&mut claim, &bundle, &options, Gate::Pipe)?;
    let cgroup = claim.entry.cgroup(claim.entry.record()?.as_ref())?;
    if let Err(e) = init.start() {
        claim.kept = false;
        abandon(&cgroup, &init);
        return Err(could_not_start(e));
    }
    let Some(signals) = signals else { return Ok(0) };
    let code = foreground::stay(&init, &signals)?;
    if !options.keep {
        claim.kept = false;
        // Whatever the container left running goes with it.
        let _ = cgroup.kill();
        cgroup.remove()?;
        drop(claim);
        run_hooks(
            &bundle.spec,
            HookKind::Poststop,
            &options.id,
            None,
            &bundle.dir,
        )?;
    }
    Ok(code)
}
