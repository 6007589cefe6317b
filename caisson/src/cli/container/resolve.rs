//! From parsed `run`/`create` flags to the body of `POST /containers/create`: one pure function, given a way to read files.

use std::collections::BTreeMap;

use caisson_api::{ContainerConfig, ContainerCreateBody, Empty, HealthConfig};

use super::host_config::host_config;
use super::{mount_flag, network_flags, port_flag};
use crate::cli::flags::Parsed;

/// What the world outside the command line contributes.
pub struct Surroundings<'a> {
    /// Reads a file the user named.
    pub read: &'a dyn Fn(&str) -> Result<String, String>,
    /// Looks up an environment variable.
    pub lookup: &'a dyn Fn(&str) -> Option<String>,
    /// Proxy settings every container gets.
    pub proxies: &'a [(String, String)],
    /// Rows and columns of the user's terminal, 0 without one.
    pub console: [u32; 2],
}

/// A container to create.
#[derive(Debug, PartialEq)]
pub struct Plan {
    /// The request's body.
    pub body: ContainerCreateBody,
    /// The image as typed.
    pub image: String,
}

/// Resolves `create`'s flags; for `run`, `detach` says whether anything is attached by default.
pub fn resolve(parsed: &Parsed, detach: bool, around: &Surroundings) -> Result<Plan, String> {
    let image = parsed.operands.first().cloned().unwrap_or_default();
    let config = config(parsed, detach, &image, around)?;
    let host_config = host_config(parsed, around)?;
    let networking_config = network_flags::networking(parsed, &host_config.network_mode)?;
    Ok(Plan {
        body: ContainerCreateBody {
            config,
            host_config: Some(host_config),
            networking_config: Some(networking_config),
        },
        image,
    })
}

/// What is empty is not sent.
pub fn optional(list: &[String]) -> Option<Vec<String>> {
    (!list.is_empty()).then(|| list.to_vec())
}

/// `KEY=VALUE` of several flags; without `=` the value is empty.
pub fn key_values(list: &[String]) -> BTreeMap<String, String> {
    list.iter()
        .map(|kv| {
            kv.split_once('=')
                .map_or((kv.clone(), String::new()), |(k, v)| (k.into(), v.into()))
        })
        .collect()
}

/// Lines of `--env-file` and `--label-file`. A bare name takes the caller's value (`lookup`) or, for environments, is dropped.
fn file_lines(path: &str, around: &Surroundings, lookup: bool) -> Result<Vec<String>, String> {
    let text = (around.read)(path)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut lines = Vec::new();
    for line in text.lines() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split('=').next().unwrap_or("");
        if name.is_empty() {
            return Err(format!(
                "invalid env file ({path}): no variable name on line '{line}'"
            ));
        }
        if name.contains([' ', '\t']) {
            return Err(format!(
                "invalid env file ({path}): variable '{name}' contains whitespaces"
            ));
        }
        if line.contains('=') {
            lines.push(line.to_owned());
        } else if lookup {
            lines.extend((around.lookup)(name).map(|value| format!("{name}={value}")));
        } else {
            lines.push(line.to_owned());
        }
    }
    Ok(lines)
}

/// `--env-file` then `--env`.
pub fn environment(parsed: &Parsed, around: &Surroundings) -> Result<Vec<String>, String> {
    let mut env = Vec::new();
    for path in parsed.list("env-file") {
        env.extend(file_lines(path, around, true)?);
    }
    env.extend(parsed.list("env").iter().cloned());
    Ok(env)
}

fn config(
    parsed: &Parsed,
    detach: bool,
    image: &str,
    around: &Surroundings,
) -> Result<ContainerConfig, String> {
    let attach = parsed.list("attach");
    let wants = |stream: &str| attach.iter().any(|a| a == stream);
    let interactive = parsed.flag("interactive");
    // Without --attach: output always, input when it is kept open; nothing at all in the background.
    let (stdin, stdout, stderr) = match (attach, detach) {
        ([], true) => (false, false, false),
        ([], false) => (interactive, true, true),
        _ => (
            wants("stdin") || interactive,
            wants("stdout"),
            wants("stderr"),
        ),
    };
    let mut exposed = BTreeMap::new();
    let mut bindings = port_flag::Bindings::new();
    for spec in parsed.list("publish") {
        port_flag::publish(spec, &mut bindings)?;
    }
    exposed.extend(bindings.into_keys().map(|p| (p, Empty)));
    for spec in parsed.list("expose") {
        exposed.extend(port_flag::expose(spec)?.into_iter().map(|p| (p, Empty)));
    }
    let mut volumes = BTreeMap::new();
    for spec in parsed.list("volume") {
        if let mount_flag::Volume::Anonymous(target) = mount_flag::volume(spec)? {
            volumes.insert(target, Empty);
        }
    }
    let mut env = environment(parsed, around)?;
    for (name, value) in around.proxies {
        if !env.iter().any(|e| e.split('=').next() == Some(name)) {
            env.push(format!("{name}={value}"));
        }
    }
    let mut labels = Vec::new();
    for path in parsed.list("label-file") {
        labels.extend(file_lines(path, around, false)?);
    }
    labels.extend(parsed.list("label").iter().cloned());
    let command = parsed.operands.get(1..).unwrap_or_default();
    Ok(ContainerConfig {
        hostname: parsed.text("hostname").to_owned(),
        domainname: parsed.text("domainname").to_owned(),
        user: parsed.text("user").to_owned(),
        attach_stdin: stdin,
        attach_stdout: stdout,
        attach_stderr: stderr,
        exposed_ports: (!exposed.is_empty()).then_some(exposed),
        tty: parsed.flag("tty"),
        open_stdin: interactive,
        stdin_once: interactive && stdin,
        env: Some(env),
        cmd: optional(command),
        healthcheck: healthcheck(parsed)?,
        image: image.to_owned(),
        volumes: Some(volumes),
        working_dir: parsed.text("workdir").to_owned(),
        entrypoint: parsed.last("entrypoint").map(|e| vec![e.to_owned()]),
        labels: Some(key_values(&labels)),
        stop_signal: parsed.text("stop-signal").to_owned(),
        stop_timeout: parsed.int("stop-timeout"),
        ..ContainerConfig::default()
    })
}

fn healthcheck(parsed: &Parsed) -> Result<Option<HealthConfig>, String> {
    let any = [
        "cmd",
        "interval",
        "timeout",
        "start-period",
        "start-interval",
        "retries",
    ]
    .iter()
    .any(|f| parsed.given(&format!("health-{f}")));
    if parsed.flag("no-healthcheck") {
        if any {
            return Err("--no-healthcheck conflicts with --health-* options".to_owned());
        }
        return Ok(Some(HealthConfig {
            test: Some(vec!["NONE".to_owned()]),
            ..HealthConfig::default()
        }));
    }
    if !any {
        return Ok(None);
    }
    let duration = |name: &str| match parsed.duration_ns(name) {
        negative if negative < 0 => Err(format!("--{name} cannot be negative")),
        fine => Ok(fine),
    };
    let retries = parsed.int("health-retries").unwrap_or(0);
    if retries < 0 {
        return Err("--health-retries cannot be negative".to_owned());
    }
    let command = parsed.text("health-cmd");
    Ok(Some(HealthConfig {
        test: (!command.is_empty()).then(|| vec!["CMD-SHELL".to_owned(), command.to_owned()]),
        interval: duration("health-interval")?,
        timeout: duration("health-timeout")?,
        start_period: duration("health-start-period")?,
        start_interval: duration("health-start-interval")?,
        retries,
    }))
}

#[cfg(test)]
mod tests {
    use super::super::create_flags;
    use caisson_api::HostConfig;

    use super::*;
    use crate::cli::flags;

    fn planned(words: &[&str], detach: bool) -> Result<Plan, String> {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        let parsed = flags::parse(
            &[
                create_flags::CREATE,
                create_flags::RUN,
                create_flags::ALIASES,
            ],
            false,
            &words,
        )?;
        let around = Surroundings {
            read: &|path| match path {
                "/env" => Ok("\u{feff}# note\nA=1\n\n  B=2 3\nHOME\nUNSET\n".to_owned()),
                "/bad" => Ok("=x\n".to_owned()),
                "/spaces" => Ok("a b=x\n".to_owned()),
                "/labels" => Ok("x=y\nbare\n".to_owned()),
                "/seccomp" => Ok("{ \"a\": 1 }\n".to_owned()),
                _ => Err(format!("open {path}: no such file or directory")),
            },
            lookup: &|name| (name == "HOME").then(|| "/h".to_owned()),
            proxies: &[],
            console: [24, 80],
        };
        resolve(&parsed, detach, &around)
    }

    fn host(words: &[&str]) -> HostConfig {
        let words = [words, &["img"]].concat();
        planned(&words, false)
            .expect("valid")
            .body
            .host_config
            .expect("always there")
    }

    fn config(words: &[&str], detach: bool) -> ContainerConfig {
        let words = [words, &["img"]].concat();
        planned(&words, detach).expect("valid").body.config
    }

    #[test]
    fn streams_follow_interactive_detach_and_attach() {
        let streams = |words: &[&str], detach| {
            let c = config(words, detach);
            (
                c.attach_stdin,
                c.attach_stdout,
                c.attach_stderr,
                c.open_stdin,
                c.stdin_once,
            )
        };
        assert_eq!(streams(&[], false), (false, true, true, false, false));
        assert_eq!(streams(&["-i"], false), (true, true, true, true, true));
        assert_eq!(streams(&["-i"], true), (false, false, false, true, false));
        assert_eq!(
            streams(&["-a", "STDERR"], false),
            (false, false, true, false, false)
        );
        assert_eq!(
            streams(&["-i", "-a", "stdout"], false),
            (true, true, false, true, true)
        );
    }

    #[test]
    fn environment_files_come_first_and_resolve_bare_names() {
        let env = config(&["-e", "Z=9", "--env-file", "/env"], false)
            .env
            .expect("always there");
        assert_eq!(env, ["A=1", "B=2 3", "HOME=/h", "Z=9"]);
        let labels = config(&["--label-file", "/labels", "-l", "k=v=w"], false)
            .labels
            .expect("always there");
        assert_eq!(
            (
                labels["x"].as_str(),
                labels["bare"].as_str(),
                labels["k"].as_str()
            ),
            ("y", "", "v=w")
        );
    }

    #[test]
    fn limits_and_modes_land_in_the_host_config() {
        let h = host(&[
            "-m",
            "64m",
            "--cpus",
            "1.5",
            "--pids-limit",
            "20",
            "--network",
            "none",
            "--isolation",
            "vm",
            "--init",
            "--rm",
        ]);
        assert_eq!(
            (
                h.resources.memory,
                h.resources.nano_cpus,
                h.resources.pids_limit
            ),
            (64 << 20, 1_500_000_000, Some(20))
        );
        assert_eq!(
            (
                h.network_mode.as_str(),
                h.isolation.as_str(),
                h.init,
                h.auto_remove
            ),
            ("none", "vm", Some(true), true)
        );
        assert_eq!(host(&[]).network_mode, "default");
        assert_eq!(host(&["--init=false"]).init, Some(false));
        let h = host(&[
            "--cap-add",
            "net_admin",
            "--cap-drop",
            "all",
            "--cap-drop",
            "CAP_NET_ADMIN",
        ]);
        assert_eq!(
            (h.cap_add, h.cap_drop),
            (
                Some(vec!["CAP_NET_ADMIN".to_owned()]),
                Some(vec!["ALL".to_owned()])
            )
        );
        let h = host(&["--restart", "on-failure:3"]);
        assert_eq!(
            (
                h.restart_policy.name.as_str(),
                h.restart_policy.maximum_retry_count
            ),
            ("on-failure", 3)
        );
        let h = host(&[
            "--tmpfs",
            "/t:size=1m",
            "-v",
            "/a:/b:ro",
            "-v",
            "/anon",
            "--mount",
            "type=tmpfs,dst=/m",
        ]);
        assert_eq!(h.binds, Some(vec!["/a:/b:ro".to_owned()]));
        assert_eq!(h.tmpfs.expect("given")["/t"], "size=1m");
        assert_eq!(h.mounts.expect("given").len(), 1);
        let h = host(&[
            "--security-opt",
            "seccomp=/seccomp",
            "--security-opt",
            "no-new-privileges",
            "--security-opt",
            "systempaths=unconfined",
        ]);
        assert_eq!(
            h.security_opt,
            Some(vec![
                "seccomp={\"a\":1}".to_owned(),
                "no-new-privileges".to_owned()
            ])
        );
        assert_eq!(
            (h.masked_paths, h.readonly_paths),
            (Some(vec![]), Some(vec![]))
        );
    }

    #[test]
    fn health_flags() {
        let h = config(
            &[
                "--health-cmd",
                "true",
                "--health-interval",
                "5s",
                "--health-retries",
                "2",
            ],
            false,
        )
        .healthcheck
        .expect("given");
        assert_eq!(
            (h.test, h.interval, h.retries),
            (
                Some(vec!["CMD-SHELL".into(), "true".into()]),
                5_000_000_000,
                2
            )
        );
        let h = config(&["--no-healthcheck"], false)
            .healthcheck
            .expect("given");
        assert_eq!(h.test, Some(vec!["NONE".to_owned()]));
    }

    #[test]
    fn command_and_entrypoint() {
        let plan = planned(&["--entrypoint", "", "img", "-x", "--rm"], false).expect("valid");
        assert_eq!(
            plan.body.config.cmd,
            Some(vec!["-x".to_owned(), "--rm".to_owned()])
        );
        assert_eq!(plan.body.config.entrypoint, Some(vec![String::new()]));
        assert_eq!(plan.image, "img");
    }

    #[test]
    fn contradictions_and_nonsense_are_refused() {
        for (words, message) in [
            (
                &["--rm", "--restart", "always"][..],
                "conflicting options: cannot specify both --restart and --rm",
            ),
            (
                &["--memory-swappiness", "200"],
                "invalid value: 200. Valid memory swappiness range is 0-100",
            ),
            (
                &["--no-healthcheck", "--health-cmd", "x"],
                "--no-healthcheck conflicts with --health-* options",
            ),
            (
                &["--health-interval=-1s"],
                "--health-interval cannot be negative",
            ),
            (
                &["--restart", ":3"],
                "invalid restart policy format: no policy provided before colon",
            ),
            (
                &["--restart", "on-failure:x"],
                "invalid restart policy format: maximum retry count must be an integer",
            ),
            (&["--pid", "foo"], "--pid: invalid PID mode"),
            (&["--uts", "foo"], "--uts: invalid UTS mode"),
            (
                &["--security-opt", "foo"],
                "Invalid --security-opt: \"foo\"",
            ),
            (
                &["--security-opt", "seccomp=/no"],
                "opening seccomp profile (/no) failed: open /no: no such file or directory",
            ),
            (
                &["--env-file", "/no"],
                "open /no: no such file or directory",
            ),
            (
                &["--env-file", "/bad"],
                "invalid env file (/bad): no variable name on line '=x'",
            ),
            (
                &["--env-file", "/spaces"],
                "invalid env file (/spaces): variable 'a b' contains whitespaces",
            ),
            (
                &["--log-driver", "none", "--log-opt", "a=b"],
                "invalid logging opts for driver none",
            ),
            (&["--storage-opt", "size"], "invalid storage option"),
            (&["--device", "x:y:z"], "bad mode specified: z"),
        ] {
            let words = [words, &["img"]].concat();
            assert_eq!(planned(&words, false).expect_err(message), message);
        }
    }
}
