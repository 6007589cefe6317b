//! `caisson daemon`: settings → sockets → engine → HTTP, until a signal ends it.
//!
//! ```text
//! flags + daemon.json ─▶ Settings ─▶ pid file locked ─▶ sockets listen ─▶ Engine::open ─▶ default image (first time)
//!      ─▶ serve (sd_notify READY) ─▶ SIGTERM/SIGINT: stop accepting ─▶ Engine::shutdown ─▶ sockets and pid file removed
//! ```
//! Sockets listen before the engine is open, so that a client that starts the daemon waits in the backlog instead of failing.

mod flags;
mod identity;
mod listeners;
mod pidfile;
mod server;
mod settings;
mod tls;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use caisson_engine::Engine;
use caisson_runtime::{Runtimes, VmSettings};
use clap::{CommandFactory, Parser};
use tokio::signal::unix::{SignalKind, signal};

use crate::{api, default_image};
use flags::Flags;
pub use settings::{Level, Settings};

/// The command's description, for completions and man pages.
pub fn command() -> clap::Command {
    Flags::command()
}

/// Runs the daemon until it is told to stop.
pub fn run(arguments: &[OsString]) -> ExitCode {
    let name = OsString::from("caisson daemon");
    let flags = match Flags::try_parse_from(std::iter::once(&name).chain(arguments)) {
        Ok(flags) => flags,
        Err(error) => {
            // Help and version come this way too; a closed terminal is no reason to panic.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(125)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let validate_only = flags.validate;
    let settings = settings::read_config_file(flags.config_file.as_deref())
        .and_then(|file| settings::resolve(flags, file));
    let settings = match settings {
        Ok(settings) => settings,
        Err(message) => {
            eprintln!("caisson daemon: {message}");
            return ExitCode::FAILURE;
        }
    };
    if validate_only {
        println!("configuration OK");
        return ExitCode::SUCCESS;
    }
    start_logging(&settings);
    match serve_until_told(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_logging(settings: &Settings) {
    let ours = match settings.level {
        Level::Debug => "debug",
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error => "error",
    };
    // Libraries below us are chatty; RUST_LOG overrides everything.
    let default = format!(
        "warn,caisson={ours},caisson_engine={ours},caisson_image={ours},caisson_runtime={ours}"
    );
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let logger = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if settings.log_json {
        logger.json().init();
    } else {
        logger
            .with_target(false)
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .init();
    }
}

fn serve_until_told(settings: Settings) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err(anyhow!(
            "the daemon needs root, to make namespaces and mounts. Start it with: sudo caisson daemon"
        ));
    }
    // Fails only when one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let _pidfile = pidfile::PidFile::create(&settings.pidfile).map_err(|m| anyhow!(m))?;
    let tls = settings
        .tls
        .as_ref()
        .map(tls::acceptor)
        .transpose()
        .map_err(|m| anyhow!(m))?
        .map(Arc::new);
    let mut listeners = listeners::Listeners::open(&settings.hosts, settings.group.as_deref())
        .map_err(|m| anyhow!(m))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("caisson")
        .build()
        .context("cannot start threads")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let engine = open_engine(&settings).await?;
        let tended = engine.clone();
        tokio::spawn(async move { tended.tend_images().await });
        let id = identity::engine_id(&settings.data_root)?;
        let service = api::service(engine.clone(), &settings, &id);
        let tasks: Vec<_> = std::mem::take(&mut listeners.sockets)
            .into_iter()
            .map(|socket| tokio::spawn(server::serve(socket, tls.clone(), service.clone())))
            .collect();
        if !settings.registry_mirrors.is_empty() {
            tracing::warn!("registry mirrors are not asked by this version: images come from their own registries");
        }
        if settings.insecure_tcp && settings.hosts.iter().any(|h| matches!(h, settings::Host::Tcp(_))) {
            tracing::warn!("listening on TCP without client certificates: whoever reaches this socket is root on this host");
        }
        tracing::info!(
            pid = std::process::id(),
            version = env!("CARGO_PKG_VERSION"),
            hosts = ?settings.hosts,
            "listening"
        );
        notify_systemd(&[sd_notify::NotifyState::Ready]);
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => tracing::info!("SIGHUP: nothing can be reloaded while running; restart to apply changes"),
            }
        }
        tracing::info!("ending");
        notify_systemd(&[sd_notify::NotifyState::Stopping]);
        for task in &tasks {
            task.abort();
        }
        tokio::select! {
            () = engine.shutdown() => {}
            _ = terminate.recv() => tracing::warn!("told twice: ending at once"),
            _ = interrupt.recv() => tracing::warn!("told twice: ending at once"),
        }
        anyhow::Ok(())
    })?;
    // Streams of clients that are still connected end with their sockets.
    runtime.shutdown_background();
    Ok(())
}

fn notify_systemd(state: &[sd_notify::NotifyState]) {
    if let Err(error) = sd_notify::notify(false, state) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}

async fn open_engine(settings: &Settings) -> anyhow::Result<Engine> {
    let vm = VmSettings {
        memory_bytes: settings.vm_memory_bytes,
        ..VmSettings::default()
    };
    let runtimes = Runtimes::open(&settings.exec_root, vm).context("cannot run containers")?;
    let engine = Engine::open(engine_config(settings), runtimes)
        .await
        .map_err(|e| anyhow!("cannot open {}: {e}", settings.data_root.display()))?;
    load_default_image(&engine).await;
    Ok(engine)
}

/// Loads the embedded image, once in the life of a data root. Its failure is told but keeps nobody from working with others.
async fn load_default_image(engine: &Engine) {
    match engine
        .load_default_image(default_image::REFERENCE, default_image::ARCHIVE)
        .await
    {
        Ok(true) => tracing::info!(image = default_image::REFERENCE, "loaded the default image"),
        Ok(false) => {}
        Err(error) => {
            tracing::error!(image = default_image::REFERENCE, %error, "cannot load the default image")
        }
    }
}

/// The engine's view of the settings.
fn engine_config(settings: &Settings) -> caisson_engine::Config {
    let mut config = caisson_engine::Config::new(&settings.data_root, &settings.exec_root);
    config.default_isolation = settings.default_isolation;
    config.require_isolation = settings.require_isolation;
    config.userns_remap = settings.userns_remap.clone();
    config.default_ulimits = settings.default_ulimits.clone();
    config.log_driver = settings.log_driver.clone();
    config.log_opts = settings.log_opts.clone();
    if let Some(bytes) = settings.default_disk_bytes {
        config.default_disk_bytes = bytes;
    }
    if let Some(bytes) = settings.default_shm_size_bytes {
        config.default_shm_size_bytes = bytes;
    }
    config.init = settings.init;
    config.cgroup_parent = settings.cgroup_parent.clone();
    config.live_restore = settings.live_restore;
    config.shutdown_timeout = settings.shutdown_timeout;
    config.insecure_registries = settings.insecure_registries.clone();
    config.registry_mirrors = settings.registry_mirrors.clone();
    config
}
