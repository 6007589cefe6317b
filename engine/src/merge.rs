//! A request laid over its image's configuration, by Docker's rules.
//!
//! Must not know: where the image came from.

use std::collections::BTreeMap;

use caisson_api as api;

use crate::error::{Error, Result};

/// Lays the request over the image; the request wins where both speak, and the image's command is only used while the
/// request does not set an entrypoint.
pub(crate) fn with_image(
    mut request: api::ContainerConfig,
    image: &api::ContainerConfig,
) -> api::ContainerConfig {
    if request.user.is_empty() {
        request.user.clone_from(&image.user);
    }
    merge_map(&mut request.exposed_ports, &image.exposed_ports);
    merge_map(&mut request.volumes, &image.volumes);
    merge_map(&mut request.labels, &image.labels);
    let name = |e: &String| e.split('=').next().unwrap_or(e).to_string();
    let mut env = request.env.take().unwrap_or_default();
    let image_env = image
        .env
        .iter()
        .flatten()
        .filter(|e| !env.iter().any(|own| name(own) == name(e)))
        .cloned();
    // Docker puts the image's variables behind; the result is a set, the order only matters to the eye.
    let image_env: Vec<String> = image_env.collect();
    env.extend(image_env);
    request.env = Some(env);
    if request.entrypoint.as_ref().is_none_or(|e| e.is_empty()) {
        // `[""]` (--entrypoint "") is not empty: it resets.
        if request.cmd.as_ref().is_none_or(Vec::is_empty) {
            request.cmd.clone_from(&image.cmd);
        }
        if request.entrypoint.is_none() {
            request.entrypoint.clone_from(&image.entrypoint);
        }
    } else if request.entrypoint.as_deref() == Some(&[String::new()]) {
        request.entrypoint = None;
    }
    if request.working_dir.is_empty() {
        request.working_dir.clone_from(&image.working_dir);
    }
    if request.stop_signal.is_empty() {
        request.stop_signal.clone_from(&image.stop_signal);
    }
    if request.stop_timeout.is_none() {
        request.stop_timeout = image.stop_timeout;
    }
    if request.shell.is_none() {
        request.shell.clone_from(&image.shell);
    }
    if request.on_build.is_none() {
        request.on_build.clone_from(&image.on_build);
    }
    request.healthcheck = merge_health(request.healthcheck.take(), image.healthcheck.as_ref());
    request
}

fn merge_map<V: Clone>(own: &mut Option<BTreeMap<String, V>>, image: &Option<BTreeMap<String, V>>) {
    for (key, value) in image.iter().flatten() {
        own.get_or_insert_default()
            .entry(key.clone())
            .or_insert_with(|| value.clone());
    }
}

fn merge_health(
    own: Option<api::HealthConfig>,
    image: Option<&api::HealthConfig>,
) -> Option<api::HealthConfig> {
    let (Some(mut own), Some(image)) = (own.clone(), image) else {
        return own.or_else(|| image.cloned());
    };
    if own.test.as_ref().is_none_or(Vec::is_empty) {
        own.test.clone_from(&image.test);
    }
    let inherit = |own: &mut i64, image: i64| {
        if *own == 0 {
            *own = image;
        }
    };
    inherit(&mut own.interval, image.interval);
    inherit(&mut own.timeout, image.timeout);
    inherit(&mut own.start_period, image.start_period);
    inherit(&mut own.start_interval, image.start_interval);
    inherit(&mut own.retries, image.retries);
    Some(own)
}

/// Program and arguments: the entrypoint with the command behind it.
pub(crate) fn command(config: &api::ContainerConfig) -> Result<Vec<String>> {
    let words: Vec<String> = config
        .entrypoint
        .iter()
        .flatten()
        .chain(config.cmd.iter().flatten())
        .cloned()
        .collect();
    match words.first() {
        None => Err(Error::invalid(
            "no command specified: the image has none, give one behind the image's name",
        )),
        Some(first) if first.is_empty() && words.len() == 1 => Err(Error::invalid(
            "no command specified: it is the empty string",
        )),
        Some(_) => Ok(words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Option<Vec<String>> {
        Some(list.iter().map(|s| s.to_string()).collect())
    }

    fn image() -> api::ContainerConfig {
        api::ContainerConfig {
            entrypoint: words(&["/entry"]),
            cmd: words(&["default"]),
            env: words(&["PATH=/img", "A=img"]),
            working_dir: "/img".into(),
            user: "img".into(),
            labels: Some(
                [
                    ("a".to_string(), "img".to_string()),
                    ("b".to_string(), "img".to_string()),
                ]
                .into(),
            ),
            ..Default::default()
        }
    }

    fn run(cmd: Option<Vec<String>>, entrypoint: Option<Vec<String>>) -> Vec<String> {
        command(&with_image(
            api::ContainerConfig {
                cmd,
                entrypoint,
                ..Default::default()
            },
            &image(),
        ))
        .unwrap_or_default()
    }

    #[test]
    fn commands_follow_dockers_table() {
        assert_eq!(run(None, None), ["/entry", "default"]);
        assert_eq!(run(words(&["x"]), None), ["/entry", "x"]);
        assert_eq!(
            run(None, words(&["/own"])),
            ["/own"],
            "an own entrypoint drops the image's command"
        );
        assert_eq!(run(words(&["x"]), words(&["/own"])), ["/own", "x"]);
        assert_eq!(
            run(words(&["x"]), words(&[""])),
            ["x"],
            "--entrypoint '' resets"
        );
        assert_eq!(run(None, words(&[""])), [""; 0]);
    }

    #[test]
    fn the_request_wins() {
        let c = with_image(
            api::ContainerConfig {
                env: words(&["A=own"]),
                user: "own".into(),
                labels: Some([("a".to_string(), "own".to_string())].into()),
                ..Default::default()
            },
            &image(),
        );
        assert_eq!(c.env, words(&["A=own", "PATH=/img"]));
        assert_eq!((c.user.as_str(), c.working_dir.as_str()), ("own", "/img"));
        let labels = c.labels.unwrap();
        assert_eq!((labels["a"].as_str(), labels["b"].as_str()), ("own", "img"));
    }

    #[test]
    fn health_checks_inherit_piecewise() {
        let image = api::HealthConfig {
            test: words(&["CMD", "x"]),
            interval: 5,
            retries: 2,
            ..Default::default()
        };
        let own = api::HealthConfig {
            interval: 9,
            ..Default::default()
        };
        let merged = merge_health(Some(own), Some(&image)).unwrap();
        assert_eq!(
            (merged.test, merged.interval, merged.retries),
            (words(&["CMD", "x"]), 9, 2)
        );
    }
}
