//! one invocation's surroundings: global flags, configuration, which daemon is meant, and the terminal it talks on.

use std::cell::OnceCell;
use std::path::PathBuf;

use super::command::Failure;
use super::config::Config;
use super::contexts;
use super::flags::{Flag, Kind, Parsed, any, flag};
use crate::client::Client;
use crate::client::endpoint::{self, Endpoint, TlsFiles};

/// Flags before the command.
pub const GLOBAL: &[Flag] = &[
    flag(
        "",
        "config",
        Kind::Text,
        "Location of client config files (default \"~/.docker\")",
    ),
    flag(
        "c",
        "context",
        Kind::Text,
        "Name of the context to use to connect to the daemon (overrides DOCKER_HOST env var and default context set with \"caisson context use\")",
    ),
    flag("D", "debug", Kind::Bool, "Enable debug mode"),
    flag(
        "H",
        "host",
        Kind::List("list", any),
        "Daemon socket to connect to",
    ),
    flag(
        "l",
        "log-level",
        Kind::Text,
        "Set the logging level (\"debug\", \"info\", \"warn\", \"error\", \"fatal\") (default \"info\")",
    ),
    flag("", "tls", Kind::Bool, "Use TLS; implied by --tlsverify"),
    flag(
        "",
        "tlscacert",
        Kind::Text,
        "Trust certs signed only by this CA (default \"~/.docker/ca.pem\")",
    ),
    flag(
        "",
        "tlscert",
        Kind::Text,
        "Path to TLS certificate file (default \"~/.docker/cert.pem\")",
    ),
    flag(
        "",
        "tlskey",
        Kind::Text,
        "Path to TLS key file (default \"~/.docker/key.pem\")",
    ),
    flag("", "tlsverify", Kind::Bool, "Use TLS and verify the remote"),
    flag(
        "v",
        "version",
        Kind::Bool,
        "Print version information and quit",
    ),
];

/// One invocation.
pub struct Session {
    /// Global flags.
    pub global: Parsed,
    /// The user's configuration.
    pub config: Config,
    client: OnceCell<Client>,
}

/// Where the choice of a daemon came from; decides precedence and whether one may be started.
#[derive(Debug, PartialEq, Eq)]
pub enum Choice {
    /// An address: `-H` or an environment variable.
    Host(String),
    /// A named context.
    Context(String),
    /// Nothing was said: the local default.
    Default,
}

/// The inputs of that choice.
#[derive(Default)]
pub struct Wishes<'a> {
    /// `-H`, all of them.
    pub host_flags: &'a [String],
    /// `--context`.
    pub context_flag: Option<&'a str>,
    /// CAISSON_HOST.
    pub caisson_host: Option<String>,
    /// DOCKER_HOST.
    pub docker_host: Option<String>,
    /// DOCKER_CONTEXT.
    pub docker_context: Option<String>,
    /// `currentContext` of the configuration file.
    pub current_context: Option<String>,
}

/// Docker's precedence: flags, then DOCKER_HOST, DOCKER_CONTEXT, the configured context, the default.
pub fn choose(wishes: &Wishes) -> Result<Choice, String> {
    let named = |name: &str| {
        if name == "default" {
            Choice::Default
        } else {
            Choice::Context(name.to_owned())
        }
    };
    let set = |value: &Option<String>| value.clone().filter(|v| !v.is_empty());
    match (wishes.host_flags, wishes.context_flag) {
        ([_, ..], Some(_)) => {
            return Err("conflicting options: cannot specify both --host and --context".to_owned());
        }
        ([host], None) => return Ok(Choice::Host(host.clone())),
        ([_, _, ..], None) => return Err("Specify only one -H".to_owned()),
        ([], Some(name)) => return Ok(named(name)),
        ([], None) => {}
    }
    if let Some(host) = set(&wishes.caisson_host).or_else(|| set(&wishes.docker_host)) {
        return Ok(Choice::Host(host));
    }
    if let Some(name) = set(&wishes.docker_context).or_else(|| set(&wishes.current_context)) {
        return Ok(named(&name));
    }
    Ok(Choice::Default)
}

impl Session {
    /// Reads the configuration; connects to nothing yet.
    pub fn new(global: Parsed) -> Self {
        let config = Config::load(global.last("config").map(PathBuf::from));
        Session {
            global,
            config,
            client: OnceCell::new(),
        }
    }

    /// The choice of a daemon.
    pub fn choice(&self) -> Result<Choice, String> {
        let env = |name: &str| std::env::var(name).ok();
        choose(&Wishes {
            host_flags: self.global.list("host"),
            context_flag: self.global.last("context").filter(|c| !c.is_empty()),
            caisson_host: env("CAISSON_HOST"),
            docker_host: env("DOCKER_HOST"),
            docker_context: env("DOCKER_CONTEXT"),
            current_context: self.config.current_context(),
        })
    }

    /// The name of the context in use.
    pub fn context_name(&self) -> String {
        match self.choice() {
            Ok(Choice::Context(name)) => name,
            _ => "default".to_owned(),
        }
    }

    /// The client, made on first use.
    pub fn client(&self) -> Result<&Client, Failure> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let endpoint = self.endpoint().map_err(|e| {
            Failure::new(format!(
                "Failed to initialize: unable to resolve caisson endpoint: {e}"
            ))
        })?;
        let version = std::env::var("DOCKER_API_VERSION")
            .ok()
            .filter(|v| !v.is_empty());
        let client = Client::new(endpoint, version.as_deref(), self.config.http_headers());
        Ok(self.client.get_or_init(|| client))
    }

    fn endpoint(&self) -> Result<Endpoint, String> {
        match self.choice()? {
            Choice::Default => Ok(Endpoint::local_default()),
            Choice::Host(host) => {
                let tls = self.tls_files();
                Endpoint::new(endpoint::parse(&host)?, tls.as_ref())
            }
            Choice::Context(name) => {
                let (host, tls) = contexts::resolve(&self.config, &name)?;
                Endpoint::new(endpoint::parse(&host)?, tls.as_ref())
            }
        }
    }

    fn tls_files(&self) -> Option<TlsFiles> {
        let verify = self.global.flag("tlsverify")
            || std::env::var("DOCKER_TLS_VERIFY").is_ok_and(|v| !v.is_empty());
        let any_file = ["tlscacert", "tlscert", "tlskey"]
            .iter()
            .any(|f| self.global.given(f));
        let wanted = verify
            || self.global.flag("tls")
            || any_file
            || std::env::var("DOCKER_TLS").is_ok_and(|v| !v.is_empty());
        if !wanted {
            return None;
        }
        let directory = std::env::var_os("DOCKER_CERT_PATH")
            .map_or_else(|| self.config.directory().to_owned(), PathBuf::from);
        let pick = |flag: &str, name: &str| match self.global.last(flag) {
            Some(path) => Some(PathBuf::from(path)),
            None => Some(directory.join(name)).filter(|p| p.exists()),
        };
        Some(TlsFiles {
            ca: pick("tlscacert", "ca.pem"),
            cert: pick("tlscert", "cert.pem"),
            key: pick("tlskey", "key.pem"),
            skip_verify: !verify,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_explicit_wish_wins() {
        let host = |h: &str| Choice::Host(h.into());
        let flags = ["tcp://a".to_owned()];
        let everything = || Wishes {
            host_flags: &[],
            context_flag: None,
            caisson_host: Some("tcp://c".into()),
            docker_host: Some("tcp://d".into()),
            docker_context: Some("ctx".into()),
            current_context: Some("cur".into()),
        };
        assert_eq!(
            choose(&Wishes {
                host_flags: &flags,
                ..everything()
            }),
            Ok(host("tcp://a"))
        );
        assert_eq!(
            choose(&Wishes {
                context_flag: Some("x"),
                ..everything()
            }),
            Ok(Choice::Context("x".into()))
        );
        assert_eq!(choose(&everything()), Ok(host("tcp://c")));
        assert_eq!(
            choose(&Wishes {
                caisson_host: None,
                ..everything()
            }),
            Ok(host("tcp://d"))
        );
        assert_eq!(
            choose(&Wishes {
                caisson_host: None,
                docker_host: Some(String::new()),
                ..everything()
            }),
            Ok(Choice::Context("ctx".into()))
        );
        assert_eq!(
            choose(&Wishes {
                current_context: Some("default".into()),
                ..Wishes::default()
            }),
            Ok(Choice::Default)
        );
        assert!(
            choose(&Wishes {
                host_flags: &flags,
                context_flag: Some("x"),
                ..Wishes::default()
            })
            .is_err()
        );
    }
}
