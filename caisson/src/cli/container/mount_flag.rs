//! `--mount`, `--volume` and `--tmpfs`: text in, API values out. Pure but for making relative paths absolute.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use caisson_api::{BindOptions, DriverConfig, Mount, TmpfsOptions, VolumeOptions};

use crate::cli::units;

/// Splits one line of CSV (RFC 4180 quoting), as `--mount` and `--gpus` are written.
pub fn csv(line: &str) -> Result<Vec<String>, String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut chars = line.chars().peekable();
    let mut at_start = true;
    while let Some(c) = chars.next() {
        let current = fields.last_mut().expect("there is always a last field");
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                current.push('"');
                chars.next();
            }
            '"' if quoted => quoted = false,
            '"' if at_start => quoted = true,
            '"' => {
                return Err(format!(
                    "parse error on line 1, column {}: bare \" in non-quoted-field",
                    current.len() + 1
                ));
            }
            ',' if !quoted => {
                fields.push(String::new());
                at_start = true;
                continue;
            }
            other => current.push(other),
        }
        at_start = false;
    }
    if quoted {
        return Err("parse error on line 1: extraneous or missing \" in quoted-field".to_owned());
    }
    Ok(fields)
}

/// A path the client's working directory completes, without touching the file system.
fn absolute(path: &str) -> String {
    let joined = std::env::current_dir()
        .unwrap_or_else(|_| PathBuf::from("/"))
        .join(path);
    let mut clean = PathBuf::new();
    for part in joined.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    clean.display().to_string()
}

fn boolean(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("invalid value for {key}: {value}")),
    }
}

/// Reads one `--mount`.
pub fn mount(text: &str) -> Result<Mount, String> {
    let mut mount = Mount {
        kind: "volume".to_owned(),
        ..Mount::default()
    };
    let mut bind = BindOptions::default();
    let mut volume = VolumeOptions::default();
    let mut driver = DriverConfig::default();
    let mut tmpfs = TmpfsOptions::default();
    let (mut has_bind, mut has_volume, mut has_tmpfs, mut has_driver) =
        (false, false, false, false);
    for field in csv(text)? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), value),
            None => match field.to_lowercase().as_str() {
                flag @ ("readonly" | "ro" | "volume-nocopy" | "bind-nonrecursive") => {
                    (flag.to_owned(), "true")
                }
                _ => return Err(format!("invalid field '{field}' must be a key=value pair")),
            },
        };
        match key.as_str() {
            "type" => mount.kind = value.to_lowercase(),
            "source" | "src" => mount.source = value.to_owned(),
            "target" | "dst" | "destination" => mount.target = value.to_owned(),
            "readonly" | "ro" => mount.read_only = boolean(&key, value)?,
            "consistency" => mount.consistency = value.to_lowercase(),
            "bind-propagation" => {
                has_bind = true;
                bind.propagation = value.to_lowercase();
            }
            "bind-nonrecursive" => {
                has_bind = true;
                bind.non_recursive = boolean(&key, value)?;
            }
            "bind-recursive" => {
                has_bind = true;
                match value {
                    "enabled" => {}
                    "disabled" => bind.non_recursive = true,
                    "writable" => bind.read_only_non_recursive = true,
                    "readonly" => bind.read_only_force_recursive = true,
                    _ => {
                        return Err(format!(
                            "invalid value for {key}: {value} (must be \"enabled\", \"disabled\", \"writable\", or \"readonly\")"
                        ));
                    }
                }
            }
            "volume-nocopy" => {
                has_volume = true;
                volume.no_copy = boolean(&key, value)?;
            }
            "volume-subpath" => {
                has_volume = true;
                volume.subpath = value.to_owned();
            }
            "volume-label" => {
                has_volume = true;
                let (name, text) = value.split_once('=').unwrap_or((value, ""));
                volume
                    .labels
                    .get_or_insert_default()
                    .insert(name.to_owned(), text.to_owned());
            }
            "volume-driver" => {
                (has_volume, has_driver) = (true, true);
                driver.name = value.to_owned();
            }
            "volume-opt" => {
                (has_volume, has_driver) = (true, true);
                let (name, text) = value.split_once('=').unwrap_or((value, ""));
                driver
                    .options
                    .get_or_insert_default()
                    .insert(name.to_owned(), text.to_owned());
            }
            "tmpfs-size" => {
                has_tmpfs = true;
                tmpfs.size_bytes = units::ram_in_bytes(value)
                    .map_err(|_| format!("invalid value for {key}: {value}"))?;
            }
            "tmpfs-mode" => {
                has_tmpfs = true;
                tmpfs.mode = u32::from_str_radix(value, 8)
                    .map_err(|_| format!("invalid value for {key}: {value}"))?;
            }
            _ => return Err(format!("unexpected key '{key}' in '{field}'")),
        }
    }
    if mount.kind.is_empty() {
        return Err("type is required".to_owned());
    }
    if mount.target.is_empty() {
        return Err("target is required".to_owned());
    }
    for (present, name, kind) in [
        (has_bind, "bind", "bind"),
        (has_volume, "volume", "volume"),
        (has_tmpfs, "tmpfs", "tmpfs"),
    ] {
        if present && mount.kind != kind {
            return Err(format!(
                "cannot mix '{name}-*' options with mount type '{}'",
                mount.kind
            ));
        }
    }
    if bind.read_only_non_recursive && !mount.read_only {
        return Err(
            "option 'bind-recursive=writable' requires 'readonly' to be specified in conjunction"
                .to_owned(),
        );
    }
    if bind.read_only_force_recursive {
        if !mount.read_only {
            return Err("option 'bind-recursive=readonly' requires 'readonly' to be specified in conjunction".to_owned());
        }
        if bind.propagation != "rprivate" {
            return Err("option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction".to_owned());
        }
    }
    if mount.kind == "bind" && mount.source.starts_with('.') {
        mount.source = absolute(&mount.source);
    }
    if has_driver {
        volume.driver_config = Some(driver);
    }
    mount.bind_options = has_bind.then_some(bind);
    mount.volume_options = has_volume.then_some(volume);
    mount.tmpfs_options = has_tmpfs.then_some(tmpfs);
    Ok(mount)
}

/// What one `--volume` asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Volume {
    /// `source:target[:options]`, for HostConfig.Binds.
    Bind(String),
    /// A target alone: an anonymous volume.
    Anonymous(String),
}

/// Reads one `--volume`.
pub fn volume(spec: &str) -> Result<Volume, String> {
    if spec.is_empty() {
        return Err("invalid empty volume spec".to_owned());
    }
    let parts: Vec<&str> = spec.split(':').collect();
    if parts.len() == 1 {
        return Ok(Volume::Anonymous(spec.to_owned()));
    }
    if parts.iter().any(|p| p.is_empty()) {
        return Err(format!(
            "invalid spec: {spec}: empty section between colons"
        ));
    }
    if parts[0].starts_with('.') && !Path::new(parts[0]).is_absolute() {
        return Ok(Volume::Bind(format!(
            "{}:{}",
            absolute(parts[0]),
            parts[1..].join(":")
        )));
    }
    Ok(Volume::Bind(spec.to_owned()))
}

/// Reads all `--tmpfs`: target and options.
pub fn tmpfs(specs: &[String]) -> Option<BTreeMap<String, String>> {
    let map: BTreeMap<String, String> = specs
        .iter()
        .map(|s| {
            s.split_once(':')
                .map_or((s.clone(), String::new()), |(t, o)| {
                    (t.to_owned(), o.to_owned())
                })
        })
        .collect();
    (!map.is_empty()).then_some(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read() {
        let m = mount("type=bind,src=/a,dst=/b,readonly,bind-propagation=rslave").expect("valid");
        assert_eq!(
            (
                m.kind.as_str(),
                m.source.as_str(),
                m.target.as_str(),
                m.read_only
            ),
            ("bind", "/a", "/b", true)
        );
        assert_eq!(m.bind_options.expect("given").propagation, "rslave");
        let m = mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1777").expect("valid");
        let t = m.tmpfs_options.expect("given");
        assert_eq!((t.size_bytes, t.mode), (1 << 20, 0o1777));
        let m = mount(r#"source=v,target=/v,"volume-opt=o=a,b",volume-driver=d"#).expect("valid");
        let d = m
            .volume_options
            .expect("given")
            .driver_config
            .expect("given");
        assert_eq!(d.options.expect("given")["o"], "a,b");
        assert!(
            mount("type=bind,src=./x,dst=/b")
                .expect("valid")
                .source
                .ends_with("/x")
        );
    }

    #[test]
    fn wrong_mounts_are_refused_in_dockers_words() {
        for (text, message) in [
            ("type=bind", "target is required"),
            ("foo", "invalid field 'foo' must be a key=value pair"),
            ("foo=bar,target=/x", "unexpected key 'foo' in 'foo=bar'"),
            (
                "target=/x,readonly=maybe",
                "invalid value for readonly: maybe",
            ),
            (
                "type=bind,target=/x,tmpfs-size=1",
                "cannot mix 'tmpfs-*' options with mount type 'bind'",
            ),
            (
                "type=tmpfs,target=/x,tmpfs-size=abc",
                "invalid value for tmpfs-size: abc",
            ),
            ("type=,target=/x", "type is required"),
        ] {
            assert_eq!(mount(text).expect_err(text), message);
        }
    }

    #[test]
    fn volumes_are_binds_or_anonymous() {
        assert_eq!(volume("/data"), Ok(Volume::Anonymous("/data".into())));
        assert_eq!(volume("/a:/b:ro"), Ok(Volume::Bind("/a:/b:ro".into())));
        assert_eq!(volume("name:/b"), Ok(Volume::Bind("name:/b".into())));
        let Ok(Volume::Bind(bind)) = volume("./here:/b") else {
            panic!("a bind")
        };
        assert!(bind.starts_with('/') && bind.ends_with("/here:/b"));
        assert_eq!(
            volume(":/x"),
            Err("invalid spec: :/x: empty section between colons".into())
        );
    }
}
