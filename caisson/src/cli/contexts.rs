//! named daemons: Docker's context store, read and written so that both programs share it.
//!
//! ```text
//! ~/.docker/contexts/meta/SHA256(name)/meta.json      {"Name":…,"Metadata":{…},"Endpoints":{"docker":{"Host":…}}}
//! ~/.docker/contexts/tls/SHA256(name)/docker/{ca,cert,key}.pem
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::command::{COMMAND, Command, Failure, Operands, Outcome, go_io_error};
use super::config::Config;
use super::container::ps::ellipsis;
use super::flags::{FORMAT_OBJECT, FORMAT_TABLE, Flag, Kind, Parsed, any, flag};
use super::inspect;
use super::output;
use super::session::{Choice, Session};
use super::table::{Layout, Row};
use crate::client::endpoint::{self, TlsFiles};

const CREATE: &[Flag] = &[
    flag("", "description", Kind::Text, "Description of the context"),
    flag(
        "",
        "docker",
        Kind::List("stringToString", any),
        "Set the endpoint: host=…,ca=…,cert=…,key=…,skip-tls-verify=…",
    ),
    flag(
        "",
        "from",
        Kind::Text,
        "Create context from a named context",
    ),
];
const UPDATE: &[Flag] = &[
    flag("", "description", Kind::Text, "Description of the context"),
    flag(
        "",
        "docker",
        Kind::List("stringToString", any),
        "Set the endpoint: host=…,ca=…,cert=…,key=…,skip-tls-verify=…",
    ),
];
const LS: &[Flag] = &[
    flag("", "format", Kind::Text, FORMAT_TABLE),
    flag("q", "quiet", Kind::Bool, "Only show context names"),
];
const INSPECT: &[Flag] = &[flag("f", "format", Kind::Text, FORMAT_OBJECT)];
const RM: &[Flag] = &[flag(
    "f",
    "force",
    Kind::Bool,
    "Force the removal of a context in use",
)];

/// `context …`.
pub const COMMANDS: &[Command] = &[
    Command {
        paths: &["context create"],
        usage: "[OPTIONS] CONTEXT",
        about: "Create a context",
        examples: &[
            "context create lab --docker host=ssh://root@lab",
            "context create far --docker host=tcp://far:2376,ca=ca.pem,cert=cert.pem,key=key.pem",
        ],
        flags: &[CREATE],
        operands: Operands::Exactly(1),
        run: |s, p| Box::pin(async move { create(&s, &p) }),
        ..COMMAND
    },
    Command {
        paths: &["context update"],
        usage: "[OPTIONS] CONTEXT",
        about: "Update a context",
        examples: &["context update lab --description 'the lab machine'"],
        flags: &[UPDATE],
        operands: Operands::Exactly(1),
        run: |s, p| Box::pin(async move { update(&s, &p) }),
        ..COMMAND
    },
    Command {
        paths: &["context ls"],
        hidden_paths: &["context list"],
        usage: "[OPTIONS]",
        about: "List contexts",
        examples: &["context ls"],
        flags: &[LS],
        run: |s, p| Box::pin(async move { list(&s, &p) }),
        ..COMMAND
    },
    Command {
        paths: &["context use"],
        usage: "CONTEXT",
        about: "Set the current context",
        examples: &["context use lab", "context use default"],
        operands: Operands::Exactly(1),
        run: |s, p| Box::pin(async move { use_context(&s, &p) }),
        ..COMMAND
    },
    Command {
        paths: &["context show"],
        about: "Print the name of the current context",
        run: |s, _| Box::pin(async move { output::line(s.context_name()).map(|()| 0) }),
        ..COMMAND
    },
    Command {
        paths: &["context inspect"],
        usage: "[OPTIONS] [CONTEXT] [CONTEXT...]",
        about: "Display detailed information on one or more contexts",
        examples: &["context inspect lab -f '{{.Endpoints.docker.Host}}'"],
        flags: &[INSPECT],
        operands: Operands::Any,
        run: |s, p| Box::pin(async move { inspect_contexts(&s, &p) }),
        ..COMMAND
    },
    Command {
        paths: &["context rm"],
        hidden_paths: &["context remove"],
        usage: "CONTEXT [CONTEXT...]",
        about: "Remove one or more contexts",
        examples: &["context rm lab"],
        flags: &[RM],
        operands: Operands::AtLeast(1),
        run: |s, p| Box::pin(async move { remove(&s, &p) }),
        ..COMMAND
    },
];

fn directory_id(name: &str) -> String {
    hex_text(&Sha256::digest(name.as_bytes()))
}

fn hex_text(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn meta_path(config: &Config, name: &str) -> PathBuf {
    config
        .directory()
        .join("contexts/meta")
        .join(directory_id(name))
        .join("meta.json")
}

fn tls_directory(config: &Config, name: &str) -> PathBuf {
    config
        .directory()
        .join("contexts/tls")
        .join(directory_id(name))
        .join("docker")
}

fn valid_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("context name cannot be empty".to_owned());
    }
    if name == "default" {
        return Err("\"default\" is a reserved context name".to_owned());
    }
    let start = name
        .chars()
        .next()
        .is_some_and(|c| c.is_ascii_alphanumeric());
    if start
        && name.len() > 1
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.+-".contains(c))
    {
        return Ok(());
    }
    Err(format!(
        "context name {name:?} is invalid, names are validated against regexp \"^[a-zA-Z0-9][a-zA-Z0-9_.+-]+$\""
    ))
}

fn load(config: &Config, name: &str) -> Result<Value, String> {
    let path = meta_path(config, name);
    let bytes = std::fs::read(&path).map_err(|e| {
        format!(
            "context {name:?}: context not found: open {}: {}",
            path.display(),
            go_io_error(&e)
        )
    })?;
    serde_json::from_slice(&bytes)
        .map_err(|e| format!("context {name:?}: {} is damaged: {e}", path.display()))
}

/// A context's address and TLS files.
pub fn resolve(config: &Config, name: &str) -> Result<(String, Option<TlsFiles>), String> {
    let meta = load(config, name)?;
    let docker = meta
        .pointer("/Endpoints/docker")
        .ok_or_else(|| format!("context {name:?} has no docker endpoint"))?;
    let host = docker
        .get("Host")
        .and_then(Value::as_str)
        .unwrap_or("")
        .to_owned();
    let skip_verify = docker
        .get("SkipTLSVerify")
        .and_then(Value::as_bool)
        .unwrap_or(false);
    let directory = tls_directory(config, name);
    let file = |n: &str| Some(directory.join(n)).filter(|p| p.exists());
    let tls = TlsFiles {
        ca: file("ca.pem"),
        cert: file("cert.pem"),
        key: file("key.pem"),
        skip_verify,
    };
    let wanted = skip_verify || tls.ca.is_some() || tls.cert.is_some() || tls.key.is_some();
    Ok((host, wanted.then_some(tls)))
}

fn all_names(config: &Config) -> Vec<String> {
    let directory = config.directory().join("contexts/meta");
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|e| std::fs::read(e.path().join("meta.json")).ok())
        .filter_map(|b| serde_json::from_slice::<Value>(&b).ok())
        .filter_map(|v| v.get("Name").and_then(Value::as_str).map(str::to_owned))
        .collect();
    names.sort();
    names
}

fn endpoint_options(parsed: &Parsed) -> BTreeMap<String, String> {
    parsed
        .list("docker")
        .iter()
        .flat_map(|t| t.split(','))
        .filter_map(|kv| kv.split_once('='))
        .map(|(k, v)| (k.trim().to_owned(), v.trim().to_owned()))
        .collect()
}

fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), String> {
    use std::io::Write;
    let failed =
        |e: std::io::Error| format!("could not write {}: {}", path.display(), go_io_error(&e));
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    let mut file = std::fs::File::create(&temporary).map_err(failed)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(failed)
}

/// Writes a context's metadata and copies its TLS files.
fn store(
    config: &Config,
    name: &str,
    meta: &Value,
    options: &BTreeMap<String, String>,
) -> Result<(), String> {
    for (option, file) in [("ca", "ca.pem"), ("cert", "cert.pem"), ("key", "key.pem")] {
        if let Some(source) = options.get(option) {
            let bytes =
                std::fs::read(source).map_err(|e| format!("open {source}: {}", go_io_error(&e)))?;
            write_atomically(&tls_directory(config, name).join(file), &bytes)?;
        }
    }
    write_atomically(&meta_path(config, name), meta.to_string().as_bytes())
}

fn endpoint_of(options: &BTreeMap<String, String>) -> Result<Value, String> {
    if let Some(unknown) = options
        .keys()
        .find(|k| !["host", "ca", "cert", "key", "skip-tls-verify", "from"].contains(&k.as_str()))
    {
        return Err(format!("unrecognized config key: {unknown}"));
    }
    let host = options.get("host").cloned().unwrap_or_default();
    endpoint::parse(&host)?;
    Ok(
        json!({"Host": host, "SkipTLSVerify": options.get("skip-tls-verify").is_some_and(|v| v == "true")}),
    )
}

fn create(session: &Session, parsed: &Parsed) -> Outcome {
    let name = &parsed.operands[0];
    valid_name(name)?;
    let config = &session.config;
    if meta_path(config, name).exists() {
        return Err(format!("context {name:?} already exists").into());
    }
    let mut options = endpoint_options(parsed);
    let from = options
        .remove("from")
        .unwrap_or_else(|| parsed.text("from").to_owned());
    // Without an endpoint of its own a context is a copy of the current one.
    let from = if from.is_empty() {
        session.context_name()
    } else {
        from
    };
    let endpoint = match (from.as_str(), options.contains_key("host")) {
        (_, true) => endpoint_of(&options)?,
        ("default", false) => json!({"Host": session.client()?.address(), "SkipTLSVerify": false}),
        (other, false) => load(config, other)?
            .pointer("/Endpoints/docker")
            .cloned()
            .unwrap_or_default(),
    };
    let mut metadata = serde_json::Map::new();
    if parsed.given("description") {
        metadata.insert("Description".to_owned(), json!(parsed.text("description")));
    }
    let meta = json!({"Name": name, "Metadata": metadata, "Endpoints": {"docker": endpoint}});
    store(config, name, &meta, &options)?;
    output::line(name)?;
    output::complain(format!("Successfully created context {name:?}"));
    Ok(0)
}

fn update(session: &Session, parsed: &Parsed) -> Outcome {
    let name = &parsed.operands[0];
    valid_name(name)?;
    let mut meta = load(&session.config, name)?;
    if parsed.given("description") {
        meta["Metadata"]["Description"] = json!(parsed.text("description"));
    }
    let options = endpoint_options(parsed);
    if !options.is_empty() {
        meta["Endpoints"]["docker"] = endpoint_of(&options)?;
    }
    store(&session.config, name, &meta, &options)?;
    output::line(name)?;
    output::complain(format!("Successfully updated context {name:?}"));
    Ok(0)
}

fn warn_of_override(wanted: &str) {
    if let Some(name) = ["CAISSON_HOST", "DOCKER_HOST"]
        .into_iter()
        .find(|n| std::env::var(n).is_ok_and(|v| !v.is_empty()))
    {
        output::complain(format!(
            "Warning: {name} environment variable overrides the active context. To use {wanted}, either set the global --context flag, or unset {name} environment variable."
        ));
    }
}

fn list(session: &Session, parsed: &Parsed) -> Outcome {
    let current = session.context_name();
    let default_address = match session.choice()? {
        Choice::Host(host) => host,
        _ => format!("unix://{}", endpoint::DEFAULT_SOCKET),
    };
    let mut found = vec![(
        "default".to_owned(),
        "Current DOCKER_HOST based configuration".to_owned(),
        default_address,
        String::new(),
    )];
    for name in all_names(&session.config) {
        match load(&session.config, &name) {
            Ok(meta) => {
                let text = |pointer: &str| {
                    meta.pointer(pointer)
                        .and_then(Value::as_str)
                        .unwrap_or("")
                        .to_owned()
                };
                found.push((
                    name,
                    text("/Metadata/Description"),
                    text("/Endpoints/docker/Host"),
                    String::new(),
                ));
            }
            Err(e) => found.push((name, String::new(), String::new(), e)),
        }
    }
    found.sort();
    if !found.iter().any(|f| f.0 == current) {
        found.push((
            current.clone(),
            String::new(),
            String::new(),
            "context not found".to_owned(),
        ));
    }
    let format = parsed.text("format");
    let as_table = !parsed.flag("quiet") && (format.is_empty() || format.starts_with("table"));
    let rows: Vec<Row> = found
        .into_iter()
        .map(|(name, description, address, error)| {
            let is_current = name == current;
            let shown = if is_current && as_table {
                format!("{name} *")
            } else {
                name
            };
            Row {
                fields: vec![
                    ("Current", is_current.to_string()),
                    ("Name", shown),
                    ("Description", ellipsis(&description, 60)),
                    ("DockerEndpoint", address),
                    ("Error", ellipsis(&error, 45)),
                ],
                labels: None,
            }
        })
        .collect();
    let layout = Layout {
        type_name: "*formatter.clientContextContext",
        table: "{{.Name}}\t{{.Description}}\t{{.DockerEndpoint}}\t{{.Error}}".to_owned(),
        quiet: "{{.Name}}",
        headers: &[
            ("Name", "NAME"),
            ("Description", "DESCRIPTION"),
            ("DockerEndpoint", "DOCKER ENDPOINT"),
            ("Error", "ERROR"),
            ("Current", "CURRENT"),
        ],
        raw: "",
    };
    output::print(
        layout
            .render(format, parsed.flag("quiet"), &rows)
            .map_err(Failure::new)?,
    )?;
    warn_of_override("a context");
    Ok(0)
}

fn use_context(session: &Session, parsed: &Parsed) -> Outcome {
    let name = &parsed.operands[0];
    if name == "default" {
        session.config.save_entry("currentContext", None)?;
    } else {
        valid_name(name)?;
        load(&session.config, name)?;
        session
            .config
            .save_entry("currentContext", Some(json!(name)))?;
    }
    output::line(name)?;
    output::complain(format!("Current context is now {name:?}"));
    if name != "default" {
        warn_of_override(&format!("{name:?}"));
    }
    Ok(0)
}

fn inspect_contexts(session: &Session, parsed: &Parsed) -> Outcome {
    let current = [session.context_name()];
    let names = if parsed.operands.is_empty() {
        &current[..]
    } else {
        &parsed.operands[..]
    };
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    for name in names {
        if name == "default" {
            let address = match session.choice()? {
                Choice::Host(host) => host,
                _ => format!("unix://{}", endpoint::DEFAULT_SOCKET),
            };
            found.push(json!({
                "Name": "default",
                "Metadata": {},
                "Endpoints": {"docker": {"Host": address, "SkipTLSVerify": false}},
                "TLSMaterial": {},
                "Storage": {"MetadataPath": "<IN MEMORY>", "TLSPath": "<IN MEMORY>"},
            }));
            continue;
        }
        match load(&session.config, name) {
            Ok(mut meta) => {
                let tls = tls_directory(&session.config, name);
                let mut files: Vec<String> = std::fs::read_dir(&tls)
                    .map(|d| {
                        d.flatten()
                            .map(|e| e.file_name().to_string_lossy().into_owned())
                            .collect()
                    })
                    .unwrap_or_default();
                files.sort();
                meta["TLSMaterial"] = if files.is_empty() {
                    json!({})
                } else {
                    json!({"docker": files})
                };
                let of = |p: PathBuf, up: usize| {
                    p.ancestors().nth(up).unwrap_or(&p).display().to_string()
                };
                meta["Storage"] = json!({"MetadataPath": of(meta_path(&session.config, name), 1), "TLSPath": of(tls, 1)});
                found.push(meta);
            }
            Err(e) => errors.push(e),
        }
    }
    inspect::show(parsed.text("format"), found, errors)
}

fn remove(session: &Session, parsed: &Parsed) -> Outcome {
    let current = session.config.current_context();
    let mut errors = Vec::new();
    for name in &parsed.operands {
        let result = (|| {
            if name == "default" {
                return Err("context \"default\" cannot be removed".to_owned());
            }
            if !meta_path(&session.config, name).exists() {
                return Err(format!("context {name:?} does not exist"));
            }
            if current.as_deref() == Some(name) {
                if !parsed.flag("force") {
                    return Err(format!(
                        "context {name:?} is in use, set -f flag to force remove"
                    ));
                }
                session.config.save_entry("currentContext", None)?;
            }
            let meta = meta_path(&session.config, name);
            let failed = |e: std::io::Error| {
                format!("could not remove context {name:?}: {}", go_io_error(&e))
            };
            std::fs::remove_dir_all(meta.parent().unwrap_or(&meta)).map_err(failed)?;
            let tls = tls_directory(&session.config, name);
            match std::fs::remove_dir_all(tls.parent().unwrap_or(&tls)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed(e)),
                _ => Ok(()),
            }
        })();
        match result {
            Ok(()) => output::line(name)?,
            Err(e) => errors.push(e),
        }
    }
    if errors.is_empty() {
        Ok(0)
    } else {
        Err(Failure::new(errors.join("\n")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_kept_where_docker_looks_for_them() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let config = Config::load(Some(directory.path().to_owned()));
        let meta = json!({"Name": "lab", "Metadata": {}, "Endpoints": {"docker": {"Host": "tcp://lab:1", "SkipTLSVerify": true}}});
        store(&config, "lab", &meta, &BTreeMap::new()).expect("stored");
        // sha256("nope"), as the docker command prints it in its own error message.
        assert_eq!(
            directory_id("nope"),
            "ca3704aa0b06f5954c79ee837faa152d84d6b2d42838f0637a15eda8337dbdce"
        );
        let (host, tls) = resolve(&config, "lab").expect("resolves");
        assert_eq!(
            (host.as_str(), tls.is_some_and(|t| t.skip_verify)),
            ("tcp://lab:1", true)
        );
        assert_eq!(all_names(&config), ["lab"]);
        assert!(
            resolve(&config, "nope")
                .expect_err("absent")
                .starts_with("context \"nope\": context not found: open ")
        );
    }

    #[test]
    fn names_are_checked() {
        for name in ["", "default", "a", "-x", "a/b", "../x"] {
            assert!(valid_name(name).is_err(), "{name}");
        }
        assert!(valid_name("lab-1.x_y+z").is_ok());
    }
}
