//! `~/.docker/config.json`: read as Docker reads it, changed without losing what other programs keep there, and the credentials in it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::{Map, Value, json};

/// What Docker Hub is called in credential stores.
pub const HUB: &str = "https://index.docker.io/v1/";

/// The configuration directory and what its file says.
pub struct Config {
    directory: PathBuf,
    file: Map<String, Value>,
}

/// Credentials for one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// User name; `<token>` marks an identity token.
    pub username: String,
    /// Password or token.
    pub secret: String,
}

impl Config {
    /// Loads from `directory`, DOCKER_CONFIG or `~/.docker`; a broken file is reported on standard error and treated as empty.
    pub fn load(directory: Option<PathBuf>) -> Self {
        let directory = directory
            .or_else(|| {
                std::env::var_os("DOCKER_CONFIG")
                    .filter(|v| !v.is_empty())
                    .map(PathBuf::from)
            })
            .unwrap_or_else(|| {
                let home = std::env::var_os("HOME")
                    .filter(|h| !h.is_empty())
                    .map(PathBuf::from);
                home.unwrap_or_else(|| PathBuf::from("/root"))
                    .join(".docker")
            });
        let path = directory.join("config.json");
        let file = match std::fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(Value::Object(map)) => map,
                _ => {
                    eprintln!(
                        "WARNING: Error loading config file: {}: not a JSON object",
                        path.display()
                    );
                    Map::new()
                }
            },
            Err(_) => Map::new(),
        };
        Config { directory, file }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn text(&self, name: &str) -> Option<String> {
        self.file
            .get(name)
            .and_then(Value::as_str)
            .filter(|v| !v.is_empty())
            .map(str::to_owned)
    }

    /// `detachKeys`.
    pub fn detach_keys(&self) -> Option<String> {
        self.text("detachKeys")
    }

    /// A command's default format, e.g. `psFormat`.
    pub fn format(&self, name: &str) -> Option<String> {
        self.text(name)
    }

    /// `currentContext`.
    pub fn current_context(&self) -> Option<String> {
        self.text("currentContext")
    }

    /// Headers to add to each request.
    pub fn http_headers(&self) -> Vec<(String, String)> {
        let Some(Value::Object(headers)) = self.file.get("HttpHeaders") else {
            return Vec::new();
        };
        headers
            .iter()
            .filter_map(|(k, v)| v.as_str().map(|v| (k.clone(), v.to_owned())))
            .collect()
    }

    /// `proxies.default` as environment variables for new containers, upper and lower case.
    pub fn proxy_environment(&self) -> Vec<(String, String)> {
        let Some(proxies) = self.file.get("proxies").and_then(|p| p.get("default")) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for (key, name) in [
            ("httpProxy", "HTTP_PROXY"),
            ("httpsProxy", "HTTPS_PROXY"),
            ("noProxy", "NO_PROXY"),
            ("ftpProxy", "FTP_PROXY"),
            ("allProxy", "ALL_PROXY"),
        ] {
            if let Some(value) = proxies.get(key).and_then(Value::as_str) {
                found.push((name.to_owned(), value.to_owned()));
                found.push((name.to_lowercase(), value.to_owned()));
            }
        }
        found
    }

    /// Sets (or with `None` removes) a top-level entry and saves.
    pub fn save_entry(&self, name: &str, value: Option<Value>) -> Result<(), String> {
        self.save_with(|file| match value {
            Some(value) => {
                file.insert(name.to_owned(), value);
            }
            None => {
                file.remove(name);
            }
        })
    }

    /// Reads the file anew, changes it, replaces it atomically with mode 0600.
    fn save_with(&self, change: impl FnOnce(&mut Map<String, Value>)) -> Result<(), String> {
        let path = self.directory.join("config.json");
        let failed = |e: std::io::Error| format!("could not save {}: {e}", path.display());
        std::fs::create_dir_all(&self.directory).map_err(failed)?;
        let target = std::fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
        let mut file = match std::fs::read(&target) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| format!("could not read {}: {e}", path.display()))?,
            Err(_) => Map::new(),
        };
        change(&mut file);
        let mut formatted = Vec::new();
        let mut serializer = serde_json::Serializer::with_formatter(
            &mut formatted,
            serde_json::ser::PrettyFormatter::with_indent(b"\t"),
        );
        serde::Serialize::serialize(&file, &mut serializer).map_err(|e| e.to_string())?;
        let temporary = target.with_file_name(format!("config.json{}", std::process::id()));
        let write = || -> std::io::Result<()> {
            use std::os::unix::fs::OpenOptionsExt;
            let mut out = std::fs::OpenOptions::new()
                .create_new(true)
                .write(true)
                .mode(0o600)
                .open(&temporary)?;
            out.write_all(&formatted)?;
            out.sync_all()?;
            std::fs::rename(&temporary, &target)
        };
        write().map_err(|e| {
            // The temporary file may not exist.
            let _ = std::fs::remove_file(&temporary);
            failed(e)
        })
    }

    fn helper_for(&self, registry: &str) -> Option<String> {
        let helpers = self.file.get("credHelpers").and_then(Value::as_object);
        helpers
            .and_then(|h| h.get(registry).or_else(|| h.get(&host_of(registry))))
            .and_then(Value::as_str)
            .map(str::to_owned)
            .or_else(|| self.text("credsStore"))
    }

    /// The credentials kept for a registry, from a helper or the file.
    pub fn credentials(&self, registry: &str) -> Result<Option<Credentials>, String> {
        if let Some(helper) = self.helper_for(registry) {
            return helper_get(&helper, registry);
        }
        let Some(auths) = self.file.get("auths").and_then(Value::as_object) else {
            return Ok(None);
        };
        let entry = auths.get(registry).or_else(|| {
            auths
                .iter()
                .find(|(name, _)| host_of(name) == host_of(registry))
                .map(|(_, v)| v)
        });
        Ok(entry.and_then(decode_entry))
    }

    /// Keeps credentials; says whether they went to a helper.
    pub fn store_credentials(
        &self,
        registry: &str,
        credentials: &Credentials,
    ) -> Result<bool, String> {
        if let Some(helper) = self.helper_for(registry) {
            let request = json!({"ServerURL": registry, "Username": credentials.username, "Secret": credentials.secret});
            call_helper(&helper, "store", &request.to_string())?;
            return Ok(true);
        }
        let entry = if credentials.username == "<token>" {
            json!({"auth": STANDARD.encode(format!("{}:", credentials.username)), "identitytoken": credentials.secret})
        } else {
            json!({"auth": STANDARD.encode(format!("{}:{}", credentials.username, credentials.secret))})
        };
        self.save_with(|file| {
            if let Value::Object(auths) = file.entry("auths").or_insert_with(|| json!({})) {
                auths.insert(registry.to_owned(), entry);
            }
        })?;
        Ok(false)
    }

    /// Forgets a registry's credentials; false when there were none.
    pub fn erase_credentials(&self, registry: &str) -> Result<bool, String> {
        let had = self.credentials(registry)?.is_some();
        if let Some(helper) = self.helper_for(registry) {
            if had {
                call_helper(&helper, "erase", registry)?;
            }
            return Ok(had);
        }
        if had {
            self.save_with(|file| {
                if let Some(Value::Object(auths)) = file.get_mut("auths") {
                    auths.retain(|name, _| name != registry && host_of(name) != host_of(registry));
                }
            })?;
        }
        Ok(had)
    }

    /// The value of the `X-Registry-Auth` header for an image reference.
    pub fn registry_auth_header(&self, reference: &str) -> Result<String, String> {
        let registry = registry_of(reference);
        let value = match self.credentials(&registry)? {
            Some(c) => auth_config(&registry, &c),
            None => json!({}),
        };
        Ok(URL_SAFE.encode(value.to_string()))
    }
}

/// Docker's AuthConfig.
pub fn auth_config(registry: &str, credentials: &Credentials) -> Value {
    if credentials.username == "<token>" {
        json!({"identitytoken": credentials.secret, "serveraddress": registry})
    } else {
        json!({"username": credentials.username, "password": credentials.secret, "serveraddress": registry})
    }
}

/// The registry an image reference names, as credential stores call it.
pub fn registry_of(reference: &str) -> String {
    match reference.split_once('/') {
        Some((first, _)) if first.contains('.') || first.contains(':') || first == "localhost" => {
            if first == "docker.io" || first == "index.docker.io" {
                HUB.to_owned()
            } else {
                first.to_owned()
            }
        }
        _ => HUB.to_owned(),
    }
}

/// `https://host/v1/` and `host` are the same registry.
fn host_of(address: &str) -> String {
    let rest = address
        .strip_prefix("https://")
        .or_else(|| address.strip_prefix("http://"))
        .unwrap_or(address);
    rest.split('/').next().unwrap_or(rest).to_owned()
}

fn decode_entry(entry: &Value) -> Option<Credentials> {
    let text = |name: &str| {
        entry
            .get(name)
            .and_then(Value::as_str)
            .filter(|v| !v.is_empty())
    };
    if let Some(token) = text("identitytoken") {
        return Some(Credentials {
            username: "<token>".to_owned(),
            secret: token.to_owned(),
        });
    }
    if let (Some(username), Some(password)) = (text("username"), text("password")) {
        return Some(Credentials {
            username: username.to_owned(),
            secret: password.to_owned(),
        });
    }
    let decoded = STANDARD.decode(text("auth")?).ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    let (username, secret) = decoded.split_once(':')?;
    Some(Credentials {
        username: username.to_owned(),
        secret: secret.trim_end_matches('\0').to_owned(),
    })
}

fn call_helper(helper: &str, action: &str, input: &str) -> Result<String, String> {
    let program = format!("docker-credential-{helper}");
    let failed =
        |e: std::io::Error| format!("error getting credentials - could not run {program}: {e}");
    let mut child = Command::new(&program)
        .arg(action)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(failed)?;
    }
    let output = child.wait_with_output().map_err(failed)?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() {
        Ok(text)
    } else {
        Err(format!(
            "error getting credentials - {program} {action}: {text}"
        ))
    }
}

fn helper_get(helper: &str, registry: &str) -> Result<Option<Credentials>, String> {
    match call_helper(helper, "get", registry) {
        Ok(text) => {
            let value: Value = serde_json::from_str(&text)
                .map_err(|e| format!("docker-credential-{helper} answered nonsense: {e}"))?;
            let field = |name: &str| {
                value
                    .get(name)
                    .and_then(Value::as_str)
                    .unwrap_or("")
                    .to_owned()
            };
            Ok(Some(Credentials {
                username: field("Username"),
                secret: field("Secret"),
            }))
        }
        Err(message) if message.contains("credentials not found") => Ok(None),
        Err(message) => Err(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn login_survives_a_round_trip_and_keeps_foreign_entries() {
        let directory = tempfile::tempdir().expect("temporary directory");
        std::fs::write(
            directory.path().join("config.json"),
            r#"{"foreign":[1],"auths":{"other":{"auth":"YTpi"}}}"#,
        )
        .expect("written");
        let load = || Config::load(Some(directory.path().to_owned()));
        let credentials = Credentials {
            username: "me".into(),
            secret: "p:w".into(),
        };
        assert_eq!(
            load().store_credentials("r.example:5000", &credentials),
            Ok(false)
        );
        assert_eq!(load().credentials("r.example:5000"), Ok(Some(credentials)));
        assert_eq!(
            load().credentials("other"),
            Ok(Some(Credentials {
                username: "a".into(),
                secret: "b".into()
            }))
        );
        assert_eq!(load().erase_credentials("r.example:5000"), Ok(true));
        assert_eq!(load().erase_credentials("r.example:5000"), Ok(false));
        let text = std::fs::read_to_string(directory.path().join("config.json")).expect("readable");
        assert!(text.contains("foreign") && text.contains("other"), "{text}");
    }

    #[test]
    fn references_name_their_registry() {
        for (reference, registry) in [
            ("busybox", HUB),
            ("library/busybox:1", HUB),
            ("docker.io/x", HUB),
            ("localhost/x", "localhost"),
            ("localhost:5000/x", "localhost:5000"),
            ("ghcr.io/a/b@sha256:1", "ghcr.io"),
        ] {
            assert_eq!(registry_of(reference), registry);
        }
    }
}
