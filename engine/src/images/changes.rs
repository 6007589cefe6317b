//! `--change` of commit and import: Dockerfile instructions that alter an image's configuration. Pure.

use caisson_api::{ContainerConfig, Empty, HealthConfig};

use crate::{Error, Result};

/// Applies instructions in order.
pub(crate) fn apply(config: &mut ContainerConfig, instructions: &[String]) -> Result<()> {
    instructions
        .iter()
        .try_for_each(|instruction| apply_one(config, instruction.trim()))
}

fn apply_one(config: &mut ContainerConfig, instruction: &str) -> Result<()> {
    let (verb, rest) = instruction
        .split_once(char::is_whitespace)
        .unwrap_or((instruction, ""));
    let rest = rest.trim();
    let wrong =
        |why: &str| Error::invalid(format!("cannot apply the change {instruction:?}: {why}"));
    if rest.is_empty() {
        return Err(wrong("it has no argument"));
    }
    match verb.to_ascii_uppercase().as_str() {
        "CMD" => {
            config.cmd = Some(command(rest, config.shell.as_deref()));
            config.args_escaped = false;
        }
        "ENTRYPOINT" => {
            config.entrypoint = Some(command(rest, config.shell.as_deref()));
            // Docker: an image's command was meant for its old entrypoint.
            if config.cmd.is_some() {
                config.cmd = None;
            }
        }
        "ENV" => {
            let env = config.env.get_or_insert_default();
            for (key, value) in pairs(rest).ok_or_else(|| wrong("write KEY=VALUE"))? {
                env.retain(|e| e.split_once('=').is_none_or(|(k, _)| k != key));
                env.push(format!("{key}={value}"));
            }
        }
        "LABEL" => {
            let labels = pairs(rest).ok_or_else(|| wrong("write KEY=VALUE"))?;
            config.labels.get_or_insert_default().extend(labels);
        }
        "EXPOSE" => {
            let ports = config.exposed_ports.get_or_insert_default();
            for word in rest.split_whitespace() {
                let (port, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
                let protocol = protocol.to_ascii_lowercase();
                let valid = port.split('-').all(|p| p.parse::<u16>().is_ok())
                    && matches!(protocol.as_str(), "tcp" | "udp" | "sctp");
                if !valid {
                    return Err(wrong("write PORT or PORT/PROTOCOL"));
                }
                ports.insert(format!("{port}/{protocol}"), Empty);
            }
        }
        "VOLUME" => {
            let paths = json_words(rest)
                .unwrap_or_else(|| rest.split_whitespace().map(str::to_owned).collect());
            config
                .volumes
                .get_or_insert_default()
                .extend(paths.into_iter().map(|p| (p, Empty)));
        }
        "USER" => config.user = rest.to_owned(),
        "WORKDIR" => {
            let base = if config.working_dir.is_empty() {
                "/"
            } else {
                &config.working_dir
            };
            config.working_dir = std::path::Path::new(base).join(rest).display().to_string();
        }
        "STOPSIGNAL" => config.stop_signal = rest.to_owned(),
        "SHELL" => {
            config.shell =
                Some(json_words(rest).ok_or_else(|| wrong("write it as [\"shell\", \"option\"]"))?)
        }
        "ONBUILD" => config
            .on_build
            .get_or_insert_default()
            .push(rest.to_owned()),
        "HEALTHCHECK" => config.healthcheck = Some(healthcheck(rest).map_err(|why| wrong(&why))?),
        other => {
            return Err(Error::invalid(format!(
                "{other} is not a valid change command"
            )));
        }
    }
    Ok(())
}

/// `["a","b"]`.
fn json_words(text: &str) -> Option<Vec<String>> {
    text.starts_with('[')
        .then(|| serde_json::from_str(text).ok())
        .flatten()
}

/// The exec form as it is; the shell form behind the shell.
fn command(text: &str, shell: Option<&[String]>) -> Vec<String> {
    json_words(text).unwrap_or_else(|| {
        let mut words = match shell {
            Some(shell) if !shell.is_empty() => shell.to_vec(),
            _ => vec!["/bin/sh".to_owned(), "-c".to_owned()],
        };
        words.push(text.to_owned());
        words
    })
}

/// `A=1 B="two words"`, or the old `A all the rest`.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let first = text.split_whitespace().next()?;
    if !first.contains('=') {
        let (key, value) = text.split_once(char::is_whitespace)?;
        return Some(vec![(key.to_owned(), value.trim().to_owned())]);
    }
    let words = shlex::split(text)?;
    words
        .into_iter()
        .map(|word| {
            word.split_once('=')
                .filter(|(k, _)| !k.is_empty())
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
        })
        .collect()
}

/// `NONE`, or options and `CMD …`.
fn healthcheck(text: &str) -> Result<HealthConfig, String> {
    let mut health = HealthConfig::default();
    let mut rest = text;
    while let Some(option) = rest.strip_prefix("--") {
        let (option, after) = option
            .split_once(char::is_whitespace)
            .ok_or("CMD or NONE is missing")?;
        let (name, value) = option
            .split_once('=')
            .ok_or(format!("write --{option}=VALUE"))?;
        let nanos = || {
            super::filter::parse_go_duration(value)
                .and_then(|d| d.num_nanoseconds())
                .ok_or(format!("{value:?} is not a duration"))
        };
        match name {
            "interval" => health.interval = nanos()?,
            "timeout" => health.timeout = nanos()?,
            "start-period" => health.start_period = nanos()?,
            "start-interval" => health.start_interval = nanos()?,
            "retries" => {
                health.retries = value
                    .parse()
                    .map_err(|_| format!("{value:?} is not a number"))?
            }
            other => return Err(format!("--{other} is not known")),
        }
        rest = after.trim_start();
    }
    let (verb, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    health.test = match verb.to_ascii_uppercase().as_str() {
        "NONE" => Some(vec!["NONE".into()]),
        "CMD" => match json_words(command.trim()) {
            Some(words) => Some(std::iter::once("CMD".to_owned()).chain(words).collect()),
            None if command.trim().is_empty() => return Err("CMD has no command".into()),
            None => Some(vec!["CMD-SHELL".into(), command.trim().to_owned()]),
        },
        _ => return Err("write CMD or NONE".into()),
    };
    Ok(health)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(instructions: &[&str]) -> Result<ContainerConfig> {
        let mut config = ContainerConfig {
            cmd: Some(vec!["old".into()]),
            env: Some(vec!["A=0".into(), "PATH=/bin".into()]),
            ..Default::default()
        };
        let instructions: Vec<String> = instructions.iter().map(|i| (*i).to_owned()).collect();
        apply(&mut config, &instructions)?;
        Ok(config)
    }

    #[test]
    fn commands_have_two_forms() {
        let words = |list: &[&str]| Some(list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
        assert_eq!(
            applied(&[r#"CMD ["a", "b c"]"#]).expect("valid").cmd,
            words(&["a", "b c"])
        );
        assert_eq!(
            applied(&["cmd echo hi"]).expect("valid").cmd,
            words(&["/bin/sh", "-c", "echo hi"])
        );
        let config = applied(&[r#"SHELL ["/bin/bash","-c"]"#, "CMD x"]).expect("valid");
        assert_eq!(config.cmd, words(&["/bin/bash", "-c", "x"]));
        let config = applied(&[r#"ENTRYPOINT ["e"]"#]).expect("valid");
        assert_eq!((config.entrypoint, config.cmd), (words(&["e"]), None));
    }

    #[test]
    fn variables_and_labels() {
        let config = applied(&[
            r#"ENV A=1 B="two words""#,
            "ENV C all the rest",
            "LABEL x=y",
        ])
        .expect("valid");
        assert_eq!(
            config.env.expect("set"),
            ["PATH=/bin", "A=1", "B=two words", "C=all the rest"]
        );
        assert_eq!(config.labels.expect("set")["x"], "y");
    }

    #[test]
    fn the_rest() {
        let config = applied(&[
            "EXPOSE 80 53/udp",
            r#"VOLUME ["/data"]"#,
            "USER nobody",
            "WORKDIR /srv",
            "WORKDIR www",
            "STOPSIGNAL SIGINT",
            "HEALTHCHECK --interval=1m30s --retries=2 CMD true",
        ])
        .expect("valid");
        let ports: Vec<_> = config.exposed_ports.expect("set").into_keys().collect();
        assert_eq!(ports, ["53/udp", "80/tcp"]);
        assert!(config.volumes.expect("set").contains_key("/data"));
        assert_eq!(
            (
                config.user.as_str(),
                config.working_dir.as_str(),
                config.stop_signal.as_str()
            ),
            ("nobody", "/srv/www", "SIGINT")
        );
        let health = config.healthcheck.expect("set");
        assert_eq!((health.interval, health.retries), (90_000_000_000, 2));
        assert_eq!(health.test.expect("set"), ["CMD-SHELL", "true"]);
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "RUN ls",
            "FROM x",
            "CMD",
            "",
            "EXPOSE http",
            "ENV A",
            r#"ENV A="unclosed"#,
            "HEALTHCHECK maybe",
            "SHELL sh",
        ] {
            assert!(applied(&[bad]).is_err(), "{bad:?}");
        }
    }
}
