//! From flags and `daemon.json` to settings: pure, so that tables can test it. A setting may be given once: as a flag or in
//! the file, not in both (dockerd's rule, which keeps surprises out).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use caisson_engine::parse_bytes;
use caisson_runtime::Isolation;
use serde::Deserialize;

use super::flags::Flags;

/// Default place of `daemon.json`; read when it exists.
pub const CONFIG_FILE: &str = "/etc/caisson/daemon.json";

/// Everything the daemon needs to know, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub hosts: Vec<Host>,
    pub group: Option<String>,
    pub data_root: PathBuf,
    pub exec_root: PathBuf,
    pub pidfile: PathBuf,
    pub level: Level,
    pub log_json: bool,
    pub tls: Option<TlsSettings>,
    pub insecure_tcp: bool,
    pub default_isolation: Isolation,
    pub require_isolation: Option<Isolation>,
    pub userns_remap: Option<String>,
    /// Name, soft, hard.
    pub default_ulimits: Vec<(String, i64, i64)>,
    pub default_shm_size_bytes: Option<u64>,
    pub default_disk_bytes: Option<u64>,
    pub vm_memory_bytes: Option<u64>,
    pub log_driver: String,
    pub log_opts: BTreeMap<String, String>,
    pub insecure_registries: Vec<String>,
    pub registry_mirrors: Vec<String>,
    pub cgroup_parent: Option<String>,
    pub init: bool,
    pub live_restore: bool,
    pub shutdown_timeout: Duration,
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A path socket.
    Unix(PathBuf),
    /// Address and port.
    Tcp(String),
    /// Sockets handed over by systemd: all, or one of a name or number.
    Fd(Option<String>),
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

/// TLS of TCP sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    /// Clients must show a certificate signed by `ca`.
    pub verify: bool,
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// `daemon.json`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ConfigFile {
    hosts: Option<Vec<String>>,
    group: Option<String>,
    data_root: Option<PathBuf>,
    exec_root: Option<PathBuf>,
    pidfile: Option<PathBuf>,
    debug: Option<bool>,
    log_level: Option<String>,
    log_format: Option<String>,
    tls: Option<bool>,
    tlsverify: Option<bool>,
    tlscacert: Option<PathBuf>,
    tlscert: Option<PathBuf>,
    tlskey: Option<PathBuf>,
    default_isolation: Option<String>,
    require_isolation: Option<String>,
    userns_remap: Option<String>,
    default_ulimits: Option<BTreeMap<String, FileUlimit>>,
    default_shm_size: Option<String>,
    default_disk_size: Option<String>,
    vm_memory: Option<String>,
    log_driver: Option<String>,
    log_opts: Option<BTreeMap<String, String>>,
    insecure_registries: Option<Vec<String>>,
    registry_mirrors: Option<Vec<String>>,
    storage_driver: Option<String>,
    default_runtime: Option<String>,
    cgroup_parent: Option<String>,
    init: Option<bool>,
    live_restore: Option<bool>,
    shutdown_timeout: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct FileUlimit {
    hard: Option<i64>,
    soft: Option<i64>,
}

/// Reads `daemon.json`: the one named by the flags must exist, the default one may.
pub fn read_config_file(named: Option<&Path>) -> Result<ConfigFile, String> {
    let path = named.unwrap_or(Path::new(CONFIG_FILE));
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && named.is_none() => {
            return Ok(ConfigFile::default());
        }
        Err(e) => {
            return Err(format!(
                "cannot read the configuration file {}: {e}",
                path.display()
            ));
        }
    };
    parse_config_file(&text).map_err(|e| {
        format!(
            "the configuration file {} is not valid: {e}",
            path.display()
        )
    })
}

fn parse_config_file(text: &[u8]) -> Result<ConfigFile, serde_json::Error> {
    if text.iter().all(u8::is_ascii_whitespace) {
        return Ok(ConfigFile::default());
    }
    serde_json::from_slice(text)
}

/// One value out of flag and file, refusing both.
struct Once {
    twice: Vec<&'static str>,
}

impl Once {
    fn of<T>(&mut self, name: &'static str, flag: Option<T>, file: Option<T>) -> Option<T> {
        match (flag, file) {
            (Some(flag), Some(_)) => {
                self.twice.push(name);
                Some(flag)
            }
            (flag, file) => flag.or(file),
        }
    }

    fn list(
        &mut self,
        name: &'static str,
        flag: Vec<String>,
        file: Option<Vec<String>>,
    ) -> Vec<String> {
        self.of(name, (!flag.is_empty()).then_some(flag), file)
            .unwrap_or_default()
    }

    fn switch(&mut self, name: &'static str, flag: bool, file: Option<bool>) -> bool {
        self.of(name, flag.then_some(true), file).unwrap_or(false)
    }
}

/// Decides.
pub fn resolve(flags: Flags, file: ConfigFile) -> Result<Settings, String> {
    let mut once = Once { twice: Vec::new() };
    let debug = once.switch("debug", flags.debug, file.debug);
    let level = once.of("log-level", flags.log_level, file.log_level);
    let format = once.of("log-format", flags.log_format, file.log_format);
    let hosts = once.list("hosts", flags.hosts, file.hosts);
    let exec_root = once
        .of("exec-root", flags.exec_root, file.exec_root)
        .unwrap_or_else(|| "/run/caisson".into());
    let pidfile = once.of("pidfile", flags.pidfile, file.pidfile);
    let tls = resolve_tls(
        once.switch("tls", flags.tls, file.tls),
        once.switch("tlsverify", flags.tlsverify, file.tlsverify),
        [
            once.of("tlscacert", flags.tlscacert, file.tlscacert),
            once.of("tlscert", flags.tlscert, file.tlscert),
            once.of("tlskey", flags.tlskey, file.tlskey),
        ],
    );
    if let Some(driver) = once.of("storage-driver", flags.storage_driver, file.storage_driver)
        && !matches!(driver.as_str(), "" | "overlay2" | "overlay")
    {
        return Err(format!(
            "storage driver {driver:?} is not known: overlay2 is the only one"
        ));
    }
    if let Some(runtime) = once.of(
        "default-runtime",
        flags.default_runtime,
        file.default_runtime,
    ) && !matches!(
        runtime.as_str(),
        "" | "caisson" | "runc" | "io.containerd.runc.v2"
    ) {
        return Err(format!(
            "runtime {runtime:?} is not known: choose the wall with --default-isolation instead"
        ));
    }
    let isolation = |text: Option<String>| -> Result<Option<Isolation>, String> {
        text.filter(|t| !t.is_empty() && t != "default")
            .map(|t| t.parse())
            .transpose()
    };
    let require_isolation = isolation(once.of(
        "require-isolation",
        flags.require_isolation,
        file.require_isolation,
    ))?;
    let default_isolation = isolation(once.of(
        "default-isolation",
        flags.default_isolation,
        file.default_isolation,
    ))?;
    if let (Some(default), Some(required)) = (default_isolation, require_isolation)
        && default != required
    {
        return Err(format!(
            "--default-isolation={default} contradicts --require-isolation={required}: no container could be made by default"
        ));
    }
    let flag_ulimits = flags
        .default_ulimits
        .iter()
        .map(|u| parse_ulimit(u))
        .collect::<Result<Vec<_>, _>>()?;
    let file_ulimits = file.default_ulimits.map(|map| {
        let limits = map.into_iter().map(|(name, limit)| {
            let soft = limit.soft.or(limit.hard).unwrap_or(0);
            (name, soft, limit.hard.unwrap_or(soft))
        });
        limits.collect::<Vec<_>>()
    });
    let flag_log_opts = parse_pairs("log-opt", &flags.log_opts)?;
    let shutdown_timeout = once
        .of(
            "shutdown-timeout",
            flags.shutdown_timeout,
            file.shutdown_timeout,
        )
        .unwrap_or(15);
    let settings = Settings {
        hosts: parse_hosts(&hosts, tls.is_some())?,
        group: once
            .of("group", flags.group, file.group)
            .filter(|g| !g.is_empty()),
        data_root: absolute(
            once.of("data-root", flags.data_root, file.data_root)
                .unwrap_or_else(|| "/var/lib/caisson".into()),
        )?,
        pidfile: absolute(pidfile.unwrap_or_else(|| exec_root.join("caisson.pid")))?,
        exec_root: absolute(exec_root)?,
        level: if debug {
            Level::Debug
        } else {
            parse_level(level.as_deref().unwrap_or("info"))?
        },
        log_json: match format.as_deref() {
            None | Some("" | "text") => false,
            Some("json") => true,
            Some(other) => {
                return Err(format!(
                    "log format {other:?} is not known: use text or json"
                ));
            }
        },
        tls,
        insecure_tcp: flags.insecure_tcp_without_client_certificates,
        default_isolation: default_isolation
            .or(require_isolation)
            .unwrap_or(Isolation::Container),
        require_isolation,
        userns_remap: once
            .of("userns-remap", flags.userns_remap, file.userns_remap)
            .filter(|u| !u.is_empty()),
        default_ulimits: once
            .of(
                "default-ulimits",
                (!flag_ulimits.is_empty()).then_some(flag_ulimits),
                file_ulimits,
            )
            .unwrap_or_default(),
        default_shm_size_bytes: once
            .of(
                "default-shm-size",
                flags.default_shm_size,
                file.default_shm_size,
            )
            .map(|t| {
                parse_bytes(&t).ok_or(format!(
                    "default-shm-size {t:?} is not a size: write 64m, 1g, …"
                ))
            })
            .transpose()?,
        vm_memory_bytes: once
            .of("vm-memory", flags.vm_memory, file.vm_memory)
            .map(|t| {
                parse_bytes(&t)
                    .filter(|bytes| *bytes >= 64 << 20)
                    .ok_or_else(|| {
                        format!("vm-memory {t:?} is not a size of at least 64m: write 256m, 1g, …")
                    })
            })
            .transpose()?,
        default_disk_bytes: once
            .of(
                "default-disk-size",
                flags.default_disk_size,
                file.default_disk_size,
            )
            .map(|t| {
                parse_bytes(&t).ok_or(format!(
                    "default-disk-size {t:?} is not a size: write 512m, 20g, …"
                ))
            })
            .transpose()?,
        log_driver: once
            .of("log-driver", flags.log_driver, file.log_driver)
            .unwrap_or_else(|| "json-file".into()),
        log_opts: once
            .of(
                "log-opts",
                (!flag_log_opts.is_empty()).then_some(flag_log_opts),
                file.log_opts,
            )
            .unwrap_or_default(),
        insecure_registries: once.list(
            "insecure-registries",
            flags.insecure_registries,
            file.insecure_registries,
        ),
        registry_mirrors: once.list(
            "registry-mirrors",
            flags.registry_mirrors,
            file.registry_mirrors,
        ),
        cgroup_parent: once
            .of("cgroup-parent", flags.cgroup_parent, file.cgroup_parent)
            .filter(|c| !c.is_empty()),
        init: once.switch("init", flags.init, file.init),
        live_restore: once
            .of("live-restore", flags.live_restore, file.live_restore)
            .unwrap_or(true),
        shutdown_timeout: match shutdown_timeout {
            negative if negative < 0 => Duration::MAX,
            seconds => Duration::from_secs(seconds.unsigned_abs()),
        },
    };
    if !once.twice.is_empty() {
        return Err(format!(
            "given both as a flag and in the configuration file: {}. Keep one of the two",
            once.twice.join(", ")
        ));
    }
    let unprotected = !settings.tls.as_ref().is_some_and(|t| t.verify);
    if let Some(Host::Tcp(address)) = settings.hosts.iter().find(|h| matches!(h, Host::Tcp(_)))
        && unprotected
        && !settings.insecure_tcp
    {
        return Err(format!(
            "refusing to listen on tcp://{address} without client certificates: whoever reaches it would be root on this host. \
             Use --tlsverify with --tlscacert, --tlscert and --tlskey, or, on a network where nobody else is, \
             --insecure-tcp-without-client-certificates"
        ));
    }
    Ok(settings)
}

fn resolve_tls(tls: bool, verify: bool, files: [Option<PathBuf>; 3]) -> Option<TlsSettings> {
    if !tls && !verify {
        return None;
    }
    let home = std::env::var_os("DOCKER_CERT_PATH")
        .map_or_else(|| PathBuf::from("/etc/caisson/tls"), PathBuf::from);
    let [ca, cert, key] = files;
    Some(TlsSettings {
        verify,
        ca: ca.unwrap_or_else(|| home.join("ca.pem")),
        cert: cert.unwrap_or_else(|| home.join("cert.pem")),
        key: key.unwrap_or_else(|| home.join("key.pem")),
    })
}

fn parse_hosts(texts: &[String], tls: bool) -> Result<Vec<Host>, String> {
    if texts.is_empty() {
        return Ok(vec![Host::Unix("/run/caisson.sock".into())]);
    }
    texts
        .iter()
        .map(|text| parse_host(text.trim(), tls))
        .collect()
}

/// `unix://PATH`, `tcp://[ADDRESS][:PORT]`, `fd://[NAME]`.
pub fn parse_host(text: &str, tls: bool) -> Result<Host, String> {
    if let Some(path) = text.strip_prefix("unix://") {
        return match path {
            "" => Ok(Host::Unix("/run/caisson.sock".into())),
            path if path.starts_with('/') => Ok(Host::Unix(path.into())),
            _ => Err(format!(
                "host {text:?}: the path of a socket must be absolute"
            )),
        };
    }
    if let Some(rest) = text.strip_prefix("fd://") {
        return Ok(Host::Fd(
            (!rest.is_empty() && rest != "*").then(|| rest.to_owned()),
        ));
    }
    if let Some(rest) = text.strip_prefix("tcp://") {
        let rest = rest.trim_end_matches('/');
        let default_port = if tls { 2376 } else { 2375 };
        let has_port = rest
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok() && !port.is_empty());
        return match rest {
            "" => Ok(Host::Tcp(format!("127.0.0.1:{default_port}"))),
            r if r.starts_with(':') && has_port => Ok(Host::Tcp(format!("127.0.0.1{r}"))),
            r if has_port && (!r.contains("::") || r.contains("]:")) => Ok(Host::Tcp(r.to_owned())),
            r if r.contains('/') || r.ends_with(':') => {
                Err(format!("host {text:?} is not tcp://ADDRESS:PORT"))
            }
            r => Ok(Host::Tcp(format!("{r}:{default_port}"))),
        };
    }
    Err(format!(
        "host {text:?} is not understood: use unix://PATH, tcp://ADDRESS:PORT or fd://"
    ))
}

fn parse_level(text: &str) -> Result<Level, String> {
    match text {
        "debug" | "trace" => Ok(Level::Debug),
        "info" => Ok(Level::Info),
        "warn" | "warning" => Ok(Level::Warn),
        "error" | "fatal" | "panic" => Ok(Level::Error),
        other => Err(format!(
            "log level {other:?} is not known: use debug, info, warn, error or fatal"
        )),
    }
}

/// `NAME=SOFT[:HARD]`.
fn parse_ulimit(text: &str) -> Result<(String, i64, i64), String> {
    let wrong = || format!("default-ulimit {text:?} is not NAME=SOFT[:HARD]");
    let (name, limits) = text.split_once('=').ok_or_else(wrong)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let soft: i64 = soft.parse().map_err(|_| wrong())?;
    let hard: i64 = hard.parse().map_err(|_| wrong())?;
    if name.is_empty() || (hard != -1 && soft > hard) {
        return Err(wrong());
    }
    Ok((name.to_owned(), soft, hard))
}

fn parse_pairs(flag: &str, texts: &[String]) -> Result<BTreeMap<String, String>, String> {
    let pair = |text: &String| {
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| format!("{flag} {text:?} is not KEY=VALUE"))?;
        Ok((key.to_owned(), value.to_owned()))
    };
    texts.iter().map(pair).collect()
}

fn absolute(path: PathBuf) -> Result<PathBuf, String> {
    std::path::absolute(&path).map_err(|e| format!("cannot make {} absolute: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn settings(args: &[&str], file: &str) -> Result<Settings, String> {
        let flags = Flags::try_parse_from(std::iter::once(&"caisson daemon").chain(args))
            .map_err(|e| e.to_string())?;
        resolve(
            flags,
            parse_config_file(file.as_bytes()).map_err(|e| e.to_string())?,
        )
    }

    #[test]
    fn defaults() {
        let s = settings(&[], "").expect("valid");
        assert_eq!(s.hosts, [Host::Unix("/run/caisson.sock".into())]);
        assert_eq!(s.data_root, Path::new("/var/lib/caisson"));
        assert_eq!(s.pidfile, Path::new("/run/caisson/caisson.pid"));
        assert_eq!(s.default_isolation, Isolation::Container);
        assert!(s.live_restore);
    }

    #[test]
    fn hosts() {
        for (text, tls, expected) in [
            ("unix:///x.sock", false, Host::Unix("/x.sock".into())),
            ("tcp://", false, Host::Tcp("127.0.0.1:2375".into())),
            ("tcp://:99", false, Host::Tcp("127.0.0.1:99".into())),
            ("tcp://0.0.0.0", true, Host::Tcp("0.0.0.0:2376".into())),
            ("tcp://[::1]:5", true, Host::Tcp("[::1]:5".into())),
            ("tcp://[::1]", true, Host::Tcp("[::1]:2376".into())),
            ("fd://", false, Host::Fd(None)),
            ("fd://api", false, Host::Fd(Some("api".into()))),
        ] {
            assert_eq!(parse_host(text, tls), Ok(expected), "{text}");
        }
        for text in [
            "unix://relative",
            "http://x",
            "/run/x.sock",
            "tcp://a/b",
            "tcp://a:",
        ] {
            assert!(parse_host(text, false).is_err(), "{text}");
        }
    }

    #[test]
    fn tcp_needs_client_certificates() {
        for args in [
            &["-H", "tcp://0.0.0.0:1"][..],
            &["-H", "tcp://0.0.0.0:1", "--tls"],
        ] {
            assert!(
                settings(args, "")
                    .expect_err("refused")
                    .contains("root on this host")
            );
        }
        assert!(
            settings(&["-H", "tcp://:1", "--tlsverify"], "")
                .expect("fine")
                .tls
                .expect("on")
                .verify
        );
        assert!(
            settings(
                &[
                    "-H",
                    "tcp://:1",
                    "--insecure-tcp-without-client-certificates"
                ],
                ""
            )
            .is_ok()
        );
    }

    #[test]
    fn file_and_flags_do_not_overlap() {
        let file = r#"{"data-root":"/a","default-ulimits":{"nofile":{"Name":"nofile","Hard":9,"Soft":8}},"log-opts":{"max-size":"1m"}}"#;
        let s = settings(&["--exec-root", "/b"], file).expect("valid");
        assert_eq!(
            (s.data_root.as_path(), s.exec_root.as_path()),
            (Path::new("/a"), Path::new("/b"))
        );
        assert_eq!(s.default_ulimits, [("nofile".to_owned(), 8, 9)]);
        assert!(
            settings(&["--data-root", "/c"], file)
                .expect_err("twice")
                .contains("data-root")
        );
        assert!(
            settings(&[], r#"{"datta-root":"/a"}"#)
                .expect_err("typo")
                .contains("datta-root")
        );
    }

    #[test]
    fn isolations() {
        assert_eq!(
            settings(&["--require-isolation=vm"], "")
                .expect("valid")
                .default_isolation,
            Isolation::Vm
        );
        assert!(
            settings(
                &["--require-isolation=vm", "--default-isolation=container"],
                ""
            )
            .is_err()
        );
        assert!(settings(&["--default-isolation=hyperv"], "").is_err());
    }

    #[test]
    fn small_values() {
        assert_eq!(parse_ulimit("nofile=1:2"), Ok(("nofile".into(), 1, 2)));
        assert_eq!(parse_ulimit("core=-1"), Ok(("core".into(), -1, -1)));
        assert!(
            parse_ulimit("nofile=3:2").is_err()
                && parse_ulimit("nofile").is_err()
                && parse_ulimit("=1").is_err()
        );
        assert!(
            !settings(&["--live-restore=false"], "")
                .expect("valid")
                .live_restore
        );
        assert!(
            settings(&["--live-restore"], "")
                .expect("valid")
                .live_restore
        );
    }
}
